"""From a neutral model to the integer program: read, fuse, choose grids, write step by step, close with the ports."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lowbit.export.neutral import Neutral
from lowbit.export.program import lower_moves, lower_pointwise, lower_pools, lower_products, lower_reshape
from lowbit.export.program.lower_fuse import fuse
from lowbit.export.program.lower_grids import grids_of, same, signed
from lowbit.export.program.lower_steps import Net, Step, read_steps
from lowbit.export.program.lower_words import lacking
from lowbit.export.program.lower_write import IMAGE, Laid, Writer
from lowbit.export.program.program import Kind, Operation, Port, Program, Tensor
from lowbit.quant.affine import Affine

Write = Callable[[Writer, Step], None]

WRITERS: dict[str, Write] = {
    "Add": lower_pointwise.two,
    "AveragePool": lower_pools.average_pool,
    "BatchNormalization": lower_products.scale_and_shift,
    "Cast": lower_reshape.alias,
    "Clip": lower_pointwise.clamp,
    "Concat": lower_moves.concat,
    "Conv": lower_products.convolution,
    "ConvTranspose": lower_products.transposed_convolution,
    "DepthToSpace": lower_moves.depth_to_space,
    "Div": lower_pointwise.two,
    "Dropout": lower_reshape.alias,
    "Flatten": lower_reshape.reshape,
    "Gemm": lower_products.dense,
    "GlobalAveragePool": lower_pools.mean,
    "GlobalMaxPool": lower_pools.max_pool,
    "HardSigmoid": lower_pointwise.hard_sigmoid,
    "HardSwish": lower_pointwise.one,
    "Identity": lower_reshape.alias,
    "LeakyRelu": lower_pointwise.one,
    "MatMul": lower_products.dense,
    "MaxPool": lower_pools.max_pool,
    "Mul": lower_pointwise.two,
    "PRelu": lower_pointwise.leaky_by_channel,
    "Pad": lower_moves.pad,
    "ReduceMean": lower_pools.mean,
    "Relu": lower_pointwise.clamp,
    "Reshape": lower_reshape.reshape,
    "Resize": lower_moves.resize,
    "Sigmoid": lower_pointwise.one,
    "SpaceToDepth": lower_moves.space_to_depth,
    "Slice": lower_moves.slice_,
    "Softmax": lower_pointwise.softmax,
    "Split": lower_moves.split,
    "Squeeze": lower_reshape.reshape,
    "Sub": lower_pointwise.two,
    "Tanh": lower_pointwise.one,
    "Transpose": lower_reshape.transpose,
    "Unsqueeze": lower_reshape.reshape,
    "Upsample": lower_moves.resize,
}


def lower(source: Neutral, *, float_input: bool, float_output: bool, per_tensor_dense: bool = False) -> Program:
    """Writes a neutral model as an integer program, batch 1.

    Every tensor lies on a grid: the candidate's where it has one, else that of the operator, of what is moved, or of the range that
    calibration saw. What the candidate left in floating point is rounded, too; `Program.notes` says which weights that were.

    Args:
        source: A quantized model; not changed.
        float_input: Inputs are float32, and rounded first; else they are int8.
        float_output: Outputs are float32, computed last; else they are int8.
        per_tensor_dense: Weights of fully connected layers get one scale instead of one a channel.

    Raises:
        ModelError: an operator that has no integer form here, an open axis, or a tensor of which no range is known.
    """
    net = fuse(read_steps(source.model), source.activations)
    for step in net.steps:
        if step.op not in WRITERS or step.domain:
            raise lacking(net, step, "no kernel of the 8-bit programs computes it")
    grids = grids_of(net, source.activations, source.ranges)
    writer = Writer(net, grids, source.weights, per_tensor_dense, notes=_other_grids(source, net, grids))
    _name_ends(writer, float_input, float_output)
    inputs = tuple(_input(writer, name, float_input) for name in net.inputs)
    for step in net.steps:
        WRITERS[step.op](writer, step)
    outputs = tuple(_output(writer, name, float_output) for name in net.outputs)
    operations = _needed(writer.operations, {port.tensor for port in outputs})
    used = {name for each in operations for name in (*each.inputs, *each.outputs)} | {port.tensor for port in (*inputs, *outputs)}
    tensors = {name: tensor for name, tensor in writer.tensors.items() if name in used}
    return Program(source.name, tensors, tuple(operations), inputs, outputs, source.labels, tuple(dict.fromkeys(writer.notes)))


def _other_grids(source: Neutral, net: Net, grids: Mapping[str, Affine]) -> list[str]:
    """Tensors that do not lie on the candidate's grid."""
    made = [name for step in net.steps for name in step.outputs if name in source.activations]
    others = [name for name in made if not same(signed(source.activations[name]), grids[name])]
    return [f"'{name}' lies on the grid that its operator prescribes or that ends at its clip, not on the candidate's." for name in others]


def _name_ends(writer: Writer, float_input: bool, float_output: bool) -> None:
    """What is float32 has the source's name; its integers have another."""
    for names, is_float in ((writer.net.inputs, float_input), (writer.net.outputs, float_output)):
        if is_float:
            writer.renamed |= {name: f"{name}_int8" for name in names}


def _input(writer: Writer, name: str, is_float: bool) -> Port:
    """An input: channels last where it is an image, as in the source where that reads it channels last itself."""
    net, shape = writer.net, writer.shape(name)
    readers = [step for step in net.steps if name in step.inputs]
    turned = bool(readers) and all(step.op == "Transpose" for step in readers)
    axes = tuple(range(len(shape)))
    if len(shape) == 4 and not turned:
        axes = IMAGE
    elif len(shape) == 3 and readers and all(step.op in ("Conv", "MaxPool", "AveragePool") for step in readers):
        axes = (0, 2, 1)
    lying, grid, inner = tuple(shape[axis] for axis in axes), writer.grids[name], writer.named(name)
    permutation = None if axes == tuple(range(len(shape))) else axes
    if is_float:
        writer.tensors[name] = Tensor(name, lying, "float32")
        writer.add(Kind.QUANTIZE, (name,), inner, lying, grid, ())
    else:
        writer.tensors[inner] = Tensor(inner, lying, "int8", grid)
    writer.laid[name] = Laid(inner, axes)
    return Port(name, shape, name if is_float else inner, permutation)


def _output(writer: Writer, name: str, is_float: bool) -> Port:
    if name not in writer.laid:
        raise lacking(writer.net, writer.net.steps[-1], f"output '{name}' is a constant")
    laid, shape = writer.laid[name], writer.shape(name)
    axes = laid.axes
    permutation = None if axes == tuple(range(len(shape))) else axes
    if not is_float:
        return Port(name, shape, laid.tensor, permutation)
    inner = writer.of(laid.tensor)
    own = name if name not in writer.tensors else writer.fresh(f"{name}_float")
    writer.tensors[own] = Tensor(own, inner.shape, "float32")
    writer.operations.append(Operation(Kind.DEQUANTIZE, (laid.tensor,), (own,)))
    return Port(name, shape, own, permutation)


def _needed(operations: list[Operation], wanted: set[str]) -> list[Operation]:
    """Operations whose results somebody reads."""
    kept: list[Operation] = []
    for each in reversed(operations):
        if wanted & set(each.outputs):
            kept.append(each)
            wanted |= set(each.inputs)
    return kept[::-1]
