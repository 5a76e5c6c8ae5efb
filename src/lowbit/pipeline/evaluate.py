"""Run a session over a data set and keep one row of outcomes per sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from lowbit.data.dataset import Dataset
from lowbit.errors import RunError
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

    def write(self, rows: Array, outputs: dict[str, Array]) -> None:
        for index, (name, values) in enumerate(outputs.items()):
            if name not in self.arrays:
                self.folder.mkdir(parents=True, exist_ok=True)
                shape = (self.size, *values.shape[1:])
                self.arrays[name] = np.lib.format.open_memmap(self.folder / f"{index}.npy", mode="w+", dtype=values.dtype, shape=shape)
            if values.shape[1:] == self.arrays[name].shape[1:]:
                self.arrays[name][rows] = values

    def rows(self, rows: Array) -> dict[str, Array]:
        return {name: np.asarray(values[rows]) for name, values in self.arrays.items()}

    def close(self) -> None:
        self.arrays.clear()
        for file in self.folder.glob("*.npy"):
            with suppress(OSError):
                file.unlink()


def call_batch(inputs: tuple[TensorInfo, ...], wanted: int = BATCH) -> int:
    """Samples per call: the model's own batch size where it is fixed, else `wanted`."""
    first = inputs[0].shape[0] if inputs and inputs[0].shape else None
    return first if isinstance(first, int) and first > 0 else wanted


def evaluate(
    session: Session,
    data: Dataset,
    metric: Metric,
    *,
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
        reference: FP32 outputs to compare with, for agreement and fidelity.
        record: Where to keep this session's outputs, when it is the FP32 one.
        stop: Asked now and then with the outcomes so far; True ends the evaluation early.
        progress: Called with the number of samples done.

    Raises:
        RunError: the runtime failed on a batch.
    """
    size = call_batch(session.inputs)
    parts: list[dict[str, Array]] = []
    done, next_look = 0, 256
    for position, batch in _positions(data, size):
        outputs = run_padded(session, batch.feeds, size)
        if record is not None:
            record.write(position, outputs)
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
    count = len(next(iter(feeds.values())))
    if count < size and call_batch(session.inputs) == size and not _open_batch(session.inputs):
        repeats = math.ceil(size / count)
        feeds = {name: np.concatenate([values] * repeats)[:size] for name, values in feeds.items()}
    outputs = session.run(feeds)
    for name, values in outputs.items():
        if values.ndim == 0 or len(values) < count:
            raise RunError(f"Output '{name}' has shape {values.shape} for {count} samples: its first axis is not the batch.")
    return {name: values[:count] for name, values in outputs.items()}


def _open_batch(inputs: tuple[TensorInfo, ...]) -> bool:
    return bool(inputs and inputs[0].shape) and not isinstance(inputs[0].shape[0], int)


def _positions(data: Dataset, size: int) -> Iterator[tuple[Array, Batch]]:
    start = 0
    for batch in data.batches(size):
        yield np.arange(start, start + len(batch.rows)), batch
        start += len(batch.rows)
