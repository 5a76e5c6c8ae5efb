"""Fake quantization: onnxruntime's integers forward, LSQ's gradients backward."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import Array, Case, floats, runtime, save

from lowbit.quant.affine import from_values
from lowbit.train.fake_quantize import FakeQuantize


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantize") / "one.onnx"


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([np.uint8, np.int8, np.uint16, np.int16]),
    st.floats(1e-5, 1.0),
    st.floats(0, 1),
)
def test_integers_are_onnxruntimes(model: Path, seed: int, dtype: type, scale: float, middle: float) -> None:
    """Also at the ties, where half goes to even, and beyond both ends."""
    ends = np.iinfo(dtype)
    step, zero = np.float32(scale), np.array(round(ends.min + middle * (ends.max - ends.min)), dtype)
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(0, 80 * scale, 500), (np.arange(-300, 300) + 0.5) * step]).astype(np.float32)
    case = Case("QuantizeLinear", (x, np.array(step), zero))
    wanted = runtime(save(case, model), {"x0": x, "x1": np.array(step), "x2": zero}, optimized=False)["y0"]
    made = FakeQuantize(np.array(step), zero.astype(np.int32), ends.min, ends.max)
    np.testing.assert_array_equal(made.integers(torch.from_numpy(x)).numpy(), wanted.astype(np.int32))
    back = (wanted.astype(np.int32) - int(zero)).astype(np.float32) * step
    np.testing.assert_array_equal(made(torch.from_numpy(x)).detach().numpy(), back)


def reference(x: Array, scale: Array, zero: Array, low: int, high: int, upstream: Array, n: float) -> tuple[Array, Array]:
    """LSQ's formula (equation 3 of the paper, with its gradient scale) elementwise in float64: gradients of the values and the scale."""
    steps = x.astype(np.float64) / scale
    inside = (steps >= low - zero) & (steps <= high - zero)
    change = np.where(inside, np.round(steps) - steps, np.clip(steps, low - zero, high - zero))
    top = max((high - zero).max(), (zero - low).max())
    return upstream * inside, upstream * change / math.sqrt(n * top)


@pytest.mark.parametrize(("zero", "low", "high"), [(0, -127, 127), (0, 0, 255), (101, 0, 255), (0, -7, 7), (0, -1, 1)])
def test_gradients_of_one_scale_follow_lsq(zero: int, low: int, high: int) -> None:
    x, upstream = floats(4, 3, 5, low=-8, high=8), floats(4, 3, 5, seed=1)
    made = FakeQuantize(np.array(0.05, np.float32), np.array(zero), low, high)
    given_ = torch.from_numpy(x).requires_grad_()
    made(given_).backward(torch.from_numpy(upstream))
    to_x, to_scale = reference(x, np.array(0.05, np.float32), np.array(zero), low, high, upstream, n=15)
    assert given_.grad is not None
    assert made.scale.grad is not None
    np.testing.assert_array_equal(given_.grad.numpy(), to_x.astype(np.float32))
    np.testing.assert_allclose(made.scale.grad.numpy(), to_scale.sum(), rtol=1e-4)


def test_gradients_of_channels_count_their_own_values() -> None:
    x, upstream = floats(6, 4, 3), floats(6, 4, 3, seed=1)
    scale = np.array([0.01, 0.1, 0.3, 1.0], np.float32)
    made = FakeQuantize(scale, np.zeros(4), -7, 7, axis=1, batched=False)
    made(torch.from_numpy(x)).backward(torch.from_numpy(upstream))
    _, to_scale = reference(x, scale.reshape(1, 4, 1), np.zeros((1, 4, 1)), -7, 7, upstream, n=18)
    assert made.scale.grad is not None
    np.testing.assert_allclose(made.scale.grad.numpy(), to_scale.sum((0, 2)), rtol=1e-4)


def test_gradients_of_blocks_stay_in_their_blocks() -> None:
    x, upstream = floats(5, 3), floats(5, 3, seed=1)
    grid = from_values(x, "int4", symmetric=True, axis=0, block=2)
    made = FakeQuantize(grid.scale * 0.7, grid.zero_point, -7, 7, axis=0, block=2, batched=False)
    made(torch.from_numpy(x)).backward(torch.from_numpy(upstream))
    wide = np.take(grid.scale * np.float32(0.7), [0, 0, 1, 1, 2], axis=0)
    _, to_scale = reference(x, wide, np.zeros((5, 3)), -7, 7, upstream, n=15 / 9)
    assert made.scale.grad is not None
    np.testing.assert_allclose(made.scale.grad.numpy(), np.add.reduceat(to_scale, [0, 2, 4], axis=0), rtol=1e-4)


def test_the_scales_gradient_is_the_slope_outside_the_grid() -> None:
    """Where all values saturate nothing is rounded, so that finite differences see the same slope."""
    x = torch.full((1, 8), 9.0)
    made = FakeQuantize(np.array(0.02, np.float32), np.array(0), 0, 255)
    made(x).sum().backward()
    with torch.no_grad():
        before = made(x).sum()
        made.scale += 1e-3
        slope = (made(x).sum() - before) / 1e-3
    assert made.scale.grad is not None
    assert float(made.scale.grad) * math.sqrt(8 * 255) == pytest.approx(float(slope), rel=1e-3)


def test_a_scale_stays_positive_and_comes_back() -> None:
    made = FakeQuantize(np.array(0.5, np.float32), np.array(0), -7, 7)
    with torch.no_grad():
        made.scale.fill_(-3.0)
    assert float(made.positive_scale().detach()) == pytest.approx(0.0005, rel=1e-3)
    made(torch.full((1, 4), 5.0)).sub(5).square().sum().backward()
    assert made.scale.grad is not None
    assert float(made.scale.grad) < 0  # descent raises it


def test_training_a_scale_finds_a_better_one_than_min_max() -> None:
    """Heavy tails on 15 levels: clipping beats covering."""
    x = torch.from_numpy(np.random.default_rng(0).standard_t(3, (1, 4000)).astype(np.float32))
    made = FakeQuantize(np.array(float(x.abs().max()) / 7, np.float32), np.array(0), -7, 7)
    errors = []
    descent = torch.optim.Adam([made.scale], lr=0.02)
    for _ in range(300):
        error = (made(x) - x).square().mean()
        descent.zero_grad()
        error.backward()
        descent.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.5 * errors[0]


def test_another_grid_of_the_same_form() -> None:
    made = FakeQuantize(np.ones((2,), np.float32), np.zeros(2), -127, 127, axis=0)
    made.regrid(np.array([0.5, 2.0], np.float32), np.zeros(2), -1, 1)
    np.testing.assert_array_equal(made(torch.tensor([[9.0], [-9.0]])).detach().numpy(), [[0.5], [-2.0]])
    assert "levels -1 to 1" in repr(made)


def test_binary_weights_are_their_sign_times_their_mean_size() -> None:
    x = torch.from_numpy(floats(4, 3, 5, seed=3))
    made = FakeQuantize(np.full(4, 0.01, np.float32), np.zeros(4), -127, 127, axis=0, batched=False)
    made.binarize(x)
    sizes = x.abs().mean((1, 2))
    np.testing.assert_allclose(made.scale.detach().numpy(), sizes.numpy(), rtol=1e-6)
    assert made.integers(x).unique().tolist() == [-1, 1]
    wanted = np.where(x.numpy() < 0, -1, 1) * sizes.numpy()[:, None, None]
    np.testing.assert_allclose(made(x).detach().numpy(), wanted, rtol=1e-6)
    assert "levels -1 or 1" in repr(made)


def test_gradients_of_binary_weights_pass_and_the_scale_learns_by_the_sign() -> None:
    x, upstream = floats(4, 6), floats(4, 6, seed=1)
    made = FakeQuantize(np.ones(4, np.float32), np.zeros(4), -127, 127, axis=0, batched=False)
    given_ = torch.from_numpy(x).requires_grad_()
    made.binarize(given_.detach())
    made(given_).backward(torch.from_numpy(upstream))
    assert given_.grad is not None
    assert made.scale.grad is not None
    np.testing.assert_array_equal(given_.grad.numpy(), upstream)
    np.testing.assert_allclose(made.scale.grad.numpy(), (upstream * np.where(x < 0, -1, 1)).sum(1) / math.sqrt(6), rtol=1e-4)


def test_a_channel_of_zeros_keeps_its_scale_when_it_becomes_binary() -> None:
    made = FakeQuantize(np.array([0.5, 0.25], np.float32), np.zeros(2), -127, 127, axis=0, batched=False)
    made.binarize(torch.tensor([[0.0, 0.0], [3.0, -1.0]]))
    np.testing.assert_array_equal(made.scale.detach().numpy(), [0.5, 2.0])
