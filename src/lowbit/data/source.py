"""What every kind of source offers, and what is asked of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lowbit.data.preprocess import Preprocess
from lowbit.data.steps import Raw
from lowbit.errors import DataError, unknown
from lowbit.types import Array, TensorInfo

MAX_SLICES = 200
"""Different values a slice column may have: beyond that its slices are too small to say anything."""


@dataclass(frozen=True)
class Request:
    """What a source is opened for.

    Attributes:
        inputs: The model's inputs.
        preprocess: What the user gave; None where it is to be inferred.
        target: Name of the label field, None for the usual names.
        slices: Columns by which results are to be cut.
        limit: Read at most this many samples where a source cannot tell its length.
    """

    inputs: Sequence[TensorInfo]
    preprocess: Preprocess | None = None
    target: str | None = None
    slices: tuple[str, ...] = ()
    limit: int | None = None


class Source(Protocol):
    """Raw samples by row; nothing is preprocessed yet.

    Attributes:
        name: Base name, never a path.
        labels: [n] or [n, ...]: class ids int64 or targets float64; None where there are none.
        classes: Names by class id, where labels were given as names.
        slices: Slice column -> [n].
        costly: Whether reading one sample is slow (decoding), so that it pays to read in parallel.
    """

    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> Array | None: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...
    @property
    def slices(self) -> Mapping[str, Array]: ...
    @property
    def costly(self) -> bool: ...
    def __len__(self) -> int: ...
    def read(self, rows: Array) -> Mapping[str, Array | Sequence[Raw]]:
        """Input name -> raw values of these rows. Raises `Unreadable` for a corrupt image."""
        ...

    def sample_name(self, row: int) -> str:
        """What a person finds the sample by: a file, a line, a row."""
        ...


def as_labels(values: Any, where: str = "The labels") -> tuple[Array, tuple[str, ...] | None]:
    """Labels as class ids int64 or targets float64; names become ids in sorted order.

    Args:
        values: [n] or [n, ...] numbers, names, or text of numbers.
        where: Start of a message.

    Returns:
        The labels, and the class names where labels were names.

    Raises:
        DataError: NaN or inf, or neither numbers nor names.
    """
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where} differ in shape: {error}") from error
    if array.dtype.kind in "OUS":
        return _text_labels([_decoded(value) for value in array.reshape(-1).tolist()], where)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind in "biu":
        if array.dtype == np.uint64 and (array > np.iinfo(np.int64).max).any():
            raise DataError(f"{where} are larger than any class id.")
        return array.astype(np.int64), None
    if array.dtype.kind != "f":
        raise DataError(f"{where} are {array.dtype}; numbers or names are read.")
    if bad := int((~np.isfinite(array)).sum()):
        raise DataError(f"{where} hold {bad} NaN or infinite values.", "Remove those samples.")
    return array.astype(np.float64), None


def _decoded(value: object) -> object:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _text_labels(values: list[Any], where: str) -> tuple[Array, tuple[str, ...] | None]:
    """Text: whole numbers, else numbers, else class names."""
    if any(value is None for value in values):
        raise DataError(
            f"{where}: {sum(value is None for value in values)} of {len(values)} samples have none.", "Label all samples, or none."
        )
    if not all(isinstance(value, str) for value in values):
        if any(isinstance(value, str) for value in values) or not all(isinstance(value, (int, float)) for value in values):
            raise DataError(f"{where} are neither all numbers nor all names.")
        return as_labels(np.asarray(values, np.float64), where)
    if (blank := next((index for index, value in enumerate(values) if not value.strip()), None)) is not None:
        raise DataError(f"{where}: sample {blank} has an empty one.", "Label all samples, or none.")
    for kind in (np.int64, np.float64):
        try:
            return as_labels(np.array([kind(value) for value in values]), where)
        except (ValueError, OverflowError):
            continue
    classes = tuple(sorted(set(values)))
    ids = {name: index for index, name in enumerate(classes)}
    return np.array([ids[value] for value in values], np.int64), classes


def check_labels(labels: Array, classes: int) -> None:
    """Refuses class ids that a model with `classes` outputs cannot be right about.

    Args:
        labels: [n] class ids.
        classes: Number of classes of the model.

    Raises:
        DataError: not whole numbers, out of range, or all the same.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"The labels are {labels.dtype} {list(labels.shape)}; class ids are whole numbers [n].",
            "For numbers to be predicted use a regression metric.",
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(
            f"{len(wrong)} of {len(labels)} labels are out of range: the model has classes 0 to {classes - 1}, "
            f"the labels run from {labels.min()} to {labels.max()} (first at sample {wrong[0]}).",
            "Check that the labels count from 0 and belong to this model.",
        )
    if len(labels) and (labels == labels[0]).all():
        raise DataError(
            f"All {len(labels)} labels are class {labels[0]}: nothing can be measured on one class.",
            "Give data with several classes; a set that is sorted by class must not be cut off at the front.",
        )


def as_slice(name: str, values: Any) -> Array:
    """A slice column: text, or whole numbers.

    Raises:
        DataError: so many different values that no slice would be large enough.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biu":
        array = np.array([str(_decoded(value)) for value in array.reshape(-1).tolist()])
    different = len(np.unique(array))
    if array.ndim != 1 or different > MAX_SLICES:
        raise DataError(
            f"Column '{name}' has {different} different values; a slice column has at most {MAX_SLICES}.",
            "Cut numbers into a few ranges first.",
        )
    return array


def check_slices(wanted: Iterable[str], present: Iterable[str]) -> None:
    """Raises UsageError for a slice column that the data does not have."""
    names = list(present)
    for name in wanted:
        if name not in names:
            raise unknown("slice column", name, names)
