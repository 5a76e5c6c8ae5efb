"""Uvicorn around the REST application: sockets, TLS, slow clients, and an end that is ours to time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from lowbit.errors import UsageError
from lowbit.serving.settings import Settings
from lowbit.serving.web.asgi import ARRIVING, App

BACKLOG = 1024
UNASKED = 1 << 20
"""Bytes of a body that are taken before the application asks for it, which it does in the loop's next round: pausing costs more."""
PEM = "Give --tls-certificate a chain and --tls-key its key, both PEM."


class Body:
    """See `asgi.Arriving`. Of one request; told by the protocol, asked by the application."""

    __slots__ = ("_call", "_cycle", "_flow", "_lost", "_most", "_pieces", "_size", "_waiter", "complete")

    def __init__(self, flow: FlowControl, cycle: RequestResponseCycle) -> None:
        """Nothing is here yet. Until somebody asks for more, little is taken from the socket."""
        self.complete = False
        self._flow, self._cycle = flow, cycle
        self._most: int | None = UNASKED
        self._pieces: list[bytes] = []
        self._size = 0
        self._lost = False
        self._waiter: asyncio.Future[None] | None = None
        self._call: Callable[[], object] | None = None

    def came(self, piece: bytes) -> None:
        """A piece of it."""
        if self._most is None:
            return  # dropped
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > self._most:
            self._flow.pause_reading()
            self._wake()

    def finish(self) -> None:
        """All of it came."""
        self.complete = True
        self._wake()

    def lose(self) -> None:
        """The client has gone."""
        self._lost = True
        self._wake()
        if self._call is not None:
            self._call()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def whole(self, most: int) -> bytes | None:
        """See `asgi.Arriving`."""
        self._most = most
        if self._cycle.waiting_for_100_continue:
            self._cycle.waiting_for_100_continue = False
            self._cycle.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.complete or self._lost or self._size > most):
            await self._more()
        if self._lost and not self.complete:
            return None
        found = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces = []
        return found

    async def drop(self) -> None:
        """See `asgi.Arriving`."""
        self._most, self._pieces = None, []
        while not (self.complete or self._lost):
            await self._more()

    async def _more(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        self._flow.resume_reading()
        await self._waiter

    def when_gone(self, call: Callable[[], object] | None) -> bool:
        """See `asgi.Arriving`."""
        self._call = call
        return not self._lost


class PatientForAWhile(HttpToolsProtocol):
    """Uvicorn's protocol with an end to what a client can draw out: headers that do not come or do not stop, answers that nobody reads.

    Attributes:
        headers_s: For the headers of a request, from its first byte; for the first request from the connection.
        headers_bytes: Of them.
        reads_s: A client has so long to take what is buffered for it.
    """

    headers_s = 10.0
    headers_bytes = 64 << 10
    reads_s = 60.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._hurry: asyncio.TimerHandle | None = self.loop.call_later(self.headers_s, self._give_up)
        self._stuck: asyncio.TimerHandle | None = None
        self._head = 0
        self._bodies: list[Body] = []  # of the requests that have no answer yet: one, or more where they are pipelined

    def data_received(self, data: bytes) -> None:
        before = self._hurry
        super().data_received(data)
        # Headers that began within this piece have something else before them: it does not count.
        self._head = self._head + len(data) if self._hurry is not None and self._hurry is before else 0
        if self._head > self.headers_bytes and not self.transport.is_closing():
            self._say("431 Request Header Fields Too Large", f"The headers have more than {self.headers_bytes:,} bytes.")

    def on_headers_complete(self) -> None:
        self._calm()
        super().on_headers_complete()
        self._bodies.append(Body(self.flow, self.cycle))
        scope: Any = self.scope
        scope[ARRIVING] = self._bodies[-1]

    def on_body(self, body: bytes) -> None:
        self._bodies[-1].came(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._bodies[-1].finish()

    def on_response_complete(self) -> None:
        if self.cycle.response_complete and not self._bodies[-1].complete:
            self.transport.close()  # a body that nobody wants would hold the connection as long as it pleases
        super().on_response_complete()
        if len(self._bodies) > 1:
            del self._bodies[0]

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._hurry is None:
            self._hurry = self.loop.call_later(self.headers_s, self._give_up)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(self.reads_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._calm()
        super().connection_lost(exc)
        for body in self._bodies:
            body.lose()
        if self._stuck is not None:
            self._stuck.cancel()

    def send_400_response(self, msg: str) -> None:
        self._say("400 Bad Request", msg)

    def _say(self, status: str, message: str) -> None:
        """Answers what never became a request, and closes."""
        body = json.dumps({"error": message})
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write((head + body).encode())
        self.transport.close()

    def _calm(self) -> None:
        if self._hurry is not None:
            self._hurry.cancel()
            self._hurry = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


class HttpServer(uvicorn.Server):
    """Leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles none."""
        yield


def bound(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket's address, taken now, so that a busy port is an error before models are loaded.

    Args:
        host: Address.
        port: 0 takes a free one.
        shared: Others may listen on it, too. It then listens once it is served: what the kernel sends here must be answered.

    Raises:
        UsageError: the address is not ours or not free.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        made.bind((host, port))
        if not shared:
            made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise UsageError(f"Cannot listen on {host}:{port}: {error.strerror}.", "Another --port (0 takes a free one) or --host.") from error
    return made


def http_server(app: App, settings: Settings) -> HttpServer:
    """A server that is not running yet; run it with `serve(sockets=[...])`, end it with `should_exit`.

    Raises:
        UsageError: the certificate and key cannot be used.
    """
    if settings.certificate is not None:
        check_certificate(settings.certificate, settings.private_key)
    return HttpServer(
        uvicorn.Config(
            app,
            http=PatientForAWhile,
            loop="uvloop",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            proxy_headers=False,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.private_key,
        )
    )


def check_certificate(certificate: Path, key: Path | None) -> None:
    """Tries them.

    Raises:
        UsageError: they are not there, no PEM files, or do not belong together.
    """
    for file in filter(None, (certificate, key)):
        if not file.is_file():
            raise UsageError(f"There is no file '{file}'.", PEM)
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise UsageError(f"The certificate '{certificate.name}' and its key cannot be used: {error}.", PEM) from None
