"""A person's own code: `module:callable` that gives samples."""

from __future__ import annotations

import importlib
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from lowbit.data.arrays import ArraySource, from_arrays
from lowbit.data.preprocess import as_numbers
from lowbit.data.records import Record, RecordSource, from_records, gather, to_record
from lowbit.data.source import Request, as_labels, as_slice, check_slices
from lowbit.data.steps import Raw, is_image
from lowbit.errors import DataError, LowbitError, UsageError
from lowbit.types import Array

_SPEC = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_custom(spec: str) -> bool:
    """Whether `spec` reads like `package.module:callable`."""
    return _SPEC.fullmatch(spec) is not None


@dataclass(frozen=True)
class SequenceSource:
    """An object with a length and items (a torch data set, say); items are asked for when they are needed.

    Its items are taken one at a time: not every such object may be used from several threads.
    """

    name: str
    items: Any
    request: Request
    labels: Array | None
    classes: tuple[str, ...] | None
    slices: Mapping[str, Array]
    costly: bool = False
    lock: Any = field(default_factory=threading.Lock, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.items)

    def read(self, rows: Array) -> Mapping[str, Array | Sequence[Raw]]:
        with self.lock:
            records = [record_at(self.name, self.items, row, self.request) for row in rows.tolist()]
        values = {info.name: [record.inputs[info.name] for record in records] for info in self.request.inputs}
        return {name: gather([value if is_image(value) else as_numbers(value) for value in found]) for name, found in values.items()}

    def sample_name(self, row: int) -> str:
        return f"item {row}"


def open_custom(spec: str, request: Request) -> ArraySource | RecordSource | SequenceSource:
    """Calls `module:callable` without arguments; the current folder is looked in, too.

    It may return arrays by name, an object with a length and items, or any iterable. An item is (inputs, label), a mapping
    by name, or inputs alone. An iterable is read once and kept in a spool on disk where it is large.

    Raises:
        UsageError: no such module or callable, or it gives something else.
        DataError: it fails, or an item does not fit the model.
    """
    found = _call(spec)
    if isinstance(found, Mapping):
        return from_arrays(spec, found, request)
    if isinstance(found, (str, bytes)) or not (hasattr(found, "__iter__") or hasattr(found, "__getitem__")):
        raise UsageError(f"{spec} gives a {type(found).__name__}; arrays by name, a sequence or an iterable are read.")
    if hasattr(found, "__len__") and hasattr(found, "__getitem__"):
        return _sequence(spec, found, request)
    return from_records(spec, _records(spec, found, request), request)


def _call(spec: str) -> Any:
    module_name, _, path = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(f"Data '{spec}': there is no module '{error.name}'.", "Run in the folder that holds it, or install it.") from error
    except Exception as error:  # whatever a person's module raises while it is imported
        raise UsageError(f"Data '{spec}': importing {module_name} failed with {type(error).__name__}: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(f"Data '{spec}': {module_name} has no '{part}'.")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"Data '{spec}' is a {type(found).__name__}, not something to call.", "Give a function without arguments.")
    with _blame(spec):
        return found()


@contextmanager
def _blame(what: str) -> Iterator[None]:
    """Turns whatever a person's code raises into a DataError that names it."""
    try:
        yield
    except LowbitError:
        raise
    except Exception as error:
        raise DataError(f"Data '{what}' failed with {type(error).__name__}: {error}") from error


def record_at(spec: str, items: Any, row: int, request: Request) -> Record:
    """Item `row` of a person's sequence."""
    with _blame(f"{spec}, item {row}"):
        item = items[row]
    return to_record(f"item {row}", item, request)


def _sequence(spec: str, items: Any, request: Request) -> SequenceSource:
    """One pass for labels and slices; inputs are not kept."""
    records = []
    for row in range(len(items)):
        record = record_at(spec, items, row, request)
        check_slices(request.slices, record.slices)
        records.append(Record(record.name, {}, record.label, {key: record.slices[key] for key in request.slices}))
    labelled = [record.label for record in records if record.label is not None]
    if labelled and len(labelled) < len(records):
        raise DataError(f"{len(records) - len(labelled)} of {len(records)} samples have no label.", "Label all samples, or none.")
    labels, classes = as_labels(labelled) if labelled else (None, None)
    slices = {key: as_slice(key, [record.slices[key] for record in records]) for key in request.slices}
    costly = bool(records) and any(is_image(value) for value in record_at(spec, items, 0, request).inputs.values())
    return SequenceSource(spec, items, request, labels, classes, slices, costly)


def _records(spec: str, items: Iterable[Any], request: Request) -> Iterator[Record]:
    with _blame(spec):
        for number, item in enumerate(islice(items, request.limit)):
            yield to_record(f"item {number}", item, request)
