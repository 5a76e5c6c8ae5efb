"""Images with boxes: YOLO's text files, and COCO's JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.data.fit import some
from lowbit.data.images import ImageSource, find_images
from lowbit.data.source import Request, check_slices
from lowbit.data.steps import Size
from lowbit.data.truth import Truth, pack
from lowbit.errors import DataError, UsageError

COCO_FILE = "_annotations.coco.json"
"""What Roboflow calls the COCO file in an image folder."""
_SLACK = 1e-3
"""Boxes may stick out of the image by this share of it: a rounding of those who wrote them."""


def open_annotated(path: Path, request: Request) -> ImageSource | None:
    """A folder of images with boxes, or None where it is none.

    YOLO: `images/` and `labels/` side by side, below or at the given folder, or the text files beside the images. An image
    without a text file has no boxes. COCO: `_annotations.coco.json` in the folder.

    Raises:
        DataError: a text file that is no list of boxes, or a broken JSON file.
    """
    if (path / COCO_FILE).is_file():
        return open_coco(path / COCO_FILE, request)
    if (path / "labels.csv").is_file():
        return None
    root = path / "images" if (path / "images").is_dir() and (path / "labels").is_dir() else path
    places = _label_files(root)
    if not places:
        return None
    files = tuple(find_images(root))
    texts = [places.get(Path(file).with_suffix("").as_posix()) for file in files]
    if not _is_yolo(texts):
        return None
    check_slices(request.slices, ())
    _one_input(path.resolve().name, request)
    sizes = [_size_of(root / file) for file in files]
    truths = [_yolo(text, size) for text, size in zip(texts, sizes, strict=True)]
    return ImageSource(path.resolve().name, root, files, request.inputs[0].name, pack(truths))


def _label_files(root: Path) -> dict[str, Path]:
    """Text files by the image they are about, relative to `root` without its ending: beside it, or with `labels` for `images`."""
    whole = root.resolve()
    homes = [whole]
    if "images" in whole.parts:
        at = len(whole.parts) - 1 - whole.parts[::-1].index("images")
        homes.append(Path(*whole.parts[:at], "labels", *whole.parts[at + 1 :]))
    return {file.relative_to(home).with_suffix("").as_posix(): file for home in homes for file in sorted(home.rglob("*.txt"))}


def _is_yolo(texts: Iterable[Path | None]) -> bool:
    """Whether the first text with a line in it starts with five numbers; captions beside images do not."""
    for text in texts:
        lines = [] if text is None else _lines(text)
        if lines:
            return len(lines[0]) >= 5 and all(_number(word) is not None for word in lines[0][:5])
    return any(text is not None for text in texts)


def _lines(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"'{path.name}' is not UTF-8 text ({error.reason}).") from error


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _yolo(path: Path | None, size: Size) -> Truth:
    """`class cx cy w h` a line, in shares of the image."""
    found = np.array([_yolo_line(path, number, line) for number, line in enumerate(_lines(path), 1)] if path else []).reshape(-1, 5)
    middle, half = found[:, 1:3], found[:, 3:5] / 2
    boxes = np.concatenate([middle - half, middle + half], axis=1).clip(0, 1) * np.array([size[1], size[0]] * 2)
    return Truth(size, found[:, 0].astype(np.int64), boxes, np.zeros(len(found), bool))


def _yolo_line(path: Path, line: int, words: Sequence[str]) -> list[float]:
    numbers = [_number(word) for word in words]
    where = f"'{path.name}', line {line}"
    if len(words) != 5 or None in numbers:
        raise DataError(f"{where}: '{' '.join(words)[:60]}' is no box.", "A line is `class cx cy w h`; outlines (polygons) are not read.")
    values = [number for number in numbers if number is not None]
    if values[0] < 0 or values[0] != int(values[0]):
        raise DataError(f"{where}: class {words[0]} is not a whole number from 0 on.")
    if min(values[1:]) < -_SLACK or max(values[1:]) > 1 + _SLACK:
        raise DataError(f"{where}: {' '.join(words[1:])} is not within 0 to 1.", "Centre, width and height are shares of the image.")
    return values


def _size_of(path: Path) -> Size:
    """Height and width from the file's head; (1, 1) where it cannot be read, which the scan of all samples reports."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return (image.height, image.width)
    except Exception:  # decoders of broken files raise anything
        return (1, 1)


def open_coco(path: Path, request: Request) -> ImageSource:
    """A COCO annotation file; classes count its categories in the order of their ids.

    Images lie beside the file, in a folder `images` there, or where COCO itself has them: `../val2017` for
    `annotations/instances_val2017.json`.

    Raises:
        DataError: not such a file, or images are missing.
    """
    check_slices(request.slices, ())
    _one_input(path.name, request)
    raw = _coco_json(path)
    try:
        categories = sorted((int(entry["id"]), str(entry["name"])) for entry in raw["categories"])
        numbers = {identity: index for index, (identity, _) in enumerate(categories)}
        found: dict[Any, list[tuple[float, ...]]] = {entry["id"]: [] for entry in raw["images"]}
        for entry in raw["annotations"]:
            x, y, width, height = map(float, entry["bbox"])
            crowd = float(bool(entry.get("iscrowd", 0)))
            found[entry["image_id"]].append((numbers[entry["category_id"]], x, y, x + width, y + height, crowd))
        files = [str(entry["file_name"]) for entry in raw["images"]]
        truths = [_coco_truth(entry, found[entry["id"]]) for entry in raw["images"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"'{path.name}' is not a COCO file of boxes: {error!r}.", "It has images, annotations with bbox, categories."
        ) from error
    root = _home(path, files)
    names = tuple(name for _, name in categories)
    return ImageSource(path.name, root, tuple(files), request.inputs[0].name, pack(truths), names)


def _coco_json(path: Path) -> Mapping[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path.name}' is not JSON: {error}.") from error
    if not isinstance(raw, dict) or not {"images", "annotations", "categories"} <= set(raw):
        raise DataError(f"'{path.name}' is not a COCO file.", "It is an object with images, annotations and categories.")
    return raw


def _coco_truth(entry: Mapping[str, Any], rows: Sequence[tuple[float, ...]]) -> Truth:
    table = np.array(rows, np.float64).reshape(-1, 6)
    if not np.isfinite(table).all():
        raise ValueError(f"a box of image {entry['id']} is not finite")
    return Truth((int(entry["height"]), int(entry["width"])), table[:, 0].astype(np.int64), table[:, 1:5], table[:, 5] > 0)


def _home(path: Path, files: Sequence[str]) -> Path:
    """The folder that holds all files."""
    folder = path.resolve().parent
    split = path.stem.removeprefix("instances_")
    homes = [folder, folder / "images", folder.parent / "images", folder.parent / split, folder.parent / "images" / split, folder / split]
    for name in files:
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"'{path.name}' lists '{name}'; files are named relative to their folder.")
    missing = {home: [name for name in files if not (home / name).is_file()] for home in homes}
    best = min(homes, key=lambda home: len(missing[home]))
    if missing[best]:
        raise DataError(
            f"{len(missing[best])} of {len(files)} images that '{path.name}' lists are not there: {some(missing[best])}.",
            f"They are looked for beside it, in `images`, and in `../{split}`.",
        )
    return best


def _one_input(name: str, request: Request) -> None:
    if len(request.inputs) != 1:
        raise DataError(f"'{name}' has images for one input; the model has {len(request.inputs)}.", "Give a model with one input.")
    if request.target is not None:
        raise UsageError(f"`--target {request.target}` names a column, but the labels of '{name}' are boxes.", "Leave it out.")
