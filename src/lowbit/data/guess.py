"""Inputs for data that no model is there to ask for: what a pool itself looks like."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lowbit.data.fit import INPUT_ALIASES, LABEL_NAMES
from lowbit.errors import DataError, UsageError
from lowbit.types import Array, TensorInfo

SIDE = 64
"""Pixels a side to which image files are read: enough to tell pictures apart."""

TABLES = (".csv", ".tsv", ".parquet", ".pq")
_IMAGE = (TensorInfo("image", (None, 3, SIDE, SIDE), "float32"),)
_TABLE = (TensorInfo("features", (None, None), "float32"),)


def guess_inputs(spec: str | Path | Mapping[str, Array], target: str | None = None, slices: Sequence[str] = ()) -> tuple[TensorInfo, ...]:
    """Inputs that take the data as it is.

    Args:
        spec: A folder of images, an `.npz`, a table, or arrays by name.
        target: Name of the labels, which are no input.
        slices: Names of slice columns, which are none either.

    Raises:
        UsageError: a kind of data that does not say what it holds.
        DataError: an `.npz` that cannot be read, or without samples in it.
    """
    if isinstance(spec, Mapping):
        return _of_arrays({name: (array.shape, array.dtype) for name, array in spec.items()}, target, slices)
    path = Path(spec)
    if path.is_dir():
        return _IMAGE
    if path.is_file() and path.suffix.lower() in TABLES:
        return _TABLE
    if path.is_file() and path.suffix.lower() == ".npz":
        return _of_arrays(_headers(path), target, slices)
    if not path.exists() and path.suffix:
        raise DataError(f"There is no data at '{spec}'.")
    raise UsageError(f"What '{path.name}' holds can only be told with the model that takes it.", "Give --model.")


def _of_arrays(
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]], target: str | None, slices: Sequence[str]
) -> tuple[TensorInfo, ...]:
    taken = {*LABEL_NAMES, *slices, target, "classes"} - set(INPUT_ALIASES)
    samples = {name: entry for name, entry in arrays.items() if name not in taken and len(entry[0]) > 1 and entry[1].kind in "biuf"}
    names = [name for name in INPUT_ALIASES if name in samples][:1] or list(samples)
    if not names:
        raise DataError(f"No array looks like samples [n, ...] of numbers: {', '.join(arrays) or 'there is none'}.", "Give --model.")
    # Bytes are pixels, wider integers are tokens.
    return tuple(
        TensorInfo(name, (None, *shape[1:]), "float32" if kind.kind == "f" or kind == np.uint8 else kind.name)
        for name, (shape, kind) in ((name, samples[name]) for name in names)
    )


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
    """Shape and type of every array of an `.npz`; the values are not read."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    version = np.lib.format.read_magic(file)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                    shape, _, kind = read(file)
                    found[name.removesuffix(".npy")] = (shape, kind)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"'{path.name}' cannot be read as an .npz: {error}") from error
    return found
