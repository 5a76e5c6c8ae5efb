"""What a chosen calibration set covers of its pool, and which production samples would fall outside it.

Everything stands beside the pool and beside random sets of the same size: a number that random choice reaches as well
says nothing for the chosen set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lowbit.compress.features import Features, Space
from lowbit.data.selection import choose, cluster, nearest_distance
from lowbit.types import Array

CLUSTERS = 20
"""Clusters the pool is cut into, where it has at least ten samples for each."""

DRAWS = 5
"""Random sets of the same size for comparison."""

LIMIT = 0.99
"""Production samples are outside where they are further out than this share of the pool."""


@dataclass(frozen=True)
class Group:
    """A slice, a label or a cluster: its samples in the pool and in the chosen set."""

    kind: str
    name: str
    pool: int
    chosen: int


@dataclass(frozen=True)
class TensorRange:
    """The range of one tensor over the pool and over the chosen set; `share` is the second's part of the first."""

    tensor: str
    pool: tuple[float, float]
    chosen: tuple[float, float]
    share: float


@dataclass(frozen=True)
class Reach:
    """How near a set is to the samples of its pool.

    Attributes:
        groups: Share of slices and labels with a sample in the set; None where there are none.
        clusters: Share of clusters with a sample in the set.
        ranges: Mean share of the pool's tensor ranges, 0-1.
        distance: Mean distance from a pool sample to the nearest of the set.
        farthest: The largest such distance.
    """

    groups: float | None
    clusters: float
    ranges: float
    distance: float
    farthest: float


@dataclass(frozen=True)
class Outlier:
    """A production sample outside the chosen set.

    Attributes:
        name: What a person finds it by.
        distance: To the nearest chosen sample, over the limit; above 1 = outside.
        overshoot: How far its values exceed the chosen range of the worst tensor, as a share of that range.
        tensor: That tensor, where the overshoot is what is outside.
    """

    name: str
    distance: float
    overshoot: float
    tensor: str | None


@dataclass(frozen=True)
class Production:
    """Production samples against the chosen set.

    Attributes:
        n: Samples.
        distant: How many are farther from all chosen samples than 99 % of the pool.
        exceeding: How many exceed the chosen ranges by more than 99 % of the pool.
        outside: How many are one or the other.
        expected: The share of the pool that is: what production would show if it were like the pool.
        worst: The most distant or exceeding first, at most 20.
    """

    n: int
    distant: int
    exceeding: int
    outside: int
    expected: float
    worst: tuple[Outlier, ...]


@dataclass(frozen=True)
class Coverage:
    """The report. `random` is the mean over `DRAWS` random sets of the same size."""

    n: int
    of: int
    chosen: Reach
    random: Reach
    groups: tuple[Group, ...]
    clusters: tuple[Group, ...]
    ranges: tuple[TensorRange, ...]
    production: Production | None

    def to_json(self) -> dict[str, Any]:
        """As plain data for `json.dumps`."""
        return asdict(self)


def cover(
    features: Features,
    space: Space,
    chosen: Array,
    columns: Mapping[str, Array] | None = None,
    *,
    production: tuple[Features, Callable[[int], str]] | None = None,
    seed: int = 0,
) -> Coverage:
    """Compares a chosen set with its pool, with random sets, and with production samples.

    Args:
        features: Of the pool, N samples.
        space: Fitted to it.
        chosen: Positions in the pool, int64 [n].
        columns: Slice columns and labels by name, [N] each.
        production: Features of production samples and their names by position.
        seed: Of the clusters and the random sets.
    """
    points = space.transform(features)
    labels = cluster(points, max(1, min(CLUSTERS, len(points) // 10)), seed)[0]
    groups = [group for name, values in (columns or {}).items() for group in _groups(name, values, chosen)]
    draws = [choose(points, len(chosen), "random", seed=seed + draw) for draw in range(DRAWS)]
    by_chance = [_reach(features, points, labels, columns or {}, rows) for rows in draws]
    return Coverage(
        n=len(chosen),
        of=len(points),
        chosen=_reach(features, points, labels, columns or {}, chosen),
        random=_mean(by_chance),
        groups=tuple(groups),
        clusters=tuple(_groups("cluster", labels, chosen)),
        ranges=tuple(sorted(_ranges(features, chosen), key=lambda entry: entry.share)),
        production=None if production is None else _production(features, points, space, chosen, *production),
    )


def _groups(kind: str, values: Array, chosen: Array) -> list[Group]:
    names, codes = np.unique(values, return_inverse=True)
    pool, taken = (np.bincount(part, minlength=len(names)) for part in (codes, codes[chosen]))
    return [Group(kind, str(name), int(a), int(b)) for name, a, b in zip(names.tolist(), pool, taken, strict=True)]


def _reach(features: Features, points: Array, labels: Array, columns: Mapping[str, Array], rows: Array) -> Reach:
    distance = nearest_distance(points, points[rows])
    known = [len(np.unique(values[rows])) for values in columns.values()]
    there = [len(np.unique(values)) for values in columns.values()]
    return Reach(
        groups=sum(known) / sum(there) if there else None,
        clusters=len(np.unique(labels[rows])) / len(np.unique(labels)),
        ranges=float(np.mean(_shares(features, rows))),
        distance=float(distance.mean()),
        farthest=float(distance.max()),
    )


def _mean(reaches: list[Reach]) -> Reach:
    values = {
        name: [value for entry in reaches if (value := getattr(entry, name)) is not None]
        for name in ("groups", "clusters", "ranges", "distance", "farthest")
    }
    return Reach(**{name: float(np.mean(found)) if found else None for name, found in values.items()})  # type: ignore[arg-type]


def _shares(features: Features, rows: Array) -> Array:
    """Part of each tensor's range over the pool that some samples reach [T]; tensors that never vary are covered."""
    low, high = features.low.min(axis=0), features.high.max(axis=0)
    width = (high - low).astype(np.float64)
    reached = (features.high[rows].max(axis=0) - features.low[rows].min(axis=0)).astype(np.float64)
    return np.where(width > 0, reached / np.where(width > 0, width, 1.0), 1.0)


def _ranges(features: Features, chosen: Array) -> list[TensorRange]:
    limits = [(part.low.min(axis=0), part.high.max(axis=0)) for part in (features, _rows(features, chosen))]
    found = zip(features.tensors, *limits[0], *limits[1], _shares(features, chosen), strict=True)
    return [
        TensorRange(name, (float(low), float(high)), (float(less), float(more)), float(share))
        for name, low, high, less, more, share in found
    ]


def _rows(features: Features, rows: Array) -> Features:
    return Features(features.values[rows], features.blocks, features.tensors, features.low[rows], features.high[rows])


def _overshoot(features: Features, chosen: Features) -> tuple[Array, Array]:
    """How far each sample exceeds the chosen ranges, as a share of the range of the worst tensor [N], and which that is [N]."""
    low, high = chosen.low.min(axis=0), chosen.high.max(axis=0)
    width = np.maximum(high - low, 1e-6 * np.maximum(np.abs(low), np.abs(high)).max(initial=1e-30))
    excess = np.maximum(low - features.low, features.high - high).clip(0) / width
    return excess.max(axis=1), excess.argmax(axis=1)


def _production(
    pool: Features, points: Array, space: Space, chosen: Array, features: Features, name_of: Callable[[int], str]
) -> Production:
    """The limits are the pool's own, over its samples that were not chosen (a chosen one has distance zero)."""
    inside = _rows(pool, chosen)
    others = np.setdiff1d(np.arange(len(points)), chosen)
    rest = others if len(others) else chosen
    own_distance, own_excess = nearest_distance(points[rest], points[chosen]), _overshoot(_rows(pool, rest), inside)[0]
    limit, most = max(float(np.quantile(own_distance, LIMIT)), 1e-9), float(np.quantile(own_excess, LIMIT))
    distance = nearest_distance(space.transform(features), points[chosen])
    excess, where = _overshoot(features, inside)
    distant, exceeding = distance > limit, excess > most
    # Sorted by how many times beyond its limit a sample is; an overshoot within the pool's own counts as none.
    degree = np.maximum(distance / limit, np.where(exceeding, 1 + excess - most, 0))
    worst = [int(i) for i in np.argsort(-degree, kind="stable")[:20] if distant[i] or exceeding[i]]
    return Production(
        n=len(features),
        distant=int(distant.sum()),
        exceeding=int(exceeding.sum()),
        outside=int((distant | exceeding).sum()),
        expected=float(((own_distance > limit) | (own_excess > most)).mean()),
        worst=tuple(
            Outlier(name_of(i), float(distance[i] / limit), float(excess[i]), features.tensors[int(where[i])] if exceeding[i] else None)
            for i in worst
        ),
    )
