"""A graph and its table as a program of PyTorch, with roundings that compilers for devices know: `quantized_decomposed` operators.

    write_rounded_program(float_graph, out, activations, weights, feeds)

Nothing is calibrated: every scale is the table's. Unsigned grids become the signed ones that are the same, weights stay integers in the
file, and products with a constant matrix become linear layers. https://docs.pytorch.org/executorch/stable/quantization-overview.html
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowbit.quant.affine import Affine, quantize, span
from lowbit.quiet import no_output
from lowbit.train.parts import Compute, Rounding
from lowbit.train.pt2e import _export, _Fixed, _Positional, _positions, _save
from lowbit.types import Feeds

_LOW, _HIGH = -128, 127
_EIGHT = ("int8", "uint8")


def write_rounded_program(source: Path, out: Path, activations: Mapping[str, Affine], weights: Mapping[str, Affine], feeds: Feeds) -> Path:
    """Writes a rounded program for as many samples as are fed.

    Args:
        source: An ONNX file in floating point; weights that have a grid lie on it.
        out: The .pt2 file to write.
        activations: Computed tensor or input -> its grid. Those of more than 8 bits are left out.
        weights: Constant -> its grid; per tensor or per channel.
        feeds: One batch, for its shapes.

    Returns:
        `out`.

    Raises:
        ModelError: the graph has operators that the twin does not know, or whose shapes follow from values.
    """
    twin = _Rounded(source, activations, weights)
    example = _positions(twin, feeds)
    twin.settle(dict(zip(twin.plan.inputs, example, strict=True)), batch=True)
    return _save(_export(_Positional(twin), example, None), twin, out)


class _Rounded(_Fixed):
    """A twin that rounds by operators with a name."""

    def __init__(self, path: Path, activations: Mapping[str, Affine], weights: Mapping[str, Affine]) -> None:
        super().__init__(path)
        with no_output():
            importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators

        self._grids = {name: grid for name, grid in activations.items() if grid.dtype in _EIGHT}
        self._weights: dict[str, tuple[str, Affine]] = {}
        for name, array in self.plan.trained.items():
            grid = weights.get(name)
            if grid is None or grid.block is not None or grid.dtype not in ("int8", "int4") or bool(np.any(grid.zero_point)):
                continue
            self._add(name, array, grid)

    def _add(self, name: str, array: Any, grid: Affine) -> None:
        """Integers of a weight in the file, turned as linear layers have them where it belongs to one."""
        integers = quantize(array, grid)
        if self._belongs_to_product(name):
            integers, grid = _turned(integers, grid)
        key = f"_integers_{len(self._weights)}"
        self.register_buffer(key, torch.from_numpy(np.ascontiguousarray(integers)))
        self.register_buffer(f"{key}_scale", torch.from_numpy(np.atleast_1d(grid.scale).astype(np.float32)))
        self.register_buffer(f"{key}_zero", torch.zeros(grid.scale.size, dtype=torch.int64))
        self._weights[name] = key, grid

    def _belongs_to_product(self, name: str) -> bool:
        """Whether a constant is multiplied as it lies, [in, out]."""
        return any(isinstance(step, Compute) and _is_turned_product(step) and step.inputs[1] == name for step in self.plan.steps)

    def forward(self, feeds: Mapping[str, Tensor], watch: Any = (), *, outputs: bool = True) -> dict[str, Tensor]:
        """As the twin, with inputs rounded that have a grid."""
        self._levels: dict[str, Tensor] = {}
        return super().forward({name: self._on_grid(name, value) for name, value in feeds.items()}, watch, outputs=outputs)

    def _held(self) -> dict[str, Tensor]:
        return super()._held() | {name: self._real(name) for name in self._weights}

    def _real(self, name: str) -> Tensor:
        """A weight in real units, by an operator that compilers find."""
        key, grid = self._weights[name]
        integers, scale = getattr(self, key), getattr(self, f"{key}_scale")
        decomposed = torch.ops.quantized_decomposed
        if grid.axis is None:
            found: Tensor = decomposed.dequantize_per_tensor.default(integers, float(grid.scale), 0, _LOW, _HIGH, torch.int8)
        else:
            zeros, axis = getattr(self, f"{key}_zero"), grid.axis % integers.ndim
            found = decomposed.dequantize_per_channel.default(integers, scale, zeros, axis, _LOW, _HIGH, torch.int8)
        return found

    def _run(self, step: Compute | Rounding, values: dict[str, Tensor]) -> None:
        assert isinstance(step, Compute), "the graph is in floating point"
        # Partitioners want a dequantization for each reader, and find cycles where several share one.
        own = values | {name: self._dequantized(name) for name in step.inputs if name in self._levels}
        if step.inputs[1:2] and step.inputs[1] in self._weights and _is_product(step):
            bias = own[step.inputs[2]] if len(step.inputs) > 2 and step.inputs[2] is not None else None
            bias = bias.reshape(-1) if bias is not None and bias.ndim != 1 else bias  # partitioners look for the constant itself
            own[step.outputs[0]] = torch.nn.functional.linear(own[str(step.inputs[0])], own[str(step.inputs[1])], bias)
        elif not (self._run_even(step, own) or self._run_between(step, own)):
            super()._run(step, own)
        values.update({name: self._on_grid(name, own[name]) for name in step.outputs if name in own})

    def _run_even(self, step: Compute, values: dict[str, Tensor]) -> bool:
        """A convolution padded alike at both ends, as it is written: the twin cuts padding that no window reaches in a step of its own."""
        given, weight = step.attributes, values.get(str(step.inputs[1])) if len(step.inputs) > 1 else None
        pads = given.get("pads") or []
        if given.op != "Conv" or weight is None or weight.ndim != 4 or len(pads) != 4 or pads[:2] != pads[2:]:
            return False
        if given.get("auto_pad", "NOTSET") != "NOTSET":
            return False
        bias = values[step.inputs[2]] if len(step.inputs) > 2 and step.inputs[2] is not None else None
        strides, dilations, groups = given.get("strides") or [1, 1], given.get("dilations") or [1, 1], int(given.get("group", 1))
        read = values[str(step.inputs[0])]
        values[step.outputs[0]] = torch.nn.functional.conv2d(read, weight, bias, strides, pads[:2], dilations, groups)
        return True

    def _run_between(self, step: Compute, values: dict[str, Tensor]) -> bool:
        """A rounded Clip in the form that ExecuTorch fuses with the product before; behind one that it does not fuse, results are nonsense.

        Where a bound is missing the grid's own end stands for it: nothing beyond is told apart.
        """
        grid = self._grids.get(step.outputs[0]) if step.attributes.op == "Clip" else None
        if grid is None or any(name is not None and name not in self.literals for name in step.inputs[1:3]):
            return False
        (low, high), (least, most) = _bounds(step, values), span(grid)
        high = max(most, least if low is None else low) if high is None else high
        low = min(least, high) if low is None else min(low, high)  # where bounds cross, the upper one counts
        values[step.outputs[0]] = torch.nn.functional.hardtanh(values[str(step.inputs[0])], low, high)
        return True

    def _on_grid(self, name: str, value: Tensor) -> Tensor:
        if name not in self._grids:
            return value
        self._levels[name] = torch.ops.quantized_decomposed.quantize_per_tensor.default(value, *self._given(name))
        return self._dequantized(name)

    def _dequantized(self, name: str) -> Tensor:
        found: Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor.default(self._levels[name], *self._given(name))
        return found

    def _given(self, name: str) -> tuple[Any, ...]:
        grid = self._grids[name]
        return float(grid.scale), int(grid.zero_point) - (128 if grid.dtype == "uint8" else 0), _LOW, _HIGH, torch.int8


def _bounds(step: Compute, values: Mapping[str, Tensor]) -> tuple[float | None, float | None]:
    """Both bounds of a Clip: inputs, attributes before operator set 11."""
    given = [values[name].item() if name is not None else None for name in step.inputs[1:3]]
    low, high = given + [None] * (2 - len(given))
    return step.attributes.get("min") if low is None else low, step.attributes.get("max") if high is None else high


def _is_product(step: Compute) -> bool:
    """A matrix product that a linear layer does: a Gemm without factors, or a MatMul."""
    given = step.attributes
    if given.op == "MatMul":
        return True
    return given.op == "Gemm" and not given.get("transA", 0) and given.get("alpha", 1.0) == 1 == given.get("beta", 1.0)


def _is_turned_product(step: Compute) -> bool:
    return _is_product(step) and not (step.attributes.op == "Gemm" and step.attributes.get("transB", 0))


def _turned(integers: Any, grid: Affine) -> tuple[Any, Affine]:
    """[in, out] -> [out, in], with the channels' axis."""
    from dataclasses import replace

    axis = None if grid.axis is None else integers.ndim - 1 - grid.axis % integers.ndim
    return integers.T, replace(grid, axis=axis)
