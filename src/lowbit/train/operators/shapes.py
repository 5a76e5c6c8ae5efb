"""Operators that compute shapes, and those that move, cut and repeat values."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit.train.operators.table import Attributes, ints, operator, together


@operator("Shape")
def shape(given: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[slice(given.get("start", 0), given.get("end"))], dtype=torch.int64)


@operator("Size")
def size(_: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("Reshape")
def reshape(given: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    """0 keeps an axis, unless the node allows empty ones; -1 is what is left."""
    wanted = ints(shape) or []
    if not given.get("allowzero", 0):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Flatten")
def flatten(given: Attributes, x: Tensor) -> Tensor:
    axis = given.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Squeeze")
def squeeze(given: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    wanted = ints(axes if axes is not None else given.get("axes"))
    return x.squeeze() if wanted is None else x.squeeze(tuple(wanted))


@operator("Unsqueeze")
def unsqueeze(given: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    wanted = ints(axes if axes is not None else given.get("axes")) or []
    for axis in sorted(axis % (x.ndim + len(wanted)) for axis in wanted):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def transpose(given: Attributes, x: Tensor) -> Tensor:
    return x.permute(given.get("perm") or list(reversed(range(x.ndim))))


@operator("Expand")
def expand(_: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    """Broadcasts both ways: an axis of 1 in the shape keeps the input's."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(ints(shape) or ())))


@operator("Tile")
def tile(_: Attributes, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(ints(repeats) or [])


@operator("Concat")
def concat(given: Attributes, *tensors: Tensor) -> Tensor:
    return torch.cat(together(*tensors), given.get("axis"))


@operator("Split")
def split(given: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """By sizes, or into equal parts, of which the last may be smaller."""
    axis = given.get("axis", 0)
    wanted = ints(sizes if sizes is not None else given.get("split"))
    return torch.split(x, -(-x.shape[axis] // given.outputs) if wanted is None else wanted, axis)


@operator("Slice")
def cut(
    given: Attributes,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Limits are inputs, attributes before operator set 10. Steps may be negative, which torch's own slices are not."""
    first, last = (
        ints(starts if starts is not None else given.get("starts")) or [],
        ints(ends if ends is not None else given.get("ends")) or [],
    )
    along = ints(axes if axes is not None else given.get("axes")) or list(range(len(first)))
    for axis, start, end, step in zip(along, first, last, ints(steps) or [1] * len(first), strict=True):
        taken = range(x.shape[axis])[slice(_limit(start), _limit(end), step)]
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(taken.start, taken.stop, step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(_backwards(x.shape[axis], start, end, step)), dtype=torch.int64, device=x.device))
    return x


def _limit(value: int) -> int:
    """ONNX writes the largest integers for "to the end"."""
    return max(min(value, 2**31), -(2**31))


def _backwards(size: int, start: int, end: int, step: int) -> range:
    """Positions of a slice with a negative step; an end before the first element takes that too, and so do the largest integers, by
    which onnxruntime means "to the end" here as well."""
    first = min(max(start + size if start < 0 else start, 0), size - 1)
    last = -1 if end >= 2**31 - 1 else end + size if end < 0 else end
    return range(first, max(last, -1), step)


@operator("Pad")
def pad(given: Attributes, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    """Pads are an input, an attribute before operator set 11; negative ones cut."""
    sizes = ints(pads if pads is not None else given.get("pads")) or []
    along = [axis % x.ndim for axis in (ints(axes) if axes is not None else None) or range(x.ndim)]
    both = {axis: (sizes[place], sizes[place + len(along)]) for place, axis in enumerate(along)}
    mode = given.get("mode", "constant")
    if mode == "constant":
        filled = given.get("value", 0.0) if value is None else value.item()
        return F.pad(x, [size for axis in reversed(range(x.ndim)) for size in both.get(axis, (0, 0))], value=filled)
    for axis, (before, behind) in both.items():
        place = np.pad(np.arange(x.shape[axis]), (before, behind), mode="edge" if mode == "edge" else mode)
        x = x.index_select(axis, torch.from_numpy(place).to(x.device))
    return x


@operator("Gather")
def gather(given: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    """Negative indices count from the end."""
    axis = given.get("axis", 0) % x.ndim
    x, indices = together(x, indices)
    places = torch.where(indices < 0, indices + x.shape[axis], indices)
    if axis == 0 and x.ndim == 2:
        return F.embedding(places, x)
    found = x.index_select(axis, places.reshape(-1))
    return found.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@operator("GatherElements")
def gather_elements(given: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = given.get("axis", 0) % x.ndim
    x, indices = together(x, indices)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).long())


@operator("GatherND")
def gather_nd(given: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    if given.get("batch_dims", 0):
        raise given.refuse("it gathers by batch")
    x, indices = together(x, indices)
    return x[tuple(indices.unbind(-1))]


@operator("Range")
def arange(_: Attributes, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


@operator("ConstantOfShape")
def constant_of_shape(given: Attributes, shape: Tensor) -> Tensor:
    value = torch.from_numpy(np.array(given.get("value", np.zeros(1, np.float32))))
    return value.reshape(()).expand(ints(shape) or []).clone()


@operator("Trilu")
def triangle(given: Attributes, x: Tensor, diagonal: Tensor | None = None) -> Tensor:
    shift = 0 if diagonal is None else int(diagonal.item())
    return torch.triu(x, shift) if given.get("upper", 1) else torch.tril(x, shift)


@operator("DepthToSpace")
def depth_to_space(given: Attributes, x: Tensor) -> Tensor:
    block, (n, c, h, w) = given.get("blocksize"), x.shape
    if given.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


@operator("SpaceToDepth")
def space_to_depth(given: Attributes, x: Tensor) -> Tensor:
    block, (n, c, h, w) = given.get("blocksize"), x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)
