"""Where an image's pixels land in the model's input, and the way back. Pure.

A box at x in the image lies at `x * scale + offset` in the model's input, along each axis, with x measured from the left
edge of the first pixel. Sizes are whole pixels, so the two axes' scales may differ by a rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lowbit.data.steps import Size, crop_box, needs_geometry, resized
from lowbit.errors import UsageError, unknown
from lowbit.types import Array

ALIGNMENTS = ("centre", "corner")


@dataclass(frozen=True)
class Letterbox:
    """Resize so that the whole image fits, keeping its aspect ratio, and fill up the rest.

    Attributes:
        size: (height, width) of what comes out, or "auto": the model's own.
        value: The rest's pixel value in every channel, before scaling; 0-255 for 8-bit images.
        align: Where the image lies: "centre", or "corner" (top left).
    """

    size: Size | Literal["auto"] = "auto"
    value: float = 114
    align: str = "centre"

    def __post_init__(self) -> None:
        if self.align not in ALIGNMENTS:
            raise unknown("value of `align`", self.align, ALIGNMENTS)
        if not 0 <= self.value <= 255:
            raise UsageError(f"The letterbox's pixel value {self.value:g} is not between 0 and 255.")


@dataclass(frozen=True)
class Frame:
    """A map from an image to the model's input, along (y, x): `scale * position + offset`."""

    scale: tuple[float, float]
    offset: tuple[float, float]


def letterboxed(size: Size, target: Size, align: str) -> tuple[Size, tuple[int, int]]:
    """The resized image's height and width, and its top and left in a letterbox of height and width `target`.

    >>> letterboxed((480, 640), (416, 416), "centre")
    ((312, 416), (52, 0))
    """
    ratio = min(target[0] / size[0], target[1] / size[1])
    height, width = (min(limit, max(1, round(side * ratio))) for side, limit in zip(size, target, strict=True))
    if align == "corner":
        return (height, width), (0, 0)
    return (height, width), ((target[0] - height) // 2, (target[1] - width) // 2)


def frame_of(size: Size, resize: int | Size | None, crop: Size | None, letterbox: Letterbox | None, keep_exact: bool = True) -> Frame:
    """Where an image of this size lands.

    Args:
        size: Height and width of the image.
        resize: As in `Preprocess`, settled.
        crop: As in `Preprocess`, settled.
        letterbox: As in `Preprocess`, settled; then neither resize nor crop applies.
        keep_exact: As in `Preprocess`.
    """
    if letterbox is not None and not isinstance(letterbox.size, str):
        (height, width), (top, left) = letterboxed(size, letterbox.size, letterbox.align)
        return Frame((height / size[0], width / size[1]), (float(top), float(left)))
    if not needs_geometry(size, resize, crop, keep_exact):
        return Frame((1.0, 1.0), (0.0, 0.0))
    height, width = resized(size, resize)
    top, left = (0, 0) if crop is None else crop_box((height, width), crop)
    return Frame((height / size[0], width / size[1]), (-float(top), -float(left)))


def to_original(boxes: Array, frame: Frame, size: Size) -> Array:
    """Boxes of the model's input as boxes of the image.

    Args:
        boxes: [..., 4] as x1, y1, x2, y2 in pixels of the model's input.
        frame: Where the image lies in it.
        size: Height and width of the image; boxes are clipped to it.

    Returns:
        [..., 4] float64, x1, y1, x2, y2 in the image's pixels.
    """
    offset = np.array([frame.offset[1], frame.offset[0]] * 2)
    scale = np.array([frame.scale[1], frame.scale[0]] * 2)
    limit = np.array([size[1], size[0]] * 2, np.float64)
    return np.clip((np.asarray(boxes, np.float64) - offset) / scale, 0.0, limit)


def to_model(boxes: Array, frame: Frame) -> Array:
    """Boxes of the image as boxes of the model's input: the way there, without clipping."""
    offset = np.array([frame.offset[1], frame.offset[0]] * 2)
    scale = np.array([frame.scale[1], frame.scale[0]] * 2)
    return np.asarray(boxes, np.float64) * scale + offset
