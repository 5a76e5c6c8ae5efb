"""Programs of one operation each, of every kind: small enough to look at, and random inside."""

from __future__ import annotations

import numpy as np

from lowbit.export.program.program import Dtype, Kind, Operation, Option, Port, Program, Tensor
from lowbit.quant.affine import Affine
from lowbit.types import Array

IN = (0.02, -3)
SIGMOID, TANH = (1 / 256, -128), (1 / 128, 0)


def grid(scale: float, zero: int = 0) -> Affine:
    return Affine(np.array(scale, np.float32), np.array(zero, np.int32), "int8", symmetric=False)


def per_channel(scales: Array, axis: int, dtype: str = "int8") -> Affine:
    return Affine(scales.astype(np.float32), np.zeros(len(scales), np.int32), dtype, symmetric=True, axis=axis)


class Maker:
    """Puts a program together: real numbers in, one operation, real numbers out."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors: dict[str, Tensor] = {}
        self.operations: list[Operation] = []

    def tensor(self, name: str, shape: tuple[int, ...], dtype: Dtype, of: Affine | None = None, data: Array | None = None) -> str:
        self.tensors[name] = Tensor(name, shape, dtype, of, data)
        return name

    def numbers(self, name: str, *values: object) -> str:
        data = np.array(values, np.int32)
        return self.tensor(name, data.shape, "int32", None, data)

    def weights(self, shape: tuple[int, ...], axis: int) -> tuple[str, str]:
        """Filters with a scale a channel, and biases on the grid of input times weight."""
        scales = self.rng.uniform(0.002, 0.01, shape[axis]).astype(np.float32)
        filters = self.rng.integers(-127, 128, shape).astype(np.int8)
        biases = self.rng.integers(-2000, 2000, shape[axis]).astype(np.int32)
        self.tensor("weights", shape, "int8", per_channel(scales, axis), filters)
        self.tensor("bias", (shape[axis],), "int32", per_channel(scales * np.float32(IN[0]), 0, "int32"), biases)
        return "weights", "bias"

    def program(
        self, kind: Kind, shape: tuple[int, ...], out: tuple[int, ...], to: tuple[float, int], operands: tuple[str, ...], **options: Option
    ) -> Program:
        """`operands` says where the rounded input "x" goes; it is the first one if it is not among them."""
        self.tensor("real", shape, "float32")
        self.tensor("x", shape, "int8", grid(*IN))
        self.tensor("y", out, "int8", grid(*to))
        self.tensor("answer", out, "float32")
        placed = operands if "x" in operands else ("x", *operands)
        self.operations = [
            Operation(Kind.QUANTIZE, ("real",), ("x",)),
            Operation(kind, placed, ("y",), options, ("node",)),
            Operation(Kind.DEQUANTIZE, ("y",), ("answer",)),
        ]
        return Program(
            f"one_{kind.value.lower()}", self.tensors, tuple(self.operations), (_port("in", "real", shape),), (_port("out", "answer", out),)
        )


def _port(name: str, tensor: str, shape: tuple[int, ...]) -> Port:
    """Images lie channels first in the model that a program comes from."""
    if len(shape) != 4:
        return Port(name, shape, tensor)
    return Port(name, (shape[0], shape[3], shape[1], shape[2]), tensor, (0, 2, 3, 1))


def program_of(kind: Kind) -> Program:
    """A program around one operation of that kind."""
    make = Maker(len(kind.value))
    image = (1, 6, 5, 4)
    window: dict[str, Option] = {"filter_height": 2, "filter_width": 3, "stride_h": 2, "stride_w": 1, "padding": "SAME"}
    match kind:
        case Kind.ADD | Kind.SUB | Kind.MUL:
            constant = make.tensor("c", (1, 1, 1, 4), "int8", grid(0.03, 5), make.rng.integers(-128, 128, (1, 1, 1, 4)).astype(np.int8))
            return make.program(kind, image, image, (0.05, 7), ("x", constant), activation="RELU")
        case Kind.AVERAGE_POOL_2D | Kind.MAX_POOL_2D:
            return make.program(kind, image, (1, 3, 5, 4), IN, (), **window)
        case Kind.CONCATENATION:
            return make.program(kind, image, (1, 6, 5, 8), IN, ("x", "x"), axis=3)
        case Kind.CONV_2D:
            return make.program(
                kind, image, (1, 3, 3, 6), (0.06, -20), make.weights((6, 3, 3, 4), 0), stride_h=2, stride_w=2, padding="SAME"
            )
        case Kind.DEPTH_TO_SPACE:
            return make.program(kind, image, (1, 12, 10, 1), IN, (), block_size=2)
        case Kind.DEPTHWISE_CONV_2D:
            options: dict[str, Option] = {"stride_h": 1, "stride_w": 1, "padding": "VALID", "depth_multiplier": 1, "activation": "RELU6"}
            return make.program(kind, image, (1, 4, 3, 4), (0.03, -100), make.weights((1, 3, 3, 4), 3), **options)
        case Kind.DEQUANTIZE | Kind.QUANTIZE:
            return make.program(Kind.QUANTIZE, image, image, (0.07, 11), ())
        case Kind.FULLY_CONNECTED:
            return make.program(kind, (1, 20), (1, 7), (0.05, 3), make.weights((7, 20), 0))
        case Kind.HARD_SWISH | Kind.LEAKY_RELU:
            return make.program(kind, image, image, (0.018, -100), (), **({"alpha": 0.1} if kind is Kind.LEAKY_RELU else {}))
        case Kind.LOGISTIC | Kind.TANH:
            return make.program(kind, image, image, SIGMOID if kind is Kind.LOGISTIC else TANH, ())
        case Kind.MEAN:
            return make.program(kind, image, (1, 1, 1, 4), (0.008, 2), (make.numbers("axes", 1, 2),), keep_dims=True)
        case Kind.PAD:
            return make.program(kind, image, (1, 8, 8, 4), IN, (make.numbers("pads", (0, 0), (1, 1), (2, 1), (0, 0)),))
        case Kind.PADV2:
            value = make.tensor("value", (1,), "int8", grid(*IN), np.array([17], np.int8))
            return make.program(kind, image, (1, 8, 8, 4), IN, (make.numbers("pads", (0, 0), (1, 1), (2, 1), (0, 0)), value))
        case Kind.RELU | Kind.RELU6:
            return make.program(kind, image, image, IN if kind is Kind.RELU6 else (0.01, -128), ())
        case Kind.RESHAPE:
            return make.program(kind, image, (1, 120), IN, (make.numbers("shape", 1, 120),))
        case Kind.RESIZE_BILINEAR | Kind.RESIZE_NEAREST_NEIGHBOR:
            half = kind is Kind.RESIZE_BILINEAR
            return make.program(
                kind, image, (1, 12, 10, 4), IN, (make.numbers("size", 12, 10),), align_corners=False, half_pixel_centers=half
            )
        case Kind.SLICE:
            return make.program(kind, image, (1, 4, 3, 2), IN, (make.numbers("begin", 0, 1, 2, 0), make.numbers("size", 1, 4, 3, 2)))
        case Kind.SOFTMAX:
            return make.program(kind, (1, 10), (1, 10), SIGMOID, (), beta=1.0)
        case Kind.STRIDED_SLICE:
            ends = (make.numbers("begin", 0, 0, 1, 0), make.numbers("end", 1, 6, 5, 4), make.numbers("strides", 1, 2, 2, 1))
            return make.program(kind, image, (1, 3, 2, 4), IN, ends)
        case Kind.TRANSPOSE:
            return make.program(kind, (1, 6, 20), (1, 20, 6), IN, (make.numbers("permutation", 0, 2, 1),))
        case Kind.TRANSPOSE_CONV:
            weights, bias = make.weights((6, 2, 2, 4), 0)
            operands = (make.numbers("shape", 1, 12, 10, 6), weights, "x", bias)
            return make.program(kind, image, (1, 12, 10, 6), (0.06, 4), operands, stride_h=2, stride_w=2, padding="VALID")
    raise AssertionError(kind)
