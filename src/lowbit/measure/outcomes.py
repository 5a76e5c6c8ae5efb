"""What happened to every sample: the columns from which every metric, flip, slice and interval follows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowbit.errors import DataError
from lowbit.types import Array


@dataclass(frozen=True)
class Outcomes:
    """Per-sample columns of one model on one data set, in the data's order.

    Columns, as far as a task has them (all [n], `vector` and multi-output regression [n, k]):

        finite, width, fingerprint   every model: no NaN or infinity; numbers per sample; a projection of the output
        label, predicted, hit, hit5  classes
        confidence, margin, score    largest probability; its lead over the second; probability of "yes" (binary)
        agree, kl, cosine            against the reference model on the same sample
        box, box_score, … hardness   detection: see `lowbit.measure.detection`
        prediction, error1, error2   regression: absolute and squared error, averaged over a sample's outputs

    Attributes:
        columns: Column name -> values, all of one length.
    """

    columns: Mapping[str, Array]

    def __post_init__(self) -> None:
        lengths = {len(values) for values in self.columns.values()}
        assert len(lengths) == 1, f"columns of different lengths: {sorted(lengths)}"

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(next(iter(self.columns.values())))

    @classmethod
    def join(cls, parts: Sequence[Mapping[str, Array]]) -> Outcomes:
        """Puts the batches' columns one after the other.

        Raises:
            DataError: there is no batch at all.
        """
        if not parts:
            raise DataError("There are no samples to evaluate.", "Give at least a few hundred validation samples.")
        return cls({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def take(self, rows: Array) -> Outcomes:
        """The same columns for some rows: positions, or a mask [n]."""
        return Outcomes({name: values[rows] for name, values in self.columns.items()})

    def save(self, path: Path) -> None:
        """Writes a compressed .npz (no pickle), whole or not at all: to a temporary file beside it that is renamed.

        Raises:
            OSError: the disk is full or the folder cannot be written to; nothing was changed.
        """
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.savez_compressed(file, allow_pickle=False, **dict(self.columns))
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)  # mkstemp's 0600 would keep others from reading it
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: Path) -> Outcomes:
        """Reads what `save` wrote.

        Raises:
            DataError: no such file, a damaged one, or not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                columns = {name: archive[name] for name in archive.files}
            lengths = {len(values) for values in columns.values()}
        except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for a damaged archive
            why = f"{type(error).__name__}: {error}"
            raise DataError(f"'{path.name}' holds no per-sample outcomes ({why}).", "Evaluate the model again.") from error
        if len(lengths) != 1:
            raise DataError(f"'{path.name}' holds no per-sample outcomes: its columns differ in length.", "Evaluate the model again.")
        return cls(columns)
