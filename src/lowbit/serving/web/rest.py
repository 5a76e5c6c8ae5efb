"""Open Inference Protocol V2 over HTTP. The way of an inference request is bare ASGI: it is what has to be quick.

GET  /v2                                            the server's name, version and extensions
GET  /v2/health/live, /v2/health/ready
GET  /v2/models/NAME[/versions/V]                   metadata
GET  /v2/models/NAME[/versions/V]/ready
POST /v2/models/NAME[/versions/V]/infer
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Sequence
from typing import Any

from lowbit import __version__
from lowbit.serving.answer.answered import Caller
from lowbit.serving.protocol import aside, callers, rest_codec
from lowbit.serving.protocol.refusals import NotServed, Refusal, WrongMethod
from lowbit.serving.protocol.wire import datatype_of
from lowbit.serving.run.deployment import Deployment
from lowbit.serving.service import Service
from lowbit.serving.web.asgi import CLOSE, JSON, App, ClientGone, Header, Incoming, Receive, Scope, Send, answer, refuse
from lowbit.types import TensorInfo

EXTENSIONS = ("binary_tensor_data", "classification")
GET = ("GET", "HEAD")
_MODEL = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<verb>/infer|/ready)?/?")
_SERVER = re.compile(r"/v2(?P<verb>/health/live|/health/ready)?/?")
_log = logging.getLogger("lowbit.serving")


class Rest:
    """The protocol as an ASGI application; other paths go to `others`, whose refusals it answers."""

    def __init__(self, service: Service, others: App | None = None) -> None:
        """Speaks for a service."""
        self.service = service
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        incoming = Incoming.of(scope, receive)
        request_id = callers.request_id(incoming.headers)
        mark: list[Header] = [(b"x-request-id", request_id.encode())]
        try:
            if (match := _MODEL.fullmatch(incoming.path)) and match["verb"] == "/infer":
                parts, length = await self._infer(match, incoming, request_id)
                kind = JSON if length is None else (b"content-type", b"application/octet-stream")
                more = [] if length is None else [(rest_codec.HEADER.encode(), str(length).encode())]
                await answer(send, 200, parts, [kind, *more, *mark, *self._end(incoming)])
            elif match or (match := _SERVER.fullmatch(incoming.path)):
                status, document = self._facts(match, incoming)
                await incoming.discard()
                await answer(send, status, [json.dumps(document).encode()], [JSON, *mark, *self._end(incoming)])
            elif self._others is not None:
                await self._others(scope, receive, send)
            else:
                raise NotServed(f"There is nothing at '{incoming.path}'.")
        except ClientGone:
            return
        except Refusal as refusal:
            await self._refuse(send, refusal, incoming, request_id, mark)
        except Exception:
            _log.exception("a request failed")
            await self._refuse(send, Refusal("The server failed on this request."), incoming, request_id, mark)

    async def _infer(self, match: re.Match[str], incoming: Incoming, request_id: str) -> tuple[list[bytes], int | None]:
        if incoming.method != "POST":
            raise WrongMethod(incoming.method, incoming.path, ("POST",))
        settings, headers = self.service.settings, incoming.headers
        callers.admit(settings.api_keys, headers)
        with self.service.holding(incoming.size(settings.max_body_bytes)):
            body = await incoming.body(settings.max_body_bytes, settings.body_timeout_s)
            header = headers.get(rest_codec.HEADER)
            request = await aside.by_size(rest_codec.slow(body, header), rest_codec.parse, body, header)
            caller = Caller(request_id, headers, callers.waits_s(headers, request.parameters))
            response = await incoming.unless_gone(self.service.infer(match["name"], match["version"], request, caller))
            written = 0 if request.binary else sum(array.nbytes for array in response.outputs.values())
            return await aside.by_size(written, rest_codec.render, response, request)

    async def _refuse(self, send: Send, refusal: Refusal, incoming: Incoming, request_id: str, mark: list[Header]) -> None:
        self.service.refused(refusal, Caller(request_id, incoming.headers))
        with contextlib.suppress(ClientGone):
            await incoming.discard()
            await refuse(send, refusal, [*mark, *self._end(incoming)])

    def _end(self, incoming: Incoming) -> tuple[Header, ...]:
        """Closes a connection on which a body is stuck, and every connection of a server that stops."""
        return (CLOSE,) if incoming.unread or self.service.leaving else ()

    def _facts(self, match: re.Match[str], incoming: Incoming) -> tuple[int, Any]:
        """Health and metadata. Health needs no key: those who ask have none."""
        if incoming.method not in GET:
            raise WrongMethod(incoming.method, incoming.path, GET)
        ready = self.service.ready
        if match["verb"] == "/health/live":
            return 200, {"live": True}
        if match["verb"] == "/health/ready":
            return (200 if ready else 503), {"ready": ready}
        callers.admit(self.service.settings.api_keys, incoming.headers)
        if match.re is _SERVER:
            return 200, {"name": "lowbit", "version": __version__, "extensions": EXTENSIONS}
        found = self.service.model(match["name"], match["version"])
        if match["verb"] == "/ready":
            ready = self.service.ready_for(found)
            return (200 if ready else 503), {"name": found.name, "ready": ready}
        return 200, metadata(found, self.service.versions(found.name))


def metadata(found: Deployment, versions: Sequence[str]) -> dict[str, Any]:
    """A model's metadata response; `versions` are all that may be named. A language model takes no tensors: it is asked elsewhere."""
    inputs, outputs = (found.inputs, found.outputs) if found.language is None else ((), ())
    return {
        "name": found.name,
        "versions": list(versions),
        "platform": "lowbit_bundle",
        "inputs": [_tensor(info) for info in inputs],
        "outputs": [_tensor(info) for info in outputs],
        "parameters": {"variants": ", ".join(f"{variant.role}={variant.id}" for variant in found.variants.values())},
    }


def _tensor(info: TensorInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "datatype": datatype_of(info.dtype),
        "shape": [dim if isinstance(dim, int) else -1 for dim in info.shape],
    }
