"""ONNX operators as Core ML's (the MIL operation set of iOS 17), one function each: Step -> what stands for the output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lowbit.export.coreml.words import Lacking, Step
from lowbit.types import Array

Write = Callable[[Step], Any]


def _mb() -> Any:
    from coremltools.converters.mil import Builder

    return Builder


def _conv(step: Step) -> Any:
    spatial = len(step.shape()) - 2
    given = {"bias": _constant32(step, 2)} if step.has(2) else {}
    return _mb().conv(
        x=step.tensor(0),
        weight=step.weight(step.name(1), False) if step.is_constant(1) else step.tensor(1),
        strides=step.ints("strides", [1] * spatial),
        dilations=step.ints("dilations", [1] * spatial),
        groups=step.integer("group", 1),
        **_padding(step, spatial),
        **given,
    )


def _conv_transpose(step: Step) -> Any:
    spatial = len(step.shape()) - 2
    given: dict[str, Any] = {"bias": _constant32(step, 2)} if step.has(2) else {}
    shape = step.node.outputs[0].shape
    if any(step.ints("output_padding")) or "output_shape" in step.node.attributes:
        if shape is None or not shape.is_static():
            raise Lacking("its output's shape is not known")
        given["output_shape"] = [int(extent) for extent in shape.numpy()]
    return _mb().conv_transpose(
        x=step.tensor(0),
        weight=step.weight(step.name(1), False),
        strides=step.ints("strides", [1] * spatial),
        dilations=step.ints("dilations", [1] * spatial),
        groups=step.integer("group", 1),
        **_padding(step, spatial),
        **given,
    )


def _padding(step: Step, spatial: int) -> dict[str, Any]:
    """ONNX's pads [starts, ends] as MIL's [start, end] an axis."""
    kind = step.word("auto_pad", "NOTSET")
    if kind == "SAME_UPPER":
        return {"pad_type": "same"}
    if kind == "SAME_LOWER":
        return {"pad_type": "same_lower"}
    pads = step.ints("pads", [0] * 2 * spatial)
    if kind == "VALID" or not any(pads):
        return {"pad_type": "valid"}
    return {"pad_type": "custom", "pad": [pads[side * spatial + axis] for axis in range(spatial) for side in (0, 1)]}


def _pool(step: Step, kind: str) -> Any:
    sizes = step.ints("kernel_shape")
    strides = step.ints("strides", [1] * len(sizes))
    if any(extent != 1 for extent in step.ints("dilations")) or len(step.node.outputs) > 1:
        raise Lacking("dilated, or asked for positions")
    given = _padding(step, len(sizes))
    if step.integer("ceil_mode"):
        given = {"pad_type": "custom", "pad": _whole_windows(step, sizes, strides, given.get("pad", [0] * 2 * len(sizes)))}
    if kind == "max":
        return _mb().max_pool(x=step.tensor(0), kernel_sizes=sizes, strides=strides, **given)
    included = bool(step.integer("count_include_pad"))
    if included and step.integer("ceil_mode"):
        raise Lacking("ceil_mode that counts padding")
    return _mb().avg_pool(x=step.tensor(0), kernel_sizes=sizes, strides=strides, exclude_padding_from_average=not included, **given)


def _whole_windows(step: Step, sizes: list[int], strides: list[int], pads: list[int]) -> list[int]:
    """Padding that lets the last, incomplete window count, as `ceil_mode` does; a window that begins in the padding does not."""
    found = list(pads)
    for axis, (extent, size, stride) in enumerate(zip(step.shape()[2:], sizes, strides, strict=True)):
        before, after = pads[2 * axis], pads[2 * axis + 1]
        count = math.ceil((extent + before + after - size) / stride) + 1
        if (count - 1) * stride >= extent + before:
            count -= 1
        found[2 * axis + 1] = max(after, (count - 1) * stride + size - extent - before)
    return found


def _gemm(step: Step) -> Any:
    alpha, beta = step.number("alpha", 1.0), step.number("beta", 1.0)
    x = step.tensor(0)
    if step.integer("transA"):
        x = _mb().transpose(x=x, perm=[1, 0])
    if not step.is_constant(1):
        product = _mb().matmul(x=x, y=step.tensor(1), transpose_y=bool(step.integer("transB")))
        product = product if alpha == 1 else _mb().mul(x=product, y=np.float32(alpha))
        return _mb().add(x=product, y=_scaled(step, 2, beta)) if step.has(2) else product
    weight = step.weight(step.name(1), not step.integer("transB"))
    bias = _scaled(step, 2, beta / alpha) if step.has(2) and step.is_constant(2) else None
    rows = int(weight.shape[0])
    if bias is not None and bias.size in (1, rows):
        given = {"bias": np.broadcast_to(bias.reshape(-1), (rows,)).astype(np.float32)}
        found = _mb().linear(x=x, weight=weight, **given)
        return found if alpha == 1 else _mb().mul(x=found, y=np.float32(alpha))
    found = _mb().linear(x=x, weight=weight)
    found = found if alpha == 1 else _mb().mul(x=found, y=np.float32(alpha))
    return _mb().add(x=found, y=_scaled(step, 2, beta)) if step.has(2) else found


def _scaled(step: Step, index: int, factor: float) -> Any:
    if step.is_constant(index):
        return (step.constant(index) * factor).astype(np.float32)
    return step.tensor(index) if factor == 1 else _mb().mul(x=step.tensor(index), y=np.float32(factor))


def _matmul(step: Step) -> Any:
    if step.is_constant(1) and step.constant(1).ndim == 2 and not step.is_constant(0):
        return _mb().linear(x=step.tensor(0), weight=step.weight(step.name(1), True))
    return _mb().matmul(x=_either(step, 0), y=_either(step, 1))


def _either(step: Step, index: int) -> Any:
    """A computed input, or a constant in 32 bit."""
    value = step.value(index)
    return value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value


def _constant32(step: Step, index: int) -> Array:
    return np.ascontiguousarray(step.constant(index).reshape(-1).astype(np.float32))


def _pair(name: str) -> Write:
    return lambda step: getattr(_mb(), name)(x=_either(step, 0), y=_either(step, 1))


def _single(name: str, **given: Any) -> Write:
    return lambda step: getattr(_mb(), name)(x=step.tensor(0), **given)


def _leaky(step: Step) -> Any:
    return _mb().leaky_relu(x=step.tensor(0), alpha=np.float32(step.number("alpha", 0.01)))


def _elu(step: Step) -> Any:
    return _mb().elu(x=step.tensor(0), alpha=np.float32(step.number("alpha", 1.0)))


def _prelu(step: Step) -> Any:
    channels, slopes = step.shape()[1], step.constant(1).reshape(-1).astype(np.float32)
    if slopes.size not in (1, channels):
        raise Lacking("a slope that is not one a channel")
    return _mb().prelu(x=step.tensor(0), alpha=np.broadcast_to(slopes, (channels,)).copy())


def _clip(step: Step) -> Any:
    low = float(step.constant(1).reshape(-1)[0]) if step.has(1) else -np.inf
    high = float(step.constant(2).reshape(-1)[0]) if step.has(2) else np.inf
    if (low, high) == (0.0, 6.0):
        return _mb().relu6(x=step.tensor(0))
    if low == 0.0 and high == np.inf:
        return _mb().relu(x=step.tensor(0))
    limits = np.finfo(np.float32)
    return _mb().clip(x=step.tensor(0), alpha=np.float32(max(low, float(limits.min))), beta=np.float32(min(high, float(limits.max))))


def _hard_sigmoid(step: Step) -> Any:
    alpha, beta = step.number("alpha", 0.2), step.number("beta", 0.5)
    return _mb().sigmoid_hard(x=step.tensor(0), alpha=np.float32(alpha), beta=np.float32(beta))


def _hard_swish(step: Step) -> Any:
    gate = _mb().sigmoid_hard(x=step.tensor(0), alpha=np.float32(1 / 6), beta=np.float32(0.5))
    return _mb().mul(x=step.tensor(0), y=gate)


def _gelu(step: Step) -> Any:
    mode = "TANH_APPROXIMATION" if step.word("approximate", "none") == "tanh" else "EXACT"
    return _mb().gelu(x=step.tensor(0), mode=mode)


def _softmax(step: Step) -> Any:
    if step.opset < 13 and step.integer("axis", 1) not in (-1, len(step.shape()) - 1):
        raise Lacking("Softmax over several axes, as operator sets below 13 have it")
    return _mb().softmax(x=step.tensor(0), axis=step.integer("axis", -1 if step.opset >= 13 else 1))


def _reduce(name: str) -> Write:
    def write(step: Step) -> Any:
        axes = step.axes(1)
        if axes is None:
            if step.integer("noop_with_empty_axes"):
                return step.tensor(0)
            axes = list(range(len(step.shape())))
        return getattr(_mb(), name)(x=step.tensor(0), axes=axes, keep_dims=bool(step.integer("keepdims", 1)))

    return write


def _global(name: str) -> Write:
    return lambda step: getattr(_mb(), name)(x=step.tensor(0), axes=list(range(2, len(step.shape()))), keep_dims=True)


def _batch_norm(step: Step) -> Any:
    gamma, beta, mean, variance = (_constant32(step, index) for index in (1, 2, 3, 4))
    epsilon = np.float32(step.number("epsilon", 1e-5))
    return _mb().batch_norm(x=step.tensor(0), mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=epsilon)


def _concat(step: Step) -> Any:
    return _mb().concat(values=[_either(step, index) for index in range(len(step))], axis=step.integer("axis"))


def _split(step: Step) -> Any:
    axis, count = step.integer("axis"), len(step.node.outputs)
    extent = step.shape()[axis]
    sizes = step.ints("split") or (step.numbers(1) if step.has(1) else [])
    if not sizes:
        part = -(-extent // count)
        sizes = [part] * (count - 1) + [extent - part * (count - 1)]
    return _mb().split(x=step.tensor(0), split_sizes=sizes, axis=axis)


def _pad(step: Step) -> Any:
    pads = step.ints("pads") or step.numbers(1)
    rank = len(step.shape())
    if step.has(3):
        axes = [axis % rank for axis in step.numbers(3)]
        given = {axis: (pads[place], pads[place + len(axes)]) for place, axis in enumerate(axes)}
        pads = [given.get(axis, (0, 0))[side] for side in (0, 1) for axis in range(rank)]
    if min(pads) < 0:
        raise Lacking("negative padding")
    mode = step.word("mode", "constant")
    if mode not in ("constant", "edge", "reflect"):
        raise Lacking(f"mode {mode}")
    both = [pads[side * rank + axis] for axis in range(rank) for side in (0, 1)]
    if mode != "constant" and any(both[:-4]):
        raise Lacking(f"mode {mode} beyond the last two axes")
    value = float(step.constant(2).reshape(-1)[0]) if step.has(2) else step.number("value", 0.0)
    if mode != "constant":
        both = both[-4:] if rank >= 2 else both
    return _mb().pad(x=step.tensor(0), pad=both, mode={"edge": "replicate"}.get(mode, mode), constant_val=np.float32(value))


def _slice(step: Step) -> Any:
    shape = step.shape()
    starts, ends = step.numbers(1), step.numbers(2)
    axes = step.numbers(3) if step.has(3) else list(range(len(starts)))
    steps = step.numbers(4) if step.has(4) else [1] * len(starts)
    begin, end, stride, free = [0] * len(shape), list(shape), [1] * len(shape), [True] * len(shape)
    for axis, first, last, by in zip(axes, starts, ends, steps, strict=True):
        if by < 1:
            raise Lacking("steps backwards")
        place = axis % len(shape)
        begin[place], end[place], stride[place] = *slice(first, last, by).indices(shape[place])[:2], by
        free[place] = False
    return _mb().slice_by_index(x=step.tensor(0), begin=begin, end=end, stride=stride, begin_mask=free, end_mask=free)


def _reshape(step: Step) -> Any:
    shape, wanted = step.shape(), step.numbers(1)
    if not step.integer("allowzero"):
        wanted = [shape[place] if extent == 0 else extent for place, extent in enumerate(wanted)]
    return _mb().reshape(x=step.tensor(0), shape=_settled(shape, wanted))


def _settled(shape: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """A shape whose -1 is counted out."""
    rest = math.prod(extent for extent in wanted if extent != -1)
    return [math.prod(shape) // max(rest, 1) if extent == -1 else extent for extent in wanted]


def _flatten(step: Step) -> Any:
    shape = step.shape()
    axis = step.integer("axis", 1) % (len(shape) + 1) if step.integer("axis", 1) < 0 else step.integer("axis", 1)
    return _mb().reshape(x=step.tensor(0), shape=[math.prod(shape[:axis]), math.prod(shape[axis:])])


def _squeeze(step: Step) -> Any:
    axes = step.axes(1)
    return _mb().squeeze(x=step.tensor(0), **({} if axes is None else {"axes": axes}))


def _unsqueeze(step: Step) -> Any:
    axes = step.axes(1) or []
    rank = len(step.shape()) + len(axes)
    return _mb().expand_dims(x=step.tensor(0), axes=sorted(axis % rank for axis in axes))


def _transpose(step: Step) -> Any:
    return _mb().transpose(x=step.tensor(0), perm=step.ints("perm", range(len(step.shape()))[::-1]))


def _depth_to_space(step: Step) -> Any:
    size = step.integer("blocksize")
    if step.word("mode", "DCR") == "CRD":
        return _mb().pixel_shuffle(x=step.tensor(0), upscale_factor=size)
    return _mb().depth_to_space(x=step.tensor(0), block_size=size)


def _resize(step: Step) -> Any:
    shape = step.shape()
    if step.has(3) and step.constant(3).size:
        factors = [after / before for after, before in zip(step.numbers(3), shape, strict=True)]
    else:
        factors = [float(factor) for factor in step.constant(2).reshape(-1)]
    if len(shape) != 4 or factors[:2] != [1.0, 1.0]:
        raise Lacking("other axes than height and width")
    mode = step.word("mode", "nearest")
    where = step.word("coordinate_transformation_mode", "half_pixel")
    if mode == "linear" and where in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"):
        return _mb().upsample_bilinear(
            x=step.tensor(0),
            scale_factor_height=np.float32(factors[2]),
            scale_factor_width=np.float32(factors[3]),
            align_corners=where == "align_corners",
            half_pixel_centers=where in ("half_pixel", "pytorch_half_pixel"),
        )
    # Whole factors put every nearest pixel where repeating does, whichever way the coordinates are counted.
    whole = all(factor == round(factor) for factor in factors)
    rounds = (where, step.word("nearest_mode", "round_prefer_floor"))
    if mode == "nearest" and whole and rounds in (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")):
        height, width = round(factors[2]), round(factors[3])
        return _mb().upsample_nearest_neighbor(x=step.tensor(0), scale_factor_height=height, scale_factor_width=width)
    raise Lacking(f"{mode} with {where} coordinates and factors {factors[2]:g}, {factors[3]:g}")


def _same(step: Step) -> Any:
    return step.tensor(0)


OPERATORS: dict[str, Write] = {
    "Abs": _single("abs"),
    "Add": _pair("add"),
    "AveragePool": lambda step: _pool(step, "average"),
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Div": _pair("real_div"),
    "Dropout": _same,
    "Elu": _elu,
    "Erf": _single("erf"),
    "Exp": _single("exp"),
    "Flatten": _flatten,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global("reduce_mean"),
    "GlobalMaxPool": _global("reduce_max"),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Identity": _same,
    "LeakyRelu": _leaky,
    "MatMul": _matmul,
    "Max": _pair("maximum"),
    "MaxPool": lambda step: _pool(step, "max"),
    "Min": _pair("minimum"),
    "Mul": _pair("mul"),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _pair("pow"),
    "ReduceMax": _reduce("reduce_max"),
    "ReduceMean": _reduce("reduce_mean"),
    "ReduceSum": _reduce("reduce_sum"),
    "Relu": _single("relu"),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": _single("sigmoid"),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _single("sqrt"),
    "Squeeze": _squeeze,
    "Sub": _pair("sub"),
    "Tanh": _single("tanh"),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
