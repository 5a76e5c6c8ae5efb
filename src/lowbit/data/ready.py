"""Samples that are a model's inputs already: what a server was asked, kept as it came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lowbit.data.arrays import ArraySource
from lowbit.data.dataset import Dataset, scan
from lowbit.data.fit import fit, stack
from lowbit.data.preprocess import Preprocess
from lowbit.types import Array, Feeds, TensorInfo


@dataclass(frozen=True, eq=False)
class ReadyDataset(Dataset):
    """A data set whose samples are fed as they are. `preprocess` is what made them, and what a bundle will do to raw ones."""

    @cached_property
    def labels(self) -> Array | None:
        """[n] as they were given: they are in the model's scale, as the inputs are."""
        found = self.source.labels
        return None if found is None else found[self.rows]

    def _feeds(self, positions: Array) -> Feeds:
        raw = self.source.read(self.rows[positions])
        return {info.name: fit(stack(raw[info.name]), info) for info in self.inputs}


def ready(
    name: str, arrays: Mapping[str, Array], inputs: Sequence[TensorInfo], preprocess: Preprocess, labels: Array | None = None
) -> ReadyDataset:
    """A data set of a model's inputs.

    Args:
        name: Of it, no path.
        arrays: Input name -> [n, ...].
        inputs: The model's.
        preprocess: What made them of raw samples.
        labels: [n] classes int64 or targets; None for none.

    Raises:
        DataError: values are NaN or infinite.
    """
    source = ArraySource(name, {info.name: arrays[info.name] for info in inputs}, labels)
    rows, hashes, skipped = scan(source, np.arange(len(source), dtype=np.int64))
    return ReadyDataset(source, inputs, preprocess, rows, hashes, skipped)
