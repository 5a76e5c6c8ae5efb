"""Sockets: clients that are slow, go away, send what is no HTTP, or do not read; certificates. Real servers in this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from serving_case import INPUT, tiny_bundle

from lowbit.errors import UsageError
from lowbit.serving.run import deployment
from lowbit.serving.service import Service
from lowbit.serving.settings import Settings
from lowbit.serving.web import asgi
from lowbit.serving.web.http_server import HttpServer, PatientForAWhile, bound, http_server
from lowbit.serving.web.rest import Rest
from small_models import images

LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
INFER = "POST /v2/models/tiny/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n{}\r\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("http") / "tiny")


class Server:
    """One that runs, and connections to it."""

    def __init__(self, service: Service, web: HttpServer, port: int) -> None:
        self.service, self.connections, self.port = service, web.server_state.connections, port

    async def open(self, **more: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, **more)

    async def ask(self, *parts: bytes, pause: float = 0.0) -> bytes:
        """All that comes back until the server closes the connection."""
        reader, writer = await self.open()
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()

    async def alive(self) -> None:
        """Another client is answered at once."""
        reader, writer = await self.open()
        writer.write(LIVE)
        assert b" 200 OK" in await asyncio.wait_for(reader.readline(), 5)
        writer.close()


@asynccontextmanager
async def listening(folder: Path, **settings: Any) -> AsyncIterator[Server]:
    service = Service(Settings(port=0, grpc_port=None, **settings))
    made = deployment.load(folder)
    service.put(made)
    listener = bound("127.0.0.1", 0)
    web: HttpServer = http_server(Rest(service), service.settings)
    running = asyncio.create_task(web.serve(sockets=[listener]))
    try:
        while not web.started:
            await asyncio.sleep(0.001)
        yield Server(service, web, listener.getsockname()[1])
    finally:
        web.should_exit = True
        await running
        listener.close()
        made.close()


def with_server(folder: Path, work: Callable[[Server], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        async with listening(folder, **settings) as server:
            await work(server)

    import uvloop

    uvloop.run(run())


def body() -> bytes:
    x = images(1)
    entry = {"name": INPUT, "datatype": "FP32", "shape": [1, 3, 8, 8], "data": x.ravel().tolist()}
    return json.dumps({"inputs": [entry]}).encode()


def test_slow_headers_end_the_connection(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request and one on a connection that was used; a byte now and then does not help, and an idle connection is no fault."""
    monkeypatch.setattr(PatientForAWhile, "headers_s", 1.0)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """What comes back for a request that comes byte by byte."""
        with contextlib.suppress(ConnectionError):
            for n in range(len(LIVE)):
                writer.write(LIVE[n : n + 1])
                await writer.drain()
                await asyncio.sleep(0.05)
        try:
            return await asyncio.wait_for(reader.read(), 30)
        except ConnectionError:
            return b""

    async def work(server: Server) -> None:
        used = await server.open()
        used[1].write(LIVE)
        head = await used[0].readuntil(b"\r\n\r\n")
        assert b" 200 " in head
        assert await used[0].readexactly(len(b'{"live": true}')) == b'{"live": true}'
        await asyncio.sleep(1.5)
        silent, _ = await server.open()
        assert await asyncio.gather(drip(*used), drip(*await server.open()), asyncio.wait_for(silent.read(), 30)) == [b"", b"", b""]
        await server.alive()

    with_server(tiny, work)


def test_headers_without_end(tiny: Path) -> None:
    async def work(server: Server) -> None:
        found = await server.ask(b"GET / HTTP/1.1\r\n", *[b"x-%d: %s\r\n" % (n, b"y" * 8000) for n in range(9)])
        assert found.startswith(b"HTTP/1.1 431 ")
        assert b'{"error": "The headers have more than 65,536 bytes."}' in found
        await server.alive()

    with_server(tiny, work)


def test_a_slow_body_is_refused_and_closed(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "LINGER_S", 0.1)

    async def work(server: Server) -> None:
        found = await server.ask(INFER.format(5000, "").encode(), b"{", b"{", b"{", pause=0.1)
        assert found.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in found
        assert (server.service.inside, server.service.held) == (0, 0)
        await server.alive()

    with_server(tiny, work, body_timeout_s=0.3)


@pytest.mark.parametrize("line", ["GET /v2/health/live", "POST /nowhere", "GET /v2/models/tiny"])
def test_a_body_that_nobody_wants_ends_the_connection(tiny: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """It is read for a moment; then the answer is given, and it is over."""
    monkeypatch.setattr(asgi, "LINGER_S", 0.1)

    async def work(server: Server) -> None:
        found = await server.ask(f"{line} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n".encode(), b"x")
        assert found.startswith(b"HTTP/1.1 404 " if "nowhere" in line else b"HTTP/1.1 200 ")
        await server.alive()

    with_server(tiny, work)


def test_a_client_that_waits_for_leave_gets_it(tiny: Path) -> None:
    async def work(server: Server) -> None:
        reader, writer = await server.open()
        writer.write(INFER.format(len(body()), "expect: 100-continue\r\nconnection: close\r\n").encode())
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body())
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200 ")
        writer.close()

    with_server(tiny, work)


def test_clients_that_go_mid_body(tiny: Path) -> None:
    async def work(server: Server) -> None:
        for cut in (0, 1, 500):
            reader, writer = await server.open()
            writer.write(INFER.format(len(body()), "").encode() + body()[:cut])
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            del reader
        for _ in range(100):
            if not server.service.held:
                break
            await asyncio.sleep(0.02)
        assert (server.service.inside, server.service.held) == (0, 0)
        found = await server.ask(INFER.format(len(body()), "connection: close\r\n").encode(), body())
        assert found.startswith(b"HTTP/1.1 200 ")

    with_server(tiny, work)


def test_a_body_over_the_limit_hears_why(tiny: Path) -> None:
    """The client sends all of it before it listens; it is not cut off in the middle."""

    async def work(server: Server) -> None:
        found = await server.ask(INFER.format(3_000_000, "connection: close\r\n").encode(), b"x" * 3_000_000)
        assert found.startswith(b"HTTP/1.1 413 ")
        assert b"The body has 3,000,000 bytes; 1,000,000 are allowed." in found
        waiting = await server.ask(INFER.format(3_000_000, "expect: 100-continue\r\n").encode())
        assert waiting.startswith(b"HTTP/1.1 413 ")  # and no 100 before it
        chunks = [b"80000\r\n" + b"x" * 0x80000 + b"\r\n"] * 3
        head = b"POST /v2/models/tiny/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        assert (await server.ask(head, *chunks, b"0\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
        await server.alive()

    with_server(tiny, work, max_body_bytes=1_000_000)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v2/models/tiny/infer HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST /v2/models/tiny/infer HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcde",
        b"POST /v2/models/tiny/infer HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2/models/tiny/infer HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_400_and_harms_nobody(tiny: Path, garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def work(server: Server) -> None:
        found = await server.ask(garbage + b"connection: close\r\n\r\n")
        assert found.startswith(b"HTTP/1.1 400 "), found
        await server.alive()

    with_server(tiny, work)
    assert "Traceback" not in caplog.text


def test_a_client_that_does_not_read_is_dropped(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for more than the buffers of sockets hold and takes none of it."""
    monkeypatch.setattr(PatientForAWhile, "reads_s", 0.3)

    async def work(server: Server) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", server.port))
            sending = asyncio.create_task(loop.sock_sendall(client, b"GET /v2/models/tiny HTTP/1.1\r\nhost: x\r\n\r\n" * 40_000))
            await asyncio.sleep(0.1)
            assert len(server.connections) == 1
            async with asyncio.timeout(20):
                while server.connections:
                    await asyncio.sleep(0.02)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        await server.alive()

    with_server(tiny, work)


def test_pipelined_requests_are_answered_in_order(tiny: Path) -> None:
    async def work(server: Server) -> None:
        first = INFER.format(len(body()), "x-request-id: one\r\n").encode() + body()
        last = LIVE.replace(b"host: x\r\n", b"host: x\r\nx-request-id: two\r\nconnection: close\r\n")
        found = await server.ask(first + last)
        assert found.index(b"x-request-id: one") < found.index(b"x-request-id: two")
        assert found.count(b"HTTP/1.1 200 OK") == 2

    with_server(tiny, work)


def test_certificates_are_checked_before_anything_is_served(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    for files in (
        {"certificate": broken},
        {"certificate": tmp_path / "none.pem"},
        {"certificate": broken, "private_key": tmp_path / "none.pem"},
    ):
        with pytest.raises(UsageError) as caught:
            http_server(Rest(Service(Settings())), Settings(**files))
        assert "--tls-certificate" in (caught.value.hint or "")


def test_a_busy_port_is_said_so() -> None:
    with bound("127.0.0.1", 0) as taken, pytest.raises(UsageError, match=r"Cannot listen on 127\.0\.0\.1"):
        bound("127.0.0.1", taken.getsockname()[1])
