"""Multipliers, roundings, places and tables of integer kernels: by their definitions, and against tflite-micro where it is installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import missing
from lowbit.errors import ModelError
from lowbit.export.program import fixed_point as fp
from lowbit.export.program import tables
from lowbit.export.program.program import Kind, Operation, Option, Port, Program, Tensor
from lowbit.plugins import installed_version
from lowbit.quant.affine import Affine
from lowbit.types import Array

INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
SIGMOID, TANH = (1 / 256, -128), (1 / 128, 0)


def grid(scale: float, zero: int = 0) -> Affine:
    return Affine(np.array(scale, np.float32), np.array(zero, np.int32), "int8", symmetric=False)


def half_away(value: Fraction) -> int:
    return int(math.copysign(math.floor(abs(value) + Fraction(1, 2)), value))


@pytest.mark.parametrize(
    ("real", "expected"),
    [(1.0, (1 << 30, 1)), (0.5, (1 << 30, 0)), (0.75, (3 << 29, 0)), (0.0, (0, 0)), (2.0**-33, (0, 0)), (1 - 2.0**-40, (1 << 30, 1))],
)
def test_multipliers_that_are_known(real: float, expected: tuple[int, int]) -> None:
    assert fp.quantized_multiplier(real) == expected


@given(st.floats(2.0**-31, 2.0**29))
def test_a_multiplier_is_its_factor_to_31_bits(real: float) -> None:
    multiplier, shift = fp.quantized_multiplier(real)
    assert 1 << 30 <= multiplier < 1 << 31
    assert abs(Fraction(multiplier) * Fraction(2) ** (shift - 31) / Fraction(real) - 1) <= Fraction(1, 1 << 31)


@pytest.mark.parametrize("real", [-1.0, math.nan, math.inf, 2.0**30])
def test_factors_that_no_kernel_takes_are_refused(real: float) -> None:
    with pytest.raises(ModelError, match="factor between two grids"):
        fp.quantized_multiplier(real)


@given(INT32, INT32)
@example(-(1 << 31), -(1 << 31))
@example(1 << 30, -1)
@example(1 << 30, 1)
def test_the_high_half_of_the_doubled_product_rounds_halves_upwards(left: int, right: int) -> None:
    exact = math.floor(Fraction(left * right, 1 << 31) + Fraction(1, 2))
    assert int(fp.doubling_high_mul(np.array(left), right)) == min(exact, (1 << 31) - 1)


@given(INT32, st.integers(0, 31))
@example(-2, 2)
@example(-6, 2)
@example(2, 2)
@example(-1, 0)
def test_division_by_powers_of_two_rounds_halves_away_from_zero(value: int, exponent: int) -> None:
    assert int(fp.rounding_divide(np.array(value), exponent)) == half_away(Fraction(value, 1 << exponent))


@given(st.integers(-(1 << 24), 1 << 24), st.floats(2.0**-20, 2.0**5))
def test_rescaling_is_within_a_step_of_the_product(value: int, real: float) -> None:
    assert abs(float(fp.rescale(np.array(value), *fp.quantized_multiplier(real))) - value * real) <= 1.0


def test_rescaling_takes_a_factor_a_channel() -> None:
    columns = fp.convolution_multipliers(grid(0.5), Affine(np.float32([0.1, 0.2]), np.int32([0, 0]), "int8", True, 0), grid(0.25), 2)
    assert fp.rescale(np.array([[1000, 1000], [-10, -10]]), *columns).tolist() == [[200, 400], [-2, -4]]


def test_shifts_saturate_to_the_left_and_round_to_the_right() -> None:
    assert fp.saturating_shift(np.array([1 << 29, -(1 << 30), 3]), 2).tolist() == [fp.INT32_HIGH, fp.INT32_LOW, 12]
    assert fp.saturating_shift(np.array([6, -6, 5]), -2).tolist() == [2, -2, 1]


def test_what_leaves_32_bits_wraps() -> None:
    assert fp.wrap32(np.array([1 << 31, -(1 << 31) - 1, 5])).tolist() == [-(1 << 31), (1 << 31) - 1, 5]


def test_bounds_of_fused_activations_are_levels() -> None:
    output = grid(0.05, -20)
    assert fp.activation_bounds("NONE", output) == (-128, 127)
    assert fp.activation_bounds("RELU", output) == (-20, 127)
    assert fp.activation_bounds("RELU6", output) == (-20, 100)
    assert fp.activation_bounds("RELU6", grid(0.01, -20)) == (-20, 127)
    with pytest.raises(ModelError, match="TANH"):
        fp.activation_bounds("TANH", output)


def test_sums_are_refused_where_their_output_is_too_fine() -> None:
    with pytest.raises(ModelError, match="2\\*\\*19 times finer"):
        fp.add_factors(grid(1.0), grid(1.0), grid(1e-6))


@pytest.mark.parametrize("count", [1, 3, 7, 49, 64, 1000])
def test_a_mean_divides_and_rescales_at_once(count: int) -> None:
    multiplier, shift = fp.mean_multiplier(grid(0.1), grid(0.05), count)
    assert multiplier * 2.0 ** (shift - 31) == pytest.approx(2 / count, rel=1e-8)
    assert multiplier <= 2 / count * 2.0 ** (31 - shift)  # cut off, never rounded up


@given(st.sampled_from(["SAME", "VALID"]), st.integers(1, 20), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_windows_lie_where_a_filter_fits(padding: str, extent: int, taps: int, stride: int, dilation: int) -> None:
    count, before = fp.window(padding, extent, taps, stride, dilation)
    reach = (taps - 1) * dilation + 1
    if padding == "VALID":
        assert before == 0
        assert count == len(range(0, extent - reach + 1, stride)) or extent < reach
    else:
        assert count == len(range(0, extent, stride))
        after = max((count - 1) * stride + reach - extent - before, 0)
        assert after - before in (0, 1)


def test_bilinear_weights_are_those_of_the_definition() -> None:
    below, above, weight = fp.bilinear_places(4, 8, align_corners=False, half_pixel_centers=True)
    place = below + weight / 1024
    assert np.allclose(place, (np.arange(8) + 0.5) / 2 - 0.5)
    assert np.all((above == below + 1) | (above == below))
    assert fp.bilinear_places(3, 5, align_corners=True, half_pixel_centers=False)[2].tolist() == [0, 512, 0, 512, 0]


def test_nearest_places() -> None:
    assert fp.nearest_places(2, 4, align_corners=False, half_pixel_centers=False).tolist() == [0, 0, 1, 1]
    assert fp.nearest_places(4, 2, align_corners=False, half_pixel_centers=True).tolist() == [1, 3]
    assert fp.nearest_places(5, 3, align_corners=True, half_pixel_centers=False).tolist() == [0, 2, 4]


CURVES: dict[Kind, tuple[Callable[[Array], Array], tuple[float, int], float]] = {
    Kind.LOGISTIC: (lambda x: 1 / (1 + np.exp(-x)), SIGMOID, 0.51),
    Kind.TANH: (np.tanh, TANH, 0.51),
    Kind.HARD_SWISH: (lambda x: x * np.clip(x + 3, 0, 6) / 6, (0.04, -110), 1.5),
    Kind.RELU: (lambda x: np.maximum(x, 0), (0.06, -128), 0.51),
    Kind.LEAKY_RELU: (lambda x: np.where(x > 0, x, 0.25 * x), (0.06, -20), 0.76),
    Kind.QUANTIZE: (lambda x: x, (0.11, 5), 0.76),
}
"""Kind -> its function, a grid for its answers, and how far they may be from it in levels: two roundings lose up to 3/4."""


@pytest.mark.parametrize("kind", CURVES, ids=str)
def test_tables_are_their_functions_to_about_a_level(kind: Kind) -> None:
    function, (scale, zero), room = CURVES[kind]
    real = (tables.LEVELS + 3) * np.float64(np.float32(0.05))
    found = tables.table(kind, grid(0.05, -3), grid(scale, zero), {"alpha": 0.25})
    expected = np.clip(function(real) / scale + zero, -128, 127)
    assert np.abs(found - expected).max() <= room


def test_relu6_clamps_and_keeps_its_grid() -> None:
    found = tables.table(Kind.RELU6, grid(0.05, -100), grid(0.05, -100))
    assert found.tolist() == np.clip(tables.LEVELS, -100, 20).tolist()


def test_what_has_no_table_and_what_kernels_cannot_do_is_refused() -> None:
    with pytest.raises(ModelError, match="ADD has no table"):
        tables.table(Kind.ADD, grid(1), grid(1))
    with pytest.raises(ModelError, match="128 times finer"):
        tables.table(Kind.HARD_SWISH, grid(1.0), grid(0.001))
    with pytest.raises(ModelError, match="steps of 8"):
        tables.table(Kind.LOGISTIC, grid(8.0), grid(*SIGMOID))
    with pytest.raises(ModelError, match="SOFTMAX"):
        tables.softmax_exponentials(grid(1e-9))


@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0])
def test_softmax_is_within_a_step(scale: float) -> None:
    levels = np.random.default_rng(0).integers(-128, 128, (20, 11))
    found = tables.softmax_levels(tables.softmax_exponentials(grid(scale))[levels.max(axis=1, keepdims=True) - levels])
    terms = np.exp((levels - levels.max(axis=1, keepdims=True)) * scale)
    expected = np.minimum(terms / terms.sum(axis=1, keepdims=True) * 256 - 128, 127)
    assert np.abs(found - expected).max() <= 1.0


# ---- against the oracle ------------------------------------------------------------------------------------------------------------


def on_tflite_micro(kind: Kind, cases: list[tuple[Affine, Affine, dict[str, Option]]], fed: Array) -> list[Array]:
    """What its kernel answers to the same levels [1, n] for many grids: one program with all of them side by side."""
    for module in ("tflite_micro", "ai_edge_litert"):
        if installed_version(module) is None:
            missing(module)
    from tflite_micro import runtime

    from lowbit.export.litert.writer import to_bytes

    tensors = {}
    operations = []
    for number, (source, output, options) in enumerate(cases):
        tensors[f"x{number}"] = Tensor(f"x{number}", fed.shape, "int8", source)
        tensors[f"y{number}"] = Tensor(f"y{number}", fed.shape, "int8", output)
        operations.append(Operation(kind, (f"x{number}",), (f"y{number}",), options))
    ports = [tuple(Port(f"{side}{number}", fed.shape, f"{side}{number}") for number in range(len(cases))) for side in "xy"]
    interpreter = runtime.Interpreter.from_bytes(to_bytes(Program("p", tensors, tuple(operations), *ports)), arena_size=16 << 20)
    for number in range(len(cases)):
        interpreter.set_input(fed, number)
    interpreter.invoke()
    return [np.array(interpreter.get_output(number)) for number in range(len(cases))]


def random_case(kind: Kind, dice: np.random.Generator) -> tuple[Affine, Affine, dict[str, Option]]:
    scale = 2.0 ** dice.uniform(-9, 1)
    source = grid(scale, int(dice.integers(-128, 128)))
    output = grid(scale * 2.0 ** dice.uniform(-3, 3), int(dice.integers(-128, 128)))
    fixed = {Kind.LOGISTIC: grid(*SIGMOID), Kind.TANH: grid(*TANH), Kind.SOFTMAX: grid(*SIGMOID), Kind.RELU6: source}
    options: dict[Kind, dict[str, Option]] = {
        Kind.LEAKY_RELU: {"alpha": float(np.float32(dice.uniform(0, 1)))},
        Kind.SOFTMAX: {"beta": float(dice.choice([0.5, 1.0, 2.0]))},
    }
    return source, fixed.get(kind, output), options.get(kind, {})


@pytest.mark.parametrize("kind", sorted(tables.TABLES), ids=str)
def test_every_level_is_the_oracles(kind: Kind) -> None:
    dice = np.random.default_rng(3)
    cases = [random_case(kind, dice) for _ in range(150)]
    for case, expected in zip(cases, on_tflite_micro(kind, cases, tables.LEVELS.astype(np.int8)[None]), strict=True):
        assert np.array_equal(tables.table(kind, *case), expected[0]), case


@pytest.mark.parametrize("depth", [1, 2, 10, 333])
def test_softmax_is_the_oracles(depth: int) -> None:
    dice = np.random.default_rng(depth)
    rows = dice.integers(-128, 128, (6, depth)).astype(np.int8)
    cases = [random_case(Kind.SOFTMAX, dice) for _ in range(25)]
    for (source, _, options), expected in zip(cases, on_tflite_micro(Kind.SOFTMAX, cases, rows), strict=True):
        exponentials = tables.softmax_exponentials(source, float(str(options["beta"])))
        assert np.array_equal(tables.softmax_levels(exponentials[rows.max(axis=1, keepdims=True).astype(int) - rows]), expected)
