"""What an exported artifact is asked: real samples where there are any, else random draws from what calibration saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from lowbit.bundle.bundle import Bundle
from lowbit.data import split
from lowbit.data.dataset import Dataset
from lowbit.data.open import open_data
from lowbit.data.splits import in_content_order, refuse_leak
from lowbit.errors import DataError
from lowbit.export.base import Level
from lowbit.export.neutral import Neutral, labels_for
from lowbit.pipeline.request import Data
from lowbit.quant.observers import TensorStats
from lowbit.types import Array, Dim, Feeds, TensorInfo

MOST: Mapping[Level, int] = {"run": 500, "checked": 500, "emulated": 200, "interpreted": 200}
"""Samples by default: emulators and interpreters are slow."""
MOST_DRAWN = 256
"""Random draws show that two programs compute the same; more of them show nothing more."""
SIZE = 16
"""Samples a call, where the model takes any number."""


@dataclass(frozen=True)
class Questions:
    """Samples for one proof.

    Attributes:
        data: Real ones, none of which calibrated; None where they are drawn.
        drawn: Input name -> [N, ...], where there is no data.
        n: How many are asked.
        size: Samples a call: the source model's own, where it takes no other number.
    """

    data: Dataset | None
    drawn: Feeds
    n: int
    size: int = SIZE

    def batches(self) -> Iterator[tuple[Feeds, Array | None]]:
        """Feeds and labels, `size` samples at a time."""
        if self.data is None:
            for start in range(0, self.n, self.size):
                yield {name: values[start : start + self.size] for name, values in self.drawn.items()}, None
            return
        for batch in self.data.subset(np.arange(self.n)).batches(self.size):
            yield batch.feeds, batch.labels


def parted(bundle: Bundle, data: Data | Dataset | None) -> tuple[Dataset | None, Dataset | None]:
    """The samples that may judge, in the order of their content, and those that the search calibrated on, where they are among the data.

    A data set that is open already judges as it is.

    Raises:
        DataError: the data cannot be read, or do not fit the model.
    """
    if data is None or isinstance(data, Dataset):
        return data, None
    inputs = tuple(TensorInfo(each.name, each.shape, each.dtype) for each in bundle.manifest.model.inputs)
    opened = open_data(data, inputs, bundle.preprocess)
    judges = without_calibration(bundle, opened)
    if not len(judges):
        raise DataError(f"All {len(opened):,} samples of '{opened.name}' calibrated the bundle.", "Give others: those cannot judge it.")
    seen = np.flatnonzero(~np.isin(opened.hashes, judges.hashes))
    return in_content_order(judges), opened.subset(seen) if len(seen) else None  # files may be sorted by class


def with_samples(source: Neutral, judges: Dataset, calibration: Dataset | None, wanted: int) -> tuple[Neutral, Dataset]:
    """The model with samples for a target that measures ranges by itself, and the samples that may then judge it.

    Args:
        source: Without samples.
        judges: That may judge so far.
        calibration: Others; None sets some of the judges aside, by their content, as the search does.
        wanted: How many at most.
    """
    if calibration is None:
        parts = split(judges)
        calibration, judges = parts.calibration, in_content_order(parts.validation)
    chosen = in_content_order(calibration)
    chosen = chosen.subset(np.arange(min(wanted, len(chosen))))
    refuse_leak(chosen, judges)
    return replace(source, samples=next(chosen.batches(len(chosen))).feeds), judges


def labelled(source: Neutral, data: Dataset | None) -> Neutral:
    """The model with the names of its classes, where its bundle had none and the data tell as many as it has outputs."""
    return source if source.labels or data is None else replace(source, labels=labels_for(data.classes, source.outputs))


def questions(source: Neutral, data: Dataset | None, wanted: int) -> Questions:
    """So many samples that did not calibrate, in the order of their content, or as many draws.

    Raises:
        DataError: nothing can be drawn for an input, or there are too few samples for one call of a fixed batch.
    """
    first = source.inputs[0].shape[0] if source.inputs[0].shape else None
    size = first if isinstance(first, int) and first > 0 else SIZE
    if data is None:
        n = whole_calls(min(wanted, MOST_DRAWN), first)
        return Questions(None, {info.name: draws(source.stats.get(info.name), info, n) for info in source.inputs}, n, size)
    n = whole_calls(min(wanted, len(data)), first)
    if n > len(data):
        why = f"{len(data):,} samples are left to judge, and the model takes {n:,} in a call."
        raise DataError(why, "Give more data, or none: random draws stand in.")
    return Questions(data, {}, n, size)


def whole_calls(n: int, batch: Dim) -> int:
    """So many samples that calls of a fixed batch are full; at least one call."""
    return max(n // batch, 1) * batch if isinstance(batch, int) and batch > 0 else n


def without_calibration(bundle: Bundle, data: Dataset) -> Dataset:
    """The samples that the search did not calibrate on, by their content.

    Bundles of before keep no hashes: of them it is known where these are the data that the search had, or had a part of (`--limit`).
    """
    kept = bundle.folder / "calibration" / "samples.npy"
    if kept.is_file():
        return data.subset(np.flatnonzero(~np.isin(data.hashes, np.load(kept, allow_pickle=False))))
    known = bundle.manifest.data
    total = known.calibration.n + known.validation.n + known.validation.skipped
    wholes = [data]
    if total < len(data):
        wholes.append(data.subset(np.arange(total) * len(data) // total))  # spread evenly, as `open_data` limits
    for whole in wholes:
        seen = split(whole, None, None).calibration
        if seen.fingerprint == known.calibration.sha256:
            return data.subset(np.flatnonzero(~np.isin(data.hashes, seen.hashes)))
    return data


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
