"""Tables: CSV, TSV and Parquet, read in chunks into a spool, so that a table may be larger than memory."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.data.arrays import ArraySource
from lowbit.data.fit import LABEL_NAMES, describe_input
from lowbit.data.source import Request, as_labels, as_slice, check_slices
from lowbit.data.spool import Spool
from lowbit.errors import DataError, UsageError
from lowbit.types import Array, TensorInfo

CHUNK = 8192

Chunk = tuple[int, Mapping[str, Sequence[Any] | Array]]
"""Number of the first line, and column -> values."""


@dataclass(frozen=True)
class _Plan:
    """Which columns are what.

    Attributes:
        features: In the order in which the model takes them.
        by_input: Whether each input has a column of its own (else all features form one input).
        target: Label column, None where there is none.
    """

    features: tuple[str, ...]
    by_input: bool
    target: str | None


def open_table(path: Path, request: Request) -> ArraySource:
    """A table with a header line.

    The label is `--target`, the preprocessing's `target`, a column with a usual name, or the last column, unless
    the model needs that one, too. Features are the preprocessing's `columns`, columns named as the model's inputs, or
    the other columns in their order.

    Raises:
        DataError: a column is missing or holds text, their number is not the model's, lines differ in length.
        UsageError: no such slice column; Parquet without pyarrow.
    """
    header, numeric, chunks = _parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _csv(path)
    if not header or len(set(header)) != len(header):
        raise DataError(f"'{path.name}' needs a first line with different column names; it has {', '.join(header) or 'nothing'}.")
    check_slices(request.slices, header)
    plan = _plan(header, numeric, request)
    spools, rows = [Spool() for _ in (plan.features if plan.by_input else [0])], 0
    kept: dict[str, list[Array]] = {name: [] for name in {*request.slices, *([] if plan.target is None else [plan.target])}}
    for line, chunk in chunks:
        columns = [_numbers(chunk[name], name, line, path.name) for name in plan.features]
        for spool, block in zip(spools, columns if plan.by_input else [np.stack(columns, axis=1)], strict=True):
            spool.append(block.tobytes())
        rows += len(columns[0])
        for name, parts in kept.items():
            parts.append(np.asarray(chunk[name]))
    shape = (rows,) if plan.by_input else (rows, len(plan.features))
    names = plan.features if plan.by_input else (request.inputs[0].name,)
    arrays = {name: spool.rows(np.float64, shape) for name, spool in zip(names, spools, strict=True)}
    others = {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in kept.items()}
    labels, classes = (None, None) if plan.target is None else as_labels(others[plan.target], f"The labels in column `{plan.target}`")
    slices = {name: as_slice(name, others[name]) for name in request.slices}
    features = () if plan.by_input else plan.features
    return ArraySource(path.name, arrays, labels, classes, slices, unit="data row", first=1, features=features)


def _plan(header: Sequence[str], numeric: Mapping[str, bool], request: Request) -> _Plan:
    given = request.preprocess
    target = request.target or (given.target if given else None)
    if target is not None and target not in header:
        raise DataError(f"The table has no column '{target}' for the labels. It has {', '.join(header)}.")
    names = [info.name for info in request.inputs]
    columns = given.columns if given and given.columns else ()
    by_input = len(names) > 1 or (names[0] in header and not columns and _width(request.inputs[0]) in (None, 1))
    features = columns or (tuple(names) if by_input else ())
    if missing := [name for name in features if name not in header]:
        wants = "; ".join(describe_input(info) for info in request.inputs)
        raise DataError(f"The table lacks the columns {', '.join(missing)}. It has {', '.join(header)}. The model wants {wants}.")
    if features:
        rest = [name for name in header if name not in features]
        return _Plan(features, by_input, target or next((name for name in LABEL_NAMES if name in rest), None))
    return _by_order(header, numeric, target, request)


def _width(info: TensorInfo) -> int | None:
    """Features a sample: the model's last axis where it has one."""
    last = info.shape[-1] if len(info.shape) > 1 else 1
    return last if isinstance(last, int) else None


def _by_order(header: Sequence[str], numeric: Mapping[str, bool], target: str | None, request: Request) -> _Plan:
    """Features are the numeric columns in their order that are neither label nor slice."""
    width = _width(request.inputs[0])
    target = target or next((name for name in LABEL_NAMES if name in header), None)
    free = [name for name in header if name != target and name not in request.slices]
    features = [name for name in free if numeric[name]]
    before_last = [name for name in free[:-1] if numeric[name]]
    if target is None and len(free) > 1 and (len(before_last) == width or len(features) != width):
        target, features = free.pop(), before_last
    if width is not None and len(features) != width:
        text = [name for name in free if not numeric[name]]
        also = f", and the text columns {', '.join(text)}" if text else ""
        raise DataError(
            f"The model takes {width} features ({describe_input(request.inputs[0])}); "
            f"the table has {len(features)} number columns beside the label `{target}`: {', '.join(features)}{also}.",
            "Name the features in the preprocessing (`columns: [...]`), and the label with --target.",
        )
    return _Plan(tuple(features), False, target)


def _numbers(values: Sequence[Any] | Array, name: str, line: int, file: str) -> Array:
    """One column of one chunk as float64.

    Raises:
        DataError: text or an empty cell, with its line.
    """
    try:
        return np.array(values, np.float64)
    except (ValueError, TypeError):
        for index, value in enumerate(values):
            try:
                float(value)
            except (ValueError, TypeError):
                what = f"'{value}' is not a number" if value not in ("", None) else "the cell is empty"
                raise DataError(
                    f"{file}, line {line + index}, column `{name}`: {what}.", "Fill or drop such rows; encode text as numbers."
                ) from None
        raise


def _csv(path: Path) -> tuple[list[str], dict[str, bool], Iterator[Chunk]]:
    """Header, which columns look like numbers (in the first row), and the chunks."""
    rows = _csv_rows(path)
    _, header = next(rows, (0, []))
    header = [name.strip() for name in header]
    first = next(rows, None)
    numeric = {
        name: first is None or _is_number(first[1][index]) for index, name in enumerate(header) if first is None or index < len(first[1])
    }

    def chunks() -> Iterator[Chunk]:
        held: list[list[str]] = []
        start = 0
        for line, row in [first] if first else []:
            held, start = [_checked(row, header, line, path.name)], line
        for line, row in rows:
            if len(held) == CHUNK:
                yield start, dict(zip(header, zip(*held, strict=True), strict=True))
                held = []
            start = start if held else line
            held.append(_checked(row, header, line, path.name))
        if held:
            yield start, dict(zip(header, zip(*held, strict=True), strict=True))

    return header, {name: numeric.get(name, False) for name in header}, chunks()


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields; empty lines are left out. Separator: tab for .tsv, else the header's comma, semicolon or tab."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            separator = "\t" if path.suffix.lower() == ".tsv" else next((mark for mark in ",;\t" if mark in head), ",")
            reader = csv.reader(file, delimiter=separator, strict=True)
            for row in reader:
                if row:
                    yield reader.line_num, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"'{path.name}' is not a readable CSV file: {error}", "Save it as UTF-8 text with commas.") from error


def _checked(row: list[str], header: Sequence[str], line: int, file: str) -> list[str]:
    if len(row) != len(header):
        raise DataError(f"{file}, line {line}: {len(row)} fields where the header has {len(header)}.")
    return row


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet(path: Path) -> tuple[list[str], dict[str, bool], Iterator[Chunk]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError("Reading Parquet needs pyarrow.", "pip install 'lowbit[parquet]'") from error
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"'{path.name}' is not a readable Parquet file: {error}") from error
    schema = file.schema_arrow
    numeric = {
        field.name: pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_boolean(field.type)
        for field in schema
    }

    def chunks() -> Iterator[Chunk]:
        line = 1
        try:
            for batch in file.iter_batches(batch_size=CHUNK):
                yield line, {name: batch.column(index).to_numpy(zero_copy_only=False) for index, name in enumerate(schema.names)}
                line += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"'{path.name}' is not a readable Parquet file: {error}") from error

    return list(schema.names), numeric, chunks()
