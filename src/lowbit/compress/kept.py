"""What is kept while a model is looked at: samples that wait, and rows that were taken; on disk where they are many."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit.data.spool import Rows, Spool
from lowbit.types import Array, Feeds

IN_MEMORY = 1 << 22
"""Bytes up to which they stay in memory."""


@dataclass(frozen=True)
class _Place:
    """Where one array lies, or the array itself where it has no bytes of its own (strings)."""

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    array: Array | None = None


class Waiting:
    """Batches that are looked at once it is known how many there are; on disk where they are large."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  (closed with the object)
        self._batches: list[dict[str, _Place]] = []
        self._end = 0

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Feeds]:
        for places in self._batches:
            yield {name: self._read(place) for name, place in places.items()}

    def add(self, feeds: Feeds) -> None:
        """Takes one more, which is not needed any more afterwards."""
        self._batches.append({name: self._write(values) for name, values in feeds.items()})

    def _write(self, values: Array) -> _Place:
        if values.dtype.hasobject:
            return _Place(0, values.shape, values.dtype, values)
        place = _Place(self._end, values.shape, values.dtype)
        self._file.seek(self._end)
        self._end += self._file.write(values.tobytes())
        return place

    def _read(self, place: _Place) -> Array:
        if place.array is not None:
            return place.array
        self._file.seek(place.start)
        size = math.prod(place.shape) * place.dtype.itemsize
        return np.frombuffer(bytearray(self._file.read(size)), place.dtype).reshape(place.shape)


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
