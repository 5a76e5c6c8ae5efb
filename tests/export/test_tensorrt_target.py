"""TensorRT's writer calibrates around zero, leaves biases alone, and says how its engine is built."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from pair_case import answers, named, neutral_of, quantizer, residual, stored

from graph_cases import STATIC, node, relative_error, samples
from lowbit.errors import ModelError, RunError, UsageError
from lowbit.export.base import Artifact, Setting, Target
from lowbit.export.neutral import Neutral
from lowbit.export.tensorrt import engine
from lowbit.export.tensorrt.calibrate import symmetric_range
from lowbit.export.tensorrt.command import flags, shapes
from lowbit.export.tensorrt.target import NUMERICS, TensorRt
from lowbit.quant.affine import from_range, round_trip
from lowbit.quant.observers import Observer, TensorStats
from lowbit.types import RangeMethod, TensorInfo

METHODS: tuple[RangeMethod, ...] = ("entropy", "minmax", "mse", "percentile")
X = samples((24, 4, 8, 8))[:12]


@pytest.fixture(scope="module")
def source() -> Neutral:
    return neutral_of(residual())


def settings(**given: Setting) -> dict[str, Setting]:
    return {wish.name: given.get(wish.name, wish.default) for wish in TensorRt().wishes}


def write(source: Neutral, folder: Path, **given: Setting) -> Artifact:
    folder.mkdir(exist_ok=True)
    return TensorRt().write(source, folder, settings(**given))


def test_it_is_a_target() -> None:
    assert isinstance(TensorRt(), Target)
    assert TensorRt().version() is not None


# Calibration -----------------------------------------------------------------------------------------------------------


def stats_of(values: np.ndarray) -> TensorStats:
    return Observer().update(values.astype(np.float32)).finalize()


@given(scale=st.floats(0.01, 100), seed=st.integers(0, 50), positive=st.booleans(), method=st.sampled_from(METHODS))
def test_ranges_lie_around_zero_and_within_what_was_seen(scale: float, seed: int, positive: bool, method: RangeMethod) -> None:
    values = scale * np.random.default_rng(seed).laplace(0, 1, 2000)
    stats = stats_of(np.abs(values) if positive else values)
    low, high = symmetric_range(stats, method)
    assert low == -high
    assert 0 < high <= max(-stats.low, stats.high) * (1 + 1e-6)


@pytest.mark.parametrize("positive", [False, True])
def test_mse_finds_the_clip_of_least_error(positive: bool) -> None:
    values = np.random.default_rng(0).standard_t(3, 20_000).astype(np.float32)
    values = np.abs(values) if positive else values

    def error(clip: float) -> float:
        return float(np.mean((round_trip(values, from_range(-clip, clip, "int8", symmetric=True)) - values) ** 2))

    _, found = symmetric_range(stats_of(values), "mse")
    best = min(error(clip) for clip in np.linspace(0.2, 1, 60) * np.abs(values).max())
    assert error(found) < 1.02 * best
    assert error(found) < 0.95 * error(float(np.abs(values).max()))


def test_nothing_but_zero_has_a_range() -> None:
    assert symmetric_range(stats_of(np.zeros(10)), "mse") == (0.0, 0.0)


def test_min_max_is_enough_for_mse() -> None:
    assert symmetric_range(TensorStats(-1.0, 3.0), "mse") == (-3.0, 3.0)


# What is written -------------------------------------------------------------------------------------------------------


def test_grids_are_int8_around_zero_and_biases_stay_as_they_are(source: Neutral, tmp_path: Path) -> None:
    model = onnx.load(write(source, tmp_path).main)
    for each in model.graph.node:
        if each.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = stored(model, each.input[2])
            assert zero.dtype == np.int8
            assert not zero.any()
    for conv, name in zip(named(model, "Conv"), ("b1", "b2"), strict=True):
        assert conv.input[2] == name
        assert np.array_equal(stored(model, name), source.model.graph.initializers[name].const_value.numpy())  # type: ignore[union-attr]
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.INT32 not in kinds


def test_weights_are_exactly_the_candidates(source: Neutral, tmp_path: Path) -> None:
    model = onnx.load(write(source, tmp_path).main)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name in ("w1", "w2", "w3"):
        assert np.array_equal(tensors[f"{name}_scale"], source.weights[name].scale)


def test_calibration_is_its_own(source: Neutral, tmp_path: Path) -> None:
    scales = {}
    for method in METHODS:
        model = onnx.load(write(source, tmp_path / method, ranges=method).main)
        scales[method] = float(stored(model, quantizer(model, "r1").input[1]))
        clip = symmetric_range(source.stats["r1"], method)[1]
        assert np.isclose(scales[method], clip / 127, rtol=1e-6)
        assert np.isclose(float(stored(model, quantizer(model, "x").input[1])) * 127, np.abs(samples((24, 4, 8, 8))).max(), rtol=0.1)
    assert scales["minmax"] > 1.9 * float(source.activations["r1"].scale), "half the levels of a rectified tensor are not used"


@pytest.mark.parametrize(("sums", "pairs"), [("both", True), ("shortcut", False)])
def test_the_product_of_a_sum_is_rounded_or_not(sums: str, pairs: bool, source: Neutral, tmp_path: Path) -> None:
    model = onnx.load(write(source, tmp_path, sums=sums).main)
    assert any(each.op_type == "QuantizeLinear" and each.input[0] == "c2" for each in model.graph.node) == pairs
    assert any(each.op_type == "QuantizeLinear" and each.input[0] == "r1" for each in model.graph.node)


def test_products_in_floating_point_stay_there(tmp_path: Path) -> None:
    source = neutral_of(residual(), candidate=lambda group: None if group.kind == "Gemm" else STATIC)
    artifact = write(source, tmp_path)
    assert any("Gemm:y" in note for note in artifact.notes)
    assert named(onnx.load(artifact.main), "Gemm")[0].input[1] == "w3"


def test_onnxruntime_computes_its_numbers(source: Neutral, tmp_path: Path) -> None:
    for most in (1, 4):
        artifact = write(source, tmp_path / str(most), max_batch=most)
        opened = TensorRt().open(artifact, NUMERICS)
        assert relative_error(opened.run({"x": X})["y"], answers(source, X)) < 0.05
        assert opened.integers({"x": X}) is None, "the dense layer gives floating point"
        opened.close()


def test_a_candidate_without_grids_is_refused(source: Neutral, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="by-hand"):
        write(replace(source, weights={}, activations={}), tmp_path)


def test_what_the_parser_lacks_is_refused_with_its_part(tmp_path: Path) -> None:
    source = neutral_of(residual(node("BitShift", "bits bits", "shifted", direction="LEFT"), constants={"bits": np.array([1], np.uint8)}))
    with pytest.raises(ModelError, match="BitShift 'BitShift:shifted'") as caught:
        write(source, tmp_path)
    assert caught.value.hint is not None


# Building --------------------------------------------------------------------------------------------------------------

INPUTS = (TensorInfo("x", ("N", 3, 32, 32), "float32"), TensorInfo("a mask", ("N", 7), "float32"))


def test_shapes_are_given_where_the_batch_is_open() -> None:
    assert shapes(INPUTS, 8) == "x:8x3x32x32,a mask:8x7"
    assert flags("net.onnx", INPUTS, 1) == ["--onnx=net.onnx", "--saveEngine=net.plan", "--stronglyTyped"]
    assert flags("net.onnx", INPUTS, 8)[3:] == [
        "--minShapes=x:1x3x32x32,a mask:1x7",
        "--optShapes=x:8x3x32x32,a mask:8x7",
        "--maxShapes=x:8x3x32x32,a mask:8x7",
    ]


def test_names_that_trtexec_would_cut_are_quoted() -> None:
    assert shapes([TensorInfo("input:0", ("N", 3), "float32"), *INPUTS[1:]], 2) == "'input:0':2x3,a mask:2x7"


@pytest.mark.parametrize("most", [1, 8])
def test_the_command_gives_trtexec_just_these_flags(most: int, source: Neutral, tmp_path: Path) -> None:
    artifact = write(source, tmp_path, max_batch=most)
    assert [file.name for file in artifact.files] == ["case.onnx", "build.sh"]
    tool = tmp_path / "trtexec"
    tool.write_text('#!/bin/sh\npwd\nfor each in "$@"; do echo "$each"; done\n')
    tool.chmod(0o755)
    ran = subprocess.run(
        [str(tmp_path / "build.sh"), "--verbose"],
        env={**os.environ, "TRTEXEC": str(tool)},
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    lines = ran.stdout.splitlines()
    assert Path(lines[0]).samefile(tmp_path)
    assert lines[1:] == [*flags("case.onnx", source.inputs, most), "--verbose"]
    first = onnx.load(artifact.main).graph.input[0].type.tensor_type.shape.dim[0]
    assert first.dim_value == 1 if most == 1 else first.dim_param == "N"


def test_a_batch_below_one_is_refused(source: Neutral, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max_batch=0"):
        write(source, tmp_path, max_batch=0)


def test_without_a_gpu_it_says_that_nothing_was_built(source: Neutral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ready", lambda: False)
    able = TensorRt().abilities()
    assert (able.level, able.words) == ("checked", "rules hold; not built")
    artifact = write(source, tmp_path)
    assert any("Not built" in note for note in artifact.notes)
    assert TensorRt().kernel_sets(artifact) == (NUMERICS,)
    with pytest.raises(RunError, match="no kernels 'tensorrt'"):
        TensorRt().open(artifact, "tensorrt")


@pytest.mark.parametrize("most", [1, 4])
def test_an_engine_answers_as_the_file_says(most: int, source: Neutral, tmp_path: Path) -> None:
    if not engine.ready():
        pytest.skip("TensorRT and an NVIDIA GPU are needed")
    artifact = write(source, tmp_path, max_batch=most)
    found = {}
    for kernels in TensorRt().kernel_sets(artifact):
        opened = TensorRt().open(artifact, kernels)
        found[kernels] = opened.run({"x": X})["y"]
        opened.close()
    assert relative_error(found["tensorrt"], found[NUMERICS]) < 0.03
