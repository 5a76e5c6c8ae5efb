"""Every operator that is lowered, beside the float graph: the same answers but for rounding, in the kinds that are expected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lowering_case import compare, node

from lowbit.export.program.program import Kind

RNG = np.random.default_rng(5)


def weights(*shape: int) -> np.ndarray[Any, Any]:
    return (RNG.normal(0, 1, shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def numbers(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)


def conv(attributes: dict[str, Any], channels: int = 6, out: int = 5, size: tuple[int, ...] = (3, 3)) -> dict[str, Any]:
    groups = attributes.get("group", 1)
    constants = {"w": weights(out, channels // groups, *size), "b": weights(1, out)[0]}
    return {"nodes": [node("Conv", ["x", "w", "b"], "y", **attributes)], "constants": constants}


IMAGE = (6, 9, 8)
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any], list[Kind], float]] = {
    "conv same": (IMAGE, conv({"pads": [1, 1, 1, 1]}), [Kind.CONV_2D], 2),
    "conv valid": (IMAGE, conv({}), [Kind.CONV_2D], 2),
    "conv symmetric padding, stride 2": (IMAGE, conv({"pads": [1, 1, 1, 1], "strides": [2, 2]}), [Kind.PAD, Kind.CONV_2D], 2),
    "conv stride 2 as SAME": ((6, 8, 8), conv({"pads": [0, 0, 1, 1], "strides": [2, 2]}), [Kind.CONV_2D], 2),
    "conv auto_pad": (IMAGE, conv({"auto_pad": "SAME_UPPER", "strides": [2, 2]}), [Kind.CONV_2D], 2),
    "conv auto_pad lower": ((6, 8, 8), conv({"auto_pad": "SAME_LOWER", "strides": [2, 2]}), [Kind.PAD, Kind.CONV_2D], 2),
    "conv dilated": (IMAGE, conv({"dilations": [2, 2], "pads": [2, 2, 2, 2]}), [Kind.CONV_2D], 2),
    "conv uneven": (IMAGE, conv({"pads": [0, 1, 0, 1]}, size=(1, 3)), [Kind.CONV_2D], 2),
    "depthwise": (IMAGE, conv({"group": 6, "pads": [1, 1, 1, 1]}, out=6), [Kind.DEPTHWISE_CONV_2D], 2),
    "depthwise of two": (IMAGE, conv({"group": 6}, out=12), [Kind.DEPTHWISE_CONV_2D], 2),
    "groups": (
        IMAGE,
        conv({"group": 2}, out=4),
        [Kind.SLICE, Kind.CONV_2D, Kind.SLICE, Kind.CONV_2D, Kind.CONCATENATION],
        2,
    ),
    "conv over one axis": ((6, 20), conv({"pads": [1, 1], "strides": [1]}, size=(3,)), [Kind.RESHAPE, Kind.CONV_2D, Kind.RESHAPE], 2),
    "transposed conv": (
        (4, 5, 5),
        {
            "nodes": [node("ConvTranspose", ["x", "w", "b"], "y", strides=[2, 2])],
            "constants": {"w": weights(4, 3, 2, 2), "b": floats(0.1, -0.2, 0.3)},
        },
        [Kind.TRANSPOSE_CONV],
        2,
    ),
    "transposed conv with padding": (
        (4, 5, 5),
        {
            "nodes": [node("ConvTranspose", ["x", "w"], "y", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])],
            "constants": {"w": weights(4, 3, 3, 3)},
        },
        [Kind.TRANSPOSE_CONV, Kind.SLICE],
        2,
    ),
    "gemm": (
        (12,),
        {
            "nodes": [node("Gemm", ["x", "w", "b"], "y", transB=1, alpha=0.5, beta=2.0)],
            "constants": {"w": weights(7, 12), "b": weights(1, 7)[0]},
        },
        [Kind.FULLY_CONNECTED],
        2,
    ),
    "matmul of rows, and what is added": (
        (3, 8),
        {
            "nodes": [node("MatMul", ["x", "w"], "m"), node("Add", ["m", "b"], "y")],
            "constants": {"w": weights(5, 8).T.copy(), "b": weights(1, 5)[0]},
        },
        [Kind.RESHAPE, Kind.FULLY_CONNECTED, Kind.RESHAPE],
        2,
    ),
    "flatten before a dense layer": (
        (4, 3, 2),
        {"nodes": [node("Flatten", ["x"], "f"), node("Gemm", ["f", "w"], "y", transB=1)], "constants": {"w": weights(5, 24)}},
        [Kind.RESHAPE, Kind.FULLY_CONNECTED],
        2,
    ),
    "flatten that others read": (
        (4, 3, 2),
        {"nodes": [node("Flatten", ["x"], "f"), node("Relu", ["f"], "y")]},
        [Kind.TRANSPOSE, Kind.RESHAPE, Kind.RELU],
        1,
    ),
    "batch norm": (
        IMAGE,
        {
            "nodes": [node("BatchNormalization", ["x", "g", "t", "m", "v"], "y")],
            "constants": {
                "g": floats(1, 2, 0.5, -1, 1, 3),
                "t": floats(0, 1, 0, -1, 0.5, 0),
                "m": floats(*[0.1] * 6),
                "v": floats(*[0.9] * 6),
            },
        },
        [Kind.RESHAPE, Kind.DEPTHWISE_CONV_2D, Kind.RESHAPE],
        2,
    ),
    "add a constant a channel": (
        IMAGE,
        {"nodes": [node("Add", ["x", "c"], "y")], "constants": {"c": weights(6, 1, 1)}},
        [Kind.ADD],
        2,
    ),
    "subtract from a number": ((5,), {"nodes": [node("Sub", ["c", "x"], "y")], "constants": {"c": floats(1.0)}}, [Kind.SUB], 2),
    "divide by a number": ((5,), {"nodes": [node("Div", ["x", "c"], "y")], "constants": {"c": floats(2.5)}}, [Kind.MUL], 2),
    "product of two": (IMAGE, {"nodes": [node("Sigmoid", ["x"], "s"), node("Mul", ["x", "s"], "y")]}, [Kind.LOGISTIC, Kind.MUL], 2),
    "tensor of lower rank": (
        (4, 3),
        {"nodes": [node("ReduceMean", ["x", "a"], "m", keepdims=0), node("Add", ["x", "m"], "y")], "constants": {"a": numbers(1)}},
        [Kind.MEAN, Kind.RESHAPE, Kind.ADD],
        2,
    ),
    "relu": (IMAGE, {"nodes": [node("Relu", ["x"], "y")]}, [Kind.RELU], 1),
    "clip": (
        IMAGE,
        {"nodes": [node("Clip", ["x", "l", "h"], "y")], "constants": {"l": floats(-1)[0], "h": floats(0.5)[0]}},
        [Kind.QUANTIZE],
        1,
    ),
    "leaky relu": (IMAGE, {"nodes": [node("LeakyRelu", ["x"], "y", alpha=0.2)]}, [Kind.LEAKY_RELU], 2),
    "slopes a channel": (
        IMAGE,
        {"nodes": [node("PRelu", ["x", "a"], "y")], "constants": {"a": np.abs(weights(6, 1, 1))}},
        [Kind.RELU, Kind.QUANTIZE, Kind.MUL, Kind.ADD],
        3,
    ),
    "one slope": (IMAGE, {"nodes": [node("PRelu", ["x", "a"], "y")], "constants": {"a": floats(0.25)}}, [Kind.LEAKY_RELU], 2),
    "tanh": (IMAGE, {"nodes": [node("Tanh", ["x"], "y")]}, [Kind.TANH], 2),
    "hard swish": (IMAGE, {"nodes": [node("HardSwish", ["x"], "y")]}, [Kind.HARD_SWISH], 2),
    "hard sigmoid": (IMAGE, {"nodes": [node("HardSigmoid", ["x"], "y", alpha=1 / 6, beta=0.5)]}, [Kind.MUL, Kind.ADD], 2),
    "softmax over channels": (IMAGE, {"nodes": [node("Softmax", ["x"], "y", axis=1)]}, [Kind.SOFTMAX], 2),
    "softmax over rows": (IMAGE, {"nodes": [node("Softmax", ["x"], "y", axis=2)]}, [Kind.TRANSPOSE, Kind.SOFTMAX], 2),
    "max pool": (IMAGE, {"nodes": [node("MaxPool", ["x"], "y", kernel_shape=[2, 2], strides=[2, 2])]}, [Kind.MAX_POOL_2D], 1),
    "max pool padded below zero": (
        IMAGE,
        {"nodes": [node("MaxPool", ["x"], "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])]},
        [Kind.PADV2, Kind.MAX_POOL_2D],
        1,
    ),
    "max pool rounded up": (
        (6, 8, 8),
        {"nodes": [node("MaxPool", ["x"], "y", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)]},
        [Kind.MAX_POOL_2D],
        1,
    ),
    "max pool over one axis": (
        (6, 8),
        {"nodes": [node("MaxPool", ["x"], "y", kernel_shape=[2], strides=[2])]},
        [Kind.RESHAPE, Kind.MAX_POOL_2D, Kind.RESHAPE],
        1,
    ),
    "average pool": (IMAGE, {"nodes": [node("AveragePool", ["x"], "y", kernel_shape=[2, 2], strides=[2, 2])]}, [Kind.AVERAGE_POOL_2D], 1),
    "average pool that counts padding": (
        IMAGE,
        {"nodes": [node("AveragePool", ["x"], "y", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1], count_include_pad=1)]},
        [Kind.PAD, Kind.AVERAGE_POOL_2D],
        1,
    ),
    "average pool that does not": (
        IMAGE,
        {"nodes": [node("AveragePool", ["x"], "y", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])]},
        [Kind.AVERAGE_POOL_2D],
        1,
    ),
    "average pool of everything": (IMAGE, {"nodes": [node("AveragePool", ["x"], "y", kernel_shape=[9, 8])]}, [Kind.MEAN], 2),
    "global average": (IMAGE, {"nodes": [node("GlobalAveragePool", ["x"], "y")]}, [Kind.MEAN], 2),
    "global maximum": (IMAGE, {"nodes": [node("GlobalMaxPool", ["x"], "y")]}, [Kind.MAX_POOL_2D], 1),
    "mean over channels": (
        IMAGE,
        {"nodes": [node("ReduceMean", ["x", "a"], "y", keepdims=1)], "constants": {"a": numbers(1)}},
        [Kind.MEAN],
        2,
    ),
    "mean without the axes": (
        IMAGE,
        {"nodes": [node("ReduceMean", ["x", "a"], "y", keepdims=0)], "constants": {"a": numbers(-1)}},
        [Kind.MEAN],
        2,
    ),
    "join along channels": (
        IMAGE,
        {"nodes": [node("Relu", ["x"], "r"), node("Concat", ["x", "r"], "y", axis=1)]},
        [Kind.RELU, Kind.CONCATENATION],
        2,
    ),
    "join with a constant": (
        (3, 4),
        {"nodes": [node("Concat", ["x", "c"], "y", axis=1)], "constants": {"c": weights(1, 2, 4)}},
        [Kind.CONCATENATION],
        1,
    ),
    "pad with zeros": (
        IMAGE,
        {"nodes": [node("Pad", ["x", "p"], "y")], "constants": {"p": numbers(0, 1, 2, 0, 0, 3, 0, 1)}},
        [Kind.PAD],
        1,
    ),
    "pad with a number, and cut": (
        IMAGE,
        {"nodes": [node("Pad", ["x", "p", "v"], "y")], "constants": {"p": numbers(0, 0, -1, 2, 0, 0, 1, 0), "v": floats(0.7)[0]}},
        [Kind.SLICE, Kind.PADV2],
        1,
    ),
    "slice": (
        IMAGE,
        {"nodes": [node("Slice", ["x", "s", "e", "a"], "y")], "constants": {"s": numbers(1, -5), "e": numbers(4, 100), "a": numbers(1, 2)}},
        [Kind.SLICE],
        1,
    ),
    "every second pixel": (
        IMAGE,
        {
            "nodes": [node("Slice", ["x", "s", "e", "a", "t"], "y")],
            "constants": {"s": numbers(0, 1), "e": numbers(9, 8), "a": numbers(2, 3), "t": numbers(2, 2)},
        },
        [Kind.STRIDED_SLICE],
        1,
    ),
    "split": (
        IMAGE,
        {
            "nodes": [node("Split", ["x", "s"], ["a", "b"], axis=1), node("Relu", ["b"], "y")],
            "constants": {"s": numbers(2, 4)},
        },
        [Kind.SLICE, Kind.RELU],
        1,
    ),
    "nearest by 2": (
        IMAGE,
        {
            "nodes": [node("Resize", ["x", "", "s"], "y", coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
            "constants": {"s": floats(1, 1, 2, 2)},
        },
        [Kind.RESIZE_NEAREST_NEIGHBOR],
        1,
    ),
    "nearest by 2 from half pixels": (
        IMAGE,
        {"nodes": [node("Resize", ["x", "", "s"], "y")], "constants": {"s": floats(1, 1, 2, 2)}},
        [Kind.RESIZE_NEAREST_NEIGHBOR],
        1,
    ),
    "linear from half pixels": (
        IMAGE,
        {"nodes": [node("Resize", ["x", "", "", "n"], "y", mode="linear")], "constants": {"n": numbers(1, 6, 13, 20)}},
        [Kind.RESIZE_BILINEAR],
        2,
    ),
    "linear with aligned corners": (
        IMAGE,
        {
            "nodes": [node("Resize", ["x", "", "", "n"], "y", mode="linear", coordinate_transformation_mode="align_corners")],
            "constants": {"n": numbers(1, 6, 13, 20)},
        },
        [Kind.RESIZE_BILINEAR],
        2,
    ),
    "depth to space": ((8, 3, 2), {"nodes": [node("DepthToSpace", ["x"], "y", blocksize=2)]}, [Kind.DEPTH_TO_SPACE], 1),
    "depth to space by columns": (
        (8, 3, 2),
        {"nodes": [node("DepthToSpace", ["x"], "y", blocksize=2, mode="CRD")]},
        [Kind.RESHAPE, Kind.TRANSPOSE, Kind.RESHAPE, Kind.DEPTH_TO_SPACE],
        1,
    ),
    "space to depth": (
        (2, 4, 6),
        {"nodes": [node("SpaceToDepth", ["x"], "y", blocksize=2)]},
        [Kind.STRIDED_SLICE] * 4 + [Kind.CONCATENATION],
        1,
    ),
    "channel shuffle": (
        (6, 3, 2),
        {
            "nodes": [
                node("Reshape", ["x", "five"], "a"),
                node("Transpose", ["a"], "b", perm=[0, 2, 1, 3, 4]),
                node("Reshape", ["b", "four"], "y"),
            ],
            "constants": {"five": numbers(1, 2, 3, 3, 2), "four": numbers(1, 6, 3, 2)},
        },
        [Kind.RESHAPE, Kind.TRANSPOSE, Kind.RESHAPE],
        1,
    ),
    "channels last for a reader": (
        (6, 3, 2),
        {
            "nodes": [node("Transpose", ["x"], "t", perm=[0, 2, 3, 1]), node("Reshape", ["t", "s"], "y")],
            "constants": {"s": numbers(1, -1, 6)},
        },
        [Kind.RESHAPE],
        1,
    ),
    "axes taken away and put back": (
        (6, 1, 1),
        {
            "nodes": [node("Squeeze", ["x", "a"], "s"), node("Unsqueeze", ["s", "b"], "u"), node("Relu", ["u"], "y")],
            "constants": {"a": numbers(2, 3), "b": numbers(1)},
        },
        [Kind.RESHAPE, Kind.RELU],
        1,
    ),
    "what changes nothing": (
        (5,),
        {"nodes": [node("Identity", ["x"], "i"), node("Dropout", ["i"], "d"), node("Relu", ["d"], "y")]},
        [Kind.RELU],
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_answers_as_in_floating_point(name: str) -> None:
    shape, case, kinds, most = CASES[name]
    found = compare(shape=shape, **case)
    assert found.all_kinds()[: len(kinds)] == kinds, found.all_kinds()
    off = found.steps()
    assert off.max() <= most + 0.01, f"{off.max()} steps away, {off.mean()} on average"


def _swish(order: str) -> list[Any]:
    head = [node("Add", ["x", "three"], "a"), node("Clip", ["a", "zero", "six"], "c")]
    if order == "gate first":
        return [*head, node("Div", ["c", "six"], "g"), node("Mul", ["x", "g"], "y")]
    if order == "gate times a sixth":
        return [*head, node("Mul", ["sixth", "c"], "g"), node("Mul", ["g", "x"], "y")]
    return [*head, node("Mul", ["x", "c"], "p"), node("Div", ["p", "six"], "y")]


@pytest.mark.parametrize("order", ["gate first", "gate times a sixth", "product first"])
def test_hard_swish_is_found_however_it_is_written(order: str) -> None:
    constants = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6), "sixth": np.float32(1 / 6)}
    found = compare(_swish(order), (5,), constants)
    assert found.all_kinds() == [Kind.HARD_SWISH]
    assert set(found.program.operations[1].origin) == {"a_node", "c_node", "y_node", "p_node" if order == "product first" else "g_node"}
    assert found.steps().max() <= 2


def test_hard_swish_through_its_gate() -> None:
    found = compare([node("HardSigmoid", ["x"], "g", alpha=1 / 6, beta=0.5), node("Mul", ["x", "g"], "y")], (5,))
    assert found.all_kinds() == [Kind.HARD_SWISH]


def test_a_swish_of_other_slopes_is_none() -> None:
    constants = {"two": np.float32(2), "zero": np.float32(0), "six": np.float32(6)}
    nodes = [
        node("Add", ["x", "two"], "a"),
        node("Clip", ["a", "zero", "six"], "c"),
        node("Mul", ["x", "c"], "p"),
        node("Div", ["p", "six"], "y"),
    ]
    found = compare(nodes, (5,), constants)
    assert Kind.HARD_SWISH not in found.kinds()
    assert found.steps().max() <= 3
