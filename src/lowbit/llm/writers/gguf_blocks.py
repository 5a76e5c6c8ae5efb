"""Quantized weights as llama.cpp's blocks of 32, bit for bit: no weight changes its value.

    Q4_0    d * q            q in -8..7           2 + 16 bytes       int4, int3, int2; also int3 and int2 with a zero point
    Q4_1    d * q + m        q in 0..15           2 + 2 + 16 bytes   int4 with a zero point, where m = -zero * d is a 16-bit number
    Q5_0    d * q            q in -16..15         2 + 4 + 16 bytes   int4 with a zero point, where it is not: level - zero fits
    Q8_0    d * q            q in -128..127       2 + 32 bytes       int8

Groups of a multiple of 32, and whole rows, repeat their scale in each block: 0.5 bit a weight (d a block) instead of 16 / group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lowbit.errors import UsageError
from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.types import Array

BLOCK = 32
"""Weights that share a scale in every one of these formats."""

BlockType = Literal["Q4_0", "Q4_1", "Q5_0", "Q8_0"]

LOWEST: dict[str, int] = {"Q4_0": -8, "Q5_0": -16, "Q8_0": -128}
"""Of the types without an offset: the first signed level; the last is -LOWEST - 1."""


@dataclass(frozen=True)
class Packed:
    """Rows of blocks.

    Attributes:
        data: uint8 [O, bytes of a row].
        type: Of the blocks.
    """

    data: Array
    type: BlockType


def refuse(name: str, grid: Grid, columns: int) -> None:
    """Says why blocks of 32 cannot hold a layer's grid, if they cannot.

    Raises:
        UsageError: rows that 32 does not divide, groups that are no multiple of 32, or int8 with a zero point.
    """
    if columns % BLOCK:
        raise UsageError(
            f"GGUF holds quantized weights in blocks of {BLOCK}; the rows of {name} have {columns} weights.",
            "Keep this model in 16 bit for llama.cpp, or choose another engine.",
        )
    if grid.group is not None and grid.group % BLOCK:
        raise UsageError(
            f"GGUF holds quantized weights in blocks of {BLOCK}; {name} has groups of {grid.group}.",
            "Groups of 32, 64, 128 and whole rows can be held.",
        )
    if grid.bits == 8 and not grid.symmetric:
        raise UsageError(f"GGUF has no 8-bit blocks with a zero point, which {name} needs.", "Symmetric int8 can be held.")


def refuse_kept(name: str) -> UsageError:
    """What is said about columns in 16 bit among quantized ones."""
    return UsageError(
        f"GGUF cannot keep single columns of {name} in 16 bit: a tensor has one type.",
        "Leave `outliers` out of the recipe for llama.cpp, or choose another engine for it.",
    )


def block_type(parts: Sequence[QuantizedLinear]) -> BlockType:
    """The smallest blocks that hold all parts exactly; several parts become one tensor, one below the other.

    Raises:
        UsageError: none does.
    """
    if all(_offsets_fit(part) for part in parts):
        return "Q4_1"
    wanted: list[BlockType] = ["Q8_0" if part.grid.bits == 8 else "Q5_0" if _asymmetric4(part.grid) else "Q4_0" for part in parts]
    return max(wanted, key=lambda each: -LOWEST[each])


def pack(parts: Sequence[QuantizedLinear]) -> Packed:
    """Packs the rows of one tensor.

    Args:
        parts: Its rows, from the top; one where nothing is fused.

    Returns:
        Blocks whose dequantized value is `QuantizedLinear.dequantized()`.

    Raises:
        UsageError: blocks of 32 cannot hold them.
    """
    kind = block_type(parts)
    if kind == "Q4_1":
        return Packed(np.concatenate([_q4_1(part) for part in parts]), kind)
    packer = {"Q4_0": _q4_0, "Q5_0": _q5_0, "Q8_0": _q8_0}[kind]
    return Packed(np.concatenate([_rows(packer(_signed(part, LOWEST[kind]), _scales(part))) for part in parts]), kind)


def _asymmetric4(grid: Grid) -> bool:
    return grid.bits == 4 and not grid.symmetric


def _offsets_fit(part: QuantizedLinear) -> bool:
    """Whether -zero * scale is a number of 16 bit in every group of a 4-bit grid with zero points."""
    if not _asymmetric4(part.grid) or part.zero is None:
        return False
    exact = part.zero.astype(np.float32) * part.scale.astype(np.float32)  # 4 bit times 11 bit: exact in float32
    with np.errstate(over="ignore"):
        return bool(np.array_equal(exact.astype(np.float16).astype(np.float32), exact))


def _signed(part: QuantizedLinear, lowest: int) -> Array:
    """level - zero as int8 [O, K / 32, 32]."""
    rows, columns = part.shape
    zero: Array | int = part.grid.zero
    if part.zero is not None:
        zero = part.zero.astype(np.int16)[:, np.arange(columns) // (part.grid.group or columns)]
    signed = part.levels.astype(np.int16) - zero
    assert lowest <= signed.min(initial=0) <= signed.max(initial=0) < -lowest, "refuse() let a grid through that does not fit"
    return signed.astype(np.int8).reshape(rows, columns // BLOCK, BLOCK)


def _per_block(part: QuantizedLinear, values: Array) -> Array:
    """The value of each block's group [O, K / 32]."""
    columns = part.shape[1]
    return values[:, np.arange(0, columns, BLOCK) // (part.grid.group or columns)]


def _scales(part: QuantizedLinear) -> Array:
    return _bytes(_per_block(part, part.scale))


def _bytes(values: Array) -> Array:
    """float16 [O, B] as uint8 [O, B, 2], lowest byte first."""
    return np.ascontiguousarray(values, dtype="<f2").view(np.uint8).reshape(*values.shape, 2)


def _nibbles(values: Array) -> Array:
    """0..15 in uint8 [O, B, 32] -> [O, B, 16]: the first half of a block in the low nibbles, the second in the high ones."""
    half = BLOCK // 2
    packed: Array = values[..., :half] | (values[..., half:] << 4)
    return packed


def _rows(blocks: Array) -> Array:
    return blocks.reshape(len(blocks), -1)


def _q4_0(signed: Array, scales: Array) -> Array:
    return np.concatenate([scales, _nibbles((signed + 8).astype(np.uint8))], axis=-1)


def _q5_0(signed: Array, scales: Array) -> Array:
    raised = (signed + 16).astype(np.uint8)
    fifth = np.packbits(raised >> 4, axis=-1, bitorder="little")
    return np.concatenate([scales, fifth, _nibbles(raised & 15)], axis=-1)


def _q8_0(signed: Array, scales: Array) -> Array:
    return np.concatenate([scales, signed.view(np.uint8)], axis=-1)


def _q4_1(part: QuantizedLinear) -> Array:
    assert part.zero is not None
    rows, columns = part.shape
    offset = (-part.zero.astype(np.float32) * part.scale.astype(np.float32)).astype(np.float16)
    levels = part.levels.reshape(rows, columns // BLOCK, BLOCK)
    return _rows(np.concatenate([_scales(part), _bytes(_per_block(part, offset)), _nibbles(levels)], axis=-1))
