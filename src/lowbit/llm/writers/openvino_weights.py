"""A decoder's tensors as OpenVINO constants: floating point as it is, quantized ones in the form that plugins decompress in the product.

    levels (i4, u4, i8, u8) -> Convert -> [Subtract zero points] -> Multiply by scales (f16) -> [Reshape] -> Convert (f32)

That is the form in which NNCF leaves compressed weights. Levels go in exactly: a symmetric grid's as signed numbers (level - zero), an
asymmetric one's unsigned with their zero points. Grids of 2 and 3 bits are stored in 4-bit numbers, exact as well.

The data lie in a file, which the constants are maps of, until OpenVINO has copied them into its own: no more than a tensor is in memory.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from lowbit.llm.linear import QuantizedLinear
from lowbit.types import Array

if TYPE_CHECKING:
    from openvino import Node

TYPES = {"float16": "f16", "float32": "f32", "bfloat16": "bf16"}
"""numpy's name of what a source stores -> OpenVINO's."""


class Constants:
    """Makes constants whose data lie in a scratch file; the file goes when it is closed, after the model was written."""

    def __init__(self, scratch: Path) -> None:
        self._path = scratch
        self._file = scratch.open("w+b")
        self._maps: list[Array] = []

    def __enter__(self) -> Constants:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._maps.clear()
        self._file.close()
        self._path.unlink(missing_ok=True)

    def node(self, data: Array, dtype: str, shape: tuple[int, ...], name: str) -> Node:
        """A constant.

        Args:
            data: Its bytes in C order, of any dtype; two 4-bit numbers a byte, the first in the low half.
            dtype: OpenVINO's name of the element type.
            shape: Of the constant.
            name: Of the node.
        """
        import openvino

        raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        start = -(-self._file.tell() // 64) * 64
        self._file.seek(start)
        self._file.write(raw.data)
        self._file.flush()
        mapped = np.memmap(self._file, dtype=np.uint8, mode="r+", offset=start, shape=raw.shape)
        self._maps.append(mapped)
        constant = openvino.op.Constant(openvino.Tensor(mapped, list(shape), getattr(openvino.Type, dtype)), shared_memory=True)
        constant.set_friendly_name(name)
        return constant

    def floating(self, array: Array, name: str) -> Node:
        """A floating-point tensor as it is stored."""
        return self.node(array, TYPES[str(array.dtype)], array.shape, name)


class Matrix:
    """Weights [O, K] in a model: as the matrix of a product, and as a table whose rows are looked up. Both read the same constants."""

    def __init__(self, constants: Constants, weights: Array | QuantizedLinear, name: str) -> None:
        self._name = name
        self._kept: tuple[Node, Array] | None = None
        if isinstance(weights, QuantizedLinear):
            self._levels, self._scale, self._zero = _compressed(constants, weights, name)
            if weights.columns is not None and weights.kept is not None and weights.columns.size:
                self._kept = constants.floating(weights.kept, f"{name}/kept"), weights.columns
        else:
            self._levels, self._scale, self._zero = constants.floating(weights, name), None, None
        self._shape = weights.shape

    def product(self, inputs: Node, bias: Node | None = None) -> Node:
        """inputs [..., K] times the transposed weights [O, K]: [..., O] in float32."""
        from openvino import opset13 as ops

        if self._kept is None:
            found = ops.matmul(inputs, self._dequantized(), False, True)
        else:
            kept, columns = self._kept
            # Their levels stand for zero. The inputs become zero as well, lest the rest be rounded by a step as wide as theirs.
            others = np.ones(self._shape[1], np.float32)
            others[columns] = 0
            found = ops.matmul(ops.multiply(inputs, ops.constant(others)), self._dequantized(), False, True)
            picked = ops.gather(inputs, ops.constant(columns.astype(np.int64)), ops.constant(np.array(-1)))
            found = ops.add(found, ops.matmul(picked, ops.convert(kept, "f32"), False, True))
        if bias is not None:
            found = ops.add(found, bias)
        found.set_friendly_name(self._name.removesuffix(".weight"))
        return found

    def rows(self, indices: Node) -> Node:
        """Rows of the weights by index: [..., K] in float32."""
        from openvino import opset13 as ops

        if self._scale is None:  # the rows are converted, not the whole table
            return ops.convert(ops.gather(self._levels, indices, ops.constant(0)), "f32")
        return ops.gather(self._dequantized(), indices, ops.constant(0))

    def _dequantized(self) -> Node:
        from openvino import opset13 as ops

        if self._scale is None:
            return ops.convert(self._levels, "f32")
        found = ops.convert(self._levels, "f16")
        if self._zero is not None:
            found = ops.subtract(found, ops.convert(self._zero, "f16"))
        found = ops.multiply(found, self._scale)
        if len(self._levels.get_output_shape(0)) == 3:
            found = ops.reshape(found, ops.constant(np.array(self._shape, np.int64)), False)
        return ops.convert(found, "f32")


def _compressed(constants: Constants, weights: QuantizedLinear, name: str) -> tuple[Node, Node, Node | None]:
    rows, columns = weights.shape
    groups = weights.scale.shape[1]
    grouped = (rows, groups, columns // groups) if groups > 1 else (rows, columns)
    per_group = (rows, groups, 1) if groups > 1 else (rows, 1)
    dtype = element_type(weights)
    levels = constants.node(stored(weights), dtype, grouped, name)
    zero = None
    if weights.zero is not None:
        zero = constants.node(_packed(weights.zero) if dtype == "u4" else weights.zero, dtype, per_group, f"{name}/zero_point")
    return levels, constants.node(weights.scale, "f16", per_group, f"{name}/scale"), zero


def element_type(weights: QuantizedLinear) -> str:
    """OpenVINO's name of the type that holds the levels."""
    return ("i" if weights.zero is None else "u") + ("8" if weights.grid.bits == 8 else "4")


def stored(weights: QuantizedLinear) -> Array:
    """The bytes of the levels: signed numbers (level - zero) where the grid is symmetric, levels as they are where not.

    Args:
        weights: [O, K].

    Returns:
        uint8 [O, K], or [O * K / 2] with two 4-bit numbers a byte.
    """
    levels = weights.levels if weights.zero is not None else weights.levels - np.uint8(weights.grid.zero)  # wraps: two's complement
    return levels if weights.grid.bits == 8 else _packed(levels)


def _packed(values: Array) -> Array:
    """4-bit numbers, two a byte, the first in the low half; a last half that is left over is 0."""
    flat = values.reshape(-1)
    low, high = flat[0::2] & 15, flat[1::2] << 4
    packed: Array = low
    packed[: high.size] |= high
    return packed
