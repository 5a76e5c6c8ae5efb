"""Writing a twin back into its QDQ file: untouched, trained, and what must not happen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from operator_cases import Array, floats, runtime, session, twin_answers

import small_models
from lowbit.compress.evidence import Evidence
from lowbit.compress.quantize import quantize
from lowbit.errors import ModelError, UsageError
from lowbit.graph.load import load_model
from lowbit.graph.parameters import load_parameters, read_parameters, save_parameters
from lowbit.graph.prepare import prepare
from lowbit.pipeline.recipes import static
from lowbit.recipe import QuantSpec, Recipe
from lowbit.train.twin import Twin
from lowbit.train.write_back import write_back
from lowbit.types import Batch

BLOCKED = Recipe("blocked", "static", QuantSpec("int4", "per-group", symmetric=True, block=8), QuantSpec("uint8"), "minmax")
RECIPES = (
    static("minmax"),
    static("minmax", per_channel=False),
    replace(static("minmax"), name="w4a8", weights=QuantSpec("int4", "per-channel", symmetric=True)),
    replace(static("minmax"), name="w8a16", activations=QuantSpec("uint16")),
    BLOCKED,
)


def constants(path: Path) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def quantized(folder: Path, recipe: Recipe, target: str) -> Path:
    """The small CNN by a recipe, on noise."""
    source = small_models.cnn(folder / "cnn.onnx")
    prepared = prepare(load_model(source), folder / "prepared.onnx")
    evidence = Evidence(prepared, lambda: [Batch(np.arange(16), {"input.1": small_models.images(16)}, None)])
    return quantize(source, prepared, recipe, folder / f"{recipe.name}.onnx", evidence=evidence, target=target)


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "openvino-cpu"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_an_untouched_twin_reproduces_its_file(tmp_path: Path, recipe: Recipe, target: str) -> None:
    source = quantized(tmp_path, recipe, target)
    write_back(Twin(source), source, tmp_path / "out.onnx")
    before, after = constants(source), constants(tmp_path / "out.onnx")
    assert set(before) == set(after)
    for name, array in before.items():
        assert after[name].dtype == array.dtype
        np.testing.assert_array_equal(after[name], array)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_what_was_trained_is_what_runs(tmp_path: Path, recipe: Recipe) -> None:
    """After a change of everything the runtime's answers follow the twin's; they are others than before."""
    source = quantized(tmp_path, recipe, "openvino-cpu")
    twin, feeds = Twin(source, recipe=recipe), {"input.1": small_models.images(40, seed=7)}
    shake(twin)
    write_back(twin, source, tmp_path / "out.onnx")
    (before,), (after,) = (runtime(path, feeds).values() for path in (source, tmp_path / "out.onnx"))
    (found,) = twin_answers(twin, feeds).values()
    step = np.abs(found).max() / 255
    assert np.abs(before - found).max() > 4 * step
    assert np.abs(after - found).max() < step
    again = Twin(tmp_path / "out.onnx", recipe=recipe)
    for key in twin.plan.grids:
        np.testing.assert_array_equal(again.quantizer(key).scale.detach(), twin.quantizer(key).scale.detach())


def shake(twin: Twin) -> None:
    """Weights, biases and scales as after some training."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in twin.plan.trained:
            weight = twin.weight(name)
            weight += 0.2 * weight.abs().mean() * torch.randn(weight.shape, generator=rng)
        for parameter in {id(q.scale): q.scale for q in map(twin.quantizer, twin.plan.grids)}.values():
            parameter *= 0.9 + 0.1 * torch.rand(parameter.shape, generator=rng)


def test_biases_are_rounded_on_the_new_scales(tmp_path: Path) -> None:
    source = small_models.cnn_qdq(tmp_path / "cnn.onnx")
    twin = Twin(source)
    with torch.no_grad():
        twin.quantizer("w1_q").scale *= 1.25
        twin.quantizer("input.1_q").scale *= 0.9
        twin.weight("b2_q")[3] += 0.5
    write_back(twin, source, tmp_path / "out.onnx")
    before, after = constants(source), constants(tmp_path / "out.onnx")
    np.testing.assert_array_equal(after["b1_s"], after["x_s"] * after["w1_s"])
    real = (before["b1_q"] * before["b1_s"]).astype(np.float32)
    np.testing.assert_array_equal(after["b1_q"], np.rint(real.astype(np.float64) / after["b1_s"]))
    np.testing.assert_array_equal(after["w1_q"], np.clip(np.rint(before["w1_q"] / np.float32(1.25)), -127, 127))
    np.testing.assert_array_equal(after["b2_s"], before["b2_s"])  # neither grid of it has moved
    np.testing.assert_array_equal(np.delete(after["b2_q"], 3), np.delete(before["b2_q"], 3))
    assert after["b2_q"][3] == np.rint(
        (np.float32(before["b2_q"][3] * before["b2_s"][3]) + np.float32(0.5)) / np.float64(before["b2_s"][3])
    )


def test_large_biases_keep_all_their_bits(tmp_path: Path) -> None:
    """Beyond 2^24 a float32 cannot hold the integer: what nobody has touched must not pass through one."""
    source = small_models.cnn_qdq(tmp_path / "cnn.onnx")
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.name == "b1_q":
            tensor.CopyFrom(numpy_helper.from_array(np.array([2**30 - 1, -(2**29) - 3, 2**24 + 1, 5, 0, 2**28 + 7], np.int32), "b1_q"))
    onnx.save(model, source)
    write_back(Twin(source), source, tmp_path / "out.onnx")
    np.testing.assert_array_equal(constants(tmp_path / "out.onnx")["b1_q"], constants(source)["b1_q"])


def test_a_bias_that_does_not_fit_makes_its_weights_grid_coarser(tmp_path: Path) -> None:
    source = small_models.cnn_qdq(tmp_path / "cnn.onnx")
    twin = Twin(source)
    with torch.no_grad():
        twin.quantizer("w1_q").floor.zero_()
        twin.quantizer("w1_q").scale[2] = 1e-12
        twin.weight("w1_q")[2] = 0
        twin.weight("b1_q")[2] = 3.0
    write_back(twin, source, tmp_path / "out.onnx")
    after = constants(tmp_path / "out.onnx")
    assert after["b1_q"][2] * after["b1_s"][2] == pytest.approx(3.0, rel=1e-6)
    assert abs(int(after["b1_q"][2])) <= 2**30 + 2**11
    assert after["w1_s"][2] == pytest.approx(3.0 / 2**30 / after["x_s"], rel=1e-5)


def test_shared_scales_stay_shared(tmp_path: Path) -> None:
    """Training one of two grids around a Flatten trains both."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("MaxPool", ["xd"], ["m"], kernel_shape=[2, 2]),
        helper.make_node("QuantizeLinear", ["m", "s_m", "z_m"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "s_m", "z_m"], ["y"]),
    ]
    one = {"s": np.array(0.02, np.float32), "z": np.array(3, np.uint8)}
    image = (TensorProto.FLOAT, ["N", 1, 4, 4])
    held = one | {f"{k}_m": v for k, v in one.items()}
    source = small_models.save(tmp_path / "m.onnx", nodes, {"x": image}, {"y": (TensorProto.FLOAT, None)}, held)
    twin = Twin(source)
    twin({"x": torch.from_numpy(floats(2, 1, 4, 4))})["y"].sum().backward()
    with torch.no_grad():
        twin.quantizer("mq").scale -= 0.005
    write_back(twin, source, tmp_path / "out.onnx")
    after = constants(tmp_path / "out.onnx")
    assert after["s"] == after["s_m"] == np.float32(0.02) - np.float32(0.005)


def test_the_table_beside_the_artifact_follows(tmp_path: Path) -> None:
    source = small_models.cnn_qdq(tmp_path / "cnn.onnx")
    folder = tmp_path / "candidate"
    folder.mkdir()
    twin = Twin(source)
    rows = write_back(twin, source, folder / "model.onnx")
    assert not (folder / "parameters.json").exists()
    save_parameters(rows, folder)
    with torch.no_grad():
        twin.quantizer("w1_q").scale *= 1.5
    rows = write_back(twin, source, folder / "model.onnx")
    for kept, row, read in zip(load_parameters(folder), rows, read_parameters(folder / "model.onnx"), strict=True):
        assert kept.tensor == row.tensor == read.tensor
        np.testing.assert_array_equal(kept.scale, row.scale)
        np.testing.assert_array_equal(kept.scale, read.scale)
    (row,) = (row for row in load_parameters(folder) if row.tensor == "w1_q" and row.dtype == "int8")
    np.testing.assert_array_equal(row.scale, constants(source)["w1_s"] * np.float32(1.5))


def test_weights_in_blocks_of_nibbles_are_stored_as_such(tmp_path: Path) -> None:
    source = quantized(tmp_path, BLOCKED, "openvino-cpu")
    twin = Twin(source, recipe=BLOCKED)
    shake(twin)
    write_back(twin, source, tmp_path / "out.onnx")
    kinds = [{t.name: t.data_type for t in onnx.load(path).graph.initializer} for path in (source, tmp_path / "out.onnx")]
    assert kinds[0] == kinds[1]
    assert TensorProto.INT4 in kinds[0].values()
    assert session(tmp_path / "out.onnx").get_inputs()[0].name == "input.1"


def test_diverged_training_is_not_written(tmp_path: Path) -> None:
    source = small_models.cnn_qdq(tmp_path / "cnn.onnx")
    twin = Twin(source)
    with torch.no_grad():
        twin.weight("w2_q")[0, 0] = float("nan")
    with pytest.raises(ModelError, match="Training has diverged"):
        write_back(twin, source, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_another_file_is_refused(tmp_path: Path) -> None:
    source, other = small_models.cnn_qdq(tmp_path / "cnn.onnx"), small_models.cnn(tmp_path / "plain.onnx")
    with pytest.raises(UsageError, match="not the one that the twin was made from") as error:
        write_back(Twin(source), other, tmp_path / "out.onnx")
    assert "cnn.onnx" in str(error.value.hint)
    with pytest.raises(UsageError, match="is the file that the twin was made from"):
        write_back(Twin(source), source, source)
