"""What a target runs as one kernel is one group, and nothing inside it is rounded."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graph_cases import Case, everything, node, quantized, ranges_of, relative_error, run, samples, weights
from lowbit.graph.groups import find_groups
from lowbit.graph.profiles import ONNXRUNTIME_CPU, OPENVINO_CPU, QNN, TENSORRT, Profile
from lowbit.types import Array

IMAGE = {"x": ["N", 4, 8, 8]}
W = {"w": weights(4, 4, 3, 3), "v": weights(4, 4, 1, 1, seed=1)}
NUMBERS = {name: np.float32(value) for name, value in (("three", 3), ("six", 6), ("sixth", 1 / 6), ("zero", 0), ("two", 2))}

HARD_SWISH = {
    "product first": [node("Add", "c three", "s"), node("Clip", "s zero six", "k"), node("Mul", "c k", "p"), node("Div", "p six", "a")],
    "division first": [node("Add", "three c", "s"), node("Clip", "s zero six", "k"), node("Div", "k six", "p"), node("Mul", "p c", "a")],
    "times a sixth": [node("Add", "c three", "s"), node("Clip", "s zero six", "k"), node("Mul", "k sixth", "p"), node("Mul", "c p", "a")],
    "as HardSigmoid": [node("HardSigmoid", "c", "s", alpha=1 / 6, beta=0.5), node("Mul", "c s", "a")],
    "as an operator": [node("HardSwish", "c", "a")],
}
SILU = [node("Sigmoid", "c", "s"), node("Mul", "c s", "a")]
LEAKY = [node("LeakyRelu", "c", "a", alpha=0.1)]
CLIP = [node("Clip", "c zero six", "a")]
RELU = [node("Relu", "c", "a")]


def between(activation: list[onnx.NodeProto]) -> Case:
    """Conv, an activation from c to a, Conv."""
    return Case([node("Conv", "x w b", "c"), *activation, node("Conv", "a v", "y")], IMAGE, ["y"], {**W, "b": weights(4), **NUMBERS})


def groups(case: Case, target: Profile) -> list[tuple[str, ...]]:
    import onnx_ir

    return [group.nodes for group in find_groups(onnx_ir.from_proto(case.proto()).graph, target)]


def error(case: Case, target: Profile, shape: tuple[int, ...] = (4, 4, 8, 8)) -> float:
    model, feeds = case.proto(), {name: samples(shape, seed=i) for i, name in enumerate(case.inputs)}
    values = everything(model, feeds)
    found = run(quantized(model, ranges_of(values), target=target).model, feeds)
    return max(relative_error(found[name], values[name]) for name in case.outputs)


@pytest.mark.parametrize(
    "activation", [*HARD_SWISH.values(), SILU, LEAKY, CLIP, RELU], ids=[*HARD_SWISH, "SiLU", "LeakyRelu", "Clip", "Relu"]
)
def test_openvino_absorbs_any_activation(activation: list[onnx.NodeProto]) -> None:
    case = between(activation)
    assert groups(case, OPENVINO_CPU) == [("Conv:c", *(each.name for each in activation)), ("Conv:y",)]
    assert error(case, OPENVINO_CPU) < 0.03


@pytest.mark.parametrize(
    "activation", [*HARD_SWISH.values(), SILU, LEAKY, CLIP, RELU], ids=[*HARD_SWISH, "SiLU", "LeakyRelu", "Clip", "Relu"]
)
@pytest.mark.parametrize("target", [ONNXRUNTIME_CPU, TENSORRT, QNN], ids=lambda p: p.name)
def test_others_absorb_what_a_grid_or_their_kernel_can_do(target: Profile, activation: list[onnx.NodeProto]) -> None:
    case = between(activation)
    first = groups(case, target)[0]
    absorbed = activation is RELU or activation is CLIP or (activation is LEAKY and target is TENSORRT)
    assert first == (("Conv:c", activation[0].name) if absorbed else ("Conv:c",))
    assert error(case, target) < 0.05


@pytest.mark.parametrize(
    "near",
    [
        [node("Add", "c two", "s"), node("Clip", "s zero six", "k"), node("Mul", "c k", "p"), node("Div", "p six", "a")],
        [node("Add", "c three", "s"), node("Clip", "s zero three", "k"), node("Mul", "c k", "p"), node("Div", "p six", "a")],
        [node("Add", "c three", "s"), node("Clip", "s zero six", "k"), node("Mul", "c k", "p"), node("Div", "p three", "a")],
        [node("Add", "c three", "s"), node("Clip", "s zero six", "k"), node("Mul", "c k", "p"), node("Div", "six p", "a")],
        [node("Sigmoid", "c", "s"), node("Mul", "s s", "a")],
        [node("Sigmoid", "c", "s"), node("Mul", "c s", "p"), node("Add", "s p", "a")],
    ],
)
def test_what_only_looks_like_an_activation_is_none(near: list[onnx.NodeProto]) -> None:
    first = groups(between(near), OPENVINO_CPU)[0]
    assert first in {("Conv:c",), ("Conv:c", "Sigmoid:s")}
    if first == ("Conv:c", "Sigmoid:s"):
        assert near[1].input[0] == "s"  # Sigmoid alone is an activation, where nobody else reads what goes in


def test_the_bias_of_a_matrix_product_is_in_its_group() -> None:
    nodes = [
        node("MatMul", "x w", "m"),
        node("Add", "b m", "c"),
        node("Gelu", "c", "g"),
        node("MatMul", "g v", "n"),
        node("Add", "n s", "y"),
    ]
    constants: dict[str, Array] = {"w": weights(8, 8), "b": weights(8), "v": weights(8, 4), "s": weights(5, 4)}
    case = Case(nodes, {"x": ["N", 5, 8]}, ["y"], constants, opset=20)
    assert groups(case, OPENVINO_CPU) == [("MatMul:m", "Add:c", "Gelu:g"), ("MatMul:n",)]
    assert groups(case, ONNXRUNTIME_CPU) == [("MatMul:m", "Add:c"), ("MatMul:n",)]
    assert error(case, OPENVINO_CPU, (4, 5, 8)) < 0.03


def test_residual_sums_take_both_operands_rounded_and_absorb_the_relu() -> None:
    nodes = [
        node("Conv", "x w", "a", pads=[1] * 4),
        node("Relu", "a", "r"),
        node("Conv", "r v", "b"),
        node("Add", "b r", "s"),
        node("Relu", "s", "t"),
    ]
    case = Case([*nodes, node("Conv", "t v", "y")], IMAGE, ["y"], W)
    model, feeds = case.proto(), {"x": samples((2, 4, 8, 8))}
    values = everything(model, feeds)
    for target in (ONNXRUNTIME_CPU, OPENVINO_CPU, TENSORRT, QNN):
        written = quantized(model, ranges_of(values), target=target)
        assert ("Add:s", "Relu:t") in [group.nodes for group in written.placement.groups]
        assert {"b", "r", "t"} <= {entry.tensor for entry in written.placement.activations}
        assert relative_error(run(written.model, feeds)["y"], values["y"]) < 0.05


def test_an_output_of_the_graph_ends_a_group() -> None:
    case = Case([node("Conv", "x w", "c"), node("Relu", "c", "y")], IMAGE, ["y", "c"], W)
    assert groups(case, OPENVINO_CPU) == [("Conv:c",)]
    assert error(case, OPENVINO_CPU) < 0.02


def test_attention_multiplies_activations_on_integers_where_the_target_does() -> None:
    nodes = [
        node("MatMul", "x w", "q"),
        node("Transpose", "x", "k", perm=[0, 2, 1]),
        node("MatMul", "q k", "s"),
        node("Softmax", "s", "p"),
        node("MatMul", "p x", "y"),
    ]
    case = Case(nodes, {"x": ["N", 5, 8]}, ["y"], {"w": weights(8, 8)})
    assert [each[0] for each in groups(case, QNN) if each[0].startswith("MatMul")] == ["MatMul:q", "MatMul:s", "MatMul:y"]
    assert [each[0] for each in groups(case, ONNXRUNTIME_CPU)] == ["MatMul:q"]
    assert error(case, QNN, (4, 5, 8)) < 0.05
