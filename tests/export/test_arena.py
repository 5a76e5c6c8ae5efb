"""The memory plan: nothing overlaps that lives at the same time, nothing is wasted that a bound forbids, tflite-micro agrees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import missing
from lowbit.export.cortexm.arena import ALIGNMENT, Buffer, lifetimes, orders, place, plan
from lowbit.export.program.program import Kind, Operation, Port, Program, Tensor
from lowbit.export.program.random_programs import random_program
from lowbit.quant.affine import Affine

GRID = Affine(np.array(0.1, np.float32), np.array(0, np.int32), "int8", symmetric=False)


def chain(*steps: tuple[Kind, tuple[str, ...], str], sizes: dict[str, int], outputs: tuple[str, ...]) -> Program:
    """Operations on tensors of so many bytes; the first tensor is fed."""
    tensors = {name: Tensor(name, (size,), "int8", GRID) for name, size in sizes.items()}
    operations = tuple(Operation(kind, inputs, (output,)) for kind, inputs, output in steps)
    first = next(iter(sizes))
    return Program("chain", tensors, operations, (Port(first, (1,), first),), tuple(Port(o, (1,), o) for o in outputs))


def test_a_tensor_is_dropped_after_its_last_use() -> None:
    program = chain(
        (Kind.RELU, ("a",), "b"), (Kind.RELU, ("b",), "c"), (Kind.ADD, ("a", "c"), "d"), (Kind.RELU, ("d",), "e"),
        sizes={"a": 100, "b": 33, "c": 16, "d": 50, "e": 1}, outputs=("e",),
    )  # fmt: skip
    spans = {buffer.names[0]: (buffer.first, buffer.last, buffer.room) for buffer in lifetimes(program)}
    assert spans == {"a": (0, 3, 112), "b": (1, 2, 48), "c": (2, 3, 16), "d": (3, 4, 64), "e": (4, 4, 16)}
    found = plan(program)
    assert (found.size, found.peak, found.peak_bytes) == (192, 2, 192), "step 3 has a, c and d: 112 + 16 + 64"


def test_outputs_stay_until_the_end() -> None:
    program = chain(
        (Kind.RELU, ("a",), "b"), (Kind.RELU, ("b",), "c"), (Kind.RELU, ("c",), "d"), sizes=dict.fromkeys("abcd", 64), outputs=("b", "d")
    )
    assert {b.names[0]: b.last for b in lifetimes(program)} == {"a": 1, "b": 3, "c": 3, "d": 3}
    assert plan(program).size == 192


def test_a_reshape_takes_no_memory_and_lives_as_long_as_both() -> None:
    steps = ((Kind.RELU, ("a",), "b"), (Kind.RESHAPE, ("b",), "c"), (Kind.RESHAPE, ("c",), "d"), (Kind.ADD, ("d", "b"), "e"))
    program = chain(*steps, sizes={"a": 32, "b": 32, "c": 32, "d": 32, "e": 32}, outputs=("e",))
    together = {buffer.names: (buffer.first, buffer.last) for buffer in lifetimes(program)}
    assert together == {("a",): (0, 1), ("b", "c", "d"): (1, 4), ("e",): (4, 4)}
    found = plan(program)
    assert found.offsets["b"] == found.offsets["c"] == found.offsets["d"]
    assert found.size == 64


def test_by_size_alone_among_equals_the_later_comes_first() -> None:
    """As tflite-micro does it: what it records for its own plans depends on it."""
    buffers = [Buffer((name,), 64, first, last) for name, first, last in (("a", 0, 1), ("b", 1, 2), ("c", 2, 3))]
    assert orders(buffers)[0] == (2, 1, 0)
    assert place(buffers, (2, 1, 0)) == (0, 64, 0)
    assert place([Buffer(("a",), 10, 0, 0), Buffer(("b",), 20, 0, 0)], (1, 0)) == (32, 0)


def test_a_gap_is_taken_before_the_end() -> None:
    buffers = [Buffer(("a",), 64, 0, 0), Buffer(("b",), 64, 0, 2), Buffer(("c",), 16, 2, 2), Buffer(("d",), 48, 2, 2)]
    assert place(buffers, (0, 1, 3, 2)) == (0, 64, 48, 0), "c and d share what a left below b"


boxes = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 12), st.integers(0, 12)).map(lambda t: Buffer(("x",), t[0], min(t[1:]), max(t[1:]))),
    min_size=1,
    max_size=14,
)


@settings(max_examples=150, deadline=None)
@given(boxes)
def test_nothing_that_lives_at_the_same_time_overlaps(buffers: list[Buffer]) -> None:
    for order in orders(buffers):
        offsets = place(buffers, order)
        assert all(offset % ALIGNMENT == 0 for offset in offsets)
        for i, one in enumerate(buffers):
            for j, other in enumerate(buffers[:i]):
                if one.first <= other.last and other.first <= one.last:
                    assert offsets[i] >= offsets[j] + other.size or offsets[j] >= offsets[i] + one.size


@pytest.mark.parametrize("seed", range(12))
def test_the_best_order_is_kept_and_never_beats_the_bound(seed: int) -> None:
    found = plan(random_program(seed))
    assert found.peak_bytes <= found.size <= found.size_by_size


def test_placed_by_size_the_arena_is_tflite_micros_head() -> None:
    """A residual network: what its own records say, within 2 %; and what is better than that."""
    from lowbit.export.litert import sessions, writer

    if sessions.MICRO not in sessions.kernel_sets() or not {"ai-edge-litert"} <= set(sessions.versions()):
        missing("tflite-micro or ai-edge-litert")
    program = residual()
    head = sessions.arena(writer.to_bytes(program), program)["head"]
    found = plan(program)
    assert head == 4 * 4096
    assert abs(found.size_by_size - head) <= 0.02 * head
    assert found.size == 3 * 4096, "a better order does without the gap"


def residual() -> Program:
    """Two residual blocks of equally large tensors: x -> RELU -> RELU -> ADD x, twice."""
    shape, tensors, operations, at = (1, 16, 16, 16), {}, [], "x"

    def tensor(name: str) -> str:
        tensors[name] = Tensor(name, shape, "int8", GRID)
        return name

    tensor("x")
    for block in range(2):
        one, two, end = (tensor(f"{name}{block}") for name in ("one", "two", "end"))
        operations += [Operation(Kind.RELU, (at,), (one,)), Operation(Kind.RELU, (one,), (two,)), Operation(Kind.ADD, (at, two), (end,))]
        at = end
    return Program("residual", tensors, tuple(operations), (Port("x", shape, "x"),), (Port("y", shape, at),))
