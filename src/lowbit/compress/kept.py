"""What is kept while a model is looked at: samples that wait, and rows that were taken; on disk where they are many."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping

import numpy as np

from lowbit.data.spool import Rows, Spool
from lowbit.types import Array, Feeds

IN_MEMORY = 1 << 22
"""Bytes up to which they stay in memory."""


class Waiting:
    """Batches that are looked at once it is known how many there are; on disk where they are large."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  (closed with the object)
        self._names: list[list[str]] = []

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Feeds]:
        self._file.seek(0)
        for names in self._names:
            yield {name: np.load(self._file) for name in names}

    def add(self, feeds: Feeds) -> None:
        """Takes one more, which is not needed any more afterwards."""
        for values in feeds.values():
            np.save(self._file, values)
        self._names.append(list(feeds))


class Kept(Mapping[str, Array]):
    """Rows by product, one part a batch: on disk where they are many, and put together at every look."""

    def __init__(self) -> None:
        self._spool = Spool(IN_MEMORY)
        self._parts: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
        self._all: Rows | None = None

    def add(self, name: str, rows: Array) -> None:
        """Takes the rows [R, ...] float32 of one batch."""
        start = self._spool.append(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data) // 4
        self._parts.setdefault(name, []).append((start, rows.shape))

    def __getitem__(self, name: str) -> Array:
        if self._all is None:
            self._all = self._spool.rows(np.float32, (self._spool.size // 4,))
        parts = self._parts[name]
        found = np.empty((sum(shape[0] for _, shape in parts), *parts[0][1][1:]), np.float32)
        row = 0
        for start, shape in parts:
            found[row : row + shape[0]] = self._all[start : start + math.prod(shape)].reshape(shape)
            row += shape[0]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
