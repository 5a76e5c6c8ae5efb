"""Uvicorn around the REST application: sockets, TLS, slow clients, and an end that is ours to time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lowbit.errors import UsageError
from lowbit.serving.rest import Rest
from lowbit.serving.settings import Settings

BACKLOG = 1024


class PatientForAWhile(HttpToolsProtocol):
    """Closes connections whose next request's headers do not come: uvicorn's own timeouts begin after the first request."""

    headers_s = 10.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._hurry: asyncio.TimerHandle | None = self.loop.call_later(self.headers_s, self._give_up)

    def on_headers_complete(self) -> None:
        self._calm()
        super().on_headers_complete()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._hurry is None:
            self._hurry = self.loop.call_later(self.headers_s, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._calm()
        super().connection_lost(exc)

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


def bound(host: str, port: int) -> socket.socket:
    """A listening socket's address, taken now, so that a busy port is an error before models are loaded.

    Raises:
        UsageError: the address is not ours or not free.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise UsageError(f"Cannot listen on {host}:{port}: {error.strerror}.", "Another --port (0 takes a free one) or --host.") from error
    return made


def http_server(app: Rest, settings: Settings) -> HttpServer:
    """A server that is not running yet; run it with `serve(sockets=[...])`, end it with `should_exit`."""
    return HttpServer(
        uvicorn.Config(
            app,
            http=PatientForAWhile,
            loop="uvloop",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.private_key,
        )
    )
