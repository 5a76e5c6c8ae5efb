"""Comparisons, truth values, and changes of type."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowbit.train.operators.table import Attributes, operator, together

_COMPARISONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}

TYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
"""ONNX's number of a type -> torch's."""


def _comparison(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Attributes, Tensor, Tensor], Tensor]:
    return lambda _, a, b: function(*together(a, b))


for _name, _function in _COMPARISONS.items():
    operator(_name)(_comparison(_function))


@operator("Not")
def negation(_: Attributes, x: Tensor) -> Tensor:
    return torch.logical_not(x)


@operator("IsNaN")
def is_nan(_: Attributes, x: Tensor) -> Tensor:
    return torch.isnan(x)


@operator("Where")
def where(_: Attributes, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    condition, a, b = together(condition, a, b)
    return torch.where(condition, a, b)


@operator("Cast")
def cast(given: Attributes, x: Tensor) -> Tensor:
    """To another type; fractions are cut off."""
    wanted = given.get("to")
    if wanted not in TYPES:
        raise given.refuse(f"torch has no type for ONNX's number {wanted}")
    return x.to(TYPES[wanted])


@operator("CastLike")
def cast_like(_: Attributes, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)
