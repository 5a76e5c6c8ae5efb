"""What one operation of the reference is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lowbit.errors import ModelError
from lowbit.export.program.program import Operation, Option, Tensor
from lowbit.quant.affine import Affine
from lowbit.types import Array

T = TypeVar("T", bool, int, float, str)


@dataclass(frozen=True)
class Step:
    """One operation with its operands.

    Attributes:
        operation: What to do.
        tensors: Its operands, in the order of the kind; None where one is left out.
        values: Theirs, [N, *shape] (constants: [1, *shape]); None where one is left out.
        output: What it makes.
    """

    operation: Operation
    tensors: tuple[Tensor | None, ...]
    values: tuple[Array | None, ...]
    output: Tensor

    def value(self, number: int) -> Array:
        """Operand `number`, [N, *shape]."""
        found = self.values[number] if number < len(self.values) else None
        if found is None:
            raise ModelError(f"{self.words()} lacks its operand {number}.")
        return found

    def grid(self, number: int) -> Affine:
        """Of operand `number`."""
        tensor = self.tensors[number]
        if tensor is None or tensor.grid is None:
            raise ModelError(f"{self.words()}: operand {number} has no grid.")
        return tensor.grid

    @property
    def output_grid(self) -> Affine:
        """Of what it makes."""
        if self.output.grid is None:
            raise ModelError(f"{self.words()} makes '{self.output.name}', which has no grid.")
        return self.output.grid

    def levels(self, number: int) -> Array:
        """Operand `number` less its zero point, int64 [N, *shape]: channels' zero points are 0."""
        zero = self.grid(number).zero_point
        return self.value(number).astype(np.int64) - (int(zero) if np.size(zero) == 1 else 0)

    def numbers(self, number: int) -> tuple[int, ...]:
        """Operand `number`, a constant list of integers."""
        return tuple(int(value) for value in self.value(number).reshape(-1))

    def option(self, name: str, default: T) -> T:
        """One of the operation's options; its type is the default's."""
        found: Option = self.operation.options.get(name, default)
        return type(default)(found)  # type: ignore[arg-type]

    def words(self) -> str:
        """Kind and output, for messages."""
        return f"{self.operation.kind} '{self.output.name}'"
