"""Whether a prepared program fits a board, in words, before a file is written."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.errors import ModelError
from lowbit.export.cortexm.boards import STACK_BYTES, Board
from lowbit.export.cortexm.prepared import Prepared


@dataclass(frozen=True)
class Budget:
    """What there is.

    Attributes:
        board: Whose.
        sram_kb: For data.
        flash_kb: For code and constants.
    """

    board: Board
    sram_kb: int
    flash_kb: int


@dataclass(frozen=True)
class Need:
    """What a program takes, in bytes.

    Attributes:
        arena: Tensors.
        stack: Set aside for calls and interrupts.
        buffers: Of the example, for what comes out.
        constants: Weights, tables and plans.
        code: An estimate; `make size` says exactly.
    """

    arena: int
    stack: int
    buffers: int
    constants: int
    code: int

    @property
    def sram(self) -> int:
        """All data."""
        return self.arena + self.stack + self.buffers

    @property
    def flash(self) -> int:
        """All that stays."""
        return self.constants + self.code


def need(prepared: Prepared) -> Need:
    """What a prepared program takes."""
    answers = sum(prepared.program.tensors[port.tensor].size_bytes for port in prepared.program.outputs)
    return Need(prepared.arena.size, STACK_BYTES, answers + 64, prepared.constant_bytes, prepared.code_bytes)


def lines(prepared: Prepared, budget: Budget) -> tuple[str, ...]:
    """The plan against the board, for people."""
    wants = need(prepared)
    sram, flash = f"{_kib(wants.sram)} of {budget.sram_kb:,} KiB", f"{_kib(wants.flash)} of {budget.flash_kb:,} KiB"
    return (
        f"{prepared.program.name} on {budget.board.name} ({budget.board.core}):",
        f"  SRAM  {sram}: arena {wants.arena:,} bytes, stack {wants.stack:,}, answers {wants.buffers:,}",
        f"  flash {flash}: constants {wants.constants:,} bytes, code about {wants.code:,}",
        f"  {peak(prepared)}",
    )


def peak(prepared: Prepared) -> str:
    """Which operation needs most memory, and how much."""
    plan = prepared.arena
    if plan.peak is None:
        return "No operation needs memory."
    operation = prepared.program.operations[plan.peak]
    origin = f", from {', '.join(operation.origin)}" if operation.origin else ""
    sizes = [list(prepared.program.tensors[name].shape) for name in (operation.inputs[0], operation.outputs[0])]
    return (
        f"Most is alive in step {plan.peak + 1}, {operation.kind}{origin}, {sizes[0]} to {sizes[1]}: {plan.peak_bytes:,} bytes; "
        "no arena can be smaller."
    )


def check(prepared: Prepared, budget: Budget) -> None:
    """Refuses what does not fit.

    Raises:
        ModelError: how much is missing, where, and what to do.
    """
    wants = need(prepared)
    short = {"SRAM": wants.sram - budget.sram_kb * 1024, "flash": wants.flash - budget.flash_kb * 1024}
    missing = [f"{_kib(bytes_)} of {name} are missing" for name, bytes_ in short.items() if bytes_ > 0]
    if not missing:
        return
    advice = []
    if short["SRAM"] > 0:
        advice.append(f"Take a chip with {_next_size(wants.sram)} KiB of SRAM (--set sram_kb=...), or feed a smaller image.")
    if short["flash"] > 0:
        advice.append(f"Take a chip with {_next_size(wants.flash)} KiB of flash (--set flash_kb=...), or a smaller candidate.")
    text = "\n".join((*lines(prepared, budget), f"{' and '.join(missing)}; nothing was written."))
    raise ModelError(f"The model does not fit.\n{text}", " ".join(advice))


def _kib(size: int) -> str:
    return f"{size / 1024:,.1f} KiB"


def _next_size(size: int) -> int:
    """The next size that boards come in."""
    step = 256
    while step * 1024 < size:
        step += 256
    return step
