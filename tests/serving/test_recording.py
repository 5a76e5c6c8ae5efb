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

from lowbit.monitoring.latency import bin_of
from lowbit.monitoring.snapshots import Snapshot
from lowbit.monitoring.tally import Key
from lowbit.serving.answer.answered import Answered, Caller
from lowbit.serving.keep.spending import Ran
from lowbit.serving.protocol.refusals import Malformed, Refusal, TooLate
from lowbit.serving.protocol.requests import InferRequest
from lowbit.serving.run import deployment
from lowbit.serving.run.deployment import Deployment
from lowbit.serving.watch.numbers import Columns, Moments
from lowbit.serving.watch.recording import Record, Recorder
from lowbit.types import TensorInfo
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
    found, columns = Moments(), Columns(2)
    for part in parts:
        values = np.array(part, np.float32)
        found.add(values)
        columns.add(np.stack([values, -values], axis=1))
    everything = np.concatenate([np.array(part, np.float32) for part in parts]).astype(np.float64)
    own, other = columns.shown()
    for shown, expected in ((found.shown(), everything), (own, everything), (other, -everything)):
        assert shown["n"] == len(expected)
        if len(expected):
            scale = max(1.0, float(np.abs(expected).max()))
            assert shown["mean"] == pytest.approx(expected.mean(), abs=1e-6 * scale)
            assert shown["std"] == pytest.approx(expected.std(), abs=1e-5 * scale)
            assert (shown["min"], shown["max"]) == (expected.min(), expected.max())
    assert columns.whole()["n"] == 2 * len(everything)
    if len(everything):
        assert columns.whole()["std"] == pytest.approx(np.concatenate([everything, -everything]).std(), abs=1e-5 * scale)


def test_a_value_that_is_no_number_is_left_out_of_its_column_alone() -> None:
    columns = Columns(3)
    columns.add(np.array([[1.0, np.nan, 5.0], [3.0, 4.0, np.inf]]))
    first, second, third = columns.shown()
    assert first == {"n": 2, "mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0, "not_finite": 0}
    assert second == {"n": 1, "mean": 4.0, "std": 0.0, "min": 4.0, "max": 4.0, "not_finite": 1}
    assert third == {"n": 1, "mean": 5.0, "std": 0.0, "min": 5.0, "max": 5.0, "not_finite": 1}
    assert columns.whole()["not_finite"] == 2


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


def test_answers_that_nothing_ran_for_are_counted_and_not_looked_at(tiny: Deployment) -> None:
    recorder = Recorder()
    recorder.answered(*answered(tiny, images(1), np.zeros((1, 10)), batch=0))
    (entry,) = recorder.snapshot()["models"]
    assert (entry["requests"], entry["rows_seen"], entry["rows_recorded"], entry["ran_s"]) == (1, 0, 0, 0.0)
    assert sum(entry["seconds"]) == 1


def test_classes_latencies_and_runs_are_counted(tiny: Deployment) -> None:
    recorder = Recorder()
    logits = np.zeros((4, 10))
    logits[[0, 1], 7], logits[2, 1], logits[3, 0] = 5.0, 5.0, np.nan
    recorder.answered(*answered(tiny, images(4), logits, ran_s=1.0, batch=8))
    for seconds in (0.010, 0.010, 2.0):
        model, request, caller, found, _ = answered(tiny, images(1), logits[:1], ran_s=1.0)
        recorder.answered(model, request, caller, found, seconds)
    (entry,) = recorder.snapshot()["models"]
    assert entry["predictions"] == [0, 1, 0, 0, 0, 0, 0, 5, 0, 0]  # the row that is no number has no class
    assert {place: n for place, n in enumerate(entry["seconds"]) if n} == {bin_of(1.0): 1, bin_of(0.010): 2, bin_of(2.0): 1}
    assert entry["ran_s"] == pytest.approx(1.0 * 4 / 8 + 3 * 1.0)  # a row has its share of its batch's run
    assert recorder.ran() == {Key("tiny", tiny.version, INT8): Ran(entry["ran_s"], 1, 4, 7)}


def test_failures_of_the_server_are_errors_and_mistakes_of_clients_are_not(tiny: Deployment) -> None:
    recorder = Recorder()
    failed, elsewhere = Refusal("no"), Refusal("no")
    elsewhere.variant = "fp32@onnxruntime"
    for asked, refusal in ((tiny, failed), (tiny, TooLate("late")), (tiny, Malformed("wrong")), (None, failed), (tiny, elsewhere)):
        recorder.refused(asked, Caller(), refusal, 0.1)
    found = {entry["variant"]: (entry["requests"], entry["errors"]) for entry in recorder.snapshot()["models"]}
    assert found == {INT8: (2, 2), "fp32@onnxruntime": (1, 1)}


def test_columns_of_a_table_are_looked_at_one_by_one(tiny: Deployment) -> None:
    class Table:
        name, version, reader, bundle = "table", "1", None, tiny.bundle
        inputs = (
            TensorInfo("x", (None, 3), "float32"),
            TensorInfo("words", (None, 3), "int64"),
            TensorInfo("wide", (None, 999), "float32"),
        )

    record = Record(Table())  # type: ignore[arg-type]
    rows = np.array([[1, 10, 100], [3, 30, 300]], np.float32)
    record.add({"x": rows, "words": rows.astype(np.int64), "wide": np.zeros((2, 999), np.float32)}, {}, 2)
    shown = record.shown()
    assert [column["mean"] for column in shown["columns"]["x"]] == [2.0, 20.0, 200.0]
    assert list(shown["columns"]) == ["x"]
    assert shown["inputs"]["x"]["mean"] == pytest.approx(rows.mean())
    assert shown["inputs"]["x"]["std"] == pytest.approx(rows.std())
    assert shown["inputs"]["words"]["n"] == 6


def test_replicas_add_up(tiny: Deployment) -> None:
    one, other, both = Recorder(), Recorder(), Recorder()
    for number in range(20):
        rng = np.random.default_rng(number)
        asked = answered(tiny, images(1, number), rng.normal(size=(1, 10)))
        (one if number % 3 else other).answered(*asked)
        both.answered(*asked)
    parts = [Snapshot.from_json(json.loads(json.dumps(each.snapshot())), at=0.0) for each in (one, other)]
    (first,), (second,) = (part.tallies.values() for part in parts)
    joined, (expected,) = first + second, Snapshot.from_json(both.snapshot(), at=0.0).tallies.values()
    assert joined.confidence == expected.confidence
    assert joined.predictions == expected.predictions
    assert sum(joined.predictions) == joined.recorded == expected.recorded == 20
    assert joined.seconds == expected.seconds
    assert joined.inputs[INPUT].to_json() == pytest.approx(expected.inputs[INPUT].to_json())


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
