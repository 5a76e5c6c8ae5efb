"""A random program while it is being drawn: tensors and operations so far, and the dice."""

from __future__ import annotations

import numpy as np

from lowbit.export.program.problems import OUTPUT_GRIDS
from lowbit.export.program.program import Kind, Operation, Option, Port, Program, Tensor
from lowbit.export.program.shapes import shape_of
from lowbit.quant.affine import Affine
from lowbit.types import Array

NHWC = (0, 2, 3, 1)
_SCALES = (1e-5, 4.0)
_LEVEL_SPREAD = 74.0
"""Standard deviation of evenly spread int8 levels."""


class Draft:
    """Mutable; `finish` makes the program."""

    def __init__(self, seed: int) -> None:
        self.dice = np.random.default_rng(seed)
        self.tensors: dict[str, Tensor] = {}
        self.operations: list[Operation] = []
        self.ports: list[Port] = []

    # ---- chance

    def chance(self, share: float) -> bool:
        """True in that share of all calls."""
        return bool(self.dice.random() < share)

    def whole(self, low: int, high: int) -> int:
        """An integer of low ... high, both included."""
        return int(self.dice.integers(low, high + 1))

    def activation(self) -> str:
        """A fused activation, most often none."""
        return str(self.dice.choice(["NONE", "NONE", "RELU", "RELU6"]))

    def grid(self, spread: float) -> Affine:
        """A grid on which values of about that standard deviation mostly fit; sometimes they do not, or take few levels."""
        scale = float(np.clip(spread * 2.0 ** self.dice.uniform(-1.5, 1.5) / _LEVEL_SPREAD, *_SCALES))
        zero = int(self.dice.choice([-128, 0, 127, self.whole(-128, 127)], p=[0.2, 0.1, 0.02, 0.68]))
        return per_tensor(scale, zero)

    # ---- tensors

    def constant(self, data: Array, grid: Affine | None = None, name: str = "list") -> str:
        """A new constant's name."""
        name = f"{name}_{len(self.tensors)}"
        self.tensors[name] = Tensor(name, data.shape, data.dtype.name, grid, data)  # type: ignore[arg-type]
        return name

    def numbers(self, *values: int) -> str:
        """A constant list of int32."""
        return self.constant(np.array(values, np.int32))

    def feed(self, shape: tuple[int, ...], *, real: bool) -> str:
        """A new input: its name within the program, int8 whatever is fed; rank 4 lies channels first in the source, half of the time."""
        grid = self.grid(1.0)
        fed = f"fed_{len(self.ports)}"
        self.tensors[fed] = Tensor(fed, shape, "float32" if real else "int8", None if real else grid)
        self.ports.append(self.port(f"x{len(self.ports)}", fed))
        return self.add(Kind.QUANTIZE, (fed,), grid) if real else fed

    def port(self, name: str, tensor: str) -> Port:
        """A port of a tensor, transposed at random where it has four axes."""
        shape = self.tensors[tensor].shape
        if len(shape) != 4 or self.chance(0.5):
            return Port(name, shape, tensor)
        return Port(name, tuple(shape[axis] for axis in np.argsort(NHWC)), tensor, NHWC)

    def add(self, kind: Kind, inputs: tuple[str, ...], grid: Affine | None, **options: Option) -> str:
        """A new operation; its shape follows from its operands, of which empty ones are left out. Returns the name of what it makes."""
        inputs = tuple(filter(None, inputs))
        name = f"t{len(self.tensors)}"
        operation = Operation(kind, inputs, (name,), options, (f"node_{len(self.operations)}",))
        shape = shape_of(operation, [self.tensors[each] for each in inputs])
        dtype = "float32" if kind is Kind.DEQUANTIZE else "int8"
        self.tensors[name] = Tensor(name, shape, dtype, OUTPUT_GRID.get(kind, grid))  # type: ignore[arg-type]
        self.operations.append(operation)
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor."""
        return self.tensors[name].shape

    def grid_of(self, name: str) -> Affine:
        """Of a tensor that has one."""
        grid = self.tensors[name].grid
        assert grid is not None
        return grid

    def spread(self, name: str) -> float:
        """Standard deviation of evenly spread levels on a tensor's grid."""
        return float(self.grid_of(name).scale) * _LEVEL_SPREAD

    # ---- the end

    def open_ends(self) -> list[str]:
        """What is made and used by nobody, in order."""
        used = {name for operation in self.operations for name in operation.inputs}
        made = [port.tensor for port in self.ports] + [operation.outputs[0] for operation in self.operations]
        return [name for name in made if name not in used and self.tensors[name].dtype == "int8"]

    def finish(self, name: str, *, real: bool) -> Program:
        """The program: whatever is left over comes back, as real numbers or as levels."""
        ends = [self.add(Kind.DEQUANTIZE, (end,), None) if real else end for end in self.open_ends()]
        outputs = tuple(self.port(f"y{number}", end) for number, end in enumerate(ends))
        return Program(name, dict(self.tensors), tuple(self.operations), tuple(self.ports), outputs)


def per_tensor(scale: float, zero: int) -> Affine:
    """An int8 grid."""
    return Affine(np.array(scale, np.float32), np.array(zero, np.int32), "int8", symmetric=False)


OUTPUT_GRID = {kind: per_tensor(*numbers) for kind, numbers in OUTPUT_GRIDS.items()}
