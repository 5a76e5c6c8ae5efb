"""The decision about a language model: pure, so that the same evidence always gives the same answer, whatever order it comes in.

A candidate is judged by itself as any other model's is (lowbit.pipeline.judge), against the budget for its number of bits and against its
tasks. Of what holds, the workload decides: the best by the objective ships. Nothing that is not confirmed ships.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lowbit.bundle import words
from lowbit.bundle.language_words import as_adjective, is_source
from lowbit.bundle.schema import LanguageCandidateEntry, SpeedEntry, TaskEntry
from lowbit.pipeline import objective
from lowbit.pipeline import sentences as say
from lowbit.pipeline.judge import judge
from lowbit.pipeline.language.budgets import budget_of
from lowbit.types import Budget, Candidate, Decision, Judgement, Policy, Verdict

TIE = objective.TIE
TASK_DROP = 0.02
"""What a task may lose, in points of its own 0-1 scale, where the user says nothing else."""

Facts = Mapping[str, LanguageCandidateEntry]


def decide(
    baseline: Candidate,
    candidates: Sequence[Candidate],
    facts: Facts,
    policy: Policy,
    asked: Budget | None = None,
    task_drop: float = TASK_DROP,
) -> Decision:
    """What to run, why, and what to do next.

    Args:
        baseline: The 16-bit model on the engine that everything is compared with.
        candidates: Everything tried, in any order; the baseline among them does no harm.
        facts: Speed and tasks of each, by id.
        policy: Objective, confidence; its own budget is the loosest that applies.
        asked: The user's budget for all; None: by bits (`budget_of`).
        task_drop: What a task may lose, absolute.

    Returns:
        The decision with a judgement for the baseline and every candidate.
    """
    tried = sorted((c for c in candidates if c.id != baseline.id), key=lambda c: c.id)
    finalists = sum(c.confirm is not None and not is_source(c.precision) for c in tried)
    judged = {c.id: _judge(c, facts.get(c.id), policy, asked, task_drop, finalists) for c in tried}
    pool = [baseline, *(c for c in tried if is_source(c.precision) and judged[c.id].verdict == "keep")]
    source = _best(pool, facts, policy)
    verdict, chosen, about = _choose(tried, judged, source, facts, policy)
    judgements = _relative_to(chosen, baseline, tried, judged, facts, policy)
    budget = budget_of(about.precision, asked)
    reasons = _reasons(verdict, chosen, about, source, baseline, judged, facts, budget, policy, finalists)
    return Decision(verdict, chosen.id, reasons, _next(verdict, about, source, facts, budget), judgements)


def score(entry: LanguageCandidateEntry | None, policy: Policy, size: int | None = None) -> float:
    """The objective as a number to make small: seconds a request, seconds a token of all, or bytes; NaN where it was not measured."""
    if policy.objective == "size":
        return float(size) if size else math.nan
    speed = entry.speed if entry else None
    if speed is None:
        return math.nan
    return 1 / speed.throughput_tokens_per_s.value if policy.objective == "throughput" else speed.total_s.value


def _judge(
    candidate: Candidate, entry: LanguageCandidateEntry | None, policy: Policy, asked: Budget | None, task_drop: float, finalists: int
) -> Judgement:
    """As any candidate, with the budget for its bits; then its tasks."""
    own = replace(policy, max_drop=budget_of(candidate.precision, asked))
    plain = replace(candidate, precision=objective.SOURCE) if is_source(candidate.precision) else candidate
    judgement = judge(plain, own, finalists)
    if entry is None or judgement.verdict not in ("ship", "provisional") or not (found := _task_faults(entry.tasks, task_drop)):
        return judgement
    verdict: Verdict = "recover" if any(sure for sure, _ in found) else "provisional"
    return Judgement(candidate.id, verdict, (*judgement.reasons, *(text for _, text in found)))


def _task_faults(tasks: Sequence[TaskEntry], allowed: float) -> list[tuple[bool, str]]:
    """Tasks that lose too much, by the estimate (True) or by the interval alone (False)."""
    found = []
    for task in tasks:
        delta = task.delta
        if delta.value > allowed:
            found.append((True, f"Task '{task.name}' loses {say.points(delta.value)}; {say.points(allowed)} is allowed."))
        elif delta.ci_high > allowed:
            found.append((False, f"Task '{task.name}' may lose up to {say.points(delta.ci_high)}; {say.points(allowed)} is allowed."))
    return found


def _best(pool: Sequence[Candidate], facts: Facts, policy: Policy) -> Candidate:
    """Best by the objective; among equals (within 3 %) the smallest, then the one that loses least, then the first by name."""
    scores = {c.id: score(facts.get(c.id), policy, c.size_bytes) for c in pool}
    known = [value for value in scores.values() if not math.isnan(value)]
    floor = min(known, default=math.nan) * (1 + TIE)
    left = [c for c in pool if scores[c.id] <= floor] or list(pool)
    return min(left, key=lambda c: (c.size_bytes or math.inf, objective.loss(c), c.id))


def _choose(
    tried: Sequence[Candidate], judged: Mapping[str, Judgement], source: Candidate, facts: Facts, policy: Policy
) -> tuple[Verdict, Candidate, Candidate]:
    """The verdict, what to run, and which candidate the verdict is about."""

    def of(verdict: Verdict) -> list[Candidate]:
        found = [c for c in tried if not is_source(c.precision) and judged[c.id].verdict == verdict]
        return [c for c in found if _gains(c, source, facts, policy)]

    if shippable := of("ship"):
        best = _best(shippable, facts, policy)
        return "ship", best, best
    if hopeful := of("provisional"):
        confirmed = [c for c in hopeful if c.confirm is not None]
        best = _best(confirmed or hopeful, facts, policy)
        return "provisional", best, best
    if recoverable := of("recover"):
        return "recover", source, min(recoverable, key=lambda c: (objective.loss(c), c.id))
    return "keep", source, source


def _gains(candidate: Candidate, source: Candidate, facts: Facts, policy: Policy) -> bool:
    """True where a candidate beats the best 16-bit version by the objective, or ties with it and is smaller. Unmeasured may still."""
    ours = score(facts.get(candidate.id), policy, candidate.size_bytes)
    theirs = score(facts.get(source.id), policy, source.size_bytes)
    if math.isnan(ours) or math.isnan(theirs) or ours < theirs / (1 + TIE):
        return True
    return ours <= theirs * (1 + TIE) and (candidate.size_bytes or math.inf) < (source.size_bytes or 0)


def _relative_to(
    chosen: Candidate, baseline: Candidate, tried: Sequence[Candidate], judged: Mapping[str, Judgement], facts: Facts, policy: Policy
) -> tuple[Judgement, ...]:
    """The judgements once the choice is known: what holds and was passed over says so, with the number that decided."""
    found = [Judgement(baseline.id, "keep", (f"The {as_adjective(baseline.precision)} model: what everything is compared with.",))]
    best = score(facts.get(chosen.id), policy, chosen.size_bytes)
    for candidate in tried:
        judgement = judged[candidate.id]
        ours = score(facts.get(candidate.id), policy, candidate.size_bytes)
        if candidate.id != chosen.id and judgement.verdict == "ship" and not (math.isnan(ours) or math.isnan(best)):
            numbers = f"{_measure(best, policy)}, this one {_measure(ours, policy)}"
            text = f"It holds too; {chosen.id} is preferred for {policy.objective} ({numbers})."
            judgement = replace(judgement, reasons=(*judgement.reasons, text))
        found.append(judgement)
    return tuple(found)


def _measure(value: float, policy: Policy) -> str:
    """A score in words."""
    if policy.objective == "size":
        return say.size(int(value))
    return f"{1 / value:,.0f} tokens a second" if policy.objective == "throughput" else f"{words.digits(value)} s a request"


def _reasons(
    verdict: Verdict,
    chosen: Candidate,
    about: Candidate,
    source: Candidate,
    baseline: Candidate,
    judged: Mapping[str, Judgement],
    facts: Facts,
    budget: Budget,
    policy: Policy,
    finalists: int,
) -> tuple[str, ...]:
    """Quality, then speed on the workload, then size: complete sentences."""
    if verdict == "keep":
        return _keep_reasons(source, baseline, judged, facts)
    own = replace(policy, max_drop=budget)
    evidence = about.evidence
    assert evidence is not None, "every verdict but keep is about evidence"
    if verdict == "recover":
        opening = f"Nothing that gains holds its budget; {about.id} comes nearest to {budget}. {judged[about.id].reasons[0]}"
        return (opening, *judged[about.id].reasons[1:], f"Until then {source.id} at {source.precision} is what to run.")
    if verdict == "provisional":
        opening = f"{about.id} looks right and is not proved: {judged[about.id].reasons[0]}"
        return (opening, *judged[about.id].reasons[1:], *_speeds(chosen, source, facts), *_sizes(chosen, baseline))
    shared = f" The {finalists} finalists share the error rate of {say.percent(1 - policy.confidence)}." if finalists > 1 else ""
    held = f"{chosen.id} holds the budget of {budget} with its whole interval: {say.quality(evidence, own)}"
    unseen = f"The windows of text that confirmed it played no part in the search.{shared}"
    return (held, unseen, *_speeds(chosen, source, facts), *_sizes(chosen, baseline))


def _keep_reasons(source: Candidate, baseline: Candidate, judged: Mapping[str, Judgement], facts: Facts) -> tuple[str, ...]:
    named = {"refuse": "refused", "reject": "rejected", "recover": "over the budget without a gain"}
    named |= {"ship": "without a gain", "provisional": "without a gain"}
    counts: dict[str, int] = {}
    for judgement in sorted(judged.values(), key=lambda each: each.verdict):
        if word := named.get(judgement.verdict):
            counts[word] = counts.get(word, 0) + 1
    parts = [f"{n} {word}" for word, n in counts.items()]
    why = f"Of the other candidates {say.listed(parts)}." if parts else "No changed candidate held."
    first = f"{source.precision} stays, on its fastest engine: {source.id}."
    if source.id == baseline.id:
        first = f"The {as_adjective(source.precision)} model stays as it is."
    return (first, why, *_speeds(source, baseline, facts, "the baseline"))


def _speeds(candidate: Candidate, source: Candidate, facts: Facts, known_as: str | None = None) -> list[str]:
    """On the workload: a request, its first token, and both rates; then against another."""
    known_as = known_as or f"the best {as_adjective(source.precision)} version"
    speed = _speed(candidate.id, facts)
    if speed is None:
        return []
    reads, writes = words.digits(speed.prefill_tokens_per_s.value), words.digits(speed.decode_tokens_per_s.value)
    found = [
        f"A request takes {words.digits(speed.total_s.value)} s, its first token {words.milliseconds(speed.ttft_ms.value)}: "
        f"it reads {reads} tokens a second and writes {writes}."
    ]
    theirs = _speed(source.id, facts)
    if theirs is not None and source.id != candidate.id:
        times = theirs.total_s.value / speed.total_s.value
        found.append(f"That is {words.times(times)} as fast as {known_as}, {source.id}.")
    return found


def _speed(ident: str, facts: Facts) -> SpeedEntry | None:
    entry = facts.get(ident)
    return entry.speed if entry else None


def _sizes(chosen: Candidate, baseline: Candidate) -> list[str]:
    if not chosen.size_bytes or not baseline.size_bytes:
        return []
    share = chosen.size_bytes / baseline.size_bytes
    return [f"It takes {say.size(chosen.size_bytes)} instead of {say.size(baseline.size_bytes)} ({share:.2f} of it)."]


def _next(verdict: Verdict, about: Candidate, source: Candidate, facts: Facts, budget: Budget) -> tuple[str, ...]:
    """What to do now."""
    if verdict == "ship":
        other = as_adjective(source.precision)
        steps = [f"Serve it: `lowbit serve BUNDLE`; the {other} model lies beside it for fallback and rollback."]
        if not (facts[about.id].tasks if about.id in facts else ()):
            steps.append("Perplexity is not the task: give questions with known answers (--qa) before it answers people.")
        return tuple(steps)
    if verdict == "provisional":
        narrower = "More text to judge on makes the interval narrower."
        return (narrower, f"Until it is settled, put {about.id} behind a canary, with {source.id} to fall back on.")
    if verdict == "recover":
        return (
            "Give more, and more varied, calibration text: it is the cheapest thing to try first.",
            "Smaller groups, or a mixed recipe with a larger mean of bits, lose less (--recipe).",
        )
    return (f"Ask again with another budget than {budget}, another workload, or more engines installed (`lowbit doctor`).",)
