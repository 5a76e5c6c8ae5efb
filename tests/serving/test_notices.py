"""Clouds that say a machine is to go, as fake metadata services on loopback, and a server that then drains."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from serving_case import running, tiny_bundle

from lowbit.serving.notices import Notice, watch

Answer = tuple[int, str] | tuple[int, str, dict[str, str]]


class Metadata:
    """A metadata service: what it answers follows from method, path and headers."""

    def __init__(self, answer: Callable[[Metadata, str, str, dict[str, str]], Answer]) -> None:
        self.asked: list[str] = []
        self.going = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                outer.asked.append(f"{self.command} {self.path}")
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, text, *more = answer(outer, self.command, self.path, headers)
                self.send_response(status)
                for name, value in (more[0] if more else {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):
                    self.wfile.write(text.encode())

            do_GET = do_PUT = _any

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.going.set()
        self._server.shutdown()
        self._server.server_close()


def aws(service: Metadata, method: str, path: str, headers: dict[str, str]) -> Answer:
    if (method, path) == ("PUT", "/latest/api/token") and headers.get("x-aws-ec2-metadata-token-ttl-seconds"):
        return 200, "a-token"
    if path != "/latest/meta-data/spot/instance-action":
        return 404, ""
    if headers.get("x-aws-ec2-metadata-token") != "a-token":
        return 401, ""
    return (200, '{"action": "terminate", "time": "2026-01-01T00:02:00Z"}') if service.going.is_set() else (404, "")


def gcp(service: Metadata, method: str, path: str, headers: dict[str, str]) -> Answer:
    if headers.get("metadata-flavor") != "Google" or method != "GET":
        return 403, ""
    if not path.startswith("/computeMetadata/v1/instance/preempted"):
        return 404, ""
    if "wait_for_change=true" in path:
        assert "last_etag=7" in path
        service.going.wait(0.5)
    return 200, "TRUE" if service.going.is_set() else "FALSE", {"ETag": "7"}


def azure(service: Metadata, method: str, path: str, headers: dict[str, str]) -> Answer:
    if headers.get("metadata") != "true" or method != "GET":
        return 400, ""
    if path == "/metadata/instance/compute/name?api-version=2021-02-01&format=text":
        return 200, "set_7"
    if path != "/metadata/scheduledevents?api-version=2020-07-01":
        return 404, ""
    events = [
        {"EventType": "Reboot", "Resources": ["set_7"]},
        {"EventType": "Preempt", "Resources": ["set_1", 3]},
        {"EventType": "Preempt"},
    ]
    events += [{"EventType": "Preempt", "Resources": ["set_3", "SET_7"]}] if service.going.is_set() else []
    return 200, json.dumps({"DocumentIncarnation": 1, "Events": events})


CLOUDS = {"aws": aws, "gcp": gcp, "azure": azure}


@pytest.fixture
def cloud(request: pytest.FixtureRequest) -> Iterator[Metadata]:
    made = Metadata(CLOUDS[request.param])
    yield made
    made.close()


def noticed(service: Metadata, provider: str, *, after: int = 3, seconds: float = 60) -> list[Notice]:
    """What is told; the notice comes once the service was asked a few times."""
    told: list[Notice] = []

    async def work() -> None:
        task = asyncio.create_task(watch(provider, told.append, service.url, poll_s=0.02))
        while len(service.asked) < after and not task.done():
            await asyncio.sleep(0.01)
        assert told == []
        service.going.set()
        await task

    async def in_time() -> None:
        await asyncio.wait_for(work(), seconds)

    asyncio.run(in_time())
    return told


@pytest.mark.parametrize(("cloud", "provider"), [(name, name) for name in CLOUDS], indirect=["cloud"])
def test_each_cloud_is_asked_its_own_way(cloud: Metadata, provider: str, caplog: pytest.LogCaptureFixture) -> None:
    what = {"aws": "terminate", "gcp": "preempted", "azure": "Preempt"}[provider]
    assert noticed(cloud, provider) == [Notice(provider, what)]
    assert [record.getMessage() for record in caplog.records] == ["interruption notice"]  # no notice yet is no failure


@pytest.mark.parametrize(("cloud", "provider"), [(name, name) for name in CLOUDS], indirect=["cloud"])
def test_auto_finds_out_which_cloud_it_is(cloud: Metadata, provider: str) -> None:
    assert [notice.provider for notice in noticed(cloud, "auto", after=6)] == [provider]


def test_a_service_that_answers_nonsense_is_asked_again() -> None:
    answers: list[Answer] = [
        (200, "no json"),
        (500, ""),
        (200, "[]"),
        (200, '{"Events": 3}'),
        (200, '{"Events": [{"EventType": "Preempt", "Resources": ["this"]}]}'),
        (500, ""),
        (200, '{"Events": [{"EventType": "Preempt", "Resources": ["this"]}]}'),
        (200, "this"),
    ]
    service = Metadata(lambda one, *_: answers[min(len(one.asked), len(answers)) - 1])
    told: list[Notice] = []
    try:
        asyncio.run(asyncio.wait_for(watch("azure", told.append, service.url, poll_s=0.01), 60))
    finally:
        service.close()
    assert len(service.asked) == len(answers)
    assert told == [Notice("azure", "Preempt")]


@pytest.mark.parametrize("url", ["http://127.0.0.1:port", "http://[::1", "http://127.0.0.1:99999", "nonsense", "http://\ud800"])
def test_an_odd_address_does_not_end_the_watch(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        task = asyncio.create_task(watch("aws", lambda _: None, url, poll_s=0.001))
        async with asyncio.timeout(30):
            while not caplog.records:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        assert not task.done()
        task.cancel()

    asyncio.run(work())
    assert {record.getMessage() for record in caplog.records} == {"the metadata service did not answer"}


def test_a_service_that_is_not_there_harms_nobody() -> None:
    told: list[Notice] = []

    async def work() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(watch("auto", told.append, "http://127.0.0.1:9", poll_s=0.01), 0.2)

    asyncio.run(work())
    assert told == []


@pytest.mark.parametrize("cloud", ["gcp"], indirect=True)
def test_a_notice_drains_a_server(cloud: Metadata, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    with running(bundle, options=("--no-grpc", "--spot", "gcp", "--metadata-url", cloud.url)) as server:
        while len(cloud.asked) < 2:
            assert server.process.poll() is None
            time.sleep(0.01)
        cloud.going.set()
        assert server.process.wait(60) == 0
        events = [json.loads(line) for line in server.logged().splitlines()]
        assert [event["event"] for event in events][:2] == ["interruption notice", "draining"]
