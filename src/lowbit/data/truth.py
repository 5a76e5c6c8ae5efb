"""Boxes that people drew, as labels: a different number an image, in one array, so that they go wherever labels go.

Packed labels are float64 [N, 1 + M, 6]. Row 0 of an image is its header: height, width, number of boxes, 0, 0, -1; then come
its boxes as class, x1, y1, x2, y2 in the image's own pixels, and 1 for a crowd (a region of many, in which any number of
finds is right), else 0. The rest of its rows is -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowbit.data.steps import Size
from lowbit.errors import DataError
from lowbit.types import Array

WIDTH = 6
_MARK = -1.0


@dataclass(frozen=True)
class Truth:
    """The boxes of one image.

    Attributes:
        size: Height and width of the image.
        classes: int64 [m].
        boxes: float64 [m, 4]: x1, y1, x2, y2 in the image's pixels.
        crowd: bool [m].
    """

    size: Size
    classes: Array
    boxes: Array
    crowd: Array


def pack(images: Sequence[Truth]) -> Array:
    """Labels float64 [N, 1 + M, 6] of N images."""
    most = max((len(image.classes) for image in images), default=0)
    packed = np.full((len(images), 1 + most, WIDTH), _MARK)
    for row, image in zip(packed, images, strict=True):
        count = len(image.classes)
        row[0] = (*image.size, count, 0, 0, _MARK)
        row[1 : 1 + count] = np.column_stack([image.classes, image.boxes.reshape(count, 4), image.crowd])
    return packed


def unpack(row: Array) -> Truth:
    """One image's boxes from its row [1 + M, 6] of packed labels."""
    rows = row[1 : 1 + int(row[0, 2])]
    return Truth((int(row[0, 0]), int(row[0, 1])), rows[:, 0].astype(np.int64), rows[:, 1:5], rows[:, 5] > 0)


def is_packed(labels: Array | None) -> bool:
    """Whether labels are packed boxes."""
    return labels is not None and labels.ndim == 3 and labels.shape[2] == WIDTH and bool((labels[:, 0, 5] == _MARK).all())


def check_truth(labels: Array, classes: int | None) -> None:
    """Refuses boxes that a detector with `classes` classes (None: not known) cannot be right about.

    Raises:
        DataError: no box at all, or a class out of range.
    """
    found = labels[:, 1:, 0]
    found = found[found >= 0]
    if not len(found):
        raise DataError("The labels hold no box at all, so nothing can be found.", "Give images with boxes, or no labels.")
    if classes is not None and found.max() >= classes:
        raise DataError(
            f"The labels' classes run up to {int(found.max())}; the model has classes 0 to {classes - 1}.",
            "Number the classes from 0, as the model was trained.",
        )
