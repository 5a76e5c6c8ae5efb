"""What a twin is made of, as data: constants, weights, grids, and steps in order."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lowbit.train.operators import Attributes
from lowbit.types import Array


@dataclass(frozen=True)
class Grid:
    """Where one tensor is rounded.

    Attributes:
        key: Name of the integer tensor in the file.
        tensor: What is rounded: a computed tensor, or a trained constant.
        scale: Name of the constant.
        zero_point: Likewise; None where the file leaves it out.
        is_weight: A constant is rounded.
        low: Lowest level.
        high: Highest level.
        axis: Of the channels, or the one that is cut into blocks; None per tensor.
        block: Elements of a block.
        stored_as: Lowest and highest level of the file's type.
        leader: Key of the grid whose scale it has; its own where it has its own.
    """

    key: str
    tensor: str
    scale: str
    zero_point: str | None
    is_weight: bool
    low: int
    high: int
    axis: int | None
    block: int | None
    stored_as: tuple[int, int]
    leader: str


@dataclass(frozen=True)
class Bias:
    """A bias on the grid of input times weight, int32 in the file.

    Attributes:
        stored: Name of the integers.
        scale: Name of their scale.
        activation: Key of the grid of what it is added to the product of; None where the scale is not that product.
        weight: Likewise.
    """

    stored: str
    scale: str
    activation: str | None
    weight: str | None


@dataclass(frozen=True)
class Compute:
    """One operator."""

    attributes: Attributes
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Rounding:
    """One fake quantization."""

    grid: str
    source: str
    output: str


@dataclass
class Plan:
    """What a twin holds and does.

    Attributes:
        inputs: Fed tensors.
        outputs: Name in the file -> the tensor that it is.
        steps: In order.
        constants: Arrays that stay as they are, by name.
        trained: Arrays that training changes, float32, by the name of their constant in the file.
        grids: By key.
        parameters: Scales and zero points as the file has them, by the name of their constant.
        stored: Constants that the file holds as integers -> key of their grid.
        biases: By the name of the stored integers.
        aliases: Tensor -> the one whose values it has.
    """

    inputs: tuple[str, ...]
    outputs: dict[str, str] = field(default_factory=dict)
    steps: list[Compute | Rounding] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    trained: dict[str, Array] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)
    parameters: dict[str, Array] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    biases: dict[str, Bias] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def zeros(self, grid: Grid) -> Array:
        """The zero point of a grid, in the shape of its scale."""
        if grid.zero_point is None:
            return np.zeros(self.parameters[grid.scale].shape, np.int32)
        return self.parameters[grid.zero_point].astype(np.int32)
