"""From a bundle's measurements to how it is served: batch size, sessions, workers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lowbit.types import Measurement, Tuning

NEARLY = 0.97
"""A smaller batch is as good when it has this share of the best throughput: it answers sooner."""


def largest_useful(measurements: Sequence[Measurement]) -> int:
    """The smallest measured batch size with (nearly) the best throughput; 1 where nothing was measured."""
    best = max((measured.throughput_per_s for measured in measurements), default=0.0)
    return min((measured.batch for measured in measurements if measured.throughput_per_s >= NEARLY * best), default=1)


def compiled(measurements: Sequence[Measurement], most: int) -> dict[int, tuple[Tuning, float]]:
    """Batch sizes that have a faster session of their own (a fixed shape): size -> tuning and median milliseconds."""
    found: dict[int, tuple[Tuning, float]] = {}
    for measured in measurements:
        if measured.tuning.fixed_shape and measured.tuning.streams == 1 and measured.tokens is None and measured.batch <= most:
            found[measured.batch] = (measured.tuning, measured.latency_ms.p50)
    return found


def cover(rows: int, cost: Mapping[int, float]) -> tuple[int, ...]:
    """The cheapest sizes that hold a number of rows together; the last may be padded.

    Args:
        rows: At least 1.
        cost: Size -> time of one call.

    Returns:
        Sizes, largest first; their sum is at least `rows`.
    """
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for n in range(1, rows + 1):
        best.append(min((best[max(n - size, 0)][0] + time, (*best[max(n - size, 0)][1], size)) for size, time in cost.items()))
    return tuple(sorted(best[rows][1], reverse=True))
