"""Text data: TSV, CSV, Parquet or JSON lines with text columns and a label."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.data.fit import LABEL_NAMES, some
from lowbit.data.source import Request, as_labels, as_slice, check_slices
from lowbit.data.spans import answer_spans, word_labels
from lowbit.data.text import Text, Words
from lowbit.errors import DataError, UsageError
from lowbit.types import Array

KINDS = (".tsv", ".csv", ".jsonl", ".ndjson", ".parquet", ".pq")
KEY = "text"
"""Under which a source gives raw text: there is one text a sample, whatever number of inputs the tokenizer makes of it."""

SINGLE = ("text", "sentence", "sentences", "review", "content", "document", "comment", "tweet", "query", "utterance")
PAIRS = (
    ("sentence1", "sentence2"),
    ("text", "text_pair"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
    ("query", "passage"),
    ("text1", "text2"),
    ("sentence_a", "sentence_b"),
)
WORDS = ("tokens", "words")
TEXT_LABELS = (*LABEL_NAMES, "score", "similarity", "ner_tags", "tags", "pos_tags", "answers", "class", "sentiment", "category")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TextSource:
    """Text samples in memory; see `Source`.

    Attributes:
        text: How they become tokens, with columns and length settled.
        lines: Where each sample is in the file.
    """

    name: str
    samples: Sequence[Words]
    labels: Array | None
    classes: tuple[str, ...] | None
    slices: Mapping[str, Array]
    text: Text
    lines: Sequence[str]
    costly: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, rows: Array) -> Mapping[str, Sequence[Words]]:
        return {KEY: [self.samples[row] for row in rows.tolist()]}

    def sample_name(self, row: int) -> str:
        return self.lines[row]


def open_texts(path: Path, request: Request) -> TextSource:
    """Reads a file of text; `request.preprocess.text` says how it becomes tokens.

    TSV and CSV have a header line, or two columns (text, label) without one. A label that is a name is numbered as the model
    numbers its classes.

    Raises:
        DataError: unreadable, a column is missing, or labels do not fit the model's.
        UsageError: not such a file, or no such slice column.
    """
    assert request.preprocess is not None, "text comes with its preprocessing"
    text = request.preprocess.text
    assert text is not None, "text comes with its tokenizer"
    if path.suffix.lower() not in KINDS:
        raise UsageError(f"'{path.name}' is no file of text: {', '.join(KINDS)} are read.")
    rows = _rows(path)
    if not rows:
        raise DataError(f"'{path.name}' holds no samples.")
    target = request.target or request.preprocess.target
    columns, target = _columns(rows[0], text, target, request.slices, path.name)
    check_slices(request.slices, rows[0])
    lines = [f"{path.name}, row {number}" for number in range(1, len(rows) + 1)]
    samples = _samples(rows, replace(text, columns=columns), lines)
    given = None if target is None else [row.get(target) for row in rows]
    slices = {name: as_slice(name, [row.get(name, "") for row in rows]) for name in request.slices}
    if text.form == "both":
        # Two columns of one row are two samples, which carry the row's number and similarity: a pair.
        samples = [Words((part,)) for one in samples for part in one.parts]
        lines, slices = [line for line in lines for _ in columns], {name: np.repeat(values, 2) for name, values in slices.items()}
    text = replace(text, columns=columns).settle(samples)
    labels, classes = _labels(given, text, samples, rows)
    return TextSource(path.name, samples, labels, classes, slices, text, lines)


def _samples(rows: Sequence[Row], text: Text, lines: Sequence[str]) -> list[Words]:
    """Both columns of a row in one `Words` where the form is "both"."""
    reader = replace(text, form="pair") if text.form == "both" and len(text.columns) == 2 else text
    found = []
    for row, line in zip(rows, lines, strict=True):
        try:
            found.append(reader.sample({name: row.get(name) for name in text.columns}))
        except DataError as error:
            raise DataError(f"{line}: {error.message}", error.hint) from error
    return found


def _columns(first: Row, text: Text, target: str | None, slices: Sequence[str], file: str) -> tuple[tuple[str, ...], str | None]:
    """Text columns and the label's, from what was said, the usual names, or what is left."""
    names = list(first)
    if target is not None and target not in names:
        raise DataError(f"'{file}' has no column '{target}' for the labels. It has {', '.join(names)}.")
    target = target or next((name for name in TEXT_LABELS if name in names), None)
    if text.columns:
        if missing := [name for name in text.columns if name not in names]:
            raise DataError(f"'{file}' lacks the columns {', '.join(missing)}. It has {', '.join(names)}.")
        return text.columns, target
    free = [name for name in names if name != target and name not in slices]
    pairs = [pair for pair in PAIRS if set(pair) <= set(free)]
    single = [name for name in (WORDS if text.form == "words" else SINGLE) if name in free]
    if text.form in ("pair", "question", "sentence", "both") and pairs:
        return pairs[0], target
    if text.form != "question" and single:
        return (single[0],), target
    texts = [name for name in free if isinstance(first[name], str) and not _is_number(first[name])]
    if len(texts) == 1 and text.form != "question":
        return (texts[0],), target
    raise DataError(
        f"Which columns of '{file}' hold the text is not clear: it has {', '.join(names)}.",
        "Name the column `text` (a pair: `text` and `text_pair`; words: `tokens`; questions: `question` and `context`).",
    )


def _is_number(value: str) -> bool:
    return re.fullmatch(r"\s*[-+]?\d*\.?\d+([eE][-+]?\d+)?\s*", value) is not None


def _labels(
    given: list[Any] | None, text: Text, samples: Sequence[Words], rows: Sequence[Row]
) -> tuple[Array | None, tuple[str, ...] | None]:
    names = text.labels or None
    if text.form == "question":
        return answer_spans(rows, samples, text), None
    if given is None or (text.form == "both" and len(text.columns) == 1):
        return None, names  # a sentence alone has no similarity to anything
    if text.form == "words":
        return word_labels(given, samples, text), names
    found, classes = as_labels(_numbered(given, text.labels), "The labels")
    if text.form == "both":
        pairs = np.arange(len(found), dtype=np.float64)
        return np.repeat(np.stack([pairs, found.astype(np.float64)], axis=1), 2, axis=0), None
    if classes is not None and names:
        raise DataError(
            f"The labels are {some(list(classes))}; the model's classes are {some(list(names))}.", "Use the model's names, or its numbers."
        )
    return found, classes or names


def _numbered(given: list[Any], names: Sequence[str]) -> list[Any]:
    """Class names as the model's numbers, whatever their case; anything else as it is."""
    ids = {name.lower(): number for number, name in enumerate(names)}
    known = ids and all(isinstance(value, str) and value.strip().lower() in ids for value in given)
    return [ids[value.strip().lower()] for value in given] if known else given


def _rows(path: Path) -> list[dict[str, Any]]:
    kind = path.suffix.lower()
    try:
        if kind in (".parquet", ".pq"):
            return _parquet(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _json_lines(file, path.name) if kind in (".jsonl", ".ndjson") else _separated(file, path.name, kind == ".tsv")
    except UnicodeDecodeError as error:
        raise DataError(f"'{path.name}' is not UTF-8 text: {error.reason}.", "Save it as UTF-8.") from error
    except csv.Error as error:
        raise DataError(f"'{path.name}' is not a readable table: {error}.", "Save it as UTF-8 text with commas or tabs.") from error


def _separated(file: Iterable[str], name: str, tabs: bool) -> list[dict[str, Any]]:
    """Rows of TSV (where a quote is a character like any other) or CSV."""
    reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(file, strict=True)
    rows = [row for row in reader if row]
    if not rows:
        return []
    header = [cell.strip() for cell in rows[0]]
    if _is_header(header):
        rows = rows[1:]
    else:
        header = {1: ["text"], 2: ["text", "label"], 3: ["text", "text_pair", "label"]}.get(len(header), [])
        if not header:
            raise DataError(f"'{name}' has {len(rows[0])} columns and no header line that names one of them.", "Name the columns.")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise DataError(f"{name}, row {number}: {len(row)} fields where there are {len(header)} columns ({', '.join(header)}).")
    return [dict(zip(header, row, strict=True)) for row in rows]


def _is_header(cells: Sequence[str]) -> bool:
    """Whether a first line names columns: one of the usual names is among them, or all are different single words."""
    usual = {*SINGLE, *WORDS, *TEXT_LABELS, *(name for pair in PAIRS for name in pair)}
    return bool(usual & set(cells)) or (len(set(cells)) == len(cells) > 1 and all(re.fullmatch(r"[A-Za-z_]\w*", cell) for cell in cells))


def _json_lines(file: Iterable[str], name: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}, line {number}: not JSON ({error}).", "Each line is one JSON object.") from error
        if not isinstance(row, dict):
            raise DataError(f"{name}, line {number}: a {type(row).__name__} where an object is expected.")
        rows.append(row)
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError("Reading Parquet needs pyarrow.", "pip install 'lowbit[parquet]'") from error
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"'{path.name}' is not a readable Parquet file: {error}") from error
    return rows
