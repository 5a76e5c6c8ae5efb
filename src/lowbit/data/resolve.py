"""Settling what a preprocessing leaves open, from the model's input and one sample.

What is guessed is said: an inferred preprocessing carries a note, and the bundle shows it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from lowbit.data import steps
from lowbit.data.fit import describe_input
from lowbit.data.preprocess import Preprocess, as_numbers
from lowbit.data.steps import Raw, Size
from lowbit.errors import DataError, UsageError
from lowbit.types import Dim, TensorInfo

_CHANNELS = (1, 3)


def infer(info: TensorInfo, example: Raw) -> Preprocess:
    """The preprocessing of someone who gave none.

    Image files are resized and cropped to the model's size; arrays must have it already. uint8 is scaled to 0-1
    for a floating-point model; everything else passes as it is. No mean or standard deviation is guessed.
    """
    image = steps.is_image(example)
    geometry: dict[str, Any] = {} if image else {"resize": None, "crop": None}
    settled = resolve(Preprocess(**geometry), info, example)
    what = "image files" if image else f"{as_numbers(example).dtype} arrays"
    how = "scaled by 1/255 to 0-1" if settled.scale == 1 / 255 else "passed on as they are"
    tail = "; no mean or standard deviation applied" if settled.kind == "image" else ""
    return replace(settled, note=f"inferred from the model's input and the data: {what} {how}{tail}")


def resolve(given: Preprocess, info: TensorInfo, example: Raw) -> Preprocess:
    """See `Preprocess.resolve`."""
    kind = _kind(info, example) if given.kind == "auto" else given.kind
    dtype = info.dtype if given.dtype == "auto" else given.dtype
    settled = replace(given, kind=kind, dtype=dtype, scale=_scale(given, info, example))
    if kind == "array":
        if steps.is_image(example):
            raise UsageError("The preprocessing says `kind: array`, but the data are images.", "Write `kind: image`.")
        _check_columns(settled, as_numbers(example).shape)
        return replace(settled, resize=None, crop=None)
    return _resolve_image(settled, info, example)


def _resolve_image(given: Preprocess, info: TensorInfo, example: Raw) -> Preprocess:
    layout = _layout(info) if given.layout == "auto" else given.layout
    channels, height, width = _dims(info, layout)
    colours = _colours(channels, info, example, layout) if given.channels == "auto" else given.channels
    if isinstance(channels, int) and channels != (1 if colours == "grey" else 3):
        raise UsageError(f"The preprocessing gives {colours} images, the model takes {channels} channels: {describe_input(info)}.")
    for values in (given.mean, given.std):
        if len(values) > 1 and len(values) != (1 if colours == "grey" else 3):
            raise UsageError(f"The preprocessing has {len(values)} means or standard deviations for {colours} images.")
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    settled = replace(given, layout=layout, channels=colours)
    if given.letterbox is not None:
        if given.letterbox.size == "auto" and size is None:
            raise _no_size(info, "letterbox")
        box = replace(given.letterbox, size=size) if given.letterbox.size == "auto" and size else given.letterbox
        return replace(settled, letterbox=box, resize=None, crop=None)
    if given.boxes is not None and given.resize == given.crop == "auto":
        # A detector sees the whole image: the margin that classifiers cut off may hold objects.
        given = replace(given, resize=size, crop=None)
    crop = (size if size != given.resize else None) if given.crop == "auto" else given.crop
    resize = _auto_resize(crop) if given.resize == "auto" else given.resize
    if crop is None and resize is None and steps.is_image(example) and size is None:
        raise _no_size(info, "resize" if given.boxes is not None else "crop")
    return replace(settled, crop=crop, resize=resize)


def _no_size(info: TensorInfo, key: str) -> DataError:
    return DataError(
        f"The model's image size is dynamic ({describe_input(info)}), and the preprocessing names none.",
        f"Give `{key}: [height, width]` in the preprocessing.",
    )


def _check_columns(given: Preprocess, shape: tuple[int, ...]) -> None:
    """One mean and standard deviation for all, or one for each entry of the last axis."""
    for values in (given.mean, given.std):
        if len(values) > 1 and (not shape or shape[-1] != len(values)):
            raise UsageError(f"The preprocessing has {len(values)} means or standard deviations; a sample has shape {list(shape)}.")


def _auto_resize(crop: Any) -> int | Size | None:
    """The usual margin of ImageNet evaluation, 256 for 224; sizes that are not square are resized to exactly."""
    if crop is None:
        return None
    height, width = crop
    return round(height * 256 / 224) if height == width else (height, width)


def _kind(info: TensorInfo, example: Raw) -> str:
    if steps.is_image(example):
        return "image"
    shape = as_numbers(example).shape if not isinstance(example, dict) else ()
    rank = len(info.shape)
    image_model = rank == 4 and any(dim in _CHANNELS for dim in (info.shape[1], info.shape[3]))
    image_sample = len(shape) == 2 or (len(shape) == 3 and any(dim in (1, 3, 4) for dim in (shape[0], shape[2])))
    return "image" if image_model and image_sample else "array"


def _scale(given: Preprocess, info: TensorInfo, example: Raw) -> float:
    if not isinstance(given.scale, str):
        return given.scale
    if not np.issubdtype(np.dtype(info.dtype if given.dtype == "auto" else given.dtype), np.floating):
        return 1.0
    pixels = steps.is_image(example) or (as_numbers(example).dtype == np.uint8 and as_numbers(example).ndim > 1)
    return 1 / 255 if pixels and all(abs(value) <= 1 for value in given.mean) else 1.0


def _layout(info: TensorInfo) -> str:
    shape = info.shape
    if len(shape) == 3:
        return "nhw"
    if len(shape) == 4 and shape[1] in _CHANNELS:
        return "nchw"
    if len(shape) == 4 and shape[3] in _CHANNELS:
        return "nhwc"
    if len(shape) == 4 and not isinstance(shape[1], int):
        return "nchw"
    raise DataError(
        f"The data are images, but the model's input is not an image's: {describe_input(info)}.",
        "An image input is [N, C, H, W], [N, H, W, C] or [N, H, W] with 1 or 3 channels.",
    )


def _dims(info: TensorInfo, layout: str) -> tuple[Dim, Dim, Dim]:
    """Channels, height and width of the model's input."""
    shape = info.shape
    if len(shape) != len(layout):
        raise UsageError(
            f"The preprocessing's layout {layout} has {len(layout)} axes, the model's input {len(shape)}: {describe_input(info)}."
        )
    named = dict(zip(layout, shape, strict=True))
    return named.get("c", 1), named["h"], named["w"]


def _colours(channels: Dim, info: TensorInfo, example: Raw, layout: str) -> str:
    if channels in _CHANNELS:
        return "grey" if channels == 1 else "rgb"
    if isinstance(channels, int):
        raise DataError(f"The model's input has {channels} channels, images have 1 or 3: {describe_input(info)}.")
    if steps.is_image(example):
        return "rgb"
    shape = as_numbers(example).shape
    axis = steps.channel_axis(shape, 3, layout)
    return "grey" if axis is None or shape[axis] == 1 else "rgb"
