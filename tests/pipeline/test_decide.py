from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from lowbit.measure.intervals import tango
from lowbit.pipeline.decide import decide
from lowbit.pipeline.judge import judge
from lowbit.pipeline.objective import gain, preferred
from lowbit.pipeline.reasons import samples_to_settle
from lowbit.types import (
    Budget,
    Candidate,
    Comparison,
    ConfidenceShift,
    Delta,
    Latency,
    Measurement,
    MetricValue,
    Policy,
    Ratio,
    SliceResult,
    Tuning,
)

POLICY = Policy("classification", "top1", Budget.parse("1pp"), batch=(1, 8))


def delta(value, low, high, n=2000, **more):
    return Delta(value, low, high, 0.95, n, "tango-score", **more)


def evidence(value=0.0, half=0.005, n=2000, **more):
    drop = delta(value, value - half, value + half, n, worse=20, better=10)
    return Comparison(MetricValue("top1", 0.9 - value, n), MetricValue("top1", 0.9, n), drop, 0.98, **more)


def timing(batch, speedup, spread=0.02, noisy=False, over_fp32=None, streams=1):
    p50 = 10 * batch / speedup
    over = None if over_fp32 is None else Ratio(over_fp32, over_fp32 * 0.98, over_fp32 * 1.02)
    ratio = Ratio(speedup, speedup * (1 - spread), speedup * (1 + spread))
    return Measurement(batch, streams, Latency(p50, p50 * 1.2, p50 * 1.4, p50, p50), 1000 / p50, ratio, over, 15, noisy, Tuning())


def candidate(name, value=0.0, half=0.005, speedups=(3.0, 3.0), confirmed=True, precision="int8", size=25_000_000, over_fp32=None, **more):
    times = tuple(timing(batch, speedup, over_fp32=over_fp32) for batch, speedup in zip((1, 8), speedups, strict=True))
    found = {
        "search": evidence(value, half),
        "confirm": evidence(value, half) if confirmed else None,
        "measurements": times,
        "size_bytes": size,
    } | more
    recipe, _, runtime = name.partition("@")
    return Candidate(name, recipe, runtime or "onnxruntime", precision, **found)


def fp32(name="fp32@openvino", speedups=(1.5, 1.5), **more):
    return candidate(name, 0.0, 0.001, speedups, confirmed=False, precision="fp32", size=100_000_000, **more)


BASELINE = Candidate(
    "baseline",
    "fp32",
    "onnxruntime",
    "fp32",
    size_bytes=100_000_000,
    search=evidence(),
    confirm=evidence(),
    measurements=(timing(1, 1.0), timing(8, 1.0)),
)


def verdict_on(decision, name):
    return next(j for j in decision.judgements if j.id == name)


def text(*parts):
    return " ".join(itertools.chain(*parts))


def test_ship_says_quality_speed_over_both_and_size():
    found = decide(BASELINE, [candidate("int8@openvino", 0.002, over_fp32=2.0), fp32()], POLICY, ["Small model."])
    assert (found.verdict, found.chosen) == ("ship", "int8@openvino")
    assert found.reasons[0] == "Small model."
    said = text(found.reasons)
    assert "top-1 is 0.8980 against the baseline's 0.9000: 0.20 pp worse (between 0.30 pp better and 0.70 pp worse, 95 %)" in said
    assert "3.00x [2.94, 3.06] as fast as the baseline at batch 1" in said
    assert "at batch 8" in said
    assert "Over the fastest FP32 on any runtime it is 2.00x" in said
    assert "25 MB instead of 100 MB (0.25 of it)" in said
    assert "20 became wrong and 10 became right" in said
    assert verdict_on(found, "baseline").verdict == "keep"


def test_a_gain_that_is_the_runtimes_is_not_called_quantizations():
    found = decide(BASELINE, [candidate("int8@openvino", 0.002, speedups=(1.55, 1.55), over_fp32=1.02), fp32()], POLICY)
    assert found.verdict == "ship"  # a tie in speed, and a quarter of the size
    assert "its speed is the runtime's doing" in text(found.reasons)


def test_fp32_on_a_faster_runtime_is_keep_on_that_runtime():
    found = decide(BASELINE, [candidate("int8@onnxruntime", 0.002, speedups=(1.2, 1.2)), fp32()], POLICY)
    assert (found.verdict, found.chosen) == ("keep", "fp32@openvino")
    assert "nothing was quantized" in text(found.reasons)
    assert "1 within the budget and without a gain over source precision" in text(found.reasons)
    assert verdict_on(found, "int8@onnxruntime").verdict == "reject"
    assert verdict_on(found, "fp32@openvino").verdict == "keep"


def test_only_confirmed_finalists_ship():
    found = decide(BASELINE, [candidate("int8@openvino", 0.0, 0.001, confirmed=False)], POLICY)
    assert (found.verdict, found.chosen) == ("provisional", "int8@openvino")
    assert "search's samples alone" in text(found.reasons)
    assert "Let the search finish" in text(found.next_steps)


def test_the_confirming_samples_overrule_the_search():
    lucky = candidate("int8@openvino", confirm=evidence(0.02))
    found = decide(BASELINE, [lucky], POLICY)
    assert (found.verdict, found.chosen) == ("recover", "baseline")


def test_interval_over_budget_is_provisional_with_the_samples_that_would_settle_it():
    found = decide(BASELINE, [candidate("int8@openvino", 0.002, 0.016)], POLICY)
    assert (found.verdict, found.chosen) == ("provisional", "int8@openvino")
    # half-width 1.6 pp must become 0.8 pp: four times 2,000 samples, so 6,000 more, 15,000 in all the data.
    assert "6,000 more confirming samples" in text(found.next_steps)
    assert "15,000 in the data" in text(found.next_steps)
    assert "behind a canary, with baseline to fall back on" in text(found.next_steps)


def test_of_several_provisional_ones_a_confirmed_one_goes_first_and_then_the_best():
    unseen = candidate("a@x", speedups=(5.0, 5.0), confirmed=False)
    slow, fast = candidate("b@x", half=0.02, speedups=(2.0, 2.0)), candidate("c@x", half=0.02, speedups=(3.0, 3.0))
    found = decide(BASELINE, [unseen, slow, fast], POLICY)
    assert (found.verdict, found.chosen) == ("provisional", "c@x")
    assert decide(BASELINE, [unseen], POLICY).chosen == "a@x"


def test_samples_to_settle_really_settles():
    b, c, n = 30, 18, 2000
    low, high = tango(b, c, n)
    drop = delta((b - c) / n, low, high)
    more = samples_to_settle(drop, 0.01)
    assert more is not None
    grown = (n + more) / n
    assert tango(round(b * grown), round(c * grown), n + more)[1] == pytest.approx(0.01, abs=3e-4)
    assert samples_to_settle(delta(0.01, 0.0, 0.02), 0.01) is None
    assert samples_to_settle(delta(0.00999, 0.0, 0.02), 0.01) is None


@pytest.mark.parametrize(("value", "verdict"), [(0.0101, "recover"), (0.03, "recover"), (0.0301, "refuse")])
def test_over_budget_recovers_up_to_three_times_and_is_refused_beyond(value, verdict):
    found = decide(BASELINE, [candidate("int8@openvino", value)], POLICY)
    assert verdict_on(found, "int8@openvino").verdict == verdict
    assert found.verdict == ("recover" if verdict == "recover" else "keep")
    assert found.chosen == "baseline"
    if verdict == "recover":
        assert "Mixed precision" in text(found.next_steps)
        assert "Quantization-aware training" in text(found.next_steps)


def test_recover_is_about_the_nearest_miss():
    found = decide(BASELINE, [candidate("a@x", 0.025), candidate("b@x", 0.012), candidate("c@x", 0.05)], POLICY)
    assert found.verdict == "recover"
    assert "b@x comes nearest" in found.reasons[0]


def test_what_is_slower_at_any_asked_batch_is_rejected():
    found = decide(BASELINE, [candidate("int8@openvino", 0.0, speedups=(3.0, 0.9))], POLICY)
    assert (found.verdict, found.chosen) == ("keep", "baseline")
    judgement = verdict_on(found, "int8@openvino")
    assert judgement.verdict == "reject"
    assert "slower than the baseline at batch 8: 0.90x" in text(judgement.reasons)
    assert decide(BASELINE, [candidate("int8@openvino", 0.0, speedups=(3.0, 0.99))], POLICY).verdict == "ship"
    surely = candidate("int8@openvino", measurements=(timing(1, 3.0), timing(8, 0.99, spread=0.005)))
    assert decide(BASELINE, [surely], POLICY).verdict == "keep"


def test_an_asked_batch_that_was_not_timed_or_too_noisy_leaves_a_doubt():
    untimed = candidate("int8@openvino", measurements=(timing(1, 3.0),))
    noisy = candidate("int8@openvino", measurements=(timing(1, 3.0), timing(8, 1.1, spread=0.2, noisy=True)))
    fine = candidate("int8@openvino", measurements=(timing(1, 3.0), timing(8, 2.0, spread=0.2, noisy=True)))
    for one, words in ((untimed, "not timed at batch 8"), (noisy, "too noisy to call its speed at batch 8")):
        found = decide(BASELINE, [one], POLICY)
        assert found.verdict == "provisional"
        assert words in text(found.reasons)
        assert "Time it again" in text(found.next_steps)
    shipped = decide(BASELINE, [fine], POLICY)
    assert shipped.verdict == "ship"
    assert "noisy while timing at batch 8" in text(shipped.reasons)


def test_latency_ceiling_is_about_p95_at_the_smallest_batch():
    # p95 of the candidate at batch 1: 10 / 3 * 1.2 = 4 ms
    tried = [candidate("int8@openvino")]
    assert decide(BASELINE, tried, replace(POLICY, max_latency_ms=4.1)).verdict == "ship"
    found = decide(BASELINE, tried, replace(POLICY, max_latency_ms=3.9))
    assert found.verdict == "keep"
    assert "p95 latency at batch 1 is 4 ms; the ceiling is 3.9 ms" in text(verdict_on(found, "int8@openvino").reasons)
    assert "Even so it misses what was asked" in text(found.reasons)


def test_keep_prefers_a_runtime_under_the_ceiling():
    found = decide(BASELINE, [fp32(speedups=(1.02, 1.02))], replace(POLICY, max_latency_ms=11.9))
    assert (found.verdict, found.chosen) == ("keep", "fp32@openvino")


@pytest.mark.parametrize("why", ["NaN or infinity in the output for 3 of 2,000 samples", "the same output for every sample"])
def test_broken_is_refused_whatever_its_numbers(why):
    found = decide(BASELINE, [candidate("int8@openvino", search=evidence(broken=why), confirm=None)], POLICY)
    assert found.verdict == "keep"
    assert verdict_on(found, "int8@openvino").verdict == "refuse"
    assert why in text(verdict_on(found, "int8@openvino").reasons)


def test_failed_and_dropped_and_unevaluated():
    failed = candidate("a@x", status="failed", search=None, confirm=None, reasons=("No kernel for Foo.",))
    slow = candidate("b@x", status="dropped", confirmed=False, reasons=("Plainly too slow: 0.4x.",), speedups=(0.4, 0.4))
    late = candidate("c@x", search=None, confirm=None)
    found = decide(BASELINE, [failed, slow, late], POLICY)
    assert [verdict_on(found, name).verdict for name in ("a@x", "b@x", "c@x")] == ["refuse", "reject", "reject"]
    assert verdict_on(found, "a@x").reasons == ("No kernel for Foo.",)
    assert "Of 3 changed candidates 1 refused" in text(found.reasons)


def test_a_damaged_slice_blocks_shipping_and_is_named():
    night = SliceResult("camera=night", 200, 0.9, 0.8, delta(0.1, 0.04, 0.16, 200))
    found = decide(BASELINE, [candidate("int8@openvino", confirm=evidence(slices=(night,)))], POLICY)
    assert found.verdict == "provisional"
    assert "'camera=night' loses too much: 10.00 pp worse" in text(found.reasons)
    assert "'camera=night'" in text(found.next_steps)
    unsure = replace(night, delta=delta(0.1, 0.009, 0.2, 200))
    assert decide(BASELINE, [candidate("int8@openvino", confirm=evidence(slices=(unsure,)))], POLICY).verdict == "ship"


def test_the_hardest_tenth_blocks_beyond_three_times_the_budget_and_is_mentioned_before():
    def hardest(low):
        return evidence(slices=(SliceResult("hardest tenth", 200, 0.5, 0.45, delta(0.05, low, 0.08, 200)),))

    said = decide(BASELINE, [candidate("int8@openvino", confirm=hardest(0.02))], POLICY)
    assert said.verdict == "ship"
    assert "On the hardest tenth" in text(said.reasons)
    assert decide(BASELINE, [candidate("int8@openvino", confirm=hardest(0.031))], POLICY).verdict == "provisional"


def test_false_positive_rate_is_guarded():
    asked = replace(POLICY, threshold=0.8, max_fpr_rise=0.002)

    def with_rise(value, high):
        return candidate("int8@openvino", confirm=evidence(guards={"false_positive_rate": delta(value, 0.0, high)}))

    assert decide(BASELINE, [with_rise(0.001, 0.0019)], asked).verdict == "ship"
    unsure = decide(BASELINE, [with_rise(0.001, 0.0021)], asked)
    assert unsure.verdict == "provisional"
    assert "false-positive rate may rise by up to 0.21 pp; 0.20 pp is allowed" in text(unsure.reasons)
    over = decide(BASELINE, [with_rise(0.0021, 0.003)], asked)
    assert over.verdict == "recover"
    # Without an allowed rise the budget's number stands for it.
    assert decide(BASELINE, [with_rise(0.0021, 0.003)], replace(asked, max_fpr_rise=None)).verdict == "ship"


def test_confidence_shift_asks_for_a_review_and_does_not_block():
    shifted = evidence(confidence_shift=ConfidenceShift(-0.08, 0.12, 0.11, 4000, True))
    found = decide(BASELINE, [candidate("int8@openvino", confirm=shifted)], POLICY)
    assert found.verdict == "ship"
    assert "mean moved by -8.0 %, KS distance 0.120, and 11 % lie below" in text(found.next_steps)


def test_safety_critical_keeps_a_person_in_the_loop():
    found = decide(BASELINE, [candidate("int8@openvino")], replace(POLICY, safety_critical=True))
    assert "have a person confirm" in text(found.next_steps)


def test_a_runtime_that_computes_something_else_at_source_precision_is_refused():
    found = decide(BASELINE, [fp32(search=evidence(0.02))], POLICY)
    assert (found.chosen, verdict_on(found, "fp32@openvino").verdict) == ("baseline", "refuse")


def test_objectives_choose_differently():
    fast = candidate("fast@x", speedups=(3.0, 3.0), size=50_000_000)
    small = candidate("small@x", speedups=(2.0, 2.0), size=25_000_000)
    busy = candidate("busy@x", size=50_000_000, measurements=(timing(1, 1.5), timing(8, 1.5), timing(8, 4.0, streams=4)))
    for objective, expected in (("latency", "fast@x"), ("size", "small@x"), ("throughput", "busy@x")):
        assert decide(BASELINE, [fast, small, busy], replace(POLICY, objective=objective)).chosen == expected


def test_ties_in_speed_go_to_the_smaller_then_to_the_more_accurate():
    big = candidate("a-big@x", 0.0, speedups=(3.05, 3.05), size=50_000_000)
    worse = candidate("b-worse@x", 0.003, speedups=(3.0, 3.0))
    better = candidate("c-better@x", 0.001, speedups=(2.98, 2.98))
    assert decide(BASELINE, [big, worse, better], POLICY).chosen == "c-better@x"


def test_those_passed_over_are_dominated_or_say_why():
    best = candidate("best@x", 0.001)
    dominated = candidate("dominated@x", 0.002, speedups=(2.0, 2.0))
    accurate = candidate("bf16@x", -0.001, speedups=(1.8, 1.8), precision="bf16", size=50_000_000)
    found = decide(BASELINE, [best, dominated, accurate], POLICY)
    assert found.chosen == "best@x"
    assert verdict_on(found, "dominated@x").verdict == "reject"
    assert "Dominated: best@x" in text(verdict_on(found, "dominated@x").reasons)
    assert verdict_on(found, "bf16@x").verdict == "ship"
    assert "preferred for latency (3.00x the baseline, this one 1.80x)" in text(verdict_on(found, "bf16@x").reasons)
    assert "3 finalists share the error rate of 5 %" in text(found.reasons)


def test_without_timings_accuracy_alone_makes_it_provisional():
    found = decide(BASELINE, [candidate("int8@x", measurements=())], POLICY)
    assert found.verdict == "provisional"
    assert "not timed at batch 1" in text(found.reasons)


def test_nothing_tried_is_keep():
    found = decide(BASELINE, [], POLICY)
    assert (found.verdict, found.chosen, len(found.judgements)) == ("keep", "baseline", 1)
    assert found.reasons == ("The source model stays as it is.", "No changed candidate was tried.")


FIELD = [
    candidate("int8-a@x", 0.002, 0.004, (3.0, 2.9)),
    candidate("int8-b@x", 0.002, 0.004, (2.95, 2.95)),
    candidate("int8-c@y", 0.004, 0.02, (3.3, 3.3)),
    candidate("bf16@y", 0.0, 0.002, (1.9, 1.9), precision="bf16", size=100_000_000),
    candidate("int8-d@x", 0.015),
    candidate("int8-e@x", 0.2),
    candidate("int8-f@x", 0.001, confirmed=False),
    candidate("int8-g@x", measurements=()),
    fp32(),
    fp32("fp32-tuned@onnxruntime", (1.01, 1.0)),
]


@pytest.mark.parametrize("objective", ["latency", "throughput", "size"])
def test_the_same_evidence_in_any_order_gives_the_same_decision(objective):
    asked = replace(POLICY, objective=objective)
    for size in (len(FIELD), 5, 3):
        for seed in range(15):
            order = random.Random(seed)
            field = order.sample(FIELD, size)
            expected = decide(BASELINE, field, asked)
            for _ in range(4):
                assert decide(BASELINE, order.sample(field, size), asked) == expected
            assert decide(BASELINE, [*field, BASELINE], asked) == expected
            assert [j.id for j in expected.judgements[1:]] == sorted(c.id for c in field)


def test_sentences_are_sentences():
    for policy in (POLICY, replace(POLICY, safety_critical=True, max_latency_ms=1.0)):
        for n in range(len(FIELD)):
            found = decide(BASELINE, FIELD[n:], policy)
            for sentence in text(found.reasons, found.next_steps, *(j.reasons for j in found.judgements)).split(". "):
                assert "  " not in sentence
            assert all(s[-1] in ".!" and s.strip() == s for s in (*found.reasons, *found.next_steps))


def test_gain_is_the_geometric_mean_over_asked_batches():
    one = candidate("a@x", speedups=(4.0, 1.0))
    assert gain(one, BASELINE, POLICY) == pytest.approx(2.0)
    assert gain(one, BASELINE, replace(POLICY, batch=(1,))) == pytest.approx(4.0)
    assert gain(BASELINE, BASELINE, POLICY) == 1
    assert preferred([one], BASELINE, POLICY) is one


def test_judge_alone_matches_the_contract_words():
    assert judge(candidate("a@x"), POLICY, 1).verdict == "ship"
    assert judge(candidate("a@x", half=0.0099), POLICY, 1).verdict == "ship"
    assert judge(candidate("a@x", half=0.0101), POLICY, 1).verdict == "provisional"


def test_among_equally_fast_unproved_candidates_the_one_that_loses_least_is_chosen():
    """A small sample proves neither; the smaller file is no reason to take the riskier of two."""
    from dataclasses import replace

    lossy = candidate("int8@openvino", 0.009)
    safe = replace(candidate("bf16@openvino", 0.0), size_bytes=4 * (lossy.size_bytes or 0))
    found = decide(BASELINE, [replace(lossy, confirm=None), replace(safe, confirm=None)], POLICY)
    assert (found.verdict, found.chosen) == ("provisional", "bf16@openvino")
