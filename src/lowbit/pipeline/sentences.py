"""Numbers in words, as decisions say them: always with their unit, their interval and what they are compared with."""

from __future__ import annotations

import math

from lowbit.bundle import words
from lowbit.types import Comparison, Delta, Policy, Ratio


def quality(evidence: Comparison, policy: Policy) -> str:
    """E.g. "top1 is 0.8120 against the baseline's 0.8140: 0.20 pp worse (between 0.10 pp better and 0.50 pp worse, 95 %) on ..."."""
    ours, theirs = value(evidence.metric.value), value(evidence.baseline.value)
    name = words.metric_name(evidence.metric.name or policy.metric)
    return f"{name} is {ours} against the baseline's {theirs}: {difference(evidence.delta)} on {evidence.metric.n:,} {counted(evidence)}."


def counted(evidence: Comparison) -> str:
    """What the metric's n counts."""
    return "tokens" if evidence.metric.name == "perplexity" else "samples"


def difference(delta: Delta) -> str:
    """A delta with its interval, worse and better spelled out because metrics differ in direction."""
    interval = f"between {_end(delta.ci_low, delta.relative)} and {_end(delta.ci_high, delta.relative)}"
    change = "no difference" if _is_nothing(delta.value) else _end(delta.value, delta.relative)
    return f"{change} ({interval}, {percent(delta.confidence)})"


def _end(amount: float, relative: bool) -> str:
    size = f"{abs(amount) * 100:.2f} {'%' if relative else 'pp'}"
    return size if _is_nothing(amount) else f"{size} {'worse' if amount > 0 else 'better'}"


def _is_nothing(amount: float) -> bool:
    return round(abs(amount) * 100, 2) == 0


def flips(delta: Delta) -> str:
    """How many predictions changed sides; empty where that has no meaning."""
    if delta.worse is None or delta.better is None:
        return ""
    return f"Of {delta.n:,} samples {delta.worse:,} became wrong and {delta.better:,} became right."


def value(number: float) -> str:
    return f"{number:.4f}" if abs(number) < 100 else f"{number:,.1f}"


def percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def points(amount: float) -> str:
    return f"{amount * 100:.2f} pp"


def ratio(speedup: Ratio | None) -> str:
    return "not timed" if speedup is None else f"{speedup.value:.2f}x [{speedup.ci_low:.2f}, {speedup.ci_high:.2f}]"


def ms(milliseconds: float) -> str:
    return f"{milliseconds:.3g} ms" if milliseconds < 100 else f"{milliseconds:,.0f} ms"


def size(n: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= factor:
            return f"{n / factor:.3g} {unit}"
    return f"{n} bytes"


def listed(parts: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def round_up(n: float) -> int:
    """To two significant digits, upwards: a forecast has no more."""
    step = 10 ** max(0, math.floor(math.log10(max(n, 1))) - 1)
    return int(math.ceil(n / step) * step)
