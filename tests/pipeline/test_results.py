"""Results of `validate` on disk, and the verdict of `compare` beside the gate's own."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import DataError, UsageError
from lowbit.measure.outcomes import Outcomes
from lowbit.pipeline import results
from lowbit.pipeline.judge import judge
from lowbit.pipeline.request import Options
from lowbit.pipeline.results import Scored
from lowbit.types import (
    Budget,
    Candidate,
    Comparison,
    Delta,
    Latency,
    Measurement,
    MetricValue,
    Policy,
    Ratio,
    SliceResult,
    TensorInfo,
    Tuning,
)

N = 400
RIGHT = np.arange(N) % 10 > 0


def scored(hit: Any = RIGHT, slices: Any = None, **more: Any) -> Scored:
    """A classifier of three classes, right where `hit` says so."""
    label = np.arange(N) % 3
    columns = {
        "finite": np.ones(N, bool),
        "width": np.full(N, 3),
        "fingerprint": np.arange(N) * 0.5,
        "label": label,
        "predicted": np.where(hit, label, (label + 1) % 3),
        "hit": np.asarray(hit, bool),
        "confidence": np.linspace(0.4, 1, N),
        "margin": np.linspace(0.1, 1, N),
    }
    outputs = (TensorInfo("logits", ("N", 3), "float32"),)
    made = Scored("m.onnx", "0" * 64, "onnxruntime", "classification", "top1", float(np.mean(hit)), N, {}, "f", outputs, Outcomes(columns))
    return replace(made, slices={} if slices is None else slices, **more)


def strict(text: str) -> Any:
    """JSON by the letter: NaN and Infinity are refused."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_saved_comes_back_with_its_slices(tmp_path: Path) -> None:
    site = np.where(np.arange(N) % 2 == 0, "north", "süd")
    results.save(scored(slices={"site": site, "file": np.arange(N) % 4}), tmp_path / "val.json")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["val.json", "val.samples.npz"]
    found = results.load(tmp_path / "val.json")
    assert (found.value, found.n, found.outputs) == (0.9, N, scored().outputs)
    assert set(found.outcomes.columns) == set(scored().outcomes.columns)
    assert np.array_equal(found.slices["site"], site)
    by_name = {entry["name"]: entry for entry in strict((tmp_path / "val.json").read_text())["slices"]}
    assert set(by_name) == {"site=north", "site=süd", "file=0", "file=1", "file=2", "file=3"}
    assert by_name["site=north"] == {"name": "site=north", "value": 0.8, "n": 200}  # every tenth is wrong: 0, 10, 20, …


def test_damage_in_a_slice_column_is_seen_by_compare(tmp_path: Path) -> None:
    night = np.where(np.arange(N) >= 360, "night", "day")
    hurt = RIGHT & ~((np.arange(N) >= 360) & (np.arange(N) % 2 == 1))
    for name, hit, slices in (("a", RIGHT, {"light": night}), ("b", hurt, {})):
        results.save(scored(hit, slices), tmp_path / f"{name}.json")
    first, second = (results.load(tmp_path / f"{name}.json") for name in "ab")
    found, _, verdict = results.compare_results(first, second, Options(max_drop="20pp"))
    piece = next(piece for piece in found.slices if piece.name == "light=night")
    assert (piece.n, piece.delta.worse) == (40, 20)
    assert verdict == "provisional"
    assert results.compare_results(replace(first, slices={}), second, Options(max_drop="20pp"))[2] == "ship"


def test_undefined_metrics_are_null(tmp_path: Path) -> None:
    results.save(scored(value=math.nan, secondary={"roc_auc": math.nan, "macro_f1": 0.5}), tmp_path / "val.json")
    raw = strict((tmp_path / "val.json").read_text())
    assert raw["metric"]["value"] is None
    assert raw["secondary"] == {"roc_auc": None, "macro_f1": 0.5}
    found = results.load(tmp_path / "val.json")
    assert math.isnan(found.value)
    assert math.isnan(found.secondary["roc_auc"])
    comparison = Comparison(MetricValue("top1", math.nan, 0), MetricValue("top1", 0.5, 0), DELTA, math.inf)
    written = results.comparison_json(comparison, policy(), "refuse")
    assert strict(json.dumps(written))["comparison"]["metric"]["value"] is None
    assert written["comparison"]["agreement"] is None


@pytest.mark.parametrize("taken", ["val.json", "val.samples.npz"])
@pytest.mark.parametrize("kind", ["text", "json", "npz", "folder"])
def test_what_is_no_results_file_is_not_overwritten(tmp_path: Path, taken: str, kind: str) -> None:
    target = tmp_path / taken
    if kind == "folder":
        target.mkdir()
    elif kind == "npz":
        with target.open("wb") as file:
            np.savez(file, images=np.zeros(3), labels=np.zeros(3))
    else:
        target.write_text("notes" if kind == "text" else '{"schema": 1}')
    before = None if kind == "folder" else target.read_bytes()
    with pytest.raises(UsageError, match="was not written by `lowbit validate`"):
        results.save(scored(), tmp_path / "val.json")
    assert target.is_dir() if before is None else target.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [taken]


def test_results_may_be_written_again(tmp_path: Path) -> None:
    for hit in (RIGHT, ~RIGHT):
        results.save(scored(hit), tmp_path / "val.json")
    assert results.load(tmp_path / "val.json").value == pytest.approx(0.1)


def test_samples_of_other_results_are_noticed(tmp_path: Path) -> None:
    results.save(scored(), tmp_path / "a.json")
    results.save(scored(~RIGHT), tmp_path / "b.json")
    (tmp_path / "b.samples.npz").replace(tmp_path / "a.samples.npz")
    with pytest.raises(DataError, match="belongs to other results"):
        results.load(tmp_path / "a.json")


def test_pairs_are_read_back_as_pairs() -> None:
    n = 8
    columns = {
        "finite": np.ones(n, bool),
        "pair": np.array([0, 1, 2, 3, 0, 1, 2, 3.0]),
        "label": np.array([0.1, 0.2, 0.3, 0.4] * 2),
        "vector": np.random.default_rng(0).normal(size=(n, 4)),
    }
    outputs = (TensorInfo("embedding", ("N", 4), "float32"),)
    made = Scored("m.onnx", "0" * 64, "onnxruntime", "embedding", "spearman", 0.5, n, {}, "f", outputs, Outcomes(columns))
    assert np.isfinite(results.metric_of(made).value(columns))


# ── the verdict and the gate ────────────────────────────────────────────────────────────────────────────────────────

DELTA = Delta(0.0, -0.001, 0.001, 0.95, N, "tango-score")
EDGES = st.sampled_from([-0.01, 0.0, 0.002, 0.00201, 0.005, 0.01, 0.010001, 0.02, 0.03, 0.030001, 0.05, 1.0])


def policy(drop: str = "1pp", **more: Any) -> Policy:
    return Policy("classification", "top1", Budget.parse(drop), batch=(1,), **more)


@st.composite
def deltas(draw: Any) -> Delta:
    low, value, high = sorted([draw(EDGES), draw(EDGES), draw(EDGES)])
    return Delta(value, low, high, 0.95, N, "tango-score")


@st.composite
def comparisons(draw: Any) -> Comparison:
    value = MetricValue("top1", 0.9, N)
    guards = draw(st.sampled_from([{}, {"false_positive_rate": draw(deltas())}]))
    names = draw(st.lists(st.sampled_from(["hardest tenth", "light=night", "class 1"]), unique=True))
    slices = tuple(SliceResult(name, 40, 0.9, 0.9, draw(deltas())) for name in names)
    broken = draw(st.sampled_from([None, None, None, "the same output for every sample"]))
    return Comparison(value, value, draw(deltas()), 0.99, guards=guards, slices=slices, broken=broken)


@given(comparisons(), st.sampled_from(["1pp", "1%"]), st.sampled_from([(None, None), (0.5, None), (0.5, 0.002), (0.5, 0.0)]))
def test_compare_says_what_the_gate_says_of_a_fast_confirmed_candidate(found: Comparison, drop: str, rates: Any) -> None:
    asked = policy(drop, threshold=rates[0], max_fpr_rise=rates[1])
    latency = Latency(1.0, 1.1, 1.2, 1.0, 1.0)
    timed = Measurement(1, 1, latency, 1000.0, Ratio(3.0, 2.9, 3.1), None, 15, False, Tuning())
    candidate = Candidate("int8@x", "int8", "x", "int8", search=found, confirm=found, measurements=(timed,), size_bytes=1)
    assert results.verdict(found, asked) == judge(candidate, asked, 1).verdict


def test_a_threshold_alone_holds_the_rise_to_the_budgets_number() -> None:
    def rising(value: float, high: float) -> Comparison:
        guard = Delta(value, 0.0, high, 0.95, N, "tango-score")
        return Comparison(MetricValue("top1", 0.9, N), MetricValue("top1", 0.9, N), DELTA, 1.0, guards={"false_positive_rate": guard})

    for drop in ("1pp", "1%"):
        asked = policy(drop, threshold=0.5)
        assert results.verdict(rising(0.009, 0.01), asked) == "ship"
        assert results.verdict(rising(0.009, 0.011), asked) == "provisional"
        assert results.verdict(rising(0.011, 0.02), asked) == "recover"
