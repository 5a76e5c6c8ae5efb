"""The decision: pure, so that the same evidence always gives the same answer, whatever order it comes in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from lowbit.pipeline.judge import judge, speed_faults
from lowbit.pipeline.objective import SOURCE, TIE, gain, loss, preferred
from lowbit.pipeline.reasons import keep_reasons, next_steps, provisional_reasons, recover_reasons, ship_reasons
from lowbit.types import Candidate, Decision, Judgement, Policy, Verdict

Judged = dict[str, Judgement]


def decide(baseline: Candidate, candidates: Sequence[Candidate], policy: Policy, advice: Sequence[str] = ()) -> Decision:
    """What to run, why, and what to do next (docs/concepts/decision.md explains the words).

    A finalist that holds in everything ships if it also gains over the fastest source precision, on whatever
    runtime that is; so a change of runtime is never sold as quantization. Nothing that is not confirmed ships.

    Args:
        baseline: The source model on the baseline runtime.
        candidates: Everything tried, in any order; the baseline among them does no harm.
        policy: What the user asked for.
        advice: Sentences of `advise`, said first.

    Returns:
        The decision with a judgement for the baseline and every candidate.
    """
    tried = sorted((c for c in candidates if c.id != baseline.id), key=lambda c: c.id)
    finalists = sum(c.confirm is not None and c.precision != SOURCE for c in tried)
    judged = {c.id: judge(c, policy, finalists) for c in tried}
    source = _best_source(baseline, tried, judged, policy)
    verdict, chosen, about = _choose(baseline, tried, judged, source, policy)
    judgements = _relative_to(chosen, source, baseline, tried, judged, policy)
    if verdict == "ship":
        reasons = ship_reasons(chosen, source, baseline, policy, finalists)
    elif verdict == "provisional":
        reasons = provisional_reasons(chosen, judged[chosen.id], source, baseline, policy)
    elif verdict == "recover":
        reasons = recover_reasons(about, judged[about.id], source, policy)
    else:
        reasons = keep_reasons(chosen, baseline, tried, judged, policy)
    steps = next_steps(verdict, about, source, policy, judged)
    return Decision(verdict, chosen.id, (*advice, *reasons), steps, judgements)


def _best_source(baseline: Candidate, tried: Sequence[Candidate], judged: Judged, policy: Policy) -> Candidate:
    """The fastest at source precision; one that meets the latency ceiling goes before one that does not."""
    pool = [baseline, *(c for c in tried if c.precision == SOURCE and judged[c.id].verdict == "keep")]
    meeting = [c for c in pool if not speed_faults(c, policy)]
    return preferred(meeting or pool, baseline, policy)


def _choose(
    baseline: Candidate, tried: Sequence[Candidate], judged: Judged, source: Candidate, policy: Policy
) -> tuple[Verdict, Candidate, Candidate]:
    """The verdict, what to run, and which candidate the verdict is about."""

    def of(verdict: Verdict) -> list[Candidate]:
        return [c for c in tried if c.precision != SOURCE and judged[c.id].verdict == verdict and _gains(c, source, baseline, policy)]

    if shippable := of("ship"):
        best = preferred(shippable, baseline, policy)
        return "ship", best, best
    if hopeful := of("provisional"):
        confirmed = [c for c in hopeful if c.confirm is not None]
        best = preferred(confirmed or hopeful, baseline, policy, doubtful=True)
        return "provisional", best, best
    if recoverable := of("recover"):
        return "recover", source, min(recoverable, key=lambda c: (loss(c), c.id))
    return "keep", source, source


def _gains(candidate: Candidate, source: Candidate, baseline: Candidate, policy: Policy) -> bool:
    """True when a candidate is better than the best source precision by the objective, beyond a tie.

    On a tie the smaller one wins, by the rule of `preferred`. What was not timed may still gain: that is for
    its judgement to doubt.
    """
    ours, theirs = gain(candidate, baseline, policy), gain(source, baseline, policy)
    if math.isnan(ours) or ours > theirs * (1 + TIE):
        return True
    return ours >= theirs * (1 - TIE) and preferred([candidate, source], baseline, policy).id == candidate.id


def _relative_to(
    chosen: Candidate, source: Candidate, baseline: Candidate, tried: Sequence[Candidate], judged: Judged, policy: Policy
) -> tuple[Judgement, ...]:
    """The judgements once the choice is known: what is dominated is rejected, what is not says why it was passed over."""
    found = [Judgement(baseline.id, "keep", ("The baseline: what everything is compared with.",))]
    for candidate in tried:
        judgement = judged[candidate.id]
        if candidate.id != chosen.id and judgement.verdict in ("ship", "provisional"):
            if not _gains(candidate, source, baseline, policy):
                sentence = f"It gains nothing over {source.id} at source precision."
                judgement = Judgement(candidate.id, "reject", (*judgement.reasons, sentence))
            elif _dominated(candidate, chosen, baseline, policy):
                sentence = f"Dominated: {chosen.id} is as fast, as small and as accurate, or better."
                judgement = Judgement(candidate.id, "reject", (*judgement.reasons, sentence))
            elif judgement.verdict == "ship":
                judgement = replace(judgement, reasons=(*judgement.reasons, _passed_over(candidate, chosen, baseline, policy)))
        found.append(judgement)
    return tuple(found)


def _dominated(candidate: Candidate, by: Candidate, baseline: Candidate, policy: Policy) -> bool:
    if candidate.size_bytes is None or by.size_bytes is None:
        return False
    return (
        gain(by, baseline, policy) >= gain(candidate, baseline, policy)
        and by.size_bytes <= candidate.size_bytes
        and loss(by) <= loss(candidate)
    )


def _passed_over(candidate: Candidate, chosen: Candidate, baseline: Candidate, policy: Policy) -> str:
    ours, best = gain(candidate, baseline, policy), gain(chosen, baseline, policy)
    if ours >= best * (1 - TIE):
        return f"It holds too, and gains as much as {chosen.id}, which goes before it by size, accuracy or name."
    return f"It holds too; {chosen.id} is preferred for {policy.objective} ({best:.2f}x the baseline, this one {ours:.2f}x)."
