"""The samples of a subject: one pool, and who may see which rows of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Split:
    """Rows of the pool.

    Attributes:
        calibration: What every producer gets.
        validation: What accuracy control may score candidates on; labels come with it. The calibration rows again
            where there are no others.
        test: What the panel scores; nobody sees it before.
    """

    calibration: Array
    validation: Array
    test: Array


@dataclass(frozen=True)
class Pool:
    """Preprocessed samples by input name [n, ...], labels [n] or [n, ...] or None, and the splits."""

    feeds: Mapping[str, Array]
    labels: Array | None
    splits: tuple[Split, ...]

    def rows(self, rows: Array) -> dict[str, Array]:
        return {name: np.ascontiguousarray(values[rows]) for name, values in self.feeds.items()}

    def labels_of(self, rows: Array) -> Array | None:
        return None if self.labels is None else np.asarray(self.labels[rows])


def folds(n: int, count: int, calibrate: int) -> tuple[Split, ...]:
    """Calibrate on one part, score the others; samples are dealt out in turn, so that every fold spans the data."""
    rows = np.arange(n)
    parts = [rows[rows % count == fold] for fold in range(count)]
    return tuple(Split(part[:calibrate], part[:calibrate], np.setdiff1d(rows, part)) for part in parts)


def cached(folder: Path, make: Callable[[], Pool]) -> Pool:
    """The pool from disk, memory-mapped; made and written first where it is not there."""
    index = folder / "pool.json"
    if not index.exists():
        _save(folder, make())
    content = json.loads(index.read_text())
    feeds = {name: np.load(folder / file, mmap_mode="r") for name, file in content["feeds"].items()}
    labels = np.load(folder / "labels.npy") if content["labels"] else None
    return Pool(feeds, labels, tuple(Split(*(np.array(rows) for rows in split)) for split in content["splits"]))


def _save(folder: Path, pool: Pool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: f"feed{position}.npy" for position, name in enumerate(pool.feeds)}
    for name, file in files.items():
        np.save(folder / file, pool.feeds[name])
    if pool.labels is not None:
        np.save(folder / "labels.npy", pool.labels)
    splits = [[part.tolist() for part in (split.calibration, split.validation, split.test)] for split in pool.splits]
    content = {"feeds": files, "labels": pool.labels is not None, "splits": splits}
    (folder / "pool.json").write_text(json.dumps(content))
