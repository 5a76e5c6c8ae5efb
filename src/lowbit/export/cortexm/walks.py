"""How kernels walk through tensors: extents and steps of every axis, with axes that can be walked as one joined. Numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

AXES = 6
"""As in lowbit_kernels.h."""


@dataclass(frozen=True)
class Walk:
    """A walk through several tensors at once.

    Attributes:
        extents: Steps of each axis, outermost first.
        steps: For each tensor: elements from one step to the next, of each axis.
    """

    extents: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]

    def joined(self) -> Walk:
        """The same elements in the same order with as few axes as possible."""
        axes = [(extent, tuple(s[i] for s in self.steps)) for i, extent in enumerate(self.extents) if extent != 1]
        merged: list[tuple[int, tuple[int, ...]]] = []
        for extent, steps in axes:
            if merged and all(outer == inner * extent for outer, inner in zip(merged[-1][1], steps, strict=True)):
                merged[-1] = (merged[-1][0] * extent, steps)
            else:
                merged.append((extent, steps))
        if not merged:
            return Walk((1,), tuple((1,) for _ in self.steps))
        return Walk(tuple(extent for extent, _ in merged), tuple(zip(*(steps for _, steps in merged), strict=True)))

    def padded(self) -> Walk:
        """With `AXES` axes; those in front have one step.

        Raises:
            ValueError: It has more.
        """
        missing = AXES - len(self.extents)
        if missing < 0:
            raise ValueError(f"{len(self.extents)} axes that cannot be joined; kernels take {AXES}")
        return Walk((1,) * missing + self.extents, tuple((0,) * missing + steps for steps in self.steps))


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Steps of a tensor that lies row by row."""
    steps, step = [], 1
    for extent in reversed(shape):
        steps.append(step)
        step *= extent
    return tuple(reversed(steps))


def broadcast(shape: Sequence[int], onto: Sequence[int]) -> tuple[int, ...]:
    """Steps of a tensor along the axes of a larger one: 0 where it is repeated."""
    lead = len(onto) - len(shape)
    steps = contiguous(shape)
    return (0,) * lead + tuple(0 if extent == 1 else step for extent, step in zip(shape, steps, strict=True))


def pair(left: Sequence[int], right: Sequence[int], output: Sequence[int]) -> Walk:
    """Through two operands in the order of the output."""
    return Walk(tuple(output), (broadcast(left, output), broadcast(right, output))).joined().padded()


def transpose(shape: Sequence[int], permutation: Sequence[int]) -> Walk:
    """Reads the input in the order of the output: (input, output)."""
    steps = contiguous(shape)
    extents = tuple(shape[axis] for axis in permutation)
    return Walk(extents, (tuple(steps[axis] for axis in permutation), contiguous(extents))).joined().padded()


def cut(shape: Sequence[int], begin: Sequence[int], strides: Sequence[int], output: Sequence[int]) -> tuple[Walk, int]:
    """Reads a part: (input, output), and where the input begins. `output` may have lost axes of one element; it is the same order.

    Args:
        shape: Of the input.
        begin: First element of each axis.
        strides: Between elements of each axis; may be negative.
        output: Elements of each axis, as many as `shape`.
    """
    steps = contiguous(shape)
    walk = Walk(tuple(output), (tuple(s * t for s, t in zip(steps, strides, strict=True)), contiguous(output)))
    return walk.joined().padded(), sum(b * s for b, s in zip(begin, steps, strict=True))


def paste(shape: Sequence[int], into: Sequence[int], begin: Sequence[int]) -> tuple[Walk, int]:
    """Writes all of a tensor into a larger one: (input, output), and where the output begins."""
    steps = contiguous(into)
    return Walk(tuple(shape), (contiguous(shape), steps)).joined().padded(), sum(b * s for b, s in zip(begin, steps, strict=True))


def depth_to_space(shape: Sequence[int], block: int) -> Walk:
    """Reads [1, H, W, block * block * C] in the order of [1, H * block, W * block, C]."""
    _, height, width, channels = shape
    depth = channels // (block * block)
    extents = (height, block, width, block, depth)
    return Walk(extents, ((width * channels, block * depth, channels, depth, 1), contiguous(extents))).joined().padded()


def reduction(shape: Sequence[int], axes: Sequence[int]) -> tuple[Walk, Walk]:
    """Through what is kept, and from each of those through what is summed."""
    steps = contiguous(shape)
    gone = {axis % len(shape) for axis in axes}
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    walks = [Walk(tuple(shape[a] for a in some), (tuple(steps[a] for a in some),)) for some in (kept, sorted(gone))]
    return walks[0].joined().padded(), walks[1].joined().padded()
