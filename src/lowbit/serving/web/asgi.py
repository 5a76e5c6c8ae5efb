"""One HTTP request as the application sees it: headers, a body that is never more than allowed, and an answer."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from typing import Any, Protocol, TypeVar

from lowbit.serving.protocol import aside
from lowbit.serving.protocol.refusals import Malformed, Refusal, TooLarge, TooSlow

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]
Result = TypeVar("Result")

JSON: Header = (b"content-type", b"application/json")
CLOSE: Header = (b"connection", b"close")
LINGER_S = 2.0
"""A refused client that is still sending is read for so long before the connection is closed: closed at once, it might never see why."""
_KEY = "lowbit.incoming"
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class ClientGone(Exception):
    """The client closed the connection before its request was whole, or before it was answered."""


class Arriving(Protocol):
    """The body of a request straight from the socket, and the fate of its connection: what a server may put into the scope as `ARRIVING`.

    Without it bodies come in parts through `receive`; with it they are put together once, and nothing has to watch for a client that goes.
    """

    complete: bool
    """Whether all of the body is here."""

    async def whole(self, most: int) -> bytes | None:
        """The body as soon as it is here whole, or a little more than `most` bytes of it; None when the client has gone."""

    async def drop(self) -> None:
        """Reads the rest of the body and forgets it."""

    def when_gone(self, call: Callable[[], object] | None) -> bool:
        """Has something called when the client goes; nothing any more with None. False where it has gone already."""


ARRIVING = "lowbit.arriving"


class Incoming:
    """A request.

    Attributes:
        method: In capitals.
        path: Decoded.
        query: As it came.
        headers: Lower-case name -> value; the last one where a name comes twice.
    """

    __slots__ = ("_arriving", "_receive", "_rest", "headers", "method", "path", "query")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        """From what the server hands over."""
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self._receive = receive
        self._arriving: Arriving | None = scope.get(ARRIVING)
        self._rest = self.headers.get("content-length", "0") != "0" or "transfer-encoding" in self.headers

    @classmethod
    def of(cls, scope: Scope, receive: Receive) -> Incoming:
        """The request of a scope: the same one for every application that it goes through, so that all know what was read."""
        found: Incoming | None = scope.get(_KEY)
        if found is None:
            found = scope[_KEY] = cls(scope, receive)
        return found

    @property
    def unread(self) -> bool:
        """Whether some of the body may still be on its way."""
        return self._rest if self._arriving is None else not self._arriving.complete

    def size(self, most: int) -> int:
        """Bytes that the body will take in memory: as said, or the most where it is not said or is packed."""
        declared = self.headers.get("content-length", "0" if "transfer-encoding" not in self.headers else "")
        return most if not declared.isdigit() or "content-encoding" in self.headers else int(declared)

    async def body(self, most: int, timeout_s: float) -> bytes | bytearray:
        """The whole body, unpacked.

        Raises:
            ClientGone: the client went in the middle.
            TooLarge: more bytes than allowed; before they are read, where the client says so.
            TooSlow: the body did not come in time.
            Malformed: packed in a way that is not known, or badly.
        """
        if (declared := self.size(0)) > most:
            raise TooLarge(f"The body has {declared:,} bytes; {most:,} are allowed.")
        try:
            async with asyncio.timeout(timeout_s):
                body = await (self._whole(most) if self._arriving is None else self._arriving.whole(most))
        except TimeoutError:
            raise TooSlow(f"The body was not here whole after {timeout_s:g} s.") from None
        if body is None:
            raise ClientGone
        if len(body) > most:
            raise TooLarge(f"The body has more than {most:,} bytes, which is the limit.")
        encoding = self.headers.get("content-encoding", "identity").lower()
        return body if encoding == "identity" else await _unpacked(bytes(body), encoding, most)

    async def _whole(self, most: int) -> bytes | bytearray:
        body = await self._part()
        if not self._rest:
            return body  # one part, as it is: no copy
        whole = bytearray(body)
        while self._rest and len(whole) <= most:
            whole += await self._part()
        return whole

    async def _part(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        self._rest = message.get("more_body", False)
        found: bytes = message.get("body", b"")
        return found

    async def discard(self) -> None:
        """Reads on for a moment and drops it, so that a client which sends before it listens hears the answer.

        Raises:
            ClientGone: it went.
        """
        if self.unread and self.headers.get("expect", "").lower() != "100-continue":
            try:
                async with asyncio.timeout(LINGER_S):
                    if self._arriving is not None:
                        await self._arriving.drop()
                    while self._arriving is None and self._rest:
                        await self._part()
            except TimeoutError:
                pass

    async def unless_gone(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Awaits, but gives up when the client closes the connection: its request then leaves the queue.

        Raises:
            ClientGone: it did.
        """
        task = asyncio.current_task()
        assert task is not None, "a request is a task"
        if self._arriving is None:
            return await self._watching(work, task)
        gone = False

        def give_up() -> None:
            nonlocal gone
            gone = True
            task.cancel()

        if not self._arriving.when_gone(give_up):
            work.close()
            raise ClientGone
        try:
            return await work
        except asyncio.CancelledError:
            if gone:
                task.uncancel()
                raise ClientGone from None
            raise
        finally:
            self._arriving.when_gone(None)

    async def _watching(self, work: Coroutine[Any, Any, Result], task: asyncio.Task[Any]) -> Result:
        watcher = asyncio.ensure_future(self._gone(task))
        try:
            return await work
        except asyncio.CancelledError:
            if watcher.done() and not watcher.cancelled():
                task.uncancel()
                raise ClientGone from None
            raise
        finally:
            watcher.cancel()

    async def _gone(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        task.cancel()


async def _unpacked(body: bytes, encoding: str, most: int) -> bytes:
    """Never unpacks more than allowed: a small body may claim to be a huge one. What turns out to be large is unpacked in a thread."""
    if encoding not in _WINDOWS:
        raise Malformed(f"Content-Encoding '{encoding}' is not known. Allowed: gzip, deflate.")
    unpacker = zlib.decompressobj(_WINDOWS[encoding])
    try:
        found = unpacker.decompress(body, min(most + 1, aside.SMALL))
        if len(found) == aside.SMALL and not unpacker.eof:
            found += await aside.in_thread(unpacker.decompress, unpacker.unconsumed_tail, max(1, most + 1 - len(found)))
    except zlib.error as error:
        raise Malformed(f"The body is not {encoding}: {error}.") from None
    if len(found) > most:
        raise TooLarge(f"The unpacked body has more than {most:,} bytes, which is the limit.")
    if not unpacker.eof:
        raise Malformed(f"The {encoding} body ends too early.")
    if unpacker.unused_data:
        raise Malformed(f"{len(unpacker.unused_data)} bytes follow the {encoding} body.")
    return found


async def answer(send: Send, status: int, parts: list[bytes], headers: Iterable[Header]) -> None:
    """Sends a whole answer."""
    length = (b"content-length", str(sum(map(len, parts))).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": parts[0] if len(parts) == 1 else b"".join(parts)})


async def refuse(send: Send, refusal: Refusal, headers: Iterable[Header] = ()) -> None:
    """Sends a refusal, in the protocol's form: {"error": "..."}."""
    own = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    if refusal.retry_after_s is not None:
        own.append((b"retry-after", f"{max(1, round(refusal.retry_after_s))}".encode()))
    await answer(send, refusal.status, [json.dumps({"error": refusal.message}).encode()], [JSON, *own, *headers])
