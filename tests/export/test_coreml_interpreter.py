"""The interpreter and the writer of Core ML programs, operator by operator, beside onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from lowering_case import everything, graph, neutral, node

from conftest import missing
from lowbit.errors import ModelError
from lowbit.export.coreml.build import build
from lowbit.export.coreml.kernels import KERNELS
from lowbit.plugins import installed_version

RNG = np.random.default_rng(5)
W = RNG.normal(0, 0.3, (6, 4, 3, 3)).astype(np.float32)
DEPTHWISE = RNG.normal(0, 0.3, (4, 1, 3, 3)).astype(np.float32)
GROUPED = RNG.normal(0, 0.3, (8, 2, 3, 3)).astype(np.float32)
TRANSPOSED = RNG.normal(0, 0.3, (4, 3, 2, 2)).astype(np.float32)
DENSE = RNG.normal(0, 0.3, (36, 5)).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "strided, padded unevenly": ([node("Conv", ["x", "w"], "y", pads=[1, 0, 0, 1], strides=[2, 1])], {"w": W}),
    "dilated": ([node("Conv", ["x", "w", "b"], "y", dilations=[2, 1])], {"w": W, "b": floats(*range(6))}),
    "same": ([node("Conv", ["x", "w"], "y", auto_pad="SAME_UPPER", strides=[2, 2])], {"w": W}),
    "depthwise": ([node("Conv", ["x", "w"], "y", group=4, pads=[1, 1, 1, 1])], {"w": DEPTHWISE}),
    "grouped": ([node("Conv", ["x", "w"], "y", group=2)], {"w": GROUPED}),
    "transposed": ([node("ConvTranspose", ["x", "w"], "y", strides=[2, 2])], {"w": TRANSPOSED}),
    "largest, whole windows": ([node("MaxPool", ["x"], "y", kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1)], {}),
    "mean without padding": ([node("AveragePool", ["x"], "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], {}),
    "mean with padding": ([node("AveragePool", ["x"], "y", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)], {}),
    "global": ([node("GlobalAveragePool", ["x"], "y")], {}),
    "mean over axes": ([node("ReduceMean", ["x", "a"], "y", keepdims=0)], {"a": ints(2, 3)}),
    "dense": (
        [node("GlobalMaxPool", ["x"], "g"), node("Flatten", ["g"], "f"), node("Gemm", ["f", "w", "b"], "y")],
        {"w": DENSE[:4], "b": floats(1, 2, 3, 4, 5)},
    ),
    "product": ([node("Reshape", ["x", "s"], "r"), node("MatMul", ["r", "w"], "y")], {"s": ints(0, 4, 36), "w": DENSE}),
    "sum and quotient": ([node("Add", ["x", "x"], "s"), node("Div", ["s", "c"], "y")], {"c": floats(3)}),
    "clip": ([node("Clip", ["x", "l", "h"], "y")], {"l": np.float32(-0.5), "h": np.float32(0.25)}),
    "six": ([node("Clip", ["x", "l", "h"], "y")], {"l": np.float32(0), "h": np.float32(6)}),
    "leaky": ([node("LeakyRelu", ["x"], "y", alpha=0.2)], {}),
    "slopes": ([node("PRelu", ["x", "s"], "y")], {"s": floats(0.1, 0.2, 0.3, 0.4).reshape(4, 1, 1)}),
    "hard swish": ([node("HardSwish", ["x"], "y")], {}),
    "hard sigmoid": ([node("HardSigmoid", ["x"], "y", alpha=0.3, beta=0.4)], {}),
    "gate": ([node("Sigmoid", ["x"], "s"), node("Mul", ["x", "s"], "y")], {}),
    "softmax": ([node("Softmax", ["x"], "y", axis=1)], {}),
    "join": ([node("Relu", ["x"], "r"), node("Concat", ["x", "r"], "y", axis=1)], {}),
    "split": ([node("Split", ["x", "s"], ["a", "b"], axis=1), node("Concat", ["b", "a"], "y", axis=1)], {"s": ints(1, 3)}),
    "pad": ([node("Pad", ["x", "p", "v"], "y")], {"p": ints(0, 1, 0, 2, 0, 1, 3, 0), "v": np.float32(0.5)}),
    "mirrored": ([node("Pad", ["x", "p"], "y", mode="reflect")], {"p": ints(0, 0, 1, 2, 0, 0, 2, 1)}),
    "slice": ([node("Slice", ["x", "s", "e", "a", "t"], "y")], {"s": ints(1, -5), "e": ints(99, -1), "a": ints(1, 3), "t": ints(2, 1)}),
    "turned": ([node("Transpose", ["x"], "y", perm=[0, 2, 3, 1])], {}),
    "unsqueezed": ([node("Unsqueeze", ["x", "a"], "u"), node("Squeeze", ["u", "a"], "y")], {"a": ints(2)}),
    "shuffled": ([node("DepthToSpace", ["x"], "y", blocksize=2)], {}),
    "shuffled by columns": ([node("DepthToSpace", ["x"], "y", blocksize=2, mode="CRD")], {}),
    "nearest": (
        [node("Resize", ["x", "", "f"], "y", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
        {"f": floats(1, 1, 2, 3)},
    ),
    "linear": ([node("Resize", ["x", "", "f"], "y", mode="linear")], {"f": floats(1, 1, 2, 2)}),
    "linear, corners": (
        [node("Resize", ["x", "", "f"], "y", mode="linear", coordinate_transformation_mode="align_corners")],
        {"f": floats(1, 1, 2, 2)},
    ),
    "normalised": (
        [node("BatchNormalization", ["x", "g", "b", "m", "v"], "y")],
        {"g": floats(1, 2, 3, 4), "b": floats(0, 1, 0, 1), "m": floats(0.1, 0, 0.2, 0), "v": floats(1, 2, 1, 0.5)},
    ),
}


@pytest.fixture(scope="module", autouse=True)
def coremltools() -> None:
    if installed_version("coremltools") is None:
        missing("coremltools")


def interpret(program: Any, x: np.ndarray) -> np.ndarray:
    """A program that was never saved, by the same kernels: what is saved is looked at in test_coreml_target.py."""
    function = program.functions["main"]
    known: dict[str, Any] = {"x": x}
    for operation in function.operations:
        if operation.op_type == "const":
            known[operation.outputs[0].name] = operation.outputs[0].val
            continue
        if operation.op_type.startswith("constexpr_"):
            known[operation.outputs[0].name] = operation.materialized_val_inference()
            continue

        def value(given: Any) -> Any:
            if isinstance(given, list | tuple):
                return [value(each) for each in given]
            return known.get(given.name, given.val)

        found = KERNELS[operation.op_type]({name: value(given) for name, given in operation.inputs.items() if given is not None})
        outputs = found if isinstance(found, list) else [found]
        known.update({output.name: each for output, each in zip(operation.outputs, outputs, strict=True)})
    return np.asarray(known[function.outputs[0].name])


@pytest.mark.parametrize("name", CASES)
def test_an_operator_means_what_it_meant(name: str) -> None:
    nodes, constants = CASES[name]
    model = graph(nodes, (4, 6, 6), ["y"], constants)
    x = RNG.normal(0, 1, (1, 4, 6, 6)).astype(np.float32)
    seen = everything(model, x)
    program = build(neutral(model, x, tensors=seen), rounded=True).program
    found = interpret(program, x)
    assert found.shape == seen["y"].shape
    assert np.allclose(found, seen["y"], atol=2e-5)


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (node("Resize", ["x", "", "f"], "y", mode="cubic"), "cubic"),
        (node("Pad", ["x", "p"], "y", mode="wrap"), "mode wrap"),
        (node("Ceil", ["x"], "y"), "lacks Ceil 'y_node'"),
    ],
)
def test_what_cannot_be_written_is_named(operator: onnx.NodeProto, words: str) -> None:
    constants = {"f": floats(1, 1, 2, 2), "p": ints(0, 0, 1, 1, 0, 0, 1, 1)}
    used = {name: values for name, values in constants.items() if name in operator.input}
    model = graph([operator], (4, 6, 6), ["y"], used, opset=19)
    x = RNG.normal(0, 1, (1, 4, 6, 6)).astype(np.float32)
    with pytest.raises(ModelError, match=words) as error:
        build(neutral(model, x, tensors={"x": x, "y": x}), rounded=True)
    assert "would have to run outside" in error.value.message


def test_integers_are_read_in_their_own_type() -> None:
    """coremltools rewrites int8 with zero point -128 as uint8 with 0: both are the same grid."""
    x = floats(-1, 0, 0.5, 1.26, 300)
    signed = {"input": x, "scale": np.float32(0.5), "zero_point": np.int8(-128), "output_dtype": "int8"}
    unsigned = {"input": x, "scale": np.float32(0.5), "output_dtype": "uint8"}
    assert KERNELS["quantize"](signed).tolist() == [-128, -128, -127, -125, 127]
    assert KERNELS["quantize"](unsigned).tolist() == [0, 0, 1, 3, 255]
    back = [KERNELS["dequantize"]({**given, "input": KERNELS["quantize"](given)}) for given in (signed, unsigned)]
    assert np.array_equal(*back)
    assert back[0].tolist() == [0, 0, 0.5, 1.5, 127.5]


def test_a_grid_a_channel_is_spread_along_its_axis() -> None:
    integers = np.array([[10, 10], [20, 20]], np.int8)
    given = {"input": integers, "scale": floats(1, 0.5), "zero_point": np.array([0, 10], np.int8), "axis": np.int32(0)}
    assert KERNELS["dequantize"](given).tolist() == [[10, 10], [5, 5]]
