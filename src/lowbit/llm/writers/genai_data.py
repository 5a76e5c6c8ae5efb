"""Tensors of an ONNX decoder in one file beside its graphs, as onnxruntime's operators want them: levels in blocks, scales, zero points.

Several graphs (one a way to compute) read the same file, so each tensor is written once, in the order of the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from lowbit.errors import UsageError
from lowbit.llm.decoder import Decoder, Weights, linear_name
from lowbit.llm.levels import pack_levels
from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.types import Array

BLOCKS = (128, 64, 32, 16)
"""Inputs that share a scale in MatMulNBits. 256 is known to it too, but slower than 128 with long prompts."""

TOGETHER = (("attention.q", "attention.k", "attention.v"), ("mlp.gate", "mlp.up"))
"""Layers that read the same input: one product with their rows below each other is faster than one each."""

_ALIGNED = 4096  # where onnxruntime maps the file


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies.

    Attributes:
        name: Of the initializer.
        dtype: numpy's name.
        shape: Of the tensor.
        offset: In the file, bytes.
        length: Bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class Plain:
    """A floating-point matrix [O, K] (an embedding: [V, W])."""

    weight: Stored

    @property
    def rows(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True)
class Blocked:
    """Quantized weights as MatMulNBits holds them: (level - zero) * scale by blocks of inputs.

    Attributes:
        rows, columns: O and K.
        bits: 2, 4 or 8 in the file; levels of 3 bits lie in 4.
        block: Inputs that share a scale in the file: the grid's group or a divisor of it.
        levels: uint8 [O, blocks, block * bits / 8].
        scale: [O, blocks].
        zero: uint8 [O, ceil(blocks * bits / 8)]; None where zero is the middle level.
        row_scale: float32 [O], where a row has one scale and zero is the middle of 8 bits: what whole-row integer products need.
        columns_kept: int64 [n], inputs in 16 bit; None: no such.
        kept: [n, O], their weights.
        others: float32 [K], 0 at those inputs, else 1: they must not count for the scale of rounded activations.
    """

    rows: int
    columns: int
    bits: int
    block: int
    levels: Stored
    scale: Stored
    zero: Stored | None
    row_scale: Stored | None
    columns_kept: Stored | None = None
    kept: Stored | None = None
    others: Stored | None = None


Matrix = Plain | Blocked


@dataclass(frozen=True)
class Packed:
    """A `Blocked`, not written yet."""

    bits: int
    block: int
    levels: Array
    scale: Array
    zero: Array | None


def block_of(grid: Grid, columns: int) -> int | None:
    """Inputs that share a scale in the file: the longest block that divides a group; None where no block does.

    A row with one scale takes the block that fills it up least: 320 inputs are five blocks of 64, not three of 128.

    >>> block_of(Grid(4, 128), 4096), block_of(Grid(4, 96), 960), block_of(Grid(8, None), 320), block_of(Grid(4, 40), 320)
    (128, 32, 64, None)
    """
    if grid.group is None or grid.group >= columns:
        return min(BLOCKS[:3], key=lambda block: (-columns % block, -block))
    return next((block for block in BLOCKS if grid.group % block == 0), None)


def pack(quantized: QuantizedLinear) -> Packed:
    """Levels, scales and zero points in MatMulNBits' layout: exactly the same numbers.

    Levels of 3 bits are moved to the middle of 4 where the grid is symmetric. What fills up the last block stands for zero.
    """
    grid, (rows, columns) = quantized.grid, quantized.shape
    block = block_of(grid, columns)
    assert block is not None
    bits = 4 if grid.bits == 3 else grid.bits
    blocks = -(-columns // block)
    group = np.arange(blocks) * block // (grid.group or columns)
    scale = np.ascontiguousarray(quantized.scale[:, group])
    levels, middle = quantized.levels, grid.zero
    if grid.bits == 3 and quantized.zero is None:
        levels, middle = levels + np.uint8(4), 8
    zero = None if quantized.zero is None else quantized.zero[:, group]
    if blocks * block > columns:
        last = np.full((rows, 1), middle, np.uint8) if zero is None else zero[:, -1:]
        levels = np.concatenate([levels, np.broadcast_to(last, (rows, blocks * block - columns))], 1)
    packed = (levels if bits == 8 else pack_levels(levels, bits)).reshape(rows, blocks, block * bits // 8)
    return Packed(bits, block, packed, scale, None if zero is None else _packed_zero(zero, bits))


def _packed_zero(zero: Array, bits: int) -> Array:
    """uint8 [O, ceil(blocks * bits / 8)]."""
    per = 8 // bits
    filled = np.pad(zero, ((0, 0), (0, -zero.shape[1] % per))).reshape(len(zero), -1, per)
    return np.bitwise_or.reduce(filled << (np.arange(per, dtype=np.uint8) * np.uint8(bits)), axis=-1).astype(np.uint8)


class DataFile:
    """The file, open for writing. Nothing but the tensor at hand is in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._at = 0

    def __enter__(self) -> DataFile:
        self._file = self._path.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._file is not None
        self._file.close()

    def add(self, name: str, array: Array) -> Stored:
        """Appends a tensor."""
        assert self._file is not None
        start = -(-self._at // _ALIGNED) * _ALIGNED
        self._file.write(bytes(start - self._at))
        array = np.ascontiguousarray(array)
        array.view(np.uint8).reshape(-1).tofile(self._file)
        self._at = start + array.nbytes
        return Stored(name, array.dtype.name, tuple(array.shape), start, array.nbytes)


class Tensors:
    """All tensors of a decoder, written in one pass.

    Attributes:
        matrices: Canonical name without ".weight", several joined by "+" where they are one product -> the matrix.
        vectors: Canonical name -> norm or bias, float32; of joined layers: one after the other.
    """

    def __init__(self, weights: Weights, data: DataFile, progress: Callable[[int, int], None] | None = None) -> None:
        self.matrices: dict[str, Matrix] = {}
        self.vectors: dict[str, Stored] = {}
        self._weights, self._data, self._names = weights, data, frozenset(weights.names())
        decoder = weights.decoder
        self._matrix(["embed"])
        if decoder.rope is None:
            self._matrix(["positions"])
        for block in range(decoder.layers):
            self._block(decoder, block)
            if progress is not None:
                progress(block + 1, decoder.layers)
        self._vector("norm.weight")
        self._vector("norm.bias")
        if not decoder.tied:
            self._matrix(["head"])
        self._vector("head.bias")

    def matrix(self, name: str) -> Matrix:
        return self.matrices[name]

    def joined(self, names: Sequence[str]) -> bool:
        """Whether these layers are one product."""
        return "+".join(names) in self.matrices

    def _block(self, decoder: Decoder, block: int) -> None:
        prefix = f"blocks.{block}."
        done: set[str] = set()
        for roles in (*TOGETHER, *((role,) for role in decoder.roles)):
            if done.isdisjoint(roles) and all(role in decoder.roles for role in roles):
                read = [self._weights.get(linear_name(block, role)) for role in roles]
                if not _alike(read):
                    continue
                self._matrix([prefix + role for role in roles], read)
                self._biases([prefix + role for role in roles], [decoder.shape(role)[0] for role in roles])
                done.update(roles)
        for name in sorted(each for each in self._names if each.startswith(prefix) and "norm" in each):
            self._vector(name)

    def _biases(self, names: Sequence[str], rows: Sequence[int]) -> None:
        """Of layers that are one product: zeros where one of them has none."""
        if not any(f"{name}.bias" in self._names for name in names):
            return
        parts = [
            self._float32(f"{name}.bias") if f"{name}.bias" in self._names else np.zeros(n, np.float32)
            for name, n in zip(names, rows, strict=True)
        ]
        key = f"{'+'.join(names)}.bias"
        self.vectors[key] = self._data.add(key, np.concatenate(parts))

    def _vector(self, name: str) -> None:
        if name in self._names:
            self.vectors[name] = self._data.add(name, self._float32(name))

    def _float32(self, name: str) -> Array:
        return np.asarray(self._weights.get(name)).astype(np.float32)

    def _matrix(self, names: Sequence[str], read: Sequence[Array | QuantizedLinear] | None = None) -> None:
        key = "+".join(names)
        read = [self._weights.get(f"{name}.weight") for name in names] if read is None else read
        first = read[0]
        if isinstance(first, QuantizedLinear):
            self.matrices[key] = self._blocked(key, [each for each in read if isinstance(each, QuantizedLinear)])
        else:
            plain = [np.asarray(each) for each in read]
            self.matrices[key] = Plain(self._data.add(f"{key}.weight", plain[0] if len(plain) == 1 else np.concatenate(plain)))

    def _blocked(self, key: str, read: Sequence[QuantizedLinear]) -> Blocked:
        parts = [pack(each) for each in read]
        add, first = self._data.add, parts[0]

        def together(arrays: Sequence[Array]) -> Array:
            return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

        zeros = [part.zero for part in parts if part.zero is not None]
        whole = first.bits == 8 and not zeros and all(each.scale.shape[1] == 1 for each in read)
        one = read[0]
        return Blocked(
            rows=sum(each.shape[0] for each in read),
            columns=one.shape[1],
            bits=first.bits,
            block=first.block,
            levels=add(f"{key}.levels", together([part.levels for part in parts])),
            scale=add(f"{key}.scale", together([part.scale for part in parts])),
            zero=add(f"{key}.zero", together(zeros)) if zeros else None,
            row_scale=add(f"{key}.row_scale", together([each.scale[:, 0] for each in read])) if whole else None,
            **self._kept(key, one),
        )

    def _kept(self, key: str, quantized: QuantizedLinear) -> dict[str, Stored]:
        columns, kept = quantized.columns, quantized.kept
        if columns is None or kept is None or not len(columns):
            return {}
        others = np.ones(quantized.shape[1], np.float32)
        others[columns] = 0
        add = self._data.add
        return {
            "columns_kept": add(f"{key}.columns", columns.astype(np.int64)),
            "kept": add(f"{key}.kept", kept.T),
            "others": add(f"{key}.others", others),
        }


def _alike(read: Sequence[Array | QuantizedLinear]) -> bool:
    """Whether layers can be one product: the same storage, and no inputs of their own in 16 bit."""
    if len(read) == 1:
        return True
    if any(isinstance(each, QuantizedLinear) for each in read):
        quantized = [each for each in read if isinstance(each, QuantizedLinear)]
        return (
            len(quantized) == len(read) and len({each.grid for each in quantized}) == 1 and all(each.columns is None for each in quantized)
        )
    return len({np.asarray(each).dtype for each in read}) == 1


def check_grid(name: str, grid: Grid, columns: int) -> None:
    """
    Raises:
        UsageError: MatMulNBits has no block for these groups.
    """
    if block_of(grid, columns) is None:
        raise UsageError(
            f"'{name}' has groups of {grid.group}; ONNX's MatMulNBits holds groups of 16, 32, 64, 128 or multiples, and whole rows.",
            "Quantize in groups of 32, 64 or 128.",
        )
