"""Which of LiteRT's ways of enlarging reads the very pixels that ONNX reads: decided by comparing them, not by names of modes.

ONNX: https://onnx.ai/onnx/operators/onnx__Resize.html. LiteRT: nearest takes floor(i · scale), with half pixel centers
floor((i + ½) · scale), with aligned corners round(i · scale); linear interpolates at i · scale, or (i + ½) · scale - ½, cut off at both
ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lowbit.export.program.lower_steps import Step
from lowbit.export.program.program import Kind
from lowbit.types import Array

_CLOSE = 1e-5


@dataclass(frozen=True)
class Way:
    """A LiteRT operation and its options."""

    kind: Kind
    align_corners: bool
    half_pixel_centers: bool


_WAYS = ((False, False), (False, True), (True, False), (True, True))


def way_of(step: Step, old: tuple[int, ...], new: tuple[int, ...], scales: tuple[float, ...] | None) -> Way | str:
    """The way that reads the same pixels with the same weights along height and width; why there is none else.

    Args:
        step: Resize.
        old: Shape NCHW before it.
        new: Shape NCHW behind it.
        scales: As they were given; None where sizes were.
    """
    old_words = step.op == "Upsample" or len(step.inputs) == 2  # before operator set 11 there was one way
    mode = {"bilinear": "linear"}.get(step.get("mode", "nearest"), step.get("mode", "nearest"))
    coordinates = step.get("coordinate_transformation_mode", "asymmetric" if old_words else "half_pixel")
    if mode not in ("nearest", "linear") or coordinates == "tf_crop_and_resize" or step.get("antialias", 0):
        return f"it resizes by '{mode}' with '{coordinates}'"
    wanted = [_onnx(step, mode, coordinates, old[i], new[i], scales[i] if scales else new[i] / old[i]) for i in (2, 3)]
    for align, half in _WAYS:
        if all(_agree(each, _litert(mode, align, half, old[i], new[i])) for each, i in zip(wanted, (2, 3), strict=True)):
            return Way(Kind.RESIZE_NEAREST_NEIGHBOR if mode == "nearest" else Kind.RESIZE_BILINEAR, align, half)
    return f"LiteRT reads other pixels than '{mode}' with '{coordinates}' from {old[2:]} to {new[2:]}"


def _agree(one: Array, other: Array) -> bool:
    return bool(np.max(np.abs(one - other), initial=0.0) < _CLOSE)


def _onnx(step: Step, mode: str, coordinates: str, size: int, result: int, scale: float) -> Array:
    """Weights of every pixel in every result, [result, size]."""
    i = np.arange(result, dtype=np.float64)
    if coordinates == "align_corners":
        x = i * (size - 1) / (result - 1) if result > 1 else i * 0
    elif coordinates == "asymmetric":
        x = i / scale
    elif coordinates == "pytorch_half_pixel" and result == 1:
        x = i * 0
    elif coordinates == "half_pixel_symmetric":
        x = size / 2 * (1 - result / (scale * size)) + (i + 0.5) / scale - 0.5
    else:
        x = (i + 0.5) / scale - 0.5
    if mode == "linear":
        return _linear(x, size)
    rounding = step.get("nearest_mode", "floor" if step.op == "Upsample" or len(step.inputs) == 2 else "round_prefer_floor")
    whole = {
        "round_prefer_floor": np.ceil(x - 0.5),
        "round_prefer_ceil": np.floor(x + 0.5),
        "floor": np.floor(x),
        "ceil": np.ceil(x),
    }[rounding]
    return _one_hot(whole, size)


def _litert(mode: str, align: bool, half: bool, size: int, result: int) -> Array:
    scale = (size - 1) / (result - 1) if align and result > 1 else size / result
    i = np.arange(result, dtype=np.float64)
    if mode == "linear":
        return _linear((i + 0.5) * scale - 0.5 if half else i * scale, size)
    x = (i + 0.5) * scale if half else i * scale
    x = np.array([math.floor(np.float32(each)) for each in x]) if not align else np.floor(x + 0.5)
    return _one_hot(x, size)


def _linear(x: Array, size: int) -> Array:
    x = np.clip(x, 0, size - 1)
    low = np.floor(x).astype(int)
    weights = np.zeros((len(x), size))
    rows = np.arange(len(x))
    weights[rows, low] += 1 - (x - low)
    weights[rows, np.minimum(low + 1, size - 1)] += x - low
    return weights


def _one_hot(index: Array, size: int) -> Array:
    return np.eye(size)[np.clip(index, 0, size - 1).astype(int)]
