"""What the Edge TPU's documentation says of programs: what is mapped, what falls back, and why."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from one_operation import Maker, program_of

from lowbit.export.edgetpu import rules
from lowbit.export.edgetpu.rewrite import rewrite
from lowbit.export.program import reference
from lowbit.export.program.program import Kind, Operation, Option, Program

NOT_LISTED = {Kind.DEPTH_TO_SPACE, Kind.HARD_SWISH, Kind.LEAKY_RELU, Kind.PADV2}


def with_integers(program: Program) -> Program:
    (entry,), (answer,) = program.inputs, program.outputs
    return replace(
        program, operations=program.operations[1:2], inputs=(replace(entry, tensor="x"),), outputs=(replace(answer, tensor="y"),)
    )


def changed(program: Program, **options: Option) -> Program:
    (operation,) = program.operations
    return replace(program, operations=(replace(operation, options={**operation.options, **options}),))


def chain(*kinds: Kind) -> Program:
    """Elementwise operations, one after the other, on integers."""
    start = with_integers(program_of(Kind.RELU))
    tensors, operations, names = dict(start.tensors), [], ["x", *(f"t{number}" for number, _ in enumerate(kinds))]
    for kind, (source, output) in zip(kinds, pairwise(names), strict=True):
        tensors[output] = replace(start.tensors["y"], name=output)
        operations.append(Operation(kind, (source,), (output,), origin=(f"node_{output}",)))
    return replace(start, tensors=tensors, operations=tuple(operations), outputs=(replace(start.outputs[0], tensor=names[-1]),))


def severe(program: Program) -> list[str]:
    return [finding.text for finding in rules.findings(program) if finding.severity != "note"]


@pytest.mark.parametrize("kind", sorted(set(Kind) - NOT_LISTED - {Kind.DEQUANTIZE, Kind.FULLY_CONNECTED, Kind.RESIZE_BILINEAR}))
def test_listed_operators_are_mapped(kind: Kind) -> None:
    program = with_integers(program_of(kind))
    if kind in (Kind.AVERAGE_POOL_2D, Kind.MAX_POOL_2D):
        program = changed(program, activation="NONE")
    if kind is Kind.STRIDED_SLICE:
        program = replace(program, tensors={**program.tensors, "strides": replace(program.tensors["strides"], data=np.ones(4, np.int32))})
    assert severe(program) == []
    assert rules.split(program).mapped == program.operations
    assert rules.findings(program)[-1].text == "All 1 operators on the Edge TPU: meets documented conditions; not compiled."


@pytest.mark.parametrize("kind", sorted(NOT_LISTED))
def test_others_are_named(kind: Kind) -> None:
    (text,) = severe(with_integers(program_of(kind)))
    assert text.startswith(f"{kind} is not among the supported operations (from node).")


def test_everything_after_the_first_one_falls_back() -> None:
    program = chain(Kind.RELU, Kind.TANH, Kind.HARD_SWISH, Kind.RELU, Kind.LEAKY_RELU)
    cut = rules.split(program)
    assert [operation.kind for operation in cut.mapped] == [Kind.RELU, Kind.TANH]
    assert [operation.kind for operation in cut.fallen] == [Kind.HARD_SWISH, Kind.RELU, Kind.LEAKY_RELU]
    first, second = severe(program)
    assert "HARD_SWISH is not among the supported operations (from node_t2)" in first
    assert "3 of 5, would run on the CPU: HARD_SWISH 't2', RELU 't3', LEAKY_RELU 't4'." in first
    assert second == "Beyond that: LEAKY_RELU is not among the supported operations."
    assert not any("not compiled" in finding.text for finding in rules.findings(program))


def test_nothing_on_the_edge_tpu_is_an_error() -> None:
    assert [finding.severity for finding in rules.findings(chain(Kind.HARD_SWISH, Kind.RELU))] == ["error"]
    assert [finding.severity for finding in rules.findings(chain(Kind.RELU, Kind.HARD_SWISH))] == ["warning"]


def test_real_numbers_at_both_ends_cost_two_steps_on_the_cpu() -> None:
    program = program_of(Kind.CONV_2D)
    cut = rules.split(program)
    assert (len(cut.before), len(cut.mapped), len(cut.fallen)) == (1, 1, 1)
    assert severe(program) == []
    assert [finding.rule for finding in rules.findings(program)] == ["float input", "float output", "verdict"]


def test_dense_weights_have_one_scale() -> None:
    program = with_integers(program_of(Kind.FULLY_CONNECTED))
    assert severe(program) == ["The weights of FULLY_CONNECTED 'y' have a scale a channel; write one for all of them."]
    weights = program.tensors["weights"]
    assert weights.grid is not None
    single = replace(weights, grid=replace(weights.grid, scale=np.array(0.01, np.float32), zero_point=np.array(0, np.int32), axis=None))
    assert severe(replace(program, tensors={**program.tensors, "weights": single})) == []


def reshaped(kind: Kind, **shapes: tuple[int, ...]) -> Program:
    program = with_integers(program_of(kind))
    return replace(program, tensors=program.tensors | {name: replace(program.tensors[name], shape=shape) for name, shape in shapes.items()})


def with_data(kind: Kind, name: str, *values: object) -> Program:
    program = with_integers(program_of(kind))
    return replace(program, tensors={**program.tensors, name: replace(program.tensors[name], data=np.array(values, np.int32))})


def joined_with_a_constant(value: int) -> Program:
    make = Maker()
    constant = make.tensor("c", (1, 6, 5, 4), "int8", None, np.full((1, 6, 5, 4), value, np.int8))
    program = make.program(Kind.CONCATENATION, (1, 6, 5, 4), (1, 6, 5, 8), (0.02, -3), ("x", constant), axis=3)
    program = with_integers(program)
    return replace(program, tensors={**program.tensors, "c": replace(program.tensors["c"], grid=program.tensors["x"].grid)})


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (changed(with_integers(program_of(Kind.MAX_POOL_2D)), activation="RELU"), "MAX_POOL_2D has RELU fused into it"),
        (changed(with_integers(program_of(Kind.CONV_2D)), dilation_h=2), "dilated by 2 and 1"),
        (with_integers(program_of(Kind.STRIDED_SLICE)), "strides must be 1"),
        (with_integers(program_of(Kind.RESIZE_BILINEAR)), "needs version 3"),
        (with_data(Kind.MEAN, "axes", 0, 1), "runs over the batch axis"),
        (reshaped(Kind.MEAN, x=(1, 6, 6)), "6 channels; their number must be a multiple of 4"),
        (with_data(Kind.PAD, "pads", [1, 0], [0, 0], [0, 0], [0, 0]), "pads the batch axis"),
        (reshaped(Kind.SOFTMAX, x=(1, 3, 10)), "must be one axis"),
        (reshaped(Kind.SOFTMAX, x=(1, 16_001), y=(1, 16_001)), "at most 16,000"),
        (reshaped(Kind.FULLY_CONNECTED, y=(4, 7)), "must have one axis longer than 1"),
        (reshaped(Kind.RELU, x=(2, 6, 5, 4)), "only the 3 innermost axes"),
        (joined_with_a_constant(5), "joins a constant"),
    ],
)
def test_limits_of_operators(program: Program, words: str) -> None:
    assert words in severe(program)[-1] or words in severe(program)[0]


def test_a_constant_of_zeros_may_be_joined() -> None:
    assert severe(joined_with_a_constant(-3)) == []


def test_wide_integers_are_refused() -> None:
    program = with_integers(program_of(Kind.RELU))
    wide = replace(program.tensors["x"], dtype="int16")
    assert "'x' is int16" in severe(replace(program, tensors={**program.tensors, "x": wide}))[0]


def test_parameters_beyond_the_cache_are_told() -> None:
    program = reshaped(Kind.CONV_2D, weights=(6, 3, 3, 200_000))
    assert any("10,800,024 bytes, more than the 8,388,608 on the chip" in text for text in severe(program))


def test_newer_runtimes_are_named() -> None:
    found = rules.findings(with_integers(program_of(Kind.TRANSPOSE)))
    assert found[0].text == "Mapped only for newer Edge TPU runtimes: TRANSPOSE from runtime 14."


# What is replaced ------------------------------------------------------------------------------------------------------


def test_every_other_row_becomes_a_maximum_of_one() -> None:
    """An image of 6 rows and 5 columns, every other row from the first on."""
    before = with_data(Kind.STRIDED_SLICE, "begin", 0, 0, 0, 0)
    before = replace(before, tensors=before.tensors | {"y": replace(before.tensors["y"], shape=(1, 3, 3, 4))})
    before = replace(before, outputs=(replace(before.outputs[0], shape=(1, 4, 3, 3)),))
    after = rewrite(before)
    assert [operation.kind for operation in after.operations] == [Kind.MAX_POOL_2D]
    assert set(after.tensors) == {"x", "y"}, "begin, end and strides are nobody's now"
    assert (severe(before) != [], severe(after)) == (True, [])
    feeds = {"in": np.random.default_rng(0).normal(0, 1, (7, 4, 6, 5)).astype(np.float32)}
    expected, found = (reference.run_integers(program, feeds)["out"] for program in (before, after))
    assert len(np.unique(expected)) > 50
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(("begin", "shape"), [((0, 1, 0, 0), (1, 3, 3, 4)), ((0, 0, 0, 0), (1, 3, 2, 4))], ids=["later", "shorter"])
def test_other_slices_stay(begin: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Rows 1, 3 and 5 of six are as many as 0, 2 and 4; columns 0 and 2 of five are one too few."""
    program = with_data(Kind.STRIDED_SLICE, "begin", *begin)
    program = replace(program, tensors=program.tensors | {"y": replace(program.tensors["y"], shape=shape)})
    assert rewrite(program).operations == program.operations
