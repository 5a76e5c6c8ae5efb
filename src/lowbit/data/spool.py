"""Bytes that may outgrow memory: small amounts stay there, large ones go to a temporary file and are mapped."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

from lowbit.errors import DataError
from lowbit.types import Array

IN_MEMORY = 256 * 2**20
"""Bytes up to which nothing is written to disk."""


class Spool:
    """Append bytes, then read them back as one uint8 array.

    The file has no name and goes away with the process. It lies in the folder that TMPDIR names.
    """

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._limit = in_memory
        self._file = tempfile.SpooledTemporaryFile(max_size=in_memory)  # noqa: SIM115: closed when the object goes
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
            raise DataError(
                f"The data does not fit on the temporary disk ({self.size} bytes were written): {error.strerror}.",
                "Point TMPDIR to a folder with more space.",
            ) from error
        self.size += len(data)
        return start

    def finish(self) -> Array:
        """All bytes, uint8 [size]: mapped from disk where they are many."""
        if self.size == 0:
            return np.empty(0, np.uint8)
        self._file.flush()
        if self.size > self._limit:
            file: Any = self._file
            return np.memmap(file, np.uint8, mode="r")
        self._file.seek(0)
        return np.frombuffer(self._file.read(), np.uint8)
