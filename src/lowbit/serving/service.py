"""Answers requests, whichever way they came: checks, chooses the variant, runs, says who answered.

REST, gRPC, `/v1/predict` and Ray all end here, so that they give the same answers and the same refusals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np

from lowbit.serving.answering import Caller, answer
from lowbit.serving.deployment import Deployment
from lowbit.serving.refusals import Malformed, NotServed, Unavailable
from lowbit.serving.requests import InferRequest, InferResponse, Parameter, Wanted
from lowbit.serving.settings import Settings
from lowbit.serving.wire import datatype_of
from lowbit.types import Array, Feeds, TensorInfo


class Service:
    """The models that are served, and the way from a request to an answer.

    Attributes:
        settings: Limits and deadlines.
        draining: True once the server is to stop: nothing more is admitted.
        inside: Requests that were admitted and have no answer yet.
    """

    def __init__(self, settings: Settings) -> None:
        """Serves nothing yet: see `put`."""
        self.settings = settings
        self.draining = False
        self.inside = 0
        self._models: dict[str, Deployment] = {}

    @property
    def models(self) -> Mapping[str, Deployment]:
        """By name."""
        return self._models

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return bool(self._models) and not self.draining

    def put(self, deployment: Deployment) -> Deployment | None:
        """Serves a deployment from now on; gives back the one it takes the place of, which still has to end what it accepted."""
        before = self._models.get(deployment.name)
        self._models[deployment.name] = deployment
        return before

    def model(self, name: str, version: str | None = None) -> Deployment:
        """By name and version.

        Raises:
            NotServed: there is none.
        """
        found = self._models.get(name)
        if found is None:
            raise NotServed(f"There is no model '{name}'. Served: {', '.join(self._models) or 'none'}.")
        if version is not None and version != found.version:
            raise NotServed(f"Model '{name}' has no version '{version}'. Served: {found.version}.")
        return found

    async def infer(self, name: str, version: str | None, request: InferRequest, caller: Caller) -> InferResponse:
        """Answers one request.

        Raises:
            Refusal: of the kind that fits.
        """
        if self.draining:
            raise Unavailable("The server is stopping.", retry_after_s=1)
        if self.inside >= self.settings.max_requests:
            raise Unavailable(f"{self.inside} requests are being answered, which is the limit.", retry_after_s=1)
        self.inside += 1
        try:
            deployment = self.model(name, version)
            check(deployment.inputs, request.inputs)
            wanted = _wanted(deployment.outputs, request.outputs)
            deadline = asyncio.get_running_loop().time() + min(caller.deadline_s or np.inf, self.settings.deadline_s)
            found = await answer(deployment, request, caller, deadline)
            outputs = {each.name: _shown(found.outputs[each.name], each) for each in wanted}
            said: dict[str, Parameter] = {"variant": found.variant.id, "precision": found.variant.precision, "route": found.route}
            return InferResponse(deployment.name, deployment.version, outputs, request.id, said)
        finally:
            self.inside -= 1


def check(inputs: tuple[TensorInfo, ...], feeds: Feeds) -> None:
    """Compares feeds with what a model takes.

    Raises:
        Malformed: naming the first input that is missing, unknown, or of the wrong type or shape, or inputs with different numbers of rows.
    """
    declared = {info.name: info for info in inputs}
    for name in feeds:
        if name not in declared:
            raise Malformed(f"The model has no input '{name}'. Its inputs: {', '.join(declared)}.")
    for info in inputs:
        if info.name not in feeds:
            raise Malformed(f"Input '{info.name}' is missing. The model's inputs: {', '.join(declared)}.")
        _check_array(info, feeds[info.name])
    rows = {info.name: len(feeds[info.name]) for info in inputs if info.shape}
    if len(set(rows.values())) > 1:
        raise Malformed(f"The inputs have different numbers of rows: {', '.join(f'{name} {n}' for name, n in rows.items())}.")
    if 0 in rows.values():
        raise Malformed("The inputs have no rows: the first axis is 0.")


def _check_array(info: TensorInfo, array: Array) -> None:
    if array.dtype.name != info.dtype and datatype_of(array.dtype.name) != datatype_of(info.dtype):
        raise Malformed(f"Input '{info.name}' is {datatype_of(array.dtype.name)}; the model takes {datatype_of(info.dtype)}.")
    fits = len(array.shape) == len(info.shape) and all(
        not isinstance(want, int) or want == got for want, got in zip(info.shape, array.shape, strict=True)
    )
    if not fits:
        shape = ", ".join(str(dim) if isinstance(dim, int) else "any" for dim in info.shape)
        raise Malformed(f"Input '{info.name}' has shape {list(array.shape)}; the model takes [{shape}].")


def _wanted(outputs: tuple[TensorInfo, ...], asked: tuple[Wanted, ...]) -> tuple[Wanted, ...]:
    names = [info.name for info in outputs]
    for each in asked:
        if each.name not in names:
            raise Malformed(f"The model has no output '{each.name}'. Its outputs: {', '.join(names)}.")
    return asked or tuple(Wanted(name) for name in names)


def _shown(array: Array, wanted: Wanted) -> Array:
    """The tensor, or its top classes as "value:index" strings (the protocol's classification extension)."""
    if not wanted.classification:
        return array
    flat = array.reshape(len(array), -1)
    top = np.argsort(-flat, axis=1, kind="stable")[:, : wanted.classification]
    named = [[f"{flat[row, column]:.6f}:{column}".encode() for column in columns] for row, columns in enumerate(top)]
    return np.array(named, object)
