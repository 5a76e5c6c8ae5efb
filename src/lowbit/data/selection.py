"""Which samples of a pool to calibrate on: few that stand for all, chosen by their features.

Pure functions on points [N, K]: what the coordinates are is another's business (`lowbit.compress.features`). Everything is
deterministic for a seed, and memory stays near that of the points: no table of all distances is ever made.

Sources: farthest-first traversal is Gonzalez, Clustering to minimize the maximum intercluster distance (1985), a 2-approximation
of the k-center problem, used for choosing samples by Sener and Savarese, Active learning for convolutional neural
networks: a core-set approach (2018); herding is Welling, Herding dynamical weights to learn (2009), with the random Fourier
features of Rahimi and Recht (2007) as Chen, Welling and Smola's kernel herding (2010) asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from lowbit.errors import UsageError, unknown
from lowbit.types import Array

Method = Literal["mixed", "clusters", "k-center", "herding", "random"]
METHODS: tuple[Method, ...] = get_args(Method)
EDGES = 0.25
"""Share of a mixed selection that goes to edge cases."""

_WAVES = 256
_LARGE = 20_000
_BINS = 5


def choose(points: Array, n: int, method: Method = "mixed", *, strata: Array | None = None, seed: int = 0) -> Array:
    """Positions of n samples that stand for the pool, int64 [n], in rising order.

    Args:
        points: [N, K], finite.
        n: How many, 1 to N.
        method: "clusters": the middle one of each of n clusters. "k-center": each as far as possible from those before it, so that no
            sample of the pool is far from all of them. "mixed": clusters, and a quarter farthest from those. "herding": so
            that their distribution follows the pool's. "random".
        strata: [N] numbers of groups that each get their share, None for none; see `strata_of`.
        seed: Of everything random.

    Raises:
        UsageError: an unknown method, or n is out of range.
    """
    if method not in METHODS:
        raise unknown("selection method", method, METHODS)
    if not 1 <= n <= len(points):
        raise UsageError(f"{n} samples were asked for; the pool has {len(points)} different ones.", f"Give 1 to {len(points)}.")
    points = np.asarray(points, np.float32)
    groups = np.zeros(len(points), np.int64) if strata is None else np.unique(strata, return_inverse=True)[1]
    members = [np.flatnonzero(groups == group) for group in range(int(groups.max()) + 1)]
    middle = n - round(EDGES * n) if method == "mixed" else n
    shares = quotas([len(rows) for rows in members], middle, seed)
    inner: Method = "clusters" if method == "mixed" else method
    chosen = np.concatenate([rows[_ALGORITHMS[inner](points[rows], k, seed)] for rows, k in zip(members, shares, strict=True) if k])
    if middle < n:  # edge cases wherever they are: a quota for them would spend it on groups that have none
        chosen = np.concatenate([chosen, farthest(points, n - middle, chosen)])
    return np.sort(chosen)


def quotas(sizes: Sequence[int], n: int, seed: int = 0) -> list[int]:
    """How many of n samples each group gets: in proportion, at least one each where n allows, never more than it has.

    By largest remainders (Hamilton's method); where there are more groups than samples, larger groups come first and equal
    ones by lot.
    """
    size = np.asarray(sizes, np.int64)
    lot = np.random.default_rng(seed).permutation(len(size))
    if n <= len(size):
        taken = np.zeros(len(size), np.int64)
        taken[np.lexsort((lot, -size))[:n]] = 1
        return [int(count) for count in taken]
    exact = n * size / size.sum()
    share = np.maximum(np.floor(exact), 1).astype(np.int64)
    while share.sum() != n:
        gap, step = exact - share, 1 if share.sum() < n else -1
        free = share < size if step > 0 else share > 1
        share[np.lexsort((lot, np.where(free, -step * gap, np.inf)))[0]] += step
    return [int(count) for count in share]


def strata_of(columns: Sequence[Array]) -> Array | None:
    """One group number a sample [N] from labels and slice columns; targets that are fractions fall into five ranges of equal size.

    Args:
        columns: [N] each; columns of more axes or of objects (boxes, say) are left out.
    """
    coded = []
    for column in columns:
        if column.ndim != 1 or column.dtype.kind == "O":
            continue
        if column.dtype.kind == "f":
            column = np.searchsorted(np.quantile(column, np.arange(1, _BINS) / _BINS), column, side="right")
        coded.append(np.unique(column, return_inverse=True)[1])
    return None if not coded else np.unique(np.stack(coded, axis=1), axis=0, return_inverse=True)[1].reshape(-1)


def farthest(points: Array, n: int, chosen: Array) -> Array:
    """n more positions, each the farthest from all before it and from those already `chosen`; O(N n) time, O(N) memory."""
    squares = np.einsum("ij,ij->i", points, points)
    nearest = np.full(len(points), np.inf, np.float32)
    for position in chosen:
        np.minimum(nearest, _squared(points, squares, int(position)), out=nearest)
    nearest[chosen] = -1.0
    found: list[int] = []
    for _ in range(n):
        position = int(np.argmax(nearest))
        found.append(position)
        np.minimum(nearest, _squared(points, squares, position), out=nearest)
        nearest[position] = -1.0
    return np.array(found, np.int64)


def nearest_distance(points: Array, references: Array, width: int = 4096) -> Array:
    """Distance of each point [N, K] to the nearest reference [M, K]: float32 [N]."""
    squares = np.einsum("ij,ij->i", references, references)
    parts = []
    for start in range(0, len(points), width):
        block = points[start : start + width]
        squared = np.einsum("ij,ij->i", block, block) + (squares[:, np.newaxis] - 2 * references @ block.T).min(axis=0)
        parts.append(np.sqrt(squared.clip(0)))
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def cluster(points: Array, n: int, seed: int) -> tuple[Array, Array]:
    """k-means: the number of each point's cluster [N], and the centres [at most n, K]; on one thread, so that sums have one order."""
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    kind, extra = (MiniBatchKMeans, {"batch_size": 4096}) if len(points) > _LARGE else (KMeans, {})
    n = min(n, len(np.unique(points, axis=0)))  # points that coincide are one
    with threadpool_limits(1):
        fitted = kind(n, n_init=1, random_state=seed, **extra).fit(points)
    return np.asarray(fitted.labels_), np.asarray(fitted.cluster_centers_)


def _squared(points: Array, squares: Array, position: int) -> Array:
    """Squared distances of all points to one of them."""
    return np.asarray((squares - 2 * (points @ points[position]) + squares[position]).clip(0))


def _clusters(points: Array, n: int, seed: int) -> Array:
    """The point next to the centre of each cluster; where points coincide and clusters are empty, the farthest points fill up."""
    if n == len(points):
        return np.arange(n)
    labels, centres = cluster(points, n, seed)
    away = np.square(points - centres[labels]).sum(axis=1)
    order = np.lexsort((away, labels))
    chosen = order[np.unique(labels[order], return_index=True)[1]]
    return np.concatenate([chosen, farthest(points, n - len(chosen), chosen)])


def _k_center(points: Array, n: int, seed: int) -> Array:
    start = np.array([np.random.default_rng(seed).integers(len(points))])
    return np.concatenate([start, farthest(points, n - 1, start)])


def _herding(points: Array, n: int, seed: int) -> Array:
    """Greedily keeps the mean of the chosen near the pool's mean, in waves that stand for a Gaussian kernel."""
    rng = np.random.default_rng(seed)
    scale = np.sqrt(2 * points.var(axis=0).sum()) or 1.0
    angles = points @ (rng.normal(size=(points.shape[1], _WAVES)) / scale).astype(np.float32)
    waves = np.cos(angles + rng.uniform(0, 2 * np.pi, _WAVES).astype(np.float32))
    target = waves.mean(axis=0)
    free, sum_ = np.ones(len(points), np.bool_), np.zeros(_WAVES, np.float32)
    half = np.einsum("ij,ij->i", waves, waves) / 2
    found: list[int] = []
    for count in range(1, n + 1):
        score = np.where(free, waves @ (count * target - sum_) - half, -np.inf)
        found.append(int(np.argmax(score)))
        free[found[-1]], sum_ = False, sum_ + waves[found[-1]]
    return np.array(found, np.int64)


def _random(points: Array, n: int, seed: int) -> Array:
    return np.random.default_rng(seed).choice(len(points), n, replace=False)


_ALGORITHMS = {"clusters": _clusters, "k-center": _k_center, "herding": _herding, "random": _random}
