"""The steps of preprocessing as pure functions: decode, resize, crop, colours, scale, layout.

Resizing and cropping are Pillow's and torchvision's to the pixel: short side to `s`, long side
to `int(s * long / short)`, centre crop from `round((size - crop) / 2)`. The numeric steps are
element-wise float32, so a sample comes out the same whatever batch it is in.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import DataError
from lowbit.types import Array

Raw = Any
"""One sample's value for one input as the source gives it: an array, or an image as a file, bytes or a Pillow image."""

Size = tuple[int, int]
"""Height, width."""

_LUMA = (19595, 38470, 7471)  # ITU-R 601 in 16-bit fixed point, as Pillow converts RGB to L


class Unreadable(DataError):
    """An image that cannot be decoded; among good ones it is skipped and counted."""


def is_image(raw: Raw) -> bool:
    """Whether `raw` is an image still to be decoded (a path, encoded bytes, a Pillow image)."""
    return isinstance(raw, (str, Path, bytes)) or hasattr(raw, "getbands")


def decode(raw: Raw, *, probe: bool = False) -> Any:
    """Opens an image: a path, encoded bytes, or a Pillow image, which is returned as it is.

    Args:
        raw: The image.
        probe: Only find out whether it can be decoded: JPEG is then decoded at an eighth of its size,
            which reads the whole stream in half the time.

    Returns:
        A loaded Pillow image (its first frame).

    Raises:
        Unreadable: no such file, not an image, truncated or corrupt.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(raw, Image.Image):
        return raw
    data = file_bytes(raw)
    try:
        image = Image.open(io.BytesIO(data))
        if probe:
            image.draft(None, (1, 1))
        image.load()
    except Exception as error:  # decoders of broken files raise anything: OSError, SyntaxError, struct.error, ...
        name = "An image" if isinstance(raw, bytes) else f"'{Path(raw).name}'"
        reason = "its format is not known" if isinstance(error, UnidentifiedImageError) else error
        raise Unreadable(f"{name} cannot be read: {reason}.") from error
    return image


def file_bytes(raw: str | Path | bytes) -> bytes:
    """The encoded bytes of an image. Raises Unreadable where there is no such file."""
    if isinstance(raw, bytes):
        return raw
    try:
        return Path(raw).read_bytes()
    except (OSError, ValueError) as error:
        raise Unreadable(f"'{Path(raw).name}' cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def colours(image: Any, channels: str) -> Any:
    """A Pillow image in mode L (for "grey") or RGB, 8 bits a channel."""
    if image.mode[0] in "IF":  # I, I;16, F: Pillow's conversion would clip to 255 without a word
        raise DataError(
            f"An image has mode {image.mode} (more than 8 bits a channel); 8-bit images are read.",
            "Convert such images to 8 bits, or give them as arrays in an .npz.",
        )
    return image.convert("L" if channels == "grey" else "RGB")


def resized(size: Size, resize: int | Size | None) -> Size:
    """The size after resizing: `resize` is the short side, or height and width.

    >>> resized((300, 500), 256)
    (256, 426)
    """
    if resize is None:
        return size
    if isinstance(resize, tuple):
        return resize
    height, width = size
    short, long = min(size), max(size)
    other = int(resize * long / short)
    return (resize, other) if height <= width else (other, resize)


def needs_geometry(size: Size, resize: int | Size | None, crop: Size | None, keep_exact: bool) -> bool:
    """Whether an image of this size has to be resized or cropped at all."""
    final = crop or (resize if isinstance(resize, tuple) else None)
    if keep_exact and final == size:
        return False
    return resized(size, resize) != size or crop not in (None, size)


def crop_box(size: Size, crop: Size) -> tuple[int, int]:
    """Top and left of the centre crop.

    Raises:
        DataError: the image is smaller than the crop.
    """
    if size[0] < crop[0] or size[1] < crop[1]:
        raise DataError(
            f"An image is {size[0]}x{size[1]} where {crop[0]}x{crop[1]} is to be cropped from it.",
            "Give a larger `resize` in the preprocessing.",
        )
    return round((size[0] - crop[0]) / 2), round((size[1] - crop[1]) / 2)


def place(image: Any, resize: int | Size | None, crop: Size | None, interpolation: str, keep_exact: bool) -> Any:
    """Resizes and crops one Pillow image."""
    size = (image.height, image.width)
    if not needs_geometry(size, resize, crop, keep_exact):
        return image
    target = resized(size, resize)
    if target != size:
        image = image.resize((target[1], target[0]), _method(interpolation))
    if crop is not None:
        top, left = crop_box(target, crop)
        image = image.crop((left, top, left + crop[1], top + crop[0]))
    return image


def letterbox(image: Any, target: Size, value: float, align: str, interpolation: str) -> Any:
    """Resizes one Pillow image so that the whole of it fits, and fills up the rest with `value`."""
    from PIL import Image

    from lowbit.data.geometry import letterboxed

    (height, width), (top, left) = letterboxed((image.height, image.width), target, align)
    if (image.height, image.width) != (height, width):
        image = image.resize((width, height), _method(interpolation))
    if (height, width) == target:
        return image
    fill: Any = value if image.mode == "F" else (round(value),) * len(image.getbands())
    canvas = Image.new(image.mode, (target[1], target[0]), fill)
    canvas.paste(image, (left, top))
    return canvas


def _method(interpolation: str) -> Any:
    from PIL import Image

    return Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR


def place_planes(pixels: Array, place: Callable[[Any], Any]) -> Array:
    """A geometric step for an array [H, W, C]: uint8 as an image, anything else in float32, channel by channel."""
    from PIL import Image

    dtype = np.uint8 if pixels.dtype == np.uint8 else np.float32
    planes = [Image.fromarray(np.ascontiguousarray(pixels[..., channel], dtype)) for channel in range(pixels.shape[2])]
    return np.stack([np.asarray(place(plane)) for plane in planes], axis=-1)


def channel_axis(shape: tuple[int, ...], channels: int, layout: str) -> int | None:
    """Which axis of an image array holds the channels: 0, 2, or None for a grey image [H, W].

    Where both could (3 x 32 x 3), the one with the wanted number of channels, then the model's own layout wins.

    Raises:
        DataError: the array is not an image.
    """
    if len(shape) == 2:
        return None
    found = [axis for axis in (0, 2) if len(shape) == 3 and shape[axis] in (1, 3, 4)]
    if not found:
        raise DataError(
            f"A sample of shape {list(shape)} is not an image.",
            "Images are [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels.",
        )
    exact = [axis for axis in found if shape[axis] == channels] or found
    preferred = 2 if layout == "nhwc" else 0
    return preferred if preferred in exact else exact[0]


def channels_last(block: Array, channels: int, layout: str) -> Array:
    """Image arrays [N, H, W], [N, H, W, C] or [N, C, H, W] as a view [N, H, W, C]."""
    axis = channel_axis(block.shape[1:], channels, layout)
    if axis is None:
        return block[..., np.newaxis]
    return np.moveaxis(block, axis + 1, -1)


def match_channels(block: Array, channels: int) -> Array:
    """[N, H, W, C] with as many channels as the model wants, converted as Pillow does.

    Raises:
        DataError: there is no exact way from what there is to what is wanted.
    """
    present = block.shape[-1]
    if present == channels:
        return block
    if present == 1 and channels == 3:
        return np.repeat(block, 3, axis=-1)
    if present == 3 and channels == 1 and block.dtype == np.uint8:
        wide = block.astype(np.uint32)
        luma = sum(wide[..., index] * weight for index, weight in enumerate(_LUMA)) + 0x8000
        return np.asarray(luma >> 16).astype(np.uint8)[..., np.newaxis]
    raise DataError(f"The images have {present} channels ({block.dtype}), the model takes {channels}.", "Convert them first.")


def to_layout(block: Array, layout: str) -> Array:
    """[N, H, W, C] in the model's layout, as a view."""
    if layout == "nchw":
        return np.moveaxis(block, -1, 1)
    return block[..., 0] if layout == "nhw" else block


def standardise(block: Array, scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """`(x * scale - mean) / std` along the last axis; the input comes back untouched where there is nothing to do.

    8- and 16-bit integers, float16 and float32 are computed in float32 as torchvision does (a scale of 1/255 is a division by 255),
    wider types in float64, so that large table values lose nothing before their mean is taken off.
    """
    if scale == 1 and not mean and not std:
        return block
    narrow = block.dtype.itemsize <= 2 or block.dtype == np.float32
    kind: Any = np.float32 if narrow else np.float64
    out = block.astype(kind)  # always a copy: the steps below work in place
    divisor = round(1 / scale) if scale else 0
    if divisor and scale == 1 / divisor:
        if divisor != 1:
            out /= kind(divisor)
    else:
        out *= kind(scale)
    if mean:
        out -= np.asarray(mean, kind)
    if std:
        out /= np.asarray(std, kind)
    return out
