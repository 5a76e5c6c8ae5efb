"""Boards that QEMU emulates, one for each core; the table that the linker scripts and compiler flags come from."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.errors import unknown

STACK_BYTES = 8192
"""What the linker script sets aside; a run uses some hundred bytes of it, and the example measures how many."""


@dataclass(frozen=True)
class Region:
    """Memory of a board.

    Attributes:
        origin: First address.
        kilobytes: Size, in 1024 bytes.
    """

    origin: int
    kilobytes: int


@dataclass(frozen=True)
class Board:
    """A board.

    Attributes:
        name: Of the machine in QEMU.
        core: For people.
        flags: For the compiler.
        vectors: Where the core looks for its vector table after a reset.
        flash: For code and constants. On these boards it is RAM that plays flash; on yours it is flash.
        sram: For data.
        clock_hz: Of the core; SysTick counts it.
        vectors_unit: Whether it has the vector extension.
    """

    name: str
    core: str
    flags: tuple[str, ...]
    vectors: int
    flash: Region
    sram: Region
    clock_hz: int
    vectors_unit: bool = False


BOARDS = {
    board.name: board
    for board in (
        Board(
            "mps2-an386",
            "Cortex-M4",
            ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
            0x00000000,
            Region(0x00000400, 4095),
            Region(0x20000000, 4096),
            25_000_000,
        ),
        Board(
            "mps2-an500",
            "Cortex-M7",
            ("-mcpu=cortex-m7", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv5-d16"),
            0x00000000,
            Region(0x00000400, 4095),
            Region(0x20000000, 4096),
            25_000_000,
        ),
        Board(
            "mps3-an547",
            "Cortex-M55",
            ("-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard"),
            0x10000000,
            Region(0x11000000, 2048),
            Region(0x31000000, 2048),
            32_000_000,
            vectors_unit=True,
        ),
    )
}


def board(name: str) -> Board:
    """The board of that name.

    Raises:
        UsageError: There is none.
    """
    if name not in BOARDS:
        raise unknown("board", name, BOARDS)
    return BOARDS[name]
