"""The writer on what graphs really contain: shared constants, odd biases, outputs that are read, taken names, every type of grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from graph_cases import (
    INT8,
    STATIC,
    UINT8,
    Case,
    count,
    everything,
    kernels,
    node,
    quantized,
    ranges_of,
    relative_error,
    run,
    samples,
    weights,
)
from lowbit.graph import ir_files
from lowbit.graph.parameters import read_parameters
from lowbit.graph.place import Format
from lowbit.graph.profiles import ONNXRUNTIME_CPU, OPENVINO_CPU, QNN, TENSORRT, Profile
from lowbit.graph.qdq import write_static
from lowbit.recipe import QuantSpec, Recipe
from lowbit.types import Array

X = {"x": ["N", 4, 8, 8]}
ROWS = {"x": ["N", 16]}


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def answer(
    case: Case, form: Format = STATIC, target: Profile = ONNXRUNTIME_CPU, shape: tuple[int, ...] = (3, 4, 8, 8)
) -> tuple[float, onnx.ModelProto]:
    """Relative error of the quantized case on the samples that its ranges come from (the worst output), and the model."""
    model, feeds = case.proto(), {"x": samples(shape)}
    values = everything(model, feeds)
    written = quantized(model, ranges_of(values), form, target).model
    found = run(written, feeds)
    assert list(found) == list(case.outputs)
    return max(relative_error(found[name], values[name]) for name in case.outputs), written


def test_a_weight_that_two_products_read_is_stored_once() -> None:
    nodes = [node("Conv", "x w", "a"), node("Relu", "x", "r"), node("Conv", "r w", "b"), node("Add", "a b", "y")]
    error, model = answer(Case(nodes, X, ["y"], {"w": weights(4, 4, 3, 3)}))
    assert error < 0.02
    assert [name for name, value in constants(model).items() if value.ndim == 4] == ["w_quantized"]


def test_a_weight_that_two_products_read_along_different_axes_has_two_grids() -> None:
    w = weights(16, 16) * np.geomspace(0.01, 1, 16, dtype=np.float32)
    nodes = [node("Gemm", "x w", "a"), node("Gemm", "x w", "b", transB=1), node("Concat", "a b", "y", axis=1)]
    error, model = answer(Case(nodes, ROWS, ["y"], {"w": w}), shape=(64, 16))
    assert error < 0.02
    stored = constants(model)
    np.testing.assert_allclose(stored["w_scale"], np.abs(w).max(axis=0) / 127, rtol=1e-6)
    np.testing.assert_allclose(stored["w@Gemm:b_scale"], np.abs(w).max(axis=1) / 127, rtol=1e-6)


def test_a_bias_that_two_products_read_is_on_the_grid_of_each() -> None:
    nodes = [node("Conv", "x w1 b", "a"), node("Conv", "x w2 b", "c"), node("Add", "a c", "y")]
    case = Case(nodes, X, ["y"], {"w1": weights(4, 4, 1, 1), "w2": 100 * weights(4, 4, 1, 1, seed=1), "b": np.full(4, 7, np.float32)})
    error, model = answer(case)
    assert error < 0.02
    stored = constants(model)
    for key in ("b", "b@Conv:c"):
        np.testing.assert_allclose(stored[f"{key}_quantized"] * stored[f"{key}_scale"], 7, rtol=1e-2)


@pytest.mark.parametrize("shape", [(8,), (1, 8), (1,), (1, 1), ()], ids=str)
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_gemm_takes_a_bias_of_any_row_shape(tmp_path: Path, shape: tuple[int, ...], transposed: int, granularity: str) -> None:
    w = weights(8, 16) if transposed else weights(16, 8)
    case = Case([node("Gemm", "x w c", "y", transB=transposed)], ROWS, ["y"], {"w": w, "c": weights(*shape, seed=2)})
    form = Format(QuantSpec("int8", granularity, symmetric=True), UINT8)  # type: ignore[arg-type]
    error, model = answer(case, form, shape=(32, 16))
    assert error < 0.02
    assert constants(model)["c_quantized"].shape == (8,)
    assert "QGemm" in kernels(model, tmp_path)


def test_gemm_whose_bias_is_a_column_or_whose_result_is_scaled_stays_in_floating_point() -> None:
    column = Case([node("Gemm", "x w c", "y")], {"x": [8, 16]}, ["y"], {"w": weights(16, 8), "c": weights(8, 1)})
    scaled = Case([node("Gemm", "x w", "y", alpha=0.5)], ROWS, ["y"], {"w": weights(16, 8)})
    turned = Case([node("Gemm", "x w", "y", transA=1)], {"x": [16, 8]}, ["y"], {"w": weights(16, 8)})
    for case, shape in ((column, (8, 16)), (scaled, (8, 16)), (turned, (16, 8))):
        error, model = answer(case, shape=shape)
        assert error < 1e-6
        assert count(model, "QuantizeLinear") == 0


@pytest.mark.parametrize("shape", [(16, 8), (3, 16, 8), (2, 3, 16, 8)], ids=str)
def test_matrix_products_of_stacks(shape: tuple[int, ...]) -> None:
    inputs = {"x": ["N" if i == 0 else size for i, size in enumerate((*shape[:-2], 5, 16))]}
    error, model = answer(Case([node("MatMul", "x w", "y")], inputs, ["y"], {"w": weights(*shape)}), shape=(*shape[:-2], 5, 16))
    assert error < 0.02
    assert constants(model)["w_scale"].ndim == (1 if len(shape) == 2 else 0)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_of_every_rank_and_grouping(tmp_path: Path, rank: int, groups: int) -> None:
    case = Case(
        [node("Conv", "x w b", "c", group=groups, pads=[1] * (2 * rank)), node("Relu", "c", "y")],
        {"x": ["N", 4, *[6] * rank]},
        ["y"],
        {"w": weights(8, 4 // groups, *[3] * rank), "b": weights(8, seed=1)},
    )
    error, model = answer(case, shape=(2, 4, *[6] * rank))
    assert error < 0.02
    assert "QLinearConv" in kernels(model, tmp_path)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(groups: int) -> None:
    """onnxruntime has no integer kernel for them; where a target has one, a grouped one gets one grid for all channels."""
    case = Case(
        [node("ConvTranspose", "x w b", "y", group=groups, strides=[2, 2])], X, ["y"], {"w": weights(4, 6 // groups, 3, 3), "b": weights(6)}
    )
    error, model = answer(case)
    assert error < 1e-6
    assert count(model, "QuantizeLinear") == 0
    error, model = answer(case, target=OPENVINO_CPU)
    assert 0 < error < 0.02
    assert constants(model)["w_scale"].shape == ((6,) if groups == 1 else ())
    assert constants(model)["b_quantized"].shape == (6,)


def test_a_rounded_tensor_that_is_an_output_keeps_its_name_and_its_readers() -> None:
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Conv", "r v", "y")]
    case = Case(nodes, X, ["r", "y", "c"], {"w": weights(4, 4, 3, 3), "v": weights(2, 4, 3, 3)})
    error, model = answer(case)
    assert error < 0.03
    assert {output.name for output in model.graph.output} == {"r", "y", "c"}


def test_names_that_the_writer_would_use_may_be_taken(tmp_path: Path) -> None:
    taken = {f"w_{end}": weights(1, 4, 1, 1, seed=3) for end in ("scale", "zero_point", "quantized")}
    nodes = [
        node("Mul", "x x_scale", "p/x_QuantizeLinear_Output"),
        node("Add", "p/x_QuantizeLinear_Output w_scale", "s"),
        node("Add", "s w_quantized", "x_DequantizeLinear_Output"),
        node("Add", "x_DequantizeLinear_Output w_zero_point", "x_zero_point"),
        node("Conv", "x_zero_point w", "y", name="a/b/c"),
    ]
    case = Case(nodes, X, ["y"], {"w": weights(4, 4, 3, 3), "x_scale": np.full((1, 4, 1, 1), 2, np.float32), **taken})
    error, model = answer(case)
    assert error < 0.02
    onnx.save(model, tmp_path / "m.onnx")
    rows = {row.tensor: row.kind for row in read_parameters(tmp_path / "m.onnx")}
    assert rows == {"x_zero_point": "activation", "w": "weight", "y": "activation"}


def test_constant_nodes_become_initializers_and_shapes_are_left_alone(tmp_path: Path) -> None:
    w, starts = numpy_helper.from_array(weights(4, 4, 3, 3), "w"), numpy_helper.from_array(np.array([0, 1], np.int64), "s")
    nodes = [
        node("Constant", "", "w", value=w),
        node("Constant", "", "starts", value=starts),
        node("Conv", "x w", "c"),
        node("Slice", "c starts ends axes", "s"),
        node("Pad", "s pads", "p"),
        node("Conv", "p w", "y"),
    ]
    given = {"ends": np.array([4, 5]), "axes": np.array([1, 2]), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    model = Case(nodes, X, ["y"], {**given, "starts_": np.zeros(1)}).proto()
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    feeds = {"x": samples((2, 4, 8, 8))}
    values = everything(model, feeds)
    recipe = Recipe("static", "static", INT8, UINT8, "minmax")
    written = onnx.load(write_static(path, tmp_path / "q.onnx", recipe, ranges_of(values).get))
    assert relative_error(run(written, feeds)["y"], values["y"]) < 0.03
    stored = constants(written)
    for name, value in {**given, "starts": np.array([0, 1])}.items():
        np.testing.assert_array_equal(stored[name], value)
        assert stored[name].dtype == np.int64
    assert stored["w_quantized"].dtype == np.int8


def test_moves_and_joins_share_a_grid_and_others_do_not() -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Conv", "x v", "b"),
        node("Concat", "a b", "j", axis=1),
        node("Split", "j", "s1 s2", axis=2),
        node("MaxPool", "s1", "m", kernel_shape=[2, 2]),
        node("Conv", "m u", "y"),
        node("Conv", "s2 u", "z"),
    ]
    case = Case(nodes, X, ["y", "z"], {"w": weights(4, 4, 3, 3), "v": 9 * weights(4, 4, 3, 3, seed=1), "u": weights(3, 8, 1, 1)}, opset=13)
    model, feeds = case.proto(), {"x": samples((2, 4, 8, 8))}
    values = everything(model, feeds)
    written = quantized(model, ranges_of(values))
    grids = {entry.tensor: entry.grid for entry in written.placement.activations}
    assert {tensor for tensor, grid in grids.items() if grid == "a"} == {"a", "b", "j", "s1", "s2", "m"}
    span = max(values["a"].max(), values["b"].max()) - min(values["a"].min(), values["b"].min())
    assert float(written.table["m"].scale) == pytest.approx(span / 255, rel=1e-5)
    assert grids["y"] == "y"


def test_a_join_whose_operands_were_bounded_differently_keeps_their_grids_where_the_grid_does_the_clipping(tmp_path: Path) -> None:
    """onnxruntime drops the Relu in front of a grid from zero upwards; on a wider grid it would keep it and lose the integer kernel."""
    nodes = [
        node("Conv", "x w", "c"),
        node("Relu", "c", "a"),
        node("Conv", "x v", "b"),
        node("Concat", "a b", "j", axis=1),
        node("Conv", "j u", "y"),
    ]
    case = Case(nodes, X, ["y"], {"w": weights(4, 4, 3, 3), "v": weights(4, 4, 3, 3, seed=1), "u": weights(3, 8, 1, 1)})
    error, model = answer(case)
    assert error < 0.03
    found = kernels(model, tmp_path)
    assert found.count("QLinearConv") == 3
    assert "QLinearConcat" in found
    assert constants(model)["a_zero_point"] == 0
    assert constants(answer(case, target=OPENVINO_CPU)[1])["a_zero_point"] > 0


@pytest.mark.parametrize("filler", [0.0, 50.0])
def test_padding_with_anything_but_zero_does_not_widen_the_grid_of_what_is_padded(filler: float) -> None:
    nodes = [node("Conv", "x w", "c"), node("Pad", "c pads filler", "p"), node("Conv", "p w", "y")]
    extra = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "filler": np.array(filler, np.float32)}
    _, model = answer(Case(nodes, X, ["y"], {"w": weights(4, 4, 3, 3), **extra}))
    scale = constants(model)
    assert (scale["c_scale"] == scale["p_scale" if filler == 0 else "p_rounded_scale"]) == (filler == 0)


def test_inputs_that_only_move_before_a_product_are_rounded_in_front_of_it() -> None:
    nodes = [node("Transpose", "x", "t", perm=[0, 2, 3, 1]), node("MatMul", "t w", "y")]
    error, model = answer(Case(nodes, X, ["y"], {"w": weights(4, 8)}))
    assert error < 0.02
    assert [each.input[0] for each in model.graph.node if each.op_type == "QuantizeLinear"] == ["t"]


def test_other_than_float32_is_left_alone() -> None:
    nodes = [node("Cast", "x", "h", to=TensorProto.FLOAT16), node("MatMul", "h w", "p"), node("Cast", "p", "y", to=TensorProto.FLOAT)]
    error, model = answer(Case(nodes, ROWS, ["y"], {"w": weights(16, 4).astype(np.float16)}), shape=(4, 16))
    assert error < 1e-3
    assert count(model, "QuantizeLinear") == 0


def test_a_convolution_whose_output_was_not_observed_stays_whole() -> None:
    model, feeds = Case([node("Conv", "x w", "y")], X, ["y"], {"w": weights(4, 4, 3, 3)}).proto(), {"x": samples((1, 4, 8, 8))}
    ranges = ranges_of(everything(model, feeds))
    del ranges["y"]
    assert count(quantized(model, ranges).model, "QuantizeLinear") == 0
    assert count(quantized(model, ranges, target=OPENVINO_CPU).model, "QuantizeLinear") == 1


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["per-tensor", "per-channel", "per-group"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4", "uint4"])
@pytest.mark.parametrize("target", [ONNXRUNTIME_CPU, OPENVINO_CPU, TENSORRT, QNN], ids=lambda p: p.name)
def test_weights_of_every_type_and_granularity(target: Profile, dtype: str, granularity: str, symmetric: bool) -> None:
    form = Format(QuantSpec(dtype, granularity, symmetric, 8 if granularity == "per-group" else None), UINT8)  # type: ignore[arg-type]
    case = Case(
        [
            node("Conv", "x w b", "c"),
            node("Relu", "c", "r"),
            node("GlobalAveragePool", "r", "p"),
            node("Flatten", "p", "f"),
            node("Gemm", "f v", "y"),
        ],
        {"x": ["N", 16, 6, 6]},
        ["y"],
        {"w": weights(16, 16, 3, 3), "b": weights(16, seed=1), "v": weights(16, 4, seed=2)},
    )
    error, model = answer(case, form, target, shape=(4, 16, 6, 6))
    assert 0 < error < (0.04 if dtype.endswith("8") else 0.4)
    kind = {tensor.name: tensor.data_type for tensor in model.graph.initializer}["w_quantized"]
    if target.activations.symmetric:
        assert not constants(model)["w_zero_point"].astype(int).any()
    blocked = granularity == "per-group" and target.weight(form.weights).granularity == "per-group"
    assert constants(model)["w_scale"].shape == {"per-tensor": ()}.get(granularity, (16, 2, 3, 3) if blocked else (16,))
    packed = dtype.endswith("4") and (blocked or target.int4_weights)
    assert (kind in (TensorProto.INT4, TensorProto.UINT4)) == packed
    opset = next(each.version for each in model.opset_import if each.domain == "")
    assert opset == (21 if packed or blocked else 17)


def test_blocks_are_equal_and_fall_back_to_channels() -> None:
    form = Format(QuantSpec("int4", "per-group", symmetric=True, block=32), UINT8)
    for extent, shape in ((96, (3, 8)), (40, (2, 8)), (37, (8,)), (24, (8,))):
        case = Case([node("MatMul", "x w", "y")], {"x": ["N", extent]}, ["y"], {"w": weights(extent, 8)})
        _, model = answer(case, form, shape=(4, extent))
        assert constants(model)["w_scale"].shape == shape


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("target", [ONNXRUNTIME_CPU, OPENVINO_CPU, TENSORRT, QNN], ids=lambda p: p.name)
def test_activations_of_every_type_in_the_dialect_of_the_target(target: Profile, dtype: str) -> None:
    form = Format(INT8, QuantSpec(dtype))  # type: ignore[arg-type]
    case = Case([node("Conv", "x w b", "c"), node("Relu", "c", "y")], X, ["y"], {"w": weights(4, 4, 3, 3), "b": weights(4)})
    error, model = answer(case, form, target)
    zero = constants(model)["x_rounded_zero_point"]
    signed = target is TENSORRT
    assert zero.dtype == np.dtype(dtype.removeprefix("u") if signed else "u" + dtype.removeprefix("u"))
    assert error < (0.03 if dtype.endswith("8") else 0.01)
    if signed:
        assert zero == 0


def test_a_16_bit_reader_of_an_8_bit_tensor_gets_a_pair_of_its_own() -> None:
    nodes = [node("Conv", "x w", "a"), node("Conv", "a v", "y"), node("Conv", "a w", "z")]
    case = Case(nodes, X, ["y", "z"], {"w": weights(4, 4, 3, 3), "v": weights(2, 4, 3, 3)})
    model, feeds = case.proto(), {"x": samples((2, 4, 8, 8))}
    values = everything(model, feeds)
    wide = Format(INT8, QuantSpec("uint16"))
    written = quantized(model, ranges_of(values), lambda g: wide if g.output == "y" else STATIC, QNN)
    assert {(e.key, e.spec.dtype) for e in written.placement.activations if e.tensor == "a"} == {("a", "uint8"), ("a@uint16", "uint16")}
    readers = {each.name: each.input[0] for each in written.model.graph.node if each.op_type == "Conv"}
    assert readers["Conv:y"].startswith("a@uint16")
    assert readers["Conv:z"].startswith("a_")
    assert relative_error(run(written.model, feeds)["y"], values["y"]) < 0.03


def test_int32_biases_have_room_where_weights_are_nearly_zero() -> None:
    case = Case([node("Conv", "x w b", "y")], X, ["y"], {"w": 1e-9 * weights(4, 4, 3, 3), "b": np.array([1, -2, 3, 1000], np.float32)})
    error, model = answer(case)
    assert error < 0.01
    stored = constants(model)
    np.testing.assert_allclose(stored["b_quantized"].astype(np.float64) * stored["b_scale"], [1, -2, 3, 1000], rtol=1e-3)


def test_the_artifact_holds_external_weights_or_has_them_beside_it_where_they_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(
        [node("MatMul", "x w", "h"), node("MatMul", "h v", "y")],
        {"x": ["N", 64]},
        ["y"],
        {"w": weights(64, 64), "v": weights(64, 64, seed=1)},
    )
    (tmp_path / "in").mkdir()
    onnx.save(case.proto(), tmp_path / "in/m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    recipe = Recipe("static", "static", INT8, UINT8, "minmax", exclude=("MatMul:y",))
    ranges = {"x": (-2.0, 2.0), "h": (-20.0, 20.0), "y": (-20.0, 20.0)}
    out = write_static(tmp_path / "in/m.onnx", tmp_path / "out/q.onnx", recipe, ranges.get)
    (tmp_path / "in/m.data").unlink()
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["q.onnx"]
    onnx.checker.check_model(str(out))
    import onnxruntime

    feeds = {"x": samples((4, 64))}
    found = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
    assert relative_error(found, run(case.proto(), feeds)["y"]) < 0.03
    monkeypatch.setattr(ir_files, "LARGEST_FILE", 4096)
    case.save(tmp_path / "whole.onnx")
    large = write_static(tmp_path / "whole.onnx", tmp_path / "large.onnx", recipe, ranges.get)
    assert large.stat().st_size < 4096 < (tmp_path / "large.onnx.data").stat().st_size


def test_the_operator_set_is_raised_only_where_it_must_be() -> None:
    nodes = [node("Conv", "x w", "c"), node("ReduceMean", "c", "y", axes=[2, 3])]
    case = Case(nodes, X, ["y"], {"w": weights(4, 4, 3, 3)}, opset=13)
    for dtype, opset in (("uint8", 13), ("uint16", 21)):
        error, model = answer(case, Format(INT8, QuantSpec(dtype)))  # type: ignore[arg-type]
        assert error < 0.02
        assert model.opset_import[0].version == opset
        assert count(model, "QuantizeLinear") == 2
