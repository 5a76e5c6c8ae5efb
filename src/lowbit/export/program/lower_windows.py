"""Windows that move over images: kernel, strides and padding, in LiteRT's words.

ONNX pads as it is told; LiteRT's SAME pads so that ceil(size / stride) results come out, with the smaller half in front. Where the two
are not the same to the pixel, a PAD stands before a window without padding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lowbit.export.program.lower_grids import LOW
from lowbit.export.program.lower_steps import Step
from lowbit.export.program.lower_words import lacking
from lowbit.export.program.lower_write import Writer
from lowbit.export.program.program import Kind, Option


@dataclass(frozen=True)
class Window:
    """How a kernel moves; all pairs are (height, width).

    Attributes:
        kernel: Its size.
        stride: Between results.
        dilation: Between its elements.
        begins: Padding in front.
        ends: Padding behind.
        padding: "SAME" or "VALID"; "" before that is decided.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    begins: tuple[int, int]
    ends: tuple[int, int]
    padding: str = ""

    def strides(self) -> dict[str, Option]:
        return {"stride_h": self.stride[0], "stride_w": self.stride[1]}

    def dilations(self) -> dict[str, Option]:
        return {"dilation_h": self.dilation[0], "dilation_w": self.dilation[1]}

    def filters(self) -> dict[str, Option]:
        return {"filter_height": self.kernel[0], "filter_width": self.kernel[1]}

    @property
    def reach(self) -> tuple[int, int]:
        """Elements from the first to the last that it reads."""
        height, width = ((size - 1) * step + 1 for size, step in zip(self.kernel, self.dilation, strict=True))
        return height, width


def window_of(writer: Writer, step: Step, kernel: tuple[int, ...]) -> Window:
    """Reads a node's window; one over a single axis has a height of 1."""
    size = writer.shape(step.inputs[0])[2:]
    result = writer.shape(step.output)[2:]
    rank = len(kernel)
    stride = tuple(int(each) for each in step.get("strides", (1,) * rank))
    dilation = tuple(int(each) for each in step.get("dilations", (1,) * rank))
    begins, behind = _pads(step, size, result, kernel, stride, dilation)
    if min((*begins, *behind)) < 0:
        raise lacking(writer.net, step, "its padding is negative")
    for axis in range(rank):  # no window reaches into some of the padding, and some beyond it where sizes are rounded up
        needed = (result[axis] - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1
        behind[axis] = max(needed - size[axis] - begins[axis], 0)
    pairs = [tuple(each) for each in (kernel, stride, dilation, begins, behind)]
    if rank == 1:
        pairs = [(fill, each[0]) for fill, each in zip((1, 1, 1, 0, 0), pairs, strict=True)]
    return Window(*pairs)  # type: ignore[arg-type]


def _pads(
    step: Step, size: tuple[int, ...], result: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[list[int], list[int]]:
    automatic, rank = step.get("auto_pad", "NOTSET"), len(kernel)
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        reach = [(kernel[i] - 1) * dilation[i] + 1 for i in range(rank)]
        total = [max((result[i] - 1) * stride[i] + reach[i] - size[i], 0) for i in range(rank)]
        first = [each // 2 if automatic == "SAME_UPPER" else each - each // 2 for each in total]
        return first, [all_ - front for all_, front in zip(total, first, strict=True)]
    pads = [int(each) for each in step.get("pads", (0,) * (2 * rank))] if automatic == "NOTSET" else [0] * (2 * rank)
    return pads[:rank], pads[rank:]


def settled(window: Window, size: tuple[int, int]) -> Window | None:
    """A window whose padding LiteRT does by itself; None where it does not.

    Args:
        window: As ONNX has it.
        size: Of the image.
    """
    if not any((*window.begins, *window.ends)):
        return replace(window, padding="VALID")
    for axis in (0, 1):
        results = -(-size[axis] // window.stride[axis])
        total = max((results - 1) * window.stride[axis] + window.reach[axis] - size[axis], 0)
        if (window.begins[axis], window.ends[axis]) != (total // 2, total - total // 2):
            return None
    return replace(window, padding="SAME")


def padded(writer: Writer, step: Step, x: str, window: Window, *, lowest: bool = False, counted: bool = False) -> tuple[str, Window]:
    """An image and a window that LiteRT pads by itself, or the image padded and a window without.

    Args:
        writer: The program.
        step: Whose image.
        x: The image, NHWC.
        window: As ONNX has it.
        lowest: Pad with the lowest level, not with zero: for maxima.
        counted: Padding counts in averages, where LiteRT's own does not.
    """
    shape = writer.of(x).shape
    done = settled(window, (shape[1], shape[2]))
    if done is not None and not (counted and done.padding == "SAME"):
        return x, done
    pads = np.array([(0, 0), (window.begins[0], window.ends[0]), (window.begins[1], window.ends[1]), (0, 0)], np.int32)
    wide = tuple(int(extent + sum(pair)) for extent, pair in zip(shape, pads, strict=True))
    operands = [x, writer.numbers(f"{step.output}_paddings", pads)]
    grid, kind = writer.grid(x), Kind.PAD
    if lowest and int(grid.zero_point) != LOW:
        operands.append(writer.constant("lowest", np.array(LOW, np.int8), grid))
        kind = Kind.PADV2
    wider = writer.add(kind, operands, writer.fresh(f"{x}_padded"), wide, grid, step.nodes)
    return wider, replace(window, begins=(0, 0), ends=(0, 0), padding="VALID")
