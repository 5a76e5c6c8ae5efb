"""Fake quantization with a learned scale.

Forward, exactly what ONNX's QuantizeLinear and DequantizeLinear do one after the other: x / scale in float32, rounded half to even,
saturated, and back. Backward, LSQ (Esser et al. 2020, arXiv 1902.08153): the rounding is passed straight through between the ends of
the grid, and the scale gets its own gradient

    d x_q / d s = round(x / s) - x / s   between the ends,  the end itself outside,   times 1 / sqrt(n * q)

with n the values that share a scale and q the highest level, counted from the zero point.

Binary weights are -1 and +1 times their scale, by their sign (Courbariaux et al. 2015, arXiv 1511.00363; the scale: Rastegari et al.
2016, arXiv 1603.05279). There is no level in between and no end, so the gradient passes everywhere, and the scale's is the sign.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowbit.types import Array

_FLOOR = 1e-3
"""A scale stays above this share of the one it started with."""


class FakeQuantize(nn.Module):
    """Rounds to a grid whose scale is learned; any width, any zero point, per tensor, channel or block.

    Attributes:
        scale: Learned, float32 in the shape of the file: one, [channels], or blocked. Read it by `positive_scale`.
        zero_point: Fixed, float32 (whole numbers), same shape.
        low: Lowest level.
        high: Highest level.
        axis: Of the channels, or the one that is cut into blocks; None per tensor.
        block: Elements of a block.
        batched: The values are activations, whose first axis is the batch: it does not count in `n` above.
        binary: Two levels, -1 and +1.
    """

    zero_point: Tensor
    floor: Tensor

    def __init__(
        self,
        scale: Array | Tensor,
        zero_point: Array | Tensor,
        low: int,
        high: int,
        *,
        axis: int | None = None,
        block: int | None = None,
        batched: bool = True,
    ) -> None:
        super().__init__()
        self.axis, self.block, self.batched = axis, block, batched
        self.scale = nn.Parameter(torch.as_tensor(scale, dtype=torch.float32).clone())
        self.register_buffer("floor", self.scale.detach() * _FLOOR)
        self.register_buffer("zero_point", torch.as_tensor(zero_point).to(torch.float32).clone())
        self.low, self.high, self.binary = low, high, False

    def regrid(self, scale: Array | Tensor, zero_point: Array | Tensor, low: int, high: int) -> None:
        """Another grid of the same granularity, e.g. of fewer levels."""
        with torch.no_grad():
            self.scale.copy_(torch.as_tensor(scale, dtype=torch.float32).reshape(self.scale.shape))
            self.zero_point.copy_(torch.as_tensor(zero_point).to(torch.float32).reshape(self.zero_point.shape))
            self.floor.copy_(self.scale * _FLOOR)
        self.low, self.high, self.binary = low, high, False

    def binarize(self, x: Tensor) -> None:
        """Two levels for values [...]: -1 and +1 times the mean of their size, which is nearest to them in the mean square."""
        counts = torch.ones_like(x).sum_to_size(self._along(self.scale, x).shape)
        with torch.no_grad():
            sizes = (x.abs().sum_to_size(counts.shape) / counts).reshape(self.scale.shape)
            self.regrid(torch.where(sizes > 0, sizes, self.scale), torch.zeros_like(self.zero_point), -1, 1)
        self.binary = True

    def positive_scale(self) -> Tensor:
        """The scale, kept above its floor; the gradient passes as if it were not, so that it can come back."""
        kept = torch.maximum(self.scale, self.floor)
        return self.scale + (kept - self.scale).detach()

    def forward(self, x: Tensor) -> Tensor:
        """What is left of values [...] once they have been quantized."""
        scale, zero = self._along(self.positive_scale(), x), self._along(self.zero_point, x)
        if self.binary:
            return _Sign.apply(x, scale, self._share(x))
        return _Round.apply(x, scale, self.low - zero, self.high - zero, self._share(x))

    @torch.no_grad()
    def integers(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """The levels of values, int32 [...], as the runtime has them; on another scale where one is given."""
        if self.binary:
            return _signs(x).to(torch.int32)
        scale, zero = self._along(self.positive_scale() if scale is None else scale, x), self._along(self.zero_point, x)
        return torch.clamp(torch.round(x / scale) + zero, self.low, self.high).to(torch.int32)

    def extra_repr(self) -> str:
        levels = f"{self.low} {'or' if self.binary else 'to'} {self.high}"
        return f"levels {levels}, scale {tuple(self.scale.shape)}, axis {self.axis}, block {self.block}"

    def _along(self, values: Tensor, x: Tensor) -> Tensor:
        """In a shape that broadcasts with the values."""
        if values.numel() == 1:
            return values.reshape(())
        assert self.axis is not None
        axis = self.axis % x.ndim
        if self.block is not None:
            return values.index_select(axis, torch.arange(x.shape[axis], device=x.device) // self.block)
        return values.reshape([-1 if each == axis else 1 for each in range(x.ndim)])

    def _share(self, x: Tensor) -> float:
        """1 / sqrt(n q)."""
        top = max(float((self.high - self.zero_point).max()), float((self.zero_point - self.low).max()))
        values = x.numel() / (x.shape[0] if self.batched and x.ndim else 1)
        return 1 / math.sqrt(max(values / self.scale.numel(), 1.0) * top)


class _Round(torch.autograd.Function):
    """The grid, from `low` to `high` levels around zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor, share: float) -> Tensor:
        ctx.save_for_backward(x, scale, low, high)
        ctx.share = share
        return torch.clamp(torch.round(x / scale), low, high) * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (gradient,) = gradients
        x, scale, low, high = ctx.saved_tensors
        steps = x / scale
        ends = torch.clamp(steps, low, high)
        inside = ends == steps
        to_scale = None
        if ctx.needs_input_grad[1]:
            change = torch.where(inside, torch.round(steps) - steps, ends)
            to_scale = (gradient * change).sum_to_size(scale.shape) * ctx.share
        return gradient * inside, to_scale, None, None, None


class _Sign(torch.autograd.Function):
    """-1 or +1 times the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, share: float) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.share = share
        return _signs(x) * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (gradient,) = gradients
        x, scale = ctx.saved_tensors
        to_scale = (gradient * _signs(x)).sum_to_size(scale.shape) * ctx.share if ctx.needs_input_grad[1] else None
        return gradient, to_scale, None


def _signs(x: Tensor) -> Tensor:
    """-1 below zero, +1 elsewhere."""
    return torch.where(x < 0, -1.0, 1.0)
