"""Random programs on every kernel that is installed, and random models through the whole way: benchmarks/export_fuzz.py has 500 of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from conftest import missing
from lowbit.export.cortexm import qemu
from lowbit.export.cortexm.target import CortexM
from lowbit.export.litert import sessions
from lowbit.export.litert.writer import to_bytes
from lowbit.export.program import reference
from lowbit.export.program.lower import lower
from lowbit.export.program.problems import check_program
from lowbit.export.program.program import Kind, Program
from lowbit.export.program.random_models import random_quantized
from lowbit.export.program.random_programs import random_feeds, random_program
from lowbit.types import Array

PROGRAMS = 40
SAMPLES = 3
SHARES = {sessions.REFERENCE: 0.999, sessions.BUILT_IN: 0.99, sessions.XNNPACK: 0.9}
"""Levels that LiteRT's own kernels must have in common with the reference over all programs; 1,200 programs had 99.99, 99.9 and 98 %."""
ON_THIS_MACHINE = 8


@pytest.fixture(scope="module")
def programs() -> dict[int, Program]:
    return {seed: random_program(seed) for seed in range(PROGRAMS)}


def gaps(program: Program, found: dict[str, Array], seed: int) -> Array:
    expected = reference.run_integers(program, random_feeds(program, SAMPLES, seed))
    return np.concatenate([np.abs(found[name].astype(int) - values).ravel() for name, values in expected.items()])


def test_every_kind_is_drawn_and_every_program_keeps_the_contract(programs: dict[int, Program]) -> None:
    kinds = Counter(operation.kind for program in programs.values() for operation in program.operations)
    assert set(kinds) == set(Kind)
    for program in programs.values():
        check_program(program)


def test_the_same_seed_draws_the_same_program(programs: dict[int, Program]) -> None:
    if sessions.XNNPACK not in sessions.kernel_sets():
        missing("ai-edge-litert, whose schema writes files")
    again = random_program(7)
    assert again.operations == programs[7].operations
    assert to_bytes(again) == to_bytes(programs[7])
    assert to_bytes(again) != to_bytes(programs[8])


def test_kinds_and_ends_can_be_chosen() -> None:
    program = random_program(3, float_io=True, kinds=frozenset({Kind.CONV_2D}))
    assert {operation.kind for operation in program.operations} == {Kind.QUANTIZE, Kind.CONV_2D, Kind.DEQUANTIZE}
    assert random_program(3, float_io=False).tensors[random_program(3, float_io=False).inputs[0].tensor].dtype == "int8"


def test_answers_are_spread_over_their_grids(programs: dict[int, Program]) -> None:
    """A fuzz whose answers all saturate would see nothing."""
    shares = []
    for seed, program in programs.items():
        for values in reference.run_tensors(program, random_feeds(program, SAMPLES, seed)).values():
            if values.dtype == np.int8:
                shares.append(float(np.mean((values == -128) | (values == 127))))
    assert np.mean(shares) < 0.4
    assert np.mean(np.array(shares) > 0.95) < 0.15


@pytest.mark.parametrize("kernels", [sessions.MICRO, sessions.REFERENCE, sessions.BUILT_IN, sessions.XNNPACK])
def test_flatbuffers_answer_like_the_reference(programs: dict[int, Program], kernels: str) -> None:
    if kernels not in sessions.kernel_sets():
        missing(kernels)
    off = {}
    for seed, program in programs.items():
        session = sessions.LiteRtSession(to_bytes(program), program, kernels)
        off[seed] = gaps(program, session.integers(random_feeds(program, SAMPLES, seed)), seed)
    if kernels == sessions.MICRO:
        assert [seed for seed, each in off.items() if each.any()] == []
    else:
        assert np.mean(np.concatenate(list(off.values())) == 0) >= SHARES[kernels]


def c_answers(program: Program, seed: int, kernels: str, folder: Path) -> Array:
    target = CortexM()
    folder.mkdir()
    artifact = target.write_program(program, folder, {wish.name: wish.default for wish in target.wishes}, "drawn")
    session = target.open(artifact, kernels)
    found = session.integers(random_feeds(program, SAMPLES, seed))
    session.close()
    assert found is not None
    return gaps(program, found, seed)


def test_generated_c_answers_like_the_reference(programs: dict[int, Program], tmp_path: Path) -> None:
    if qemu.HOST not in qemu.kernel_sets(""):
        missing("a C compiler")
    for seed in range(0, PROGRAMS, PROGRAMS // ON_THIS_MACHINE):
        assert not c_answers(programs[seed], seed, qemu.HOST, tmp_path / str(seed)).any(), seed


def test_generated_c_answers_like_the_reference_on_a_board(programs: dict[int, Program], tmp_path: Path) -> None:
    if "qemu-m55" not in qemu.kernel_sets(""):
        missing("qemu-system-arm or arm-none-eabi-gcc")
    assert not c_answers(programs[3], 3, "qemu-m55", tmp_path / "board").any()


@pytest.mark.parametrize("seed", [*range(8), 11, 176])  # the last two resize by interpolation
def test_random_models_are_lowered_to_what_they_say(seed: int) -> None:
    drawn = random_quantized(seed)
    program = lower(drawn.neutral, float_input=True, float_output=True)
    check_program(program)
    levels = reference.run_integers(program, drawn.feeds)
    if sessions.MICRO in sessions.kernel_sets():
        found = sessions.LiteRtSession(to_bytes(program), program, sessions.MICRO).integers(drawn.feeds)
        assert all(np.array_equal(found[name], values) for name, values in levels.items())
    answers = reference.run(program, drawn.feeds)
    for port in program.outputs:
        off = np.abs(answers[port.name] - drawn.values[port.name]).max() / float(program.output_grid(port).scale)
        assert off < 16, (port.name, off)
