"""Route, cache, run, ask again, mark for a person: with two real variants of a small model."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_case import BASELINE, INPUT, INT8, OUTPUT, tiny_bundle

from lowbit.errors import UsageError
from lowbit.measure.outcomes import Outcomes
from lowbit.serving.answer.answered import Answered, Caller, said
from lowbit.serving.answer.answering import Answers
from lowbit.serving.answer.certainty import ClassReader
from lowbit.serving.answer.escalation import can_merge, merged, rows_of
from lowbit.serving.answer.live_policy import LivePolicy
from lowbit.serving.answer.planning import Study
from lowbit.serving.answer.questions import Questions
from lowbit.serving.answer.routing import Escalate, Route, RoutingPolicy
from lowbit.serving.cache.cache import Cache
from lowbit.serving.cache.guard import Guard
from lowbit.serving.cache.settings import CacheSettings
from lowbit.serving.protocol.refusals import Malformed, NotServed, Unavailable
from lowbit.serving.protocol.requests import InferRequest
from lowbit.serving.run import deployment
from lowbit.serving.run.deployment import Deployment
from small_models import images

CACHED = CacheSettings(max_bytes=1 << 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("answering") / "tiny")


@pytest.fixture
def tiny(folder: Path) -> Iterator[Deployment]:
    made = deployment.load(folder)
    yield made
    made.close()


def answers(policy: str = "", cache: CacheSettings | None = None, questions: Questions | None = None) -> Answers:
    return Answers(LivePolicy(RoutingPolicy.from_yaml(policy)), Cache.of(cache) if cache else None, questions)


def ask(made: Answers, tiny: Deployment, x: np.ndarray, headers: dict[str, str] | None = None, **parameters: Any) -> Answered:
    return asyncio.run(asked(made, tiny, x, headers, **parameters))


async def asked(made: Answers, tiny: Deployment, x: np.ndarray, headers: dict[str, str] | None = None, **parameters: Any) -> Answered:
    deadline = asyncio.get_running_loop().time() + 20
    return await made.answer(tiny, InferRequest({INPUT: x}, parameters=parameters), Caller("r1", headers or {}), deadline)


def both(tiny: Deployment, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return tuple(tiny.variants[role].sessions.run({INPUT: x})[OUTPUT] for role in ("chosen", "full"))  # type: ignore[return-value]


def test_the_chosen_variant_answers_unless_another_is_asked_for(tiny: Deployment) -> None:
    x = images(3)
    quantized, full = both(tiny, x)
    made = answers()
    found = ask(made, tiny, x)
    np.testing.assert_array_equal(found.outputs[OUTPUT], quantized)
    assert said(found) == {"variant": INT8, "precision": "int8", "route": "default", "cache": "off"}
    for wish in ({"variant": "full"}, {"variant": BASELINE}):
        found = ask(made, tiny, x, **wish)
        np.testing.assert_array_equal(found.outputs[OUTPUT], full)
        assert (found.variant.id, found.route) == (BASELINE, "asked")
    assert ask(made, tiny, x, {"x-lowbit-variant": "full"}).variant.id == BASELINE
    with pytest.raises(NotServed, match="no variant 'int3'"):
        ask(made, tiny, x, variant="int3")
    for wrong in ({"variant": 3}, {"critical": "yes"}, {"cache": 1}):
        with pytest.raises(Malformed):
            ask(answers(cache=CACHED), tiny, x, **wrong)
    with pytest.raises(Malformed, match="x-lowbit-critical"):
        ask(made, tiny, x, {"x-lowbit-critical": "perhaps"})


def test_uncertain_rows_and_no_others_are_asked_again(tiny: Deployment) -> None:
    x = images(16)
    quantized, full = both(tiny, x)
    margins = ClassReader(OUTPUT, False)({OUTPUT: quantized}).margin
    below = float(np.median(margins))
    found = ask(answers(f"escalate: {{below: {below}}}"), tiny, x)
    low = margins < below
    assert 0 < low.sum() < 16
    np.testing.assert_allclose(found.outputs[OUTPUT][low], full[low], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.outputs[OUTPUT][~low], quantized[~low])
    assert (found.escalated, found.escalated_to, found.variant.id) == (int(low.sum()), BASELINE, INT8)
    still = ClassReader(OUTPUT, False)({OUTPUT: found.outputs[OUTPUT]}).margin < below
    assert found.uncertain == still.sum()
    assert said(found)["escalated"] == low.sum()


def test_certain_answers_and_full_precision_are_not_asked_again(tiny: Deployment) -> None:
    x = images(4)
    assert ask(answers("escalate: {below: 0}"), tiny, x).escalated == 0
    policy = "escalate: {below: 1}\nrules: [{name: critical, when: {critical: true}, use: full}]"
    found = ask(answers(policy), tiny, x, critical=True)
    assert (found.escalated, found.route) == (0, "critical")
    assert ask(answers(policy), tiny, x, {"x-lowbit-critical": "1"}).route == "critical"
    rule = "escalate: {below: 1}\nrules: [{name: plain, use: chosen, escalate: false}]"
    assert ask(answers(rule), tiny, x).escalated == 0


def test_where_full_precision_has_no_room_the_first_answer_stays(tiny: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object, **__: object) -> None:
        raise Unavailable("The queue is full.")

    x = images(4)
    made = answers("escalate: {below: 1}", CACHED)
    with monkeypatch.context() as patch:
        patch.setattr(tiny.variants["full"].batcher, "submit", full)
        found = ask(made, tiny, x)
    np.testing.assert_array_equal(found.outputs[OUTPUT], both(tiny, x)[0])
    assert (found.escalated, found.uncertain) == (0, 4)
    again = ask(made, tiny, x)  # it was not kept: there is room now
    assert (again.cache, again.escalated) == ("miss", 4)


def test_asking_again_leaves_time_to_answer(tiny: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object, deadline: float, **__: object) -> None:
        from lowbit.serving.protocol.refusals import TooLate

        await asyncio.sleep(deadline - asyncio.get_running_loop().time())
        raise TooLate("The deadline passed.")

    async def main() -> tuple[Answered, float]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 0.3
        found = await answers("escalate: {below: 1}").answer(tiny, InferRequest({INPUT: images(1)}), Caller(), deadline)
        return found, deadline - loop.time()

    monkeypatch.setattr(tiny.variants["full"].batcher, "submit", never)
    found, left = asyncio.run(main())
    assert found.uncertain == 1
    assert left > 0


def test_policies_are_checked_against_what_is_loaded(folder: Path) -> None:
    alone = deployment.load(folder, roles=("chosen",))
    try:
        with pytest.raises(UsageError, match="names variant 'full', which is not loaded for model 'tiny'"):
            answers("rules: [{name: a, use: full}]").prepare(alone)
        answers("rules: [{name: a, when: {model: another}, use: full}]").prepare(alone)
        answers().prepare(alone)
    finally:
        alone.close()


def test_a_threshold_that_cannot_be_found_is_an_error_at_the_start(tiny: Deployment) -> None:
    with pytest.raises(UsageError, match="its samples' outcomes are gone"):
        answers("escalate: {to: full}").prepare(tiny)
    with pytest.raises(UsageError, match="Variant 'full' of model 'tiny' does not say below which margin"):
        answers("default: full\nescalate: {to: chosen}").prepare(tiny)
    answers("rules: [{name: a, use: full, when: {model: another}, review: true}]", questions=object()).prepare(tiny)  # type: ignore[arg-type]


def with_samples(folder: Path) -> Path:
    """A bundle whose variants answered 5 of 101 samples differently, the full one with half the margins."""
    tiny_bundle(folder)
    margins = np.linspace(0, 1, 101)
    for place, values, predicted in (("baseline", margins / 2, 0 * margins), (f"candidates/{INT8}", margins, margins < 0.045)):
        Outcomes({"margin": values, "confidence": values, "predicted": predicted.astype(int)}).save(folder / place / "outcomes-search.npz")
    return folder


def test_thresholds_come_from_each_variants_own_samples(tmp_path: Path) -> None:
    made = deployment.load(with_samples(tmp_path / "tiny"))
    try:
        study, rule = Study(made, None), Escalate()
        assert study.below(made.variants["chosen"], rule) == pytest.approx(0.04)
        assert study.below(made.variants["full"], rule) == pytest.approx(0.02)
        policy = RoutingPolicy(review="always", escalate=rule)
        assert study.plan(Route("chosen", escalate=rule), policy).below == pytest.approx(0.04)
        assert study.plan(Route("full", review=True), policy).below == pytest.approx(0.02)
    finally:
        made.close()


def test_what_was_loaded_is_served_whatever_becomes_of_its_folder(tmp_path: Path) -> None:
    folder = with_samples(tmp_path / "tiny")
    made, policy = deployment.load(folder), RoutingPolicy(escalate=Escalate())
    try:
        way, cache = Route("chosen", escalate=Escalate()), Cache.of(CacheSettings(1 << 20, similar=True))
        before, study = Study(made, cache).plan(way, policy), Study(made, cache)
        for changed in ("model/model.onnx", "preprocess.yaml"):
            other = Study(dataclasses.replace(made, digests={**made.digests, changed: "0" * 64}), cache).plan(way, policy)
            assert other.below == before.below
            assert other.space != before.space
        (folder / "model" / "model.onnx").write_bytes(b"another version's")
        shutil.rmtree(folder / "baseline")
        after = study.plan(way, policy)
        assert (after.space, after.below, after.pixels) == (before.space, before.below, before.pixels)
        assert after.pixels is not None
        study.check(policy)
    finally:
        made.close()


def test_a_guard_goes_with_the_last_version_that_asked_it(tiny: Deployment, tmp_path: Path) -> None:
    made = answers(cache=CacheSettings(1 << 20, similar=True))
    cache = made.cache
    assert cache is not None
    made.prepare(tiny)
    plan = made._study(tiny).plan(Route("chosen"), made.policy.now)
    cache.guard(plan).told(right=True)
    others = [deployment.load(tiny_bundle(tmp_path / str(number) / "tiny"), roles=("full",)) for number in range(2)]
    try:
        for other, left in zip(others, (1, 1), strict=True):
            made.prepare(other)  # the same artifact: what was proved of it holds
            assert len(cache.guards) == left
        cache.guards[b"of a version before the last"] = Guard(0.005, 0.02)
        made.prepare(tiny)
        assert list(cache.guards) == [plan.similar_space]
    finally:
        for other in others:
            other.close()


def test_reviews_need_a_place(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere to keep them"):
        answers("review: critical")
    live = tmp_path / "p.yaml"
    live.write_text("default: chosen")
    made = Answers(LivePolicy(file=live))
    live.write_text("review: always")
    assert not made.policy.reload()


def test_critical_answers_that_stay_uncertain_become_questions(tiny: Deployment, tmp_path: Path) -> None:
    policy = "review: critical\nescalate: {below: 1}\nrules: [{name: critical, when: {critical: true}, use: full}]"

    async def main() -> None:
        questions = Questions(tmp_path, keep_inputs=True)
        made = answers(policy, CACHED, questions)
        x = images(2)
        assert (await asked(made, tiny, x)).review is None
        found = await asked(made, tiny, x, critical=True)
        one = await questions.one(found.review or "")
        assert (one["reason"], one["variant"], one["rows"], one["request_id"]) == ("critical", BASELINE, [0, 1], "r1")
        np.testing.assert_allclose(np.reshape(one["outputs"][0]["data"], (2, 10)), both(tiny, x)[1], rtol=1e-6)
        np.testing.assert_array_equal(np.reshape(one["inputs"][0]["data"], x.shape), x)
        assert said(found)["review"] == found.review
        kept = await asked(made, tiny, x, critical=True)  # a kept answer is as uncertain
        assert kept.cache == "exact"
        assert kept.review not in (None, found.review)
        await made.close()

    asyncio.run(main())


# The cache, end to end -------------------------------------------------------------------------------------------------


def test_the_same_tensors_are_answered_from_the_cache(tiny: Deployment) -> None:
    made, x = answers(cache=CACHED), images(2)
    first, second = ask(made, tiny, x), ask(made, tiny, x.copy())
    assert (first.cache, second.cache) == ("miss", "exact")
    np.testing.assert_array_equal(first.outputs[OUTPUT], second.outputs[OUTPUT])
    assert second.variant is tiny.variants["chosen"]
    assert ask(made, tiny, x + 1e-6).cache == "miss"
    assert ask(made, tiny, x[:1]).cache == "miss"
    assert ask(made, tiny, x, cache=False).cache == "off"
    assert ask(made, tiny, x, {"cache-control": "no-cache"}).cache == "off"
    assert made.facts()["cache_saved_rows"] == 2


def test_variants_never_share_kept_answers(tiny: Deployment) -> None:
    made, x = answers(cache=CACHED), images(2)
    quantized, full = both(tiny, x)
    assert not np.array_equal(quantized, full)
    for _ in range(2):
        np.testing.assert_array_equal(ask(made, tiny, x).outputs[OUTPUT], quantized)
        np.testing.assert_array_equal(ask(made, tiny, x, variant="full").outputs[OUTPUT], full)


def test_answers_kept_before_a_policy_changed_are_not_given_after(tiny: Deployment, tmp_path: Path) -> None:
    file, x = tmp_path / "policy.yaml", images(2)
    file.write_text("default: chosen")
    made = Answers(LivePolicy(file=file), Cache.of(CACHED))
    quantized, full = both(tiny, x)
    np.testing.assert_array_equal(ask(made, tiny, x).outputs[OUTPUT], quantized)
    file.write_text("escalate: {below: 1}")
    assert made.policy.reload()
    np.testing.assert_allclose(ask(made, tiny, x).outputs[OUTPUT], full, rtol=1e-6)


def test_an_answer_that_had_no_room_is_not_handed_to_others(tiny: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = answers("escalate: {below: 1}", CACHED), images(2)
    full = tiny.variants["full"].batcher
    submit, refused = full.submit, []

    async def once(*args: Any, **options: Any) -> Any:
        if not refused:
            refused.append(True)
            raise Unavailable("The queue is full.")
        return await submit(*args, **options)

    async def main() -> list[Answered]:
        return await asyncio.gather(*(asked(made, tiny, x) for _ in range(3)))

    monkeypatch.setattr(full, "submit", once)
    found = asyncio.run(main())
    assert [each.escalated for each in found] == [0, 2, 2]
    assert [each.cache for each in found] == ["miss"] * 3


def test_the_same_request_at_the_same_time_runs_once(tiny: Deployment) -> None:
    made, x = answers(cache=CACHED), images(2)

    async def main() -> list[Answered]:
        return await asyncio.gather(*(asked(made, tiny, x) for _ in range(5)))

    found = asyncio.run(main())
    assert sorted(each.cache for each in found) == ["miss", *["shared"] * 4]
    for each in found:
        np.testing.assert_array_equal(each.outputs[OUTPUT], both(tiny, x)[0])


# Merging -----------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.data())
def test_merging_replaces_the_rows_that_were_asked_and_nothing_else(n: int, data: st.DataObject) -> None:
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1)))), np.intp)
    first = {"a": np.arange(n, dtype=np.float32), "b": np.arange(2 * n).reshape(n, 2)}
    again = {name: -1 - array[rows] for name, array in first.items()}
    for array in first.values():
        array.flags.writeable = False  # what a runtime or a cache hands out may be
    found = merged(first, again, rows)
    for name, array in first.items():
        wanted = [-1 - value if row in rows else value for row, value in enumerate(array)]
        np.testing.assert_array_equal(found[name], wanted)
        assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(rows_of({"x": first["a"]}, rows)["x"], first["a"][rows])


def test_outputs_without_a_row_for_each_question_are_not_merged() -> None:
    assert can_merge({"a": np.zeros((3, 2))}, 3)
    assert not can_merge({"a": np.zeros((3, 2)), "b": np.zeros(2)}, 3)
    assert not can_merge({"a": np.float32(1)}, 1)  # type: ignore[dict-item]
