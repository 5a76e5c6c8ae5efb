"""Who is best, from measurements made up: ties by interval, every objective, and what a million tokens cost."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from lowbit.errors import UsageError
from lowbit.llm.engines.base import EngineTuning
from lowbit.llm.workload.measure import heats
from lowbit.llm.workload.rank import LanguageObjective, rank
from lowbit.llm.workload.speed import Round, Speed, faster, summed_up
from lowbit.llm.workload.tune import fastest, is_exact, name
from lowbit.llm.workload.workload import Workload

WORKLOAD = Workload.parse("prompt=100,output=51")
NOISE = (1.0, 1.02, 0.99, 1.01, 0.98, 1.0, 1.03)


def speed(
    id_: str, ttft: float, decode: float, *, noise: tuple[float, ...] = NOISE, memory: int = 10**9, price: float | None = None
) -> Speed:
    rounds = [
        Round(ttft * f, 100 / (ttft * f), decode * f, (ttft + decode) * f, 1 / ((ttft + decode) * f), 51 / ((ttft + decode) * f), 2 * f)
        for f in noise
    ]
    return replace(summed_up(id_, rounds, WORKLOAD, cores=2, price_per_hour=price), peak_memory_bytes=memory)


READER = speed("reader", 0.1, 2.0, memory=3 * 10**9)
WRITER = speed("writer", 0.4, 1.0, memory=2 * 10**9)
SPEEDS = {"reader": READER, "writer": WRITER, "broken": Speed("broken", error="It crashed.")}


@pytest.mark.parametrize(
    ("objective", "first", "value"),
    [("latency", "writer", 1.4), ("ttft", "reader", 0.1), ("throughput", "writer", 51 / 1.4), ("memory", "writer", 2e9)],
)
def test_each_objective_has_its_own_first(objective: LanguageObjective, first: str, value: float) -> None:
    places = rank(SPEEDS, objective)
    assert [place.rank for place in places] == [1, 2]
    assert places[0].id == first
    assert places[0].value == pytest.approx(value)


def test_cost_is_machine_time() -> None:
    first, second = rank(SPEEDS, "cost")
    assert (first.id, second.id) == ("writer", "reader")
    assert first.value == pytest.approx(1.4 / 151 * 1e6 / 3600)


def test_what_cannot_be_told_apart_shares_a_rank() -> None:
    """A little slower on average, faster in some rounds: nobody knows."""
    like = speed("like", 0.405, 1.005, noise=(0.97, 1.04, 0.99, 1.03, 0.96, 1.02, 1.0))
    slow = speed("slow", 0.44, 1.1)
    places = rank({"slow": slow, "like": like, "writer": WRITER}, "latency")
    assert [(place.rank, place.id) for place in places] == [(1, "writer"), (1, "like"), (3, "slow")]
    ratio = places[1].over_first
    assert ratio is not None
    assert ratio.ci_low < 1 < ratio.ci_high


def test_memory_within_two_percent_is_the_same() -> None:
    places = rank({"a": replace(READER, id="a"), "b": replace(READER, id="b", peak_memory_bytes=int(3.05e9))}, "memory")
    assert [place.rank for place in places] == [1, 1]


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(UsageError, match="Unknown objective 'speed'"):
        rank(SPEEDS, "speed")  # type: ignore[arg-type]


def test_nobody_is_ranked_where_nobody_ran() -> None:
    assert rank({"broken": SPEEDS["broken"]}) == ()


def test_figures_and_cost_by_hand() -> None:
    found = speed("x", 0.4, 1.0, price=0.36)
    assert found.ttft_ms is not None
    assert found.ttft_ms.value == pytest.approx(400)
    assert found.ttft_ms.ci_low <= 400 <= found.ttft_ms.ci_high
    assert found.decode_tokens_per_s is not None
    assert found.decode_tokens_per_s.value == pytest.approx(50)
    assert found.prefill_tokens_per_s is not None
    assert found.prefill_tokens_per_s.value == pytest.approx(250)
    bill = found.per_million_tokens
    assert bill is not None
    # 1e6 tokens are 6622.5 requests of 151 tokens and 1.4 s: 2.575 hours.
    assert bill.hours == pytest.approx(2.5754, rel=1e-4)
    assert bill.dollars == pytest.approx(2.5754 * 0.36, rel=1e-4)
    assert bill.dollars_output == pytest.approx(1e6 / 51 * 1.4 / 3600 * 0.36, rel=1e-4)
    assert bill.cpu_hours == pytest.approx(1e6 / 151 * 2 / 3600, rel=1e-4)
    assert bill.kilowatt_hours == pytest.approx((1.4 * 2 * 0.74 + 2 * (3.5 - 0.74)) * 1e6 / 151 / 3.6e6, rel=1e-4)
    assert (bill.kilowatt_hours_low or 0) < (bill.kilowatt_hours or 0) < (bill.kilowatt_hours_high or 0)
    assert bill.method.startswith("modelled")
    assert Speed.from_dict(json.loads(json.dumps(asdict(found), allow_nan=False))) == found


def test_an_answer_of_one_token_has_no_decode() -> None:
    one = Workload.parse("prompt=100,output=1")
    rounds = [Round(0.4, 250, 0.0, 0.4, 2.5, 2.5, 1.0)]
    found = summed_up("x", rounds, one, cores=2)
    assert found.decode_tokens_per_s is None
    assert found.noisy, "one round cannot disagree with itself"


def test_disturbance_of_a_round_hits_both_and_cancels() -> None:
    busy = (1.0, 1.0, 3.0, 1.0, 2.0, 1.0, 1.0)
    ratio = faster(speed("a", 0.1, 1.0, noise=busy), speed("b", 0.2, 2.0, noise=busy), lambda each: each.total_s)
    assert ratio is not None
    assert (ratio.value, ratio.ci_low, ratio.ci_high) == pytest.approx((2, 2, 2))


def test_heats_have_room() -> None:
    assert heats({"a": 4, "b": 3, "c": 9, "d": 1}, 8) == [["a", "b"], ["c"], ["d"]]
    assert heats({"a": 1, "b": 1}, 8) == [["a", "b"]]
    assert heats({}, 8) == []


def test_tunings_that_change_the_numbers_are_known() -> None:
    default = EngineTuning()
    assert is_exact(EngineTuning(threads=2, prompt_threads=1, batch=64), default)
    assert not is_exact(EngineTuning(kv="int8"), default)
    assert not is_exact(EngineTuning(activations=32), default)
    assert not is_exact(EngineTuning(precision="bf16"), default)
    assert name(EngineTuning(threads=2, kv="int8")) == "threads=2,kv=int8"


def test_a_tuning_is_taken_only_where_it_is_faster_beyond_doubt() -> None:
    default, int8, two = EngineTuning(), EngineTuning(kv="int8"), EngineTuning(threads=2)
    pairs = [(default, speed("d", 0.4, 1.0)), (int8, speed("i", 0.4, 0.6)), (two, Speed("t", error="It crashed."))]
    assert fastest(pairs, "latency", default) == int8
    assert fastest(pairs, "ttft", default) == default
    doubtful = [(default, speed("d", 0.4, 1.0)), (two, speed("t", 0.4, 0.995, noise=(1.03, 0.98, 1.0, 1.02, 0.99, 1.0, 1.01)))]
    assert fastest(doubtful, "latency", default) == default
    assert fastest([(two, Speed("t", error="x"))], "latency", default) == default
