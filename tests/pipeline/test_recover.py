"""When mixed precision is worth a try, and how its candidates are explained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lowbit.compress.allocate import FLOAT, Boundary
from lowbit.compress.latency import LatencyTable, Layout
from lowbit.graph.groups import Group
from lowbit.measure.slices import HARDEST
from lowbit.pipeline.judge import FAR
from lowbit.pipeline.recover import explained, overrun, worth_recovering
from lowbit.types import Budget, Candidate, Comparison, Delta, MetricValue, Policy, SliceResult

POLICY = Policy("classification", "top1", Budget.parse("1pp"))


def made(recipe: str, drop: float | None, *, runtime: str = "openvino", precision: str = "int8", broken: str | None = None) -> Candidate:
    seen = None
    if drop is not None:
        delta = Delta(drop, drop - 0.002, drop + 0.002, 0.95, 1000, "tango-score")
        seen = Comparison(MetricValue("top1", 0.9 - drop, 1000), MetricValue("top1", 0.9, 1000), delta, 0.95, broken=broken)
    return Candidate(f"{recipe}@{runtime}", recipe, runtime, precision, search=seen)


def test_the_static_candidate_with_the_least_drop_is_taken() -> None:
    found = [made("int8-static-mse", 0.025), made("int8-fitted-mse", 0.02), made("int8-smoothed", 0.028), made("int8-dynamic", 0.012)]
    assert worth_recovering(found, POLICY) is found[1]
    assert worth_recovering(reversed(found), POLICY) is found[1]


@pytest.mark.parametrize("recipe", ["int8-static-mse", "int8-dynamic", "int8-nncf", "int8-mixed-1"])
def test_whatever_holds_the_budget_makes_it_needless(recipe: str) -> None:
    over = made("int8-fitted-mse", 0.02)
    assert worth_recovering([over, made(recipe, 0.01)], POLICY) is None
    assert worth_recovering([over, made(recipe, 0.0101)], POLICY) is not None


def test_what_is_too_far_off_is_not_tried() -> None:
    limit = FAR * POLICY.max_drop.value
    assert worth_recovering([made("int8-static-mse", limit)], POLICY) is not None
    assert worth_recovering([made("int8-static-mse", limit + 1e-6)], POLICY) is None


def test_broken_failed_dropped_and_unseen_candidates_do_not_count() -> None:
    good = made("int8-static-mse", 0.02)
    broken = made("int8-fitted-mse", 0.0, broken="NaN")
    failed = replace(made("int8-fitted-mse", 0.0, runtime="onnxruntime"), status="failed")
    dropped = replace(made("int8-smoothed", 0.0), status="dropped")
    unseen = made("int8-static-minmax", None)
    assert worth_recovering([broken, failed, dropped, unseen, good], POLICY) is good
    assert worth_recovering([broken, failed, dropped, unseen], POLICY) is None


def test_only_static_integers_are_taken_apart() -> None:
    others = [made("int8-dynamic", 0.02), made("int8-nncf", 0.015), made("int8-mixed-2", 0.012), made("fp16", 0.02, precision="fp16")]
    assert worth_recovering(others, POLICY) is None
    assert worth_recovering([], POLICY) is None


def test_floating_point_within_the_budget_is_no_reason_to_stop() -> None:
    base = made("int8-static-mse", 0.02)
    assert worth_recovering([made("fp16", 0.0, precision="fp16"), base], POLICY) is base


def with_evidence(candidate: Candidate, **more: object) -> Candidate:
    assert candidate.search is not None
    return replace(candidate, search=replace(candidate.search, **more))  # type: ignore[arg-type]


def delta(value: float, low: float) -> Delta:
    return Delta(value, low, 2 * value - low, 0.95, 1000, "tango-score")


def test_a_broken_guard_or_slice_is_worth_recovering() -> None:
    """The metric holds; the false-positive rate or a slice does not."""
    good = made("int8-fitted-mse", 0.002)
    guarded = with_evidence(good, guards={"false_positive_rate": delta(0.02, 0.0)})
    sliced = with_evidence(good, slices=(SliceResult("night", 100, 0.9, 0.85, delta(0.05, 0.015)),))
    worse = made("int8-static-mse", 0.025)
    assert worth_recovering([guarded], POLICY) is guarded
    assert worth_recovering([sliced, worse], POLICY) is sliced
    assert worth_recovering([guarded, sliced, good], POLICY) is None
    assert worth_recovering([guarded], replace(POLICY, max_fpr_rise=0.02)) is None
    assert worth_recovering([guarded], replace(POLICY, max_fpr_rise=0.006)) is None  # more than three times its limit


def test_the_overrun_is_the_worst_of_all_limits() -> None:
    search = made("int8-fitted-mse", 0.005).search
    assert search is not None
    assert overrun(search, POLICY) == pytest.approx(0.5)
    assert overrun(replace(search, guards={"false_positive_rate": delta(0.018, 0.0)}), POLICY) == pytest.approx(1.8)
    night, hard = (SliceResult(name, 100, 0.9, 0.8, delta(0.1, 0.024)) for name in ("night", HARDEST))
    assert overrun(replace(search, slices=(night, hard)), POLICY) == pytest.approx(2.4)
    assert overrun(replace(search, slices=(hard,)), POLICY) == pytest.approx(0.8)
    nothing = replace(POLICY, max_drop=Budget(0.0, relative=False))
    assert overrun(search, nothing) == float("inf")
    assert overrun(replace(search, delta=delta(-0.01, -0.02)), nothing) == 0


def test_an_explanation_names_what_stays_and_its_price() -> None:
    groups = Layout(tuple(Group(name, "Conv", (name,), {0: "x"}, 1, None, f"{name}_out") for name in "abcd"), (("a", "b"),), frozenset())
    seconds = {(name, form): 1.0 if form == "w8a8" else 1.5 for name in "abcd" for form in ("w8a8", FLOAT)}
    times = LatencyTable(seconds, 0.0, (Boundary("a", "b", 0.5),), 1.0)
    whole = dict.fromkeys("abcd", "w8a8")
    said = explained({**whole, "b": FLOAT}, groups, times)
    assert said == "1 of 4 products stay in floating point (b); predicted to take 20% more time than all integers."
    assert "(a, b, c and 1 more); predicted to take 40% more time than all integers." in explained(
        dict.fromkeys("abcd", FLOAT), groups, times
    )
    quick = replace(times, seconds={**seconds, ("d", FLOAT): 0.5})
    assert explained({**whole, "d": FLOAT}, groups, quick).endswith("(d); predicted to take 10% less time than all integers.")
    assert explained(whole, groups, times) == "All 4 products are integers: the fastest choice by measured group times."


def test_nothing_is_recovered_where_no_drop_is_allowed() -> None:
    assert worth_recovering([made("int8-static-mse", 0.001)], replace(POLICY, max_drop=Budget(0.0, relative=False))) is None
