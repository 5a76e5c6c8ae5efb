"""Inputs and the mix of answers: an effect and evidence, both. Simulated, with fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic import KEY, counts, lower, normal

from lowbit.monitoring import shifts
from lowbit.monitoring.baseline import Baseline
from lowbit.monitoring.findings import Finding
from lowbit.monitoring.labels import Accuracy
from lowbit.monitoring.moments import Moments
from lowbit.monitoring.rules import Rules, evaluate
from lowbit.monitoring.sla import Sla
from lowbit.monitoring.tally import Tally
from lowbit.monitoring.windows import Window
from lowbit.types import Array


def mixed(rng: np.random.Generator, classes: int, n: int, m: int, moved: float = 0.0) -> Finding:
    """A window of n against a baseline of m, with so much of the mix moved to the first class."""
    usual = rng.dirichlet(np.full(classes, 2.0))
    now = (1 - moved) * usual
    now[0] += moved
    found = shifts.predictions(rng.multinomial(n, now), rng.multinomial(m, usual))
    assert found is not None
    return found


@pytest.mark.parametrize(("classes", "m"), [(2, 20_000), (10, 4_488), (10, 500), (1_000, 20_000), (1_000, 2_000)])
def test_a_mix_that_did_not_move_is_no_finding(classes: int, m: int) -> None:
    rng = np.random.default_rng(11)
    found = [mixed(rng, classes, 2_000, m) for _ in range(200)]
    assert not any(each.review for each in found)
    assert max(each.value for each in found) < 0.06, "chance is taken off, also with a thousand classes"


@pytest.mark.parametrize(("classes", "m"), [(2, 20_000), (10, 4_488), (1_000, 20_000)])
def test_answers_that_went_elsewhere_are_found(classes: int, m: int) -> None:
    """A fifth with ten classes; more where there are few that it can come from, or so many that chance is loud."""
    rng = np.random.default_rng(12)
    found = [mixed(rng, classes, 2_000, m, moved=0.2 if classes == 10 else 0.35) for _ in range(60)]
    assert np.mean([each.review for each in found]) > 0.8
    assert found[0].numbers["p"] < 1e-3


def test_a_small_change_is_significant_and_no_finding() -> None:
    """2 % moved: with two hundred thousand rows there is no doubt about it, and nobody needs to look."""
    found = mixed(np.random.default_rng(1), 10, 200_000, 200_000, moved=0.02)
    assert found.numbers["p"] < 1e-12
    assert not found.review


def test_the_test_of_homogeneity_has_its_size() -> None:
    """P is uniform where nothing moved: Pearson's statistic and its tail, checked against scipy's."""
    from scipy.stats import chi2_contingency

    rng = np.random.default_rng(5)
    usual, values = rng.dirichlet(np.full(8, 5.0)), []
    for _ in range(200):
        theirs, ours = rng.multinomial(3_000, usual), rng.multinomial(5_000, usual)
        found = shifts.predictions(theirs, ours)
        assert found is not None
        values.append(found.numbers["p"])
        assert found.numbers["p"] == pytest.approx(chi2_contingency(np.array([theirs, ours]), correction=False).pvalue, abs=0.004)
    assert np.mean(np.array(values) < 0.05) == pytest.approx(0.05, abs=0.04)


def test_classes_may_come_to_light_late() -> None:
    found = shifts.predictions((1_000, 1_000, 500), (4_000, 4_000))
    assert found is not None
    assert found.review
    assert found.numbers["classes"]["2"] == [0.0, 0.2]
    assert shifts.predictions((), (1,)) is None
    assert shifts.predictions((0, 0), (1, 1)) is None


def images(rng: np.random.Generator, rows: int, brightness: float = 0.0, spread: float = 1.0) -> Array:
    """Rows whose values hang together: each has a level of its own, as pictures do."""
    return spread * (rng.normal(0, 1, (rows, 1)) + rng.normal(0, 1, (rows, 16))) + brightness


def looked(now: Array, before: Array, rows: int = 2_000) -> Finding:
    found = shifts.inputs({"image": Moments.of(now)}, {"image": Moments.of(before)}, {}, {}, rows)
    assert found is not None
    return found


def test_inputs_that_did_not_move_are_no_finding() -> None:
    """Although the values within a row hang together, so that their number says little."""
    rng = np.random.default_rng(2)
    found = [looked(images(rng, 2_000), images(rng, 512)) for _ in range(60)]
    assert not any(each.review for each in found)
    assert max(each.value for each in found) < 0.8


@pytest.mark.parametrize(("brightness", "spread"), [(0.6, 1.0), (-0.6, 1.0), (0.0, 1.8), (0.0, 0.5)])
def test_inputs_that_moved_are_found(brightness: float, spread: float) -> None:
    rng = np.random.default_rng(3)
    found = [looked(images(rng, 2_000, brightness, spread), images(rng, 512)) for _ in range(30)]
    assert all(each.review for each in found)


def test_few_rows_are_no_finding_and_not_finite_is_one() -> None:
    rng = np.random.default_rng(4)
    assert not looked(images(rng, 100, 5.0), images(rng, 512), rows=100).review
    broken = images(rng, 2_000)
    broken[:10] = np.nan
    found = looked(broken, images(rng, 512))
    assert found.review
    assert "160 of its numbers are not finite" in found.text
    everything = looked(np.full((2_000, 4), np.nan), images(rng, 512))
    assert everything.review


def test_one_column_of_a_table_is_found_by_its_number() -> None:
    """Of the input as a whole nothing is seen: one of thirty columns moved."""
    rng = np.random.default_rng(6)
    before, now = rng.normal(size=(4_000, 30)), rng.normal(size=(2_000, 30))
    now[:, 7] += 1
    found = shifts.inputs(
        {"row": Moments.of(now)},
        {"row": Moments.of(before)},
        {"row": [Moments.of(column) for column in now.T]},
        {"row": [Moments.of(column) for column in before.T]},
        2_000,
    )
    assert found is not None
    assert found.review
    assert (found.numbers["worst"], found.numbers["n_over"]) == ("row[7]", 1)
    assert not looked(now, before).review


@settings(deadline=None)
@given(st.floats(-100, 100), st.integers(8, 100))
def test_a_constant_input_stays_one(value: float, n: int) -> None:
    same = np.full((n, 4), value)
    assert looked(same, same).value == 0
    assert looked(same + np.abs(value) * 1e-9, same).value < 1


def test_nothing_to_compare() -> None:
    assert shifts.inputs({}, {"a": Moments.of(np.ones(3))}, {}, {}, 10) is None


def window(tally: Tally) -> Window:
    return Window(KEY, 0.0, 100.0, tally)


def test_all_rules_of_a_window() -> None:
    """A drifted window: who speaks, who asks for a review, in which words."""
    rng = np.random.default_rng(8)
    now = Tally(
        requests=3_000,
        errors=9,
        rows=3_000,
        recorded=3_000,
        confidence=counts(lower(rng, 3_000) * 0.9),
        predictions=(2_400, 600),
        inputs={"x": Moments.of(rng.normal(1, 1, 9_000))},
        seconds=(0,) * 500 + (3_000,) + (0,) * 101,
    )
    usual = Tally(confidence=counts(normal(rng, 5_000)), predictions=(2_500, 2_500), inputs={"x": Moments.of(rng.normal(0, 1, 9_000))})
    found = evaluate(window(now), Baseline(usual, accuracy=0.94, accuracy_n=5_000), Rules(sla=Sla(0.1)), Accuracy.of(850, 1_000))
    by_kind = {each.kind: each for each in found}
    assert list(by_kind) == ["confidence", "low_tail", "predictions", "inputs", "accuracy", "latency", "errors"]
    assert [kind for kind, each in by_kind.items() if each.review] == ["confidence", "low_tail", "predictions", "inputs", "accuracy"]
    assert by_kind["confidence"].numbers["relative_mean"] == pytest.approx(-0.145, abs=0.01)
    assert by_kind["latency"].value == pytest.approx(100), "all are slow: the whole budget of 1 % a hundred times over"
    assert by_kind["errors"].value == pytest.approx(3)
    assert by_kind["accuracy"].value == pytest.approx(0.94 - 0.883, abs=0.002)
    assert evaluate(window(now), None) == ()


@pytest.mark.parametrize(("right", "n", "review"), [(90, 100, False), (850, 1_000, True), (930, 1_000, False), (9_200, 10_000, True)])
def test_labels_must_leave_no_doubt(right: int, n: int, review: bool) -> None:
    """The interval has to lie below what is allowed: 93 % with a bundle of 94 %."""
    (found,) = (
        each for each in evaluate(window(Tally()), Baseline(accuracy=0.94), accuracy=Accuracy.of(right, n)) if each.kind == "accuracy"
    )
    assert found.review == review


def test_looking_often_at_labels_alarms_nobody() -> None:
    """A healthy model, labels in hundreds, a day of looks each: one 95 % interval in a hundred lies too low, and none that is asked for."""
    right = np.random.default_rng(9).binomial(100, 0.94, 20_000)
    plain = [Accuracy.of(int(each), 100) for each in right]
    alarms = [
        finding.review
        for accuracy in set(plain)
        for finding in evaluate(window(Tally()), Baseline(accuracy=0.94), accuracy=accuracy)
        for _ in range(plain.count(accuracy))
    ]
    assert len(alarms) == 20_000
    assert np.mean([each is not None and each.high < 0.93 for each in plain]) > 0.005
    assert np.mean(alarms) < 5e-4


def test_a_learned_baseline_is_said_to_be_one() -> None:
    rng = np.random.default_rng(8)
    full = window(Tally(recorded=5_000, confidence=counts(normal(rng, 5_000))))
    learned = Baseline().with_learned(full)
    assert (learned.source, learned.learned, learned.tally.recorded) == ("deployment", ("confidence",), 5_000)
    assert learned.with_learned(full) is learned
    found = evaluate(full, learned)
    assert all("the first full window after deployment" in each.text for each in found)
    assert Baseline.from_json(learned.to_json()) == learned
