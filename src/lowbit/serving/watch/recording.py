"""What a server remembers of its traffic, to compare with what was measured: confidences, classes, latencies, statistics of inputs.

All of it only grows and adds up: `monitoring.snapshots` makes windows out of the differences. Looking at an answer lives on a budget, a
share of the time that the runs take. A model that answers in milliseconds has every answer looked at, one that answers in microseconds as
many as the budget allows, and the snapshot says how many. Counting requests, failures and latencies costs under a microsecond: all count.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.measure.compare import BINS
from lowbit.monitoring.latency import COUNTS, bin_of
from lowbit.monitoring.tally import Key
from lowbit.serving.keep.spending import Ran
from lowbit.serving.run.deployment import CHOSEN
from lowbit.serving.watch.logs import FAULTS
from lowbit.serving.watch.numbers import WHOLE, Columns, Moments, places
from lowbit.serving.watch.observing import Observer
from lowbit.types import Array, Feeds, TensorInfo

if TYPE_CHECKING:
    from lowbit.serving.answer.answered import Answered, Caller
    from lowbit.serving.protocol.refusals import Refusal
    from lowbit.serving.protocol.requests import InferRequest
    from lowbit.serving.run.deployment import Deployment

SHARE = 0.004
"""Of the time that runs take, for looking at answers; the rest of 1 % is for what cannot be seen from here."""
SAVED_S = 0.05
"""As much budget as may be saved up: no burst is longer."""
WIDE = 256
"""Columns of an input that are looked at one by one; what has more is no table, but an embedding or a signal."""
CLASSES = 10_000
"""Classes that are counted; of models with more the snapshot has no classes."""


class Record:
    """Of one variant of one version."""

    def __init__(self, deployment: Deployment, threads: int = 1) -> None:
        """Nothing yet; its runs have so many threads."""
        self.reader = deployment.reader
        self.threads = threads
        self.requests = self.errors = 0
        self.seen = self.recorded = 0
        self.ran_s = 0.0
        self.seconds = [0] * COUNTS
        self.confidence = np.zeros(BINS, np.int64)
        self.predictions: Array | None = None
        widths = {info.name: _columns(info) for info in deployment.inputs}
        self.columns = {name: Columns(width) for name, width in widths.items() if width}
        numeric = (info.name for info in deployment.inputs if np.dtype(info.dtype).kind in "fiub")
        self.inputs = {name: Moments() for name in numeric if name not in self.columns}

    def add(self, feeds: Feeds, outputs: Mapping[str, Array], rows: int, classes: tuple[Array, Array] | None = None) -> None:
        """One request and its answer; `classes` are the confidence and class of each row, where somebody has read them."""
        self.recorded += rows
        for name, moments in self.inputs.items():
            flat = feeds[name].reshape(-1)
            moments.add(flat if flat.size <= WHOLE else flat.take(places(flat.size)))
        for name, columns in self.columns.items():
            columns.add(feeds[name])
        if self.reader is not None:
            self._classes(*(classes or self.reader.top(outputs)), outputs[self.reader.output])

    def _classes(self, confidence: Array, predicted: Array, scores: Array) -> None:
        bins = np.minimum((confidence * BINS).astype(np.intp), BINS - 1)
        counted = self.predictions
        if counted is None:
            width = max(scores[:1].size, 2)
            counted = self.predictions = np.zeros(width if width <= CLASSES else 0, np.int64)
        if len(bins) == 1:
            self.confidence[bins[0]] += 1
            if 0 <= predicted[0] < counted.size:
                counted[predicted[0]] += 1
        else:
            self.confidence += np.bincount(bins, minlength=BINS)
            counted += np.bincount(predicted[(predicted >= 0) & (predicted < counted.size)], minlength=counted.size)

    def shown(self) -> dict[str, Any]:
        """As JSON has it."""
        inputs = {name: moments.shown() for name, moments in self.inputs.items()}
        return {
            "requests": self.requests + self.errors,
            "errors": self.errors,
            "rows_seen": self.seen,
            "rows_recorded": self.recorded,
            "ran_s": self.ran_s,
            "seconds": list(self.seconds),
            "confidence": {"low": 0.0, "high": 1.0, "counts": self.confidence.tolist()} if self.reader else None,
            "predictions": [] if self.predictions is None else self.predictions.tolist(),
            "inputs": inputs | {name: columns.whole() for name, columns in self.columns.items()},
            "columns": {name: columns.shown() for name, columns in self.columns.items()},
        }


class Recorder(Observer):
    """Records what happened to requests, and what runs answered. Answers from a cache are only counted: looked at, they would count the
    same inputs twice."""

    def __init__(self, share: float = SHARE) -> None:
        """Spends at most this share of the runs' time."""
        self.server = token_hex(8)
        self._share = share
        self._credit = self._cost = 0.0
        self._since = datetime.now(UTC)
        self._records: dict[tuple[str, str, str], Record] = {}

    def answered(self, deployment: Deployment, request: InferRequest, caller: Caller, found: Answered, seconds: float) -> None:  # noqa: ARG002
        """One more; looked at, if the budget allows."""
        record = self._of(deployment, found.variant.id)
        record.requests += 1
        record.seconds[bin_of(seconds)] += 1
        if not found.batch:
            return
        rows = len(next(iter(request.inputs.values())))
        mine = found.ran_s * rows / max(found.batch, rows)
        record.seen += rows
        record.ran_s += mine
        self._credit = min(self._credit + self._share * mine, SAVED_S)
        if self._credit < self._cost:
            return
        start = time.thread_time()
        record.add(request.inputs, found.outputs, rows, None if record.reader is None else found.top(record.reader))
        spent = time.thread_time() - start
        self._cost = 0.9 * self._cost + 0.1 * spent if self._cost else spent
        self._credit -= spent

    def refused(self, deployment: Deployment | None, caller: Caller, refusal: Refusal, seconds: float) -> None:  # noqa: ARG002
        """One that failed by the server's own fault; a client's mistakes are nobody's error rate."""
        if deployment is not None and refusal.status >= FAULTS:
            self._of(deployment, refusal.variant or deployment.variants[CHOSEN].id).errors += 1

    def _of(self, deployment: Deployment, variant: str) -> Record:
        key = (deployment.name, deployment.version, variant)
        record = self._records.get(key)
        if record is None:
            record = self._records[key] = Record(deployment, _threads(deployment, variant))
        return record

    def ran(self) -> dict[Key, Ran]:
        """What each variant has done since the server began; quicker than a snapshot."""
        return {Key(*key): Ran(each.ran_s, each.threads, each.requests, each.seen) for key, each in self._records.items()}

    def snapshot(self) -> dict[str, Any]:
        """Everything since the server began; `monitoring.snapshots` reads it."""
        models = [
            {"model": model, "version": version, "variant": variant, **record.shown()}
            for (model, version, variant), record in self._records.items()
        ]
        return {"server": self.server, "since": self._since.isoformat(), "models": models}


def _columns(info: TensorInfo) -> int:
    """How many numbers a row of a table has, each with a meaning of its own; 0 for what is no table. Whole numbers are words, mostly."""
    width = info.shape[1] if len(info.shape) == 2 else None
    return width if isinstance(width, int) and width <= WIDE and np.dtype(info.dtype).kind == "f" else 0


def _threads(deployment: Deployment, variant: str) -> int:
    try:
        return deployment.bundle.manifest.entry(variant).tuning.threads or os.cpu_count() or 1
    except KeyError:  # a deployment that no bundle describes
        return 1
