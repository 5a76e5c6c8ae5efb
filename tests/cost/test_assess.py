"""Assessments: case studies to the dollar, measured in the place of stated, and what must hold whatever the numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cost_case import TABLE, evidence, workload
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.cost.assess import Assessment, assess
from lowbit.cost.figures import Figure, measured
from lowbit.cost.lines import Line
from lowbit.cost.prices import own_table
from lowbit.cost.workload import read_workload
from lowbit.errors import UsageError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "assess"


def example(name: str) -> Assessment:
    return assess(read_workload(EXAMPLES / f"{name}.yaml"), own_table())


def of(found: Assessment, name: str) -> Line:
    return next(line for line in found.lines if line.name == name)


def value(figure: Figure | None) -> float:
    assert figure is not None
    return figure.value


# Case studies ------------------------------------------------------------------------------------------------------------


def test_an_a100_for_half_the_hours_or_a_t4() -> None:
    found = example("a100_to_t4")
    assert value(found.today.on_demand) == 2336
    assert [round(value(line.on_demand)) for line in found.lines] == [2336, 1168, 384, 192, 384, 384]
    assert [value(line.size_gb) for line in (found.today, *found.lines)] == [28, 14, 7, 7, 7, 3.5, 28]
    assert of(found, "fp32 on a T4").problems == ("Its weights of 28 GB do not fit t4's 16 GB.",)
    assert found.answer.chosen == "int8 on a T4, half the hours"
    assert found.answer.word == "unknown", "nobody said what the change costs"
    assert any("effort" in text for text in found.asked)
    assert "worth it below $25,728 within 12 months" in found.answer.reasons[0]


def test_today_on_spot_is_not_compared_as_if_it_were_on_demand() -> None:
    """Whoever pays spot prices today saves what is paid today, and no more."""
    today = {"instance": "large", "precision": "fp32", "instances": 4, "latency_ms": 30, "spot": True}
    found = assess(workload(today=today), TABLE)
    (saving,) = found.savings
    assert value(found.today.paid) == pytest.approx(0.15 * 730 * 4)
    assert saving.model.value <= saving.paid.value


def test_half_the_hours_make_twice_the_load() -> None:
    """The same requests in half of the time need twice the instances, and not half a bill."""
    usual: dict[str, Any] = {"instance": "small", "precision": "int8", "latency_ms": 30}
    raw = {"requests_per_month": 1e9, "peak_per_second": None, "peak_over_mean": 1}
    candidates = [{"name": "all hours", "hours_per_month": 730, **usual}, {"name": "half", "hours_per_month": 365, **usual}]
    found = assess(workload(**raw, candidates=candidates), TABLE)
    assert value(of(found, "half").instances) == pytest.approx(2 * value(of(found, "all hours").instances), abs=1)
    assert value(of(found, "half").on_demand) == pytest.approx(value(of(found, "all hours").on_demand), rel=0.1)


def test_todays_cache_stays_in_every_figure() -> None:
    """Of a candidate that says nothing of a cache: neither its instances nor its cost per million are those of a model without one."""
    today = {"instance": "small", "precision": "fp32", "instances": 4, "latency_ms": 30, "cache_hit_rate": 0.5}
    line = of(assess(workload(today=today), TABLE), "int8")
    assert value(line.least) == pytest.approx(0.10 / 3600 * 0.008 * 1e6 * 0.5)
    gone = [{"name": "int8", "instance": "small", "precision": "int8", "latency_ms": 8, "cache_hit_rate": 0}]
    assert value(of(assess(workload(today=today, candidates=gone), TABLE), "int8").least) == pytest.approx(0.10 / 3600 * 0.008 * 1e6)


def test_a_classifier_of_340_ms_at_91() -> None:
    found = example("inspection")
    today, small = found.today, of(found, "int8")
    assert (value(today.request_ms), value(small.request_ms)) == (340, 91)
    assert (value(today.size_gb), value(small.size_gb)) == (0.087, 0.022)
    assert value(today.least) == pytest.approx(0.0416 / 3600 * 0.340 * 1e6)
    assert value(small.least) / value(today.least) == pytest.approx(91 / 340)
    assert value(of(found, "int8 and a cache").least) == pytest.approx(0.7 * value(small.least))
    assert "Spot alone would make it $1.18 with today's model." in found.answer.reasons, "spot is not the model's doing"
    assert value(of(found, "int8, a cache, spot").least) == pytest.approx(0.7 * 0.3 * value(small.least))
    assert today.on_demand is None
    assert any("requests_per_month" in text for text in found.asked)


def test_a_bill_and_a_payback_of_18_days() -> None:
    found = example("client_bill")
    assert [value(line.paid) for line in (found.today, *found.lines)] == [11840, 2840]
    assert found.best is not None
    assert found.best.paid.value == 9000
    assert found.best.share.value == pytest.approx(0.76, abs=0.005)
    assert value(found.payback) == 18
    assert value(found.effort) == pytest.approx(18 * 9000 / (365 / 12))
    assert found.effort is not None
    assert "stated payback" in found.effort.note


# The answer --------------------------------------------------------------------------------------------------------------


def test_it_is_worth_it_where_fewer_instances_do() -> None:
    found = assess(workload(), TABLE)
    assert [value(line.instances) for line in (found.today, *found.lines)] == [4, 1]
    assert value(found.today.on_demand) == pytest.approx(0.1 * 730 * 4)
    assert found.answer.word == "worth it"
    assert found.answer.chosen == "int8"
    assert value(found.payback) == pytest.approx(100 / (3 * 73) * 365 / 12)


def test_an_effort_that_is_too_much_is_not_worth_it() -> None:
    found = assess(workload(effort={"usd": 1e6}), TABLE)
    assert found.answer.word == "not worth it"
    assert "the change costs $1,000,000" in found.answer.reasons[0]
    assert [week.state for week in found.roadmap] == ["to do", "not needed", "not needed", "not needed"]


def test_ranges_that_overlap_are_probably() -> None:
    found = assess(workload(effort={"usd": [100, 4000]}), TABLE)
    assert found.answer.word == "probably"


def test_one_instance_cannot_become_half() -> None:
    raw = {"instance": "small", "precision": "fp32", "instances": 1, "latency_ms": 30}
    found = assess(workload(today=raw, peak_per_second=5), TABLE)
    assert found.answer.word == "not worth it"
    text = " ".join(found.answer.reasons)
    assert "It runs on one instance already" in text
    assert "busy 15 % of the time" in text
    assert found.payback is None


def test_a_smaller_instance_is_a_way_out() -> None:
    raw = {"instance": "large", "precision": "fp32", "instances": 1, "latency_ms": 30}
    assert assess(workload(today=raw, peak_per_second=5), TABLE).answer.word == "worth it"


def test_what_can_go_without_any_change_is_not_the_models_doing() -> None:
    raw = {"instance": "small", "precision": "fp32", "instances": 10, "latency_ms": 30}
    found = assess(workload(today=raw, peak_per_second=5), TABLE)
    assert (value(found.trimmed.instances), value(of(found, "int8").instances)) == (1, 1)
    assert found.answer.word == "not worth it"
    assert found.best is not None
    assert (found.best.paid.value, found.best.model.value) == (pytest.approx(9 * 73), 0)
    assert "Today's model needs 1 of its 10 instances: 9 and $657 a month can go without any change." in found.answer.reasons


def test_inference_that_is_not_the_bottleneck() -> None:
    quick = {"name": "int8", "instance": "small", "precision": "int8", "speedup": 4, "quality": "as before"}
    found = assess(workload(inference_share=0.2, candidates=[quick]), TABLE)
    assert value(of(found, "int8").request_ms) == pytest.approx(30 * (0.8 + 0.2 / 4))
    assert any("not the bottleneck: the model is 20 % of a request" in text for text in found.answer.reasons)
    assert not any("bottleneck" in text for text in assess(workload(), TABLE).answer.reasons)


def test_a_call_longer_than_the_target_cannot_be_run() -> None:
    found = assess(workload(latency_target_ms=7), TABLE)
    assert found.answer.word == "not worth it"
    assert found.answer.chosen is None
    assert "int8: A call alone takes 8 ms; the target is 7 ms." in found.answer.reasons


def test_what_nobody_said_is_asked_for_and_not_guessed() -> None:
    found = assess(workload(requests_per_month=None, peak_per_second=None, effort=None), TABLE)
    assert found.today.per_million is None
    assert value(of(found, "int8").instances) == 4
    assert any("as many as today" in text for text in found.assumptions)
    assert any("requests_per_month" in text for text in found.asked)
    assert any("effort.usd" in text for text in found.asked)
    assert found.answer.word == "unknown", "without a load nobody knows whether fewer would do"
    assert found.answer.reasons[0].startswith("Whether fewer instances would do is not known")


def test_too_few_instances_today_are_noticed() -> None:
    found = assess(workload(), TABLE)
    assert any("would need 11 instances" in text and "runs on 4" in text for text in found.answer.reasons)


def test_nothing_to_compare_with() -> None:
    found = assess(workload(candidates=[]), TABLE)
    assert (found.answer.word, found.answer.chosen) == ("unknown", None)
    assert "There is no candidate" in found.answer.reasons[0]


def test_what_a_cache_answers_needs_no_instances() -> None:
    raw = {"instance": "small", "precision": "int8", "latency_ms": 8, "quality": "as before"}
    both = [raw | {"name": "plain"}, raw | {"name": "cached", "cache_hit_rate": 0.5}]
    found = assess(workload(peak_per_second=300, candidates=both), TABLE)
    assert [value(line.instances) for line in found.lines] == [3, 2]


def test_spot_on_the_same_terms() -> None:
    cheap = {"name": "spot", "instance": "small", "precision": "int8", "latency_ms": 8, "spot": True, "quality": "as before"}
    found = assess(workload(candidates=[cheap]), TABLE)
    assert found.best is not None
    assert found.best.paid.value == pytest.approx(73 * (4 - 0.3))
    assert found.best.model.value == pytest.approx(73 * 0.3 * 3), "spot alone would do the rest for today's model, too"


# Measured in the place of stated -----------------------------------------------------------------------------------------


def test_a_bundle_takes_the_place_of_what_was_stated() -> None:
    found = assess(workload(), TABLE, evidence())
    assert value(found.today.request_ms) == 20
    small = of(found, "int8")
    assert (value(small.request_ms), small.quality) == (5, "top-1 −0.2 pp [−0.5, +0.1], n = 2,000")
    assert small.request_ms is not None
    assert (small.request_ms.origin, small.request_ms.ends) == ("measured", (4.8, 5.2))
    assert small.least is not None
    assert small.least.ranged, "the interval goes along"
    log = {(each.deployment, each.what): (value(each.before), each.after.value) for each in found.replaced}
    assert log == {("today", "latency_ms"): (30, 20), ("int8", "latency_ms"): (8, 5)}
    assert [week.state for week in found.roadmap] == ["done", "done", "not needed", "to do"]


def test_or_its_ratio_on_what_was_stated() -> None:
    found = assess(workload(), TABLE, evidence(), "ratio")
    small = of(found, "int8").request_ms
    assert value(found.today.request_ms) == 30
    assert small is not None
    assert (small.value, *small.ends) == pytest.approx((30 / 4, 30 / 4.2, 30 / 3.8))
    assert "paired rounds" in small.note


def test_the_rest_of_a_request_stays() -> None:
    found = assess(workload(inference_share=0.6), TABLE, evidence())
    assert value(found.today.request_ms) == pytest.approx(20 + 30 * 0.4)
    assert value(of(found, "int8").request_ms) == pytest.approx(5 + 30 * 0.4)


def test_a_bundle_brings_its_choice_where_the_workload_names_none() -> None:
    found = assess(workload(candidates=[]), TABLE, evidence())
    assert [line.name for line in found.lines] == ["int8@openvino", "int8@openvino, batches of 8"]
    assert value(found.lines[1].busy_per_million) == pytest.approx(0.1 / 3600 * 0.024 / 8 * 1e6)


@pytest.mark.parametrize(("verdict", "state"), [("recover", "recover that first"), ("keep", "kept the source precision")])
def test_a_verdict_that_is_no_ship_is_said(verdict: str, state: str) -> None:
    found = assess(workload(candidates=[]), TABLE, evidence(verdict))
    assert any(state in text for text in found.answer.reasons)
    assert (found.answer.word == "not worth it") is (verdict == "recover")


def test_a_bundle_that_kept_the_baseline_has_nothing_to_offer() -> None:
    kept = replace(evidence("keep"), chosen=evidence().baseline)
    found = assess(workload(candidates=[]), TABLE, kept)
    assert (found.answer.word, found.lines) == ("not worth it", ())
    assert found.answer.reasons[0].startswith("The bundle kept")


def test_times_of_a_cpu_say_nothing_about_a_gpu() -> None:
    elsewhere = [{"name": "on a GPU", "instance": "gpu", "precision": "int8", "latency_ms": 2}]
    found = assess(workload(candidates=elsewhere), TABLE, evidence())
    assert value(of(found, "on a GPU").request_ms) == 2
    assert any(text.startswith("Not for on a GPU") for text in found.assumptions)
    assert of(found, "on a GPU").cpu_seconds is None
    assert value(of(assess(workload(), TABLE, evidence()), "int8").cpu_seconds) == 0.004
    there = assess(workload(candidates=elsewhere), TABLE, evidence(accelerator="T4"))
    assert value(of(there, "on a GPU").request_ms) == 5


def test_a_load_test_is_better_than_a_queue() -> None:
    found = assess(workload(), TABLE, held={"int8": measured(40, "requests/s", "a load test")})
    assert value(of(found, "int8").instances) == 3
    assert [(each.deployment, each.what, each.before) for each in found.replaced] == [("int8", "capacity_per_s", None)]
    with pytest.raises(UsageError, match="Unknown deployment 'int9'"):
        assess(workload(), TABLE, held={"int9": measured(40, "requests/s", "a load test")})


# Whatever the numbers ----------------------------------------------------------------------------------------------------

LOADS = st.floats(1, 5000)


@settings(deadline=None)
@given(peak=LOADS, less=st.floats(0.01, 1), latency=st.floats(1, 90))
def test_fewer_requests_never_cost_more(peak: float, less: float, latency: float) -> None:
    int8 = [{"name": "int8", "instance": "small", "precision": "int8", "latency_ms": latency}]
    many = assess(workload(peak_per_second=peak, candidates=int8), TABLE).lines[0]
    few = assess(workload(peak_per_second=peak * less, candidates=int8), TABLE).lines[0]
    assert value(few.on_demand) <= value(many.on_demand)
    assert value(few.on_spot) <= value(many.on_spot)


@settings(deadline=None)
@given(peak=LOADS, hit=st.floats(0, 0.99), latency=st.floats(1, 90))
def test_a_cache_never_costs_more(peak: float, hit: float, latency: float) -> None:
    raw: dict[str, Any] = {"instance": "small", "precision": "int8", "latency_ms": latency}
    both = [raw | {"name": "plain"}, raw | {"name": "cached", "cache_hit_rate": hit}]
    plain, cached = assess(workload(peak_per_second=peak, candidates=both), TABLE).lines
    assert value(cached.on_demand) <= value(plain.on_demand)
    assert value(cached.least) <= value(plain.least)


@settings(deadline=None)
@given(
    peak=LOADS,
    instance=st.sampled_from(["small", "large", "gpu"]),
    price=st.none() | st.floats(0.01, 5),
    spot=st.none() | st.floats(0.01, 9),
)
def test_spot_is_never_above_on_demand(peak: float, instance: str, price: float | None, spot: float | None) -> None:
    raw: dict[str, Any] = {"name": "a", "instance": instance, "latency_ms": 10, "price_per_hour": price, "spot_per_hour": spot}
    found = assess(workload(peak_per_second=peak, candidates=[raw]), TABLE).lines[0]
    assert found.on_spot is not None
    assert found.on_demand is not None
    assert found.on_spot.value <= found.on_demand.value * (1 + 1e-12)
    assert found.on_spot.ends[1] <= found.on_demand.ends[1] * (1 + 1e-12)
    assert value(found.instances) == int(value(found.instances)) >= 1


@settings(deadline=None)
@given(peak=LOADS, latency=st.floats(1, 90))
def test_idle_hours_only_add(peak: float, latency: float) -> None:
    """What is paid for a million is never less than what it costs without idling, if the load is that of the peak all the time."""
    int8 = [{"name": "int8", "instance": "small", "latency_ms": latency}]
    steady = peak * 730 * 3600
    found = assess(workload(peak_per_second=peak, requests_per_month=steady, candidates=int8), TABLE).lines[0]
    assert value(found.per_million) >= value(found.least) * (1 - 1e-9)


def test_the_document_is_json_and_every_figure_has_an_origin() -> None:
    document = json.loads(json.dumps(assess(workload(), TABLE, evidence()).document(), allow_nan=False))
    assert (document["schema"], document["verdict"], document["chosen"]) == ("1", "worth_it", "int8")
    figures = [each for line in (document["today"], *document["candidates"]) for each in line["figures"].values()]
    assert len(figures) > 20
    assert {each["origin"] for each in figures} <= {"measured", "stated", "assumed", "derived"}
    assert all(each["note"] for each in figures)
    assert document["candidates"][0]["saving"]["paid"]["unit"] == "USD/month"
