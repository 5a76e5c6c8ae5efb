"""Records: JSON lines, and whatever else yields one sample after another. Kept in a spool, read by row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.data.fit import INPUT_ALIASES, find_label, match_inputs, stack
from lowbit.data.preprocess import as_numbers
from lowbit.data.source import Request, as_labels, as_slice, check_slices
from lowbit.data.spool import Rows, Spool
from lowbit.data.steps import Raw, colours, is_image
from lowbit.errors import DataError
from lowbit.types import Array

Stored = tuple[int, str, tuple[int, ...]] | str | bytes | Path
"""Offset, dtype and shape of an array in the spool; or an image still to be decoded."""


@dataclass(frozen=True)
class Record:
    """One sample: raw inputs, its label, and its slice values. `name` is where it came from."""

    name: str
    inputs: Mapping[str, Raw]
    label: Any = None
    slices: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordSource:
    """Samples of any shapes in one spool; see `Source`."""

    name: str
    spool: Rows
    index: Mapping[str, Sequence[Stored]]
    names: Sequence[str]
    labels: Array | None
    classes: tuple[str, ...] | None
    slices: Mapping[str, Array]
    costly: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def read(self, rows: Array) -> Mapping[str, Array | Sequence[Raw]]:
        positions = rows.tolist()
        return {name: gather([self._one(stored[row]) for row in positions]) for name, stored in self.index.items()}

    def sample_name(self, row: int) -> str:
        return self.names[row]

    def _one(self, stored: Stored) -> Raw:
        if not isinstance(stored, tuple):
            return stored
        start, dtype, shape = stored
        kind = np.dtype(dtype)
        size = kind.itemsize * int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self.spool[start : start + size], kind).reshape(shape)


def gather(values: list[Raw]) -> Array | list[Raw]:
    """Arrays of one shape as one array [N, ...]; anything else stays a list (preprocessing may bring it to one shape)."""
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    same = len(arrays) == len(values) and len({(value.shape, value.dtype) for value in arrays}) == 1
    return stack(arrays) if same else values


def from_records(name: str, records: Iterable[Record], request: Request) -> RecordSource:
    """Reads all records once.

    Raises:
        DataError: some have labels and some have none, or a value is not numbers.
    """
    spool = Spool()
    index: dict[str, list[Stored]] = {info.name: [] for info in request.inputs}
    names: list[str] = []
    labels: list[Any] = []
    slices: dict[str, list[Any]] = {key: [] for key in request.slices}
    for record in records:
        for key, stored in index.items():
            stored.append(_store(record.inputs[key], spool, f"{record.name}, `{key}`"))
        names.append(record.name)
        labels.append(record.label)
        for key in request.slices:
            check_slices([key], record.slices)
            slices[key].append(record.slices[key])
    without = sum(label is None for label in labels)
    if 0 < without < len(labels):
        raise DataError(f"{without} of {len(labels)} samples have no label.", "Label all samples, or none.")
    found, classes = as_labels(labels) if labels and not without else (None, None)
    costly = any(not isinstance(stored, tuple) for values in index.values() for stored in values)
    kept = spool.rows(np.uint8, (spool.size,))
    columns = {key: as_slice(key, values) for key, values in slices.items()}
    return RecordSource(name, kept, index, names, found, classes, columns, costly)


def _store(value: Raw, spool: Spool, where: str) -> Stored:
    if isinstance(value, (str, bytes, Path)):
        return value
    try:
        array = np.asarray(value if value.mode in ("L", "RGB") else colours(value, "rgb")) if is_image(value) else as_numbers(value)
    except DataError as error:
        raise DataError(f"{where}: {error.message}", error.hint) from error
    return spool.append(np.ascontiguousarray(array).tobytes()), array.dtype.str, array.shape


def to_record(name: str, item: Any, request: Request) -> Record:
    """A record from what a person's data gives for one sample.

    Args:
        name: Where it comes from, for messages.
        item: (inputs, label), a mapping with inputs and label by name, or inputs alone; inputs are a mapping by name, or
            the value itself where the model has one input.

    Raises:
        DataError: an input is missing.
    """
    label: Any = None
    if isinstance(item, tuple) and len(item) == 2:
        item, label = item
    if not isinstance(item, Mapping):
        if len(request.inputs) != 1:
            wants = ", ".join(info.name for info in request.inputs)
            raise DataError(
                f"{name} is a single value, the model has {len(request.inputs)} inputs: {wants}.", "Give a mapping by input name."
            )
        return Record(name, {request.inputs[0].name: item}, plain(label))
    try:
        feeding = match_inputs((str(key) for key in item), request.inputs)
        key = find_label([str(key) for key in item if key not in feeding.values()], request.target) if label is None else None
    except DataError as error:
        raise DataError(f"{name}: {error.message}", error.hint) from error
    rest = {str(other): plain(value) for other, value in item.items() if other not in feeding.values() and _is_scalar(value)}
    return Record(name, {wanted: item[present] for wanted, present in feeding.items()}, plain(label if key is None else item[key]), rest)


def plain(value: Any) -> Any:
    """A label or slice value without its array wrapping (a 0-D array or tensor becomes a number)."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return value.item() if isinstance(value, (np.ndarray, np.generic)) and value.size == 1 else value


def _is_scalar(value: Any) -> bool:
    return isinstance(plain(value), (str, int, float, bool))


def open_jsonl(path: Path, request: Request) -> RecordSource:
    """One JSON object a line, with fields named as the model's inputs and `label`.

    Raises:
        DataError: a line that is not such an object, with its number.
    """
    return from_records(path.name, _jsonl(path, request), request)


def _jsonl(path: Path, request: Request) -> Iterator[Record]:
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield to_record(f"line {number}", _numbers_only(_object(line, number, path.name), request, number), request)
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}, after line {number}: not UTF-8 text ({error.reason}).") from error


def _object(line: str, number: int, file: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}, line {number}: not JSON ({error}).", "Each line is one JSON object.") from error
    if not isinstance(value, dict):
        raise DataError(f"{file}, line {number}: a {type(value).__name__} where an object with the model's inputs is expected.")
    return value


def _numbers_only(row: dict[str, Any], request: Request, number: int) -> dict[str, Any]:
    """JSON text in an input's place is text, not the path of an image."""
    names = {info.name for info in request.inputs} | (set(INPUT_ALIASES) if len(request.inputs) == 1 else set())
    for key in names & set(row):
        if not isinstance(row[key], (list, int, float)):
            raise DataError(
                f"Line {number}: `{key}` is {type(row[key]).__name__}, numbers are expected.",
                "Tokenise text first; give images in a folder.",
            )
    return row
