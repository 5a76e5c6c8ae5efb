"""Predictions for raw samples: the bundle's own preprocessing is applied, and what comes out is said in words.

POST /v1/predict                            where one model is served
POST /v1/models/NAME[/versions/V]/predict

Query: `variant` as in the protocol's parameters, `top` for so many classes, `outputs=false` to leave out the tensors. Decoding an image
takes longer than many models do: it is done in threads of its own, off the event loop.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from lowbit.data.preprocess import Preprocess
from lowbit.data.steps import Size
from lowbit.errors import LowbitError
from lowbit.serving.answer.answered import Caller
from lowbit.serving.protocol import aside, callers, wire
from lowbit.serving.protocol.refusals import Malformed, NotServed, Refusal, TooLate, WrongMethod
from lowbit.serving.protocol.requests import InferRequest, InferResponse, Parameter
from lowbit.serving.protocol.rest_codec import MOST_TOP
from lowbit.serving.run.deployment import Deployment
from lowbit.serving.service import Service, takes_arrays
from lowbit.serving.web import samples
from lowbit.serving.web.asgi import CLOSE, JSON, App, Incoming, Receive, Scope, Send, answer
from lowbit.serving.web.predictions import Meaning, predictions
from lowbit.serving.web.samples import Images, Samples
from lowbit.types import Array, Feeds, TensorInfo

_PATH = re.compile(r"/v1/(?:predict|models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?/predict)/?")
QUERY = ("variant", "top", "outputs")


@dataclass(frozen=True)
class Known:
    """What is worked out once for each deployment."""

    deployment: Deployment
    steps: Preprocess | None
    meaning: Meaning

    @property
    def kind(self) -> str:
        """What a sample is: "image", "text" or "array"."""
        return "array" if self.steps is None else self.steps.kind

    @property
    def axes(self) -> int:
        """Of one sample of the first input."""
        return len(self.deployment.inputs[0].shape) - 1


@dataclass(frozen=True)
class Prepared:
    """Samples as the model takes them."""

    sent: Samples
    feeds: Feeds
    sizes: Sequence[Size | None]


@dataclass(frozen=True)
class Query:
    """What is behind the question mark."""

    top: int = 1
    outputs: bool = True
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


class Predict:
    """The two addresses as an ASGI application within `rest.Rest`, which answers what this raises; other paths go to `others`."""

    def __init__(self, service: Service, others: App | None = None) -> None:
        """Speaks for a service."""
        self._service, self._others = service, others
        self._known: dict[int, Known] = {}  # by id of the deployment, which it keeps alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request.

        Raises:
            Refusal: of the kind that fits.
            ClientGone: the client went.
        """
        if match := _PATH.fullmatch(scope["path"]):
            await self._answer(match["name"], match["version"], Incoming.of(scope, receive), send)
        elif self._others is not None:
            await self._others(scope, receive, send)
        else:
            raise NotServed(f"There is nothing at '{scope['path']}'.")

    async def _answer(self, name: str | None, version: str | None, incoming: Incoming, send: Send) -> None:
        if incoming.method != "POST":
            raise WrongMethod(incoming.method, incoming.path, ("POST",))
        settings, headers = self._service.settings, incoming.headers
        callers.admit(settings.api_keys, headers)
        asked, caller = _asked(incoming.query), Caller(callers.request_id(headers), headers)
        with self._service.holding(incoming.size(settings.max_body_bytes)):
            body = bytes(await incoming.body(settings.max_body_bytes, settings.body_timeout_s))
            text = await incoming.unless_gone(self._predict(name or self._only(), version, body, asked, caller))
        end = (CLOSE,) if self._service.leaving else ()
        await answer(send, 200, [text], [JSON, (callers.REQUEST_ID.encode(), caller.request_id.encode()), *end])

    def _only(self) -> str:
        models = list(self._service.models)
        if len(models) != 1:
            raise NotServed(f"Say which model: /v1/models/NAME/predict. Served: {', '.join(models) or 'none'}.")
        return models[0]

    async def _predict(self, name: str, version: str | None, body: bytes, asked: Query, caller: Caller) -> bytes:
        waits_s = min(callers.waits_s(caller.headers, {}) or np.inf, self._service.settings.deadline_s)
        deadline = asyncio.get_running_loop().time() + waits_s
        place = None
        while True:
            try:
                return await self._placed(name, version, body, asked, caller, deadline, place)
            except Refusal as refusal:
                if refusal.elsewhere is None or place is not None:
                    raise
                place = refusal.elsewhere  # prepares other inputs

    async def _placed(
        self, name: str, version: str | None, body: bytes, asked: Query, caller: Caller, deadline: float, place: Deployment | None
    ) -> bytes:
        loop = asyncio.get_running_loop()
        with self._service.admitted(name, version, caller, place) as deployment:
            takes_arrays(deployment)
            known = self._know(deployment)
            try:
                async with asyncio.timeout_at(deadline):
                    prepared = await aside.in_thread(prepare, known, body, caller.headers.get("content-type", ""))
            except TimeoutError:
                raise TooLate("The deadline passed before the samples were prepared.") from None
            request = InferRequest(prepared.feeds, prepared.sent.id, (), {**prepared.sent.parameters, **asked.parameters})
            left = Caller(caller.request_id, caller.headers, max(deadline - loop.time(), 1e-6))
            response = await self._service.infer(name, version, request, left, deployment)
            size = sum(array.nbytes for array in response.outputs.values())
            return await aside.by_size(size, _written, known, response, prepared.sizes, asked)

    def _know(self, deployment: Deployment) -> Known:
        known = self._known.get(id(deployment))
        if known is None:
            steps = deployment.preprocess
            meaning = Meaning.of(deployment.bundle.manifest.policy.task, deployment.outputs, deployment.reader, steps)
            known = Known(deployment, steps, meaning)
            served = {id(each) for each in self._service.loaded}
            self._known = {key: each for key, each in self._known.items() if key in served} | {id(deployment): known}
        return known


def prepare(known: Known, body: bytes, content_type: str) -> Prepared:
    """Reads a body and applies the bundle's preprocessing; runs in a thread.

    Raises:
        Malformed: the body, or a sample, is not what the model takes.
    """
    sent = samples.read(body, content_type, known.kind, known.axes)
    inputs = known.deployment.inputs
    values = Images(sent.values) if known.kind == "image" else sent.values
    try:
        feeds = _feeds(known.steps, values, inputs)
    except LowbitError as error:
        raise Malformed(" ".join(filter(None, (error.message, error.hint)))) from None
    except (ValueError, TypeError, OverflowError) as error:  # numpy's, where samples have another width than the steps
        raise Malformed(f"The samples do not fit the model's preprocessing: {error}.") from None
    return Prepared(sent, feeds, values.sizes if isinstance(values, Images) else [None] * len(values))


def _feeds(steps: Preprocess | None, values: Sequence[Any], inputs: tuple[TensorInfo, ...]) -> Feeds:
    if steps is not None and steps.text is not None:
        return steps.text.feeds(values, inputs)
    if len(inputs) == 1:
        (info,) = inputs
        return {info.name: _typed((steps or Preprocess(kind="array")).batch(values), info.dtype)}
    names = ", ".join(info.name for info in inputs)
    if steps is not None and steps.kind == "image":
        raise Malformed(f"The model has several inputs ({names}), and its preprocessing makes one: ask at /v2/models/NAME/infer.")
    found: Feeds = {}
    for info in inputs:
        if not all(isinstance(value, Mapping) and info.name in value for value in values):
            raise Malformed(f"A sample is an object with all of the model's inputs: {names}.")
        found[info.name] = _typed(Preprocess(kind="array").batch([value[info.name] for value in values]), info.dtype)
    return found


def _typed(batch: Array, dtype: str) -> Array:
    """In the input's dtype, as long as nothing is lost."""
    from lowbit.data.fit import cast

    return batch if batch.dtype.name == dtype else cast(batch, dtype)


def _written(known: Known, response: InferResponse, sizes: Sequence[Size | None], asked: Query) -> bytes:
    return json.dumps(told(known, response, sizes, asked), separators=(",", ":"), allow_nan=False).encode()


def told(known: Known, response: InferResponse, sizes: Sequence[Size | None], asked: Query) -> dict[str, Any]:
    """The answer's document."""
    document: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        document["id"] = response.id
    document["predictions"] = predictions(known.meaning, response.outputs, sizes, asked.top)
    if asked.outputs:
        document["outputs"] = [
            {"name": name, "datatype": wire.datatype_of_dtype(array.dtype), "shape": list(array.shape), "data": wire.to_json(array)}
            for name, array in response.outputs.items()
        ]
    return {**document, "parameters": dict(response.parameters)}


def _asked(query: bytes) -> Query:
    given = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    if unknown := sorted(given.keys() - set(QUERY)):
        raise Malformed(f"The query has '{unknown[0]}', which is not known. Allowed: {', '.join(QUERY)}.")
    top, outputs = given.get("top", "1"), given.get("outputs", "true")
    if not (top.isascii() and top.isdigit() and len(top) <= 4 and 1 <= int(top) <= MOST_TOP):
        raise Malformed(f"top must be a number of classes from 1 to {MOST_TOP}.")
    if outputs not in ("true", "false"):
        raise Malformed("outputs must be true or false.")
    return Query(int(top), outputs == "true", {"variant": given["variant"]} if "variant" in given else {})
