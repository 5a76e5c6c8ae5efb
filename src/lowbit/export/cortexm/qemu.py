"""Builds the example of an exported folder and runs it: in QEMU for a board, or on this machine. Many samples a run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lowbit.errors import RunError
from lowbit.export.cortexm.boards import BOARDS

HOST = "host"
CROSS, QEMU, MAKE = "arm-none-eabi-gcc", "qemu-system-arm", "make"
HOST_COMPILERS = ("cc", "gcc", "clang")
KERNELS = {"qemu-m4": "mps2-an386", "qemu-m7": "mps2-an500", "qemu-m55": "mps3-an547"}
"""Kernel set -> the board that QEMU plays."""
PACKAGES = {CROSS: "gcc-arm-none-eabi", QEMU: "qemu-system-arm", MAKE: "make"}
"""Program -> its Debian package."""

SECONDS, SECONDS_A_SAMPLE = 600, 60
"""After which a run is given up."""
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Run:
    """What one run gave.

    Attributes:
        answers: Bytes of all outputs, sample after sample.
        samples: How many.
        instructions: Of one sample, the mean; in emulation, which is no latency. None where they were not counted.
        stack: Most bytes in use; None where nobody knows.
    """

    answers: bytes
    samples: int
    instructions: int | None
    stack: int | None


@dataclass(frozen=True)
class Size:
    """What the compiler made of it, in bytes.

    Attributes:
        flash: text + data.
        sram: data + bss; the stack is part of it.
    """

    flash: int
    sram: int


def kernel_sets(first: str) -> tuple[str, ...]:
    """What can be run here: boards if both programs are there, the one of that name first; then this machine."""
    boards = sorted(KERNELS, key=lambda kernels: (KERNELS[kernels] != first, kernels != "qemu-m7", kernels != "qemu-m55"))
    ways = tuple(boards) if not missing_programs() else ()
    return (*ways, HOST) if host_compiler() and shutil.which(MAKE) else ways


def missing_programs() -> tuple[str, ...]:
    """Programs that building for a board and emulating it need, and that are not installed."""
    return tuple(program for program in PACKAGES if shutil.which(program) is None)


def host_compiler() -> str | None:
    """A C compiler for this machine."""
    return next((name for name in HOST_COMPILERS if shutil.which(name)), None)


def build(folder: Path, kernels: str, into: Path) -> Path:
    """Compiles the example.

    Args:
        folder: As exported; nothing is written there.
        kernels: A kernel set.
        into: For what the compiler writes.

    Returns:
        The program.

    Raises:
        RunError: The board that is emulated is too small; or the compiler refuses, with what it said.
    """
    if kernels == HOST:
        _make(folder, ["host", f"HOST_CC={host_compiler()}", f"BUILD={into}"])
        return into / HOST
    board = KERNELS[kernels]
    try:
        _make(folder, ["all", f"BOARD={board}", f"BUILD={into}"])
    except RunError as error:
        if lacking := re.search(r"region `(\w+)' overflowed by (\d+) bytes", error.message):
            raise RunError(f"The program does not fit {board}, which is emulated here: {_lacking(*lacking.groups())}.") from error
        raise
    return into / f"{board}.elf"


def _lacking(region: str, count: str) -> str:
    return f"{-(-int(count) // 1024):,} KiB of {'SRAM' if region == 'SRAM' else 'flash'} are missing"


def size(program: Path) -> Size:
    """What a program for a board takes.

    Raises:
        RunError: It cannot be read.
    """
    text = _called(["arm-none-eabi-size", str(program)], program.parent, 60)
    numbers = re.findall(r"^\s*(\d+)\s+(\d+)\s+(\d+)\s", text, re.MULTILINE)
    if not numbers:
        raise RunError(f"arm-none-eabi-size said nothing of {program.name}: {text.strip()[:200]}")
    code, data, bss = (int(number) for number in numbers[0])
    return Size(code + data, data + bss)


def run(program: Path, kernels: str, samples: bytes, number: int, scratch: Path, *, count: bool = False) -> Run:
    """Answers samples.

    Args:
        program: Of `build`.
        kernels: The same kernel set.
        samples: Bytes of all inputs, sample after sample.
        number: How many samples.
        scratch: A folder for the files that go in and out.
        count: Count instructions, which makes an emulated run slower.

    Raises:
        RunError: It did not start, failed or took too long.
    """
    (scratch / "input.bin").write_bytes(samples)
    answers = scratch / "output.bin"
    answers.unlink(missing_ok=True)
    said = _called(_command(program, kernels, count=count), scratch, SECONDS + SECONDS_A_SAMPLE * number)
    facts = {name: int(number) for name, number in re.findall(r"^(samples|ticks|stack) (\d+)$", said, re.MULTILINE)}
    if "samples" not in facts or not answers.is_file():
        raise RunError(f"The program for {kernels} ended early: {said.strip()[-400:] or 'it said nothing'}")
    instructions = None
    if count and kernels != HOST and facts["samples"]:
        instructions = facts["ticks"] * _NANOSECONDS // BOARDS[KERNELS[kernels]].clock_hz // facts["samples"]
    return Run(answers.read_bytes(), facts["samples"], instructions, facts["stack"] or None)


def _command(program: Path, kernels: str, *, count: bool) -> list[str]:
    if kernels == HOST:
        return [str(program)]
    quiet = ["-nographic", "-monitor", "none", "-serial", "none", "-semihosting-config", "enable=on,target=native"]
    return [QEMU, "-M", KERNELS[kernels], *quiet, *(["-icount", "shift=0"] if count else []), "-kernel", str(program)]


def _make(folder: Path, words: list[str]) -> None:
    _called([MAKE, "--no-print-directory", *words], folder, 600)


def _called(command: list[str], folder: Path, seconds: float) -> str:
    """What a program says, on both channels."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds)
    except FileNotFoundError as error:
        raise RunError(f"{command[0]} is not installed.", f"Install {PACKAGES.get(command[0], 'a C compiler')} (Debian).") from error
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{command[0]} took more than {seconds:.0f} s and was ended.", "Give it fewer samples.") from error
    said = (done.stdout + done.stderr).decode(errors="replace")
    if done.returncode != 0:
        raise RunError(f"{command[0]} ended with {done.returncode}: {said.strip()[-1500:] or 'it said nothing'}")
    return said
