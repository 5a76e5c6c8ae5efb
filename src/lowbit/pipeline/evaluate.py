"""Run a session over a data set and keep one row of outcomes per sample."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.data.dataset import Dataset
from lowbit.errors import DataError, RunError
from lowbit.measure.metrics import Metric
from lowbit.measure.outcomes import Outcomes
from lowbit.runtimes.base import Session
from lowbit.types import Array, Batch, Feeds, TensorInfo

BATCH = 32
"""Samples per call where the model leaves the batch axis open."""

Progress = Callable[[int], None]
Stop = Callable[[Outcomes], bool]


class Reference:
    """FP32 outputs of every sample, on disk, so that candidates can be compared with them row by row."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.arrays: dict[str, Array] = {}

    def write(self, rows: Array, outputs: Mapping[str, Array]) -> None:
        for index, (name, values) in enumerate(outputs.items()):
            if name not in self.arrays:
                self.arrays[name] = _on_disk(self.folder / f"{index}.npy", (self.size, *values.shape[1:]), values.dtype)
            if values.shape[1:] != self.arrays[name].shape[1:]:
                raise DataError(
                    f"Output '{name}' changes its shape between batches ({list(values.shape[1:])}, {list(self.arrays[name].shape[1:])}).",
                    "Pad all samples to one length, so that answers can be compared.",
                )
            self.arrays[name][rows] = values

    def rows(self, rows: Array) -> dict[str, Array]:
        return {name: np.asarray(values[rows]) for name, values in self.arrays.items()}

    def close(self) -> None:
        self.arrays.clear()
        for file in self.folder.glob("*.npy"):
            with suppress(OSError):
                file.unlink()


def _on_disk(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A memory-mapped array whose space is taken at once: a write to a map on a full disk kills the process.

    Raises:
        OSError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def call_batch(inputs: tuple[TensorInfo, ...], wanted: int = BATCH) -> int:
    """Samples per call: the model's own batch size where it is fixed, else `wanted`."""
    first = inputs[0].shape[0] if inputs and inputs[0].shape else None
    return first if isinstance(first, int) and first > 0 else wanted


def evaluate(
    session: Session,
    data: Dataset,
    metric: Metric,
    *,
    size: int | None = None,
    reference: Reference | None = None,
    record: Reference | None = None,
    stop: Stop | None = None,
    progress: Progress | None = None,
) -> Outcomes:
    """Outcomes of all samples (or of those before `stop` said so), in the order of the data set.

    Args:
        session: An open session.
        data: Samples; labels where the metric needs them.
        metric: What to observe per sample.
        size: Samples per call; the model's own or BATCH where not given.
        reference: FP32 outputs to compare with, for agreement and fidelity.
        record: Where to keep this session's outputs, when it is the FP32 one.
        stop: Asked now and then with the outcomes so far; True ends the evaluation early.
        progress: Called with the number of samples done.

    Raises:
        RunError: the runtime failed on a batch.
    """
    size = size or call_batch(session.inputs)
    parts: list[dict[str, Array]] = []
    done, next_look = 0, 256
    for position, batch in _positions(data, size):
        outputs = run_padded(session, batch.feeds, size)
        if record is not None:
            record.write(position, metric.kept(outputs))
        expected = None if reference is None else reference.rows(position)
        parts.append(metric.observe(outputs, batch.labels, expected))
        done += len(batch.rows)
        if progress:
            progress(done)
        if stop is not None and done >= next_look and done < len(data):
            next_look *= 2
            if stop(Outcomes.join(parts)):
                break
    return Outcomes.join(parts)


def run_padded(session: Session, feeds: Feeds, size: int) -> dict[str, Array]:
    """Runs a batch; a short last batch is padded for models whose batch size is fixed, and the padding cut off again."""
    count = fed = len(next(iter(feeds.values())))
    if count < size and call_batch(session.inputs, 0) == size:
        feeds, fed = {name: repeated(values, size) for name, values in feeds.items()}, size
    outputs = session.run(feeds)
    # Outputs without a row per sample (a loss, flattened boxes) are no one's prediction; the metric says if it misses one.
    kept = {name: values[:count] for name, values in outputs.items() if values.ndim and len(values) == fed}
    if not kept:
        shapes = ", ".join(f"'{name}' {list(values.shape)}" for name, values in outputs.items())
        raise RunError(f"No output has a row for each of {fed} samples: {shapes}.", "Export the model with the batch as first axis.")
    return kept


def repeated(values: Array, count: int) -> Array:
    """The first `count` rows of the values written one after the other again and again."""
    return np.concatenate([values] * -(-count // len(values)))[:count]


def _positions(data: Dataset, size: int) -> Iterator[tuple[Array, Batch]]:
    start = 0
    for batch in data.batches(size):
        yield np.arange(start, start + len(batch.rows)), batch
        start += len(batch.rows)
