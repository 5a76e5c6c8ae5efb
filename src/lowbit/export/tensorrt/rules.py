"""What TensorRT wants of a QDQ model, held against a file.

The rules are those of TensorRT's guide to explicit quantization
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html) and of its ONNX parser
(https://github.com/onnx/onnx-tensorrt, docs/operators.md and the importers of QuantizeLinear and DequantizeLinear).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit.export.base import Finding
from lowbit.export.falling_back import parts
from lowbit.export.pair_rules import PRODUCTS, QUANTIZE, Step, constant_scales, from_pair, readers, scales_a_channel, steps_of
from lowbit.graph import ir_files
from lowbit.graph.groups import is_constant, is_standard

if TYPE_CHECKING:
    import onnx_ir as ir

# fmt: off
LACKING = frozenset(
    {
        "AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "BlackmanWindow", "CenterCropPad",
        "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det", "DynamicQuantizeLinear", "HammingWindow", "HannWindow",
        "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss",
        "Optional", "OptionalGetElement", "OptionalHasElement", "QLinearConv", "QLinearMatMul", "RegexFullMatch", "STFT", "SequenceAt",
        "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap",
        "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer", "Unique",
    }
)
# fmt: on
"""Standard operators that the parser of TensorRT 10 does not have."""

NEWEST_OPSET = 20
"""That the parser of TensorRT 10.0 reads; later ones read more."""


def check(path: Path) -> list[Finding]:
    """What the rules say of a QDQ file.

    Args:
        path: An ONNX file with pairs.
    """
    model = ir_files.read(path)
    graph, steps = model.graph, steps_of(model.graph)
    found = [*operators(graph), *opset(model), *constant_scales(steps), *symmetric_bytes(steps), *scales_a_channel(steps)]
    return [*found, *float_biases(steps), *both_operands(graph), *sums(graph)]


def operators(graph: ir.Graph) -> Iterator[Finding]:
    """Operators that the parser lacks, with the parts that are in the way."""
    rule = "operators that TensorRT has"
    lacking = [str(node.name) for node in graph if not is_standard(node) or node.op_type in LACKING]
    for part in parts(graph, lacking):
        yield Finding(rule, "error", f"TensorRT's parser has no {part}: the model does not build with it, except by a plugin of that name.")
    for node in graph:
        if node.op_type == "MaxPool" and len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
            yield Finding(rule, "error", f"MaxPool '{node.name}' gives positions too, which TensorRT's parser does not read.")


def opset(model: ir.Model) -> Iterator[Finding]:
    """Operator sets that the parser reads."""
    found = model.graph.opset_imports.get("", 1)
    if found > NEWEST_OPSET:
        text = f"The model is of operator set {found}; TensorRT 10.0 reads up to {NEWEST_OPSET}. Build it with a later one."
        yield Finding("operator set", "warning", text)


def symmetric_bytes(steps: Sequence[Step]) -> Iterator[Finding]:
    """Grids are int8 around zero."""
    for step in steps:
        if step.dtype != "int8":
            where = "stored" if step.stored is not None else "rounded"
            text = f"'{step.tensor}' is {where} as {step.dtype}: TensorRT quantizes to int8 alone."
            yield Finding("int8 alone", "error", text)
        elif step.zero is not None and np.any(step.zero):
            text = (
                f"'{step.tensor}' has a zero point of {int(step.zero.reshape(-1)[0])}: the parser refuses all but 0. Calibrate around zero."
            )
            yield Finding("zero points are 0", "error", text)


def float_biases(steps: Sequence[Step]) -> Iterator[Finding]:
    """Biases are floating point, without a pair."""
    for step in steps:
        for node, index in readers(step):
            if node.op_type in PRODUCTS and index == 2:
                text = f"The bias of {node.op_type} '{node.name}' is behind a pair; store it in floating point."
                yield Finding("biases are floating point", "error", text)


def both_operands(graph: ir.Graph) -> Iterator[Finding]:
    """A product computes on integers where both of its operands come from pairs."""
    for node in graph:
        if node.op_type not in PRODUCTS:
            continue
        paired = [from_pair(value) for value in node.inputs[:2]]
        if any(paired) and not all(paired):
            missing = "weight" if paired[0] and is_constant(node.inputs[1]) else f"input {paired.index(False)}"
            text = f"The {missing} of {node.op_type} '{node.name}' has no pair, its other operand has one: it runs in floating point."
            yield Finding("both operands from pairs", "error", text)


def sums(graph: ir.Graph) -> Iterator[Finding]:
    """Of a residual sum, the shortcut comes from a pair; the other operand does, or comes right from the product it is fused with."""
    rule, apart = "pairs on residual sums", []
    for node in graph:
        if node.op_type != "Add" or any(value is None or is_constant(value) for value in node.inputs) or not _is_rounded(node):
            continue
        paired = [from_pair(value) for value in node.inputs]
        if not any(paired):
            text = f"Add '{node.name}' is rounded and reads no pair: neither operand is int8, and the sum is not fused."
            yield Finding(rule, "warning", text)
        elif not all(paired) and not _is_fused(node.inputs[paired.index(False)]):
            text = f"Add '{node.name}' reads '{_name(node.inputs[paired.index(False)])}' in floating point; put a pair behind it."
            yield Finding(rule, "warning", text)
        elif all(paired) and any(_right_behind_a_product(value) for value in node.inputs):
            apart.append(str(node.name))
    if apart:
        text = f"{len(apart)} sums (Add '{apart[0]}' first) read two pairs: the one behind the product keeps it from being one "
        yield Finding(rule, "note", text + "kernel with the sum. --set sums=shortcut leaves that pair out.")


def _is_rounded(node: ir.Node) -> bool:
    """Whether what a node gives, or the activation behind it, goes into a pair."""
    reading = [use.node for use in node.outputs[0].uses()]
    while len(reading) == 1 and reading[0].op_type in ("Relu", "Clip", "LeakyRelu"):
        reading = [use.node for use in reading[0].outputs[0].uses()]
    return any(reader.op_type == QUANTIZE for reader in reading)


def _is_fused(value: ir.Value | None) -> bool:
    """Whether a tensor is a product's result that the sum alone reads."""
    maker = value.producer() if value is not None else None
    return value is not None and maker is not None and maker.op_type in PRODUCTS and len(list(value.uses())) == 1


def _right_behind_a_product(value: ir.Value | None) -> bool:
    """Whether a pair's own tensor is a product's result that nobody else reads."""
    dequantizer = value.producer() if value is not None else None
    integers = dequantizer.inputs[0] if dequantizer is not None else None
    quantizer = integers.producer() if integers is not None else None
    return quantizer is not None and _is_fused(quantizer.inputs[0]) and len(list(quantizer.outputs[0].uses())) == 1


def _name(value: ir.Value | None) -> str:
    return str(value.name) if value is not None else ""
