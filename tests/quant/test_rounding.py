"""Rounding with knowledge of the inputs: against textbook GPTQ, against brute force, and on real layers."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import UsageError
from lowbit.quant import affine, clipping, layout, rounding
from lowbit.quant.error import sqnr
from lowbit.quant.learned import learned_rounding
from lowbit.quant.moments import Moments
from lowbit.types import Array


def correlated(rng: np.random.Generator, rows: int, inputs: int, *groups: int) -> Array:
    """Rows [R, *groups, K] with a few strong common factors, as real activations have."""
    mix = rng.normal(size=(*groups, inputs, inputs)) * np.exp(rng.normal(size=(*groups, inputs, 1)))
    return np.einsum("r...k,...kj->r...j", rng.normal(size=(rows, *groups, inputs)), mix).astype(np.float32)


def grids(weights: Array, dtype: str, symmetric: bool) -> list[affine.Affine]:
    """Per tensor, per row, in blocks of three."""
    return [
        affine.from_values(weights, dtype, symmetric=symmetric),
        affine.from_values(weights, dtype, symmetric=symmetric, axis=0),
        affine.from_values(weights, dtype, symmetric=symmetric, axis=-1, block=3),
    ]


def gptq(weights: Array, grid: affine.Affine, hessian: Array) -> Array:
    """The algorithm as the paper writes it: inverse Hessian, its upper Cholesky factor, errors pushed to later columns."""
    inverse = np.linalg.cholesky(np.linalg.inv(hessian)).T
    left, result = weights.astype(np.float64).copy(), np.zeros(weights.shape)
    for k in range(weights.shape[1]):
        result[:, k] = affine.round_trip(left, grid)[:, k]
        step = (left[:, k] - result[:, k]) / inverse[k, k]
        left[:, k + 1 :] -= step[:, None] * inverse[k, k + 1 :]
    return result


@pytest.mark.parametrize("inputs", [7, 64, 150])
def test_it_is_gptq(inputs: int) -> None:
    rng = np.random.default_rng(0)
    weights, moments = rng.normal(size=(5, inputs)), Moments.of(correlated(rng, 3 * inputs, inputs))
    grid = affine.from_values(weights, "int4", symmetric=True, axis=0)
    _, hessian = rounding.problem(weights, moments)
    found = rounding.with_feedback(weights, grid, moments, by_activation=False, sweeps=0)
    assert found == pytest.approx(gptq(weights, grid, hessian), abs=1e-6)


def test_the_order_by_activation_is_a_permutation_of_the_problem() -> None:
    rng = np.random.default_rng(1)
    rows, weights = correlated(rng, 60, 9), rng.normal(size=(4, 9))
    grid = affine.from_values(weights, "int3", symmetric=False, axis=0)
    order = np.argsort(-np.sum(rows**2, axis=0))
    expected = rounding.with_feedback(weights[:, order], grid, Moments.of(rows[:, order]), by_activation=False, sweeps=0)
    assert np.array_equal(rounding.with_feedback(weights, grid, Moments.of(rows), sweeps=0)[:, order], expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 9), st.sampled_from(["int2", "int4", "uint3", "int8"]), st.booleans())
def test_the_result_is_on_the_grid_and_no_worse(seed: int, outputs: int, inputs: int, dtype: str, symmetric: bool) -> None:
    rng = np.random.default_rng(seed)
    rows, weights = correlated(rng, 20, inputs), rng.normal(size=(outputs, inputs)).astype(np.float32)
    moments = Moments.of(rows)
    for grid in grids(weights, dtype, symmetric):
        target, hessian = rounding.problem(weights, moments)
        nearest = rounding.to_nearest(weights, grid)
        assert np.array_equal(nearest, affine.round_trip(weights, grid))
        for found in (rounding.with_feedback(weights, grid, moments), learned_rounding(weights, grid, moments, steps=20)):
            assert found.dtype == np.float32
            assert np.array_equal(affine.round_trip(found, grid), found)
        # Descent ends where no single level can be changed for the better.
        best = rounding.with_feedback(weights, grid, moments, sweeps=100).astype(np.float64)
        least = rounding.loss(best, target, hessian)
        step = np.broadcast_to(affine.aligned(grid, weights.shape)[0], weights.shape)
        for sign, row, column in product((-1, 1), range(outputs), range(inputs)):
            other = best.copy()
            other[row, column] += sign * step[row, column]
            other = affine.round_trip(other, grid).astype(np.float64)
            assert rounding.loss(other, target, hessian) >= least * (1 - 1e-5) - 1e-9


def test_it_is_near_the_best_of_all_roundings() -> None:
    rng = np.random.default_rng(3)
    found, best, plain = 0.0, 0.0, 0.0
    for _ in range(20):
        rows, weights = correlated(rng, 30, 5), rng.normal(size=(1, 5))
        grid = affine.from_values(weights, "int2", symmetric=False, axis=0)
        moments = Moments.of(rows)
        target, hessian = rounding.problem(weights, moments)
        levels = np.unique(affine.dequantize(np.arange(-2, 2), affine.Affine(grid.scale[0], grid.zero_point[0], "int2", False)))
        every = np.array(list(product(levels, repeat=5)))
        best += min(float(rounding.loss(each[None], target, hessian)) for each in every)
        found += float(rounding.loss(rounding.with_feedback(weights, grid, moments), target, hessian))
        plain += float(rounding.loss(rounding.to_nearest(weights, grid), target, hessian))
    assert best <= found <= 1.5 * best
    assert plain > 2 * best


def test_learning_takes_neighbours_and_gets_half_way_to_feedback() -> None:
    rng = np.random.default_rng(8)
    rows, weights = correlated(rng, 200, 24), rng.normal(size=(16, 24)).astype(np.float32)
    grid, moments = affine.from_values(weights, "int4", symmetric=True, axis=0), Moments.of(rows)
    target, hessian = rounding.problem(weights, moments)
    learned = learned_rounding(weights, grid, moments)
    step = affine.aligned(grid, weights.shape)[0]
    assert np.all(np.abs(learned - weights) <= step * 1.001)
    plain, found, fed = (
        float(rounding.loss(q, target, hessian))
        for q in (rounding.to_nearest(weights, grid), learned, rounding.with_feedback(weights, grid, moments))
    )
    assert found < 0.7 * plain
    assert fed < found


@pytest.mark.parametrize("method", [rounding.with_feedback, learned_rounding])
def test_groups_are_separate_problems(method: object) -> None:
    assert callable(method)
    rng = np.random.default_rng(4)
    rows, weights = correlated(rng, 50, 9, 6), rng.normal(size=(6, 2, 9)).astype(np.float32)
    grid = affine.from_values(weights, "int4", symmetric=True, axis=-1, block=9)
    together = method(weights, grid, Moments.of(rows))
    for g in range(6):
        own = affine.from_values(weights[g], "int4", symmetric=True, axis=0)
        assert np.array_equal(together[g], method(weights[g], own, Moments.of(rows[:, g])))


def test_noisy_inputs_are_answered_with_other_weights() -> None:
    rng = np.random.default_rng(5)
    rows, weights = correlated(rng, 4000, 12), rng.normal(size=(8, 12)).astype(np.float32)
    seen = (0.9 * rows + 0.3 * correlated(rng, 4000, 12)).astype(np.float32)
    moments = Moments.of(rows, seen)
    target, _ = rounding.problem(weights, moments, damping=1e-6)
    assert target == pytest.approx(np.linalg.lstsq(seen, rows @ weights.T, rcond=None)[0].T, abs=2e-3)
    grid = affine.from_values(weights, "int6", symmetric=True, axis=0)
    exact = rows @ weights.T
    knowing = sqnr(exact, seen @ rounding.with_feedback(weights, grid, moments).T)
    ignorant = sqnr(exact, seen @ rounding.with_feedback(weights, grid, Moments.of(rows)).T)
    assert knowing > ignorant + 0.5
    same, _ = rounding.problem(weights, Moments.of(rows, rows))
    assert same == pytest.approx(weights, abs=1e-4)


def test_inputs_that_never_vary_do_no_harm() -> None:
    weights = np.random.default_rng(6).normal(size=(3, 8)).astype(np.float32)
    grid = affine.from_values(weights, "int4", symmetric=True, axis=0)
    for rows in (np.zeros((10, 8)), np.ones((10, 8))):
        assert np.isfinite(rounding.with_feedback(weights, grid, Moments.of(rows))).all()
    silent = rounding.with_feedback(weights, grid, Moments.of(np.zeros((10, 8))))
    assert np.array_equal(silent, affine.round_trip(weights, grid))


def test_what_does_not_fit_is_said() -> None:
    weights, moments = np.zeros((2, 3)), Moments.of(np.ones((4, 5)))
    grid = affine.from_range(-1, 1, "int4", symmetric=True)
    with pytest.raises(UsageError, match="need moments"):
        rounding.with_feedback(weights, grid, moments)
    with pytest.raises(UsageError, match="finite"):
        rounding.with_feedback(np.full((2, 5), np.nan), grid, moments)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 30), min_size=1, max_size=5), st.booleans())
def test_moments_do_not_depend_on_chunks(seed: int, sizes: list[int], both: bool) -> None:
    rng = np.random.default_rng(seed)
    rows, seen = (rng.normal(1, 1, size=(sum(sizes), 3, 4)).astype(np.float32) for _ in range(2))
    whole = Moments.of(rows, seen if both else None)
    cuts = np.cumsum(sizes)[:-1]
    parts = [Moments.of(a, b if both else None) for a, b in zip(np.split(rows, cuts), np.split(seen, cuts), strict=True)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert merged.count == len(rows)
    assert merged.gram == pytest.approx(whole.gram, rel=1e-4, abs=1e-3)
    assert merged.mean == pytest.approx(rows.mean(axis=0), abs=1e-5)
    centred = merged.centred()
    x = (seen if both else rows) - (seen if both else rows).mean(axis=0)
    assert centred.gram[1] == pytest.approx(x[:, 1].T @ x[:, 1], abs=2e-3)
    if both and merged.cross is not None and centred.cross is not None:
        assert merged.cross[2] == pytest.approx(rows[:, 2].T @ seen[:, 2], abs=1e-3)
        assert centred.cross[2] == pytest.approx((rows - rows.mean(axis=0))[:, 2].T @ x[:, 2], abs=2e-3)


def test_moments_refuse_what_does_not_fit() -> None:
    rows = np.ones((4, 3))
    for wrong in (np.ones(3), np.ones((0, 3))):
        with pytest.raises(UsageError, match="rows"):
            Moments.of(wrong)
    with pytest.raises(UsageError, match="same in both"):
        Moments.of(rows, np.ones((3, 3)))
    with pytest.raises(UsageError, match="cannot be merged"):
        Moments.of(rows).merge(Moments.of(rows, rows))


def test_real_convolutions_gain_several_decibels(shared_data: Path) -> None:
    """Inner layers of ResNet-20 at four bits; judged on images that the rounding has not seen."""
    import onnx
    import onnxruntime as ort
    from onnx import helper, numpy_helper

    model = onnx.load(shared_data / "cifar10-resnet" / "resnet20.onnx")
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    chosen = [convs[1], convs[12]]
    model.graph.output.extend(helper.make_empty_tensor_value_info(node.input[0]) for node in chosen)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    images = np.load(shared_data / "cifar10" / "cifar10_train5k.npz")["images"][:64].astype(np.float32)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    inputs = session.run([node.input[0] for node in chosen], {"input": (images / 255 - mean) / std})
    for node, x in zip(chosen, inputs, strict=True):
        at = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        shape = (at["kernel_shape"], at["strides"], at["pads"], at["dilations"])
        matrix = layout.as_matrices(weights[node.input[1]])[0]
        known, unseen = (
            layout.patches(part, *shape, layout.sample_positions(len(part), layout.output_size(part.shape[2:], *shape), 2000))
            for part in (x[:40], x[40:])
        )
        moments = Moments.of(known)
        grid = clipping.best_scales(matrix, "int4", symmetric=True, power=np.diag(moments.gram))
        exact = unseen @ matrix.T
        nearest, fed, learned = (
            sqnr(exact, unseen @ quantized.T)
            for quantized in (
                rounding.to_nearest(matrix, grid),
                rounding.with_feedback(matrix, grid, moments),
                learned_rounding(matrix, grid, moments),
            )
        )
        assert fed > nearest + 1.5
        assert learned > nearest + 0.7
