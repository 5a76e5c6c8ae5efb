"""Arrays: `.npz` files and plain mappings.

Nothing is loaded that is not needed: members stored without compression are read from the file row by row,
compressed ones are unpacked to a spool, which goes to disk when it is large. Pickled objects are
refused, as they could run code.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lowbit.data.fit import LABEL_NAMES, describe_arrays, find_label, match_inputs
from lowbit.data.source import Request, as_labels, as_slice, check_slices
from lowbit.data.spool import FileRows, Rows, Spool
from lowbit.data.steps import Raw
from lowbit.errors import DataError
from lowbit.types import Array

_CHUNK = 2**20


@dataclass(frozen=True)
class ArraySource:
    """Samples that lie in arrays [n, ...], one an input; see `Source`.

    `features` are the table columns that form the only input, in order; empty for anything else.
    """

    name: str
    arrays: Mapping[str, Rows]
    labels: Array | None = None
    classes: tuple[str, ...] | None = None
    slices: Mapping[str, Array] = field(default_factory=dict)
    unit: str = "row"
    first: int = 0
    costly: bool = False
    features: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def read(self, rows: Array) -> Mapping[str, Array | Sequence[Raw]]:
        # A run of consecutive rows is read as a slice: one read from the file instead of many.
        run = len(rows) > 0 and bool((np.diff(rows) == 1).all())
        where: Any = slice(int(rows[0]), int(rows[-1]) + 1) if run else rows
        return {name: np.asarray(array[where]) for name, array in self.arrays.items()}

    def sample_name(self, row: int) -> str:
        return f"{self.unit} {row + self.first}"


def from_arrays(name: str, arrays: Mapping[str, Any], request: Request) -> ArraySource:
    """A source from named arrays, all with the samples along their first axis.

    Raises:
        DataError: a model input has no array, lengths differ, arrays hold objects.
        UsageError: no such slice column.
    """
    present = {key: _array(key, value) for key, value in arrays.items()}
    feeding = match_inputs(present, request.inputs, describe_arrays(present))
    label = find_label(present, request.target)
    for key, member in feeding.items():
        if present[member].dtype.kind not in "biuf":
            raise DataError(f"`{member}` holds {present[member].dtype}; input '{key}' needs numbers.", "Convert it to numbers.")
    lengths = {key: _length(key, present[key]) for key in [*feeding.values(), *([] if label is None else [label])]}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"The arrays differ in length: {', '.join(f'{key} has {n}' for key, n in lengths.items())}.", "Give one entry a sample."
        )
    n = next(iter(lengths.values()))
    columns = [key for key, array in present.items() if array.ndim == 1 and len(array) == n and key not in lengths]
    check_slices(request.slices, columns)
    labels, classes = (None, None) if label is None else as_labels(np.asarray(present[label]), f"The labels in `{label}`")
    names = present.get("classes")
    if classes is None and names is not None and names.dtype.kind in "US" and names.ndim == 1:
        classes = tuple(str(value) for value in np.asarray(names).tolist())
    return ArraySource(
        name=name,
        arrays={key: present[field] for key, field in feeding.items()},
        labels=labels,
        classes=classes,
        slices={key: as_slice(key, present[key]) for key in request.slices},
    )


def _array(key: str, value: Any) -> Rows:
    if isinstance(value, FileRows):
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        array = value if isinstance(value, np.ndarray) else np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise DataError(f"`{key}` is not an array: its entries differ in shape ({error}).", "Pad sequences to one length.") from error
    if array.dtype.kind == "O" and key not in LABEL_NAMES:
        raise DataError(f"`{key}` holds Python objects; arrays of numbers are read.", "Convert it to numbers, padded to one length.")
    return array


def _length(key: str, array: Rows) -> int:
    if array.ndim == 0:
        raise DataError(f"`{key}` is a single value; the first axis has one entry a sample.")
    return len(array)


def open_npz(path: Path, request: Request) -> ArraySource:
    """See `from_arrays`; only the members that are needed are read.

    Raises:
        DataError: also when the file is not an .npz, truncated, or holds pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename[:-4]: info for info in archive.infolist() if info.filename.endswith(".npy")}
            headers = {name: _header(archive, info) for name, info in members.items()}
            needed = _needed(headers, request)
            return from_arrays(path.name, {name: _member(path, archive, members[name]) for name in needed}, request)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"'{path.name}' is not a readable .npz file: {error}", "Write it with numpy.savez.") from error


@dataclass(frozen=True)
class _Header:
    """What a .npy file says about itself; quacks enough like an array for `describe_arrays`."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    offset: int


def _needed(headers: Mapping[str, _Header], request: Request) -> list[str]:
    """Members worth reading: what feeds the model, labels, and every other 1-D array (they are small)."""
    label = find_label(headers, request.target)
    wanted = {
        *match_inputs(headers, request.inputs, describe_arrays(headers)).values(),
        *request.slices,
        *([] if label is None else [label]),
    }
    if pickled := sorted(name for name in wanted if name in headers and headers[name].dtype.hasobject):
        raise DataError(
            f"The arrays {', '.join(pickled)} hold pickled Python objects, which could run code when read; they are refused.",
            "Save arrays of numbers or text: numpy.savez(file, images=images.astype('float32'), ...).",
        )
    return [name for name, header in headers.items() if name in wanted or (len(header.shape) == 1 and not header.dtype.hasobject)]


def _read_header(file: BinaryIO | Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise DataError(f"A .npy member has format version {version[0]}.{version[1]}; 1.0 and 2.0 are read.")


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Header:
    with archive.open(info) as file:
        shape, fortran, dtype = _read_header(file)
        return _Header(shape, fortran, dtype, file.tell())


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Rows:
    """One array: read where it lies if it is stored as it is, else unpacked. Fortran-ordered and 1-D ones are loaded."""
    header = _header(archive, info)
    count = int(np.prod(header.shape, dtype=np.int64))
    if min(header.shape, default=1) < 0 or info.file_size != header.offset + count * header.dtype.itemsize:
        raise DataError(f"Array '{info.filename}' of '{path.name}' is truncated.", "Write the file again.")
    load = header.fortran or len(header.shape) <= 1
    if info.compress_type == zipfile.ZIP_STORED and count and not load:
        return FileRows(path.open("rb"), header.dtype, header.shape, _data_offset(path, info) + header.offset)
    spool = Spool()
    with archive.open(info) as file:
        file.read(header.offset)
        while chunk := file.read(_CHUNK):
            spool.append(chunk)
    if not load:
        return spool.rows(header.dtype, header.shape)
    flat = np.asarray(spool.rows(header.dtype, (count,)))
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: behind its local header, whose name and extra fields vary in length.

    Source: PKWARE APPNOTE.TXT 4.3.7.
    """
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        lengths = file.read(4)
    return info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
