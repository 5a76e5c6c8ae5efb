"""Matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit.train.operators.table import Attributes, operator
from lowbit.train.operators.windows import window

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@operator("MatMul")
def matmul(_: Attributes, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator("Gemm")
def gemm(given: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha A B + beta C, either matrix transposed on the way."""
    product = (a.t() if given.get("transA", 0) else a) @ (b.t() if given.get("transB", 0) else b)
    alpha, beta = given.get("alpha", 1.0), given.get("beta", 1.0)
    product = product if alpha == 1 else alpha * product
    return product if c is None else product + (c if beta == 1 else beta * c)


@operator("Einsum")
def einsum(given: Attributes, *operands: Tensor) -> Tensor:
    return torch.einsum(given.get("equation"), *operands)


@operator("Conv")
def conv(given: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Padding may differ between the two ends of an axis."""
    form = window(given, x.shape[2:], list(weight.shape[2:]))
    convolve = _CONVOLUTIONS.get(x.ndim - 2)
    if convolve is None:
        raise given.refuse(f"it has {x.ndim - 2} spatial axes, and 1 to 3 are possible")
    even = form.begin == form.end and all(size >= 0 for size in form.begin)
    x = x if even else F.pad(x, form.padding())
    padding = form.begin if even else 0
    return convolve(x, weight, bias, form.strides, padding, form.dilations, given.get("group", 1))


@operator("ConvTranspose")
def conv_transpose(given: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computed without padding, then cut: what padding means here, and the only way where the two ends of an axis differ."""
    convolve = _TRANSPOSED.get(x.ndim - 2)
    if convolve is None or given.get("output_shape") is not None or given.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise given.refuse("its output shape is given, its padding is automatic, or it has more than 3 spatial axes")
    axes = x.ndim - 2
    strides, dilations = given.get("strides") or [1] * axes, given.get("dilations") or [1] * axes
    pads, extra = given.get("pads") or [0] * 2 * axes, given.get("output_padding") or [0] * axes
    whole = convolve(x, weight, None, strides, 0, 0, given.get("group", 1), dilations)
    cut = [size for axis in reversed(range(axes)) for size in (-pads[axis], extra[axis] - pads[axis + axes])]
    whole = F.pad(whole, cut)
    return whole if bias is None else whole + bias.reshape(-1, *[1] * axes)
