"""Rounding with feedback: against the house's own for small matrices, against brute force, and never worse than to nearest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from decoder_case import need
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import DataError
from lowbit.llm.linear import Grid

need("torch")
import torch  # noqa: E402

from lowbit.llm.methods.gptq import damped, loss, rounded, target  # noqa: E402
from lowbit.llm.methods.grids import Scales, min_max, searched  # noqa: E402
from lowbit.llm.methods.inputs import Inputs  # noqa: E402


def case(seed: int, rows: int = 24, columns: int = 48, tokens: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and the Gram matrix of inputs that hang together."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(columns, columns)) * np.exp(random.normal(size=columns))
    inputs = random.normal(size=(tokens, columns)) @ mixing
    return torch.from_numpy(random.normal(0, 0.1, (rows, columns)).astype(np.float32)), torch.from_numpy(
        (inputs.T @ inputs / tokens).astype(np.float32)
    )


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([None, 16, 20]),
    st.booleans(),
    st.sampled_from([0, 3]),
)
def test_the_output_is_never_worse_than_rounded_to_nearest(seed: int, bits: int, group: int | None, symmetric: bool, sweeps: int) -> None:
    weights, gram = case(seed)
    grid = Grid(bits, group, symmetric)
    levels, scales = rounded(weights, gram, grid, sweeps=sweeps)
    assert levels.min() >= 0
    assert levels.max() < 2**bits
    assert (levels == levels.round()).all()
    assert (scales.scale == scales.scale.half().float()).all()
    hessian, nearest = damped(gram, 48), searched(weights, grid, gram.diagonal())
    assert loss(weights - scales.weights(levels), hessian) < loss(weights - nearest.weights(nearest.nearest(weights)), hessian)


@pytest.mark.parametrize("symmetric", [True, False])
def test_without_descent_it_is_the_feedback_rounding_of_the_house(symmetric: bool) -> None:
    from lowbit.quant.affine import Affine
    from lowbit.quant.moments import Moments
    from lowbit.quant.rounding import with_feedback

    weights, gram = case(1)
    grid = Grid(4, None, symmetric)
    scales = min_max(weights, grid)
    levels, _ = rounded(weights, gram, grid, sweeps=0, scales=scales)
    zero = scales.zero.numpy()[:, 0] - 8
    affine = Affine(scales.scale.numpy()[:, 0], zero.astype(np.int32), "int4", False, axis=0)
    moments = Moments(1, gram.double().numpy(), None, np.zeros(48), np.zeros(48))
    known = with_feedback(weights.numpy(), affine, moments, sweeps=0)
    off = np.abs(scales.weights(levels).numpy() - known) > 1e-5
    assert off.mean() < 0.01  # a tie that float32 rounds the other way moves some of what follows


def test_no_single_level_can_be_improved_and_brute_force_is_near() -> None:
    weights, gram = case(2, rows=6, columns=5)
    grid = Grid(2)
    scales = searched(weights, grid)
    levels, _ = rounded(weights, gram, grid, refit=False, sweeps=50, scales=scales)
    hessian = damped(gram, 5)
    found = torch.tensor([loss((weights - scales.weights(levels))[row : row + 1], hessian) for row in range(6)])
    best = torch.full((6,), float("inf"))
    for every in itertools.product(range(4), repeat=5):
        tried = torch.tensor(every).float().expand(6, 5)
        error = weights - scales.weights(tried)
        losses = ((error @ hessian) * error).sum(-1)
        best = torch.minimum(best, losses)
        single = (tried != levels).sum(-1) <= 1
        assert (losses[single] >= found[single] * (1 - 1e-4)).all()
    assert found.sum() < 1.3 * best.sum()


def test_independent_inputs_are_rounded_to_nearest() -> None:
    weights, _ = case(3)
    scales = searched(weights, Grid(3, 16))
    levels, _ = rounded(weights, torch.eye(48), Grid(3, 16), refit=False, scales=scales)
    assert torch.equal(levels, scales.nearest(weights))


def test_fitting_scales_again_helps() -> None:
    weights, gram = case(4)
    hessian, grid = damped(gram, 48), Grid(2, 16)
    fixed, fitted = (rounded(weights, gram, grid, refit=refit) for refit in (False, True))
    assert loss(weights - fitted[1].weights(fitted[0]), hessian) < 0.97 * loss(weights - fixed[1].weights(fixed[0]), hessian)


def test_the_target_makes_up_for_inputs_that_changed() -> None:
    random = np.random.default_rng(5)
    exact = torch.from_numpy(random.normal(size=(600, 12)).astype(np.float32))
    reached = exact + 0.3 * torch.from_numpy(random.normal(size=(600, 12)).astype(np.float32)) @ torch.ones(12, 12) / 12
    weights = torch.from_numpy(random.normal(size=(7, 12)).astype(np.float32))
    inputs = Inputs.empty(12, "cpu", True)
    for start in range(0, 600, 100):
        inputs.add(reached[start : start + 100], exact[start : start + 100])
    torch.testing.assert_close(inputs.gram, reached.T @ reached / 600, rtol=1e-4, atol=1e-5)
    found = target(weights, inputs, 1e-6)
    best = torch.linalg.lstsq(reached, exact @ weights.T).solution.T
    torch.testing.assert_close(found, best, rtol=1e-3, atol=1e-3)
    inputs.cross = None
    assert target(weights, inputs) is weights


def test_a_gram_matrix_of_another_layer_is_refused() -> None:
    weights, gram = case(6)
    with pytest.raises(DataError, match="48 inputs"):
        rounded(weights, gram[:40, :40], Grid(4))
    with pytest.raises(DataError, match="finite"):
        rounded(weights, gram * float("inf"), Grid(4))


def test_scales_start_where_told() -> None:
    weights, gram = case(7)
    start = Scales(Grid(4, 16), torch.full((24, 3), 0.03125), torch.full((24, 3), 8.0))
    _, scales = rounded(weights, gram, Grid(4, 16), refit=False, scales=start)
    assert torch.equal(scales.scale, start.scale)
