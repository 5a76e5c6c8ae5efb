from __future__ import annotations

import random

from lowbit.pipeline.finalists import select_finalists
from lowbit.types import Budget, Candidate, Comparison, Delta, Latency, Measurement, MetricValue, Policy, Ratio, Tuning

POLICY = Policy("classification", "top1", Budget.parse("1pp"), batch=(1,))


def candidate(name, value=0.0, speedup=3.0, half=0.004, precision="int8", size=25, **more):
    ratio = Ratio(speedup, speedup * 0.97, speedup * 1.03)
    latency = Latency(10 / speedup, 12 / speedup, 14 / speedup, 10 / speedup, 10 / speedup)
    found = {
        "search": Comparison(
            MetricValue("top1", 0.9 - value, 1000),
            MetricValue("top1", 0.9, 1000),
            Delta(value, value - half, value + half, 0.95, 1000, "tango-score"),
            0.99,
        ),
        "measurements": (Measurement(1, 1, latency, 100 * speedup, ratio, None, 5, False, Tuning()),),
        "size_bytes": size,
    } | more
    recipe, _, runtime = name.partition("@")
    return Candidate(name, recipe, runtime, precision, **found)


def test_the_fastest_the_safest_and_the_fastest_comfortable_one():
    field = [
        candidate("risky@x", 0.008, speedup=4.0),
        candidate("comfortable@x", 0.003, speedup=3.0),
        candidate("slowish@x", 0.003, speedup=2.0),
        candidate("bf16@x", 0.0, speedup=1.8, half=0.001, precision="bf16", size=50),
    ]
    assert select_finalists(field, POLICY) == ("risky@x", "bf16@x", "comfortable@x")


def test_another_recipe_goes_before_the_same_recipe_on_another_runtime():
    field = [candidate("a@x", speedup=4.0), candidate("a@y", speedup=3.9), candidate("b@x", speedup=3.0), candidate("c@x", speedup=2.0)]
    assert set(select_finalists(field, POLICY)) == {"a@x", "b@x", "c@x"}
    assert set(select_finalists(field[:3], POLICY)) == {"a@x", "a@y", "b@x"}


def test_what_cannot_ship_gets_no_samples():
    field = [
        candidate("over@x", 0.0101),
        candidate("slow@x", speedup=0.9),
        candidate("fp32@x", speedup=1.5, precision="fp32"),
        candidate("no-faster-than-fp32@x", speedup=1.2),
        candidate("failed@x", status="failed", search=None),
        candidate("dropped@x", status="dropped"),
        candidate("unseen@x", search=None),
        candidate("fine@x"),
    ]
    assert select_finalists(field, POLICY) == ("fine@x",)
    assert select_finalists(field[:-1], POLICY) == ()


def test_broken_ones_are_never_finalists():
    fine = candidate("fine@x")
    assert fine.search is not None
    broken = candidate("broken@x", search=Comparison(fine.search.metric, fine.search.baseline, fine.search.delta, 1.0, broken="NaN"))
    assert select_finalists([broken, fine], POLICY) == ("fine@x",)


def test_over_the_latency_ceiling_is_no_finalist():
    policy = Policy("classification", "top1", Budget.parse("1pp"), batch=(1,), max_latency_ms=5.0)
    assert select_finalists([candidate("fast@x", speedup=3.0), candidate("late@x", speedup=2.0)], policy) == ("fast@x",)


def test_at_most_best_and_whatever_the_order():
    field = [candidate(f"r{i}@x", 0.0005 * i, speedup=2 + 0.2 * i, size=20 + i) for i in range(12)]
    expected = select_finalists(field, POLICY)
    assert len(expected) == 3
    assert len(select_finalists(field, POLICY, best=5)) == 5
    assert len(set(select_finalists(field, POLICY, best=50))) == 12
    assert select_finalists(field, POLICY, best=1) == expected[:1]
    for seed in range(20):
        assert select_finalists(random.Random(seed).sample(field, 12), POLICY) == expected


def test_unmeasured_candidates_may_be_finalists():
    assert select_finalists([candidate("a@x", measurements=())], POLICY) == ("a@x",)
