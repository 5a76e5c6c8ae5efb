"""Whether a language model's answers moved: their perplexity, their length, and how often they refuse. Pure.

A window knows each answer by three numbers and a class (`serving.language.measures`). Every rule asks for an effect and for evidence, as
those of `shifts` do: at large n everything is significant.
"""

from __future__ import annotations

import math

from lowbit.measure.compare import SHIFT_SAMPLES
from lowbit.monitoring.findings import Finding
from lowbit.monitoring.moments import Moments
from lowbit.monitoring.tally import Tally

TOKENS, SURPRISE, PROMPT = "answer_tokens", "surprise", "prompt_tokens"
"""Numbers of an answer: how long it is, the mean of its tokens' -log p, and how long its prompt is."""
REFUSAL = 2
"""The class of answers that begin like a refusal."""
PERPLEXITY = 0.10
"""Relative change of the answers' perplexity that counts."""
LENGTH = 0.25
"""Standard deviations of the baseline by which the mean length may move."""
REFUSALS = 0.02
"""Rise of the share of refusals that counts."""
STANDARD_ERRORS = 3.0


def are_answers(tally: Tally) -> bool:
    """Whether these counts are a language model's."""
    return {TOKENS, SURPRISE} <= tally.inputs.keys()


def findings(tally: Tally, normal: Tally, *, least: int = SHIFT_SAMPLES) -> tuple[Finding, ...]:
    """What the three rules say.

    Args:
        tally: Of the window.
        normal: Of the baseline.
        least: Answers that a window needs.
    """
    found = (
        _perplexity(tally.inputs.get(SURPRISE), normal.inputs.get(SURPRISE), least),
        _length(tally.inputs.get(TOKENS), normal.inputs.get(TOKENS), least),
        _refusals(tally.predictions, normal.predictions, least),
    )
    return tuple(each for each in found if each is not None)


def _perplexity(now: Moments | None, before: Moments | None, least: int) -> Finding | None:
    """The mean is over answers, not over tokens: a long answer counts as one."""
    if now is None or before is None or not now.n or not before.n:
        return None
    apart, error = now.mean - before.mean, _error(now, before)
    value = abs(math.expm1(min(apart, 50.0)))
    review = now.n >= least and value > PERPLEXITY and abs(apart) > STANDARD_ERRORS * error
    text = (
        f"Perplexity of the answers {math.exp(min(now.mean, 50.0)):.3f} against {math.exp(min(before.mean, 50.0)):.3f} "
        f"({math.expm1(min(apart, 50.0)):+.1%}); {PERPLEXITY:.0%} is allowed"
    )
    numbers = {"mean": now.mean, "baseline_mean": before.mean, "standard_error": error, "baseline_n": before.n}
    return Finding("perplexity", value, PERPLEXITY, review, _said(text, now.n, least), now.n, numbers)


def _length(now: Moments | None, before: Moments | None, least: int) -> Finding | None:
    if now is None or before is None or not now.n or not before.n:
        return None
    spread = max(before.std, 1e-6 * abs(before.mean), 1e-12)
    value = abs(now.mean - before.mean) / spread
    review = now.n >= least and value > LENGTH and abs(now.mean - before.mean) > STANDARD_ERRORS * _error(now, before)
    text = (
        f"Answers have {now.mean:.1f} tokens on average against {before.mean:.1f}: {value:.2f} standard deviations apart; "
        f"{LENGTH:g} is allowed"
    )
    numbers = {"mean": now.mean, "baseline_mean": before.mean, "std": now.std, "baseline_std": before.std, "baseline_n": before.n}
    return Finding("length", value, LENGTH, review, _said(text, now.n, least), now.n, numbers)


def _refusals(now: tuple[int, ...], before: tuple[int, ...], least: int) -> Finding | None:
    """A rise alone counts: nobody has to look where a model refuses less."""
    n, m = sum(now), sum(before)
    if not n or not m:
        return None
    share, usual = (counts[REFUSAL] / sum(counts) if len(counts) > REFUSAL else 0.0 for counts in (now, before))
    pooled = (share * n + usual * m) / (n + m)
    error = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    rise = share - usual
    review = n >= least and rise > REFUSALS and rise > STANDARD_ERRORS * error
    text = f"{share:.2%} of the answers begin like a refusal, against {usual:.2%}; {REFUSALS:.0%} more are allowed"
    numbers = {"share": share, "baseline_share": usual, "standard_error": error, "baseline_n": m}
    return Finding("refusals", max(rise, 0.0), REFUSALS, review, _said(text, n, least), n, numbers)


def _error(now: Moments, before: Moments) -> float:
    """Standard error of the difference of the two means."""
    return math.sqrt(now.std**2 / now.n + before.std**2 / before.n)


def _said(text: str, n: int, least: int) -> str:
    return f"{text}." if n >= least else f"{text}. {n:,} answers; the rule needs {least:,}."
