"""A small HTTP/1.1 client: for metadata services, and for the load test, where it must cost less than what it measures."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools

MOST = 256 << 20
"""Bytes of an answer that are taken in."""


class Failed(Exception):
    """There was no whole answer: refused, reset, too slow, or not HTTP."""


class Unsent(Failed):
    """The connection had been closed before anything of an answer came: the request may be sent again on another one."""


@dataclass(frozen=True)
class Response:
    """An answer.

    Attributes:
        status: HTTP's.
        headers: Lower-case name -> value.
        body: Whole.
        closes: The connection takes no other request.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    closes: bool = field(default=False, compare=False)


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        """Not connected yet: see `connect`."""
        self._transport: Any = None
        self._answer: asyncio.Future[Response] | None = None
        self._lost = False
        self._begin()

    @property
    def open(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._lost

    async def ask(self, request: bytes) -> Response:
        """Sends a whole request and waits for its answer. Given up in between, the connection is closed.

        Raises:
            Failed: there was no whole answer.
        """
        if not self.open:
            raise Unsent("the connection is closed")
        assert self._answer is None, "one request at a time"
        self._answer = asyncio.get_running_loop().create_future()
        self._begin()
        self._transport.write(request)
        try:
            found = await self._answer
        except BaseException:
            self.close()
            raise
        finally:
            self._answer = None
        if found.closes:
            self.close()
        return found

    def close(self) -> None:
        """Ends it."""
        self._lost = True
        if self._transport is not None:
            self._transport.close()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._size = 0
        self._any = False

    # asyncio's calls

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.close()  # nobody asked
            return
        self._any = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(Failed(f"the answer is not HTTP: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._lost = True
        self._fail(Failed("the connection broke within the answer") if self._any else Unsent("the connection was closed"))

    def _fail(self, error: Failed) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    # the parser's calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > MOST:
            raise httptools.HttpParserError("it is too large")
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._answer is not None and not self._answer.done():
            body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            closes = not self._parser.should_keep_alive()
            self._answer.set_result(Response(self._parser.get_status_code(), self._headers, body, closes))


async def connect(host: str, port: int, ssl: Any = None) -> Connection:
    """A connection.

    Raises:
        Unsent: refused.
    """
    try:
        _, made = await asyncio.get_running_loop().create_connection(Connection, host, port, ssl=ssl)
    except OSError as error:
        raise Unsent(f"no connection: {error.strerror or type(error).__name__}") from None
    return made


def request(method: str, target: str, host: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bytes:
    """A whole request, ready to send."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def fetch(
    url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b"", timeout_s: float = 10.0
) -> Response:
    """One request on a connection of its own.

    Raises:
        Failed: there was no whole answer in time.
    """
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        async with asyncio.timeout(timeout_s):
            secure = parts.scheme == "https"
            made = await connect(parts.hostname or "", parts.port or (443 if secure else 80), secure or None)
            try:
                return await made.ask(request(method, target, parts.netloc, {"Connection": "close", **(headers or {})}, body))
            finally:
                made.close()
    except TimeoutError:
        raise Failed(f"no answer within {timeout_s:g} s") from None
