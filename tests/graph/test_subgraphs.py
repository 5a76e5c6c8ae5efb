"""If, Loop and Scan: what is inside stays as it is, what they capture keeps its meaning, what is outside is quantized."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph_cases import INT8, Case, count, everything, node, quantized, ranges_of, relative_error, run, samples, weights
from lowbit.graph.place import Format
from lowbit.graph.profiles import ONNXRUNTIME_CPU, OPENVINO_CPU, Profile
from lowbit.recipe import QuantSpec
from lowbit.types import Array

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
WIDE = Format(INT8, QuantSpec("uint16"))


def info(name: str, kind: int = FLOAT, shape: list[int | str] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def branches() -> Case:
    """Convolutions, one read by the branches alone, which also read the weight of the first; another convolution behind."""
    inner = numpy_helper.from_array(weights(4, 4, 1, 1, seed=7), "inner")
    shape: list[int | str] = ["N", 4, 6, 6]
    yes = helper.make_graph([node("Conv", "c inner", "t1"), node("Add", "t1 d", "t2")], "yes", [], [info("t2", shape=shape)], [inner])
    no = helper.make_graph([node("ReduceMax", "w", "e1", keepdims=0), node("Mul", "c e1", "e2")], "no", [], [info("e2", shape=shape)])
    nodes = [
        node("Conv", "x w", "c"),
        node("Relu", "x", "r"),
        node("Conv", "r v", "d"),
        node("ReduceMean", "x", "mean", keepdims=0),
        node("Greater", "mean zero", "condition"),
        node("If", "condition", "i", then_branch=yes, else_branch=no),
        node("Conv", "i u", "y"),
    ]
    constants = {"w": weights(4, 4, 3, 3), "v": weights(4, 4, 3, 3, seed=1), "u": weights(2, 4, 1, 1, seed=2), "zero": np.float32(0)}
    return Case(nodes, {"x": ["N", 4, 8, 8]}, ["y"], constants)


def loop() -> Case:
    """h = tanh(W h + a) three times, where a and W come from outside: a MatMul there is quantized, the one inside is not."""
    body = helper.make_graph(
        [
            node("MatMul", "h w", "p"),
            node("Add", "p a", "s"),
            node("Tanh", "s", "next"),
            node("Identity", "go", "on"),
            node("Identity", "next", "each"),
        ],
        "body",
        [info("i", INT64, []), info("go", BOOL, []), info("h", shape=["N", 16])],
        [info("on", BOOL, []), info("next", shape=["N", 16]), info("each", shape=["N", 16])],
    )
    nodes = [
        node("MatMul", "x w", "a"),
        node("Loop", "three true a", "last all", body=body),
        node("MatMul", "last v", "y"),
        node("ReduceMean", "all", "z", axes=[0], keepdims=0),
    ]
    constants = {"w": weights(16, 16), "v": weights(16, 4, seed=1), "three": np.array(3), "true": np.array(True)}
    return Case(nodes, {"x": ["N", 16]}, ["y", "z"], constants, shapes={"y": ["N", 4], "z": ["N", 16]})


def scan() -> Case:
    """A running sum along the first axis of a quantized product."""
    body = helper.make_graph(
        [node("Add", "state row", "more"), node("Mul", "more k", "out")],
        "body",
        [info("state", shape=[8]), info("row", shape=[8])],
        [info("more", shape=[8]), info("out", shape=[8])],
    )
    nodes = [node("MatMul", "x w", "a"), node("Scan", "start a", "end y", body=body, num_scan_inputs=1)]
    return Case(nodes, {"x": ["N", 16]}, ["y", "end"], {"w": weights(16, 8), "k": np.float32(0.5), "start": np.zeros(8, np.float32)})


def subgraphs(model: onnx.ModelProto) -> list[tuple[str, list[str]]]:
    """Every node of every subgraph with what it reads."""
    graphs = [attribute.g for each in model.graph.node for attribute in each.attribute if attribute.HasField("g")]
    return [(each.op_type, [name.split("_D")[0] for name in each.input]) for graph in graphs for each in graph.node]


CASES = {"if": (branches, (2, 4, 8, 8), 3), "loop": (loop, (5, 16), 2), "scan": (scan, (6, 16), 1)}


@pytest.mark.parametrize("target", [ONNXRUNTIME_CPU, OPENVINO_CPU], ids=lambda p: p.name)
@pytest.mark.parametrize("wide", [False, True], ids=["8 bit", "16 bit"])
@pytest.mark.parametrize("name", CASES)
def test_subgraphs_survive_and_the_rest_is_quantized(name: str, wide: bool, target: Profile) -> None:
    make, shape, products = CASES[name]
    model = make().proto()
    for sign in (1, -1):  # both branches of If
        feeds = {"x": sign * samples(shape, low=0.2)}
        values = everything(model, feeds)
        form = WIDE if wide else Format(INT8, QuantSpec("uint8"))
        written = quantized(model, ranges_of(values), form, target)
        assert sum(edge.reader[1] == 1 for edge in written.placement.weights) == products
        assert subgraphs(written.model) == subgraphs(quantized(model, {}, form, target).model)
        found = run(written.model, feeds)
        for output, answer in found.items():
            assert relative_error(answer, values[output]) < 0.05


def test_a_tensor_that_only_a_branch_reads_is_not_rounded_where_its_kernel_gives_floats() -> None:
    model, feeds = loop().proto(), {"x": samples((5, 16))}
    written = quantized(model, ranges_of(everything(model, feeds)))
    assert {entry.tensor for entry in written.placement.activations} == {"x", "last"}


def test_an_activation_inside_a_branch_is_not_taken_for_one_beside_the_product() -> None:
    """The branches alone read the convolution: a Relu there belongs to no kernel outside."""
    shape: list[int | str] = ["N", 4, 8, 8]
    yes = helper.make_graph([node("Relu", "c", "t")], "yes", [], [info("t", shape=shape)])
    no = helper.make_graph([node("Identity", "x", "e")], "no", [], [info("e", shape=shape)])
    nodes = [node("Conv", "x w", "c", pads=[1, 1, 1, 1]), node("If", "true", "y", then_branch=yes, else_branch=no)]
    case = Case(nodes, {"x": ["N", 4, 8, 8]}, ["y"], {"w": weights(4, 4, 3, 3), "true": np.array(True)})
    model, feeds = case.proto(), {"x": samples((2, 4, 8, 8))}
    values = everything(model, feeds)
    written = quantized(model, ranges_of(values))
    assert [group.nodes for group in written.placement.groups] == [("Conv:c",)]
    assert relative_error(run(written.model, feeds)["y"], values["y"]) < 0.02


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_operators_of_other_domains_are_left_alone(dtype: str) -> None:
    """A custom Conv is not a convolution, a custom Relu no activation; raising the operator set leaves them as they are."""
    nodes: list[onnx.NodeProto] = [
        node("Gelu", "x", "g", domain="com.microsoft"),
        node("Conv", "g w", "c"),
        node("QuickGelu", "c", "q", domain="com.microsoft", alpha=1.7),
        node("Conv", "q w", "y"),
    ]
    case = Case(nodes, {"x": ["N", 4, 8, 8]}, ["y"], {"w": weights(4, 4, 3, 3)}, domains=["com.microsoft"], shapes={"y": ["N", 4, 4, 4]})
    model, feeds = case.proto(), {"x": samples((2, 4, 8, 8))}
    values = everything(model, feeds)
    written = quantized(model, ranges_of(values), Format(INT8, QuantSpec(dtype)), check=False)  # type: ignore[arg-type]
    onnx.checker.check_model(written.model)
    assert relative_error(run(written.model, feeds)["y"], values["y"]) < 0.03
    assert [each.op_type for each in written.model.graph.node if each.domain] == ["Gelu", "QuickGelu"]
    assert count(written.model, "QuantizeLinear") == 4


def test_an_unknown_operator_that_is_called_like_a_known_one_is_not_it() -> None:
    nodes = [node("Conv", "x w", "c", domain="acme"), node("Conv", "c w", "d"), node("Relu", "d", "y", domain="acme")]
    model = Case(nodes, {"x": ["N", 4, 8, 8]}, ["y"], {"w": weights(4, 4, 3, 3)}, domains=["acme"]).proto()
    ranges: dict[str, tuple[float, float]] = dict.fromkeys("xcdy", (-1.0, 1.0))
    written = quantized(model, ranges, check=False)
    assert [group.nodes for group in written.placement.groups] == [("Conv:d",)]
    stored: dict[str, Array] = {tensor.name: numpy_helper.to_array(tensor) for tensor in written.model.graph.initializer}
    np.testing.assert_array_equal(stored["w"], weights(4, 4, 3, 3))
