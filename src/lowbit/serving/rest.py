"""Open Inference Protocol V2 over HTTP. The way of an inference request is bare ASGI: it is what has to be quick.

GET  /v2                                            the server's name, version and extensions
GET  /v2/health/live, /v2/health/ready
GET  /v2/models/NAME[/versions/V]                   metadata
GET  /v2/models/NAME[/versions/V]/ready
POST /v2/models/NAME[/versions/V]/infer
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import secrets
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from typing import Any, TypeVar

from lowbit import __version__
from lowbit.serving import rest_codec
from lowbit.serving.answering import Caller
from lowbit.serving.deployment import Deployment
from lowbit.serving.refusals import Malformed, NotServed, Refusal, TooLarge, TooLate, Unauthorized
from lowbit.serving.service import Service
from lowbit.serving.wire import datatype_of
from lowbit.types import TensorInfo

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]
Result = TypeVar("Result")

_MODEL = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<verb>/infer|/ready)?/?")
_JSON: Header = (b"content-type", b"application/json")
DEADLINE = "x-request-timeout-ms"
REQUEST_ID = "x-request-id"


class ClientGone(Exception):
    """The client closed the connection before its request was whole, or before it was answered."""


class Rest:
    """The protocol as an ASGI application; other paths go to `others`."""

    def __init__(self, service: Service, others: Callable[[Scope, Receive, Send], Awaitable[None]] | None = None) -> None:
        """Speaks for a service."""
        self.service = service
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        path, method = scope["path"], scope["method"]
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = headers.get(REQUEST_ID) or secrets.token_hex(8)
        try:
            match = _MODEL.fullmatch(path)
            if match and match["verb"] == "/infer" and method == "POST":
                self.admit(headers)
                parts, length = await self._infer(match["name"], match["version"], headers, request_id, receive)
                binary = [(rest_codec.HEADER.encode(), str(length).encode())] if length is not None else []
                kind = [(b"content-type", b"application/octet-stream"), *binary] if binary else [_JSON]
                await answer(send, 200, parts, [*kind, (REQUEST_ID.encode(), request_id.encode("latin-1"))])
                return
            if (found := self._facts(path, method, match, headers)) is not None:
                status, document = found
                await answer(send, status, [json.dumps(document).encode()], [_JSON])
                return
            if self._others is None:
                raise NotServed(f"There is nothing at '{path}'.")
            await self._others(scope, receive, send)
        except ClientGone:
            return
        except Refusal as refusal:
            await refuse(send, refusal, request_id)

    def admit(self, headers: dict[str, str]) -> None:
        """Asks for a key where there are any.

        Raises:
            Unauthorized: none, or the wrong one.
        """
        keys = self.service.settings.api_keys
        given = headers.get("authorization", "").removeprefix("Bearer ").strip() or headers.get("x-api-key", "")
        if keys and not any(hmac.compare_digest(given.encode(), key.encode()) for key in keys):
            raise Unauthorized("An API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY.")

    async def _infer(
        self, name: str, version: str | None, headers: dict[str, str], request_id: str, receive: Receive
    ) -> tuple[list[bytes], int | None]:
        settings = self.service.settings
        body = await read(receive, headers, settings.max_body_bytes, settings.body_timeout_s)
        request = rest_codec.parse(body, headers.get(rest_codec.HEADER))
        caller = Caller(request_id, headers, _deadline(headers))
        response = await unless_gone(self.service.infer(name, version, request, caller), receive)
        return rest_codec.render(response, request)

    def _facts(self, path: str, method: str, match: re.Match[str] | None, headers: dict[str, str]) -> tuple[int, Any] | None:
        """Health and metadata; None for other paths. Health needs no key: those who ask have none."""
        trimmed = path.rstrip("/")
        if method not in ("GET", "HEAD"):
            return None
        if trimmed == "/v2/health/live":
            return 200, {"live": True}
        if trimmed == "/v2/health/ready":
            return (200 if self.service.ready else 503), {"ready": self.service.ready}
        if trimmed != "/v2" and not match:
            return None
        self.admit(headers)
        if match is None:
            return 200, {"name": "lowbit", "version": __version__, "extensions": ["binary_tensor_data", "classification"]}
        found = self.service.model(match["name"], match["version"])
        if match["verb"] == "/ready":
            return (200 if self.service.ready else 503), {"name": found.name, "ready": self.service.ready}
        return (200, metadata(found)) if match["verb"] is None else None


def metadata(found: Deployment) -> dict[str, Any]:
    """A model's metadata response."""
    return {
        "name": found.name,
        "versions": [found.version],
        "platform": "lowbit_bundle",
        "inputs": [_tensor(info) for info in found.inputs],
        "outputs": [_tensor(info) for info in found.outputs],
        "parameters": {"variants": ", ".join(f"{variant.role}={variant.id}" for variant in found.variants.values())},
    }


def _tensor(info: TensorInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "datatype": datatype_of(info.dtype),
        "shape": [dim if isinstance(dim, int) else -1 for dim in info.shape],
    }


async def read(receive: Receive, headers: dict[str, str], most: int, timeout_s: float) -> bytes | bytearray:
    """The whole body, unpacked.

    Raises:
        ClientGone: the client went in the middle.
        TooLarge: more bytes than allowed; before they are read, where the client says so.
        TooLate: the body did not come in time.
        Malformed: compressed in a way that is not known, or badly.
    """
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise TooLarge(f"The body has {int(declared):,} bytes; {most:,} are allowed.")
    try:
        async with asyncio.timeout(timeout_s):
            body = await _whole(receive, most)
    except TimeoutError:
        raise TooLate(f"The body was not here whole after {timeout_s:g} s.") from None
    encoding = headers.get("content-encoding", "identity")
    return body if encoding == "identity" else _unpacked(bytes(body), encoding, most)


async def _whole(receive: Receive, most: int) -> bytes | bytearray:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    if not message.get("more_body") and len(message.get("body", b"")) <= most:
        whole: bytes = message.get("body", b"")
        return whole
    body = bytearray(message.get("body", b""))
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > most:
            break
    if len(body) > most:
        raise TooLarge(f"The body has more than {most:,} bytes, which is the limit.")
    return body


def _unpacked(body: bytes, encoding: str, most: int) -> bytes:
    """Never unpacks more than allowed: a small body may claim to be a huge one."""
    windows = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
    if encoding not in windows:
        raise Malformed(f"Content-Encoding '{encoding}' is not known. Allowed: gzip, deflate.")
    unpacker = zlib.decompressobj(windows[encoding])
    try:
        found = unpacker.decompress(body, most + 1)
    except zlib.error as error:
        raise Malformed(f"The body is not {encoding}: {error}.") from None
    if len(found) > most:
        raise TooLarge(f"The unpacked body has more than {most:,} bytes, which is the limit.")
    if not unpacker.eof:
        raise Malformed(f"The {encoding} body ends too early.")
    return found


async def unless_gone(work: Coroutine[Any, Any, Result], receive: Receive) -> Result:
    """Awaits, but gives up when the client closes the connection: its request then leaves the queue.

    Raises:
        ClientGone: it did.
    """
    task = asyncio.current_task()
    assert task is not None, "a request is a task"
    watcher = asyncio.ensure_future(_gone(receive, task))
    try:
        return await work
    except asyncio.CancelledError:
        if watcher.done() and not watcher.cancelled():
            task.uncancel()
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()


async def _gone(receive: Receive, task: asyncio.Task[Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


def _deadline(headers: dict[str, str]) -> float | None:
    value = headers.get(DEADLINE)
    if value is None:
        return None
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = float("nan")
    if not 0 < milliseconds < 1e9:
        raise Malformed(f"The header {DEADLINE} must be milliseconds above 0.")
    return milliseconds / 1000


async def answer(send: Send, status: int, parts: list[bytes], headers: Iterable[Header]) -> None:
    """Sends a whole answer."""
    length = (b"content-length", str(sum(map(len, parts))).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": parts[0] if len(parts) == 1 else b"".join(parts)})


async def refuse(send: Send, refusal: Refusal, request_id: str) -> None:
    """Sends a refusal, in the protocol's form: {"error": "..."}."""
    again = [] if refusal.retry_after_s is None else [(b"retry-after", f"{max(1, round(refusal.retry_after_s))}".encode())]
    headers = [_JSON, (REQUEST_ID.encode(), request_id.encode("latin-1", "replace")), *again]
    await answer(send, refusal.status, [json.dumps({"error": refusal.message}).encode()], headers)
