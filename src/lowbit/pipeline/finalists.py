"""Which candidates are worth the confirming samples: few, likely to win, and not all alike. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowbit.pipeline.objective import SOURCE, asked, gain, preferred, slower
from lowbit.types import Candidate, Policy

WORTH = 0.9
"""A candidate whose gain is below this share of the fastest source precision's will not be chosen: no samples for it."""


def select_finalists(candidates: Sequence[Candidate], policy: Policy, best: int = 3) -> tuple[str, ...]:
    """Chooses by search evidence and measurements alone, so that the confirming samples stay unseen.

    First the best by the objective, then the most accurate (the safety net: often a 16-bit one), then the best whose
    whole interval was within the budget already, then the next best by the objective; another recipe goes before
    the same recipe on another runtime. Source precision is never a finalist: keeping it needs no proof.

    Args:
        candidates: Everything tried, in any order.
        policy: Budget and objective.
        best: At most this many.

    Returns:
        Ids, the most promising first; empty when nothing is within the budget.
    """
    gains = [_gain(c, policy) for c in candidates if c.precision == SOURCE and _sound(c, policy)]
    floor = WORTH * max((known for known in gains if not math.isnan(known)), default=0.0)
    # "not <" keeps candidates that were not timed: their gain is NaN.
    pool = [c for c in candidates if c.precision != SOURCE and _sound(c, policy) and not _gain(c, policy) < floor]
    chosen: list[Candidate] = []
    for role in (_by_objective, _safest, _comfortable):
        _add(chosen, role(_fresh(pool, chosen), policy), best)
    while len(chosen) < min(best, len(pool)):
        _add(chosen, _by_objective(_fresh(pool, chosen) or _rest(pool, chosen), policy), best)
    return tuple(candidate.id for candidate in chosen)


def _gain(candidate: Candidate, policy: Policy) -> float:
    return gain(candidate, _NOBODY, policy)


def _sound(candidate: Candidate, policy: Policy) -> bool:
    """True for a finished, unbroken candidate within the budget by its estimate and not slower than the baseline."""
    search = candidate.search
    if candidate.status != "done" or search is None or search.broken is not None:
        return False
    if search.delta.value > policy.max_drop.value or any(slower(m) for m in asked(candidate, policy)):
        return False
    timed = asked(candidate, policy)
    return not (policy.max_latency_ms is not None and timed and timed[0].latency_ms.p95 > policy.max_latency_ms)


def _by_objective(pool: Sequence[Candidate], policy: Policy) -> Candidate | None:
    return preferred(pool, _NOBODY, policy) if pool else None


def _safest(pool: Sequence[Candidate], policy: Policy) -> Candidate | None:
    """The one whose interval ends lowest; of equals the best by the objective."""
    if not pool:
        return None
    least = min(_worst_case(candidate) for candidate in pool)
    return _by_objective([candidate for candidate in pool if _worst_case(candidate) <= least], policy)


def _comfortable(pool: Sequence[Candidate], policy: Policy) -> Candidate | None:
    return _by_objective([candidate for candidate in pool if _worst_case(candidate) <= policy.max_drop.value], policy)


def _worst_case(candidate: Candidate) -> float:
    return candidate.search.delta.ci_high if candidate.search is not None else math.inf


def _fresh(pool: Sequence[Candidate], chosen: Sequence[Candidate]) -> list[Candidate]:
    """Candidates of recipes (and precisions: a recipe may run in 16 bit too) that nobody chosen has."""
    taken = {(candidate.recipe, candidate.precision) for candidate in chosen}
    return [candidate for candidate in pool if (candidate.recipe, candidate.precision) not in taken]


def _rest(pool: Sequence[Candidate], chosen: Sequence[Candidate]) -> list[Candidate]:
    return [candidate for candidate in pool if candidate not in chosen]


def _add(chosen: list[Candidate], candidate: Candidate | None, best: int) -> None:
    if candidate is not None and len(chosen) < best:
        chosen.append(candidate)


_NOBODY = Candidate("", "", "", SOURCE, size_bytes=1)
"""Stands for the baseline, whose size only scales all gains alike."""
