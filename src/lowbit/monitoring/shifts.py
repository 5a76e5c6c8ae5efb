"""Whether inputs or the mix of answers moved. Pure.

Every rule asks for an effect and for evidence: at large n everything is significant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lowbit.measure.compare import SHIFT_SAMPLES
from lowbit.monitoring.findings import Finding
from lowbit.monitoring.moments import Moments

MIX = 0.10
"""Share of the answers that have another class than the baseline would give them, beyond what chance does."""
MIX_ALPHA = 1e-3
THIN = 5.0
"""Classes with fewer expected answers than that are counted together."""
MOVED = 0.25
"""Standard deviations of the baseline by which an input's mean may move."""
SPREAD = 1.5
"""Factor by which its standard deviation may change."""
NOT_FINITE = 0.001
"""Share of an input's numbers that may be NaN or infinite where the baseline had none."""
SHOWN = 5


def predictions(window: Sequence[int], baseline: Sequence[int], *, limit: float = MIX, least: int = SHIFT_SAMPLES) -> Finding | None:
    """Whether the mix of predicted classes moved.

    The effect is the total variation distance, less what two samples of one mix lie apart on average; the evidence is Pearson's test of
    homogeneity (1900), its tail by Wilson and Hilferty's cube root (1931). Both have to say so.

    Args:
        window: Rows by class.
        baseline: Likewise; it may know fewer or more classes.
        limit: Of the distance beyond chance.
        least: Rows that a window needs.

    Returns:
        None where either is empty.
    """
    classes = max(len(window), len(baseline))
    theirs, ours = (np.array([*counts, *[0] * (classes - len(counts))], np.float64) for counts in (window, baseline))
    n, m = theirs.sum(), ours.sum()
    if not n or not m:
        return None
    distance = 0.5 * float(np.abs(theirs / n - ours / m).sum())
    pooled = (theirs + ours) / (n + m)
    by_chance = 0.5 * float(np.sqrt(2 / math.pi * pooled * (1 - pooled) * (1 / n + 1 / m)).sum())
    p = _homogeneous(theirs, ours)
    excess = max(distance - by_chance, 0.0)
    review = bool(n >= least and excess > limit and p < MIX_ALPHA)
    moved = theirs / n - ours / m
    most = [int(index) for index in np.argsort(-np.abs(moved), kind="stable")[:SHOWN] if moved[index]]
    text = f"{excess:.1%} of the answers went to other classes than in the baseline, beyond chance; {limit:.0%} is allowed"
    if most:
        text += f". Most: class {most[0]}, {ours[most[0]] / m:.1%} to {theirs[most[0]] / n:.1%}"
    if n < least:
        text += f". {int(n):,} rows; the rule needs {least:,}"
    changed = {str(index): [float(ours[index] / m), float(theirs[index] / n)] for index in most}
    numbers = {"distance": distance, "by_chance": by_chance, "p": p, "classes": changed, "baseline_n": int(m)}
    return Finding("predictions", excess, limit, review, f"{text}.", int(n), numbers)


def _homogeneous(theirs: Any, ours: Any) -> float:
    """P that two rows of counts from one mix lie so far apart."""
    n, m = theirs.sum(), ours.sum()
    pooled = (theirs + ours) / (n + m)
    thin = pooled * min(n, m) < THIN
    rows = [np.append(counts[~thin], counts[thin].sum()) for counts in (theirs, ours)]
    together = (rows[0] + rows[1]) / (n + m)
    kept = together > 0
    freedom = int(kept.sum()) - 1
    if freedom < 1:
        return 1.0
    chi = sum(
        float(((counts - total * together)[kept] ** 2 / (total * together[kept])).sum()) for counts, total in zip(rows, (n, m), strict=True)
    )
    z = ((chi / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2))


def inputs(
    window: Mapping[str, Moments],
    baseline: Mapping[str, Moments],
    columns: Mapping[str, Sequence[Moments]],
    baseline_columns: Mapping[str, Sequence[Moments]],
    rows: int,
    *,
    limit: float = MOVED,
    least: int = SHIFT_SAMPLES,
) -> Finding | None:
    """Whether the numbers that come in moved: of each input as a whole, and of each column of a table.

    An input's values depend on each other within a row, at worst wholly, so that the rows count and not the values: with 2,000 of them the
    mean of one that did not move is off by less than 0.1 standard deviations, four standard errors, whatever the values are.

    Args:
        window: By input.
        baseline: Likewise.
        columns: By input, of each column.
        baseline_columns: Likewise.
        rows: That were looked at.
        limit: Standard deviations by which a mean may move; a spread may change by the factor `SPREAD`.
        least: Rows that a window needs.

    Returns:
        None where there is nothing to compare.
    """
    pairs = {name: (baseline[name], moments) for name, moments in window.items() if name in baseline}
    for name, each in columns.items():
        known = zip(baseline_columns.get(name, ()), each, strict=False)
        pairs |= {f"{name}[{index}]": pair for index, pair in enumerate(known)}
    scores = {name: _score(before, now, limit) for name, (before, now) in pairs.items() if before.n and (now.n or now.not_finite)}
    if not scores:
        return None
    name = max(scores, key=lambda each: scores[each])
    before, now = pairs[name]
    over = {each: round(score, 4) for each, score in scores.items() if score > 1}
    text = (
        f"Input {name} has mean {now.mean:.4g} and standard deviation {now.std:.4g}; the baseline {before.mean:.4g} and {before.std:.4g}: "
        f"{scores[name]:.2f} times what is allowed ({limit:g} standard deviations, a factor of {SPREAD:g} in spread)"
    )
    if now.not_finite:
        text += f". {now.not_finite:,} of its numbers are not finite"
    if rows < least:
        text += f". {rows:,} rows; the rule needs {least:,}"
    worst = sorted(over, key=lambda each: -over[each])[:SHOWN]
    numbers = {"worst": name, "over": {each: over[each] for each in worst}, "n_over": len(over), "baseline_n": before.n}
    return Finding("inputs", scores[name], 1.0, bool(rows >= least and over), f"{text}.", rows, numbers)


def _score(before: Moments, now: Moments, limit: float) -> float:
    """What moved most, over what is allowed of it: above 1 counts."""
    broken = now.not_finite / (now.n + now.not_finite) if not before.not_finite else 0.0
    if not now.n:
        return broken / NOT_FINITE
    # A constant has no spread to measure by: then by its own size, so that rounding is no drift.
    spread = max(before.std, 1e-6 * abs(before.mean), 1e-12)
    moved = abs(now.mean - before.mean) / spread / limit
    ratio = max(now.std, 1e-6 * abs(now.mean), 1e-12) / spread
    return max(moved, abs(math.log(ratio)) / math.log(SPREAD), broken / NOT_FINITE)
