"""Elementwise operators on numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit.train.operators.table import Attributes, operator, together

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Round": torch.round,  # half to even, in both
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"Add": torch.add, "Mul": torch.mul, "Sub": torch.sub}
_VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"Max": torch.maximum, "Min": torch.minimum, "Sum": torch.add}


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Attributes, Tensor], Tensor]:
    return lambda _, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Attributes, Tensor, Tensor], Tensor]:
    return lambda _, a, b: function(*together(a, b))


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda _, *tensors: reduce(function, together(*tensors))


for _name, _function in _UNARY.items():
    operator(_name)(_unary(_function))
for _name, _pair in _BINARY.items():
    operator(_name)(_binary(_pair))
for _name, _pair in _VARIADIC.items():
    operator(_name)(_variadic(_pair))


@operator("Div")
def div(_: Attributes, a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero."""
    a, b = together(a, b)
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


@operator("Mod")
def mod(given: Attributes, a: Tensor, b: Tensor) -> Tensor:
    a, b = together(a, b)
    return torch.fmod(a, b) if given.get("fmod", 0) else torch.remainder(a, b)


@operator("Pow")
def power(_: Attributes, base: Tensor, exponent: Tensor) -> Tensor:
    """The result has the type of the base."""
    base, exponent = together(base, exponent)
    return torch.pow(base, exponent).to(base.dtype)


@operator("Clip")
def clip(given: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Limits are inputs, attributes before operator set 11."""
    least = given.get("min") if low is None else low.item()
    most = given.get("max") if high is None else high.item()
    return x if least is None and most is None else torch.clamp(x, least, most)


@operator("LeakyRelu")
def leaky_relu(given: Attributes, x: Tensor) -> Tensor:
    return F.leaky_relu(x, given.get("alpha", 0.01))


@operator("PRelu")
def prelu(_: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    """The slope broadcasts against the input, as in numpy."""
    x, slope = together(x, slope)
    return torch.where(x < 0, slope * x, x)


@operator("Elu")
def elu(given: Attributes, x: Tensor) -> Tensor:
    return F.elu(x, given.get("alpha", 1.0))


@operator("Gelu")
def gelu(given: Attributes, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=given.get("approximate", "none"))


@operator("HardSigmoid")
def hard_sigmoid(given: Attributes, x: Tensor) -> Tensor:
    return torch.clamp(given.get("alpha", 0.2) * x + given.get("beta", 0.5), 0, 1)


@operator("HardSwish")
def hard_swish(_: Attributes, x: Tensor) -> Tensor:
    return F.hardswish(x)


@operator("Dropout")
def dropout(given: Attributes, x: Tensor, *_: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    """Nothing, as in inference."""
    return x if given.outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))


@operator("Identity")
def identity(_: Attributes, x: Tensor) -> Tensor:
    return x
