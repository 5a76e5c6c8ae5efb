"""What an exported artifact is asked: real samples where there are any, else random draws from what calibration saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lowbit.bundle.bundle import Bundle
from lowbit.data import split
from lowbit.data.dataset import Dataset
from lowbit.data.open import open_data
from lowbit.errors import DataError
from lowbit.export.base import Level
from lowbit.export.neutral import Neutral
from lowbit.pipeline.request import Data
from lowbit.quant.observers import TensorStats
from lowbit.types import Array, Feeds, TensorInfo

MOST: Mapping[Level, int] = {"run": 500, "checked": 500, "emulated": 200, "interpreted": 200}
"""Samples by default: emulators and interpreters are slow."""
SIZE = 16
"""Samples a call."""


@dataclass(frozen=True)
class Questions:
    """Samples for one proof.

    Attributes:
        data: Real ones, none of which calibrated; None where they are drawn.
        drawn: Input name -> [N, ...], where there is no data.
        n: How many are asked.
    """

    data: Dataset | None
    drawn: Feeds
    n: int

    def batches(self) -> Iterator[tuple[Feeds, Array | None]]:
        """Feeds and labels, a few samples at a time."""
        if self.data is None:
            for start in range(0, self.n, SIZE):
                yield {name: values[start : start + SIZE] for name, values in self.drawn.items()}, None
            return
        for batch in self.data.subset(np.arange(self.n)).batches(SIZE):
            yield batch.feeds, batch.labels


def questions(bundle: Bundle, source: Neutral, data: Data | Dataset | None, wanted: int) -> Questions:
    """The first `wanted` samples that did not calibrate, or as many draws.

    Raises:
        DataError: the data do not fit the model, or all of them calibrated.
    """
    if data is None:
        drawn = {info.name: draws(source.stats.get(info.name), info, min(wanted, 256)) for info in source.inputs}
        return Questions(None, drawn, min(wanted, 256))
    if not isinstance(data, Dataset):
        data = without_calibration(bundle, open_data(data, source.inputs, bundle.preprocess))
    return Questions(data, {}, min(wanted, len(data)))


def without_calibration(bundle: Bundle, data: Dataset) -> Dataset:
    """The samples that the search did not calibrate on, where these are the data that the search had."""
    parts = split(data, None, None)
    if parts.calibration.fingerprint != bundle.manifest.data.calibration.sha256:
        return data
    return parts.validation


def draws(stats: TensorStats | None, info: TensorInfo, n: int, seed: int = 0) -> Array:
    """Independent values, distributed as calibration saw an input's, [n, ...] in the input's shape.

    Raises:
        DataError: calibration saw nothing of it, or it has axes of any size beside the batch.
    """
    shape = [dim for dim in info.shape[1:] if isinstance(dim, int)]
    if stats is None or len(shape) != len(info.shape) - 1 or not np.issubdtype(np.dtype(info.dtype), np.floating):
        raise DataError(f"No values can be made up for the input '{info.name}'.", "Give real ones: --data DATA.")
    generator = np.random.default_rng(seed)
    histogram = stats.histogram
    if histogram.count == 0:
        return generator.uniform(stats.low, stats.high, (n, *shape)).astype(info.dtype)
    edges = histogram.edges
    bins = generator.choice(len(histogram.counts), (n, *shape), p=histogram.counts / histogram.count)
    return generator.uniform(edges[bins], edges[bins + 1]).clip(stats.low, stats.high).astype(info.dtype)
