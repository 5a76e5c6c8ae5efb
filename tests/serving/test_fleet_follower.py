"""What a follower makes of a registry, step by step, in this process."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fleet_case import BY, Case, opened
from serving_case import INPUT, INT8, tiny_bundle

from lowbit.errors import DataError, ModelError, UsageError
from lowbit.registry.registry import Registry
from lowbit.rollout.evidence import Arm, Evidence
from lowbit.serving.answer.answered import Caller
from lowbit.serving.fleet import follower as room
from lowbit.serving.fleet.counting import StepCount
from lowbit.serving.fleet.followed import Followed
from lowbit.serving.fleet.follower import Follower, following
from lowbit.serving.fleet.reporting import Reports
from lowbit.serving.protocol.requests import InferRequest
from lowbit.serving.reloading import Source
from lowbit.serving.run import deployment
from lowbit.serving.run.deployment import Deployment
from lowbit.serving.service import Service
from lowbit.serving.settings import Settings
from lowbit.serving.watch.metrics import Metrics
from small_models import images


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    yield from opened(tmp_path / "registry", tiny_bundle(tmp_path / "first" / "tiny", note="first"))


@pytest.fixture
def other(case: Case, tmp_path: Path) -> Any:
    return case.push(tiny_bundle(tmp_path / "other" / "tiny", note="other"))


class Loads:
    """Loads as a server does; counts, and can be made to wait."""

    def __init__(self) -> None:
        self.made: list[Deployment] = []
        self.open = threading.Event()
        self.open.set()
        self.error: Exception | None = None

    def __call__(self, source: Source) -> Deployment:
        self.open.wait(20)
        if self.error is not None:
            raise self.error
        made = deployment.load(source.folder, name=source.name, version=source.version, digest=source.digest, roles=("chosen",))
        self.made.append(made)
        return made


@contextlib.asynccontextmanager
async def followed(case: Case, *refs: Followed, loads: Loads | None = None) -> AsyncIterator[tuple[Service, Follower]]:
    service = Service(Settings())
    try:
        async with following(case.folder, refs or (Followed("tiny"),), service, loads or Loads(), Metrics()) as follower:
            yield service, follower
    finally:
        service.close()


async def until(holds: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.01)


def test_each_reference_is_followed_as_it_says(case: Case, other: Any) -> None:
    case.registry.move("tiny", "nightly", other.digest, expect=None, by=BY, why="a test")
    refs = (Followed("tiny", "web"), Followed("tiny@2", "pinned"), Followed("tiny@nightly", "nightly"))

    async def work() -> None:
        async with followed(case, *refs) as (service, _):

            def answering() -> dict[str, str]:
                return {name: each.version for name, each in service.models.items()}

            assert answering() == {"web": "2", "pinned": "2", "nightly": "3"}
            case.registry.promote(other, by=BY, why="a test")
            await until(lambda: answering() == {"web": "3", "pinned": "2", "nightly": "3"})
            case.registry.move("tiny", "nightly", case.registry.resolve("tiny@2").digest, expect=other.digest, by=BY, why="back")
            await until(lambda: answering() == {"web": "3", "pinned": "2", "nightly": "2"})
            assert service.versions("web") == ("3", "2")  # the fallback is warm
            assert service.versions("nightly") == ("2",)

    asyncio.run(work())


def test_one_model_under_two_names_reports_twice(case: Case, other: Any) -> None:
    rollout = case.start(other, step_s=60)

    async def work() -> None:
        async with followed(case, Followed("tiny", "one"), Followed("tiny", "two")) as (service, follower):
            await until(lambda: all(len(service.versions(name)) == 2 for name in ("one", "two")))
            for name in ("one", "two"):
                for number in range(10):
                    caller = Caller("r", {"x-lowbit-session": f"{number}"})
                    await service.infer(name, None, InferRequest({INPUT: images(1)}), caller)
            await follower.reports.once([])

    asyncio.run(work())
    found = case.rollouts.evidence(rollout.id, 0)
    assert found.baseline.requests + found.canary.requests == 20
    assert found.canary.requests % 2 == 0 < found.canary.requests  # the same sessions on the same side


def test_what_is_wanted_no_more_once_it_is_loaded_is_freed(case: Case, other: Any) -> None:
    loads = Loads()

    async def work() -> None:
        async with followed(case, loads=loads) as (service, follower):
            loads.open.clear()
            rollout = case.start(other)
            await until(lambda: follower.models["tiny"].loading)
            case.rollouts.abort(rollout.id, by=BY, why="at once")
            await until(lambda: follower.models["tiny"].want.rollout is None)
            loads.open.set()
            await until(lambda: len(loads.made) == 2 and loads.made[1].variants["chosen"].batcher._closed)
            assert service.versions("tiny") == ("2",)

    asyncio.run(work())


def test_a_slow_load_keeps_nobody_from_going_back(case: Case, other: Any, tmp_path: Path) -> None:
    third, loads = case.push(tiny_bundle(tmp_path / "third" / "tiny", note="third")), Loads()
    case.registry.promote(other, by=BY, why="second")

    async def work() -> None:
        async with followed(case, loads=loads) as (service, follower):
            await until(lambda: service.versions("tiny") == ("3", "2"))
            loads.open.clear()
            case.start(third)
            await until(lambda: follower.models["tiny"].loading)
            case.registry.rollback("tiny", by=BY, why="now")
            await until(lambda: service.models["tiny"].version == "2")
            assert len(loads.made) == 2  # the third is still being loaded
            loads.open.set()

    asyncio.run(work())


def test_what_could_not_be_loaded_is_tried_again(case: Case, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "AGAIN_S", 0.5)
    loads = Loads()

    async def work() -> None:
        async with followed(case, loads=loads) as (service, follower):
            loads.error = ModelError("The disk is away.")
            case.registry.promote(other, by=BY, why="a test")
            await until(lambda: follower.models["tiny"].failed)
            assert service.models["tiny"].version == "2"
            loads.error = None
            await until(lambda: service.models["tiny"].version == "3")
            assert not follower.models["tiny"].failed

    asyncio.run(work())


def test_a_candidate_out_of_memory_says_so_and_is_not_tried_again(case: Case, other: Any) -> None:
    loads = Loads()

    async def work() -> str:
        async with followed(case, loads=loads):
            loads.error = MemoryError()
            rollout = case.start(other)
            await until(lambda: not case.rollouts.get(rollout.id).open)
            return case.rollouts.get(rollout.id).why

    assert "out of memory" in asyncio.run(work())


def test_a_registry_that_cannot_be_read_changes_nothing(case: Case, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with followed(case) as (service, follower):
            with monkeypatch.context() as patch:
                patch.setattr(Registry, "changes", lambda _: (_ for _ in ()).throw(sqlite3.OperationalError("disk I/O error")))
                await until(lambda: follower.away)
                case.registry.promote(other, by=BY, why="nobody sees it yet")
                await asyncio.sleep(0.5)
                assert service.models["tiny"].version == "2"
                await service.infer("tiny", None, InferRequest({INPUT: images(1)}), Caller())
            await until(lambda: service.models["tiny"].version == "3")
            assert not follower.away

    asyncio.run(work())


def test_labels_count_for_their_side_while_a_rollout_runs(case: Case, other: Any) -> None:
    async def work() -> Evidence:
        async with followed(case) as (service, follower):
            follower.labelled("tiny", "2", INT8, True)  # nothing runs
            case.start(other, step_s=60)
            await until(lambda: len(service.versions("tiny")) == 2)
            for version, right in (("2", True), ("2", False), ("3", True), ("9", True)):
                follower.labelled("tiny", version, INT8, right)
            follower.labelled("elsewhere", "2", INT8, True)
            counts = follower.models["tiny"].counts
            assert counts is not None
            return counts.taken()

    evidence = asyncio.run(work())
    assert (evidence.baseline, evidence.canary.labelled, evidence.canary.right) == (
        Arm(seconds=evidence.baseline.seconds, confidence=evidence.baseline.confidence, labelled=2, right=1),
        1,
        1,
    )


def test_rolling_back_takes_back_the_version_that_is_meant(case: Case, other: Any, tmp_path: Path) -> None:
    async def work() -> None:
        async with followed(case, Followed("tiny"), Followed("tiny@2", "pinned")) as (_, follower):

            def back(version: str, name: str = "tiny") -> Any:
                return follower.roll_back(name, version, "ada", "it drifts")

            with pytest.raises(UsageError):
                await back("2")  # there was nothing before
            rollout = case.start(other)
            with pytest.raises(UsageError):
                await back("2")
            assert case.rollouts.get(rollout.id).open  # what failed has changed nothing
            assert await back("3") == {"rollout": rollout.id, "state": "aborted"}
            assert "nothing was changed" in (await back("3"))["said"]
            case.registry.promote(other, by=BY, why="a test")
            later = case.start(case.push(tiny_bundle(tmp_path / "third" / "tiny", note="third")))
            done = await back("3")
            assert (done["after"], done["rollout"], done["state"]) == (case.registry.resolve("tiny@2").digest, later.id, "aborted")
            assert "nothing was changed" in (await back("3"))["said"]  # another server was quicker: the one before stays
            with pytest.raises(UsageError, match="gone back to already"):
                await back("2")
            with pytest.raises(UsageError, match="does not come from a registry"):
                await back("2", "elsewhere")
            with pytest.raises(UsageError, match="is served as tiny@2"):
                await back("2", "pinned")

    asyncio.run(work())
    assert case.registry.resolve("tiny").number == 2


def test_a_step_that_ends_is_reported_to_the_last(case: Case, other: Any) -> None:
    rollout = case.start(other, step_s=60)

    async def work() -> None:
        async with followed(case) as (service, follower):
            await until(lambda: len(service.versions("tiny")) == 2)
            trial = service._trials["tiny"]
            case.rollouts.promote(rollout.id, by=BY, why="at once")
            await until(lambda: service.models["tiny"].version == "3")
            trial.counts.canary_failed("came late")
            await follower.reports.once([])

    asyncio.run(work())
    assert case.rollouts.evidence(rollout.id, 0).canary.errors == 1


def test_one_rollout_that_cannot_be_looked_at_keeps_no_other_from_its_turn(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def look(id: str, now: float | None = None) -> None:  # noqa: ARG001
        looked.append(id)
        if id == "sick":
            raise DataError("Its evidence is damaged.")

    plan = SimpleNamespace(plan=SimpleNamespace(look_s=5.0))
    monkeypatch.setattr(case.rollouts, "look", look)
    monkeypatch.setattr(case.rollouts, "get", lambda _: plan)

    async def work() -> int:
        reports = Reports(case.rollouts, lambda: None)
        reports.beats.append(lambda: looked.append("beat"))
        monkeypatch.setattr(case.rollouts, "report", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
        reports.add(StepCount("well", 0))
        await reports.once(["sick", "well"])
        monkeypatch.setattr(time, "time", lambda: 0.0)  # the clock is put back: that is no reason to look less often
        monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 6)
        await reports.once(["well"])
        await reports.close()
        return reports.failed

    assert asyncio.run(work()) == 3
    assert looked == ["beat", "sick", "well", "beat", "well"]


def test_a_rollout_that_ends_while_its_candidate_is_loaded_leaves_no_trace(case: Case, other: Any) -> None:
    async def work() -> None:
        async with followed(case) as (_, follower):
            begin = follower.deaths.begin

            def late(rollout: str) -> None:
                case.rollouts.abort(rollout, by=BY, why="at once")
                while follower.models["tiny"].want.rollout is not None:
                    time.sleep(0.01)
                begin(rollout)

            follower.deaths.begin = late  # type: ignore[method-assign]
            rollout = case.start(other)
            await until(lambda: not case.rollouts.get(rollout.id).open and not follower.models["tiny"].loading)
            await until(lambda: not follower.deaths._held)
            assert case.rollouts.get(rollout.id).state == "aborted"
            assert not (follower.deaths._folder / rollout.id).exists()
            follower.deaths._held["gone"] = (case.folder / "gone").open("wb")
            follower.deaths._held["gone"].close()
            follower.deaths.beat()  # let go on the event loop just now
            assert list(follower.deaths._held) == ["gone"]

    asyncio.run(work())


def test_a_candidate_that_failed_does_not_make_it_read_the_registry_all_the_time(
    case: Case, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "AGAIN_S", 0.1)
    monkeypatch.setattr(room, "POLL_S", 0.02)
    loads, read = Loads(), list[float]()
    monkeypatch.setattr(room, "wanted", lambda *given, real=room.wanted: (read.append(0.0), real(*given))[1])

    async def work() -> None:
        async with followed(case, loads=loads) as (_, follower):
            loads.error = ModelError("It is broken.")
            monkeypatch.setattr(follower.reports, "once", lambda _: asyncio.sleep(0))  # nobody decides
            case.start(other)
            await until(lambda: follower.models["tiny"].failed)
            await asyncio.sleep(0.2)
            read.clear()
            await asyncio.sleep(0.3)
            assert len(read) <= 1

    asyncio.run(work())


def test_a_version_that_is_not_there_is_said_at_the_start(case: Case) -> None:
    async def work(ref: str) -> None:
        async with followed(case, Followed(ref)):
            pass

    for ref in ("tiny@99", "none", "tiny@nightly"):
        with pytest.raises(UsageError):
            asyncio.run(work(ref))
