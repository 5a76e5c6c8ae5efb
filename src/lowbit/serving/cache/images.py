"""What an image looks like, coarsely: a hash by which near ones are found, and block means by which they are verified.

The hash is a difference hash: 16 x 16 bits, each whether a block is clearly brighter than its left neighbour. It finds candidates only:
images with a small part changed have nearly the same one. The block means settle it: every block of every channel has to be close.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from lowbit.types import Array, Feeds, TensorInfo

if TYPE_CHECKING:
    from lowbit.data.preprocess import Preprocess

SIDE = 16
"""Of the hash, in blocks."""
CLEARLY = 2.0
"""Grey levels by which a block must be brighter: in flat parts, noise would toss the bits."""
THUMB = 32
"""Blocks of a side of the block means, at most; images smaller than twice that have one for every 2 pixels."""
SMALL = 64
"""Pixels of a side: below, detail of single pixels decides on the class, and has to be the same. ResNet-20 on CIFAR-10 answers 8 % of
images differently once they were resized and back, which changes their block means by less than an encoding does."""
DETAIL, ROUNDING = 0.1, 0.1
"""Share by which details may differ, and grey levels on top."""
SMALLEST = 16
"""Pixels of a side: smaller inputs are no images."""


@dataclass(frozen=True)
class Look:
    """Of one image.

    Attributes:
        bits: The hash, uint64 [4].
        thumb: Block means in grey levels (0-255), float32 [h, w, channels].
        detail: Mean difference of a pixel from its neighbours, in grey levels; 0 for images that are not `SMALL`.
    """

    bits: Array
    thumb: Array
    detail: float = 0.0

    def distance(self, other: Look) -> float:
        """The largest difference of any block, in grey levels; infinite where shapes or details differ."""
        if self.thumb.shape != other.thumb.shape:
            return float("inf")
        if abs(self.detail - other.detail) > DETAIL * max(self.detail, other.detail) + ROUNDING:
            return float("inf")
        return float(np.abs(self.thumb - other.thumb).max())


@dataclass(frozen=True)
class Pixels:
    """How a model's input is turned back into grey levels; preprocessing is linear, so block means can be taken first.

    Attributes:
        name: Of the input.
        channels_first: [N, C, H, W] rather than [N, H, W, C].
        scale: Preprocessing multiplied by this, subtracted `mean` and divided by `std`.
        mean: One for all channels or one each.
        std: The same.
        blocks: Of a side of the block means, at most.
    """

    name: str
    channels_first: bool
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    blocks: int = THUMB

    def look(self, feeds: Feeds) -> Look | None:
        """Of the image that is asked; None where there are several rows, or what there is holds no numbers."""
        batch = feeds[self.name]
        if len(batch) != 1:
            return None
        image = np.moveaxis(batch[0], 0, -1) if self.channels_first else batch[0]
        height, width = image.shape[:2]
        if min(height, width) < SMALLEST:
            return None
        thumb = self._levels(means(image, min(self.blocks, height // 2), min(self.blocks, width // 2)))
        if not np.isfinite(thumb).all():
            return None
        grey = means(thumb.mean(axis=-1, keepdims=True), min(SIDE, thumb.shape[0]), min(SIDE + 1, thumb.shape[1]))[..., 0]
        detail = self._detail(image) if min(height, width) < SMALL else 0.0
        return Look(_bits(grey), thumb, detail)

    def _detail(self, image: Array) -> float:
        grey = self._levels(image).mean(axis=-1)
        around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
        return float(np.abs(grey[1:-1, 1:-1] - around / 4).mean())

    def _levels(self, values: Array) -> Array:
        levels = (values * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)) / np.float32(self.scale)
        return np.asarray(levels, np.float32)


def means(image: Array, rows: int, columns: int) -> Array:
    """Means of rows x columns blocks of an image [H, W, C], float32; blocks differ by a pixel where the sides do not divide."""
    channels = np.moveaxis(image, -1, 0).astype(np.float32, copy=False)
    found = _averages(image.shape[0], rows) @ channels @ _averages(image.shape[1], columns).T
    return np.asarray(np.moveaxis(found, 0, -1))


@lru_cache(64)
def _averages(length: int, parts: int) -> Array:
    """Takes a vector's parts' means, [parts, length]: as a product, faster than summing."""
    edges = np.round(np.linspace(0, length, parts + 1)).astype(np.intp)
    found = np.zeros((parts, length), np.float32)
    for row, (start, end) in enumerate(pairwise(edges)):
        found[row, start:end] = 1 / (end - start)
    return found


def _bits(grey: Array) -> Array:
    """[h, w + 1] block means -> 256 bits; what a small image lacks is 0."""
    brighter = np.zeros((SIDE, SIDE), bool)
    steps = np.diff(grey, axis=1) > CLEARLY
    brighter[: steps.shape[0], : steps.shape[1]] = steps[:SIDE, :SIDE]
    return np.packbits(brighter).view(np.uint64)


def pixels_of(steps: Preprocess | None, inputs: tuple[TensorInfo, ...]) -> Pixels | None:
    """How a model's input is read as an image; None where it is none, or its preprocessing does not say how to get grey levels back."""
    if steps is None or steps.kind != "image" or len(inputs) != 1 or len(inputs[0].shape) != 4:
        return None
    if steps.layout not in ("nchw", "nhwc") or not isinstance(steps.scale, float | int):
        return None
    return Pixels(inputs[0].name, steps.layout == "nchw", float(steps.scale), tuple(steps.mean) or (0.0,), tuple(steps.std) or (1.0,))
