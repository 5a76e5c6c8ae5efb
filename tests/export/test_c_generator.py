"""Generated C on this machine: every kind answers what the reference answers; what does not fit is refused."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from c_case import kinds_of, programs, written

from conftest import missing
from lowbit.errors import ModelError, RunError, UsageError
from lowbit.export.base import Target, TargetSession
from lowbit.export.cortexm import qemu, walks
from lowbit.export.cortexm.c_text import Constant, comment, identifier, real, string
from lowbit.export.cortexm.prepared import prepare
from lowbit.export.cortexm.target import CortexM
from lowbit.export.program import reference
from lowbit.export.program.program import Kind, Program
from lowbit.export.program.random_programs import random_feeds, random_program

SANITIZED = "-O1 -fsanitize=undefined -fno-sanitize-recover"


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> str:
    """Of this machine; faults that C leaves undefined end the program."""
    if qemu.host_compiler() is None or shutil.which(qemu.MAKE) is None:
        missing("a C compiler or make")
    monkeypatch.setenv("OPTIMIZE", SANITIZED)
    return str(qemu.host_compiler())


def small() -> Program:
    """One convolution, one sum, fed int8: quick to compile."""
    return random_program(3, float_io=False, kinds=frozenset({Kind.CONV_2D, Kind.ADD}))


def test_the_programs_have_every_kind() -> None:
    assert set().union(*(kinds_of(program) for program in programs())) == set(Kind)


@pytest.mark.parametrize("number", range(len(programs())))
def test_c_answers_what_the_reference_answers(number: int, tmp_path: Path, compiler: str) -> None:  # noqa: ARG001 - it sets up
    program = programs()[number]
    feeds = random_feeds(program, 4, seed=number)
    session = CortexM().open(written(program, tmp_path / "code"), qemu.HOST)
    try:
        answers, integers = session.run(feeds), session.integers(feeds)
    finally:
        session.close()
    assert integers is not None
    for name, wanted in reference.run(program, feeds).items():
        np.testing.assert_array_equal(answers[name], wanted)
        np.testing.assert_array_equal(integers[name], reference.run_integers(program, feeds)[name])


@pytest.mark.parametrize(
    ("correct", "broken"),
    [
        ("left + plan->sign * right", "left - plan->sign * right"),
        ("sum += (values[i] - zero_point) * weights[i]", "sum += (values[i] + zero_point) * weights[i]"),
        (
            "(value >> exponent) + (remainder > (mask >> 1) + (value < 0 ? 1 : 0) ? 1 : 0)",
            "(value >> exponent) + (remainder > mask ? 1 : 0)",
        ),
    ],
)
def test_a_broken_kernel_is_noticed(correct: str, broken: str, tmp_path: Path, compiler: str) -> None:  # noqa: ARG001
    program = small()
    assert kinds_of(program) == {Kind.CONV_2D, Kind.ADD}
    artifact = written(program, tmp_path / "code")
    kernels = tmp_path / "code" / "lowbit_kernels.c"
    assert correct in kernels.read_text()
    kernels.write_text(kernels.read_text().replace(correct, broken))
    feeds = random_feeds(program, 8)
    session = CortexM().open(artifact, qemu.HOST)
    try:
        found = session.run(feeds)
    finally:
        session.close()
    assert any(not np.array_equal(found[name], wanted) for name, wanted in reference.run(program, feeds).items())


def test_what_is_written(tmp_path: Path) -> None:
    program = dataclasses.replace(small(), labels=('a "b"?', "c\\d", "Öl", "*/"))
    artifact = written(program, tmp_path, "candidate */ int8")
    names = {str(path.relative_to(tmp_path)) for path in artifact.files}
    assert names == {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert names >= {"model.h", "model.c", "lowbit_kernels.h", "lowbit_kernels.c", "main.c", "Makefile", "README.md", "labels.txt"}
    assert names >= {"board/mps2-an386.ld", "board/mps2-an500.ld", "board/mps3-an547.ld", "board/startup.c"}
    header = (tmp_path / "model.h").read_text()
    (port,) = program.inputs
    tensor = program.tensors[port.tensor]
    assert tensor.grid is not None
    assert f"INPUT_SIZE {tensor.size_bytes}\n" in header
    assert f"INPUT_ZERO_POINT ({int(tensor.grid.zero_point)})\n" in header
    scale = re.search(r"INPUT_SCALE (\S+)f\n", header)
    assert scale is not None
    assert np.float32(scale[1]) == tensor.grid.scale
    assert f"ARENA_BYTES {artifact.facts['arena_bytes']}\n" in header
    assert (tmp_path / "labels.txt").read_text() == 'a "b"?\nc\\d\nÖl\n*/\n'
    assert "candidate * / int8" in header
    assert "@" not in "".join(path.read_text() for path in artifact.files if path.suffix in (".c", ".h", ".ld")), "a place was not filled"


def test_only_kernels_that_are_needed_are_written(tmp_path: Path) -> None:
    written(small(), tmp_path)
    text = (tmp_path / "lowbit_kernels.c").read_text()
    assert "int lowbit_conv_2d(" in text
    assert "int lowbit_add(" in text
    assert not re.search(r"int lowbit_(softmax|resize_bilinear|max_pool|quantize)\(", text)


def test_nothing_is_allocated_and_no_library_is_asked_for(tmp_path: Path) -> None:
    for number, program in enumerate(programs()):
        written(program, tmp_path / str(number))
        for name in ("model.c", "lowbit_kernels.c", "lowbit_kernels.h", "model.h"):
            text = (tmp_path / str(number) / name).read_text()
            assert set(re.findall(r"#include <(\S+)>", text)) <= {"stdint.h", "stddef.h", "arm_acle.h"}
            assert not re.search(r"\b(malloc|calloc|free|printf|double)\b", text)


USER = """
#include "model.h"
#include <stdio.h>
#include <string.h>
static char memory[{upper}_ARENA_BYTES + 32];
int main(void) {{
  signed char input[{upper}_INPUT_SIZE], one[{upper}_OUTPUT_SIZE], two[{upper}_OUTPUT_SIZE];
  for (int i = 0; i < {upper}_INPUT_SIZE; i++) input[i] = (signed char)(i * 37);
  char *aligned = memory + (16 - (unsigned long)memory % 16) % 16;
  memset(memory, 77, sizeof memory);
  if ({name}_run(input, one) != 0 || {name}_run_in(aligned, input, two) != 0 || memcmp(one, two, sizeof one) != 0) return 1;
  memcpy({name}_input(), input, sizeof input);
  if ({name}_run({name}_input(), {name}_output()) != 0 || memcmp(one, {name}_output(), sizeof one) != 0) return 2;
  for (char *at = aligned + {upper}_ARENA_BYTES; at < memory + sizeof memory; at++) if (*at != 77) return 3;
  return 0;
}}
"""


@pytest.mark.parametrize("language", ["c99", "c++11"])
def test_a_user_calls_it_in_memory_of_their_own(language: str, tmp_path: Path, compiler: str) -> None:
    """Own memory, the model's memory, and without copies: the same answers; nothing beyond the arena is touched. From C and from C++."""
    program = random_program(11, float_io=False, kinds=frozenset({Kind.RELU, Kind.MAX_POOL_2D}))
    written(program, tmp_path)
    ending = "c" if language == "c99" else "cc"
    if ending == "cc" and shutil.which("g++") is None:
        missing("g++")
    (tmp_path / f"user.{ending}").write_text(USER.format(name=program.name, upper=program.name.upper()))
    flags = ["-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover"]
    for name in ("model", "lowbit_kernels"):
        subprocess.run([compiler, "-std=c99", *flags, "-c", f"{name}.c", "-o", f"{name}.o"], cwd=tmp_path, check=True)
    linker = compiler if ending == "c" else "g++"
    subprocess.run(
        [linker, f"-std={language}", *flags, f"user.{ending}", "model.o", "lowbit_kernels.o", "-o", "user"], cwd=tmp_path, check=True
    )
    assert subprocess.run([tmp_path / "user"], check=False).returncode == 0


# ---- refusals ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "said"), [("sram_kb", "of SRAM are missing"), ("flash_kb", "of flash are missing")])
def test_what_does_not_fit_is_refused_before_anything_is_written(name: str, said: str, tmp_path: Path) -> None:
    program = random_program(5, float_io=False, kinds=frozenset({Kind.CONV_2D, Kind.SOFTMAX}))
    with pytest.raises(ModelError) as caught:
        written(program, tmp_path, **{name: 1})
    assert said in caught.value.message
    assert "nothing was written" in caught.value.message
    assert "Most is alive in step" in caught.value.message
    assert caught.value.hint is not None
    assert name in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_how_much_is_missing_is_said_exactly(tmp_path: Path) -> None:
    program = small()
    need = int(written(program, tmp_path / "all").facts["sram_bytes"])
    with pytest.raises(ModelError, match=rf"{(need - 2048) / 1024:,.1f} KiB of SRAM are missing"):
        written(program, tmp_path / "less", sram_kb=2)


def test_types_that_kernels_do_not_compute_are_refused(tmp_path: Path) -> None:
    program = small()
    wide = {name: dataclasses.replace(t, dtype="int16") if t.data is None else t for name, t in program.tensors.items()}
    with pytest.raises(ModelError, match="int16; the kernels compute on int8"):
        written(dataclasses.replace(program, tensors=wide), tmp_path)


@pytest.mark.parametrize(("name", "value", "error"), [("board", "arduino", UsageError), ("sram_kb", -1, UsageError)])
def test_settings_that_do_not_fit(name: str, value: str | int, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error):
        written(small(), tmp_path, **{name: value})


def test_what_the_compiler_says_is_passed_on(tmp_path: Path, compiler: str) -> None:  # noqa: ARG001
    artifact = written(small(), tmp_path)
    (tmp_path / "model.c").write_text("this is no C")
    with pytest.raises(RunError, match="this is no C"):
        CortexM().open(artifact, qemu.HOST)
    with pytest.raises(RunError, match="cannot be run as 'qemu-z80'"):
        CortexM().open(artifact, "qemu-z80")


def test_a_machine_without_programs_still_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu.shutil, "which", lambda _: None)
    target = CortexM()
    able = target.abilities()
    assert (able.write, able.level, len(able.missing)) == (True, "checked", 3)
    artifact = written(small(), tmp_path)
    assert target.kernel_sets(artifact) == ()
    assert [finding.severity for finding in target.check(artifact)] == ["note", "warning"]


def test_it_is_a_target(tmp_path: Path, compiler: str) -> None:  # noqa: ARG001
    assert isinstance(CortexM(), Target)
    session = CortexM().open(written(small(), tmp_path), qemu.HOST)
    assert isinstance(session, TargetSession)
    session.close()


# ---- parts -------------------------------------------------------------------------------------------------------------------------


def test_names_and_literals() -> None:
    assert [identifier(name) for name in ("net", "9 lives", "a-b.c", "")] == ["net", "m_9_lives", "a_b_c", "m_"]
    assert string('a"b\\?é') == '"a\\042b\\134\\077\\303\\251"'
    assert comment("x */ y\n") == "/* x * / y? */"
    for value in (0.1, 1e-20, 3.0, 1 / 3):
        assert np.float32(real(value)[:-1]) == np.float32(value)
    assert Constant("c", np.array([[1, -2], [3, 4]], np.int8)).text == "static const int8_t c[4] = {\n    1, -2, 3, 4,\n};"


def test_axes_that_can_be_walked_as_one_are_joined() -> None:
    assert walks.pair((2, 3, 4), (2, 3, 4), (2, 3, 4)).extents == (1, 1, 1, 1, 1, 24)
    found = walks.pair((2, 3, 4), (4,), (2, 3, 4))
    assert (found.extents, found.steps) == ((1, 1, 1, 1, 6, 4), ((0, 0, 0, 0, 4, 1), (0, 0, 0, 0, 0, 1)))
    moved = walks.transpose((2, 3, 4), (0, 2, 1))
    assert (moved.extents, moved.steps) == ((1, 1, 1, 2, 4, 3), ((0, 0, 0, 12, 1, 4), (0, 0, 0, 12, 3, 1)))
    with pytest.raises(ValueError, match="7 axes that cannot be joined"):
        walks.transpose((2, 2, 2, 2, 2, 2, 2), (6, 5, 4, 3, 2, 1, 0))


def test_flash_is_counted_before_it_is_compiled() -> None:
    program = small()
    prepared = prepare(program)
    weights = sum(t.size_bytes for t in program.constants if t.dtype in ("int8", "int32"))
    assert weights <= prepared.constant_bytes <= weights + 2000
    assert prepared.kernels == ("add", "conv_2d")
