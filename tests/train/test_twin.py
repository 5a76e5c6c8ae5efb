"""The torch twin against onnxruntime: whole graphs, and what becomes of weights, scales and biases."""

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
from lowbit.errors import DataError, ModelError, UsageError
from lowbit.graph.load import load_model
from lowbit.graph.prepare import prepare
from lowbit.pipeline.recipes import static
from lowbit.recipe import QuantSpec, Recipe
from lowbit.train.operators import OPERATORS
from lowbit.train.parts import Compute
from lowbit.train.twin import Twin
from lowbit.types import Batch

DEMO = Path(__file__).resolve().parents[2] / "src" / "lowbit" / "demo"
W4A8 = replace(static("minmax"), name="w4a8", weights=QuantSpec("int4", "per-channel", symmetric=True))


def fashion(count: int) -> Array:
    with np.load(DEMO / "fashion_mnist.npz") as arrays:
        return ((arrays["images"][:count].astype(np.float32) / 255 - 0.286) / 0.353)[:, None]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model: prepared, and by recipe@target."""
    folder = tmp_path_factory.mktemp("demo")
    source = DEMO / "resnet_fashion.onnx"
    prepared = prepare(load_model(source), folder / "prepared.onnx")
    images = fashion(64)
    evidence = Evidence(prepared, lambda: [Batch(np.arange(i, i + 16), {"image": images[i : i + 16]}, None) for i in range(0, 64, 16)])
    for recipe in (static("mse"), static("minmax", per_channel=False), W4A8):
        for target in ("onnxruntime-cpu", "openvino-cpu"):
            quantize(source, prepared, recipe, folder / f"{recipe.name}@{target}.onnx", evidence=evidence, target=target)
    return folder


def is_close(twin: Twin, path: Path, feeds: dict[str, Array]) -> None:
    """Max relative error 1e-4 of each output's range (measured: 1e-6)."""
    found = twin_answers(twin, feeds)
    for name, right in runtime(path, feeds).items():
        assert np.abs(found[name] - right).max() <= 1e-4 * np.abs(right).max()


def equal_integers(twin: Twin, path: Path, feeds: dict[str, Array], folder: Path) -> dict[str, float]:
    """Share of equal integers of each rounding, where each operator reads what onnxruntime itself computed before it."""
    model = onnx.load(path)
    names = [name for node in model.graph.node for name in node.output if name]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    onnx.save(model, folder / "all.onnx")
    own = dict(zip(names, session(folder / "all.onnx", optimized=False).run(names, feeds), strict=True)) | feeds
    real = {twin.plan.aliases[node.output[0]]: own[node.output[0]] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    held = {name: torch.from_numpy(np.array(value)) for name, value in {**own, **real, **twin.plan.constants}.items()}
    held |= {name: twin.weight(name).detach() for name in twin.plan.trained if name not in held}
    makers = {name: step for step in twin.plan.steps if isinstance(step, Compute) for name in step.outputs}
    shares = {}
    for key, grid in twin.plan.grids.items():
        if grid.is_weight:
            continue
        value = held.get(grid.tensor)
        if (step := makers.get(grid.tensor)) is not None:
            found = OPERATORS[step.attributes.op](step.attributes, *(None if name is None else held[name] for name in step.inputs))
            value = found[step.outputs.index(grid.tensor)] if isinstance(found, tuple) else found
        assert value is not None
        shares[key] = float((twin.quantizer(key).integers(value).numpy() == own[key]).mean())
    return shares


# Floating point ----------------------------------------------------------------------------------------------------------


def test_the_twin_of_the_demo_equals_onnxruntime(demo: Path) -> None:
    twin = Twin(demo / "prepared.onnx")
    for count in (1, 5):
        is_close(twin, demo / "prepared.onnx", {"image": fashion(count)})
    assert not twin.plan.grids
    assert len(twin.plan.trained) == 32  # 15 convolutions and a product, each with a bias


def test_shapes_are_computed_with_any_batch_and_sequence(tmp_path: Path) -> None:
    """Positions and a mask made of an input's shape, as exporters of transformers write them."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["tokens"]),
        helper.make_node("Range", ["zero", "tokens", "one"], ["positions"]),
        helper.make_node("Unsqueeze", ["positions", "axes"], ["row"]),
        helper.make_node("GreaterOrEqual", ["column_of", "row"], ["seen"]),
        helper.make_node("Unsqueeze", ["positions", "last"], ["column_of"]),
        helper.make_node("Where", ["seen", "nothing", "never"], ["mask"]),
        helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "turned"], ["scores"]),
        helper.make_node("Add", ["scores", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"]),
        helper.make_node("MatMul", ["weights", "x"], ["mixed"]),
        helper.make_node("Concat", ["shape_of_rows", "minus"], ["flat"], axis=0),
        helper.make_node("Slice", ["shape", "start", "end"], ["shape_of_rows"]),
        helper.make_node("Reshape", ["mixed", "flat"], ["y"]),
    ]
    order = (0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11, 13, 12, 14)
    constants = {
        "zero": np.array(0), "one": np.array(1), "axes": np.array([0]), "last": np.array([1]), "minus": np.array([-1]),
        "start": np.array([0]), "end": np.array([1]), "nothing": np.array(0, np.float32), "never": np.array(-1e9, np.float32),
    }  # fmt: skip
    fed = {"x": (TensorProto.FLOAT, ["N", "T", 4])}
    path = small_models.save(tmp_path / "m.onnx", [nodes[i] for i in order], fed, {"y": (TensorProto.FLOAT, None)}, constants)
    twin = Twin(path)
    assert not twin.plan.trained
    for shape in ((1, 3, 4), (4, 7, 4)):
        is_close(twin, path, {"x": floats(*shape)})


def test_weights_are_trained_and_limits_are_not(tmp_path: Path) -> None:
    """Priors with two axes, scalars, and tables that are looked up stay as they are."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "a.weight"], ["m"]),
        helper.make_node("Add", ["m", "a.bias"], ["b"]),
        helper.make_node("Mul", ["b", "half"], ["h"]),
        helper.make_node("Mul", ["h", "priors"], ["y"]),
    ]
    constants = {
        "table": floats(9, 4), "a.weight": floats(4, 3), "a.bias": floats(3), "half": np.array([0.5], np.float32), "priors": floats(2, 3),
    }  # fmt: skip
    path = small_models.save(
        tmp_path / "m.onnx", nodes, {"ids": (TensorProto.INT64, ["N", 2])}, {"y": (TensorProto.FLOAT, None)}, constants
    )
    twin = Twin(path)
    assert set(twin.plan.trained) == {"a.weight", "a.bias"}
    assert {id(p) for p in twin.parameters()} == {id(twin.weight("a.weight")), id(twin.weight("a.bias"))}
    is_close(twin, path, {"ids": np.array([[1, 2], [8, 0], [3, 3]])})


def test_tensors_inside_can_be_watched(demo: Path) -> None:
    twin, inner = Twin(demo / "prepared.onnx"), [node.output[0] for node in onnx.load(demo / "prepared.onnx").graph.node][3:9:2]
    found = twin_answers(twin, {"image": fashion(2)}, tuple(inner))
    assert set(found) == {*inner, *twin.plan.outputs}
    model = onnx.load(demo / "prepared.onnx")
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in inner)
    onnx.save(model, demo / "watched.onnx")
    for name, right in runtime(demo / "watched.onnx", {"image": fashion(2)}).items():
        np.testing.assert_allclose(found[name], right, atol=1e-5 * np.abs(right).max())
    with pytest.raises(UsageError, match="Unknown tensor 'nowhere'"):
        twin_answers(twin, {"image": fashion(1)}, ("nowhere",))


# Rounded -----------------------------------------------------------------------------------------------------------------

FILES = [
    f"{name}@{target}.onnx"
    for name in ("int8-static-mse", "int8-static-minmax-tensor", "w4a8")
    for target in ("onnxruntime-cpu", "openvino-cpu")
]


@pytest.mark.parametrize("file", FILES)
def test_integers_equal_onnxruntimes_operator_by_operator(demo: Path, file: str, tmp_path: Path) -> None:
    twin = Twin(demo / file)
    shares = equal_integers(twin, demo / file, {"image": fashion(16)}, tmp_path)
    assert len(shares) >= 21
    assert min(shares.values()) >= 0.999


@pytest.mark.parametrize("file", FILES[::2])
def test_answers_agree_with_the_runtimes_defaults_end_to_end(demo: Path, file: str) -> None:
    feeds = {"image": fashion(200)}
    (right,) = runtime(demo / file, feeds).values()
    (found,) = twin_answers(Twin(demo / file), feeds).values()
    assert (found.argmax(-1) == right.argmax(-1)).mean() >= 0.99


def test_a_handmade_file_gives_the_very_integers(tmp_path: Path) -> None:
    path = small_models.cnn_qdq(tmp_path / "cnn.onnx")
    twin = Twin(path)
    feeds = {"input.1": small_models.images(32)}
    (right,) = runtime(path, feeds, optimized=False).values()
    (found,) = twin_answers(twin, feeds).values()
    assert (found == right).mean() >= 0.999
    assert min(equal_integers(twin, path, feeds, tmp_path).values()) >= 0.999


def test_one_scale_around_moves_and_bias_grids_are_found(tmp_path: Path) -> None:
    """Flatten keeps the grid: `r` and `f` share it. Both biases are on the grid of input times weight."""
    twin = Twin(small_models.cnn_qdq(tmp_path / "cnn.onnx"))
    assert twin.quantizer("f_q").scale is twin.quantizer("r_q").scale
    assert twin.quantizer("r_q").scale is not twin.quantizer("input.1_q").scale
    assert twin.plan.grids["f_q"].leader == "r_q"
    bias = twin.plan.biases["b1_q"]
    assert (bias.activation, bias.weight) == ("input.1_q", "w1_q")
    assert (twin.plan.biases["b2_q"].activation, twin.plan.biases["b2_q"].weight) == ("f_q", "w2_q")
    assert len({id(p) for p in twin.parameters()}) == 4 + 5  # two weights and biases; scales of x, r, g and both weights


def test_levels_of_weights_follow_the_recipe_or_the_integers(demo: Path) -> None:
    """4-bit weights lie in bytes here: nothing but the recipe, or the integers themselves, tells."""
    for recipe in (None, W4A8):
        twin = Twin(demo / "w4a8@onnxruntime-cpu.onnx", recipe=recipe)
        assert {(g.low, g.high) for g in twin.plan.grids.values() if g.is_weight} == {(-7, 7)}
    eight = Twin(demo / "int8-static-mse@onnxruntime-cpu.onnx", recipe=static("mse"))
    assert {(g.low, g.high) for g in eight.plan.grids.values() if g.is_weight} == {(-127, 127)}
    assert {(g.low, g.high) for g in eight.plan.grids.values() if not g.is_weight} == {(0, 255)}


def test_a_products_own_format_wins_over_the_recipes(demo: Path) -> None:
    twin = Twin(demo / "w4a8@onnxruntime-cpu.onnx")
    product = next(step for step in twin.plan.steps if isinstance(step, Compute) and step.attributes.op == "Gemm")
    mixed = replace(W4A8, formats={product.attributes.name: "w8a8"})
    grids = Twin(demo / "w4a8@onnxruntime-cpu.onnx", recipe=mixed).plan.grids.values()
    assert sorted((g.low, g.high) for g in grids if g.is_weight)[0] == (-127, 127)


def test_stored_weights_start_at_their_dequantized_values(tmp_path: Path) -> None:
    path = small_models.cnn_qdq(tmp_path / "cnn.onnx")
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    twin = Twin(path)
    wanted = held["w1_q"].astype(np.float32) * held["w1_s"].reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(twin.weight("w1_q").detach().numpy(), wanted)
    np.testing.assert_array_equal(twin.weight("b2_q").detach().numpy(), (held["b2_q"] * held["b2_s"]).astype(np.float32))


def test_without_outputs_it_runs_no_further_than_what_is_watched(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin, images = Twin(demo / "prepared.onnx"), {"image": torch.from_numpy(fashion(4))}
    first = next(step.outputs[0] for step in twin.plan.steps if isinstance(step, Compute))
    whole, ran, run = twin(images, [first]), [], Twin._run
    monkeypatch.setattr(Twin, "_run", lambda self, step, values: (ran.append(step), run(self, step, values)))
    found = twin(images, [first], outputs=False)
    assert set(found) == {first}
    assert torch.equal(found[first], whole[first])
    assert len(ran) == 1


def test_weights_can_be_put_on_fewer_levels(demo: Path) -> None:
    twin = Twin(demo / "int8-static-mse@openvino-cpu.onnx")
    twin.regrid_weights(3)
    for key, grid in twin.plan.grids.items():
        if grid.is_weight:
            levels = twin.quantizer(key).integers(twin.weight(grid.tensor))
            assert levels.abs().max() == 3
            assert len(levels.unique()) == 7
    key = next(key for key, grid in twin.plan.grids.items() if grid.is_weight)
    twin.regrid_weights(2, [key])
    assert set(twin.quantizer(key).integers(twin.weight(key)).unique().tolist()) == {-1, 0, 1}
    twin.regrid_weights(1, [key])
    assert set(twin.quantizer(key).integers(twin.weight(key)).unique().tolist()) == {-1, 1}
    with pytest.raises(UsageError, match="12 bits do not fit"):
        twin.regrid_weights(12, [key])
    with pytest.raises(UsageError, match="Unknown stored weight"):
        twin.regrid_weights(4, ["nowhere"])


# Training ----------------------------------------------------------------------------------------------------------------


def test_a_few_steps_of_distillation_lower_the_loss(demo: Path) -> None:
    """Gradients reach every weight, bias and scale; four-bit weights come closer to their FP32 teacher."""
    teacher, student = Twin(demo / "prepared.onnx"), Twin(demo / "w4a8@openvino-cpu.onnx", recipe=W4A8)
    images = torch.from_numpy(fashion(8))
    with torch.no_grad():
        (wanted,) = teacher({"image": images}).values()
    descent = torch.optim.SGD(student.parameters(), lr=5e-3, momentum=0.9)
    losses = []
    for step in range(10):
        (found,) = student({"image": images}).values()
        loss = (found - wanted).square().mean()
        descent.zero_grad()
        loss.backward()
        if step == 2:  # stored weights start on their grid, where a scale has no gradient
            missing = [name for name, p in student.named_parameters() if p.grad is None or not bool(p.grad.any())]
            assert missing == []
        descent.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_the_state_can_be_saved_and_loaded(demo: Path, tmp_path: Path) -> None:
    one, other = (Twin(demo / "w4a8@openvino-cpu.onnx") for _ in range(2))
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.mul_(1.1)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    feeds = {"image": fashion(3)}
    for name, value in twin_answers(one, feeds).items():
        np.testing.assert_array_equal(twin_answers(other, feeds)[name], value)


# Refused -----------------------------------------------------------------------------------------------------------------


def test_control_flow_is_refused_with_what_is_possible(tmp_path: Path) -> None:
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "b", [], [helper.make_empty_tensor_value_info("z")])
    nodes = [helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch)]
    fed = {"x": (TensorProto.FLOAT, [2]), "c": (TensorProto.BOOL, [])}
    path = small_models.save(tmp_path / "m.onnx", nodes, fed, {"y": (TensorProto.FLOAT, [2])}, {})
    with pytest.raises(ModelError, match=r"'m.onnx' has operators .* If \('choice'\). It computes Abs, Add, .*MatMul") as error:
        Twin(path)
    assert "post-training" in str(error.value.hint)


def test_dynamic_quantization_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="round"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    info = (TensorProto.FLOAT, [2])
    path = small_models.save(
        tmp_path / "m.onnx", nodes, {"x": info, "s": (TensorProto.FLOAT, [])}, {"y": info}, {"z": np.array(0, np.uint8)}
    )
    with pytest.raises(ModelError, match="'round': its scale or zero point is computed"):
        Twin(path)


def test_integers_that_something_else_reads_are_refused(tmp_path: Path) -> None:
    parts = {"s": np.array(0.1, np.float32), "z": np.array(0, np.uint8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *parts], ["q"], name="round"),
        helper.make_node("Cast", ["q"], ["y"], to=1, name="next"),
    ]
    info = (TensorProto.FLOAT, [2])
    path = small_models.save(tmp_path / "m.onnx", nodes, {"x": info}, {"y": info}, parts)
    with pytest.raises(ModelError, match="its integers are read by Cast 'next'"):
        Twin(path)


def test_feeds_that_do_not_fit_say_so(demo: Path) -> None:
    twin = Twin(demo / "prepared.onnx")
    with pytest.raises(DataError, match="inputs image are not fed"):
        twin({})
    with pytest.raises(ModelError, match="failed in the torch twin"):
        twin({"image": torch.zeros(1, 3, 28, 28)})
    with pytest.raises(UsageError, match="Unknown weight"):
        twin.weight("nowhere")


# The panel ---------------------------------------------------------------------------------------------------------------

SHARED_MODELS = {
    "cifar10-resnet/resnet20.onnx": (static("minmax"), {"input": (3, 32, 32)}),
    "imagenet-models/squeezenet1.1.onnx": (static("minmax"), {"data": (3, 227, 227)}),
    "imagenet-models/mcunet-320kb-1mb.onnx": (static("minmax"), {"input": (3, 176, 176)}),
    "detection/nanodet_m_416.onnx": (static("minmax"), {"input.1": (3, 416, 416)}),
    "detection/ultraface_slim_320.onnx": (static("minmax"), {"input": (3, 240, 320)}),
    "char-lstm/char_lstm_charlotte_bronte.onnx": (static("minmax", operators=("MatMul",)), {"ids": (24,)}),
}


@pytest.mark.parametrize("name", SHARED_MODELS, ids=lambda name: Path(name).stem)
def test_real_models_equal_onnxruntime(shared_data: Path, name: str, tmp_path: Path) -> None:
    """FP32 to 1e-4 of the range, and all integers of a quantized form; on noise, which is as good as any input here."""
    recipe, shape = SHARED_MODELS[name]
    source = shared_data / name
    prepared = prepare(load_model(source), tmp_path / "prepared.onnx")
    rng = np.random.default_rng(0)
    feeds = {k: (rng.integers(0, 100, (1, *s)) if k == "ids" else rng.normal(0, 1, (1, *s)).astype(np.float32)) for k, s in shape.items()}
    is_close(Twin(prepared), prepared, feeds)
    evidence = Evidence(prepared, lambda: [Batch(np.arange(1), feeds, None)])
    quantize(source, prepared, recipe, tmp_path / "q.onnx", evidence=evidence)
    shares = equal_integers(Twin(tmp_path / "q.onnx"), tmp_path / "q.onnx", feeds, tmp_path)
    assert min(shares.values()) >= 0.999


def test_a_recipe_is_no_more_than_a_hint(demo: Path) -> None:
    """The twin needs no recipe to read any of our files."""
    assert isinstance(W4A8, Recipe)
    for file in FILES:
        assert Twin(demo / file).plan.grids
