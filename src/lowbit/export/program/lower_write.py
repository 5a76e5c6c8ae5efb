"""The program while it is written: tensors, operations, and where each tensor of the source lies in it.

A tensor of the source lies in the program with its axes in some order. Images lie channels last; a transpose of the source moves
nothing, it only says that the axes lie in another order from there on; what needs a certain order asks for it, and gets a TRANSPOSE
where memory has to move and a RESHAPE where it has not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lowbit.export.program.lower_grids import same
from lowbit.export.program.lower_steps import Net
from lowbit.export.program.program import Kind, Operation, Option, Tensor
from lowbit.quant.affine import Affine
from lowbit.types import Array

IMAGE = (0, 2, 3, 1)
"""NCHW as NHWC."""

WIDEST_TRANSPOSE = 4
"""Axes of a TRANSPOSE that all kernels have; wider ones are written with the axes joined that stay together."""

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Laid:
    """Where a tensor of the source lies.

    Attributes:
        tensor: Name in the program.
        axes: Its axis i is the source's axis axes[i].
        order: Position along the last axis -> position in the source, where it was flattened channels last; None where they are alike.
    """

    tensor: str
    axes: Axes
    order: Array | None = None


@dataclass
class Writer:
    """A program that grows.

    Attributes:
        net: What it is made from.
        grids: Source tensor -> its grid.
        weights: Initializer -> its grid in the candidate.
        per_tensor_dense: Weights of fully connected layers have one scale.
        tensors: Written so far.
        operations: Likewise.
        laid: Source tensor -> where it lies.
        notes: What people should know.
        renamed: Source tensor -> its name in the program, where that is another.
    """

    net: Net
    grids: Mapping[str, Affine]
    weights: Mapping[str, Affine]
    per_tensor_dense: bool = False
    tensors: dict[str, Tensor] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    laid: dict[str, Laid] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    _made: dict[object, str] = field(default_factory=dict)
    _flat: dict[str, str] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a source tensor, constants included."""
        values = self.net.constants.get(name)
        return tuple(values.shape) if values is not None else self.net.shapes[name]

    def of(self, name: str) -> Tensor:
        """A tensor of the program."""
        return self.tensors[name]

    def grid(self, name: str) -> Affine:
        """Of a tensor of the program that is quantized."""
        grid = self.tensors[name].grid
        assert grid is not None, name
        return grid

    def fresh(self, name: str) -> str:
        """A name that no tensor has."""
        found, number = name, 1
        while found in self.tensors or found in self.net.shapes or found in self.renamed.values():
            number += 1
            found = f"{name}_{number}"
        return found

    def named(self, source: str) -> str:
        """The name in the program of what stands for a source tensor."""
        name = self.renamed.get(source, source)
        return name if name not in self.tensors else self.fresh(name)

    def add(
        self,
        kind: Kind,
        inputs: Sequence[str],
        name: str,
        shape: Sequence[int],
        grid: Affine,
        origin: tuple[str, ...],
        options: Mapping[str, Option] | None = None,
    ) -> str:
        """Writes an operation with one int8 result; its name."""
        assert name not in self.tensors, name
        self.tensors[name] = Tensor(name, tuple(int(extent) for extent in shape), "int8", grid)
        self.operations.append(Operation(kind, tuple(inputs), (name,), dict(options or {}), origin))
        return name

    def constant(self, name: str, data: Array, grid: Affine | None) -> str:
        """A constant; the same one is written once."""
        data = np.ascontiguousarray(data)
        key = (name, data.dtype.str, data.shape, data.tobytes(), *_key(grid))
        if key not in self._made:
            self._made[key] = own = self.fresh(name)
            dtype = {"int8": "int8", "int32": "int32", "int64": "int32"}[data.dtype.name]
            self.tensors[own] = Tensor(own, data.shape, dtype, grid, data.astype(dtype))  # type: ignore[arg-type]
        return self._made[key]

    def numbers(self, name: str, values: Sequence[int] | Array) -> str:
        """A constant list of int32: shapes, axes, paddings."""
        return self.constant(name, np.asarray(values, np.int32), None)

    def put(self, source: str, tensor: str, axes: Axes | None = None, order: Array | None = None) -> None:
        """Says where a source tensor lies; axes as in the source where they are not given."""
        self.laid[source] = Laid(tensor, axes if axes is not None else tuple(range(len(self.shape(source)))), order)

    def on_grid(self, tensor: str, grid: Affine, origin: tuple[str, ...], name: str | None = None) -> str:
        """The same tensor on a grid: itself, or what a QUANTIZE makes of it."""
        if same(self.grid(tensor), grid):
            return tensor
        key = ("grid", tensor, *_key(grid))
        if key not in self._made:
            made = self.add(Kind.QUANTIZE, (tensor,), name or self.fresh(f"{tensor}_requantized"), self.of(tensor).shape, grid, origin)
            self._made[key] = made
        return self._made[key]

    def lying(self, laid: Laid, axes: Axes, origin: tuple[str, ...]) -> str:
        """The tensor with its axes in another order."""
        assert laid.order is None, laid.tensor
        if laid.axes == axes:
            return laid.tensor
        return self.transposed(laid.tensor, tuple(laid.axes.index(axis) for axis in axes), origin)

    def image(self, source: str, origin: tuple[str, ...]) -> str:
        """A source tensor of rank 4 channels last."""
        return self.lying(self.laid[source], IMAGE, origin)

    def reshaped(self, tensor: str, shape: Sequence[int], origin: tuple[str, ...], name: str | None = None) -> str:
        """The same numbers in another shape."""
        shape = tuple(int(extent) for extent in shape)
        tensor = self._flat.get(tensor, tensor)
        if self.of(tensor).shape == shape:
            return tensor
        key = ("shape", tensor, shape)
        if key not in self._made:
            inputs = (tensor, self.numbers(f"shape_{'x'.join(map(str, shape))}", shape))
            self._made[key] = self.add(Kind.RESHAPE, inputs, name or self.fresh(f"{tensor}_reshaped"), shape, self.grid(tensor), origin)
            self._flat[self._made[key]] = tensor
        return self._made[key]

    def transposed(self, tensor: str, permutation: Axes, origin: tuple[str, ...]) -> str:
        """A tensor with its axes moved: axis i of the result is axis permutation[i] of it."""
        old = self.of(tensor).shape
        new = tuple(old[axis] for axis in permutation)
        key = ("transpose", tensor, permutation)
        if key in self._made:
            return self._made[key]
        joined, moved = _joined(old, permutation)
        if list(moved) == sorted(moved):
            result = self.reshaped(tensor, new, origin)
        elif len(permutation) <= WIDEST_TRANSPOSE:
            result = self._transpose(tensor, permutation, new, origin)
        else:
            flat = self.reshaped(tensor, joined, origin)
            turned = self._transpose(flat, moved, tuple(joined[axis] for axis in moved), origin)
            result = self.reshaped(turned, new, origin)
        self._made[key] = result
        return result

    def _transpose(self, tensor: str, permutation: Axes, shape: tuple[int, ...], origin: tuple[str, ...]) -> str:
        inputs = (tensor, self.numbers(f"permutation_{''.join(map(str, permutation))}", permutation))
        return self.add(Kind.TRANSPOSE, inputs, self.fresh(f"{tensor}_transposed"), shape, self.grid(tensor), origin)


def _joined(shape: tuple[int, ...], permutation: Axes) -> tuple[tuple[int, ...], Axes]:
    """Shape and permutation with axes of one element left out, and those joined that stay behind each other."""
    kept = [axis for axis in permutation if shape[axis] != 1]
    runs: list[list[int]] = []
    order = [axis for axis in range(len(shape)) if shape[axis] != 1]
    for axis in kept:
        follows = bool(runs) and order.index(axis) == order.index(runs[-1][-1]) + 1
        if follows:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    by_place = sorted(runs)
    return tuple(math.prod(shape[axis] for axis in run) for run in by_place), tuple(by_place.index(run) for run in runs)


def _key(grid: Affine | None) -> tuple[object, ...]:
    return () if grid is None else (np.asarray(grid.scale).tobytes(), np.asarray(grid.zero_point).tobytes(), grid.dtype, grid.axis)
