"""Latency as counts in fixed bins: they add up over servers, and a percentile is right to the width of a bin (2.1 %)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

LOWEST_S, HIGHEST_S = 1e-4, 30.0
STEPS = 600
_STEP = math.log(HIGHEST_S / LOWEST_S) / STEPS
EDGES_S: tuple[float, ...] = tuple(LOWEST_S * math.exp(_STEP * i) for i in range(STEPS + 1))
"""Bin i holds what is at least EDGES_S[i - 1] and less than EDGES_S[i]; the first what is quicker, the last what is slower."""
COUNTS = len(EDGES_S) + 1


def bin_of(seconds: float) -> int:
    """The bin of one time."""
    return bisect_right(EDGES_S, seconds)


def quantile(counts: Sequence[int], share: float) -> float | None:
    """The time that this share of the counted ones does not exceed, in seconds; None without any.

    Within a bin times are taken to be spread evenly; what is slower than the highest edge is called as slow as that.

    Args:
        counts: By bin [COUNTS].
        share: 0-1, e.g. 0.99.
    """
    total = sum(counts)
    if not total:
        return None
    wanted, below = share * total, 0
    for index, count in enumerate(counts):
        if count and below + count >= wanted:
            low = EDGES_S[index - 1] if index else 0.0
            high = EDGES_S[min(index, STEPS)]
            return low + (high - low) * (wanted - below) / count
        below += count
    return HIGHEST_S


def share_over(counts: Sequence[int], limit_s: float) -> float:
    """Share of the counted times that are over a limit; 0 without any. Times in the limit's own bin count by how much of it is over."""
    total = sum(counts)
    if not total:
        return 0.0
    index = bin_of(limit_s)
    if index == len(EDGES_S):
        return counts[index] / total  # how far beyond the highest edge is not known
    over = float(sum(counts[index + 1 :]))
    if counts[index]:
        low = EDGES_S[index - 1] if index else 0.0
        over += counts[index] * (EDGES_S[index] - limit_s) / (EDGES_S[index] - low)
    return over / total
