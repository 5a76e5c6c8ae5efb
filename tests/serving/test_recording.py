"""What is remembered of traffic adds up, and costs what it may."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_case import INPUT, INT8, OUTPUT, tiny_bundle

from lowbit.serving.answer.answered import Answered, Caller
from lowbit.serving.protocol.requests import InferRequest
from lowbit.serving.run import deployment
from lowbit.serving.run.deployment import Deployment
from lowbit.serving.watch.recording import Moments, Record, Recorder, merged
from small_models import images

numbers = st.lists(st.floats(-1e6, 1e6, width=32), max_size=50)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = deployment.load(tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny"), roles=())
    yield made
    made.close()


@given(st.lists(numbers, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_moments_of_parts_are_those_of_all(parts: list[list[float]]) -> None:
    found, replicas = Moments(), Moments()
    for part in parts:
        one = Moments()
        if part:
            found.add(np.array(part, np.float32))
            one.add(np.array(part, np.float32))
        replicas.merge(one.shown())
    everything = np.concatenate([np.array(part, np.float32) for part in parts]).astype(np.float64)
    for moments in (found, replicas):
        shown = moments.shown()
        assert shown["n"] == len(everything)
        if len(everything):
            scale = max(1.0, float(np.abs(everything).max()))
            assert shown["mean"] == pytest.approx(everything.mean(), abs=1e-6 * scale)
            assert shown["std"] == pytest.approx(everything.std(), abs=1e-5 * scale)
            assert (shown["min"], shown["max"]) == (everything.min(), everything.max())


def test_values_that_are_no_numbers_are_counted_apart() -> None:
    moments = Moments()
    moments.add(np.array([1.0, np.nan, 3.0, np.inf]))
    moments.add(np.array([np.nan]))
    assert moments.shown() == {"n": 2, "mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0, "not_finite": 3}


def answered(model: Deployment, x: Any, logits: Any, *, ran_s: float = 1.0, batch: int | None = None) -> tuple[Any, ...]:
    variant = model.variants["chosen"]
    found = Answered({OUTPUT: np.asarray(logits, np.float32)}, variant, batch=len(x) if batch is None else batch, ran_s=ran_s)
    return model, InferRequest({INPUT: np.asarray(x, np.float32)}), Caller(), found, ran_s


def test_confidences_and_inputs_land_where_they_belong(tiny: Deployment) -> None:
    recorder = Recorder()
    x = images(3)
    logits = np.zeros((3, 10), np.float32)
    logits[0, 4], logits[1, 2] = 100.0, math.log(9)  # sure; one half (9 of 18); one tenth
    recorder.answered(*answered(tiny, x, logits))
    (entry,) = recorder.snapshot()["models"]
    assert (entry["model"], entry["variant"], entry["rows_seen"], entry["rows_recorded"]) == ("tiny", INT8, 3, 3)
    counts = entry["confidence"]["counts"]
    assert len(counts) == 256
    assert {place: count for place, count in enumerate(counts) if count} == {255: 1, 128: 1, 25: 1} or counts[127] == 1
    seen = entry["inputs"][INPUT]
    assert x.min() <= seen["min"] < seen["max"] <= x.max()
    assert seen["mean"] == pytest.approx(float(x.mean()), abs=0.15)
    assert seen["std"] == pytest.approx(float(x.std()), rel=0.2)
    json.dumps(recorder.snapshot())


def test_a_small_input_is_looked_at_whole_and_a_large_one_evenly(tiny: Deployment) -> None:
    for size in (1, 7, 192, 512, 513, 1024, 49_152, 150_528):
        record = Record(tiny)
        x = np.arange(size, dtype=np.float32).reshape(1, -1)
        record.inputs = {INPUT: Moments()}
        record.add({INPUT: x}, {OUTPUT: np.zeros((1, 10), np.float32)}, 1)
        shown = record.inputs[INPUT].shown()
        assert shown["n"] == (size if size <= 1024 else 512)
        assert shown["mean"] == pytest.approx((size - 1) / 2, rel=0.01, abs=1)
        assert shown["std"] == pytest.approx(x.std(), rel=0.06)


def test_recording_stays_within_its_budget_and_says_how_much_it_saw(tiny: Deployment) -> None:
    x, logits = images(1), np.zeros((1, 10))
    rich, poor = Recorder(), Recorder()
    for _ in range(50):
        rich.answered(*answered(tiny, x, logits, ran_s=1.0))
        poor.answered(*answered(tiny, x, logits, ran_s=1e-6))
    (all_of_it,), (some,) = rich.snapshot()["models"], poor.snapshot()["models"]
    assert (all_of_it["rows_seen"], all_of_it["rows_recorded"]) == (50, 50)
    assert some["rows_seen"] == 50
    assert some["rows_recorded"] <= 2


def test_answers_that_nothing_ran_for_are_left_out(tiny: Deployment) -> None:
    recorder = Recorder()
    recorder.answered(*answered(tiny, images(1), np.zeros((1, 10)), batch=0))
    assert recorder.snapshot()["models"] == []


def test_replicas_add_up(tiny: Deployment) -> None:
    one, other, both = Recorder(), Recorder(), Recorder()
    for number in range(20):
        rng = np.random.default_rng(number)
        asked = answered(tiny, images(1, number), rng.normal(size=(1, 10)))
        (one if number % 3 else other).answered(*asked)
        both.answered(*asked)
    found = merged([json.loads(json.dumps(each.snapshot())) for each in (one, other)])
    (joined,), (expected,) = found["models"], both.snapshot()["models"]
    assert joined["confidence"] == expected["confidence"]
    assert joined["rows_recorded"] == expected["rows_recorded"] == 20
    assert joined["inputs"][INPUT] == pytest.approx(expected["inputs"][INPUT])


def test_a_confidence_is_what_the_comparison_of_models_calls_one(tiny: Deployment) -> None:
    from lowbit.measure.observe import ClassObserver

    logits = np.random.default_rng(0).normal(0, 3, (200, 10)).astype(np.float32)
    expected, _ = np.histogram(ClassObserver(OUTPUT, False)({OUTPUT: logits}, None, None)["confidence"], bins=256, range=(0, 1))
    record = Record(tiny)
    record.add({INPUT: images(200)}, {OUTPUT: logits}, 200)
    assert np.abs(record.confidence - expected).sum() <= 2  # a value on the edge of two bins


def test_inputs_without_values_are_no_failure() -> None:
    moments = Moments()
    moments.add(np.empty(0, np.float32))
    assert moments.shown() == {"n": 0, "mean": None, "std": None, "min": None, "max": None, "not_finite": 0}
    moments.add(np.array([3.0], np.float32))
    assert (moments.n, moments.mean) == (1, 3.0)
