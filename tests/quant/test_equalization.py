"""Cross-layer equalization: the function stays the same, the ranges become equal."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import UsageError
from lowbit.quant import equalization as cle
from lowbit.quant.equalization import Bounds, Layer
from lowbit.quant.layout import as_matrices, output_size, patches, sample_positions
from lowbit.types import Array


def conv(rng: np.random.Generator, outputs: int, inputs: int, groups: int = 1, kernel: int = 1) -> Layer:
    """With channels whose ranges differ by orders of magnitude."""
    weight = rng.normal(size=(outputs, inputs // groups, kernel, kernel)) * 10 ** rng.uniform(-2, 2, size=(outputs, 1, 1, 1))
    return Layer(weight.astype(np.float32), rng.normal(size=outputs).astype(np.float32), groups=groups)


def run(layers: list[Layer], x: Array) -> list[Array]:
    """Outputs of every layer, ReLU between them; x is [N, C, H, W]."""
    found = []
    for index, layer in enumerate(layers):
        kernel = layer.weight.shape[2:]
        shape = (kernel, (1, 1), (kernel[0] // 2,) * 4, (1, 1))
        extent = output_size(x.shape[2:], *shape)
        places = sample_positions(len(x), extent, 10**6)
        rows = patches(x, *shape, places).reshape(len(places), layer.groups, -1).astype(np.float64)
        flat = np.einsum("gok,rgk->rgo", as_matrices(layer.weight, layer.groups), rows).reshape(len(places), -1)
        assert layer.bias is not None
        x = np.moveaxis((flat + layer.bias).reshape(len(x), *extent, -1), -1, 1)
        found.append(x)
        x = np.maximum(x, 0) if index < len(layers) - 1 else x
    return found


def ranges(layer: Layer) -> tuple[Array, Array]:
    """Largest |weight| of each output and each input channel."""
    blocks = np.abs(layer.weight).reshape(layer.groups, layer.weight.shape[0] // layer.groups, layer.weight.shape[1], -1).max(axis=3)
    return blocks.max(axis=2).reshape(-1), blocks.max(axis=1).reshape(-1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_a_chain_with_a_depthwise_layer_keeps_its_function_and_gets_equal_ranges(seed: int, long: bool) -> None:
    rng = np.random.default_rng(seed)
    layers = [conv(rng, 6, 3), conv(rng, 6, 6, groups=6, kernel=3), conv(rng, 4, 6)]
    layers += [conv(rng, 8, 4, groups=2, kernel=3), conv(rng, 5, 8)] if long else []
    x = rng.normal(size=(2, 3, 4, 4))
    factors = cle.equalize(layers)
    equal = cle.apply(layers, factors)
    exact = run(layers, x)[-1]
    assert run(equal, x)[-1] == pytest.approx(exact, rel=1e-4, abs=1e-5 * np.abs(exact).max())
    for before, after in pairwise(equal):
        assert ranges(before)[0] == pytest.approx(ranges(after)[1], rel=0.01)
    assert [layer.weight.dtype for layer in equal] == [np.float32] * len(layers)


def test_two_layers_by_hand() -> None:
    first = Layer(np.array([[4.0], [1.0], [0.0]]), np.array([8.0, 1.0, 1.0]))
    second = Layer(np.array([[1.0, 4.0, 7.0]]), np.array([5.0]))
    (factor,) = cle.equalize([first, second])
    assert factor.tolist() == [2.0, 0.5, 1.0]  # a channel without weights stays
    equal = cle.apply([first, second], [factor])
    assert equal[0].weight.ravel().tolist() == [2.0, 2.0, 0.0]
    assert equal[0].bias is not None
    assert equal[0].bias.tolist() == [4.0, 2.0, 1.0]
    assert equal[1].weight.ravel().tolist() == [2.0, 2.0, 7.0]
    assert equal[1].bias is second.bias


def test_axes_of_matrix_products_and_transposed_convolutions() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 5)) * np.arange(1, 6), rng.normal(size=(5, 2))
    layers = [Layer(a, None, out_axis=1, in_axis=0), Layer(b, None, out_axis=1, in_axis=0)]
    one, two = cle.apply(layers, cle.equalize(layers))
    x = rng.normal(size=(7, 3))
    assert np.maximum(x @ one.weight, 0) @ two.weight == pytest.approx(np.maximum(x @ a, 0) @ b)
    assert np.abs(one.weight).max(axis=0) == pytest.approx(np.abs(two.weight).max(axis=1))
    # ConvTranspose: [I, O/g, kernel]; with two groups inputs 0-1 feed outputs 0-2, inputs 2-3 feed outputs 3-5.
    weight = rng.normal(size=(4, 3, 2))
    up = Layer(weight, None, out_axis=1, in_axis=0, groups=2)
    into, out = np.array([1.0, 2.0, 3.0, 4.0]), np.arange(1.0, 7.0)
    plain = Layer(np.ones((4, 1)), None)
    last = Layer(np.ones((1, 6)), None)
    scaled = cle.apply([plain, up, last], [into, out])[1].weight
    for i in range(4):
        for o in range(3):
            assert scaled[i, o] == pytest.approx(weight[i, o] * into[i] / out[3 * (i // 2) + o])


def test_a_clip_bounds_the_factors() -> None:
    low, high = np.array([-9.0, 0.0, 0.0, 0.0]), np.array([3.0, 6.0, 5.9, 0.0])
    relu6 = cle.clip_bounds(low, high, 0.0, 6.0, margin=0.0)
    assert relu6.least == pytest.approx([0.5, 1.0, 5.9 / 6, 0.0])
    assert relu6.most.tolist() == [np.inf, 1.0, np.inf, np.inf]
    assert cle.clip_bounds(low, high, 0.0, 6.0, margin=0.1).least == pytest.approx([0.55, 1.0, 1.0, 0.0])
    assert cle.clip_bounds(np.array([-2.0]), np.array([1.0]), -4.0, 4.0, margin=0.0).least.tolist() == [0.5]
    free = cle.clip_bounds(low, high, -np.inf, np.inf)
    assert (free.least.tolist(), free.most.tolist()) == ([0.0] * 4, [np.inf] * 4)
    with pytest.raises(UsageError, match="does not hold zero"):
        cle.clip_bounds(low, high, 1.0, 6.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_factors_within_a_clips_bounds_are_exact_on_what_was_seen(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second, x = rng.normal(size=(8, 4)) * 10 ** rng.uniform(-1, 1, (8, 1)), rng.normal(size=(3, 8)), rng.normal(size=(50, 4))
    layers = [Layer(first), Layer(second)]
    inner = x @ first.T
    bounds = cle.clip_bounds(inner.min(axis=0), inner.max(axis=0), 0.0, 6.0, margin=0.0)
    factors = cle.equalize(layers, [bounds])
    assert np.all((factors[0] >= bounds.least - 1e-12) & (factors[0] <= bounds.most))
    one, two = cle.apply(layers, factors)
    assert np.clip(x @ one.weight.T, 0, 6) @ two.weight.T == pytest.approx(np.clip(inner, 0, 6) @ second.T)


def test_absorbing_a_bias_is_exact_without_padding() -> None:
    rng = np.random.default_rng(1)
    layers = [conv(rng, 6, 3), conv(rng, 4, 6, groups=2), conv(rng, 2, 4)]
    assert layers[0].bias is not None
    layers[0].bias[:3] += 1000  # these three are never cut
    x = rng.normal(size=(2, 3, 4, 4))
    outputs = run(layers, x)
    low = outputs[0].min(axis=(0, 2, 3))
    assert (low > 0).sum() >= 3
    first, second = cle.absorb(layers[0], layers[1], low)
    after = run([first, second, layers[2]], x)
    assert after[-1] == pytest.approx(outputs[-1], rel=1e-3, abs=1e-4 * np.abs(outputs[-1]).max())
    assert after[0].max() < outputs[0].max()
    with pytest.raises(UsageError, match="bias"):
        cle.absorb(Layer(np.ones((2, 2))), layers[1], low)


def test_what_does_not_fit_is_said() -> None:
    a, b = Layer(np.ones((3, 2))), Layer(np.ones((2, 4)))
    with pytest.raises(UsageError, match="cannot feed"):
        cle.equalize([a, b])
    with pytest.raises(UsageError, match="joints"):
        cle.equalize([a, Layer(np.ones((2, 3)))], [None, Bounds(np.ones(3), np.ones(3))])
    with pytest.raises(UsageError, match="groups"):
        cle.equalize([Layer(np.ones((3, 1)), groups=2), a])
    assert cle.equalize([a]) == []
