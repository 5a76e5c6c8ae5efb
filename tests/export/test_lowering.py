"""The integer program as a whole: grids, activations, ports, what is refused; and the candidate's own integers in it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_case import compare, graph, neutral, node
from onnx import TensorProto, helper
from target_case import INPUT, OUTPUT, samples, target_bundle

from lowbit.errors import ModelError
from lowbit.export.neutral import read_neutral
from lowbit.export.program import reference
from lowbit.export.program.lower import lower
from lowbit.export.program.lower_grids import signed
from lowbit.export.program.lower_reshape import groups_of
from lowbit.export.program.problems import check_program
from lowbit.export.program.program import Kind, Operation, Program
from lowbit.quant.affine import Affine, from_range, quantize
from small_models import Array

RNG = np.random.default_rng(7)
W = RNG.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32)
B = RNG.normal(0, 0.1, 4).astype(np.float32)
X = RNG.normal(0, 1, (8, 3, 6, 6)).astype(np.float32)


def uint8(low: float, high: float) -> Affine:
    return from_range(low, high, "uint8", symmetric=False)


def single(program: Program, kind: Kind) -> Operation:
    found = [each for each in program.operations if each.kind == kind]
    assert len(found) == 1, found
    return found[0]


def test_an_unsigned_grid_is_the_same_grid_signed() -> None:
    grid = uint8(-1, 3)
    moved = signed(grid)
    values = np.linspace(-2, 4, 1000)
    np.testing.assert_array_equal(quantize(values, grid).astype(int) - 128, quantize(values, moved))
    with pytest.raises(ModelError, match="int16"):
        signed(from_range(-1, 1, "int16", symmetric=True))


def test_relu_is_the_end_of_the_grid_where_that_is_at_zero() -> None:
    nodes = [node("Conv", ["x", "w", "b"], "c"), node("Relu", ["c"], "y")]
    found = compare(nodes, (3, 6, 6), {"w": W, "b": B}, activations={"y": uint8(0, 3)})
    assert found.all_kinds() == [Kind.CONV_2D]
    operation = single(found.program, Kind.CONV_2D)
    assert (operation.options["activation"], operation.origin) == ("NONE", ("c_node", "y_node"))
    np.testing.assert_array_equal(found.answers["y"].min(), 0)


@pytest.mark.parametrize(("op", "bounds", "word"), [("Relu", (), "RELU"), ("Clip", (0.0, 6.0), "RELU6")])
def test_an_activation_stays_where_the_grid_reaches_further(op: str, bounds: tuple[float, ...], word: str) -> None:
    nodes = [node("Conv", ["x", "w", "b"], "c"), node(op, ["c", *(["l", "h"] if bounds else [])], "y")]
    constants = {"w": W * 4, "b": B} | ({"l": np.float32(0), "h": np.float32(6)} if bounds else {})
    found = compare(nodes, (3, 6, 6), constants, activations={"y": uint8(-2, 9)})
    assert single(found.program, Kind.CONV_2D).options["activation"] == word
    assert found.answers["y"].min() == 0
    assert found.answers["y"].max() <= (6.05 if bounds else math.inf)


def test_a_clip_that_no_kernel_knows_ends_the_grid() -> None:
    nodes = [node("Conv", ["x", "w", "b"], "c"), node("Clip", ["c", "l", "h"], "y")]
    found = compare(nodes, (3, 6, 6), {"w": W, "b": B, "l": np.float32(-0.5), "h": np.float32(0.25)}, activations={"y": uint8(-1, 1)})
    assert found.all_kinds() == [Kind.CONV_2D]
    assert "'y' lies on the grid that its operator prescribes or that ends at its clip, not on the candidate's." in found.program.notes
    assert found.answers["y"].min() == pytest.approx(-0.5, abs=0.01)
    assert found.answers["y"].max() == pytest.approx(0.25, abs=0.01)


def test_relu_is_not_taken_in_where_others_read_what_is_before_it() -> None:
    nodes = [node("Conv", ["x", "w", "b"], "c"), node("Relu", ["c"], "r"), node("Add", ["c", "r"], "y")]
    found = compare(nodes, (3, 6, 6), {"w": W, "b": B})
    assert found.all_kinds() == [Kind.CONV_2D, Kind.RELU, Kind.ADD]
    assert found.steps().max() <= 3


def test_the_candidates_integers_are_the_programs() -> None:
    grid = Affine(np.array([0.01, 0.02, 0.003, 0.004], np.float32), np.zeros(4, np.int32), "int8", symmetric=True, axis=0)
    integers = RNG.integers(-127, 128, W.shape).astype(np.int8)
    on_grid = (integers * grid.scale.reshape(-1, 1, 1, 1)).astype(np.float32)
    x_grid = uint8(-4, 4)
    levels = np.array([300, -70000, 12345678, -1], np.int64)
    scale = np.asarray(x_grid.scale * grid.scale, np.float32)
    bias = (levels * scale.astype(np.float64)).astype(np.float32)
    found = compare(
        [node("Conv", ["x", "w", "b"], "y")], (3, 6, 6), {"w": on_grid, "b": bias}, activations={"x": x_grid}, weights={"w": grid}
    )
    _, weight, stored = (found.program.tensors[name] for name in single(found.program, Kind.CONV_2D).inputs)
    np.testing.assert_array_equal(weight.data, integers.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(stored.data, levels)
    assert stored.grid is not None
    np.testing.assert_allclose(stored.grid.scale, scale, rtol=1e-6)


def test_a_bias_follows_its_input_to_another_grid() -> None:
    """Sigmoid has the operator's grid, whatever the candidate's was; the bias is expressed on that one."""
    nodes = [node("Sigmoid", ["x"], "s"), node("Gemm", ["s", "w", "b"], "y", transB=1)]
    constants = {"w": RNG.normal(0, 1, (4, 5)).astype(np.float32), "b": np.array([1.0, -1, 0.5, 0], np.float32)}
    found = compare(nodes, (5,), constants, activations={"s": uint8(0, 1)})
    x, weight, bias = (found.program.tensors[name] for name in single(found.program, Kind.FULLY_CONNECTED).inputs)
    assert x.grid is not None
    assert weight.grid is not None
    assert bias.data is not None
    assert (float(x.grid.scale), int(x.grid.zero_point)) == (1 / 256, -128)
    np.testing.assert_allclose(bias.data * weight.grid.scale / 256, constants["b"], atol=1e-4)
    assert found.steps().max() <= 2


def test_dense_weights_get_one_scale_where_asked() -> None:
    constants = {"w": RNG.normal(0, 1, (4, 5)).astype(np.float32) * np.array([[1], [2], [4], [8]], np.float32)}
    nodes = [node("Gemm", ["x", "w"], "y", transB=1)]
    one = compare(nodes, (5,), constants, per_tensor_dense=True)
    many = compare(nodes, (5,), constants)
    assert one.program.tensors["w"].grid.axis is None  # type: ignore[union-attr]
    assert many.program.tensors["w"].grid.axis == 0  # type: ignore[union-attr]
    assert [note for note in one.program.notes if "one scale instead of one a channel" in note]
    assert one.steps().max() <= 3


def test_weights_in_blocks_are_rounded_again_and_it_is_said() -> None:
    weight = RNG.normal(0, 1, (4, 6)).astype(np.float32)
    grid = Affine(np.full((4, 3), 0.1, np.float32), np.zeros((4, 3), np.int32), "int4", symmetric=True, axis=1, block=2)
    found = compare([node("Gemm", ["x", "w"], "y", transB=1)], (6,), {"w": weight}, weights={"w": grid})
    assert [note for note in found.program.notes if "in blocks of 2" in note and "y_node" in note]
    assert found.steps().max() <= 2


def test_ports_are_integers_where_asked() -> None:
    nodes = [node("Conv", ["x", "w", "b"], "c"), node("Relu", ["c"], "y")]
    source = neutral(graph(nodes, (3, 6, 6), ["y"], {"w": W, "b": B}), X, {"x": uint8(-3, 3), "y": uint8(0, 3)})
    program = lower(source, float_input=False, float_output=False)
    check_program(program)
    assert [each.kind for each in program.operations] == [Kind.CONV_2D]
    assert (program.inputs[0].tensor, program.outputs[0].tensor) == ("x", "y")
    assert program.inputs[0].permutation == program.outputs[0].permutation == (0, 2, 3, 1)
    both = lower(source, float_input=True, float_output=True)
    np.testing.assert_array_equal(reference.run(program, {"x": X})["y"], reference.run(both, {"x": X})["y"])


def test_a_model_that_is_channels_last_by_itself_is_not_turned() -> None:
    nodes = [
        node("Transpose", ["x"], "t", perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w", "b"], "c"),
        node("Transpose", ["c"], "y", perm=[0, 2, 3, 1]),
    ]
    found = compare(nodes, (6, 6, 3), {"w": W, "b": B})
    assert found.all_kinds() == [Kind.CONV_2D]
    assert found.program.inputs[0].permutation is None
    assert found.program.outputs[0].permutation is None
    assert found.steps().max() <= 2


def test_what_is_only_moved_lies_on_the_grid_that_it_is_needed_on() -> None:
    nodes = [node("GlobalAveragePool", ["x"], "p"), node("Flatten", ["p"], "f"), node("Gemm", ["f", "w"], "y", transB=1)]
    grid = uint8(-2, 2)
    found = compare(nodes, (3, 6, 6), {"w": RNG.normal(0, 1, (4, 3)).astype(np.float32)}, activations={"f": grid})
    assert found.all_kinds() == [Kind.MEAN, Kind.RESHAPE, Kind.FULLY_CONNECTED]
    made = found.program.tensors[single(found.program, Kind.MEAN).outputs[0]].grid
    assert made is not None
    assert float(made.scale) == float(grid.scale)


def test_joined_tensors_come_onto_one_grid() -> None:
    nodes = [node("Relu", ["x"], "r"), node("Concat", ["x", "r"], "y", axis=1)]
    found = compare(nodes, (3, 6, 6), activations={"r": uint8(0, 9), "y": uint8(-9, 9)})
    assert found.all_kinds() == [Kind.RELU, Kind.QUANTIZE, Kind.QUANTIZE, Kind.CONCATENATION]


def test_shapes_that_are_computed_are_constants_once_the_batch_is_one() -> None:
    nodes = [
        node("Shape", ["x"], "shape"),
        node("Gather", ["shape", "zero"], "n"),
        node("Concat", ["n", "rest"], "wanted", axis=0),
        node("Reshape", ["x", "wanted"], "f"),
        node("Gemm", ["f", "w"], "y", transB=1),
    ]
    constants = {"zero": np.array([0]), "rest": np.array([-1]), "w": RNG.normal(0, 1, (4, 108)).astype(np.float32)}
    found = compare(nodes, (3, 6, 6), constants)
    assert found.all_kinds() == [Kind.RESHAPE, Kind.FULLY_CONNECTED]
    assert found.steps().max() <= 2


# Moves keep every number: whatever chain of them, in whatever order the axes lie.


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[object], tuple[int, ...], dict[str, Array]]:
    """Reshapes, transposes and slices of a small image, with pools between that want it channels last."""
    shape: tuple[int, ...] = (draw(st.sampled_from([1, 2, 4, 6])), draw(st.sampled_from([2, 3, 4])), draw(st.sampled_from([2, 4])))
    start, name = shape, "x"
    nodes: list[object] = []
    constants: dict[str, Array] = {}
    for index in range(draw(st.integers(1, 5))):
        out = f"t{index}"
        move = draw(st.sampled_from(["reshape", "transpose", "slice", "pool"]))
        if move == "transpose":
            order = draw(st.permutations(range(len(shape))))
            nodes.append(node("Transpose", [name], out, perm=[0, *(axis + 1 for axis in order)]))
            shape = tuple(shape[axis] for axis in order)
        elif move == "slice" and max(shape) > 1:
            axis = int(np.argmax(shape))
            constants |= {f"s{index}": np.array([1]), f"e{index}": np.array([99]), f"a{index}": np.array([axis + 1])}
            nodes.append(node("Slice", [name, f"s{index}", f"e{index}", f"a{index}"], out))
            shape = (*shape[:axis], shape[axis] - 1, *shape[axis + 1 :])
        elif move == "pool" and len(shape) == 3:
            nodes.append(node("MaxPool", [name], out, kernel_shape=[1, 1]))
        else:
            shape = draw(st.sampled_from(_factorings(math.prod(shape))))
            constants[f"r{index}"] = np.array([1, *shape])
            nodes.append(node("Reshape", [name, f"r{index}"], out))
        name = out
    nodes.append(node("Identity", [name], "y"))
    return nodes, start, constants


def _factorings(count: int) -> list[tuple[int, ...]]:
    pairs = [(a, count // a) for a in range(1, count + 1) if count % a == 0]
    triples = [(a, b, rest // b) for a, rest in pairs for b in range(1, rest + 1) if rest % b == 0]
    fours = [(a, b, c, rest // c) for a, b, rest in triples for c in range(1, rest + 1) if rest % c == 0]
    return [(count,), *pairs, *triples, *fours[::3]]


@settings(max_examples=40, deadline=None)
@given(chains())
def test_chains_of_moves_keep_every_number(chain: tuple[list[object], tuple[int, ...], dict[str, Array]]) -> None:
    nodes, shape, constants = chain
    x = np.random.default_rng(0).permutation(2 * math.prod(shape)).reshape(2, *shape).astype(np.float32)
    found = compare(nodes, shape, constants, x=x)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.answers["y"], found.expected["y"], rtol=1e-6, atol=1e-6)
    assert not {Kind.QUANTIZE, Kind.DEQUANTIZE} & set(found.all_kinds())


def test_groups_of_a_reshape_are_as_fine_as_they_can_be() -> None:
    assert groups_of((1, 6, 3, 2), (1, 2, 3, 3, 2)) == [([1], [1, 2]), ([2], [3]), ([3], [4])]
    assert groups_of((2, 3, 4), (6, 4)) == [([0, 1], [0]), ([2], [1])]
    assert groups_of((4, 6), (6, 4)) == [([0, 1], [0, 1])]


# What has no integer form.


def refused(nodes: list[object], shape: tuple[int, ...] = (3, 6, 6), constants: dict[str, Array] | None = None, **options: object) -> str:
    with pytest.raises(ModelError) as raised:
        compare(nodes, shape, constants, **options)  # type: ignore[arg-type]
    return str(raised.value)


def test_an_operator_that_is_lacking_is_named_with_what_would_fall_back() -> None:
    message = refused([node("Relu", ["x"], "r"), node("Erf", ["r"], "e"), node("Relu", ["e"], "y")])
    assert "Erf 'e_node'" in message
    assert "From there to 'y' 2 of 3 operators would fall back" in message
    assert "Cut the model before 'e_node'" in message


@pytest.mark.parametrize(
    ("nodes", "shape", "constants", "words"),
    [
        ([node("MatMul", ["x", "x"], "y")], (3, 3), {}, "both its operands are computed"),
        ([node("Conv", ["x", "w"], "y")], (1, 2, 2, 2), {"w": np.ones((1, 1, 1, 1, 1), np.float32)}, "moves over 3 axes"),
        ([node("Resize", ["x", "", "s"], "y", mode="cubic")], (1, 4, 4), {"s": np.array([1, 1, 2, 2], np.float32)}, "'cubic'"),
        (
            [node("Resize", ["x", "", "", "n"], "y", nearest_mode="ceil")],
            (1, 4, 4),
            {"n": np.array([1, 1, 7, 7])},
            "LiteRT reads other pixels",
        ),
        ([node("Pad", ["x", "p"], "y", mode="reflect")], (1, 4, 4), {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, "'reflect'"),
        (
            [node("AveragePool", ["x"], "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])],
            (1, 6, 6),
            {},
            "none that LiteRT leaves out of averages",
        ),
        ([node("Clip", ["x", "l"], "y")], (3,), {"l": np.float32(0.5)}, "leave zero out"),
        ([node("Conv", ["x", "w"], "y", group=20)], (40, 3, 3), {"w": np.ones((20, 2, 1, 1), np.float32)}, "20 groups"),
    ],
)
def test_forms_that_are_lacking_say_which(nodes: list[object], shape: tuple[int, ...], constants: dict[str, Array], words: str) -> None:
    message = refused(nodes, shape, constants)
    assert words in message
    assert "'y_node'" in message


@pytest.mark.parametrize("op", ["LeakyRelu", "ConvTranspose"])
@pytest.mark.parametrize(("low", "high", "fits"), [(0.5, 3.0, False), (0.0, 6.0, True), (-1.0, 1.0, True)])
def test_a_clip_is_kept_or_refused_and_never_lost(op: str, low: float, high: float, *, fits: bool) -> None:
    constants = {"lo": np.float32(low), "hi": np.float32(high), "w": np.random.default_rng(2).normal(0, 1, (3, 4, 2, 2)).astype(np.float32)}
    nodes = [node(op, ["x", "w"] if op == "ConvTranspose" else ["x"], "a"), node("Clip", ["a", "lo", "hi"], "y")]
    used = constants if op == "ConvTranspose" else {name: constants[name] for name in ("lo", "hi")}
    if fits:
        assert compare(nodes, (3, 6, 6), used).steps().max() <= 16  # what rounded weights cost; a lost bound costs hundreds
    else:
        assert "its results are cut" in refused(list(nodes), (3, 6, 6), used)


def test_open_axes_and_indices_are_refused() -> None:
    model = graph([node("Relu", ["x"], "y")], (3, 6), ["y"])
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "width"
    source = neutral(model, X[:, :, 0])
    with pytest.raises(ModelError, match="Axis 2 of input 'x' has no fixed size") as raised:
        lower(source, float_input=True, float_output=True)
    assert "Export the model with a fixed size" in str(raised.value.hint)
    ids = helper.make_tensor_value_info("x", TensorProto.INT64, ["N", 5])
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    end = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    table = helper.make_tensor("table", TensorProto.FLOAT, [4, 2], np.zeros(8, np.float32))
    words = helper.make_model(helper.make_graph(nodes, "words", [ids], [end], [table]), opset_imports=[helper.make_opsetid("", 18)])
    with pytest.raises(ModelError, match="Input 'x' is int64"):
        lower(replace(source, model=onnx_ir.from_proto(words)), float_input=True, float_output=True)


def test_a_tensor_of_which_nothing_is_known_is_named() -> None:
    source = neutral(graph([node("Relu", ["x"], "r"), node("Sigmoid", ["r"], "y")], (3,), ["y"]), X[:, :, 0, 0], {"x": uint8(-3, 3)})
    source = replace(source, ranges={name: pair for name, pair in source.ranges.items() if name != "r"})
    with pytest.raises(ModelError, match=r"No range of 'r' is known \(what Relu 'r_node' gives\)"):
        lower(source, float_input=True, float_output=True)


def test_shapes_that_depend_on_values_are_refused() -> None:
    message = refused([node("NonZero", ["x"], "z"), node("Cast", ["z"], "y", to=1)], (3,))
    assert "depends on the values" in message
    assert "'z'" in message


# A whole bundle.


def test_a_bundles_program_answers_as_its_artifact(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = target_bundle(tmp_path_factory.mktemp("lowering"))
    source = read_neutral(bundle)
    program = lower(source, float_input=True, float_output=True)
    check_program(program)
    assert not program.notes
    x = samples(200, seed=5)
    expected = bundle.session("onnxruntime", candidate=source.candidate).run({INPUT: x})[OUTPUT]
    found = reference.run(program, {INPUT: x})[OUTPUT]
    assert np.mean(found.argmax(1) == expected.argmax(1)) >= 0.97
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999
