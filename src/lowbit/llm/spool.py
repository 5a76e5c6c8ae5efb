"""Hidden states of the calibration text: in memory while they are few, else in a file that is mapped."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

MEMORY_BYTES = 1 << 30
"""Hidden states up to this size stay in memory."""

BATCH_TOKENS = 2048
"""Tokens that run through a block at once."""


@contextmanager
def spooled(folder: Path, shape: tuple[int, int, int], memory_bytes: int = MEMORY_BYTES) -> Iterator[torch.Tensor]:
    """A float32 tensor [N, T, W]; a large one lies in a file of `folder`, whose pages the system writes out as it needs memory.

    Raises:
        OSError: the disk has no room for it.
    """
    size = int(np.prod(shape, dtype=np.int64)) * 4
    if size <= memory_bytes:
        yield torch.empty(shape)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:  # has no name: it is gone with the process, however that ends
        if hasattr(os, "posix_fallocate"):  # a mapped file that outgrows the disk kills the process
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        yield torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))


def advance(run: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor) -> None:
    """Replaces hidden states [N, T, W] by what a block makes of them, some windows at a time."""
    step = max(1, BATCH_TOKENS // hidden.shape[1])
    with torch.no_grad():
        for start in range(0, len(hidden), step):
            hidden[start : start + step] = run(hidden[start : start + step])
