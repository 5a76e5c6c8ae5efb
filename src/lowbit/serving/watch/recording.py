"""What a server remembers of its traffic, to compare with what was measured: confidences of answers and statistics of inputs.

Both merge: histograms of two replicas add up, moments by Chan's formula (Chan, Golub, LeVeque 1979, "Updating Formulae and a Pairwise
Algorithm for Computing Sample Variances"). Recording lives on a budget: a share of the time that the runs take. A model that answers in
milliseconds has every request recorded, one that answers in microseconds has as many as the budget allows, and the snapshot says how many.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.measure.compare import BINS
from lowbit.serving.watch.observing import Observer
from lowbit.types import Array, Feeds

if TYPE_CHECKING:
    from lowbit.serving.answer.answered import Answered, Caller
    from lowbit.serving.protocol.requests import InferRequest
    from lowbit.serving.run.deployment import Deployment

SHARE = 0.004
"""Of the time that runs take, for recording; the rest of 1 % is for what cannot be seen from here."""
RUNS, RUN = 32, 16
"""Of an input so many runs of so many values are looked at, evenly spread. A run is a cache line: the input was last touched before the
model ran, so that each place costs a trip to memory."""
WHOLE = 2 * RUNS * RUN
"""Inputs of no more values than that are looked at whole."""
SAVED_S = 0.05
"""As much budget as may be saved up: no burst is longer."""


class Moments:
    """Count, mean, variance and extremes of finite numbers; mergeable."""

    __slots__ = ("high", "low", "mean", "n", "not_finite", "squares")

    def __init__(self) -> None:
        """Of no numbers."""
        self.n, self.mean, self.squares, self.low, self.high, self.not_finite = 0, 0.0, 0.0, math.inf, -math.inf, 0

    def add(self, values: Array) -> None:
        """Numbers [n] of any type that can be float64; n may be 0."""
        if not values.size:
            return
        total = float(values.sum(dtype=np.float64))
        if not math.isfinite(total):
            kept = values[np.isfinite(values)]
            self.not_finite += values.size - kept.size
            if not kept.size:
                return
            values, total = kept, float(kept.sum(dtype=np.float64))
        n = values.size
        mean = total / n
        off = values.astype(np.float64) - mean
        self._join(n, mean, float(off @ off), float(values.min()), float(values.max()))

    def merge(self, other: Mapping[str, Any]) -> None:
        """What another replica counted, as `shown` gives it."""
        self.not_finite += other["not_finite"]
        if n := other["n"]:
            self._join(n, other["mean"], other["std"] ** 2 * n, other["min"], other["max"])

    def _join(self, n: int, mean: float, squares: float, low: float, high: float) -> None:
        both = self.n + n
        apart = mean - self.mean
        self.squares += squares + apart * apart * self.n * n / both
        self.mean += apart * n / both
        self.n = both
        self.low, self.high = min(self.low, low), max(self.high, high)

    def shown(self) -> dict[str, Any]:
        """As JSON has it; null where there is nothing."""
        if not self.n:
            return {"n": 0, "mean": None, "std": None, "min": None, "max": None, "not_finite": self.not_finite}
        std = math.sqrt(self.squares / self.n)
        return {"n": self.n, "mean": self.mean, "std": std, "min": self.low, "max": self.high, "not_finite": self.not_finite}


@lru_cache(64)
def places(size: int) -> Array:
    """Positions of `RUNS` runs in so many values, centred. Their distance has no factor in common with the size: they meet all columns."""
    step = size // RUNS
    while math.gcd(step, size) > 1:
        step -= 1
    first = (size - (RUNS - 1) * step - RUN) // 2
    return (first + step * np.arange(RUNS)[:, None] + np.arange(RUN)).reshape(-1)


class Record:
    """Of one variant of one version."""

    def __init__(self, deployment: Deployment) -> None:
        """Nothing yet."""
        self.reader = deployment.reader
        self.seen = self.recorded = 0
        self.confidence = np.zeros(BINS, np.int64)
        self.inputs = {info.name: Moments() for info in deployment.inputs if np.dtype(info.dtype).kind in "fiub"}

    def add(self, feeds: Feeds, outputs: Mapping[str, Array], rows: int) -> None:
        """One request and its answer."""
        self.recorded += rows
        for name, moments in self.inputs.items():
            flat = feeds[name].reshape(-1)
            moments.add(flat if flat.size <= WHOLE else flat.take(places(flat.size)))
        if self.reader is not None:
            found = self.reader(outputs).confidence
            bins = np.minimum((found * BINS).astype(np.intp), BINS - 1)
            if rows == 1:
                self.confidence[bins[0]] += 1
            else:
                self.confidence += np.bincount(bins, minlength=BINS)

    def shown(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "rows_seen": self.seen,
            "rows_recorded": self.recorded,
            "confidence": {"low": 0.0, "high": 1.0, "counts": self.confidence.tolist()} if self.reader else None,
            "inputs": {name: moments.shown() for name, moments in self.inputs.items()},
        }


class Recorder(Observer):
    """Records what runs answered. Answers from a cache are left out: they would count the same inputs twice."""

    def __init__(self, share: float = SHARE) -> None:
        """Spends at most this share of the runs' time."""
        self._share = share
        self._credit = self._cost = 0.0
        self._since = datetime.now(UTC)
        self._records: dict[tuple[str, str, str], Record] = {}

    def answered(self, deployment: Deployment, request: InferRequest, caller: Caller, found: Answered, seconds: float) -> None:  # noqa: ARG002
        """One more, if the budget allows."""
        if not found.batch:
            return
        key = (deployment.name, deployment.version, found.variant.id)
        record = self._records.get(key)
        if record is None:
            record = self._records[key] = Record(deployment)
        rows = len(next(iter(request.inputs.values())))
        record.seen += rows
        self._credit = min(self._credit + self._share * found.ran_s * rows / max(found.batch, rows), SAVED_S)
        if self._credit < self._cost:
            return
        start = time.thread_time()
        record.add(request.inputs, found.outputs, rows)
        spent = time.thread_time() - start
        self._cost = 0.9 * self._cost + 0.1 * spent if self._cost else spent
        self._credit -= spent

    def snapshot(self) -> dict[str, Any]:
        """Everything since the server began; `merged` puts those of replicas together."""
        models = [
            {"model": model, "version": version, "variant": variant, **record.shown()}
            for (model, version, variant), record in self._records.items()
        ]
        return {"since": self._since.isoformat(timespec="seconds"), "models": models}


def merged(snapshots: list[Mapping[str, Any]]) -> dict[str, Any]:
    """One snapshot of several replicas.

    Args:
        snapshots: At least one, from `Recorder.snapshot` or its JSON.
    """
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for entry in (entry for snapshot in snapshots for entry in snapshot["models"]):
        key = (entry["model"], entry["version"], entry["variant"])
        found[key] = _both(found[key], entry) if key in found else dict(entry)
    return {"since": min(snapshot["since"] for snapshot in snapshots), "models": list(found.values())}


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    joined = {name: one[name] for name in ("model", "version", "variant")}
    joined |= {name: one[name] + other[name] for name in ("rows_seen", "rows_recorded")}
    joined["confidence"] = one["confidence"]
    if one["confidence"] is not None:
        counts = np.add(one["confidence"]["counts"], other["confidence"]["counts"])
        joined["confidence"] = {**one["confidence"], "counts": counts.tolist()}
    joined["inputs"] = {}
    for name in one["inputs"]:
        moments = Moments()
        for part in (one, other):
            moments.merge(part["inputs"][name])
        joined["inputs"][name] = moments.shown()
    return joined
