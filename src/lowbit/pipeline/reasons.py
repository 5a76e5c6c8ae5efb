"""Why a decision is what it is, and what to do next: complete sentences with numbers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lowbit.measure.slices import HARDEST
from lowbit.pipeline import sentences as say
from lowbit.pipeline.judge import damaged_slices, guards, speed_faults
from lowbit.pipeline.objective import asked
from lowbit.types import Candidate, Comparison, Delta, Judgement, Policy, Verdict

CONFIRMING_SHARE = 0.4
"""Of the data, when lowbit splits it itself: a fifth calibrates, half of the rest confirms."""
MOST_SAMPLES = 1_000_000
NOTHING = 1.05
"""A speedup over the fastest FP32 below this is no gain of quantization."""

QUIET = "Time it again on an idle machine before quoting its speed."


def ship_reasons(chosen: Candidate, source: Candidate, baseline: Candidate, policy: Policy, finalists: int) -> tuple[str, ...]:
    """Quality, then speed over the baseline and over the fastest FP32, then size."""
    evidence = chosen.evidence
    assert evidence is not None, "nothing ships without evidence"
    shared = f" The {finalists} finalists share the error rate of {say.percent(1 - policy.confidence)}." if finalists > 1 else ""
    held = f"{chosen.id} holds the budget of {policy.max_drop} with its whole interval: {say.quality(evidence, policy)}"
    unseen = f"The {evidence.metric.n:,} samples that confirmed it played no part in the search.{shared}"
    return _without_blanks(held, say.flips(evidence.delta), unseen, *_gains(chosen, source, baseline, policy), *_hardest(evidence, policy))


def provisional_reasons(chosen: Candidate, judgement: Judgement, source: Candidate, baseline: Candidate, policy: Policy) -> tuple[str, ...]:
    """What holds, and what is still open."""
    opening = f"{chosen.id} looks right and is not proved: {judgement.reasons[0]}"
    return _without_blanks(opening, *judgement.reasons[1:], *_gains(chosen, source, baseline, policy))


def recover_reasons(about: Candidate, judgement: Judgement, source: Candidate, policy: Policy) -> tuple[str, ...]:
    """The nearest miss, and what runs meanwhile."""
    return _without_blanks(
        f"Nothing that gains holds the budget of {policy.max_drop}; {about.id} comes nearest. {judgement.reasons[0]}",
        *judgement.reasons[1:],
        f"Until then {source.id} at source precision is what to run.",
    )


def keep_reasons(
    chosen: Candidate, baseline: Candidate, tried: Sequence[Candidate], judged: Mapping[str, Judgement], policy: Policy
) -> tuple[str, ...]:
    """Why the precision stays, and what the fastest runtime for it brings."""
    changed = [c for c in tried if c.precision != "fp32"]
    counts = {
        "refused (broken, or more than three times over the budget)": "refuse",
        "rejected (too slow, or not evaluated)": "reject",
        "over the budget and without a gain over source precision": "recover",
        "within the budget and without a gain over source precision": "ship provisional",
    }
    parts = []
    for words, verdicts in counts.items():
        if n := sum(judged[c.id].verdict in verdicts.split() for c in changed):
            parts.append(f"{n} {words}")
    why = f"Of {len(changed)} changed candidates {say.listed(parts)}." if parts else "No changed candidate was tried."
    misses = [f"Even so it misses what was asked. {fault}" for fault in speed_faults(chosen, policy)]
    if chosen.id == baseline.id:
        return _without_blanks("The source model stays as it is.", why, *misses)
    runs = f"The source precision stays, on its fastest runtime: {chosen.id}."
    return _without_blanks(runs, why, _speeds(chosen, policy), "That is the runtime's doing: nothing was quantized.", *misses)


def next_steps(verdict: Verdict, about: Candidate, source: Candidate, policy: Policy, judged: Mapping[str, Judgement]) -> tuple[str, ...]:
    """What to do now."""
    evidence = about.evidence
    steps: list[str] = []
    if verdict == "ship":
        steps.append("Run it; the baseline lies beside it for fallback and rollback.")
    elif verdict == "provisional" and evidence is not None:
        steps += _settle(about, evidence, policy)
        steps.append(f"Until it is settled, put {about.id} behind a canary, with {source.id} to fall back on.")
    elif verdict == "recover":
        steps.append(f"Mixed precision: measure layer by layer what hurts in {about.id}, and leave those layers in 16 or 32 bit.")
        steps.append("Quantization-aware training: a short fine-tuning with fake quantization often wins back half of the loss or more.")
        steps.append("More, and more varied, calibration samples are the cheapest thing to try first.")
    elif verdict == "keep":
        steps += _after_keep(policy, judged)
    if evidence is not None and verdict in ("ship", "provisional"):
        steps += _reviews(about, evidence)
    if policy.safety_critical:
        steps.append("A wrong answer can hurt someone: route critical cases to the source model, and have a person confirm them.")
    return tuple(dict.fromkeys(steps))


def samples_to_settle(delta: Delta, limit: float) -> int | None:
    """More paired samples until the interval is within the limit, if the estimate stays: its half-width shrinks with 1/sqrt(n).

    None where the estimate is on the limit, or where it takes more than a million.
    """
    room = limit - delta.value
    if room <= 0:
        return None
    more = delta.n * (((delta.ci_high - delta.value) / room) ** 2 - 1)
    return say.round_up(more) if 0 < more <= MOST_SAMPLES else None


def _gains(chosen: Candidate, source: Candidate, baseline: Candidate, policy: Policy) -> list[str]:
    """Speed over the baseline, what of it is quantization's, and size."""
    found = [_speeds(chosen, policy)]
    over = [(m.batch, m.speedup_over_best_fp32) for m in asked(chosen, policy) if m.speedup_over_best_fp32 is not None]
    if over:
        text = say.listed([f"{say.ratio(ratio)} at batch {batch}" for batch, ratio in over])
        none = all(ratio.value < NOTHING for _, ratio in over)
        rest = "so its speed is the runtime's doing" if none else "which is what the lower precision itself brings"
        found.append(f"Over the fastest FP32 on any runtime it is {text}, {rest}.")
    elif asked(chosen, policy) and source.id != baseline.id:
        found.append(f"Part of that may be the runtime's doing: it was not timed beside {source.id} in one run.")
    if chosen.size_bytes and baseline.size_bytes:
        share = chosen.size_bytes / baseline.size_bytes
        found.append(f"It takes {say.size(chosen.size_bytes)} instead of {say.size(baseline.size_bytes)} ({share:.2f} of it).")
    if noisy := [str(m.batch) for m in asked(chosen, policy) if m.noisy]:
        found.append(f"The machine was noisy while timing at batch {say.listed(noisy)}: read those times with care.")
    return found


def _speeds(candidate: Candidate, policy: Policy) -> str:
    parts = [
        f"{say.ratio(m.speedup)} as fast as the baseline at batch {m.batch} ({say.ms(m.latency_ms.p50)})"
        for m in asked(candidate, policy)
        if m.speedup is not None
    ]
    return f"It is {say.listed(parts)}." if parts else ""


def _hardest(evidence: Comparison, policy: Policy) -> list[str]:
    """The hardest tenth where it loses more than the budget: allowed up to a point, but said."""
    return [
        f"On the hardest tenth of the samples it is {say.difference(piece.delta)}: losses gather there."
        for piece in evidence.slices
        if piece.name == HARDEST and piece.delta.ci_low > policy.max_drop.value
    ]


def _settle(about: Candidate, evidence: Comparison, policy: Policy) -> list[str]:
    """What it would take to turn `provisional` into `ship` or `keep`."""
    steps = []
    budget = policy.max_drop.value
    if about.confirm is None:
        steps.append("Let the search finish: the finalists are then confirmed on samples it has not used.")
    elif evidence.delta.ci_high > budget:
        steps.append(_more_samples("The budget", samples_to_settle(evidence.delta, budget)))
    for name, (delta, limit) in guards(evidence, policy).items():
        if about.confirm is not None and delta.ci_high > limit:
            steps.append(_more_samples(f"The {name}", samples_to_settle(delta, limit), "with the label no"))
    for piece in damaged_slices(evidence, policy):
        steps.append(f"Look at slice '{piece.name}': calibrate with more of its samples, or keep serving it with the source model.")
    if any("noisy" in reason or "not timed" in reason for reason in _timing(about, policy)):
        steps.append(QUIET)
    return steps


def _timing(about: Candidate, policy: Policy) -> list[str]:
    timed = {m.batch for m in asked(about, policy)}
    missing = ["not timed" for batch in policy.batch if batch not in timed]
    return [*missing, *("noisy" for m in asked(about, policy) if m.noisy)]


def _more_samples(what: str, more: int | None, kind: str = "") -> str:
    if more is None:
        return f"{what} cannot be settled by samples: the estimate lies too near the limit. Allow more, or try another candidate."
    kind = f" {kind}" if kind else ""
    total = say.round_up(more / CONFIRMING_SHARE)
    return (
        f"{what}: about {more:,} more confirming samples{kind} would settle it if the estimate stays "
        f"(some {total:,} in the data, where lowbit splits it)."
    )


def _after_keep(policy: Policy, judged: Mapping[str, Judgement]) -> list[str]:
    verdicts = {judgement.verdict for judgement in judged.values()}
    steps = []
    if "refuse" in verdicts or "recover" in verdicts:
        steps.append("If the model must get smaller, look at its sensitive layers first, or train it for quantization.")
    if "reject" in verdicts:
        steps.append("Lower precision pays where the processor computes in it (VNNI, AMX, NEON): `lowbit doctor` shows what this one has.")
    steps.append(f"Ask again with another budget than {policy.max_drop}, another objective, or more runtimes installed.")
    return steps


def _reviews(about: Candidate, evidence: Comparison) -> list[str]:
    shift = evidence.confidence_shift
    steps = []
    if shift is not None and shift.review:
        steps.append(
            f"Review {about.id}'s confidences before relying on a threshold: their mean moved by {shift.relative_mean * 100:+.1f} %, "
            f"KS distance {shift.ks:.3f}, and {say.percent(shift.low_tail)} lie below what was the lowest 5 %."
        )
    if any(m.noisy for m in about.measurements):
        steps.append(QUIET)
    return steps


def _without_blanks(*sentences: str) -> tuple[str, ...]:
    return tuple(sentence for sentence in sentences if sentence)
