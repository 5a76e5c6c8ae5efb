"""Where every tensor of a program lies in one piece of memory, so that tensors that are never needed at once share bytes.

Tensors are placed one after the other, each in the first gap between those that live at the same time (Pisarchyk and Lee 2020, arXiv
2001.03288, offset calculation: greedy by size, greedy by breadth). tflite-micro's planner goes by size alone; that order is tried here
too, so the two can be compared byte by byte, and the best of several orders is kept. A RESHAPE moves nothing, its two tensors are one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lowbit.export.program.program import Kind, Program

ALIGNMENT = 16
"""Bytes; of every tensor, as tflite-micro has it. Vector loads of the M55 like it."""


@dataclass(frozen=True)
class Buffer:
    """A tensor, or several that are one, in time.

    Attributes:
        names: Tensors that lie there.
        size: Bytes, without alignment.
        first: Step that writes it: 0 is the feeding of inputs, operation i is step i + 1.
        last: Last step that reads it, or after which it must still be there.
    """

    names: tuple[str, ...]
    size: int
    first: int
    last: int

    @property
    def room(self) -> int:
        """Bytes, rounded up to the alignment."""
        return -(-self.size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Plan:
    """The layout of an arena.

    Attributes:
        offsets: Tensor -> where it begins, in bytes.
        size: Of the whole, in bytes.
        size_by_size: The same with tensors placed by size alone, as tflite-micro does.
        peak: Index of the operation while which most is alive; None where there is no operation.
        peak_bytes: What is alive then. No plan can be smaller than this.
    """

    offsets: Mapping[str, int]
    size: int
    size_by_size: int
    peak: int | None
    peak_bytes: int


def plan(program: Program) -> Plan:
    """Lays out every tensor that is fed or computed."""
    buffers = lifetimes(program)
    layouts = [place(buffers, order) for order in orders(buffers)]
    sizes = [max((offset + buffer.room for buffer, offset in zip(buffers, layout, strict=True)), default=0) for layout in layouts]
    best = layouts[sizes.index(min(sizes))]
    by_name = {name: offset for buffer, offset in zip(buffers, best, strict=True) for name in buffer.names}
    alive = [sum(b.room for b in buffers if b.first <= step <= b.last) for step in range(1, len(program.operations) + 1)]
    peak = max(range(len(alive)), key=alive.__getitem__, default=None)
    return Plan(by_name, min(sizes), sizes[0], peak, 0 if peak is None else alive[peak])


def lifetimes(program: Program) -> tuple[Buffer, ...]:
    """When each tensor is needed, in the order of the program's tensors; tensors that are one are one buffer."""
    first: dict[str, int] = {port.tensor: 0 for port in program.inputs}
    last: dict[str, int] = dict(first)
    for step, operation in enumerate(program.operations, 1):
        for name in operation.outputs:
            first.setdefault(name, step)
            last[name] = step
        for name in operation.inputs:
            if name in first:
                last[name] = step
    for port in program.outputs:
        last[port.tensor] = len(program.operations)
    groups: dict[str, list[str]] = {}
    owner = _owners(program)
    for name in program.tensors:
        if name in first:
            groups.setdefault(owner[name], []).append(name)
    return tuple(
        Buffer(tuple(names), max(program.tensors[n].size_bytes for n in names), min(first[n] for n in names), max(last[n] for n in names))
        for names in groups.values()
    )


def _owners(program: Program) -> dict[str, str]:
    """Tensor -> the one that it shares its bytes with, or itself."""
    owner = {name: name for name in program.tensors}
    for operation in program.operations:
        source, target = operation.inputs[0], operation.outputs[0]
        if operation.kind is Kind.RESHAPE and program.tensors[source].data is None:
            owner[target] = owner[source]
    return owner


def orders(buffers: Sequence[Buffer]) -> tuple[tuple[int, ...], ...]:
    """Orders to place buffers in, as their indices; the first is tflite-micro's: the largest first, among equals the later one."""
    alive = [sum(b.room for b in buffers if b.first <= step <= b.last) for step in range(1 + max((b.last for b in buffers), default=0))]
    keys: tuple[Callable[[int], tuple[int, ...]], ...] = (
        lambda i: (-buffers[i].room, -i),
        lambda i: (-buffers[i].room, i),
        lambda i: (-max(alive[buffers[i].first : buffers[i].last + 1]), -buffers[i].room, i),
        lambda i: (-buffers[i].room * (buffers[i].last - buffers[i].first + 1), i),
        lambda i: (buffers[i].first - buffers[i].last, -buffers[i].room, i),
        lambda i: (buffers[i].first, -buffers[i].room),
        lambda i: (-buffers[i].last, -buffers[i].room),
    )
    return tuple(tuple(sorted(range(len(buffers)), key=key)) for key in keys)


def place(buffers: Sequence[Buffer], order: Sequence[int]) -> tuple[int, ...]:
    """Offsets, in the order of the buffers, when they are placed in `order`."""
    offsets: dict[int, int] = {}
    for index in order:
        wanted = buffers[index]
        neighbours = sorted(
            (offsets[other], buffers[other].room)
            for other in offsets
            if buffers[other].first <= wanted.last and wanted.first <= buffers[other].last
        )
        offset = 0
        for start, room in neighbours:
            if start - offset >= wanted.room:
                break
            offset = max(offset, start + room)
        offsets[index] = offset
    return tuple(offsets[index] for index in range(len(buffers)))
