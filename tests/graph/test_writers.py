"""Artifacts of every writer: they load, they are small, and they answer nearly like FP32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lowbit.errors import ModelError
from lowbit.graph import ir_files
from lowbit.graph.dynamic import write_dynamic
from lowbit.graph.halves import write_fp16
from lowbit.graph.load import load_model
from lowbit.graph.onnxruntime_writer import write_defaults
from lowbit.graph.parameters import load_parameters, read_parameters, save_parameters
from lowbit.graph.prepare import prepare
from lowbit.graph.qdq import write_static
from lowbit.recipe import QuantSpec, Recipe
from lowbit.runtimes import registry
from lowbit.types import Array, Tuning
from small_models import cnn, images, save, wide_matmul

STATIC = Recipe("static", "static", QuantSpec("int8", "per-channel", symmetric=True), QuantSpec("uint8"), "minmax")
DYNAMIC = Recipe("dynamic", "dynamic", QuantSpec("int8", "per-channel", symmetric=True))


def run(path: Path, feeds: dict[str, Array]) -> Array:
    session = registry.get("onnxruntime").open(path, Tuning(), None)
    return next(iter(session.run(feeds).values()))


def prepared(tmp_path: Path) -> Path:
    return prepare(load_model(cnn(tmp_path / "cnn.onnx")), tmp_path / "prepared.onnx")


def relative_error(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_preparing_changes_no_answer(tmp_path: Path) -> None:
    path = prepared(tmp_path)
    feeds = {"input.1": images(5)}
    np.testing.assert_allclose(run(path, feeds), run(tmp_path / "cnn.onnx", feeds), rtol=1e-5, atol=1e-5)


def test_preparing_folds_batch_norm_and_raises_the_operator_set(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        **{name: rng.uniform(0.5, 1.5, 4).astype(np.float32) for name in "gbmv"},
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["y"]),
    ]
    path = save(
        tmp_path / "bn.onnx", nodes, {"x": (TensorProto.FLOAT, ["N", 3, 8, 8])}, {"y": (TensorProto.FLOAT, ["N", 4, 6, 6])}, weights
    )
    proto = onnx.load(path)
    proto.opset_import[0].version = 9
    proto.ir_version = 4
    onnx.save(proto, path)
    model = load_model(path)
    assert model.opset == 9
    found = onnx.load(prepare(model, tmp_path / "prepared.onnx"))
    assert [node.op_type for node in found.graph.node] == ["Conv"]
    assert found.opset_import[0].version >= 13
    assert all(node.name for node in found.graph.node)
    np.testing.assert_allclose(run(tmp_path / "prepared.onnx", {"x": images(2)}), run(path, {"x": images(2)}), rtol=1e-4, atol=1e-4)


def test_a_large_models_weights_lie_beside_it_and_artifacts_are_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = prepare(load_model(wide_matmul(tmp_path / "wide.onnx")), tmp_path / "prepared.onnx")
    monkeypatch.setattr(ir_files, "LARGE", 0)
    (tmp_path / "large").mkdir()
    path = prepare(load_model(tmp_path / "wide.onnx"), tmp_path / "large" / "prepared.onnx")
    assert sorted(each.name for each in path.parent.iterdir()) == ["prepared.onnx", "prepared.onnx.data"]
    assert path.stat().st_size < 0.1 * small.stat().st_size
    assert [node.SerializeToString() for node in onnx.load(path).graph.node] == [n.SerializeToString() for n in onnx.load(small).graph.node]
    feeds = {"x": np.random.default_rng(0).normal(size=(4, 512)).astype(np.float32)}
    np.testing.assert_array_equal(run(path, feeds), run(small, feeds))
    write_fp16(path, tmp_path / "half.onnx")
    write_dynamic(path, tmp_path / "dynamic.onnx", DYNAMIC)
    write_static(path, tmp_path / "static.onnx", STATIC, lambda _: None)
    write_defaults(path, tmp_path / "defaults.onnx", STATIC, lambda name: (-64.0, 64.0) if name == "y" else (-4.0, 4.0))
    assert not list(tmp_path.glob("*.data"))
    for name in ("half", "dynamic", "static", "defaults"):
        assert relative_error(run(tmp_path / f"{name}.onnx", feeds), run(small, feeds)) < 0.05


def test_an_operator_that_no_runtime_has_is_named(tmp_path: Path) -> None:
    from small_models import unknown_operator

    with pytest.raises(ModelError, match="Frobnicate"):
        prepare(load_model(unknown_operator(tmp_path / "odd.onnx")), tmp_path / "prepared.onnx")


def test_fp16_weights_halve_the_file_and_keep_the_answers(tmp_path: Path) -> None:
    path = prepare(load_model(wide_matmul(tmp_path / "wide.onnx")), tmp_path / "prepared.onnx")
    half = write_fp16(path, tmp_path / "half.onnx")
    assert half.stat().st_size < 0.55 * path.stat().st_size
    feeds = {"x": np.random.default_rng(0).normal(size=(4, 512)).astype(np.float32)}
    assert 0 < relative_error(run(half, feeds), run(path, feeds)) < 1e-3


def test_fp16_leaves_what_it_cannot_hold(tmp_path: Path) -> None:
    weights = {"w": np.full((512, 4), 1e6, np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = save(tmp_path / "huge.onnx", nodes, {"x": (TensorProto.FLOAT, ["N", 512])}, {"y": (TensorProto.FLOAT, ["N", 4])}, weights)
    half = onnx.load(write_fp16(path, tmp_path / "half.onnx"))
    assert [tensor.data_type for tensor in half.graph.initializer] == [TensorProto.FLOAT]


def test_dynamic_int8_is_small_and_close(tmp_path: Path) -> None:
    path = prepare(load_model(wide_matmul(tmp_path / "wide.onnx")), tmp_path / "prepared.onnx")
    small = write_dynamic(path, tmp_path / "dynamic.onnx", DYNAMIC)
    assert small.stat().st_size < 0.35 * path.stat().st_size
    feeds = {"x": np.random.default_rng(0).normal(size=(4, 512)).astype(np.float32)}
    assert 0 < relative_error(run(small, feeds), run(path, feeds)) < 0.03


def true_ranges(path: Path, feeds: dict[str, Array]) -> dict[str, tuple[float, float]]:
    """Min and max of every tensor, from onnx's reference evaluator."""
    from onnx.reference import ReferenceEvaluator

    values = {**feeds, **ReferenceEvaluator(str(path)).run(None, feeds, intermediate=True)}
    return {name: (min(0.0, float(value.min())), max(0.0, float(value.max()))) for name, value in values.items() if name and value.size}


def test_static_int8_has_the_ranges_it_was_given_and_is_close(tmp_path: Path) -> None:
    path = prepared(tmp_path)
    feeds = {"input.1": images(16)}
    ranges = true_ranges(path, feeds)
    artifact = write_static(path, tmp_path / "static.onnx", STATIC, ranges.get)
    assert relative_error(run(artifact, feeds), run(path, feeds)) < 0.05
    table = {row.tensor: row for row in read_parameters(artifact)}
    low, high = ranges["input.1"]
    assert table["input.1"].kind == "activation"
    assert table["input.1"].dtype == "uint8"
    assert float(table["input.1"].scale) == pytest.approx((high - low) / 255, rel=1e-5)
    assert int(table["input.1"].zero_point) == round(-low / ((high - low) / 255))
    weight = table["w1"]
    assert (weight.kind, weight.dtype, weight.axis, weight.scale.shape) == ("weight", "int8", 0, (6,))
    assert not weight.zero_point.any()


def test_a_tensor_without_a_range_leaves_its_operator_in_floating_point(tmp_path: Path) -> None:
    path = prepared(tmp_path)
    artifact = write_static(path, tmp_path / "static.onnx", STATIC, lambda _: None)
    assert "QuantizeLinear" not in {node.op_type for node in onnx.load(artifact).graph.node}
    np.testing.assert_allclose(run(artifact, {"input.1": images(2)}), run(path, {"input.1": images(2)}), rtol=1e-5)


def test_the_parameter_table_survives_the_disk(tmp_path: Path) -> None:
    path = prepared(tmp_path)
    rows = read_parameters(write_static(path, tmp_path / "static.onnx", STATIC, lambda _: (-1.0, 2.0)))
    save_parameters(rows, tmp_path)
    again = load_parameters(tmp_path)
    assert [(row.tensor, row.kind, row.dtype, row.axis) for row in again] == [(row.tensor, row.kind, row.dtype, row.axis) for row in rows]
    for old, new in zip(rows, again, strict=True):
        np.testing.assert_array_equal(old.scale, new.scale)
        np.testing.assert_array_equal(old.zero_point, new.zero_point)
        assert old.zero_point.dtype == new.zero_point.dtype
