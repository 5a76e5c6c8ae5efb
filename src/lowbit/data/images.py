"""Folders of images: one folder a class, a `labels.csv`, or images alone."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from lowbit.data.fit import LABEL_NAMES, describe_input, some
from lowbit.data.source import Request, as_labels, as_slice, check_slices
from lowbit.data.steps import Raw
from lowbit.errors import DataError, UsageError
from lowbit.types import Array

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_FILE_NAMES = ("file", "filename", "path", "image")


@dataclass(frozen=True)
class ImageSource:
    """Image files; see `Source`. `files` are relative to `root`."""

    name: str
    root: Path
    files: tuple[str, ...]
    input: str
    labels: Array | None = None
    classes: tuple[str, ...] | None = None
    slices: Mapping[str, Array] = field(default_factory=dict)
    costly: bool = True

    def __len__(self) -> int:
        return len(self.files)

    def read(self, rows: Array) -> Mapping[str, Array | Sequence[Raw]]:
        return {self.input: [self.root / self.files[row] for row in rows.tolist()]}

    def sample_name(self, row: int) -> str:
        return self.files[row]


def open_folder(path: Path, request: Request) -> ImageSource:
    """A folder with `labels.csv`, of class folders, or of images without labels.

    Class ids count the class folders in sorted order, as torchvision and Keras do.

    Raises:
        DataError: no images, a model that does not take one image, a broken `labels.csv`.
        UsageError: no such slice column.
    """
    if len(request.inputs) != 1:
        wants = "; ".join(describe_input(info) for info in request.inputs)
        raise DataError(
            f"A folder of images feeds a model with one input; this one takes {wants}.", "Give an .npz, JSONL or `module:callable`."
        )
    name, image = path.resolve().name, request.inputs[0].name
    if (path / "labels.csv").is_file():
        return _listed(path, name, image, request)
    if request.target is not None:
        raise UsageError(
            f"`--target {request.target}` names a column, but '{name}' has no labels.csv.", "Leave it out: class folders are the labels."
        )
    check_slices(request.slices, ())
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    per_class = {folder: list(_images(path, folder)) for folder in folders}
    if any(per_class.values()):
        return _class_folders(path, name, image, per_class)
    return ImageSource(name, path, tuple(_images(path, "", deep=False)), image)


def _class_folders(path: Path, name: str, image: str, per_class: Mapping[str, list[str]]) -> ImageSource:
    empty = [folder for folder, files in per_class.items() if not files]
    if empty:
        raise DataError(
            f"{len(empty)} class folders of '{name}' hold no image: {some(empty)}.", "Fill them, or remove them if they are no classes."
        )
    labels = [index for index, files in enumerate(per_class.values()) for _ in files]
    files = tuple(file for found in per_class.values() for file in found)
    return ImageSource(name, path, files, image, np.array(labels, np.int64), tuple(per_class))


def find_images(root: Path) -> Iterator[str]:
    """All images below a folder, relative to it, in sorted order."""
    return _images(root, "")


def _images(root: Path, folder: str, deep: bool = True) -> Iterator[str]:
    """Images below a folder, relative to `root`, in sorted order."""
    for parent, folders, files in os.walk(root / folder):
        folders[:] = sorted(entry for entry in folders if not entry.startswith(".")) if deep else []
        for file in sorted(files):
            if file.lower().endswith(EXTENSIONS) and not file.startswith("."):
                yield (Path(parent) / file).relative_to(root).as_posix()


def _listed(path: Path, name: str, image: str, request: Request) -> ImageSource:
    """A folder with labels.csv: columns file, class_index or label, and slices."""
    header, rows = read_listing(path / "labels.csv")
    column = next((key for key in _FILE_NAMES if key in header), None)
    if column is None:
        raise DataError(f"labels.csv has no column `file`. It has {', '.join(header)}.", "Columns are file, and class_index or label.")
    label = request.target or next((key for key in ("class_index", *LABEL_NAMES) if key in header), None)
    if label is not None and label not in header:
        raise DataError(f"labels.csv has no column '{label}'. It has {', '.join(header)}.")
    check_slices(request.slices, [key for key in header if key != column])
    files = _located(path, [row[header.index(column)] for row in rows])
    values = None if label is None else [row[header.index(label)] for row in rows]
    labels, classes = (None, None) if values is None else as_labels(values, f"The labels in column `{label}` of labels.csv")
    slices = {key: as_slice(key, [row[header.index(key)] for row in rows]) for key in request.slices}
    return ImageSource(name, path, files, image, labels, classes, slices)


def read_listing(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a small CSV file.

    Raises:
        DataError: not UTF-8, no header, a line with too few or too many fields.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [key.strip() for key in next(reader, [])]
            rows = []
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(f"{path.name}, line {reader.line_num}: {len(row)} fields where the header has {len(header)}.")
                rows.append(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"'{path.name}' is not a readable CSV file: {error}") from error
    if not header:
        raise DataError(f"'{path.name}' is empty.", "Its first line names the columns: file,class_index.")
    return header, rows


def _located(root: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Paths of the listed files relative to `root`: they lie there, or in its subfolder `images`."""
    for name in names:
        if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(f"labels.csv lists '{name}'; files are named relative to their folder.")
    found = [next((place for place in (name, f"images/{name}") if (root / place).is_file()), None) for name in names]
    missing = [name for name, place in zip(names, found, strict=True) if place is None]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} files that labels.csv lists are not there: {some(missing)}.",
            "They are looked for beside labels.csv and in its subfolder `images`.",
        )
    return tuple(place for place in found if place is not None)
