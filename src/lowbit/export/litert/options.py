"""Options of LiteRT's builtin operators: which table of the schema, and what our words are called there."""

from __future__ import annotations

from typing import Any

from lowbit.errors import ModelError
from lowbit.export.program.program import Kind, Operation, Option

TABLES: dict[Kind, str] = {
    Kind.ADD: "AddOptions",
    Kind.AVERAGE_POOL_2D: "Pool2DOptions",
    Kind.CONCATENATION: "ConcatenationOptions",
    Kind.CONV_2D: "Conv2DOptions",
    Kind.DEPTH_TO_SPACE: "DepthToSpaceOptions",
    Kind.DEPTHWISE_CONV_2D: "DepthwiseConv2DOptions",
    Kind.DEQUANTIZE: "DequantizeOptions",
    Kind.FULLY_CONNECTED: "FullyConnectedOptions",
    Kind.HARD_SWISH: "HardSwishOptions",
    Kind.LEAKY_RELU: "LeakyReluOptions",
    Kind.MAX_POOL_2D: "Pool2DOptions",
    Kind.MEAN: "ReducerOptions",
    Kind.MUL: "MulOptions",
    Kind.PAD: "PadOptions",
    Kind.PADV2: "PadV2Options",
    Kind.QUANTIZE: "QuantizeOptions",
    Kind.RESHAPE: "ReshapeOptions",
    Kind.RESIZE_BILINEAR: "ResizeBilinearOptions",
    Kind.RESIZE_NEAREST_NEIGHBOR: "ResizeNearestNeighborOptions",
    Kind.SLICE: "SliceOptions",
    Kind.SOFTMAX: "SoftmaxOptions",
    Kind.STRIDED_SLICE: "StridedSliceOptions",
    Kind.SUB: "SubOptions",
    Kind.TRANSPOSE: "TransposeOptions",
    Kind.TRANSPOSE_CONV: "TransposeConvOptions",
}
"""LOGISTIC, RELU, RELU6 and TANH have none."""

_FIELDS = {
    "activation": "fusedActivationFunction",
    "align_corners": "alignCorners",
    "alpha": "alpha",
    "axis": "axis",
    "beta": "beta",
    "block_size": "blockSize",
    "depth_multiplier": "depthMultiplier",
    "dilation_h": "dilationHFactor",
    "dilation_w": "dilationWFactor",
    "filter_height": "filterHeight",
    "filter_width": "filterWidth",
    "half_pixel_centers": "halfPixelCenters",
    "keep_dims": "keepDims",
    "keep_num_dims": "keepNumDims",
    "new_shape": "newShape",
    "padding": "padding",
    "stride_h": "strideH",
    "stride_w": "strideW",
}
_DEFAULTS: dict[Kind, dict[str, Option]] = {
    Kind.CONV_2D: {"dilation_h": 1, "dilation_w": 1},
    Kind.DEPTHWISE_CONV_2D: {"dilation_h": 1, "dilation_w": 1},
    Kind.SOFTMAX: {"beta": 1.0},
}


def table(operation: Operation, schema: Any) -> tuple[int, object | None]:
    """An operation's options as the schema's object.

    Args:
        operation: With options as `Kind` names them; what is left out has the default that stands there.
        schema: The module of the flatbuffer's classes.

    Returns:
        The union's number, and the object; 0 and None where the operator has no options.

    Raises:
        ModelError: an option that the operator has not.
    """
    name = TABLES.get(operation.kind)
    if name is None:
        return schema.BuiltinOptions.NONE, None
    options = getattr(schema, f"{name}T")()
    for key, value in {**_DEFAULTS.get(operation.kind, {}), **operation.options}.items():
        field = _FIELDS.get(key)
        if field is None or not hasattr(options, field):
            raise ModelError(f"LiteRT's {operation.kind} has no option '{key}'.")
        setattr(options, field, _number(key, value, schema))
    return getattr(schema.BuiltinOptions, name), options


def _number(key: str, value: Option, schema: Any) -> object:
    """Words of two enumerations become their numbers; all else stays."""
    if key == "activation":
        return getattr(schema.ActivationFunctionType, str(value))
    if key == "padding":
        return getattr(schema.Padding, str(value))
    return list(value) if isinstance(value, tuple) else value
