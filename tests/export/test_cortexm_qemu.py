"""Generated C on emulated boards: the reference's answers on every core, memory as planned, instructions that repeat."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from c_case import kinds_of, programs, written

from conftest import missing
from lowbit.errors import RunError
from lowbit.export.cortexm import qemu
from lowbit.export.cortexm.boards import STACK_BYTES
from lowbit.export.cortexm.session import CSession
from lowbit.export.cortexm.target import CortexM
from lowbit.export.program import reference
from lowbit.export.program.program import Kind, Program
from lowbit.export.program.random_programs import random_feeds, random_program


@pytest.fixture(autouse=True)
def _programs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in qemu.missing_programs():
        missing(name)
    monkeypatch.delenv("OPTIMIZE", raising=False)


def convolutions() -> Program:
    """What the three cores compute differently: products with pairs of 16 bits, and with vectors."""
    kinds = frozenset({Kind.CONV_2D, Kind.DEPTHWISE_CONV_2D, Kind.FULLY_CONNECTED, Kind.RESHAPE})
    drawn = (random_program(seed, float_io=False, kinds=kinds) for seed in range(40))
    return next(p for p in drawn if kinds_of(p) >= {Kind.CONV_2D, Kind.DEPTHWISE_CONV_2D, Kind.FULLY_CONNECTED})


@pytest.mark.parametrize("kernels", list(qemu.KERNELS))
def test_every_core_answers_what_the_reference_answers(kernels: str, tmp_path: Path) -> None:
    widest = max(programs(), key=lambda program: len(kinds_of(program)))
    for number, program in enumerate((convolutions(), widest)):
        feeds = random_feeds(program, 6, seed=7)
        session = CortexM().open(written(program, tmp_path / str(number)), kernels)
        assert isinstance(session, CSession)
        try:
            answers = session.run(feeds)
        finally:
            session.close()
        for name, wanted in reference.run(program, feeds).items():
            np.testing.assert_array_equal(answers[name], wanted)
        assert session.last is not None
        assert session.last.stack is not None
        assert 64 < session.last.stack < STACK_BYTES // 2


def test_instructions_are_counted_and_grow_with_the_work(tmp_path: Path) -> None:
    program = convolutions()
    (port,) = program.inputs
    feeds = random_feeds(program, 2)
    session = CortexM().open(written(program, tmp_path), "qemu-m7")
    assert isinstance(session, CSession)
    try:
        one, two = (session.count({port.name: feeds[port.name][:n]}).instructions for n in (1, 2))
        assert session.run(feeds)
    finally:
        session.close()
    assert one is not None
    assert two is not None
    assert one > 2000
    assert abs(two - one) < 0.02 * one, "of one sample, whatever their number"


def test_memory_is_what_was_planned(tmp_path: Path) -> None:
    target = CortexM()
    artifact = written(convolutions(), tmp_path, sram_kb=64, flash_kb=256)
    size = target.measure(artifact)
    arena, planned = int(artifact.facts["arena_bytes"]), int(artifact.facts["sram_bytes"])
    assert arena + STACK_BYTES <= size.sram <= planned
    estimated = int(artifact.facts["flash_bytes_estimated"])
    assert 0.7 * estimated <= size.flash <= estimated
    assert [finding.severity for finding in target.check(artifact)] == ["note"] * 4
    assert target.kernel_sets(artifact)[:3] == ("qemu-m7", "qemu-m55", "qemu-m4")
    assert "LENGTH = 64K" in (tmp_path / "board" / "mps2-an500.ld").read_text()


def test_the_board_that_was_asked_for_comes_first(tmp_path: Path) -> None:
    artifact = written(convolutions(), tmp_path, board="mps3-an547")
    assert CortexM().kernel_sets(artifact)[0] == "qemu-m55"
    assert "BOARD ?= mps3-an547" in (tmp_path / "Makefile").read_text()


def test_a_relative_folder_is_compiled_as_an_absolute_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    artifact = written(convolutions(), Path("here"))
    findings = {each.rule: each for each in CortexM().check(artifact)}
    assert "compiled" not in findings, "it links"
    assert findings["flash suffices"].severity == "note"
    assert re.fullmatch(r"[\d,]+ instructions a sample in emulation \(qemu-m7\): not latency\.", findings["instructions"].text)


def test_make_run_answers_a_file_and_says_when_there_is_none(tmp_path: Path) -> None:
    """As people try it by hand, in the exported folder."""
    drawn = (random_program(seed, float_io=True) for seed in range(40))
    program = next(each for each in drawn if len(each.inputs) == len(each.outputs) == 1)
    written(program, tmp_path)
    told = subprocess.run(["make", "-C", tmp_path, "run"], capture_output=True, text=True, check=False)
    assert told.returncode != 0
    assert "input.bin is missing" in told.stderr
    feeds = random_feeds(program, 3, seed=2)
    given, wanted = (next(iter(values.values())) for values in (feeds, reference.run(program, feeds)))
    port = program.inputs[0]
    lying = given if port.permutation is None else given.transpose(port.permutation)
    (tmp_path / "input.bin").write_bytes(np.ascontiguousarray(lying, np.float32).tobytes())
    told = subprocess.run(["make", "-C", tmp_path, "run"], capture_output=True, text=True, check=True)
    assert "samples 3" in told.stderr
    found = np.frombuffer((tmp_path / "output.bin").read_bytes(), np.float32)
    np.testing.assert_array_equal(np.sort(found), np.sort(wanted.reshape(-1)))  # whichever way its axes lie


def test_a_program_that_the_emulated_board_has_no_room_for_says_how_much_is_missing(tmp_path: Path) -> None:
    artifact = written(convolutions(), tmp_path)
    main = tmp_path / "main.c"
    main.write_text(main.read_text().replace("int main(void) {", "static volatile char more[3u << 20];\nint main(void) { more[0] = 1;"))
    with pytest.raises(
        RunError, match=r"^The program does not fit mps3-an547, which is emulated here: 1,\d\d\d KiB of SRAM are missing\.$"
    ):
        CortexM().open(artifact, "qemu-m55")


def test_a_program_that_faults_says_so(tmp_path: Path) -> None:
    artifact = written(convolutions(), tmp_path)
    main = tmp_path / "main.c"
    main.write_text(main.read_text().replace("  io_close(from);", "  *(volatile uint32_t *)0x5FFFFFF0u = 1u;\n  io_close(from);"))
    session = CortexM().open(artifact, "qemu-m7")
    with pytest.raises(RunError, match="ended with 2"):
        session.run(random_feeds(convolutions(), 1))
    session.close()
