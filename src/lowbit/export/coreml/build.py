"""From the graph and its table to a MIL program: every tensor that has a grid passes through `quantize` and `dequantize`.

Activations are int8 with any zero point, weights int8 behind `constexpr_affine_dequantize`; both came with iOS 17 and iOS 16
(https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html). An unsigned grid is the signed one with its
zero point moved by 128.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.errors import ModelError
from lowbit.export.coreml.operators import OPERATORS
from lowbit.export.coreml.words import Lacking, Step, integer_weight, library, refuse
from lowbit.export.fixed_batch import with_fixed_batch
from lowbit.export.neutral import Neutral
from lowbit.graph.groups import is_standard
from lowbit.quant.affine import Affine

if TYPE_CHECKING:
    import onnx_ir as ir

TITLE = "Core ML"


@dataclass(frozen=True)
class Built:
    """A program that is not yet a file.

    Attributes:
        program: coremltools' own.
        names: Input or output of the source -> of the program, where they differ.
        grids: Output of the program -> its grid, of the rounded ones.
        wide: Tensors with grids of more than 8 bits, which stay in floating point.
    """

    program: Any
    names: Mapping[str, str]
    grids: Mapping[str, Affine]
    wide: tuple[str, ...]


def build(source: Neutral, *, rounded: bool) -> Built:
    """Builds the program.

    Args:
        source: A quantized model.
        rounded: With the table's integers; False leaves everything in floating point, for other compressions.

    Raises:
        ModelError: dynamic shapes, or operators that Core ML or this writer lacks.
    """
    model = with_fixed_batch(source, TITLE)
    _check_operators(model.graph)
    return _Builder(source, model, rounded).build()


def _check_operators(graph: ir.Graph) -> None:
    lacking = {str(node.name): "" for node in graph if not is_standard(node) or node.op_type not in OPERATORS}
    if lacking:
        raise refuse(TITLE, lacking, graph)


class _Builder:
    """One program while it is built."""

    def __init__(self, source: Neutral, model: ir.Model, rounded: bool) -> None:
        self.source, self.model, self.rounded = source, model, rounded
        self.values: dict[str, Any] = {}
        self.wide: list[str] = []
        taken: set[str] = set()
        self.names = {info.name: _identifier(info.name, taken) for info in (*source.inputs, *source.outputs)}

    def build(self) -> Built:
        ios17 = library().target.iOS17
        from coremltools.converters.mil.mil import Builder, Function, Program

        inputs = {self.names[info.name]: Builder.placeholder(**self._placeholder(info.name)) for info in self.source.inputs}
        program = Program()
        with Function(inputs, opset_version=ios17) as function:
            for info in self.source.inputs:
                self.values[info.name] = self._on_grid(info.name, function.inputs[self.names[info.name]])
            lacking: dict[str, str] = {}
            for node in self.model.graph:
                try:
                    self._write(node)
                except Lacking as error:
                    lacking[str(node.name)] = str(error)
                    break
            if lacking:
                raise refuse(TITLE, lacking, self.model.graph)
            answers = [Builder.identity(x=self.values[info.name], name=self.names[info.name]) for info in self.source.outputs]
            function.set_outputs(answers)
        program.add_function("main", function)
        grids = {self.names[info.name]: grid for info in self.source.outputs if (grid := self._grid(info.name)) is not None}
        return Built(program, self.names, grids, tuple(self.wide))

    def _placeholder(self, name: str) -> dict[str, Any]:
        from coremltools.converters.mil.mil import types

        value = next(value for value in self.model.graph.inputs if value.name == name)
        if value.shape is None or not value.shape.is_static():
            raise ModelError(f"{TITLE} needs static shapes, and the model's input '{name}' has any size.", "Fix its size and export again.")
        kind = value.dtype.name if value.dtype is not None else "FLOAT"
        return {"shape": tuple(int(n) for n in value.shape.numpy()), "dtype": types.fp32 if kind.startswith("FLOAT") else types.int32}

    def _write(self, node: ir.Node) -> None:
        step = Step(node, self.values, self._weight, self.model.graph.opset_imports.get("", 0))
        try:
            found = OPERATORS[node.op_type](step)
        except (ValueError, TypeError, NotImplementedError) as error:  # coremltools' own words on an operation it will not build
            raise Lacking(str(error).splitlines()[0]) from error
        outputs = found if isinstance(found, list | tuple) else (found,)
        for value, output in zip(node.outputs, outputs, strict=False):
            self.values[str(value.name)] = self._on_grid(str(value.name), output)

    def _grid(self, name: str) -> Affine | None:
        grid = self.source.activations.get(name) if self.rounded else None
        if grid is not None and grid.dtype not in ("int8", "uint8"):
            self.wide.append(name)
            return None
        return grid

    def _on_grid(self, name: str, value: Any) -> Any:
        """A tensor that has a grid, through integers and back."""
        from coremltools.converters.mil import Builder

        grid = self._grid(name)
        if grid is None:
            return value
        shift = 128 if grid.dtype == "uint8" else 0
        given = {"scale": np.float32(grid.scale), "zero_point": np.int8(int(grid.zero_point) - shift)}
        integers = Builder.quantize(input=value, output_dtype="int8", **given)
        return Builder.dequantize(input=integers, **given)

    def _weight(self, name: str, swapped: bool) -> Any:
        """A constant; one with a grid as integers."""
        from coremltools.converters.mil import Builder

        tensor = self.model.graph.initializers[name].const_value
        assert tensor is not None
        values = tensor.numpy()
        grid = self.source.weights.get(name) if self.rounded else None
        if grid is None or grid.block is not None or grid.dtype not in ("int8", "uint8", "int4", "uint4"):
            return np.ascontiguousarray(values.swapaxes(-1, -2) if swapped else values).astype(np.float32)
        integers, scale, zero = integer_weight(values, grid)
        axis = 0 if grid.axis is None else grid.axis % values.ndim
        if swapped:
            integers = integers.swapaxes(-1, -2)
            axis = {values.ndim - 1: values.ndim - 2, values.ndim - 2: values.ndim - 1}.get(axis, axis) if grid.axis is not None else 0
        return Builder.constexpr_affine_dequantize(
            quantized_data=np.ascontiguousarray(integers), zero_point=zero, scale=scale, axis=np.int32(axis)
        )


def _identifier(name: str, taken: set[str]) -> str:
    """A name that Swift can write: letters, digits and "_"."""
    word = re.sub(r"\W", "_", name, flags=re.ASCII)
    word = word if re.match(r"[A-Za-z_]", word) else f"_{word}"
    found, number = word, 0
    while found in taken:
        number += 1
        found = f"{word}_{number}"
    taken.add(found)
    return found
