"""A program made ready for C: its arena laid out, every operation as calls of kernels, what each of them takes in flash."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from lowbit.export.cortexm.arena import Plan, plan
from lowbit.export.cortexm.c_text import Constant
from lowbit.export.cortexm.calls import Calls, Step, calls
from lowbit.export.program.program import Kind, Program

CODE_BYTES = {
    "base": 2600,
    "add": 700,
    "conv_2d": 900,
    "depthwise_conv_2d": 1500,
    "float_io": 400,
    "fully_connected": 400,
    "mean": 500,
    "move": 400,
    "mul": 400,
    "pool": 900,
    "resize": 900,
    "softmax": 700,
    "table": 100,
    "transpose_conv": 700,
}
"""Flash of each file of kernels at -O3, a little more than the largest of the three cores takes; "base" is start, files and the example."""


@dataclass(frozen=True)
class Prepared:
    """All that the text is made of.

    Attributes:
        program: What it was.
        arena: Where tensors lie.
        steps: For each operation.
        constants: The program's own that kernels read, by tensor.
    """

    program: Program
    arena: Plan
    steps: tuple[Calls, ...]
    constants: dict[str, Constant]

    @property
    def kernels(self) -> tuple[str, ...]:
        """Files that are needed, in order."""
        return tuple(sorted({name for step in self.steps for name in step.kernels}))

    @property
    def constant_bytes(self) -> int:
        """Weights, biases, multipliers, tables and plans, in flash."""
        return sum(c.size_bytes for c in self.constants.values()) + sum(step.size_bytes for step in self.steps)

    @property
    def code_bytes(self) -> int:
        """About what kernels, calls and the example take."""
        return CODE_BYTES["base"] + sum(CODE_BYTES[name] for name in self.kernels) + 24 * sum(len(step.lines) for step in self.steps)


def prepare(program: Program) -> Prepared:
    """Lays out a program and turns its operations into calls.

    Raises:
        ModelError: an operation, a type or a shape that the kernels do not take.
    """
    arena = plan(program)
    names = {tensor.name: f"tensor_{number}" for number, tensor in enumerate(program.tensors.values()) if tensor.data is not None}
    at = dict(names)
    for name, offset in arena.offsets.items():
        at[name] = f"{_cast(program.tensors[name].dtype)}(arena + {offset})"
    steps = tuple(calls(Step(program, operation, number, at)) for number, operation in enumerate(program.operations, 1))
    text = "\n".join(line for step in steps for line in (*step.lines, *(struct.text for struct in step.structs)))
    used = set(re.findall(r"\btensor_\d+\b", text))
    constants = {tensor: Constant(c, _values(program, tensor)) for tensor, c in names.items() if c in used}
    return Prepared(program, arena, steps, constants)


def scratch_bytes(program: Program, *, vectors: bool) -> int:
    """What CMSIS-NN borrows at most, by the formulas of its `get_buffer_size` functions; the code checks it again as it runs.

    Args:
        program: Whose operations.
        vectors: For a core with the vector extension (M55), not with the DSP extension (M4, M7).
    """
    most = 0
    for operation in program.operations:
        shape = program.tensors[operation.inputs[min(1, len(operation.inputs) - 1)]].shape
        if operation.kind is Kind.CONV_2D:
            column = -(-int(np.prod(shape[1:])) // 8) * 8
            most = max(most, (64 if vectors else 4) * column)
        elif operation.kind is Kind.DEPTHWISE_CONV_2D:
            taps = shape[1] * shape[2]
            most = max(most, 512 * taps if vectors else 2 * taps * shape[3])
        elif operation.kind in (Kind.FULLY_CONNECTED, Kind.AVERAGE_POOL_2D):
            most = max(most, 4 * (shape[0] if operation.kind is Kind.FULLY_CONNECTED else shape[-1]))
    return most + 64


def _cast(dtype: str) -> str:
    return "(float *)(void *)" if dtype == "float32" else ""


def _values(program: Program, name: str) -> np.ndarray:
    tensor = program.tensors[name]
    return np.ascontiguousarray(tensor.data, dtype=np.dtype(tensor.dtype))
