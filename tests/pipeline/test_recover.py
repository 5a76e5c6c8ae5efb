"""When mixed precision is worth a try, and how its candidates are explained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lowbit.pipeline.judge import FAR
from lowbit.pipeline.recover import worth_recovering
from lowbit.types import Budget, Candidate, Comparison, Delta, MetricValue, Policy

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


def test_nothing_is_recovered_where_no_drop_is_allowed() -> None:
    assert worth_recovering([made("int8-static-mse", 0.001)], replace(POLICY, max_drop=Budget(0.0, relative=False))) is None
