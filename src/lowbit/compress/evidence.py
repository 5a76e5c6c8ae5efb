"""What calibration samples say about a model, gathered when it is first asked for and then kept.

Range statistics take all samples, rows of products a part of them. Recipes share what they can: a search asks for the
statistics of the prepared model once, and for those of a transformed one once a transformation.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbit.compress.calibrate import CalibrationStats, calibrate
from lowbit.compress.capture import Captured, Site, capture, sites
from lowbit.compress.sessions import apart, split_off, trim
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
    _digests: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _captured: Captured | None = None
    _light: Path | None = None

    @property
    def light(self) -> Path:
        """The prepared model; where it is large, a copy with its weights in a file of their own, for as long as this lives."""
        if self._light is None:
            folder = tempfile.mkdtemp()
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self._light = split_off(self.prepared, Path(folder))
        return self._light

    @property
    def stats(self) -> CalibrationStats:
        """Range statistics of the prepared model."""
        return self.stats_of(self.prepared)

    @stats.setter
    def stats(self, found: CalibrationStats) -> None:
        """What a former run has saved."""
        self._known[self._digest(self.prepared)] = found

    def stats_of(self, path: Path) -> CalibrationStats:
        """Range statistics of a model that takes the same inputs; one pass over all samples."""
        key = self._digest(path)
        if key not in self._known:
            if path == self.prepared:
                self._known[key] = calibrate(self.light, self.batches())
            else:
                with apart(path) as light:
                    self._known[key] = calibrate(light, self.batches())
            trim()
        return self._known[key]

    @property
    def captured(self) -> Captured:
        """Rows and channel ranges of everything a product reads, from a part of the samples."""
        if self._captured is None:
            where, fixed = self._sites()  # the model itself is forgotten: its weights would be in memory twice
            trim()
            self._captured = capture(self.light, where, self._feeds(fixed))
            trim()
        return self._captured

    def _sites(self) -> tuple[dict[str, Site], bool]:
        """What products read, and whether the batch size is fixed."""
        graph = ir_files.read(self.light).graph
        fixed = any(isinstance(value.shape[0], int) for value in graph.inputs if value.shape)
        return sites(graph, find_groups(graph, ONNXRUNTIME_CPU)), fixed

    def _feeds(self, fixed: bool) -> Iterator[Feeds]:
        """Samples to take rows from, a few at a time: all tensors of a batch are in memory at once."""
        seen = 0
        for batch in self.batches():
            if seen >= SAMPLES:
                break
            count = len(batch.rows)
            step = count if fixed else AT_ONCE
            for start in range(0, count, step):
                yield {name: values[start : start + step] for name, values in batch.feeds.items()}
            seen += count

    def _digest(self, path: Path) -> str:
        """Of a model with its external data: two that differ in weights alone may be the same file but for those.

        A file that is as old and as large as before is not read again.
        """
        files = (path, *external_files(path))
        key = tuple((file, *_age(file)) for file in files)
        if key not in self._digests:
            digest = hashlib.sha256()
            for file in files:
                with file.open("rb") as opened:
                    while block := opened.read(1 << 20):
                        digest.update(block)
            self._digests[key] = digest.hexdigest()
        return self._digests[key]


def _age(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size
