"""The integer program: tensors with grids, operations in the order in which they run. Data; every other file here makes, reads or runs it.

Operations, their options and their meaning are those of LiteRT's 8-bit quantization specification
(https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec): activations int8 with any zero point, weights
int8 with zero point 0, a scale an output channel for convolutions, biases int32 on the grid of input times weight. Tensors of rank 4 lie
channels last (NHWC); the batch is 1 and every shape is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from lowbit.errors import ModelError
from lowbit.quant.affine import Affine
from lowbit.types import Array

Dtype = Literal["int8", "int16", "int32", "float32"]
Option = int | float | str | bool | tuple[int, ...]


class Kind(StrEnum):
    """What an operation does: LiteRT's name of its builtin operator, and the options it takes (defaults in brackets).

    `activation` is "NONE", "RELU" or "RELU6" [NONE]; `padding` is "SAME" or "VALID"; operands beyond the first are named.
    """

    ADD = "ADD"  # activation
    AVERAGE_POOL_2D = "AVERAGE_POOL_2D"  # filter_height, filter_width, stride_h, stride_w, padding, activation
    CONCATENATION = "CONCATENATION"  # axis; all grids alike
    CONV_2D = "CONV_2D"  # input, filter [O,H,W,I], bias [O]; stride_h, stride_w, dilation_h [1], dilation_w [1], padding, activation
    DEPTH_TO_SPACE = "DEPTH_TO_SPACE"  # block_size
    DEPTHWISE_CONV_2D = "DEPTHWISE_CONV_2D"  # input, filter [1,H,W,C], bias [C]; as CONV_2D, and depth_multiplier
    DEQUANTIZE = "DEQUANTIZE"  # integers to float32
    FULLY_CONNECTED = "FULLY_CONNECTED"  # input [N,K], weights [O,K], bias [O]; activation
    HARD_SWISH = "HARD_SWISH"
    LEAKY_RELU = "LEAKY_RELU"  # alpha
    LOGISTIC = "LOGISTIC"  # output grid 1/256, -128
    MAX_POOL_2D = "MAX_POOL_2D"  # as AVERAGE_POOL_2D; grids alike
    MEAN = "MEAN"  # input, axes int32 (constant); keep_dims
    MUL = "MUL"  # activation
    PAD = "PAD"  # input, paddings int32 [rank,2] (constant); filled with the zero point; grids alike
    PADV2 = "PADV2"  # input, paddings, value (a scalar on the input's grid); grids alike
    QUANTIZE = "QUANTIZE"  # float32 to integers, or integers to another grid
    RELU = "RELU"
    RELU6 = "RELU6"
    RESHAPE = "RESHAPE"  # input, shape int32 (constant); grids alike
    RESIZE_BILINEAR = "RESIZE_BILINEAR"  # input, size int32 [2] (constant); align_corners, half_pixel_centers; grids alike
    RESIZE_NEAREST_NEIGHBOR = "RESIZE_NEAREST_NEIGHBOR"  # likewise
    SLICE = "SLICE"  # input, begin int32, size int32 (constants); grids alike
    SOFTMAX = "SOFTMAX"  # beta [1.0]; last axis; output grid 1/256, -128
    STRIDED_SLICE = "STRIDED_SLICE"  # input, begin, end, strides int32 (constants), without masks; grids alike
    SUB = "SUB"  # activation
    TANH = "TANH"  # output grid 1/128, 0
    TRANSPOSE = "TRANSPOSE"  # input, permutation int32 (constant); grids alike
    TRANSPOSE_CONV = "TRANSPOSE_CONV"  # output shape int32 (constant), filter [O,H,W,I], input, bias [O]; stride_h, stride_w, padding


SAME_GRID = frozenset(
    {Kind.CONCATENATION, Kind.DEPTH_TO_SPACE, Kind.MAX_POOL_2D, Kind.PAD, Kind.PADV2, Kind.RESHAPE, Kind.RESIZE_BILINEAR}
    | {Kind.RESIZE_NEAREST_NEIGHBOR, Kind.SLICE, Kind.STRIDED_SLICE, Kind.TRANSPOSE}
)
"""Operations that move values: what goes in and what comes out have one grid; where they have not, a QUANTIZE stands between."""


@dataclass(frozen=True)
class Tensor:
    """One tensor.

    Attributes:
        name: Unique; of computed tensors the source model's, where it has one.
        shape: Of all axes, batch included.
        dtype: Of its elements.
        grid: Of quantized ones; None for float32 and for lists of numbers (shapes, axes).
        data: Of constants, in `dtype` and `shape`; None where it is computed or fed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    grid: Affine | None = None
    data: Array | None = None

    @property
    def size_bytes(self) -> int:
        """Elements times the width of one."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count * {"int8": 1, "int16": 2, "int32": 4, "float32": 4}[self.dtype]


@dataclass(frozen=True)
class Operation:
    """One step.

    Attributes:
        kind: What it does.
        inputs: Names of tensors, in the order of the kind; "" where one is left out (a bias).
        outputs: Names of tensors.
        options: See `Kind`.
        origin: Names of the source model's nodes that it stands for.
    """

    kind: Kind
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: Mapping[str, Option] = field(default_factory=dict)
    origin: tuple[str, ...] = ()


@dataclass(frozen=True)
class Port:
    """An input or output as the source model has it, and where it is in the program.

    Attributes:
        name: In the source model.
        shape: There, batch 1 included.
        tensor: In the program.
        permutation: Axes of the source model's array in the program's order, e.g. (0, 2, 3, 1); None where they are the same.
    """

    name: str
    shape: tuple[int, ...]
    tensor: str
    permutation: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Program:
    """A network on integers.

    Attributes:
        name: Of the model: letters, digits and "_".
        tensors: By name.
        operations: In the order in which they run.
        inputs: What is fed.
        outputs: What comes back.
        labels: Names of the classes, where known.
        notes: What people should know of how it was made.
    """

    name: str
    tensors: Mapping[str, Tensor]
    operations: tuple[Operation, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def constants(self) -> tuple[Tensor, ...]:
        """Tensors that are known before it runs."""
        return tuple(tensor for tensor in self.tensors.values() if tensor.data is not None)

    def output_grid(self, port: Port) -> Affine:
        """The grid of an output's levels: its own, or of what DEQUANTIZE makes it from.

        Raises:
            ModelError: it is in floating point and comes from something else.
        """
        tensor = self.tensors[port.tensor]
        for operation in self.operations:
            if operation.kind is Kind.DEQUANTIZE and operation.outputs == (port.tensor,):
                tensor = self.tensors[operation.inputs[0]]
        if tensor.grid is None:
            raise ModelError(f"Output '{port.name}' is in floating point and has no levels.")
        return tensor.grid
