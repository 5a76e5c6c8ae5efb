"""Fitting helps on rows it has not seen or does nothing, and what it fits is what the artifact stores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from graph_cases import Case, node, weights
from lowbit.compress import products
from lowbit.compress.fit import ENOUGH, GAIN, _Problem
from lowbit.compress.static import write_static
from lowbit.graph.profiles import ONNXRUNTIME_CPU
from lowbit.quant.affine import Affine, from_values, quantize, round_trip
from lowbit.recipe import QuantSpec
from lowbit.types import Array
from transform_cases import conv_net, error_of, evidence, static


def problem(rows: int, groups: int = 1, inputs: int = 6, *, has_bias: bool = True, seed: int = 0, dtype: str = "int4") -> _Problem:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(0, 1, (inputs, inputs))
    x = (rng.normal(0.5, 1, (rows, groups, inputs)) @ mixing).astype(np.float32)  # inputs that belong together: feedback has work to do
    exact = rng.normal(0, 0.3, (groups, 4, inputs)).astype(np.float32)
    flat = exact.reshape(-1, inputs)
    grid = from_values(flat, dtype, symmetric=True, axis=0)
    laid = Affine(grid.scale.reshape(groups, 4, 1), grid.zero_point.reshape(groups, 4, 1), dtype, True, axis=-1, block=inputs)
    return _Problem(exact, laid, x, from_values(x, "uint8", symmetric=False), has_bias)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 80), st.sampled_from([1, 3]), st.booleans())
def test_no_way_is_taken_that_is_worse_on_unseen_rows(seed: int, rows: int, groups: int, has_bias: bool) -> None:
    case = problem(rows, groups, has_bias=has_bias, seed=seed)
    way = case.best()
    half, seen = rows // 2, round_trip(case.rows, case.seen)
    (part,) = case._parts()
    wrong = {}
    for plain in (False, True):
        feedback, corrected = (False, False) if plain else (way.feedback, way.corrected)
        quantized, shift = part.solve(feedback, corrected, slice(half))
        exact = np.einsum("rgk,gok->rgo", case.rows[half:], case.exact)
        wrong[plain] = np.sum((np.einsum("rgk,gok->rgo", seen[half:], quantized) + shift - exact) ** 2) / np.sum(exact**2)
    assert wrong[False] == pytest.approx(way.error, rel=1e-3, abs=1e-9)
    assert wrong[True] == pytest.approx(way.plain, rel=1e-3, abs=1e-9)
    assert (way.feedback, way.corrected) == (False, False) or way.error <= GAIN * way.plain
    assert has_bias or not way.corrected
    assert half >= ENOUGH * 6 or not way.feedback


def test_groups_a_few_at_a_time_are_fitted_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case = problem(60, groups=5)
    whole, way = case.solve(True, True), case.best()
    monkeypatch.setattr(products, "PART", 2 * 60 * 6)
    assert [part.exact.shape[0] for part in case._parts()] == [2, 2, 1]
    for one, all_ in zip(case.solve(True, True), whole, strict=True):
        np.testing.assert_array_equal(one, all_)
    split = case.best()
    assert (split.feedback, split.corrected) == (way.feedback, way.corrected)
    assert (split.error, split.plain) == pytest.approx((way.error, way.plain), rel=1e-5)


def test_with_many_rows_feedback_wins() -> None:
    way = problem(2000).best()
    assert way.feedback
    assert way.error < 0.7 * way.plain


def test_one_row_is_too_few_to_choose_by() -> None:
    way = problem(1).best()
    assert (way.feedback, way.corrected) == (False, False)


def stored(path: Path) -> dict[str, Array]:
    return {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


def fitted(case: Case, folder: Path, *transforms: str, **more: object):
    seen, _ = evidence(case, folder)
    return write_static(seen, folder / "m.onnx", static(*transforms, **more), ONNXRUNTIME_CPU)


def test_a_conv_net_with_few_bits_answers_better(tmp_path: Path) -> None:
    case = conv_net(uneven=False)
    four = dict.fromkeys(("conv1", "conv2", "gemm"), "w4a8")
    fitted(case, tmp_path, formats=four)
    plain = error_of(tmp_path / "m.onnx", case)
    made = fitted(case, tmp_path, "fit", formats=four)
    assert made.ways["conv2"].feedback
    assert error_of(tmp_path / "m.onnx", case) < 0.8 * plain


@pytest.mark.parametrize("transforms", [("fit",), ("equalize", "fit")])
def test_fitted_weights_are_exactly_what_is_stored(transforms: tuple[str, ...], tmp_path: Path) -> None:
    made = fitted(conv_net(), tmp_path, *transforms)
    (tmp_path / "plain").mkdir()
    fitted(conv_net(), tmp_path / "plain", *[t for t in transforms if t != "fit"])
    constants = stored(tmp_path / "m.onnx")
    before = stored(tmp_path / "plain" / "m.onnx")
    for weight in ("w1", "w2", "w3"):
        levels, scale = constants[f"{weight}_quantized"], constants[f"{weight}_scale"]
        assert levels.dtype == np.int8
        np.testing.assert_array_equal(scale, made.table[weight].scale)
        np.testing.assert_array_equal(scale, before[f"{weight}_scale"])  # fitting moves levels, never the grid
        real = levels * scale.reshape(-1, *[1] * (levels.ndim - 1))
        np.testing.assert_array_equal(quantize(real.astype(np.float32), made.table[weight]), levels)
    for name, weight in (("conv1", "w1"), ("conv2", "w2"), ("gemm", "w3")):
        assert bool((constants[f"{weight}_quantized"] != before[f"{weight}_quantized"]).any()) == made.ways[name].feedback
    assert any(way.feedback for way in made.ways.values())


def test_biases_are_integers_on_the_grid_of_their_product(tmp_path: Path) -> None:
    case = conv_net(uneven=False)
    made = fitted(case, tmp_path, "fit")
    constants = stored(tmp_path / "m.onnx")
    for number, source in ((1, "x"), (2, "r1")):
        levels = constants[f"b{number}_quantized"]
        assert levels.dtype == np.int32
        scale = made.table[source].scale * made.table[f"w{number}"].scale
        np.testing.assert_allclose(constants[f"b{number}_scale"], scale, rtol=1e-6)
        assert np.abs(levels * scale - case.constants[f"b{number}"]).max() < 0.02  # corrected, by little


def test_products_without_a_bias_are_given_one(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "p"), node("Conv", "p w", "c", "conv"), node("Relu", "c", "y")]
    case = Case(nodes, {"x": ["N", 3, 6, 6]}, ["y"], {"w": weights(4, 3, 3, 3) + np.float32(0.2)})
    made = fitted(case, tmp_path, "fit", formats={"conv": "w4a8"})
    assert made.ways["conv"].corrected
    assert np.abs(stored(tmp_path / "m.onnx")["conv_bias_quantized"]).max() > 0


def test_one_number_for_all_biases_stays(tmp_path: Path) -> None:
    case = Case([node("Gemm", "x w b", "y", "g")], {"x": ["N", 6]}, ["y"], {"w": weights(6, 4), "b": np.float32(0.5)})
    made = fitted(case, tmp_path, "fit", formats={"g": "w4a8"})
    assert not made.ways["g"].corrected
    assert error_of(tmp_path / "m.onnx", case) < 0.15


def test_weights_in_blocks_are_fitted_on_their_blocks(tmp_path: Path) -> None:
    case = Case([node("MatMul", "x w", "y", "m")], {"x": ["N", 8, 32]}, ["y"], {"w": weights(32, 6)})
    seen, _ = evidence(case, tmp_path)
    four = QuantSpec("int4", "per-group", symmetric=True, block=8)
    errors = []
    for transforms in ((), ("fit",)):
        made = write_static(seen, tmp_path / "m.onnx", replace(static(*transforms), weights=four), ONNXRUNTIME_CPU)
        errors.append(error_of(tmp_path / "m.onnx", case))
    assert made.table["w"].scale.shape == (4, 6)
    assert errors[1] <= errors[0] * 1.01


def test_what_reads_a_second_grid_is_fitted_to_that(tmp_path: Path) -> None:
    nodes = [
        node("LayerNormalization", "x g", "n"),
        node("MatMul", "n w1", "y", "eight"),
        node("MatMul", "n w2", "z", "sixteen"),
    ]
    constants = {"g": np.ones(16, np.float32), "w1": weights(16, 4), "w2": weights(16, 4, seed=1)}
    case = Case(nodes, {"x": ["N", 16]}, ["y", "z"], constants)
    made = fitted(case, tmp_path, "fit", formats={"sixteen": "w8a16"})
    grids = {made.table[entry.key].dtype: entry.key for entry in made.placement.activations}
    assert set(grids) == {"uint8", "uint16"}
    only = fitted(Case(nodes, case.inputs, ["y", "z"], constants), tmp_path, "fit", formats={"eight": "float", "sixteen": "w8a16"})
    assert made.ways["sixteen"] == only.ways["sixteen"]
    assert made.ways["sixteen"].plain < made.ways["eight"].plain


def test_a_small_gain_is_no_reason() -> None:
    ways = [problem(40, seed=seed, dtype="int8").best() for seed in range(60)]
    taken = [way for way in ways if way.feedback or way.corrected]
    assert all(way.error <= GAIN * way.plain for way in taken)
    assert 0 < len(taken) < len(ways)
