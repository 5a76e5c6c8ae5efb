"""QNN's writer keeps the candidate's grids, refuses what the HTP lacks, and the emulated HTP answers as the file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pair_case import answers, named, neutral_of, quantizer, residual, stored

from conftest import missing
from graph_cases import Case, node, relative_error, samples, weights
from lowbit.errors import ModelError, RunError
from lowbit.export.base import Artifact, Setting, Target
from lowbit.export.neutral import Neutral
from lowbit.export.qnn import session, target, writer
from lowbit.export.qnn.target import NUMERICS, Qnn

X = samples((24, 4, 8, 8))[:12]
"""Of those that the ranges come from: nothing is clipped."""


@pytest.fixture(scope="module")
def source() -> Neutral:
    return neutral_of(residual())


def settings(**given: Setting) -> dict[str, Setting]:
    return {wish.name: given.get(wish.name, wish.default) for wish in Qnn().wishes}


def write(source: Neutral, folder: Path, **given: Setting) -> Artifact:
    folder.mkdir(exist_ok=True)
    return Qnn().write(source, folder, settings(**given))


def test_it_is_a_target() -> None:
    assert isinstance(Qnn(), Target)
    assert Qnn().version() is not None


def test_grids_are_the_candidates_own_in_8_bit(source: Neutral, tmp_path: Path) -> None:
    artifact = write(source, tmp_path, context=False)
    model = onnx.load(artifact.main)
    for tensor in ("x", "r1", "c2"):
        pair, grid = quantizer(model, tensor), source.activations[tensor]
        assert stored(model, pair.input[1]) == grid.scale
        assert stored(model, pair.input[2]) == grid.zero_point
        assert stored(model, pair.input[2]).dtype == np.uint8
    assert artifact.facts["grids_kept"] == len(source.activations)
    made = {output: each for each in model.graph.node for output in each.output}
    for conv, name in zip(named(model, "Conv"), ("w1", "w2"), strict=True):
        dequantizer = made[conv.input[1]]
        grid, integers = source.weights[name], stored(model, dequantizer.input[0])
        assert np.array_equal(stored(model, dequantizer.input[1]), grid.scale)
        assert integers.dtype == np.int8
        real = integers * grid.scale.reshape(-1, 1, 1, 1)
        assert np.allclose(real, source.model.graph.initializers[name].const_value.numpy(), rtol=1e-6)  # type: ignore[union-attr]


def test_the_batch_is_fixed_inside_and_out(source: Neutral, tmp_path: Path) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(write(source, tmp_path, context=False).main))
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    assert all(dim.HasField("dim_value") for value in values for dim in value.type.tensor_type.shape.dim)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert source.inputs[0].shape[0] == "N", "the neutral model is not changed"
    assert str(source.model.graph.inputs[0].shape[0]) == "N"  # type: ignore[index]


def test_16_bit_is_closer_to_the_float_model(source: Neutral, tmp_path: Path) -> None:
    expected = answers(source, X)
    off = {}
    for bits in (8, 16):
        opened = Qnn().open(write(source, tmp_path / str(bits), activations=bits, context=False), NUMERICS)
        off[bits] = float(np.abs(opened.run({"x": X})["y"] - expected).max())
        opened.close()
    step = float((expected.max() - expected.min()) / 255)
    assert off[16] < step / 8
    assert step / 8 < off[8] < 4 * step


def test_integers_are_levels_of_the_written_grid(source: Neutral, tmp_path: Path) -> None:
    opened = Qnn().open(write(source, tmp_path, context=False), NUMERICS)
    levels = opened.integers({"x": X})
    assert levels is not None
    model = onnx.load(tmp_path / "case.onnx")
    pair = quantizer(model, named(model, "Gemm")[0].output[0])
    real = (levels["y"] - int(stored(model, pair.input[2]))) * stored(model, pair.input[1])
    assert np.array_equal(real.astype(np.float32), opened.run({"x": X})["y"])
    opened.close()


def test_products_that_the_candidate_leaves_in_floating_point_are_8_bit_here(tmp_path: Path) -> None:
    from graph_cases import STATIC

    source = neutral_of(residual(), candidate=lambda group: None if group.kind == "Gemm" else STATIC)
    assert "w3" not in source.weights
    artifact = write(source, tmp_path, context=False)
    assert any("Gemm:y" in note for note in artifact.notes)
    gemm = named(onnx.load(artifact.main), "Gemm")[0]
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(artifact.main).graph.initializer}
    assert kinds["w3_quantized"] == onnx.TensorProto.INT8
    assert gemm.input[1] != "w3"


def test_four_bits_are_written_as_bytes_on_the_same_grid(tmp_path: Path) -> None:
    from dataclasses import replace

    from lowbit.quant.affine import from_values

    source = neutral_of(residual())
    values = source.model.graph.initializers["w2"].const_value
    assert values is not None
    grid = from_values(values.numpy(), "int4", symmetric=True, axis=0)
    artifact = write(replace(source, weights={**source.weights, "w2": grid}), tmp_path, context=False)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(artifact.main).graph.initializer}
    assert tensors["w2_quantized"].dtype == np.int8
    assert np.abs(tensors["w2_quantized"]).max() == 7


def test_what_qnn_lacks_is_refused_with_its_part(tmp_path: Path) -> None:
    source = neutral_of(residual(node("Erf", "r", "e1"), node("Erf", "e1", "e2"), last="e2"))
    with pytest.raises(ModelError, match="Erf 'Erf:e1', Erf 'Erf:e2'") as caught:
        write(source, tmp_path)
    assert "from 'r' to 'e2'" in caught.value.message
    assert "fall back" in caught.value.message
    assert caught.value.hint is not None


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_interpolated_maps_have_a_grid_of_their_own_and_moved_ones_that_of_their_source(mode: str, tmp_path: Path) -> None:
    resize = node("Resize", "r '' scales", "big", mode=mode, coordinate_transformation_mode="half_pixel")
    resize.input[1] = ""
    case = residual(resize, node("Exp", "big", "e"), last="e", constants={"scales": np.array([1, 1, 2, 2], np.float32)})
    model = onnx.load(write(neutral_of(case), tmp_path, context=False).main)
    pairs = {each.input[0]: each for each in named(model, "QuantizeLinear")}
    scales = {name: float(stored(model, pairs[name].input[1])) for name in ("r", "big", "e")}
    assert (scales["big"] == scales["r"]) == (mode == "nearest")
    assert scales["e"] == pytest.approx(np.exp(scales["big"] * 255) / 255, rel=0.05), "Exp is computed on integers, with its own range"


def test_what_would_stay_in_floating_point_is_refused(tmp_path: Path) -> None:
    source = neutral_of(residual(node("Abs", "r", "e"), last="e"))
    with pytest.raises(ModelError, match=r"Abs 'Abs:e'.*stays in floating point"):
        write(source, tmp_path)


def test_dynamic_sizes_are_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    from lowbit.types import TensorInfo

    source = neutral_of(residual())
    source = replace(source, inputs=(TensorInfo("x", ("N", 4, "height", 8), "float32"),))
    with pytest.raises(ModelError, match="'x' axis 2") as caught:
        write(source, tmp_path)
    assert "static shapes" in caught.value.message


def test_shapes_that_are_computed_become_constants(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w b", "c"),
        node("Shape", "c", "s"),
        node("Gather", "s first", "n", axis=0),
        node("Concat", "n rest", "t", axis=0),
        node("Reshape", "c t", "f"),
        node("Gemm", "f v", "y", transB=1),
    ]
    constants = {"w": weights(3, 4, 8, 8), "b": weights(3), "v": weights(2, 3, seed=1), "first": np.array([0]), "rest": np.array([3])}
    source = neutral_of(Case(nodes, {"x": ["N", 4, 8, 8]}, ["y"], constants, shapes={"y": ["N", 2]}))
    artifact = write(source, tmp_path, context=False)
    assert not {"Shape", "Gather", "Concat"} & {each.op_type for each in onnx.load(artifact.main).graph.node}
    opened = Qnn().open(artifact, NUMERICS)
    assert relative_error(opened.run({"x": X})["y"], answers(source, X)) < 0.03
    opened.close()


def test_without_the_plugin_a_model_is_written_and_checked(source: Neutral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (session, target):
        monkeypatch.setattr(module, "emulates", lambda: False)
    able = Qnn().abilities()
    assert (able.write, able.level) == (True, "checked")
    assert "lowbit[qnn]" in able.missing[0]
    artifact = write(source, tmp_path)
    assert [file.name for file in artifact.files] == ["case.onnx"]
    assert any("No context binary" in note for note in artifact.notes)
    assert Qnn().kernel_sets(artifact) == (NUMERICS,)
    with pytest.raises(RunError, match="htp-emulated"):
        Qnn().open(artifact, session.KERNELS)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_emulated_htp_answers_as_the_file_says(bits: int, source: Neutral, tmp_path: Path) -> None:
    if not session.emulates():
        missing("onnxruntime-qnn")
    artifact = write(source, tmp_path, activations=bits, htp_arch=73)
    assert [file.name for file in artifact.files] == ["case.onnx", "case_ctx.onnx", "case_ctx_qnn.bin"]
    context = onnx.load(tmp_path / "case_ctx.onnx")
    assert [each.op_type for each in context.graph.node] == ["EPContext"]
    assert Qnn().abilities().level == "emulated"
    asked = X[:3]
    found = {}
    for kernels in Qnn().kernel_sets(artifact):
        opened = Qnn().open(artifact, kernels)
        found[kernels] = opened.run({"x": asked})["y"]
        opened.close()
    assert isinstance(artifact.state, target.State)
    step, expected = float(artifact.state.outputs["y"].scale), answers(source, asked)
    assert np.abs(found["htp-emulated"] - found[NUMERICS]).max() <= (2.01 if bits == 8 else 64) * step
    assert relative_error(found["htp-emulated"], expected) < (0.04 if bits == 8 else 0.004)


def with_dead_channels() -> Neutral:
    """A depthwise convolution of which two channels have weights near zero and a bias, as folded batch normalization leaves them."""
    scales = np.array([1, 1, 1e-9, 1e-16], np.float32)
    values = {"w": weights(4, 1, 3, 3) * scales[:, None, None, None], "b": np.array([0.1, -0.2, 0.4, -0.3], np.float32)}
    return neutral_of(Case([node("Conv", "x w b", "y", group=4, pads=[1, 1, 1, 1])], {"x": ["N", 4, 8, 8]}, ["y"], values))


def test_channels_that_are_all_but_dead_get_scales_that_fixed_point_bears(tmp_path: Path) -> None:
    source = with_dead_channels()
    model = onnx.load(write(source, tmp_path, context=False).main)
    made = {output: each for each in model.graph.node for output in each.output}
    (conv,) = named(model, "Conv")
    scale = stored(model, made[conv.input[1]].input[1])
    entering, leaving = (float(source.activations[name].scale) for name in ("x", "y"))
    assert np.allclose(scale[2:], writer.LEAST_MULTIPLIER * leaving / entering)
    assert np.array_equal(scale[:2], source.weights["w"].scale[:2]), "the others keep their own"
    bias = made[conv.input[2]]
    assert np.allclose(stored(model, bias.input[0]) * stored(model, bias.input[1]), [0.1, -0.2, 0.4, -0.3], atol=1e-3 * leaving)
    told = Qnn().reference(write(source, tmp_path / "again", context=False)).run({"x": X})["y"]
    assert np.abs(told[:, 2] - 0.4).max() <= 0.51 * leaving
    assert np.abs(told[:, 3] + 0.3).max() <= 0.51 * leaving


def test_the_emulated_htp_answers_channels_that_are_all_but_dead(tmp_path: Path) -> None:
    if not session.emulates():
        missing("onnxruntime-qnn")
    artifact = write(with_dead_channels(), tmp_path, context=False)
    opened, told = Qnn().open(artifact, session.KERNELS), Qnn().reference(artifact)
    assert isinstance(artifact.state, target.State)
    apart = np.abs(opened.run({"x": X[:2]})["y"] - told.run({"x": X[:2]})["y"]) / float(artifact.state.outputs["y"].scale)
    opened.close()
    assert apart.max() <= 1.01


def test_a_file_that_qnn_cannot_compile_ends_its_own_process_alone(tmp_path: Path) -> None:
    if not session.emulates():
        missing("onnxruntime-qnn")
    path = tmp_path / "noise.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(RunError, match=r"does not compile 'noise\.onnx'"):
        session.Htp(path, {})


def test_writers_titles_are_the_targets() -> None:
    assert Qnn().title == writer.TITLE


def one_number(*first: onnx.NodeProto, w1: tuple[int, int]) -> Neutral:
    """Two dense layers, the first over a single value."""
    nodes = [*first, node("Relu", "h", "r"), node("Gemm", "r w2 b2", "y", transB=1)]
    values = {"w1": weights(*w1, scale=1.0), "b1": weights(16, seed=1), "w2": weights(3, 16, seed=2), "b2": weights(3, seed=3)}
    return neutral_of(Case(nodes, {"x": ["N", 1]}, ["y"], values), (1,), n=200)


@pytest.mark.parametrize(
    ("nodes", "w1"),
    [
        ([node("Gemm", "x w1 b1", "h", transB=1)], (16, 1)),
        ([node("Gemm", "x w1 b1", "h")], (1, 16)),
        ([node("MatMul", "x w1", "m"), node("Add", "m b1", "h")], (1, 16)),
    ],
    ids=["out-in", "in-out", "matmul"],
)
def test_a_dense_layer_of_one_input_is_compiled(nodes: list[onnx.NodeProto], w1: tuple[int, int], tmp_path: Path) -> None:
    """QNN's own optimizer does not end on it; read twice, with weights of zero, it is the same layer."""
    made = one_number(*nodes, w1=w1)
    artifact = write(made, tmp_path, context=session.emulates())
    model = onnx.load(artifact.main)
    onnx.checker.check_model(model, full_check=True)
    (join,) = named(model, "Concat")
    assert join.input[0] == join.input[1]
    asked = np.linspace(-2, 2, 50, dtype=np.float32)[:, None]
    expected = answers(made, asked)
    for kernels in Qnn().kernel_sets(artifact):
        opened = Qnn().open(artifact, kernels)
        try:
            assert relative_error(opened.run({"x": asked})["y"], expected) < 0.03, kernels
        finally:
            opened.close()
