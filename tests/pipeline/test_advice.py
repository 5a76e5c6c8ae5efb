from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lowbit.pipeline.advice import advise
from lowbit.types import Budget, Candidate, Comparison, Delta, MetricValue, Model, Policy, TensorInfo

LARGE = Model(
    Path("m.onnx"),
    "0" * 64,
    (TensorInfo("x", ("N", 3, 224, 224), "float32"),),
    (TensorInfo("logits", ("N", 10), "float32"),),
    25_000_000,
    100_000_000,
    17,
)
POLICY = Policy("classification", "top1", Budget.parse("1pp"))


def baseline(value):
    found = Comparison(MetricValue("top1", value, 100), MetricValue("top1", value, 100), Delta(0, 0, 0, 0.95, 100, "tango-score"), 1.0)
    return Candidate("baseline", "fp32", "onnxruntime", "fp32", confirm=found)


def test_a_large_good_classifier_needs_no_advice():
    assert advise(LARGE, baseline(0.8), POLICY) == ()
    assert advise(LARGE, None, POLICY, inference_ms=40, request_ms=60) == ()


def test_small_by_bytes_or_by_parameters():
    for small in (replace(LARGE, size_bytes=9_000_000), replace(LARGE, parameters=900_000)):
        (sentence,) = advise(small, baseline(0.8), POLICY)
        assert sentence.startswith("The model is small (")
    assert "(9 MB, 25,000,000 parameters)" in advise(replace(LARGE, size_bytes=9_000_000), None, POLICY)[0]


def test_safety_regression_bottleneck_and_edge_are_each_said():
    assert "Safety-critical" in advise(LARGE, None, replace(POLICY, safety_critical=True))[0]
    assert "Regression" in advise(LARGE, None, Policy("regression", "rmse", Budget.parse("1%")))[0]
    assert "10 ms of the 40 ms of a request (25 %)" in advise(LARGE, None, POLICY, inference_ms=10, request_ms=40)[0]
    assert "next to no room" in advise(LARGE, None, replace(POLICY, max_drop=Budget.parse("0.1pp")))[0]


def test_a_model_that_hardly_beats_guessing():
    assert "hardly more than guessing among 10 classes" in advise(LARGE, baseline(0.12), POLICY)[0]
    assert advise(LARGE, baseline(0.2), POLICY) == ()
