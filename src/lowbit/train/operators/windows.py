"""How convolutions and pooling move their window: ONNX's padding rules as plain numbers.

https://onnx.ai/onnx/operators/onnx__MaxPool.html; with `ceil_mode`, a window that would start behind the padded input is left out, as
in torch and onnxruntime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowbit.train.operators.table import Attributes


@dataclass(frozen=True)
class Window:
    """A window over the spatial axes.

    Attributes:
        kernel: Its size an axis.
        strides: Its steps.
        dilations: Distance of what it reads.
        begin: Padding before, an axis.
        end: Padding behind, such that whole windows alone remain: more than was asked for where sizes are rounded up, less (or
            negative: the end is cut off) where no window reaches it.
        asked: Padding behind that the node asks for.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]
    asked: list[int]

    def padding(self, end: Sequence[int] | None = None) -> list[int]:
        """In the order of torch's `pad`: from the last axis on, both ends of each."""
        behind = self.end if end is None else end
        return [size for axis in reversed(range(len(self.kernel))) for size in (self.begin[axis], behind[axis])]


def window(given: Attributes, sizes: Sequence[int], kernel: list[int]) -> Window:
    """The window of a node over an input of spatial `sizes`."""
    axes = len(kernel)
    strides, dilations = given.get("strides") or [1] * axes, given.get("dilations") or [1] * axes
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    begin, asked = _pads(given, sizes, reach, strides)
    end = [_end(given, *axis) for axis in zip(sizes, reach, strides, begin, asked, strict=True)]
    return Window(kernel, strides, dilations, begin, end, asked)


def _pads(given: Attributes, sizes: Sequence[int], reach: list[int], strides: list[int]) -> tuple[list[int], list[int]]:
    """Padding before and behind that a node asks for."""
    axes, mode = len(sizes), given.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return [0] * axes, [0] * axes
    if mode == "NOTSET":
        pads = given.get("pads") or [0] * 2 * axes
        return list(pads[:axes]), list(pads[axes:])
    total = [max((-(-size // step) - 1) * step + need - size, 0) for size, need, step in zip(sizes, reach, strides, strict=True)]
    small, large = [each // 2 for each in total], [each - each // 2 for each in total]
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def _end(given: Attributes, size: int, reach: int, step: int, begin: int, asked: int) -> int:
    room = size + begin + asked - reach
    if not given.get("ceil_mode", 0):
        return asked - room % step
    count = -(-room // step) + 1
    if (count - 1) * step >= size + begin:
        count -= 1
    return (count - 1) * step + reach - size - begin
