"""Coupled channels: which go together, what stays, and that a graph without channels nobody reads computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbit
from graph_cases import Case, node, run, samples, weights
from lowbit.errors import UsageError
from lowbit.graph import ir_files
from lowbit.graph.channel_sets import Channels
from lowbit.graph.channels import channels_of, prune
from lowbit.graph.load import load_model
from lowbit.graph.prepare import prepare
from lowbit.types import Array

DEMO = Path(lowbit.__file__).parent / "demo"
IMAGE = {"x": ["N", 3, 8, 8]}


def sets(case: Case) -> dict[str, int]:
    return {each.name.partition(":")[2]: len(each.channels) for each in found_in(case).sets}


def found_in(case: Case) -> Channels:
    return channels_of(onnx_ir.from_proto(case.proto()).graph)


def pruned(proto: onnx.ModelProto, chosen: Mapping[str, Array]) -> onnx.ModelProto:
    model = onnx_ir.from_proto(proto)
    prune(model, chosen)
    after = onnx_ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    return after


def deaf(proto: onnx.ModelProto, found: Channels, chosen: Mapping[str, Array]) -> onnx.ModelProto:
    """The same model, whose products read nothing of the channels that go: zeros along the axes they are read on."""
    stays, after = found.kept(chosen), onnx.ModelProto()
    after.CopyFrom(proto)
    tensors = {tensor.name: tensor for tensor in after.graph.initializer}
    reading = {each.node: each.read for each in found.work if each.read is not None}
    for each in after.graph.node:
        if each.name in reading:
            for cut in found.cuts:
                if cut.constant == each.input[1] and np.array_equal(cut.channels, reading[each.name]):
                    array = onnx.numpy_helper.to_array(tensors[cut.constant]).copy()
                    np.moveaxis(array, cut.axis, 0)[~stays[cut.channels]] = 0
                    tensors[cut.constant].CopyFrom(onnx.numpy_helper.from_array(array, cut.constant))
    return after


def half(found: Channels, seed: int = 0) -> dict[str, Array]:
    """About half of every set stays, one channel at least."""
    rng, chosen = np.random.default_rng(seed), {}
    for each in found.sets:
        chosen[each.name] = rng.random(len(each.channels)) < 0.5
        chosen[each.name][rng.integers(len(each.channels))] = True
    return chosen


def computes_the_same(case: Case, shape: tuple[int, ...] = (2, 3, 8, 8), seed: int = 0) -> Channels:
    proto = case.proto()
    found = found_in(case)
    chosen = half(found, seed)
    feeds = {"x": samples(shape, seed)}
    wanted, given = run(deaf(proto, found, chosen), feeds), run(pruned(proto, chosen), feeds)
    for name, value in wanted.items():
        np.testing.assert_allclose(given[name], value, rtol=1e-4, atol=1e-4)
    return found


def head(inputs: int, tensor: str) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Average, flatten, and five scores."""
    nodes = [node("GlobalAveragePool", tensor, "mean"), node("Flatten", "mean", "row"), node("Gemm", "row wh bh", "y", transB=1)]
    return nodes, {"wh": weights(5, inputs, seed=90), "bh": weights(5, seed=91)}


def residual() -> Case:
    after, more = head(6, "sum")
    nodes = [
        node("Conv", "x w1 b1", "a", pads=[1] * 4),
        node("Relu", "a", "r"),
        node("Conv", "r w2 b2", "b", pads=[1] * 4),
        node("Relu", "b", "rb"),
        node("Conv", "rb w3 b3", "c", pads=[1] * 4),
        node("Add", "c r", "sum"),
        *after,
    ]
    shapes = {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (4, 6, 3, 3), "b2": (4,), "w3": (6, 4, 3, 3), "b3": (6,)}
    return Case(nodes, IMAGE, ["y"], {name: weights(*shape, seed=at) for at, (name, shape) in enumerate(shapes.items())} | more)


def test_a_sum_couples_what_it_adds() -> None:
    assert sets(residual()) == {"a": 6, "b": 4}


def test_a_residual_model_computes_the_same() -> None:
    found = computes_the_same(residual())
    assert len(found.work) == 4
    assert [work.macs for work in found.work] == [162 * 64, 216 * 64, 216 * 64, 30]


def test_pruning_reaches_every_constant_of_a_set() -> None:
    stays = np.array([True, False, True, True, False, False])
    after = pruned(residual().proto(), {"Conv:a": stays})
    shapes = {tensor.name: tuple(tensor.dims) for tensor in after.graph.initializer}
    assert shapes["w1"] == (3, 3, 3, 3)
    assert (shapes["w2"], shapes["w3"], shapes["b3"]) == ((4, 3, 3, 3), (3, 4, 3, 3), (3,))
    assert (shapes["wh"], shapes["bh"]) == ((5, 3), (5,))
    kept = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    np.testing.assert_array_equal(kept["w1"], weights(6, 3, 3, 3, seed=0)[stays])
    np.testing.assert_array_equal(kept["wh"], weights(5, 6, seed=90)[:, stays])


def test_depthwise_ties_input_to_output_and_counts_its_groups() -> None:
    after, more = head(8, "d")
    nodes = [node("Conv", "x w1 _", "a"), node("Clip", "a lo hi", "r"), node("Conv", "r wd bd", "d", group=4), *after]
    constants = {"w1": weights(4, 3, 1, 1), "lo": np.float32(0), "hi": np.float32(6), "wd": weights(8, 1, 3, 3), "bd": weights(8)}
    case = Case(nodes, IMAGE, ["y"], constants | more)
    found = computes_the_same(case)
    assert sets(case) == {"a": 4}
    assert [work.mixes for work in found.work] == [True, False, True]
    stays = np.array([True, False, False, True])
    model = pruned(case.proto(), {"Conv:a": stays})
    conv = next(each for each in model.graph.node if each.output[0] == "d")
    assert {a.name: a.i for a in conv.attribute}["group"] == 2
    bias = next(onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == "bd")
    np.testing.assert_array_equal(bias, weights(8)[[0, 1, 6, 7]])


def test_concatenation_lines_up() -> None:
    nodes = [node("Conv", "x w1 _", "a"), node("Conv", "x w2 _", "b"), node("Concat", "a b", "c", axis=1), node("Conv", "c w3 _", "d")]
    after, more = head(4, "d")
    constants = {"w1": weights(3, 3, 1, 1), "w2": weights(5, 3, 1, 1, seed=1), "w3": weights(4, 8, 1, 1, seed=2)}
    case = Case([*nodes, *after], IMAGE, ["y"], constants | more)
    assert sets(case) == {"a": 3, "b": 5, "d": 4}
    computes_the_same(case)


def test_a_sum_of_concatenations_leaves_every_product_a_channel() -> None:
    nodes = [
        node("Conv", "x w1 _", "a"),
        node("Conv", "x w2 _", "b"),
        node("Concat", "a b", "c", axis=1),
        node("Conv", "x w3 _", "d"),
        node("Add", "c d", "s"),
    ]
    after, more = head(8, "s")
    constants = {"w1": weights(3, 3, 1, 1), "w2": weights(5, 3, 1, 1, seed=1), "w3": weights(8, 3, 1, 1, seed=2)}
    case = Case([*nodes, *after], IMAGE, ["y"], constants | more)
    assert sets(case) == {"a": 3, "b": 5}
    for seed in range(5):
        computes_the_same(case, seed=seed)


@pytest.mark.parametrize("reshape", ["flatten", "0 -1", "-1 width"])
def test_flattening_repeats_a_channel_for_every_place(reshape: str) -> None:
    shape = np.array([0, -1] if reshape == "0 -1" else [-1, 64], np.int64)
    flat = node("Flatten", "a", "row") if reshape == "flatten" else node("Reshape", "a shape", "row")
    nodes = [node("Conv", "x w1 b1", "a", strides=[2, 2]), flat, node("Gemm", "row w2 _", "h"), node("Gemm", "h w3 _", "y")]
    constants = {"w1": weights(4, 3, 1, 1), "b1": weights(4), "w2": weights(64, 6), "w3": weights(6, 5)}
    case = Case(nodes, IMAGE, ["y"], constants | ({} if reshape == "flatten" else {"shape": shape}))
    assert sets(case) == {"a": 4, "h": 6}
    computes_the_same(case)


def test_gates_scales_and_moves_hand_channels_on() -> None:
    """Squeeze and excitation, a batch norm, a sum with one number a channel, and matrices on transposed places."""
    nodes = [
        node("Conv", "x w1 _", "a"),
        node("BatchNormalization", "a g b m v", "n"),
        node("Mul", "n scale", "s"),
        node("GlobalAveragePool", "s", "p"),
        node("Conv", "p w2 _", "q"),
        node("Sigmoid", "q", "gate"),
        node("Mul", "s gate", "gated"),
        node("Transpose", "gated", "t", perm=[0, 2, 3, 1]),
        node("MatMul", "t w3", "u"),
        node("Add", "u b3", "ub"),
        node("Relu", "ub", "r"),
        node("ReduceMean", "r", "mean", axes=[1, 2], keepdims=0),
        node("MatMul", "mean w4", "y"),
    ]
    constants = {
        **{name: weights(6, seed=at) for at, name in enumerate("gbm")},
        "v": np.abs(weights(6, seed=5)) + 0.5,
        "w1": weights(6, 3, 1, 1),
        "scale": weights(6, 1, 1, seed=6),
        "w2": weights(6, 6, 1, 1, seed=7),
        "w3": weights(6, 7, seed=8),
        "b3": weights(7, seed=9),
        "w4": weights(7, 5, seed=10),
    }
    case = Case(nodes, IMAGE, ["y"], constants)
    assert sets(case) == {"a": 6, "u": 7}
    computes_the_same(case)


def conv_then(*nodes: onnx.NodeProto, outputs: str = "y", **constants: Array) -> Case:
    return Case([node("Conv", "x w1 _", "a"), *nodes], IMAGE, outputs.split(), {"w1": weights(4, 3, 1, 1), **constants})


@pytest.mark.parametrize(
    "case",
    [
        conv_then(node("Relu", "a", "y")),
        conv_then(node("Softmax", "a", "s", axis=1), node("Conv", "s w2 _", "y"), w2=weights(5, 4, 1, 1)),
        conv_then(node("Conv", "a w2 _", "y", group=2), w2=weights(4, 2, 1, 1)),
        conv_then(node("ReduceMean", "a", "m", axes=[1]), node("Conv", "m w2 _", "y"), w2=weights(5, 1, 1, 1)),
        conv_then(node("Reshape", "a s", "r"), node("MatMul", "r w2", "y"), s=np.array([0, 8, -1], np.int64), w2=weights(32, 5)),
        conv_then(node("Conv", "a w1 _", "y"), w1=weights(3, 3, 1, 1)),
        conv_then(node("Conv", "a w2 _", "y"), node("Identity", "a", "z"), outputs="y z", w2=weights(5, 4, 1, 1)),
    ],
    ids=["output", "softmax", "grouped", "mean over channels", "channel shuffle", "shared weights", "also an output"],
)
def test_what_is_not_understood_stays(case: Case) -> None:
    assert "a" not in sets(case)
    run(pruned(case.proto(), half(found_in(case))), {"x": samples((2, 3, 8, 8))})


def test_a_mask_that_keeps_nothing_and_an_unknown_set_are_refused() -> None:
    model = onnx_ir.from_proto(residual().proto())
    with pytest.raises(UsageError, match="Of the 6 channels of 'Conv:a' 0 of 6 are to stay"):
        prune(model, {"Conv:a": np.zeros(6, bool)})
    with pytest.raises(UsageError, match="Of the 6 channels of 'Conv:a' 4 of 4 are to stay"):
        prune(model, {"Conv:a": np.ones(4, bool)})
    with pytest.raises(UsageError, match="Unknown set of channels 'Conv:z'"):
        prune(model, {"Conv:z": np.ones(4, bool)})


@st.composite
def graphs(draw: st.DrawFn) -> Case:
    """Random stacks of convolutions: plain, residual, depthwise, two branches that are concatenated; mean or flattened head."""
    rng_seed, width = draw(st.integers(0, 1000)), draw(st.integers(2, 7))
    nodes, constants = [node("Conv", "x w0 _", "t0", pads=[1] * 4)], {"w0": weights(width, 3, 3, 3, seed=rng_seed)}
    last = "t0"

    def add(op: str, inputs: str, output: str, **attributes: Any) -> str:
        nodes.append(node(op, inputs, output, **attributes))
        return output

    for at in range(1, 1 + draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["plain", "residual", "depthwise", "concat", "pool"]))
        made = draw(st.integers(1, 7))
        seed = rng_seed + 10 * at
        if kind == "pool":
            last = add(draw(st.sampled_from(["MaxPool", "AveragePool"])), last, f"t{at}", kernel_shape=[3, 3], pads=[1] * 4)
        elif kind == "depthwise":
            constants |= {f"w{at}": weights(width, 1, 3, 3, seed=seed), f"b{at}": weights(width, seed=seed + 1)}
            last = add("Relu", add("Conv", f"{last} w{at} b{at}", f"d{at}", pads=[1] * 4, group=width), f"t{at}")
        elif kind == "residual":
            constants |= {f"w{at}": weights(made, width, 1, 1, seed=seed), f"v{at}": weights(width, made, 1, 1, seed=seed + 1)}
            inner = add("Sigmoid", add("Conv", f"{last} w{at} _", f"i{at}"), f"s{at}")
            last = add("Add", f"{last} {add('Conv', f'{inner} v{at} _', f'o{at}')}", f"t{at}")
        else:
            constants |= {f"w{at}": weights(made, width, 1, 1, seed=seed), f"b{at}": weights(made, seed=seed + 1)}
            new = add("Relu", add("Conv", f"{last} w{at} b{at}", f"c{at}"), f"r{at}")
            last, width = (add("Concat", f"{new} {last}", f"t{at}", axis=1), made + width) if kind == "concat" else (new, made)
    places = 64 if draw(st.booleans()) else 1
    pooled = last if places == 64 else add("GlobalAveragePool", last, "mean")
    row = add("Flatten", pooled, "row")
    constants["wh"] = weights(5, width * places, seed=rng_seed + 99)
    add("Gemm", f"{row} wh _", "y", transB=1)
    return Case(nodes, IMAGE, ["y"], constants)


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(0, 100))
def test_without_channels_that_nobody_reads_any_graph_computes_the_same(case: Case, seed: int) -> None:
    assert computes_the_same(case, seed=seed).sets


def check_real(source: Path, folder: Path, least: int) -> None:
    prepared = prepare(load_model(source), folder / "prepared.onnx")
    proto = onnx.load(prepared)
    found = channels_of(ir_files.read(prepared).graph)
    assert len(found.sets) >= least
    chosen = half(found)
    (image,) = proto.graph.input
    shape = [each.dim_value or 2 for each in image.type.tensor_type.shape.dim]
    feeds = {image.name: samples(shape)}
    wanted, given = run(deaf(proto, found, chosen), feeds), run(pruned(proto, chosen), feeds)
    for name, value in wanted.items():
        np.testing.assert_allclose(given[name], value, rtol=1e-3, atol=1e-3 * np.abs(value).max())


def test_the_demo_model_computes_the_same(tmp_path: Path) -> None:
    check_real(DEMO / "resnet_fashion.onnx", tmp_path, 9)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("cifar10-resnet/resnet20.onnx", 9),
        ("imagenet-models/mcunet-320kb-1mb.onnx", 25),
        ("imagenet-models/squeezenet1.1.onnx", 25),
        ("detection/nanodet_m_416.onnx", 20),
        ("detection/ultraface_slim_320.onnx", 15),
    ],
)
def test_real_models_compute_the_same(shared_data: Path, tmp_path: Path, name: str, least: int) -> None:
    check_real(shared_data / name, tmp_path, least)
