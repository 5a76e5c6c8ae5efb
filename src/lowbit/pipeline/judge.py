"""The verdict on one candidate by itself, against the budget and the baseline. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from lowbit.measure.slices import HARDEST
from lowbit.pipeline import sentences as say
from lowbit.pipeline.objective import NOT_SLOWER, SOURCE, asked, slower
from lowbit.types import Candidate, Comparison, Delta, Judgement, Policy, SliceResult

FAR = 3.0
"""Times the budget: beyond, a candidate is refused; up to there, mixed precision or training may recover it."""


def judge(candidate: Candidate, policy: Policy, finalists: int) -> Judgement:
    """What would be decided if this were the only candidate: the words of docs/concepts/decision.md.

    Args:
        candidate: With its evidence.
        policy: Budget, batch sizes, ceilings.
        finalists: How many share the error rate of the confirming samples.
    """
    evidence = candidate.evidence
    if candidate.status == "failed":
        return Judgement(candidate.id, "refuse", candidate.reasons or ("It could not be made or run.",))
    if evidence is not None and evidence.broken is not None:
        return Judgement(candidate.id, "refuse", (f"Broken: {evidence.broken}.", *candidate.reasons))
    if evidence is None:
        return Judgement(candidate.id, "reject", candidate.reasons or ("It was not evaluated before the search ended.",))
    quality = say.quality(evidence, policy)
    budget = policy.max_drop.value
    if candidate.precision == SOURCE:
        return _judge_source(candidate, evidence, policy)
    if evidence.delta.value > FAR * budget:
        far = f"{quality} That is more than {FAR:g} times the budget of {policy.max_drop}."
        return Judgement(candidate.id, "refuse", (far, *candidate.reasons))
    faults = speed_faults(candidate, policy)
    if over := over_budget(evidence, policy):
        return Judgement(candidate.id, "reject" if faults else "recover", (quality, *over, *faults, *candidate.reasons))
    if candidate.status == "dropped":
        return Judgement(candidate.id, "reject", (*candidate.reasons, quality))
    if faults:
        return Judgement(candidate.id, "reject", (quality, *faults, *candidate.reasons))
    doubts = _doubts(candidate, evidence, policy, finalists)
    return Judgement(candidate.id, "provisional" if doubts else "ship", (quality, *doubts, *candidate.reasons))


def over_budget(evidence: Comparison, policy: Policy) -> list[str]:
    """What is over its limit by the point estimate, in sentences."""
    found = []
    if evidence.delta.value > policy.max_drop.value:
        found.append(f"That is over the budget of {policy.max_drop}.")
    for name, (delta, limit) in guards(evidence, policy).items():
        if delta.value > limit:
            found.append(f"The {name} rises by {say.points(delta.value)}; {say.points(limit)} is allowed.")
    return found


def guards(evidence: Comparison, policy: Policy) -> Mapping[str, tuple[Delta, float]]:
    """Every guard with its limit: the allowed rise of the false-positive rate, the budget's number of points where none is given."""
    limit = policy.max_drop.value if policy.max_fpr_rise is None else policy.max_fpr_rise
    return {name.replace("_", "-", 1).replace("_", " "): (delta, limit) for name, delta in evidence.guards.items()}


def speed_faults(candidate: Candidate, policy: Policy) -> list[str]:
    """Why it is too slow, in sentences; empty if it is not."""
    timed = asked(candidate, policy)
    found = [f"It is slower than the baseline at batch {m.batch}: {say.ratio(m.speedup)}." for m in timed if m.speedup and slower(m)]
    ceiling = policy.max_latency_ms
    if ceiling is not None and timed and timed[0].batch == min(policy.batch) and timed[0].latency_ms.p95 > ceiling:
        found.append(f"Its p95 latency at batch {timed[0].batch} is {say.ms(timed[0].latency_ms.p95)}; the ceiling is {say.ms(ceiling)}.")
    return found


def damaged_slices(evidence: Comparison, policy: Policy) -> tuple[SliceResult, ...]:
    """Slices over the budget with their whole interval (corrected for their number).

    The hardest tenth is where any loss gathers: ten times the overall drop there is arithmetic, not news.
    It counts only beyond three times the budget.
    """
    budget = policy.max_drop.value
    return tuple(s for s in evidence.slices if s.delta.ci_low > budget * (FAR if s.name == HARDEST else 1))


def _judge_source(candidate: Candidate, evidence: Comparison, policy: Policy) -> Judgement:
    """Source precision on some runtime: nothing to prove, but it must compute the same thing."""
    quality = say.quality(evidence, policy)
    if evidence.delta.value > policy.max_drop.value:
        return Judgement(candidate.id, "refuse", (f"This runtime does not compute what the baseline does. {quality}",))
    faults = speed_faults(candidate, policy)
    if candidate.status == "dropped" or faults:
        return Judgement(candidate.id, "reject", (*faults, *candidate.reasons))
    return Judgement(candidate.id, "keep", ("Source precision: nothing about the model changes.", *candidate.reasons))


def _doubts(candidate: Candidate, evidence: Comparison, policy: Policy, finalists: int) -> list[str]:
    """What is still open about a candidate whose estimates all hold, in sentences."""
    found = []
    if candidate.confirm is None:
        found.append("It was seen on the search's samples alone; a choice made on them needs others to confirm it.")
    elif evidence.delta.ci_high > policy.max_drop.value:
        shared = f", shared by {finalists} finalists" if finalists > 1 else ""
        confidence = say.percent(policy.confidence)
        found.append(f"The estimate is within the budget of {policy.max_drop}, the interval ({confidence}{shared}) is not.")
    for name, (delta, limit) in guards(evidence, policy).items():
        if delta.ci_high > limit:
            found.append(f"The {name} may rise by up to {say.points(delta.ci_high)}; {say.points(limit)} is allowed.")
    for piece in damaged_slices(evidence, policy):
        found.append(f"Slice '{piece.name}' loses too much: {say.difference(piece.delta)} on {piece.n:,} samples.")
    return [*found, *_timing_doubts(candidate, policy)]


def _timing_doubts(candidate: Candidate, policy: Policy) -> list[str]:
    timed = {m.batch: m for m in asked(candidate, policy) if m.speedup is not None}
    found = [f"It was not timed at batch {batch}." for batch in policy.batch if batch not in timed]
    for batch, m in timed.items():
        if m.noisy and m.speedup is not None and m.speedup.ci_low < NOT_SLOWER:
            found.append(f"The machine was too noisy to call its speed at batch {batch}: {say.ratio(m.speedup)}.")
    return found
