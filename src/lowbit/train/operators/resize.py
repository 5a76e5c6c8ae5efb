"""Resize, axis by axis: each output position is a weighted sum of input positions (https://onnx.ai/onnx/operators/onnx__Resize.html)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lowbit.train.operators.table import Attributes, operator
from lowbit.types import Array

_NEAREST: dict[str, Callable[[Array], Array]] = {
    "ceil": np.ceil,
    "floor": np.floor,
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
}


@operator("Resize")
def resize(given: Attributes, x: Tensor, *inputs: Tensor | list[float] | None) -> Tensor:
    """To the nearest or linearly; the region of interest is read by a mode that is refused."""
    scales, sizes = _wanted(given, inputs)
    mode = given.get("mode", "nearest")
    if mode not in ("nearest", "linear") or given.get("antialias", 0) or given.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise given.refuse(f"mode '{mode}', antialias and aspect ratio policies other than nearest, linear, 0 and stretch")
    axes = [axis % x.ndim for axis in given.get("axes") or range(x.ndim)]
    for place, axis in enumerate(axes):
        old = x.shape[axis]
        new = sizes[place] if sizes else int(np.floor(old * scales[place]))
        scale = np.float32(new / old) if sizes else np.float32(scales[place])
        if new != old or scale != 1:
            x = _along(given, x, axis, _positions(given, old, new, scale), mode)
    return x


def _wanted(given: Attributes, inputs: tuple[Tensor | list[float] | None, ...]) -> tuple[list[float], list[int]]:
    """Scales or sizes; operator set 10 has scales alone."""
    scales, sizes = (_plain(inputs[i]) if len(inputs) > i else [] for i in ((0, 1) if given.opset < 11 else (1, 2)))
    return ([], [int(size) for size in sizes]) if sizes else (scales, [])


def _plain(values: Tensor | list[float] | None) -> list[float]:
    found: list[float] = values.tolist() if isinstance(values, Tensor) else values or []
    return found


def _positions(given: Attributes, old: int, new: int, scale: np.float32) -> Array:
    """Where each output position lies in the input, float32 [new]."""
    at = np.arange(new, dtype=np.float32)
    mode = given.get("coordinate_transformation_mode", "half_pixel" if given.opset >= 11 else "asymmetric")
    if mode == "asymmetric":
        return at / scale
    if mode == "align_corners":
        return at * np.float32((old - 1) / (new - 1)) if new > 1 else np.zeros(new, np.float32)
    if mode == "pytorch_half_pixel" and new == 1:
        return np.zeros(1, np.float32)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (at + np.float32(0.5)) / scale - np.float32(0.5)
    raise given.refuse(f"coordinates '{mode}'")


def _along(given: Attributes, x: Tensor, axis: int, at: Array, mode: str) -> Tensor:
    last = x.shape[axis] - 1

    def take(places: Array) -> Tensor:
        return x.index_select(axis, torch.from_numpy(np.clip(places, 0, last).astype(np.int64)).to(x.device))

    if mode == "nearest":
        rounding = given.get("nearest_mode", "round_prefer_floor" if given.opset >= 11 else "floor")
        return take(_NEAREST[rounding](at))
    at = np.clip(at, 0, last)
    left = np.floor(at)
    share = torch.from_numpy((at - left).astype(np.float32)).to(x.device).reshape([-1 if each == axis else 1 for each in range(x.ndim)])
    return take(left) * (1 - share) + take(left + 1) * share
