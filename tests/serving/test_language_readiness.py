"""An engine that cannot be opened any more: who says so, who stands in, and that it is ready again once it opens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from asgi_case import call, served
from decoder_case import need
from language_case import BASELINE, CHOSEN, BigramEngine, Bigrams, install, language_bundle
from prometheus_client import CollectorRegistry, generate_latest
from serving_case import tiny_bundle

from lowbit.serving.language.deploying import desk_of
from lowbit.serving.language.openai_api import OpenAi
from lowbit.serving.language.spoken_metrics import LanguageMetrics
from lowbit.serving.run.deployment import CHOSEN as CHOSEN_ROLE
from lowbit.serving.run.deployment import FULL, Deployment
from lowbit.serving.service import Service
from lowbit.serving.web.rest import Rest


class Fading(BigramEngine):
    """Opens each artifact once, and then only those that are not `gone`."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: set[str] = set()

    def batch(self, artifact: Path, *args: Any, **options: Any) -> Bigrams:
        if artifact.parent.name in self.gone:
            raise OSError("the file cannot be read")
        return super().batch(artifact, *args, **options)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Fading:
    need("tokenizers", "jinja2")
    monkeypatch.setattr("lowbit.serving.language.desk.AGAIN_S", 0.02)
    made = Fading()
    install(made)
    return made


class Case:
    """A server of one bundle or more, and what it says."""

    def __init__(self, service: Service, engine: Fading) -> None:
        self.service, self.engine, self.app = service, engine, OpenAi(service, Rest(service))

    async def status(self, path: str) -> int:
        return (await call(self.app, "GET", path)).status

    async def complete(self, **fields: Any) -> Any:
        import json

        return await call(self.app, "POST", "/v1/completions", json.dumps({"prompt": "The", "max_tokens": 2, **fields}).encode())

    def found(self, name: str = "tiny") -> Deployment:
        return self.service.models[name]

    async def breaks(self, role: str, folder: str, name: str = "tiny") -> None:
        """The variant's engine fails in a step, and cannot be opened again."""
        self.engine.gone.add(folder)
        desk = desk_of(self.found(name).variants[role])
        batch: Any = desk._batch
        batch.fails = ValueError("it broke")
        await self.complete(model=name, variant=role, max_tokens=20)
        async with asyncio.timeout(5):
            while desk.alive:
                await asyncio.sleep(0.005)

    async def mends(self, role: str, folder: str) -> None:
        self.engine.gone.discard(folder)
        async with asyncio.timeout(5):
            while not desk_of(self.found().variants[role]).alive:
                await asyncio.sleep(0.005)


def at(engine: Fading, work: Callable[[Case], Awaitable[None]], *folders: Path, **settings: Any) -> None:
    async def run() -> None:
        with served(*folders, **settings) as service:
            await asyncio.wait_for(work(Case(service, engine)), 30)

    asyncio.run(run())


def test_without_any_engine_it_is_not_ready_until_one_opens(engine: Fading, tmp_path: Path) -> None:
    async def work(case: Case) -> None:
        assert await case.status("/v2/health/ready") == 200
        await case.breaks(FULL, "baseline")
        assert await case.status("/v2/health/ready") == 200, "what ships answers"
        await case.breaks(CHOSEN_ROLE, "model")
        assert await case.status("/v2/health/ready") == 503
        assert await case.status("/v2/models/tiny/ready") == 503
        assert await case.status("/v2/health/live") == 200
        assert (await case.complete()).status == 503
        await case.mends(FULL, "baseline")
        assert await case.status("/v2/health/ready") == 200
        await case.breaks(FULL, "baseline")
        await case.mends(CHOSEN_ROLE, "model")
        assert await case.status("/v2/models/tiny/ready") == 200

    at(engine, work, language_bundle(tmp_path / "tiny"))


def test_full_precision_stands_in(engine: Fading, tmp_path: Path) -> None:
    async def work(case: Case) -> None:
        before = await case.complete()
        assert (before.headers["x-lowbit-variant"], before.headers["x-lowbit-route"]) == (CHOSEN, "default")
        await case.breaks(CHOSEN_ROLE, "model")
        found = await case.complete()
        assert (found.status, found.headers["x-lowbit-variant"], found.headers["x-lowbit-route"]) == (200, BASELINE, "fallback")
        assert (await case.complete(variant="chosen")).status == 503, "who asks for just that variant is told that it is gone"
        await case.mends(CHOSEN_ROLE, "model")
        assert (await case.complete()).headers["x-lowbit-variant"] == CHOSEN

    at(engine, work, language_bundle(tmp_path / "tiny"))


def test_another_model_keeps_the_server_ready(engine: Fading, tmp_path: Path) -> None:
    async def work(case: Case) -> None:
        await case.breaks(CHOSEN_ROLE, "model", "talks")
        await case.breaks(FULL, "baseline", "talks")
        assert await case.status("/v2/health/ready") == 200
        assert await case.status("/v2/models/talks/ready") == 503
        assert await case.status("/v2/models/sees/ready") == 200

    at(engine, work, language_bundle(tmp_path / "talks"), tiny_bundle(tmp_path / "sees"))


def test_grpc_says_the_same(engine: Fading, tmp_path: Path) -> None:
    need("grpc")
    from lowbit.serving.rpc.grpc_server import Calls

    async def work(case: Case) -> None:
        server: Any = Calls(case.service)
        messages = server._messages

        async def told() -> tuple[bool, bool, int]:
            server_ready = await server.ServerReady(None, None, None)
            model_ready = await server.ModelReady(messages["ModelReadyRequest"](name="tiny"), None, None)
            check = await server.Check(messages["HealthCheckRequest"](service="tiny"), None, None)
            return server_ready.ready, model_ready.ready, check.status

        serving = await told()
        assert serving[:2] == (True, True)
        await case.breaks(CHOSEN_ROLE, "model")
        assert await told() == serving
        await case.breaks(FULL, "baseline")
        found = await told()
        assert found[:2] == (False, False)
        assert found[2] != serving[2]

    at(engine, work, language_bundle(tmp_path / "tiny"))


def test_metrics_name_the_engine(engine: Fading, tmp_path: Path) -> None:
    async def work(case: Case) -> None:
        registry = CollectorRegistry()
        metrics = LanguageMetrics(registry)
        metrics.put(case.found())

        def up(variant: str) -> float | None:
            labels = {"model": "tiny", "version": case.found().version, "variant": variant}
            assert generate_latest(registry)
            return registry.get_sample_value("lowbit_engine_up", labels)

        assert (up(CHOSEN), up(BASELINE)) == (1, 1)
        await case.breaks(CHOSEN_ROLE, "model")
        assert (up(CHOSEN), up(BASELINE)) == (0, 1)

    at(engine, work, language_bundle(tmp_path / "tiny"))
