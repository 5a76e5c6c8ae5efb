"""What a subject of the panel is: a model, its samples, its task, and the shapes at which it is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from panel.paths import models
from panel.pool import Array, Pool, cached
from panel.tasks import TASKS, Task

Feeds = dict[str, Array]


@dataclass(frozen=True)
class Subject:
    """One model of the panel.

    Attributes:
        name: Short, also its folder.
        task: Key of `tasks.TASKS`.
        model: Makes or finds the ONNX file.
        make_pool: Reads and preprocesses the samples; the result is kept on disk.
        shapes: What is timed: a word -> feeds from the pool. By default batch 1 and 8 of the first test samples.
        transformer: It has attention: quantizers with a setting for that get it.
        batch: Samples per call where the model allows any.
        fixed_batch: The model's own batch size where it is fixed.
        quick: Test samples in a quick run.
    """

    name: str
    task: str
    model: Callable[[], Path]
    make_pool: Callable[[], Pool]
    shapes: Callable[[Pool], Mapping[str, Feeds]] | None = None
    transformer: bool = False
    batch: int = 8
    fixed_batch: int | None = None
    quick: int = 500

    @property
    def judge(self) -> Task:
        return TASKS[self.task]

    @property
    def call(self) -> int:
        """Samples per call when scoring."""
        return self.fixed_batch or self.batch

    def pool(self) -> Pool:
        return cached(models(self.name) / "pool", self.make_pool)

    def timed(self) -> Mapping[str, Feeds]:
        pool = self.pool()
        if self.shapes is not None:
            return self.shapes(pool)
        sizes = (self.fixed_batch,) if self.fixed_batch else (1, 8)
        return {str(size): pool.rows(pool.splits[0].test[:size]) for size in sizes}


def part(length: int, count: int) -> Array:
    """`count` of `length` rows, evenly spread: data sorted by class keep all their classes."""
    return np.arange(count) * length // count
