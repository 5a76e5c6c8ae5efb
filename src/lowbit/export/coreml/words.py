"""Reading a node: its attributes, constants and shapes, as plain Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.errors import ModelError
from lowbit.quant.affine import Affine
from lowbit.quiet import no_output
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir


def library() -> Any:
    """coremltools, without what it says of versions while it is imported."""
    with no_output():
        import coremltools

    return coremltools


class Lacking(Exception):
    """An operator, or a way in which it is used, that the target does not have; the text says which way."""


@dataclass(frozen=True)
class Step:
    """One node while it is written.

    Attributes:
        node: In the source graph.
        values: Tensor -> what stands for it in the program, of all that is computed.
        weight: Name of a constant, and whether its last two axes are swapped -> what stands for it: rounded weights stay integers.
        opset: Of the source graph.
    """

    node: ir.Node
    values: Mapping[str, Any]
    weight: Callable[[str, bool], Any]
    opset: int

    def __len__(self) -> int:
        return len(self.node.inputs)

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def name(self, index: int) -> str:
        """Of an input that is given."""
        value = self.node.inputs[index]
        assert value is not None
        return str(value.name)

    def is_constant(self, index: int) -> bool:
        """Whether an input is known ahead."""
        return self.has(index) and self.name(index) not in self.values

    def constant(self, index: int) -> Array:
        """An input that must be known ahead.

        Raises:
            Lacking: it is computed.
        """
        value = self.node.inputs[index]
        if value is None or value.const_value is None:
            raise Lacking(f"input {index} is computed")
        return value.const_value.numpy()

    def numbers(self, index: int) -> list[int]:
        """A constant list of whole numbers."""
        return [int(number) for number in self.constant(index).reshape(-1)]

    def value(self, index: int) -> Any:
        """An input: what was computed, or a constant as an array."""
        return self.constant(index) if self.is_constant(index) else self.values[self.name(index)]

    def tensor(self, index: int) -> Any:
        """An input that must be computed: products with everything known ahead are left to whoever prepares the graph.

        Raises:
            Lacking: it is constant.
        """
        if self.is_constant(index):
            raise Lacking(f"input {index} is a constant")
        return self.values[self.name(index)]

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """Of an input."""
        return tuple(int(extent) for extent in self.value(index).shape)

    def ints(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """An attribute that is a list of whole numbers."""
        return [int(n) for n in self.node.attributes[name].as_ints()] if name in self.node.attributes else list(default)

    def integer(self, name: str, default: int = 0) -> int:
        """An attribute that is a whole number."""
        return int(self.node.attributes[name].as_int()) if name in self.node.attributes else default

    def number(self, name: str, default: float) -> float:
        """An attribute that is a real number."""
        return float(self.node.attributes[name].as_float()) if name in self.node.attributes else default

    def word(self, name: str, default: str) -> str:
        """An attribute that is text."""
        return str(self.node.attributes[name].as_string()) if name in self.node.attributes else default

    def axes(self, index: int) -> list[int] | None:
        """Axes as older operator sets have them, in an attribute, or as newer ones do, in an input; None where neither is given."""
        if "axes" in self.node.attributes:
            return self.ints("axes")
        return self.numbers(index) if self.has(index) else None


def integer_weight(values: Array, grid: Affine) -> tuple[Array, Array, Array]:
    """A weight that lies on its grid, as int8 with scale and zero point.

    Returns:
        Integers, scale [] or [C], zero point of the same shape.
    """
    from lowbit.quant.affine import quantize

    integers = quantize(values, grid).astype(np.int32)
    shift = 128 if grid.dtype == "uint8" else 0
    return (integers - shift).astype(np.int8), grid.scale.astype(np.float32), (grid.zero_point - shift).astype(np.int8)


def refuse(title: str, lacking: Mapping[str, str], graph: ir.Graph) -> ModelError:
    """What to say where a graph has nodes that a target lacks.

    Args:
        title: Of the target.
        lacking: Node -> why.
        graph: Of the model.
    """
    from lowbit.export.falling_back import parts

    kinds = {str(node.name): node.op_type for node in graph if node.name in lacking}
    shown = "; ".join(f"{kinds[name]} '{name}' ({why})" if why else f"{kinds[name]} '{name}'" for name, why in list(lacking.items())[:4])
    more = f"; and {len(lacking) - 4} more" if len(lacking) > 4 else ""
    cut = "; ".join(str(part) for part in parts(graph, lacking)[:3])
    return ModelError(
        f"{title} lacks {shown}{more}. It would have to run outside: {cut}.",
        "Leave that part out of the model and do it in the app, or export for ort-mobile, which has all of ONNX's operators.",
    )
