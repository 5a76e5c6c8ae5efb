"""What calibration samples say about a model, gathered when it is first asked for and then kept.

Range statistics take all samples, rows of products a part of them. Recipes share what they can: a search asks for the
statistics of the prepared model once, and for those of a transformed one once a transformation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lowbit.compress.calibrate import CalibrationStats, calibrate
from lowbit.compress.capture import Captured, capture, sites
from lowbit.graph import ir_files
from lowbit.graph.groups import find_groups
from lowbit.graph.load import external_files
from lowbit.graph.profiles import ONNXRUNTIME_CPU
from lowbit.types import Batch, Feeds

SAMPLES = 100
"""Most samples that rows are taken from."""

AT_ONCE = 2
"""Samples that a model is run on at once to take rows."""


@dataclass
class Evidence:
    """Everything that calibration samples have said so far.

    Attributes:
        prepared: The prepared model.
        batches: Gives the calibration samples, anew at every call.
    """

    prepared: Path
    batches: Callable[[], Iterable[Batch]]
    _known: dict[str, CalibrationStats] = field(default_factory=dict)
    _captured: Captured | None = None

    @property
    def stats(self) -> CalibrationStats:
        """Range statistics of the prepared model."""
        return self.stats_of(self.prepared)

    @stats.setter
    def stats(self, found: CalibrationStats) -> None:
        """What a former run has saved."""
        self._known[_digest(self.prepared)] = found

    def stats_of(self, path: Path) -> CalibrationStats:
        """Range statistics of a model that takes the same inputs; one pass over all samples."""
        key = _digest(path)
        if key not in self._known:
            self._known[key] = calibrate(path, self.batches())
        return self._known[key]

    @property
    def captured(self) -> Captured:
        """Rows and channel ranges of everything a product reads, from a part of the samples."""
        if self._captured is None:
            graph = ir_files.read(self.prepared).graph
            self._captured = capture(self.prepared, sites(graph, find_groups(graph, ONNXRUNTIME_CPU)), self._feeds())
        return self._captured

    def _feeds(self) -> list[Feeds]:
        """Samples to take rows from, a few at a time: all tensors of a batch are in memory at once."""
        fixed = any(isinstance(value.shape[0], int) for value in ir_files.read(self.prepared).graph.inputs if value.shape)
        found: list[Feeds] = []
        seen = 0
        for batch in self.batches():
            if seen >= SAMPLES:
                break
            count = len(batch.rows)
            starts = [0] if fixed else range(0, count, AT_ONCE)
            step = count if fixed else AT_ONCE
            found += [{name: values[start : start + step] for name, values in batch.feeds.items()} for start in starts]
            seen += count
        return found


def _digest(path: Path) -> str:
    """Of a model with its external data: two that differ in weights alone may be the same file but for those."""
    digest = hashlib.sha256()
    for file in (path, *external_files(path)):
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
