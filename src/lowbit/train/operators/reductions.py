"""Operators that reduce axes, and those that normalise along one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lowbit.train.operators.table import Attributes, ints, operator

Reduction = Callable[[Tensor, list[int]], Tensor]


def _product(x: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True)
    return x


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": lambda x, axes: x.abs().sum(axes, keepdim=True),
    "ReduceL2": lambda x, axes: torch.linalg.vector_norm(x, dim=axes, keepdim=True),
    "ReduceMax": lambda x, axes: torch.amax(x, axes, keepdim=True),
    "ReduceMean": lambda x, axes: torch.mean(x, axes, keepdim=True),
    "ReduceMin": lambda x, axes: torch.amin(x, axes, keepdim=True),
    "ReduceProd": _product,
    "ReduceSum": lambda x, axes: x.sum(axes, keepdim=True),
    "ReduceSumSquare": lambda x, axes: x.square().sum(axes, keepdim=True),
}


def _reduction(function: Reduction) -> Callable[..., Tensor]:
    def reduce(given: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        """Axes are an input, an attribute in older operator sets; none means all, or nothing where the node says so."""
        wanted = ints(axes if axes is not None else given.get("axes"))
        if not wanted and given.get("noop_with_empty_axes", 0):
            return x
        found = [axis % x.ndim for axis in wanted or range(x.ndim)]
        reduced = function(x, found).to(x.dtype)
        return reduced if given.get("keepdims", 1) else _squeezed(reduced, found)

    return reduce


for _name, _function in _REDUCTIONS.items():
    operator(_name)(_reduction(_function))


def _squeezed(x: Tensor, axes: Sequence[int]) -> Tensor:
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in axes])


@operator("Softmax")
def softmax(given: Attributes, x: Tensor) -> Tensor:
    return _along(given, x, torch.softmax)


@operator("LogSoftmax")
def log_softmax(given: Attributes, x: Tensor) -> Tensor:
    return _along(given, x, torch.log_softmax)


def _along(given: Attributes, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Along one axis; before operator set 13 along all axes from one on, as if they were one."""
    if given.opset >= 13:
        return function(x, given.get("axis", -1))
    axis = given.get("axis", 1) % x.ndim
    return function(x.flatten(axis), -1).reshape(x.shape)


@operator("ArgMax")
def argmax(given: Attributes, x: Tensor) -> Tensor:
    if given.get("select_last_index", 0):
        raise given.refuse("the last of equal values is asked for")
    return torch.argmax(x, given.get("axis", 0), keepdim=bool(given.get("keepdims", 1)))


@operator("CumSum")
def cumulative_sum(given: Attributes, x: Tensor, axis: Tensor) -> Tensor:
    if given.get("exclusive", 0) or given.get("reverse", 0):
        raise given.refuse("the sum is exclusive or runs backwards")
    return torch.cumsum(x, int(axis.item())).to(x.dtype)
