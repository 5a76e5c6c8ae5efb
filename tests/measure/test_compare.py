from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from lowbit.errors import DataError, UsageError
from lowbit.measure.compare import compare
from lowbit.measure.intervals import tango
from lowbit.measure.metrics import metric_for
from lowbit.measure.outcomes import Outcomes
from lowbit.measure.slices import HARDEST, slice_rows
from lowbit.types import Budget, Policy, TensorInfo

LOGITS = [TensorInfo("logits", ("N", 4), "float32")]


def policy(drop="1pp", **more):
    return Policy("classification", "top1", Budget.parse(drop), **more)


def logits_of(labels, n_classes=4, sharp=6.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(labels), n_classes))
    logits[np.arange(len(labels)), labels] += sharp
    return logits


@pytest.fixture
def classified():
    labels = np.random.default_rng(1).integers(0, 4, 4000)
    _, metric, _ = metric_for(None, None, LOGITS, labels)
    logits = logits_of(labels, sharp=3.0)

    def run(values, reference=logits):
        return Outcomes.join([metric.observe({"logits": values}, labels, {"logits": reference})])

    return metric, labels, logits, run


def spoil(logits, rows):
    """The answer for some rows moves to the class after the one it was."""
    spoiled = logits.copy()
    spoiled[rows] = np.roll(logits[rows], 1, axis=1)
    return spoiled


def test_delta_flips_and_interval_are_tangos(classified):
    metric, labels, logits, run = classified
    right = np.flatnonzero(logits.argmax(axis=1) == labels)
    found = compare(metric, run(logits), run(spoil(logits, right[:40])), policy(), hardest=False)
    delta = found.delta
    assert (delta.worse, delta.better, delta.n, delta.method, delta.relative) == (40, 0, 4000, "tango-score", False)
    assert delta.value == pytest.approx(0.01)
    assert (delta.ci_low, delta.ci_high) == tango(40, 0, 4000, 1 - 0.95)
    assert found.agreement == pytest.approx(0.99)
    assert found.baseline.value - found.metric.value == pytest.approx(0.01)
    assert found.broken is None
    assert sum(found.histogram) == sum(found.baseline_histogram) == 4000
    assert len(found.histogram) == 256
    back = compare(metric, run(spoil(logits, right[:40])), run(logits), policy(), hardest=False)
    assert (back.delta.value, back.delta.worse, back.delta.better) == (pytest.approx(-0.01), 0, 40)


def test_relative_budget_divides_by_the_baseline(classified):
    metric, labels, logits, run = classified
    right = np.flatnonzero(logits.argmax(axis=1) == labels)
    found = compare(metric, run(logits), run(spoil(logits, right[:40])), policy("1%"))
    assert found.delta.relative
    assert found.delta.value == pytest.approx(0.01 / found.baseline.value)
    assert found.delta.ci_high == pytest.approx(tango(40, 0, 4000)[1] / found.baseline.value)


def test_alpha_share_widens_the_interval(classified):
    metric, _, logits, run = classified
    candidate = run(spoil(logits, np.arange(40)))
    whole, third = (compare(metric, run(logits), candidate, policy(), alpha_share=share, hardest=False).delta for share in (1, 1 / 3))
    assert third.confidence == pytest.approx(1 - 0.05 / 3)
    assert third.ci_low < whole.ci_low
    assert third.ci_high > whole.ci_high


def test_metrics_where_less_is_better_and_the_bootstrap():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=2000)
    _, metric, _ = metric_for(None, "rmse", [TensorInfo("y", ("N", 1), "float32")], labels)
    base = labels + rng.normal(size=2000)

    def run(values):
        return Outcomes.join([metric.observe({"y": values[:, None]}, labels, {"y": base[:, None]})])

    asked = Policy("regression", "rmse", Budget.parse("1%"))
    worse = compare(metric, run(base), run(labels + 1.05 * (base - labels)), asked)
    assert worse.delta.value == pytest.approx(0.05)
    assert (worse.delta.method, worse.delta.relative, worse.delta.worse) == ("paired-bootstrap", True, None)
    assert (worse.delta.ci_low, worse.delta.ci_high) == pytest.approx((0.05, 0.05), abs=1e-6)  # errors scale: no spread in pairs
    noisy = compare(metric, run(base), run(base + 0.2 * rng.normal(size=2000)), asked)
    assert noisy.delta.ci_low < noisy.delta.value < noisy.delta.ci_high
    assert noisy.delta.value == pytest.approx(np.sqrt(1.04) - 1, abs=0.02)
    # The interval of paired errors is far narrower than that of two unpaired RMSEs (2.2 % each at n = 2,000).
    assert noisy.delta.ci_high - noisy.delta.ci_low < 0.04
    assert compare(metric, run(base), run(base + 0.2), asked).delta == compare(metric, run(base), run(base + 0.2), asked).delta
    with pytest.raises(UsageError, match="Use 1%"):
        compare(metric, run(base), run(base), Policy("regression", "rmse", Budget.parse("1pp")))


def test_macro_f1_without_flips_keeps_a_width(classified):
    _, labels, logits, _ = classified
    _, metric, _ = metric_for(None, "macro_f1", LOGITS, labels)
    outcomes = Outcomes.join([metric.observe({"logits": logits[:100]}, labels[:100], None)])
    found = compare(metric, outcomes, outcomes, policy(), hardest=False)
    assert found.delta.value == 0
    assert found.delta.ci_high == pytest.approx(tango(0, 0, 100)[1])


def test_secondary_metrics_of_both(classified):
    metric, _, logits, run = classified
    found = compare(metric, run(logits), run(spoil(logits, np.arange(400))), policy(), hardest=False)
    assert set(found.secondary) == set(found.baseline_secondary) == {"macro_f1", "kl"}
    assert found.secondary["macro_f1"] < found.baseline_secondary["macro_f1"]
    assert found.baseline_secondary["kl"] == 0
    assert found.secondary["kl"] > 0


def test_damage_hidden_in_a_slice_is_found_and_an_unharmed_slice_is_not_blamed(classified):
    metric, labels, logits, run = classified
    camera = np.where(np.arange(4000) % 20 == 0, "night", "day")
    right = np.flatnonzero((logits.argmax(axis=1) == labels) & (camera == "night"))
    found = compare(metric, run(logits), run(spoil(logits, right[:20])), policy(), slices={"camera": camera})
    by_name = {piece.name: piece for piece in found.slices}
    assert set(by_name) == {"camera=day", "camera=night", "class 0", "class 1", "class 2", "class 3", HARDEST}
    night = by_name["camera=night"]
    assert (night.n, night.delta.worse) == (200, 20)
    assert night.delta.value == pytest.approx(0.1)
    assert night.delta.ci_low > 0.01
    assert by_name["camera=day"].delta.value == 0
    assert by_name["camera=day"].delta.confidence > 0.99  # shares the error rate with six others
    assert found.delta.value < 0.01


def test_class_slices_are_recalls(classified):
    metric, labels, logits, run = classified
    hits = np.flatnonzero((labels == 2) & (logits.argmax(axis=1) == 2))
    found = compare(metric, run(logits), run(spoil(logits, hits[:50])), policy())
    two = next(piece for piece in found.slices if piece.name == "class 2")
    assert two.n == (labels == 2).sum()
    assert two.baseline == pytest.approx(len(hits) / two.n)
    assert two.delta.worse == 50


def test_hardest_tenth_is_the_baselines_smallest_lead(classified):
    metric, _, logits, run = classified
    powers = np.exp(logits)
    top = np.sort(powers / powers.sum(axis=1, keepdims=True), axis=1)
    lead = top[:, -1] - top[:, -2]
    hard = np.argsort(lead)[:400]
    found = compare(metric, run(logits), run(spoil(logits, hard)), policy())
    piece = next(piece for piece in found.slices if piece.name == HARDEST)
    assert piece.n == 400
    assert piece.delta.worse + piece.delta.better == found.delta.worse + found.delta.better


def right(outputs, labels):
    """1 where the answer is right, the commonest score of one's own."""
    return (outputs["logits"].argmax(axis=1) == labels).astype(float)


def test_own_scores_of_zero_and_one_leave_it_to_the_lead_what_is_hard(classified):
    _, labels, logits, _ = classified
    _, metric, _ = metric_for("custom", f"{__name__}:right", LOGITS, labels)
    run = lambda values: Outcomes.join([metric.observe({"logits": values}, labels, {"logits": logits})])  # noqa: E731
    powers = np.exp(logits)
    top = np.sort(powers / powers.sum(axis=1, keepdims=True), axis=1)
    hard = np.argsort(top[:, -1] - top[:, -2])[:400]
    hurt = hard[logits[hard].argmax(axis=1) == labels[hard]]
    found = compare(metric, run(logits), run(spoil(logits, hurt)), policy())
    piece = next(piece for piece in found.slices if piece.name == HARDEST)
    assert (piece.n, piece.delta.worse, piece.delta.better) == (400, len(hurt), 0)  # by the score alone it could only gain
    assert len(hurt) > 50


def test_own_scores_rank_the_samples_unless_a_tenth_has_the_lowest():
    scores = np.linspace(0.2, 0.9, 100)
    assert slice_rows({"custom": scores}, {}, True)[HARDEST].tolist() == list(range(10))
    assert slice_rows({"custom": np.maximum(scores, 0.4), "margin": -scores}, {}, True)[HARDEST].tolist() == list(range(90, 100))
    assert slice_rows({"custom": np.maximum(scores, 0.4)}, {}, True) == {}


def test_equally_hard_samples_are_taken_in_their_order():
    margin = np.where(np.arange(200) % 2 == 0, 0.1, 0.9)
    assert slice_rows({"margin": margin}, {}, True)[HARDEST].tolist() == list(range(0, 40, 2))


def test_false_positive_rate_at_a_threshold_on_negatives_only():
    labels = np.array([0] * 900 + [1] * 100)
    score = np.concatenate([np.linspace(0, 0.89, 900), np.linspace(0.5, 1, 100)])
    _, metric, _ = metric_for(None, None, [TensorInfo("p", ("N", 1), "float32")], labels)

    def run(values):
        return Outcomes.join([metric.observe({"p": values[:, None]}, labels, {"p": score[:, None]})])

    shifted = np.minimum(score + 0.01, 1)
    found = compare(metric, run(score), run(shifted), policy(threshold=0.8), hardest=False)
    guard = found.guards["false_positive_rate"]
    before, after = (score[:900] >= 0.8).sum(), (shifted[:900] >= 0.8).sum()
    assert (guard.n, guard.worse, guard.better) == (900, after - before, 0)
    assert guard.value == pytest.approx((after - before) / 900)
    assert (guard.ci_low, guard.ci_high) == pytest.approx(tango(after - before, 0, 900))
    assert found.secondary["false_positive_rate"] == pytest.approx(after / 900)
    assert found.baseline_secondary["false_positive_rate"] == pytest.approx(before / 900)


def test_threshold_without_a_single_score_is_refused(classified):
    metric, _, logits, run = classified
    with pytest.raises(UsageError, match="yes/no"):
        compare(metric, run(logits), run(logits), policy(threshold=0.5))


def test_confidence_shift_needs_size_and_samples(classified):
    metric, _, logits, run = classified
    baseline = run(logits)
    softer = compare(metric, baseline, run(logits * 0.6), policy(), hardest=False).confidence_shift
    assert softer.relative_mean < -0.05
    assert softer.ks > 0.05
    assert softer.low_tail > 0.05
    assert softer.review
    same = compare(metric, baseline, run(logits * 0.999), policy(), hardest=False).confidence_shift
    assert not same.review
    assert same.low_tail == pytest.approx(0.05, abs=0.002)
    few = np.arange(500)
    small = compare(metric, baseline.take(few), run(logits * 0.6).take(few), policy(), hardest=False).confidence_shift
    assert small.ks > 0.05
    assert not small.review


def test_ks_is_the_two_sample_distance(classified):
    from scipy.stats import ks_2samp

    metric, _, logits, run = classified
    ours, theirs = run(logits), run(logits * 0.9)
    expected = ks_2samp(ours.columns["confidence"], theirs.columns["confidence"]).statistic
    assert compare(metric, ours, theirs, policy(), hardest=False).confidence_shift.ks == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: np.where(np.arange(len(x))[:, None] == 5, np.nan, x), "NaN or infinity in the output for 1 of 4,000"),
        (lambda x: np.full_like(x, np.inf), "4,000 of 4,000"),
        (lambda x: np.tile(x[:1], (len(x), 1)), "the same output for every sample"),
        (lambda x: x[:, :3], "3 numbers per sample in the output instead of 4"),
    ],
)
def test_broken_outputs_are_called_so_and_leave_finite_numbers(classified, change, words):
    metric, _, logits, run = classified
    found = compare(metric, run(logits), run(change(logits)), policy())
    assert found.broken is not None
    assert words in found.broken
    json.dumps(asdict(found), allow_nan=False)


def test_a_broken_baseline_is_seen_against_itself(classified):
    metric, _, logits, run = classified
    constant = run(np.tile(logits[:1], (4000, 1)))
    assert compare(metric, constant, constant, policy()).broken == "the same output for every sample"


def test_different_samples_are_refused(classified):
    metric, labels, logits, run = classified
    with pytest.raises(DataError, match="4,000 and 100 samples"):
        compare(metric, run(logits), run(logits).take(np.arange(100)), policy())
    other = Outcomes(dict(run(logits).columns) | {"label": (labels + 1) % 4})
    with pytest.raises(DataError, match="labels differ"):
        compare(metric, run(logits), other, policy())


def test_fidelity_without_labels(classified):
    _, _, logits, _ = classified
    _, metric, _ = metric_for(None, None, LOGITS, None)
    ours = Outcomes.join([metric.observe({"logits": logits}, None, {"logits": logits})])
    theirs = Outcomes.join([metric.observe({"logits": spoil(logits, np.arange(20))}, None, {"logits": logits})])
    found = compare(metric, ours, theirs, Policy("fidelity", "agreement", Budget.parse("1pp")))
    assert (found.baseline.value, found.metric.value) == (1.0, pytest.approx(0.995))
    assert (found.delta.worse, found.delta.better) == (20, 0)
    assert [piece.name for piece in found.slices] == [HARDEST]


def test_custom_scores_of_any_scale(classified, tmp_path, monkeypatch):
    (tmp_path / "scaled_score.py").write_text("def points(outputs, labels):\n    return 100.0 * (outputs['logits'].argmax(1) == labels)\n")
    monkeypatch.chdir(tmp_path)
    _, labels, logits, _ = classified
    _, metric, _ = metric_for(None, "scaled_score:points", LOGITS, labels)

    def run(values):
        return Outcomes.join([metric.observe({"logits": values}, labels, {"logits": logits})])

    candidate = run(spoil(logits, np.arange(30)))
    found = compare(metric, run(logits), candidate, Policy("custom", metric.name, Budget.parse("1%")))
    assert found.delta.value == pytest.approx((found.baseline.value - found.metric.value) / found.baseline.value)
    assert found.agreement == pytest.approx(1 - 30 / 4000)
    with pytest.raises(UsageError, match="needs scores in 0-1"):
        compare(metric, run(logits), candidate, Policy("custom", metric.name, Budget.parse("1pp")))
