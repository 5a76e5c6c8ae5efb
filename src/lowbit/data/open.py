"""Opening data: which kind of source it is, whether it fits the model, whether it is usable at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lowbit.data.annotated import open_annotated, open_coco
from lowbit.data.arrays import ArraySource, from_arrays, open_npz
from lowbit.data.custom import is_custom, open_custom
from lowbit.data.dataset import MIN_SAMPLES, Dataset, scan
from lowbit.data.fit import describe_input, main_input
from lowbit.data.images import open_folder
from lowbit.data.listing import Listing, check_unchanged, is_listing
from lowbit.data.preprocess import Preprocess
from lowbit.data.records import open_jsonl
from lowbit.data.resolve import infer
from lowbit.data.source import Request, Source
from lowbit.data.tables import open_table
from lowbit.data.texts import TextSource, open_texts
from lowbit.errors import DataError, LowbitError, UsageError
from lowbit.types import Array, TensorInfo

_READERS: Mapping[str, Callable[[Path, Request], Source]] = {
    ".npz": open_npz,
    ".csv": open_table,
    ".tsv": open_table,
    ".parquet": open_table,
    ".pq": open_table,
    ".jsonl": open_jsonl,
    ".ndjson": open_jsonl,
    ".json": open_coco,
}
KINDS = "a folder of images, .npz, .csv, .tsv, .parquet, .jsonl, .json (COCO), or module:callable"


def open_data(
    spec: str | Path | Mapping[str, Array],
    inputs: Sequence[TensorInfo],
    preprocess: Preprocess | None = None,
    *,
    target: str | None = None,
    slices: Sequence[str] = (),
    limit: int | None = None,
) -> Dataset:
    """Opens data for a model, and reads every sample once to hash and check it.

    Args:
        spec: A file, a folder, `module:callable`, a listing of chosen samples (`data.listing`), or arrays by name.
        inputs: The model's inputs.
        preprocess: What is done to each sample; None infers it, visibly (`Dataset.preprocess.note`).
        target: Field or column with the labels; by default the usual names, or a table's last column.
        slices: Columns by which results are to be cut.
        limit: Use at most this many samples, spread evenly over the data.

    Returns:
        The data set; every sample in it could be read.

    Raises:
        DataError: missing, broken, too little, or not fitting the model.
        UsageError: an unknown kind of data, slice column, or module.
    """
    if limit is not None and limit < MIN_SAMPLES:
        raise UsageError(f"A limit of {limit} samples is too low; at least {MIN_SAMPLES} are needed.")
    if not inputs:
        raise DataError("The model has no inputs, so no data can be fed to it.")
    listing = None
    if not isinstance(spec, Mapping) and is_listing(Path(spec)):
        listing = Listing.load(Path(spec))
        spec, target = listing.pool_beside(Path(spec)), target or listing.target
    request = Request(tuple(inputs), preprocess, target, tuple(slices), None if listing else limit)
    source = _open(spec, request)
    _check_enough(len(source), source.name)
    rows = np.arange(len(source), dtype=np.int64) if listing is None else listing.rows
    if limit is not None and limit < len(rows):
        rows = rows[(np.arange(limit) * len(rows)) // limit]  # evenly spread: a set sorted by class keeps all its classes
    try:
        wanted = rows
        rows, hashes, skipped = scan(source, wanted[wanted < len(source)])
        if listing is not None:
            check_unchanged(listing, wanted, rows, hashes, source.name)
        _check_enough(len(rows), source.name)
        data = Dataset(source, request.inputs, _settle(source, int(rows[0]), request), rows, hashes, skipped)
        next(data.subset(np.arange(1)).batches(1))  # a first sample that does not fit is said now, not in the middle
    except LowbitError:
        raise
    except OSError as error:
        raise DataError(f"Reading '{source.name}' failed: {error.strerror or error}.") from error
    return data


def _open(spec: str | Path | Mapping[str, Array], request: Request) -> Source:
    if isinstance(spec, Mapping):
        return from_arrays("arrays", spec, request)
    path = Path(spec)
    text = request.preprocess is not None and request.preprocess.text is not None
    try:
        if path.is_file() and text:
            return open_texts(path, request)
        if path.is_dir():
            return open_annotated(path, request) or open_folder(path, request)
        if path.is_file():
            reader = _READERS.get(path.suffix.lower())
            if reader is None:
                raise UsageError(f"'{path.name}' is no data that lowbit reads: {KINDS}.")
            return reader(path, request)
    except OSError as error:
        raise DataError(f"'{path.name}' cannot be read: {error.strerror or error}.") from error
    if is_custom(str(spec)):
        return open_custom(str(spec), request)
    raise DataError(f"There is no data at '{spec}'.", f"Data is {KINDS}.")


def _check_enough(n: int, name: str) -> None:
    if n == 0:
        raise DataError(f"'{name}' holds no samples; at least {MIN_SAMPLES} are needed.", f"Data is {KINDS}.")
    if n < MIN_SAMPLES:
        raise DataError(
            f"'{name}' holds {n} sample{'s' if n > 1 else ''}; at least {MIN_SAMPLES} are needed, and hundreds to say anything."
        )


def _settle(source: Source, row: int, request: Request) -> Preprocess:
    """The preprocessing with nothing left open, from the first readable sample."""
    main = main_input(request.inputs)
    given = request.preprocess
    if given is not None and given.text is not None:
        if isinstance(source, TextSource):
            return replace(given, text=source.text)
        # Samples that are tokens already, say: the preprocessing is for what comes later, when it is served.
        raise UsageError("The preprocessing is for text, and the data is not a file of text.", "Give .tsv, .csv, .jsonl or .parquet.")
    if main is None:
        if given is not None and (given.mean or given.std or given.scale not in ("auto", 1.0) or given.kind == "image"):
            wants = "; ".join(describe_input(info) for info in request.inputs)
            raise UsageError(f"Preprocessing is about a model's only floating-point input; this model takes {wants}.", "Leave it out.")
        note = "several inputs, passed on as they are" if given is None else given.note
        return replace(given or Preprocess(), kind="array", resize=None, crop=None, scale=1.0, note=note)
    example = source.read(np.array([row], np.int64))[main.name][0]
    settled = infer(main, example) if given is None else given.resolve(main, example)
    if isinstance(source, ArraySource) and source.features and not settled.columns:
        return replace(settled, columns=source.features)  # so that serving can take rows by column name
    return settled
