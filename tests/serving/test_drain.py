"""The end of a server while its models still run, and of a version that was replaced; what fails beside the requests is not silent."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_case import INPUT, tiny_bundle

from lowbit.errors import UsageError
from lowbit.serving.answer.answered import Caller
from lowbit.serving.answer.answering import Answers
from lowbit.serving.cache.cache import RESULTS
from lowbit.serving.cache.remote import COUNTED
from lowbit.serving.cache.settings import CacheSettings
from lowbit.serving.load.http_client import Response, fetch
from lowbit.serving.load.load_targets import body
from lowbit.serving.protocol.refusals import Malformed, Unavailable
from lowbit.serving.protocol.requests import InferRequest
from lowbit.serving.reloading import Reloader, Source
from lowbit.serving.run import deployment
from lowbit.serving.run.deployment import CHOSEN, Deployment
from lowbit.serving.run.sessions import Sessions
from lowbit.serving.server import drain
from lowbit.serving.service import Service
from lowbit.serving.settings import Settings
from lowbit.serving.watch import logs
from lowbit.serving.watch.metrics import NOW, TOTALS, Metrics
from lowbit.serving.watch.observing import Observer
from lowbit.serving.web.http_server import bound, http_server
from lowbit.serving.web.rest import Rest
from lowbit.types import Array, Feeds
from small_models import images

REQUEST = InferRequest({INPUT: images(1)})


class Gate:
    """Runs of every model wait at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.begun, self.ended, self.closed = threading.Event(), 0, 0, [0]
        run, close, outer = Sessions.run, Sessions.close, self
        self.open.set()

        def gated(sessions: Sessions, feeds: Feeds) -> dict[str, Array]:
            outer.begun += 1
            outer.open.wait(60)
            found = run(sessions, feeds)
            outer.ended += 1
            return found

        def closes(sessions: Sessions) -> None:
            outer.closed.append(outer.ended)
            close(sessions)

        monkeypatch.setattr(Sessions, "run", gated)
        monkeypatch.setattr(Sessions, "close", closes)

    async def reached(self) -> None:
        before = self.begun
        while self.begun == before:
            await asyncio.sleep(0.001)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.open.set()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "tiny")


def with_service(work: Callable[[Service], Awaitable[None]], *folders: Path, observers: tuple[Observer, ...] = (), **settings: Any) -> None:
    async def main() -> None:
        service = Service(Settings(**settings), observers)
        try:
            for folder in folders:
                service.put(deployment.load(folder))
            await asyncio.wait_for(work(service), 60)
        finally:
            service.close()

    asyncio.run(main())


def ask(service: Service) -> asyncio.Task[Any]:
    return asyncio.create_task(service.infer("tiny", None, REQUEST, Caller()))


def test_a_run_that_does_not_end_in_time_gets_a_503_and_keeps_its_model(gate: Gate, tiny: Path) -> None:
    """Over a real connection; the server is gone before the run is."""

    async def work(service: Service) -> None:
        listening = bound("127.0.0.1", 0)
        web = http_server(Rest(service), service.settings)
        running = asyncio.create_task(web.serve(sockets=[listening]))
        while not web.started:
            await asyncio.sleep(0.001)
        gate.open.clear()
        whole, length = body(REQUEST.inputs)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v2/models/tiny/infer"
        headers = {"Inference-Header-Content-Length": f"{length}"}
        asking: asyncio.Task[Response] = asyncio.create_task(fetch(url, method="POST", headers=headers, body=whole, timeout_s=50))
        await gate.reached()
        closed = len(gate.closed)
        await drain(service, web, listening, None)
        web.should_exit = True
        answer = await asking
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert b"stopping" in answer.body
        await running
        ended = gate.ended
        assert len(gate.closed) == closed + 1  # of the variant that nobody asked
        gate.open.set()
        while len(gate.closed) < closed + 2:
            await asyncio.sleep(0.001)
        assert gate.closed[-1] == ended + 1
        listening.close()

    with_service(work, tiny, drain_s=0.2, port=0, grpc_port=None)


def test_draining_waits_for_requests_of_the_version_before(gate: Gate, tiny: Path) -> None:
    async def work(service: Service) -> None:
        later = deployment.load(tiny_bundle(tiny, note="another version"))
        gate.open.clear()
        asked = ask(service)
        await gate.reached()
        assert service.put(later) is not None
        idle = asyncio.create_task(service.idle())
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert (idle.done(), service.inside) == (False, 1)
        gate.open.set()
        await idle
        assert (await asked).version != later.version

    with_service(work, tiny)


def test_what_the_version_before_cannot_end_is_refused_with_the_rest(gate: Gate, tiny: Path) -> None:
    async def work(service: Service) -> None:
        later = deployment.load(tiny_bundle(tiny, note="another version"))
        gate.open.clear()
        asked = ask(service)
        await gate.reached()
        service.put(later)
        service.close()
        with pytest.raises(Unavailable, match="stopping"):
            await asyncio.wait_for(asked, 10)

    with_service(work, tiny)


def reloader(service: Service, load: Callable[[Source], Deployment], *sources: Source) -> tuple[Reloader, Metrics]:
    metrics = Metrics()
    for each in service.models.values():
        metrics.put(each)
    return Reloader(service, sources, load, metrics, 5.0), metrics


def test_one_bundle_that_fails_oddly_leaves_the_others_their_turn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = (tiny_bundle(tmp_path / name) for name in ("one", "two"))

    def load(source: Source) -> Deployment:
        if source.model == "one":
            raise ZeroDivisionError("of nobody's making")
        return deployment.load(source.folder)

    async def work(service: Service) -> None:
        made, metrics = reloader(service, load, Source(one), Source(two))
        before = service.models["two"].version
        for folder in (one, two):
            tiny_bundle(folder, note="another version")
        first, second = await made.reload()
        assert (first.result, first.why) == ("failed", "ZeroDivisionError")
        assert second.result == "swapped"
        assert second.version == service.models["two"].version != before
        assert b'lowbit_reloads_total{model="one",result="failed"} 1.0' in metrics.text()
        assert "of nobody's making" in caplog.text

    with_service(work, one, two)


def test_a_version_that_is_served_stays_whatever_fails_behind_the_exchange(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no metrics")

    async def work(service: Service) -> None:
        made, metrics = reloader(service, lambda source: deployment.load(source.folder), Source(tiny))
        monkeypatch.setattr(metrics, "put", broken)
        tiny_bundle(tiny, note="another version")
        (found,) = await made.reload()
        assert (found.result, found.version) == ("failed", service.models["tiny"].version)
        assert (await ask(service)).version == found.version

    with_service(work, tiny)


def test_loading_again_does_not_stop_the_loop(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow part of preparing is not on the event loop's thread; the exchange is."""
    threads: list[str] = []

    async def work(service: Service) -> None:
        here = threading.current_thread().name
        studied, adopt = service.answers.studied, service.answers.adopt
        monkeypatch.setattr(service.answers, "studied", lambda each: (threads.append(threading.current_thread().name), studied(each))[1])
        monkeypatch.setattr(service.answers, "adopt", lambda each: (threads.append(threading.current_thread().name), adopt(each)))
        made, _ = reloader(service, lambda source: deployment.load(source.folder), Source(tiny))
        tiny_bundle(tiny, note="another version")
        (found,) = await made.reload()
        assert found.result == "swapped"
        assert threads[0] != here
        assert threads[1:] == [here]

    with_service(work, tiny)


def test_a_policy_that_does_not_fit_keeps_the_version_before(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_: Any) -> None:
        raise UsageError("The policy names something else.")

    async def work(service: Service) -> None:
        made, _ = reloader(service, lambda source: deployment.load(source.folder), Source(tiny))
        before = service.models["tiny"]
        monkeypatch.setattr(service.answers, "adopt", refuses)
        tiny_bundle(tiny, note="another version")
        (found,) = await made.reload()
        assert (found.result, found.version) == ("failed", before.version)
        assert service.models["tiny"] is before
        await ask(service)

    with_service(work, tiny)


class Broken(Observer):
    """Fails whatever it is told."""

    def answered(self, *_: Any) -> None:
        raise ZeroDivisionError("while watching")

    refused = answered


def test_an_observer_that_fails_costs_neither_an_answer_nor_the_other_observers(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()

    async def work(service: Service) -> None:
        assert (await ask(service)).outputs["logits"].shape == (1, 10)
        with pytest.raises(Malformed):
            await service.infer("tiny", None, InferRequest({}), Caller())
        text = metrics.text().decode()
        assert f'variant="{service.models["tiny"].variants[CHOSEN].id}"' in text
        assert 'outcome="malformed"' in text
        assert [record.getMessage() for record in caplog.records] == ["an observer failed"] * 2

    with_service(work, tiny, observers=(Broken(), metrics))


def test_a_task_beside_the_requests_does_not_fail_silently(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise ZeroDivisionError("nobody awaits this")

    async def main() -> None:
        await logs.logged("the watcher ended", fails())

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert "the watcher ended" in caplog.text
    assert "nobody awaits this" in caplog.text


def test_what_only_grows_is_a_counter_and_every_fact_says_what_it_is(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {**dict.fromkeys((*TOTALS, *NOW), 2.0), "cache_exact": 1.0, "cache_another_one": 3.0}

    async def work(service: Service) -> None:
        metrics = Metrics()
        metrics.watch(service)
        monkeypatch.setattr(service.answers, "facts", lambda: facts)
        lines = metrics.text().decode().splitlines()
        for name, words in TOTALS.items():
            assert {f"# HELP lowbit_{name}_total {words}", f"# TYPE lowbit_{name}_total counter", f"lowbit_{name}_total 2.0"} <= set(lines)
        for name, words in NOW.items():
            assert {f"# HELP lowbit_{name} {words}", f"# TYPE lowbit_{name} gauge", f"lowbit_{name} 2.0"} <= set(lines)
        assert "lowbit_cache_another_one 3.0" in lines
        assert not any("cache_exact" in line for line in lines)  # lookups are counted by result

    with_service(work, tiny)


def test_every_fact_is_known(tmp_path: Path) -> None:
    """What a server with everything on says of itself; Redis's are added by name."""

    async def main() -> None:
        made = Answers.of(Settings(state=tmp_path / "state", cache=CacheSettings(1 << 20, similar=True)))
        known = {f"cache_{name}" for name in RESULTS} | {*TOTALS, *NOW}
        assert set(made.facts()) <= known
        assert {f"cache_{name}" for name in (*COUNTED, "redis_up")} <= known
        await made.close()

    asyncio.run(main())
