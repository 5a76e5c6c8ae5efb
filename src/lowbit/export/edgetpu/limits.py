"""Operators that the Edge TPU's documentation lists, each with the limit that stands beside it.

https://coral.ai/docs/edgetpu/models-intro/#supported-operations, as of compiler 16. A limit says why an operation is not mapped, in words;
None where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lowbit.export.program.program import Kind, Operation, Program, Tensor

_SOFTMAX = 16_000


@dataclass(frozen=True)
class Place:
    """An operation with its tensors.

    Attributes:
        operation: It.
        inputs: What goes in; an operand that is left out is left out here.
        output: What comes out.
    """

    operation: Operation
    inputs: tuple[Tensor, ...]
    output: Tensor

    @classmethod
    def of(cls, operation: Operation, program: Program) -> Place:
        """An operation of a program."""
        inputs = tuple(program.tensors[name] for name in operation.inputs if name)
        return cls(operation, inputs, program.tensors[operation.outputs[0]])

    @property
    def kind(self) -> Kind:
        """Of the operation."""
        return self.operation.kind


def _unfused(place: Place) -> str | None:
    fused = place.operation.options.get("activation", "NONE")
    return None if fused == "NONE" else f"{place.kind} has {fused} fused into it, which is not supported"


def _dilation(place: Place) -> str | None:
    height, width = (place.operation.options.get(name, 1) for name in ("dilation_h", "dilation_w"))
    return None if height == width else f"{place.kind} is dilated by {height} and {width}; both must be the same"


def _dense(place: Place) -> str | None:
    shape = place.output.shape
    return None if _flat(shape) else f"{place.kind} gives {list(shape)}; its output must have one axis longer than 1"


def _softmax(place: Place) -> str | None:
    shape = place.inputs[0].shape
    if _flat(shape) and shape[-1] <= _SOFTMAX:
        return None
    return f"{place.kind} takes {list(shape)}; it must be one axis of at most {_SOFTMAX:,}"


def _flat(shape: tuple[int, ...]) -> bool:
    return all(extent == 1 for extent in shape[:-1])


def _joined(place: Place) -> str | None:
    constants = [tensor for tensor in place.inputs if tensor.data is not None]
    if constants and not (len(place.inputs) == 2 and all(_is_zero(tensor) for tensor in constants)):
        return f"{place.kind} joins a constant; that works for two operands of which one is all zeros"
    return _unfused(place)


def _is_zero(tensor: Tensor) -> bool:
    zero = 0 if tensor.grid is None else int(tensor.grid.zero_point)
    return tensor.data is not None and bool((tensor.data == zero).all())


def _averaged(place: Place) -> str | None:
    source, axes = place.inputs[0], place.inputs[1].data
    rank = len(source.shape)
    where = {int(axis) % rank for axis in ([] if axes is None else axes.reshape(-1))}
    if rank == 4 and 0 in where:
        return f"{place.kind} runs over the batch axis"
    if rank - 1 in where and source.shape[-1] % 4:
        return f"{place.kind} runs over {source.shape[-1]} channels; their number must be a multiple of 4"
    return None


def _padded(place: Place) -> str | None:
    amounts = place.inputs[1].data
    return f"{place.kind} pads the batch axis" if amounts is not None and len(amounts) == 4 and amounts[0].any() else None


def _strided(place: Place) -> str | None:
    strides = place.inputs[3].data
    return None if strides is not None and (strides == 1).all() else f"{place.kind} takes every other element; strides must be 1"


SUPPORTED: dict[Kind, Callable[[Place], str | None] | None] = {
    Kind.ADD: None,
    Kind.AVERAGE_POOL_2D: _unfused,
    Kind.CONCATENATION: _joined,
    Kind.CONV_2D: _dilation,
    Kind.DEPTHWISE_CONV_2D: _dilation,
    Kind.FULLY_CONNECTED: _dense,
    Kind.LOGISTIC: None,
    Kind.MAX_POOL_2D: _unfused,
    Kind.MEAN: _averaged,
    Kind.MUL: None,
    Kind.PAD: _padded,
    Kind.QUANTIZE: None,
    Kind.RELU: None,
    Kind.RELU6: None,
    Kind.RESHAPE: None,
    Kind.RESIZE_BILINEAR: None,
    Kind.RESIZE_NEAREST_NEIGHBOR: None,
    Kind.SLICE: None,
    Kind.SOFTMAX: _softmax,
    Kind.STRIDED_SLICE: _strided,
    Kind.SUB: None,
    Kind.TANH: None,
    Kind.TRANSPOSE: None,
    Kind.TRANSPOSE_CONV: None,
}
"""Of those a program can have; not listed there: DEPTH_TO_SPACE, DEQUANTIZE, HARD_SWISH, LEAKY_RELU, PADV2."""
