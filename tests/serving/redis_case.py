"""A real Redis on a free loopback port, that can be ended and started again at the same address."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from conftest import missing

STARTS_S = 10.0


class RedisServer:
    """A process of its own, without persistence.

    Attributes:
        port: On loopback.
    """

    def __init__(self) -> None:
        """Not started yet."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._folder = tempfile.TemporaryDirectory()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For clients."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts, and waits until it answers."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", self._folder.name]
        with (Path(self._folder.name) / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(["redis-server", *options], stdout=log, stderr=log)
        until = time.monotonic() + STARTS_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2) as connection:
                connection.sendall(b"PING\r\n")
                if connection.recv(64).startswith(b"+PONG"):
                    return
            time.sleep(0.01)
        raise AssertionError(f"redis-server did not start: {(Path(self._folder.name) / 'log.txt').read_text()[-1000:]}")

    def stop(self) -> None:
        """Ends it; what it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stall(self, seconds: float) -> None:
        """Makes it answer nothing for a while."""
        with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.sendall(b"CLIENT PAUSE %d ALL\r\n" % int(1000 * seconds))
            connection.recv(64)


@contextlib.contextmanager
def redis_server() -> Iterator[RedisServer]:
    """A started one; skips the test where Redis is not installed."""
    if shutil.which("redis-server") is None:
        missing("redis-server")
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()
        server._folder.cleanup()
