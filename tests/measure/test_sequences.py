"""Metrics of tokens and answers, against counting by hand and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from lowbit.data import Preprocess
from lowbit.data.text import Text
from lowbit.errors import DataError, UsageError
from lowbit.measure.compare import compare
from lowbit.measure.metrics import metric_for
from lowbit.measure.outcomes import Outcomes
from lowbit.measure.sequences import best_spans
from lowbit.types import Budget, Policy, TensorInfo

TAGS = (TensorInfo("logits", ("N", "T", 4), "float32"),)
SPANS = (TensorInfo("start_logits", ("N", "T"), "float32"), TensorInfo("end_logits", ("N", "T"), "float32"))
STEPS = Preprocess(kind="text", text=Text("{}", form="words", labels=("B", "I", "O", "X")))


def tagged(n: int = 40, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, (n, 7))
    labels[generator.random((n, 7)) < 0.3] = -100
    return {"logits": generator.normal(size=(n, 7, 4)).astype(np.float32)}, labels


def test_token_f1_and_accuracy_are_scikit_learns_without_the_outside_class() -> None:
    outputs, labels = tagged()
    task, metric, others = metric_for("tokens", None, TAGS, labels, preprocess=STEPS)
    assert (task, metric.name, [other.name for other in others]) == ("tokens", "token_f1", ["token_accuracy"])
    columns = metric.observe(outputs, labels, None)
    counted = labels != -100
    truth, predicted = labels[counted], outputs["logits"].argmax(-1)[counted]
    assert metric.value(columns) == pytest.approx(f1_score(truth, predicted, labels=[0, 1, 3], average="micro"))
    assert others[0].value(columns) == pytest.approx(accuracy_score(truth, predicted))


def test_a_candidate_is_compared_token_by_token() -> None:
    outputs, labels = tagged()
    _, metric, _ = metric_for("tokens", None, TAGS, labels, preprocess=STEPS)
    other = {"logits": outputs["logits"].copy()}
    row, position = (int(found[0]) for found in np.nonzero(labels != -100))
    other["logits"][row, position] = -other["logits"][row, position]
    policy = Policy("tokens", "token_f1", Budget.parse("5pp"))
    base, changed = (Outcomes(metric.observe(one, labels, outputs)) for one in (outputs, other))
    found = compare(metric, base, changed, policy)
    assert found.agreement == pytest.approx(1 - 1 / (labels != -100).sum())
    assert compare(metric, base, base, policy).delta.value == 0
    assert found.broken is None


def test_nan_is_a_miss_and_broken() -> None:
    outputs, labels = tagged()
    _, metric, _ = metric_for("tokens", None, TAGS, labels, preprocess=STEPS)
    bad = {"logits": np.where(np.arange(40)[:, None, None] == 3, np.nan, outputs["logits"])}
    policy = Policy("tokens", "token_f1", Budget.parse("5pp"))
    found = compare(metric, *(Outcomes(metric.observe(one, labels, outputs)) for one in (outputs, bad)), policy)
    assert found.broken == "NaN or infinity in the output for 1 of 40 samples"


def test_answers_count_when_both_ends_are_right() -> None:
    start, end = np.full((3, 6), -1.0), np.full((3, 6), -1.0)
    for row, (first, last) in enumerate([(1, 3), (2, 2), (4, 5)]):
        start[row, first], end[row, last] = 2, 2
    labels = np.array([[1, 3], [2, 3], [0, 1]])
    task, metric, others = metric_for("span", None, SPANS, labels)
    assert (task, metric.name, metric.binary) == ("span", "exact_match", True)
    columns = metric.observe({"start_logits": start, "end_logits": end}, labels, None)
    assert metric.value(columns) == pytest.approx(1 / 3)
    assert others[0].name == "span_f1"
    assert others[0].value(columns) == pytest.approx((1 + 2 / 3 + 0) / 3)


@given(st.integers(0, 10_000))
def test_the_best_span_is_the_best_of_all(seed: int) -> None:
    generator = np.random.default_rng(seed)
    start, end = generator.normal(size=(4, 9)), generator.normal(size=(4, 9))
    for row, (first, last) in enumerate(best_spans(start, end)):
        scores = {(i, j): start[row, i] + end[row, j] for i in range(9) for j in range(i, 9)}
        assert (first, last) == max(scores, key=lambda pair: scores[pair])


def test_outputs_and_labels_of_another_task_are_refused() -> None:
    outputs, labels = tagged()
    with pytest.raises(UsageError, match=r"needs an output \[N, tokens, classes\]"):
        metric_for("tokens", None, SPANS, labels)
    with pytest.raises(UsageError, match="two outputs"):
        metric_for("span", None, TAGS, labels)
    with pytest.raises(DataError, match="needs labels of tokens"):
        metric_for("tokens", None, TAGS, None)
    with pytest.raises(UsageError, match="Unknown metric for span 'top1'"):
        metric_for("span", "top1", SPANS, labels)
    _, metric, _ = metric_for("tokens", None, TAGS, labels, preprocess=STEPS)
    with pytest.raises(DataError, match=r"The labels are \[40, 5\], the model's tokens \[40, 7\]"):
        metric.observe(outputs, labels[:, :5], None)
