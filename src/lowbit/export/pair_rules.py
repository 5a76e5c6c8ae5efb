"""What checkers of QDQ artifacts share: the pairs of a graph, and the rules that every target has for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit.export.base import Finding
from lowbit.graph import ir_files
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Step:
    """One half of a pair.

    Attributes:
        node: A QuantizeLinear or DequantizeLinear.
        scale: None where it is computed.
        zero: The zero point; None where it is computed. Zero where it is left out.
        dtype: Of the integers, e.g. "uint8".
        axis: Of the channels, None where one scale serves all.
    """

    node: ir.Node
    scale: Array | None
    zero: Array | None
    dtype: str
    axis: int | None

    @property
    def quantizes(self) -> bool:
        """Whether it makes integers."""
        return self.node.op_type == QUANTIZE

    @property
    def stored(self) -> Array | None:
        """The integers that it reads where they are a constant."""
        value = self.node.inputs[0]
        return value.const_value.numpy() if value is not None and value.const_value is not None else None

    @property
    def tensor(self) -> str:
        """Name of what it is about, for messages."""
        value = self.node.inputs[0]
        return str(value.name) if value is not None else str(self.node.name)


def read_graph(path: Path) -> ir.Graph:
    """The graph of a QDQ artifact."""
    return ir_files.read(path).graph


def steps_of(graph: ir.Graph) -> list[Step]:
    """Both halves of all pairs, in the order in which they run."""
    return [_step(node) for node in graph if node.op_type in (QUANTIZE, DEQUANTIZE)]


def readers(step: Step) -> Iterator[tuple[ir.Node, int]]:
    """Who reads what a step gives, and as which input."""
    return ((use.node, use.idx) for use in step.node.outputs[0].uses())


def from_pair(value: ir.Value | None) -> bool:
    """Whether a tensor comes out of a pair."""
    maker = value.producer() if value is not None else None
    return maker is not None and maker.op_type == DEQUANTIZE


def constant_scales(steps: Sequence[Step]) -> Iterator[Finding]:
    """Scales and zero points are constants, and scales are above zero."""
    for step in steps:
        if step.scale is None or step.zero is None:
            text = f"{step.node.op_type} '{step.node.name}' computes its scale or zero point; quantize with fixed ranges instead."
            yield Finding("scales are constants", "error", text)
        elif not np.all(step.scale > 0):
            text = f"{step.node.op_type} '{step.node.name}' has a scale that is not above zero; export the candidate again."
            yield Finding("scales are constants", "error", text)


def scales_a_channel(steps: Sequence[Step]) -> Iterator[Finding]:
    """Scales a channel are for weights of products alone, on the axis of their output channels, without zero points."""
    rule = "scales a channel are of weights"
    for step in steps:
        if step.axis is None:
            continue
        if step.quantizes or step.stored is None:
            yield Finding(rule, "error", f"'{step.tensor}' is computed, and has a scale a channel; give it one scale.")
            continue
        if step.zero is not None and np.any(step.zero):
            yield Finding(rule, "error", f"'{step.tensor}' has a scale a channel with zero points that are not 0; make its grid symmetric.")
        for node, index in readers(step):
            if node.op_type not in PRODUCTS:
                yield Finding(
                    rule, "error", f"{node.op_type} '{node.name}' reads '{step.tensor}' with a scale a channel; give it one scale."
                )
            elif index == 1 and step.axis not in _channel_axes(node, step.stored.ndim):
                text = f"The scales of '{step.tensor}' lie on axis {step.axis}, which is not that of the output channels of '{node.name}'."
                yield Finding(rule, "error", text)


def _channel_axes(node: ir.Node, rank: int) -> tuple[int, ...]:
    if node.op_type == "Conv":
        return (0,)
    if node.op_type == "ConvTranspose":
        return (1,)
    if node.op_type == "Gemm":
        return (0,) if "transB" in node.attributes and node.attributes["transB"].as_int() else (1,)
    return (rank - 1,)


def _step(node: ir.Node) -> Step:
    scale, zero = (_constant(node, index) for index in (1, 2))
    given = node.inputs[2] if len(node.inputs) > 2 else None
    tensor = given.const_value if given is not None else None
    dtype = tensor.dtype.name.lower() if tensor is not None else _integers(node)
    if zero is None and given is None:
        zero = np.zeros((), np.int32)
    many = scale is not None and scale.size > 1
    axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else 1) if many else None
    return Step(node, scale, zero, dtype, axis)


def _integers(node: ir.Node) -> str:
    """The type of what goes in or comes out, where no zero point says it."""
    value = node.outputs[0] if node.op_type == QUANTIZE else node.inputs[0]
    return value.dtype.name.lower() if value is not None and value.dtype is not None else "uint8"


def _constant(node: ir.Node, index: int) -> Array | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None or value.const_value is None:
        return None
    found = value.const_value.numpy()
    return found.astype(np.float32) if index == 1 else found.astype(np.int32)
