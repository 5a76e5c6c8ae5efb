"""The reference by hand-made numbers and by loops; how it is fed; and what the validator says of programs that break the contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lowbit.errors import DataError, ModelError
from lowbit.export.program import reference
from lowbit.export.program.problems import check_program, problems
from lowbit.export.program.program import Kind, Operation, Option, Port, Program, Tensor
from lowbit.export.program.random_draft import Draft, per_tensor
from lowbit.export.program.shapes import shape_of
from lowbit.quant.affine import Affine
from lowbit.types import Array

ONE = per_tensor(1.0, 0)


def constant(name: str, values: object, dtype: str = "int32", grid: Affine | None = None) -> Tensor:
    data = np.array(values, dtype)
    return Tensor(name, data.shape, dtype, grid, data)  # type: ignore[arg-type]


def answer(
    kind: Kind, x: object, *operands: Tensor, source: Affine = ONE, output: Affine = ONE, place: int = 0, **options: Option
) -> list[object]:
    """Levels that one operation makes of levels `x` of one sample, which is operand `place`."""
    fed = np.array(x, np.int8)
    tensors = [*operands[:place], Tensor("x", fed.shape, "int8", source), *operands[place:]]
    operation = Operation(kind, tuple(tensor.name for tensor in tensors), ("y",), options)
    shape = shape_of(operation, tensors)
    made = Tensor("y", shape, "int8", output)
    ports = (Port("x", fed.shape, "x"),), (Port("y", shape, "y"),)
    program = Program("one", {tensor.name: tensor for tensor in (*tensors, made)}, (operation,), *ports)
    return reference.run_integers(program, {"x": fed})["y"].tolist()


def weights(values: object, axis: int, scales: float | list[float] = 1.0) -> Tensor:
    grid = np.array(scales, np.float32)
    return constant("w", values, "int8", Affine(grid, np.zeros(grid.shape, np.int32), "int8", True, axis if grid.ndim else None))


def bias(values: list[int], scales: float | list[float] = 1.0) -> Tensor:
    grid = np.array(scales, np.float32)
    return constant("b", values, "int32", Affine(grid, np.zeros(grid.shape, np.int32), "int32", True, 0 if grid.ndim else None))


def image(*rows: list[int]) -> list[list[list[list[int]]]]:
    """One sample of one channel."""
    return [[[[value] for value in row] for row in rows]]


def flat(values: list[object]) -> list[int]:
    return np.array(values).reshape(-1).tolist()


def test_convolutions_add_products_and_a_bias() -> None:
    kernel = weights([[[[1], [2]], [[3], [4]]], [[[0], [0]], [[0], [-1]]]], 0)
    found = answer(Kind.CONV_2D, image([1, 2, 3], [4, 5, 6]), kernel, bias([10, 0]))
    assert found == [[[[47, -5], [57, -6]]]]


def test_convolutions_pad_with_the_zero_point_and_rescale_each_channel() -> None:
    kernel = weights([[[[1]] * 3] * 3, [[[1]] * 3] * 3], 0, [1.0, 0.5])
    found = answer(
        Kind.CONV_2D,
        image([3, 4], [5, 6]),
        kernel,
        source=per_tensor(1.0, 2),
        output=per_tensor(1.0, -1),
        padding="SAME",
        activation="RELU",
    )
    assert found == [[[[9, 4], [9, 4]], [[9, 4], [9, 4]]]]


def test_strides_and_dilations() -> None:
    kernel = weights([[[[1], [1]], [[1], [1]]]], 0)
    rows = [[10 * y + x for x in range(5)] for y in range(5)]
    assert flat(answer(Kind.CONV_2D, image(*rows), kernel, stride_h=2, stride_w=2)) == [22, 30, 102, 110]
    assert flat(answer(Kind.CONV_2D, image(*rows[:3]), kernel, dilation_h=2, dilation_w=2)) == [44, 48, 52]


def test_depthwise_filters_stand_channel_by_channel() -> None:
    kernel = weights([[[[1, 2, 3, 4]]]], 3)
    assert answer(Kind.DEPTHWISE_CONV_2D, [[[[5, 7]]]], kernel, depth_multiplier=2) == [[[[5, 10, 21, 28]]]]


def test_fully_connected_reads_rows() -> None:
    found = answer(Kind.FULLY_CONNECTED, [[1, 2, 3]], weights([[1, 1, 1], [2, 0, -1]], 0, [1.0, 2.0]), bias([4, 0], [1.0, 2.0]))
    assert found == [[10, -2]]


def test_transposed_convolutions_spread_their_input() -> None:
    shape, kernel = constant("shape", [1, 4, 4, 1]), weights([[[[1], [2]], [[3], [4]]]], 0)
    found = answer(Kind.TRANSPOSE_CONV, image([1, 10], [0, 2]), shape, kernel, place=2, stride_h=2, stride_w=2, padding="VALID")
    assert np.array(found)[0, :, :, 0].tolist() == [[1, 2, 10, 20], [3, 4, 30, 40], [0, 0, 2, 4], [0, 0, 6, 8]]
    same = answer(
        Kind.TRANSPOSE_CONV,
        image([1, 10], [0, 2]),
        constant("shape", [1, 2, 2, 1]),
        weights([[[[1], [1], [1]], [[1], [1], [1]], [[1], [1], [1]]]], 0),
        place=2,
        stride_h=1,
        stride_w=1,
        padding="SAME",
    )
    assert flat(same) == [13, 13, 13, 13]


def test_averages_round_halves_away_from_zero_and_leave_padding_out() -> None:
    pool: dict[str, Option] = {"filter_height": 2, "filter_width": 2, "stride_h": 2, "stride_w": 2, "padding": "SAME"}
    assert flat(answer(Kind.AVERAGE_POOL_2D, image([1, 2, -1], [1, 2, -2], [-7, -8, 5]), **pool)) == [2, -2, -8, 5]
    assert flat(answer(Kind.AVERAGE_POOL_2D, image([1, 0], [0, 1]), **pool)) == [1]
    assert flat(answer(Kind.AVERAGE_POOL_2D, image([-1, 0], [0, -1]), **pool)) == [-1]
    assert flat(answer(Kind.MAX_POOL_2D, image([1, 2, -1], [1, 2, -2], [-7, -8, -5]), **pool)) == [2, -1, -7, -5]


def test_means_keep_or_drop_axes() -> None:
    x = [[[[1, 10], [3, 30]], [[5, 50], [8, 80]]]]
    assert answer(Kind.MEAN, x, constant("axes", [1, 2]), keep_dims=True) == [[[[5, 43]]]]  # 4.25: the first of two roundings makes it 4.5
    assert answer(Kind.MEAN, x, constant("axes", [-2]), output=per_tensor(0.5, 1)) == [[[5, 41], [14, 127]]]


def test_sums_and_products_broadcast() -> None:
    other = constant("c", [[[[10, -20]]]], "int8", per_tensor(0.5, 0))
    x = [[[[1, 2], [3, 4]]]]
    assert answer(Kind.ADD, x, other) == [[[[6, -8], [8, -6]]]]
    assert answer(Kind.SUB, x, other) == [[[[-4, 12], [-2, 14]]]]
    assert answer(Kind.SUB, x, other, place=1) == [[[[4, -12], [2, -14]]]]
    assert answer(Kind.MUL, x, other, activation="RELU") == [[[[5, 0], [15, 0]]]]
    assert answer(Kind.ADD, x, constant("c", [1], "int8", ONE)) == [[[[2, 3], [4, 5]]]]


def test_moves() -> None:
    x = np.arange(24).reshape(1, 2, 3, 4)
    assert answer(Kind.TRANSPOSE, x, constant("o", [0, 3, 1, 2])) == x.transpose(0, 3, 1, 2).tolist()
    assert answer(Kind.RESHAPE, x, constant("s", [1, 24])) == x.reshape(1, 24).tolist()
    assert answer(Kind.SLICE, x, constant("b", [0, 1, 0, 1]), constant("s", [1, 1, -1, 2])) == x[:, 1:, :, 1:3].tolist()
    lists = (constant("b", [0, 0, 1, 0]), constant("e", [1, 2, 3, 4]), constant("t", [1, 1, 1, 2]))
    assert answer(Kind.STRIDED_SLICE, x, *lists) == x[:, :, 1:, ::2].tolist()
    other = constant("c", x[:, :, :1], "int8", ONE)
    assert answer(Kind.CONCATENATION, x, other, axis=-2) == np.concatenate([x, x[:, :, :1]], axis=2).tolist()
    assert answer(Kind.DEPTH_TO_SPACE, x[:, :1, :1], block_size=2) == [[[[0], [1]], [[2], [3]]]]


def test_padding_is_the_zero_point_or_a_given_level() -> None:
    margins, grid = constant("p", [[0, 0], [1, 0], [0, 2], [0, 0]]), per_tensor(1.0, 9)
    assert np.array(answer(Kind.PAD, image([1, 2]), margins, source=grid, output=grid))[0, :, :, 0].tolist() == [[9, 9, 9, 9], [1, 2, 9, 9]]
    level = constant("v", [-4], "int8", grid)
    found = answer(Kind.PADV2, image([1, 2]), margins, level, source=grid, output=grid)
    assert np.array(found)[0, :, :, 0].tolist() == [[-4] * 4, [1, 2, -4, -4]]


def test_resizing() -> None:
    size = constant("s", [1, 4])
    assert flat(answer(Kind.RESIZE_NEAREST_NEIGHBOR, image([10, 20]), size)) == [10, 10, 20, 20]
    assert flat(answer(Kind.RESIZE_BILINEAR, image([10, 20]), size, half_pixel_centers=True)) == [10, 13, 18, 20]
    assert flat(answer(Kind.RESIZE_BILINEAR, image([-10, -21]), constant("s", [1, 3]), align_corners=True)) == [-10, -16, -21]


def test_float_edges_round_halves_away_from_zero_and_saturate() -> None:
    grid = per_tensor(0.5, 3)
    tensors = [Tensor("x", (1, 7), "float32"), Tensor("q", (1, 7), "int8", grid), Tensor("y", (1, 7), "float32")]
    operations = (Operation(Kind.QUANTIZE, ("x",), ("q",)), Operation(Kind.DEQUANTIZE, ("q",), ("y",)))
    program = Program("edges", {t.name: t for t in tensors}, operations, (Port("x", (1, 7), "x"),), (Port("y", (1, 7), "y"),))
    check_program(program)
    feeds = {"x": np.array([[0.25, -0.25, 0.75, 1e30, -np.inf, np.nan, 0.1]], np.float32)}
    assert reference.run_integers(program, feeds)["y"].tolist() == [[4, 2, 5, 127, -128, -128, 3]]
    assert reference.run(program, feeds)["y"].tolist() == [[0.5, -0.5, 1.0, 62.0, -65.5, -65.5, 0.0]]


# ---- feeding -----------------------------------------------------------------------------------------------------------------------


def two_steps(*, real: bool = False) -> Program:
    """A convolution and an addition on images of two rows, three columns and two channels that the source has channels first."""
    draft = Draft(5)
    grid = per_tensor(0.1, -3)
    draft.tensors["x"] = Tensor("x", (1, 2, 3, 2), "float32" if real else "int8", None if real else grid)
    draft.ports.append(Port("x", (1, 2, 2, 3), "x", (0, 2, 3, 1)))
    fed = draft.add(Kind.QUANTIZE, ("x",), grid) if real else "x"
    scale = per_tensor(0.02, 0)
    kernel = draft.constant(np.arange(-9, 9, dtype=np.int8).reshape(9, 1, 1, 2), replace(scale, symmetric=True), "w")
    added = draft.constant(np.zeros(9, np.int32), replace(per_tensor(0.1 * 0.02, 0), dtype="int32"), "b")
    made = draft.add(Kind.CONV_2D, (fed, kernel, added), per_tensor(0.3, 4), padding="SAME", stride_h=1, stride_w=1)
    total = draft.add(Kind.ADD, (made, made), per_tensor(0.6, 4))
    end = draft.add(Kind.DEQUANTIZE, (total,), None) if real else total
    return Program("two", draft.tensors, tuple(draft.operations), tuple(draft.ports), (Port("y", (1, 9, 2, 3), end, (0, 2, 3, 1)),))


def samples(count: int) -> Array:
    return np.random.default_rng(0).uniform(-12, 12, (count, 2, 2, 3)).astype(np.float32)


def test_real_and_integer_programs_answer_alike_in_the_sources_layout() -> None:
    feeds = {"x": samples(6)}
    whole, real = two_steps(), two_steps(real=True)
    check_program(whole)
    check_program(real)
    levels = reference.run_integers(whole, feeds)["y"]
    assert levels.shape == (6, 9, 2, 3)
    assert levels.dtype == np.int8
    assert np.array_equal(levels, reference.run_integers(real, feeds)["y"])
    assert np.allclose(reference.run(real, feeds)["y"], (levels.astype(int) - 4) * 0.6, atol=1e-5)
    quantized = np.clip(np.rint(feeds["x"] / np.float32(0.1)) - 3, -128, 127).astype(np.int8)
    assert np.array_equal(levels, reference.run_integers(whole, {"x": quantized})["y"])


def test_samples_go_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = {"x": samples(7)}
    expected = reference.run(two_steps(), feeds)["y"]
    monkeypatch.setattr(reference, "_CHUNK_ELEMENTS", 150)
    assert np.array_equal(reference.run(two_steps(), feeds)["y"], expected)
    assert reference.run(two_steps(), {"x": samples(0)})["y"].shape == (0, 9, 2, 3)


def test_feeds_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="'x' is missing; given: z"):
        reference.run(two_steps(), {"z": samples(1)})
    with pytest.raises(DataError, match="shape \\[1, 2, 3, 2\\]"):
        reference.run(two_steps(), {"x": samples(1).transpose(0, 2, 3, 1)})


def test_the_first_difference_is_found() -> None:
    program = two_steps()
    tensors = reference.run_tensors(program, {"x": samples(2)})
    first, second = (operation.outputs[0] for operation in program.operations)
    assert set(tensors) == {"x", first, second}
    assert reference.first_difference(program, tensors, tensors) is None
    other = {name: values.copy() for name, values in tensors.items()}
    other[first][1, 0, 0, 0, :2] += 3
    other[second] += 1
    assert reference.first_difference(program, tensors, other) == (program.operations[0], 2, 3)


def test_only_real_outputs_that_were_levels_have_levels() -> None:
    program = replace(two_steps(real=True), outputs=(Port("y", (1, 2, 2, 3), "x", (0, 2, 3, 1)),))
    with pytest.raises(ModelError, match="no levels"):
        reference.run_integers(program, {"x": samples(1)})


# ---- the contract ------------------------------------------------------------------------------------------------------------------


def with_tensor(program: Program, name: str, **changes: object) -> Program:
    return replace(program, tensors={**program.tensors, name: replace(program.tensors[name], **changes)})  # type: ignore[arg-type]


def with_operation(program: Program, number: int, **changes: object) -> Program:
    operations = list(program.operations)
    operations[number] = replace(operations[number], **changes)  # type: ignore[arg-type]
    return replace(program, operations=tuple(operations))


def first(program: Program) -> str:
    return program.operations[0].outputs[0]


def weight(program: Program) -> str:
    return program.operations[0].inputs[1]


BREACHES: dict[str, tuple[Callable[[Program], Program], str]] = {
    "a name": (lambda p: replace(p, name="no spaces"), "more than letters"),
    "no grid": (lambda p: with_tensor(p, first(p), grid=None), "int8 and has no grid"),
    "a grid in float": (lambda p: with_tensor(p, first(p), dtype="float32"), "float32 and has a grid"),
    "a double scale": (lambda p: with_tensor(p, first(p), grid=replace(ONE, scale=np.array(1.0))), "positive float32"),
    "a zero point": (lambda p: with_tensor(p, first(p), grid=per_tensor(1.0, 200)), "zero points outside int8"),
    "a shape": (lambda p: with_tensor(p, first(p), shape=(1, 2, 2, 9)), "and makes [1, 2, 3, 9]"),
    "data": (lambda p: with_tensor(p, weight(p), data=np.zeros((9, 1, 1, 2), np.int16)), "its data int16"),
    "weights": (lambda p: with_tensor(p, weight(p), grid=per_tensor(0.02, 1)), "zero point is not 0"),
    "a bias's scale": (lambda p: with_tensor(p, p.operations[0].inputs[2], grid=replace(ONE, dtype="int32")), "that of the input times"),
    "no bias": (lambda p: with_operation(p, 0, inputs=p.operations[0].inputs[:2]), "has no bias"),
    "a name for nothing": (lambda p: with_operation(p, 0, inputs=(*p.operations[0].inputs[:2], "")), "name for nothing"),
    "an option": (lambda p: with_operation(p, 1, options={"axis": 1}), "does not know: axis"),
    "an activation": (lambda p: with_operation(p, 1, options={"activation": "SIGN"}), "SIGN"),
    "an order": (lambda p: replace(p, operations=p.operations[::-1]), "before it is made"),
    "twice": (lambda p: replace(p, operations=(*p.operations, p.operations[0])), "there already"),
    "a grid that is kept": (lambda p: with_operation(p, 1, kind=Kind.RELU6, inputs=(first(p),)), "keeps the grid"),
    "a grid that is given": (lambda p: with_operation(p, 1, kind=Kind.LOGISTIC, inputs=(first(p),)), "zero point -128"),
    "a port": (lambda p: replace(p, inputs=(replace(p.inputs[0], permutation=(0, 3, 1, 2)),)), "not by permutation"),
    "a batch": (lambda p: replace(p, outputs=(replace(p.outputs[0], shape=(2, 9, 2, 3)),)), "not batch 1"),
    "too fine a sum": (lambda p: with_tensor(p, p.operations[1].outputs[0], grid=per_tensor(1e-7, 0)), "2\\*\\*19 times finer"),
}


@pytest.mark.parametrize("name", BREACHES)
def test_every_breach_is_named(name: str) -> None:
    breaks, words = BREACHES[name]
    with pytest.raises(ModelError, match=words.replace("[", "\\[") if "\\" not in words else words):
        check_program(breaks(two_steps()))


def test_a_program_of_the_contract_has_no_problems() -> None:
    assert list(problems(two_steps())) == []
    assert list(problems(two_steps(real=True))) == []
