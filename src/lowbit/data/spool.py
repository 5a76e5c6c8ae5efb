"""Arrays that stay on disk, and bytes that go there when they outgrow memory.

Rows are read, not memory-mapped: mapped pages count as the process's memory until the system takes them
back, and a pass over a large file would look like a leak.
"""

from __future__ import annotations

import tempfile
import threading
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from lowbit.errors import DataError
from lowbit.types import Array

IN_MEMORY = 256 * 2**20
"""Bytes up to which nothing is written to disk."""


class Rows(Protocol):
    """What of numpy's array a source needs: shape, dtype, and rows by slice or by positions."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def ndim(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, where: Any, /) -> Any: ...


class FileRows:
    """A C-ordered array in a file, read row by row. Safe to use from several threads.

    Args:
        file: Open for reading; kept.
        dtype: Of the values.
        shape: Rows first.
        offset: Where in the file the array starts, in bytes.
    """

    def __init__(self, file: IO[bytes], dtype: DTypeLike, shape: tuple[int, ...], offset: int = 0) -> None:
        self._file, self._offset, self._lock = file, offset, threading.Lock()
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.shape = shape
        self.ndim = len(shape)
        self._row_bytes = self.dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: Any) -> Array:
        """Rows by slice (step 1) or by an array of positions."""
        if isinstance(where, slice):
            start, stop, _ = where.indices(len(self))
            out = np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)
            self._read(start, out)
            return out
        out = np.empty((len(where), *self.shape[1:]), self.dtype)
        for index, row in enumerate(np.asarray(where).tolist()):
            self._read(row, out[index : index + 1])
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        whole = self[0 : len(self)]
        return whole if dtype is None else whole.astype(dtype)

    def _read(self, row: int, out: Array) -> None:
        flat = out.reshape(-1).view(np.uint8)  # a view: `out` is contiguous
        with self._lock:
            self._file.seek(self._offset + row * self._row_bytes)
            got = self._file.readinto(flat)  # type: ignore[attr-defined]
        if got != out.nbytes:
            raise DataError("A data file became shorter while it was read.", "Leave the data alone during a run.")


class Spool:
    """Append bytes, then read them back as an array.

    The file has no name and goes away with the process. It lies in the folder that TMPDIR names.
    """

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._limit = in_memory
        self._file = tempfile.SpooledTemporaryFile(max_size=in_memory)  # noqa: SIM115  (closed when the object goes)
        self.size = 0

    def append(self, data: bytes | memoryview) -> int:
        """Adds bytes and returns where they start.

        Raises:
            DataError: the disk is full.
        """
        start = self.size
        try:
            self._file.write(data)
        except OSError as error:
            raise _full(self.size, error) from error
        self.size += len(data)
        return start

    def rows(self, dtype: DTypeLike, shape: tuple[int, ...]) -> Rows:
        """All bytes as an array of this shape: in memory, or on disk where they are many.

        Raises:
            DataError: the disk is full.
        """
        try:
            self._file.flush()
        except OSError as error:
            raise _full(self.size, error) from error
        if self.size > self._limit:
            file: Any = self._file
            return FileRows(file, dtype, shape)
        self._file.seek(0)
        return np.frombuffer(self._file.read(), np.uint8).view(dtype).reshape(shape) if self.size else np.empty(shape, dtype)


def _full(size: int, error: OSError) -> DataError:
    return DataError(
        f"The data does not fit on the temporary disk ({size} bytes were written): {error.strerror or error}.",
        "Point TMPDIR to a folder with more space.",
    )
