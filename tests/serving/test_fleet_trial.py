"""Two versions side by side: who answers whom, what is counted, and that nobody loses an answer by a bad candidate."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_bundles import make_bad
from serving_case import BASELINE, INPUT, INT8, OUTPUT, tiny_bundle

from lowbit.rollout.desired import assigned
from lowbit.rollout.evidence import EDGES_S, Evidence, latency_bin
from lowbit.serving.answer.answered import Answered, Caller
from lowbit.serving.fleet import counting, shadowing
from lowbit.serving.fleet.counting import StepCount, has_nan
from lowbit.serving.fleet.shadowing import Shadowing, drawn
from lowbit.serving.fleet.trial import Trial, alike
from lowbit.serving.protocol.refusals import Malformed, NotServed, Refusal, TooLate
from lowbit.serving.protocol.requests import InferRequest, InferResponse
from lowbit.serving.run import deployment
from lowbit.serving.run.deployment import Deployment
from lowbit.serving.service import Service
from lowbit.serving.settings import Settings
from lowbit.serving.watch.observing import Observer
from small_models import images

X = images(1)
NAMES = ("good", "other", "wrong", "broken", "crashing", "slow")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("trial")
    good, other = tiny_bundle(root / "good" / "tiny"), tiny_bundle(root / "other" / "tiny", note="other")
    return {"good": good, "other": other} | {name: make_bad(good, root / name / "tiny", name) for name in NAMES[2:]}


@pytest.fixture
def loaded(folders: Mapping[str, Path]) -> Iterator[Callable[[str], Deployment]]:
    """A version by its bundle's name, under a number of its own."""
    made: dict[str, Deployment] = {}

    def load(name: str) -> Deployment:
        if name not in made:
            number = str(NAMES.index(name) + 1)
            made[name] = deployment.load(folders[name], name="tiny", version=number, digest=number * 64)
        return made[name]

    yield load
    for each in made.values():
        each.close()


class Seen(Observer):
    def __init__(self) -> None:
        self.answers: list[str] = []
        self.refusals: list[tuple[str, str]] = []

    def answered(self, deployment: Deployment, request: InferRequest, caller: Caller, found: Answered, seconds: float) -> None:  # noqa: ARG002
        self.answers.append(deployment.version)

    def refused(self, deployment: Deployment | None, caller: Caller, refusal: Refusal, seconds: float) -> None:  # noqa: ARG002
        self.refusals.append((deployment.version if deployment else "", refusal.outcome))


def served(champion: Deployment, canary: Deployment, share: float = 1.0, **more: Any) -> tuple[Service, Trial, Seen]:
    seen = Seen()
    service = Service(Settings(), (seen,))
    counts = StepCount("tiny-1", 0)
    counts.baseline.reader, counts.canary.reader = champion.reader, canary.reader
    trial = Trial(champion, canary, share, counts, **more)
    for each in (champion, canary):
        service.answers.adopt(service.answers.studied(each))
    service.arrange(champion, (champion, canary), trial)
    return service, trial, seen


async def asked(service: Service, session: str = "s", version: str | None = None, x: np.ndarray = X, **more: Any) -> InferResponse:
    caller = Caller("r", {"x-lowbit-session": session}, more.pop("deadline_s", None))
    return await service.infer("tiny", version, InferRequest({INPUT: x}, **more), caller)


def test_sessions_stay_on_their_side_and_both_sides_are_counted(loaded: Callable[[str], Deployment]) -> None:
    good, other = loaded("good"), loaded("other")
    service, trial, seen = served(good, other, 0.3)
    sessions = [f"session {number}" for number in range(40)]

    async def work() -> list[str]:
        return [(await asked(service, session)).version for session in (*sessions, *sessions)]

    versions = asyncio.run(work())
    expected = ["2" if assigned("tiny-1", 0.3, session) else "1" for session in sessions]
    assert versions == [*expected, *expected]
    assert 4 <= expected.count("2") <= 20
    evidence = trial.counts.taken()
    assert (evidence.canary.requests, evidence.baseline.requests) == (2 * expected.count("2"), 2 * expected.count("1"))
    assert (evidence.canary.errors, evidence.baseline.errors, evidence.hard) == (0, 0, ())
    assert sum(evidence.canary.seconds) == sum(evidence.canary.confidence) == evidence.canary.requests == evidence.canary.busy_n
    assert Evidence.from_json(evidence.to_json()) == evidence
    assert good.reader is not None
    certain = good.reader(good.variants["chosen"].sessions.run({INPUT: X})).confidence[0]
    assert evidence.baseline.confidence[int(certain * 256)] == evidence.baseline.requests
    assert 0 < evidence.baseline.busy_s < 1
    assert seen.answers == versions
    assert not trial.counts.changed


def test_who_names_a_version_gets_it_and_is_not_counted(loaded: Callable[[str], Deployment]) -> None:
    service, trial, _ = served(loaded("good"), loaded("other"))

    async def work() -> list[str]:
        return [(await asked(service, version=version)).version for version in ("1", "2", None)]

    assert asyncio.run(work()) == ["1", "2", "2"]
    assert trial.counts.taken().canary.requests == 1
    assert service.versions("tiny") == ("1", "2")
    with pytest.raises(NotServed, match=r"no version '3'. Served: 1, 2\."):
        asyncio.run(asked(service, version="3"))


@pytest.mark.parametrize(("kind", "hard"), [("crashing", "crashed"), ("broken", "not a number")])
def test_a_candidate_that_fails_costs_nobody_an_answer(loaded: Callable[[str], Deployment], kind: str, hard: str) -> None:
    good, bad = loaded("good"), loaded(kind)
    service, trial, seen = served(good, bad)

    async def work() -> list[InferResponse]:
        return [await asked(service, f"{number}") for number in range(6)]

    answers = asyncio.run(work())
    expected = good.variants["chosen"].sessions.run({INPUT: X})[OUTPUT]
    for answer in answers:
        assert answer.version == "1"
        np.testing.assert_array_equal(answer.outputs[OUTPUT], expected)
    evidence = trial.counts.taken()
    stops_after = counting.CRASHES if kind == "crashing" else 1
    assert evidence.hard == (hard,)
    assert (evidence.canary.requests, evidence.canary.errors) == (stops_after, stops_after)  # after that nobody goes there
    assert seen.refusals == [(str(NAMES.index(kind) + 1), "failed")] * stops_after
    assert (good.inside.count, bad.inside.count, service.inside) == (0, 0, 0)


def test_numbers_that_were_none_before_are_not_the_candidates_fault(loaded: Callable[[str], Deployment]) -> None:
    service, trial, _ = served(loaded("good"), loaded("other"))
    x, full = np.full_like(X, np.nan), {"variant": "full"}  # in eight bits nothing is NaN
    answer = asyncio.run(asked(service, x=x, parameters=full))
    assert has_nan(answer.outputs)
    assert answer.version == "1"
    evidence = trial.counts.taken()
    assert (evidence.hard, evidence.canary.errors, evidence.canary.requests) == ((), 0, 1)

    trial.__dict__["alike"] = False
    caller = Caller("r", {"x-lowbit-session": "s"})

    async def prepared() -> None:
        with service.admitted("tiny", None, caller) as place:
            await service.infer("tiny", None, InferRequest({INPUT: x}, parameters=full), caller, place)

    with pytest.raises(Refusal) as found:
        asyncio.run(prepared())
    assert found.value.elsewhere is trial.champion
    assert not trial.counts.stopped


def test_a_slow_candidate_is_covered_in_time_and_still_counted(loaded: Callable[[str], Deployment]) -> None:
    good, slow = loaded("good"), loaded("other")
    batcher = slow.variants["chosen"].batcher
    run = batcher._run
    batcher._run = lambda feeds: (time.sleep(1.2), run(feeds))[1]
    service, trial, seen = served(good, slow)

    async def work() -> list[Evidence]:
        found = []
        await good.variants["chosen"].batcher.submit({INPUT: X})  # the first run takes longer
        for deadline_s in (1.0, 1.5):
            assert (await asked(service, deadline_s=deadline_s)).version == "1"
            await service.idle()
            found.append(trial.counts.taken())
        return found

    evidence, again = asyncio.run(work())
    assert (evidence.canary.requests, evidence.canary.errors, evidence.hard) == (1, 1, ())  # too late, and no crash
    assert (again.canary.requests, again.canary.errors) == (2, 1)  # late for the client, and an answer all the same
    assert sum(again.canary.seconds[latency_bin(1.2) :]) == 1
    assert again.baseline.requests == 0
    assert seen.answers == ["1", "1"]


def test_who_goes_away_has_waited_and_counts_for_the_side_that_was_asked(loaded: Callable[[str], Deployment]) -> None:
    good, slow = loaded("good"), loaded("other")
    service, trial, _ = served(good, slow, 0.5)
    for each in (good, slow):
        batcher = each.variants["chosen"].batcher
        batcher._run = lambda feeds, run=batcher._run: (time.sleep(0.5), run(feeds))[1]
    sessions = {assigned("tiny-1", 0.5, each): each for each in "abcdefgh"}

    async def work() -> Evidence:
        for session in (sessions[True], sessions[False]):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asked(service, session), 0.2)
        await service.idle()
        return trial.counts.taken()

    evidence = asyncio.run(work())
    for arm in (evidence.baseline, evidence.canary):
        assert (arm.requests, arm.errors, sum(arm.seconds), sum(arm.seconds[latency_bin(0.19) :])) == (1, 0, 1, 1)


def test_a_slow_candidate_with_other_preprocessing_leaves_time_for_the_champion(loaded: Callable[[str], Deployment]) -> None:
    good, slow = loaded("good"), loaded("other")
    batcher = slow.variants["chosen"].batcher
    run, go_on = batcher._run, threading.Event()
    batcher._run = lambda feeds: (go_on.wait(20), run(feeds))[1]
    service, trial, _ = served(good, slow)
    trial.__dict__["alike"] = False
    caller = Caller("r", {"x-lowbit-session": "s"}, 2.0)

    async def work() -> Any:
        with service.admitted("tiny", None, caller) as place, pytest.raises(TooLate, match="The candidate takes too long") as found:
            await service.infer("tiny", None, InferRequest({INPUT: X}), caller, place)
        go_on.set()
        await service.idle()
        return found.value.elsewhere

    assert asyncio.run(work()) is good
    evidence = trial.counts.taken()
    assert (evidence.canary.requests, evidence.canary.errors, sum(evidence.canary.seconds[latency_bin(1.4) :])) == (1, 0, 1)


def test_an_answer_that_inputs_spoil_counts_as_the_candidates_own(loaded: Callable[[str], Deployment]) -> None:
    good, other = loaded("good"), loaded("other")
    batcher = good.variants["full"].batcher
    run = batcher._run
    batcher._run = lambda feeds: (time.sleep(0.3), run(feeds))[1]  # what the champion takes is no fault of the candidate's
    service, trial, _ = served(good, other)
    asyncio.run(asked(service, x=np.full_like(X, np.nan), parameters={"variant": "full"}))
    arm = trial.counts.taken().canary
    assert sum(arm.seconds[: latency_bin(0.3)]) == sum(arm.seconds) == 1
    assert arm.busy_s < 0.3


def test_a_clients_mistake_is_no_ones_error(loaded: Callable[[str], Deployment]) -> None:
    service, trial, _ = served(loaded("good"), loaded("other"))
    with pytest.raises(Malformed):
        asyncio.run(asked(service, x=np.zeros((1, 3, 9, 9), np.float32)))
    evidence = trial.counts.taken()
    assert (evidence.canary.requests, evidence.baseline.requests) == (0, 0)


def test_a_variant_that_only_the_champion_has_is_asked_there(folders: Mapping[str, Path]) -> None:
    good, alone = deployment.load(folders["good"], version="1"), deployment.load(folders["other"], roles=("chosen",), version="2")
    try:
        service, trial, _ = served(good, alone)
        answer = asyncio.run(asked(service, parameters={"variant": "full"}))
        assert (answer.version, answer.parameters["variant"]) == ("1", BASELINE)
        assert trial.counts.taken().canary.errors == 0
    finally:
        good.close()
        alone.close()


def test_a_prepared_request_says_who_may_answer_instead(loaded: Callable[[str], Deployment]) -> None:
    good, bad = loaded("good"), loaded("crashing")
    service, trial, _ = served(good, bad)
    assert trial.alike  # the same preprocessing: the champion can take what was prepared
    caller = Caller("r", {"x-lowbit-session": "s"})

    async def work() -> Any:
        with service.admitted("tiny", None, caller) as place:
            assert place is bad
            return await service.infer("tiny", None, InferRequest({INPUT: X}), caller, place)

    assert asyncio.run(work()).version == "1"
    trial.__dict__["alike"] = False
    with pytest.raises(Refusal) as found:
        asyncio.run(work())
    assert found.value.elsewhere is good


def test_versions_with_other_tensors_are_not_alike(loaded: Callable[[str], Deployment]) -> None:
    good, other = loaded("good"), loaded("other")
    assert alike(good, other)
    renamed = replace(other.variants["chosen"].sessions.inputs[0], name="another")
    sessions = other.variants["chosen"].sessions
    before, sessions.inputs = sessions.inputs, (renamed,)
    try:
        assert not alike(good, other)
    finally:
        sessions.inputs = before


def test_shadows_find_who_disagrees_with_full_precision(loaded: Callable[[str], Deployment]) -> None:
    good, wrong = loaded("good"), loaded("wrong")
    shadow = Shadowing(lambda: False, seed=1)
    service, trial, seen = served(good, wrong, 0.5, shadow=1.0, shadowing=shadow)
    x = images(32)

    async def work() -> Evidence:
        running = asyncio.create_task(shadow.run())
        for number in range(32):
            await asked(service, f"{number}", x=x[number : number + 1])
        while sum(_shadowed(trial)) < 32:
            await asyncio.sleep(0.01)
        running.cancel()
        return trial.counts.taken()

    evidence = asyncio.run(asyncio.wait_for(work(), 20))
    assert evidence.canary.shadowed == evidence.canary.requests > 5
    assert evidence.canary.disagreed == evidence.canary.shadowed  # every class is called by another's name
    full, chosen = (good.variants[role].sessions.run({INPUT: x})[OUTPUT].argmax(axis=1) for role in ("full", "chosen"))
    sides = np.array([not assigned("tiny-1", 0.5, str(number)) for number in range(32)])
    assert evidence.baseline.disagreed == np.count_nonzero((full != chosen)[sides])
    assert len(seen.answers) == 32  # nobody else was told


def _shadowed(trial: Trial) -> tuple[int, int]:
    return trial.counts.baseline.arm().shadowed, trial.counts.canary.arm().shadowed


def test_in_mode_shadow_the_candidate_answers_nobody_and_is_counted(loaded: Callable[[str], Deployment]) -> None:
    good, wrong = loaded("good"), loaded("wrong")
    shadow = Shadowing(lambda: False, seed=1)
    service, trial, seen = served(good, wrong, 0.0)
    trial = replace(trial, canary=None, mirrored=wrong, shadow=1.0, shadowing=shadow)
    service.arrange(good, (good, wrong), trial)

    async def work() -> Evidence:
        running = asyncio.create_task(shadow.run())
        for number in range(8):
            await asked(service, f"{number}")
        while trial.counts.canary.arm().shadowed < 8:
            await asyncio.sleep(0.01)
        running.cancel()
        return trial.counts.taken()

    evidence = asyncio.run(asyncio.wait_for(work(), 20))
    assert seen.answers == ["1"] * 8
    assert (evidence.canary.requests, evidence.canary.disagreed) == (8, 8)
    assert evidence.baseline.requests == 8


def test_what_finds_no_room_is_dropped(loaded: Callable[[str], Deployment], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadowing, "ROOM", 3)
    good, other = loaded("good"), loaded("other")

    async def work() -> Shadowing:
        shadow = Shadowing(lambda: True, seed=1)
        service, _, _ = served(good, other, 0.0, shadow=1.0, shadowing=shadow)
        for number in range(5):
            await asked(service, f"{number}")
        return shadow

    assert asyncio.run(work()).dropped == 2


def test_shadows_wait_while_anybody_else_does(loaded: Callable[[str], Deployment], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadowing, "PATIENCE_S", 0.3)
    good, other = loaded("good"), loaded("other")

    async def work() -> tuple[int, int]:
        shadow = Shadowing(lambda: False, seed=1)
        service, trial, _ = served(good, other, 0.0, shadow=1.0, shadowing=shadow)
        running = asyncio.create_task(shadow.run())
        await asked(service)
        other.variants["full"].batcher.waiting += 1  # a row that waits for the other version
        await asyncio.sleep(0.6)
        before = trial.counts.baseline.arm().shadowed
        other.variants["full"].batcher.waiting -= 1
        await asked(service)
        while not trial.counts.baseline.arm().shadowed:
            await asyncio.sleep(0.01)
        running.cancel()
        return before, trial.counts.baseline.arm().shadowed

    assert asyncio.run(asyncio.wait_for(work(), 20)) == (0, 1)


def test_the_smaller_arm_is_looked_at_as_often(loaded: Callable[[str], Deployment]) -> None:
    good, other = loaded("good"), loaded("other")
    for share, shadow, expected in ((0.1, 0.01, (0.01, 0.09)), (0.01, 0.05, (0.05, 1.0)), (0.75, 0.1, (0.3, 0.1)), (1.0, 0.1, (0.1, 0.1))):
        trial = Trial(good, other, share, StepCount("a", 0), shadow=shadow)
        assert (drawn(trial, good), drawn(trial, other)) == pytest.approx(expected)


def test_answers_full_precision_gave_need_no_second_run(loaded: Callable[[str], Deployment]) -> None:
    good, other = loaded("good"), loaded("other")

    async def work() -> Evidence:
        service, trial, _ = served(good, other, 1.0, shadow=1.0, shadowing=Shadowing(lambda: False))
        await asked(service, parameters={"variant": "full"})
        return trial.counts.taken()

    evidence = asyncio.run(work())
    assert (evidence.canary.shadowed, evidence.canary.disagreed) == (1, 0)


def test_counts_are_what_was_counted() -> None:
    counts = StepCount("a", 2)
    variant: Any = type("V", (), {"id": INT8})()
    ran = Answered({}, variant, batch=4, ran_s=0.008)
    counts.canary_answered(ran, 0.01, 4)
    counts.canary_answered(replace(ran, batch=8), 0.02, 4)  # shared its batch: no price of its own
    counts.canary_answered(Answered({}, variant, cache="exact"), 0.0001, 1)  # did not run
    counts.canary_failed("RuntimeError: bad_alloc")
    counts.canary.labelled(right=True)
    counts.canary.labelled(right=False)
    arm = counts.taken().canary
    assert (arm.requests, arm.errors, arm.labelled, arm.right) == (4, 1, 2, 1)
    assert (arm.seconds[latency_bin(0.01)], arm.seconds[latency_bin(0.02)], sum(arm.seconds)) == (1, 1, 2)
    assert len(arm.seconds) == len(EDGES_S) + 1
    assert (arm.busy_n, arm.busy_s, arm.busy_squares) == (1, pytest.approx(0.002), pytest.approx(4e-6))
    assert counts.taken().hard == ("out of memory",)


def test_failures_between_answers_are_no_crash_and_lateness_never_is() -> None:
    counts = StepCount("a", 0)
    variant: Any = type("V", (), {"id": INT8})()
    for _ in range(4):
        counts.canary_failed("odd")
        counts.canary_failed("odd")
        counts.canary_answered(Answered({}, variant, batch=1, ran_s=0.001), 0.002, 1)
    for _ in range(5):
        counts.canary_failed(TooLate("late").message, ran=False)
    assert not counts.stopped
    for _ in range(counting.CRASHES):
        counts.canary_failed("odd")
    assert counts.taken().hard == ("crashed",)
