"""What a producer is given, and what it must leave behind.

A producer is a module in `panel.producers` with

    PRELOAD: tuple[str, ...]             modules whose import is not part of the time (optional)
    def setup() -> None                  what must be there before its time counts (optional)
    def produce(job: Job) -> Notes       writes job.artifact; the notes are kept as they are (JSON)

It runs alone in its own process (`python -m panel.worker FOLDER`), which is what time and peak memory are of.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from panel.tasks import TASKS, Task

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
Notes = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One quantization to do.

    Attributes:
        model: The source ONNX file.
        calibration: .npz of calibration samples by input name.
        validation: .npz of the samples that accuracy control may score.
        labels: .npy with the validation samples' labels, None where there are none.
        out: Folder that is the producer's own.
        task: Key of `tasks.TASKS`.
        transformer: The model has attention.
        batch: Samples per call that suits the model; 1 where its batch size is fixed.
        options: The producer's own.
    """

    model: Path
    calibration: Path
    validation: Path
    labels: Path | None
    out: Path
    task: str
    transformer: bool
    batch: int
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def artifact(self) -> Path:
        return self.out / "model.onnx"

    @property
    def judge(self) -> Task:
        return TASKS[self.task]

    @cached_property
    def feeds(self) -> Feeds:
        """All calibration samples."""
        with np.load(self.calibration) as arrays:
            return {name: arrays[name] for name in arrays.files}

    @property
    def n(self) -> int:
        return len(next(iter(self.feeds.values())))

    def batches(self, size: int, limit: int | None = None) -> Iterator[Feeds]:
        """Calibration samples in batches of `size`, at most `limit` samples, spread evenly."""
        chosen = np.arange(self.n) if limit is None or limit >= self.n else np.arange(limit) * self.n // limit
        for start in range(0, len(chosen), size):
            yield {name: np.ascontiguousarray(values[chosen[start : start + size]]) for name, values in self.feeds.items()}

    def save(self) -> None:
        values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        (self.out / "job.json").write_text(json.dumps(values, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Job:
        values = json.loads((folder / "job.json").read_text())
        paths = {name: Path(values[name]) for name in ("model", "calibration", "validation", "out")}
        return cls(**values | paths | {"labels": Path(values["labels"]) if values["labels"] else None})
