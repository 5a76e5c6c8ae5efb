"""Cortex-M as a target: C code, its memory planned against a board, tried in QEMU."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lowbit.errors import RunError, UsageError
from lowbit.export.base import Abilities, Artifact, Finding, Setting, TargetSession, Wish
from lowbit.export.cortexm import fit, qemu
from lowbit.export.cortexm.boards import BOARDS, board
from lowbit.export.cortexm.generate import files
from lowbit.export.cortexm.prepared import Prepared, prepare
from lowbit.export.cortexm.session import CSession
from lowbit.export.named_session import in_layout, write_beside
from lowbit.export.neutral import Neutral
from lowbit.export.program.program import Program

_log = logging.getLogger("lowbit.export")


@dataclass(frozen=True)
class State:
    """What `open` and `check` need."""

    prepared: Prepared
    budget: fit.Budget


class CortexM:
    """C code for Arm's microcontrollers."""

    name = "cortex-m"
    title = "Cortex-M (C)"
    extra = None
    wishes = (
        Wish("board", "mps2-an500", "the board that the linker script, the compiler's flags and QEMU are for", tuple(BOARDS)),
        Wish("sram_kb", 0, "SRAM of your chip, e.g. 256; 0: the board's"),
        Wish("flash_kb", 0, "flash of your chip; 0: the board's"),
        Wish("float_io", False, "take and give float instead of int8"),
    )

    def version(self) -> str | None:
        """Of the code that is written: it is ours, so it is always there."""
        import lowbit

        return f"lowbit {lowbit.__version__}"

    def abilities(self) -> Abilities:
        """Writes everywhere; emulated where a compiler and QEMU are."""
        missing = tuple(f"apt install {qemu.PACKAGES[program]}" for program in qemu.missing_programs())
        if not missing:
            return Abilities(True, "emulated", (), "run in QEMU: answers and memory are real, latency is not known")
        if qemu.kernel_sets(""):
            return Abilities(True, "interpreted", missing, "run on this machine: answers are those of the board, memory is planned only")
        return Abilities(True, "checked", missing, "planned, not compiled")

    def write(self, source: Neutral, folder: Path, settings: Mapping[str, Setting]) -> Artifact:
        """See `Target.write`; says what memory it takes before it writes anything."""
        from lowbit.export.program.lower import lower

        real = bool(settings["float_io"])
        program = lower(source, float_input=real, float_output=real)
        artifact = self.write_program(program, folder, settings, f"candidate {source.candidate}")
        return replace(artifact, files=(*artifact.files, *write_beside(in_layout(source, program), folder)))

    def write_program(self, program: Program, folder: Path, settings: Mapping[str, Setting], origin: str) -> Artifact:
        """The same from a program that is already on integers.

        Raises:
            ModelError: it does not fit, or has what the kernels lack.
            UsageError: a setting that does not fit.
        """
        budget = _budget(settings)
        prepared = prepare(program)
        plan = fit.lines(prepared, budget)
        for line in plan:
            _log.info(line)
        fit.check(prepared, budget)
        written = []
        for name, text in files(prepared, budget, origin).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            written.append(path)
        main = folder / "model.c"
        others = (path for path in written if path != main)
        notes = ("\n".join(plan),)
        return Artifact(main, (main, *others), _facts(prepared, budget), notes, State(prepared, budget), prepared.program)

    def check(self, artifact: Artifact) -> Sequence[Finding]:
        """Memory once more, now as the compiler counts it where there is one; and what was estimated."""
        state = _state(artifact)
        found = [Finding("memory is planned", "note", fit.peak(state.prepared))]
        if qemu.missing_programs():
            missing = ", ".join(qemu.missing_programs())
            found.append(Finding("compiled", "warning", f"Not compiled: {missing} missing; flash is an estimate."))
            return found
        try:
            size = self.measure(artifact)
        except RunError as error:  # larger than the board that is emulated, say, and right for the user's own chip
            text = f"Not linked for {state.budget.board.name}; flash and SRAM are the plan's: {error.message[-300:]}"
            return [*found, Finding("compiled", "warning", text)]
        for name, taken, there in (("flash", size.flash, state.budget.flash_kb), ("SRAM", size.sram, state.budget.sram_kb)):
            fits = taken <= there * 1024
            text = f"{taken:,} bytes of {there:,} KiB, as compiled for {state.budget.board.name}."
            found.append(Finding(f"{name} suffices", "note" if fits else "error", text))
        return [*found, *self._instructions(artifact)]

    def _instructions(self, artifact: Artifact) -> list[Finding]:
        """How many a sample takes on the board that was asked for; none where it cannot be run."""
        program, (kernels, *_) = _state(artifact).prepared.program, self.kernel_sets(artifact)
        if kernels == qemu.HOST:
            return []
        zeros = {port.name: np.zeros((1, *port.shape[1:]), np.float32) for port in program.inputs}
        try:
            session = CSession(artifact.main.parent, program, kernels)
            counted = session.count(zeros).instructions
            session.close()
        except RunError:
            return []
        return [Finding("instructions", "note", f"{counted:,} instructions a sample in emulation ({kernels}): not latency.")]

    def measure(self, artifact: Artifact) -> qemu.Size:
        """What the compiler makes of it, for the board that was asked for.

        Raises:
            RunError: It refuses.
        """
        with tempfile.TemporaryDirectory(prefix="lowbit-c-") as scratch:
            kernels = next(way for way, name in qemu.KERNELS.items() if name == _state(artifact).budget.board.name)
            return qemu.size(qemu.build(artifact.main.parent, kernels, Path(scratch)))

    def kernel_sets(self, artifact: Artifact) -> tuple[str, ...]:
        """The board that was asked for, the other cores, this machine; those that can be run here."""
        return qemu.kernel_sets(_state(artifact).budget.board.name)

    def open(self, artifact: Artifact, kernels: str) -> TargetSession:
        """Compiles the example for a board or for this machine."""
        here = self.kernel_sets(artifact)
        if kernels not in here:
            raise RunError(f"Cortex-M code cannot be run as '{kernels}' here.", f"Allowed: {', '.join(here) or 'none'}.")
        return CSession(artifact.main.parent, _state(artifact).prepared.program, kernels)


def _state(artifact: Artifact) -> State:
    if not isinstance(artifact.state, State):
        raise RunError("This artifact was not made by the target 'cortex-m'.")
    return artifact.state


def _budget(settings: Mapping[str, Setting]) -> fit.Budget:
    chosen = board(str(settings["board"]))
    sizes = {"sram_kb": chosen.sram.kilobytes, "flash_kb": chosen.flash.kilobytes}
    for name in sizes:
        value = int(settings[name])
        if value < 0:
            raise UsageError(f"{name}={value} is no size.", "Give kilobytes, or 0 for the board's own.")
        sizes[name] = value or sizes[name]
    return fit.Budget(chosen, sizes["sram_kb"], sizes["flash_kb"])


def _facts(prepared: Prepared, budget: fit.Budget) -> dict[str, Setting]:
    wants = fit.need(prepared)
    return {
        "board": budget.board.name,
        "core": budget.board.core,
        "arena_bytes": wants.arena,
        "arena_bytes_as_tflite_micro": prepared.arena.size_by_size,
        "sram_bytes": wants.sram,
        "sram_limit_bytes": budget.sram_kb * 1024,
        "flash_bytes_estimated": wants.flash,
        "flash_limit_bytes": budget.flash_kb * 1024,
    }
