"""MIL operations in numpy, as their reference describes them. Sums are in 32 bit, results in the type that goes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lowbit.types import Array

Kernel = Callable[[Mapping[str, Any]], Any]


def _quantize(given: Mapping[str, Any]) -> Array:
    x = given["input"].astype(np.float32)
    scale, zero = _grid(given, x.ndim)
    kind = np.dtype(str(given["output_dtype"]))
    limits = np.iinfo(kind)
    return np.clip(np.rint(x / scale) + zero, limits.min, limits.max).astype(kind)


def _dequantize(given: Mapping[str, Any]) -> Array:
    scale, zero = _grid(given, given["input"].ndim)
    kind = np.asarray(given["scale"]).dtype
    return ((given["input"].astype(np.float32) - zero) * scale).astype(kind)


def _grid(given: Mapping[str, Any], rank: int) -> tuple[Array, Array]:
    """Scale and zero point as they broadcast. No zero point is 0, of whatever type the integers are."""
    zero = given.get("zero_point")
    parts = [np.asarray(given["scale"], np.float32), np.asarray(0 if zero is None else zero, np.float32)]
    axis = given.get("axis")
    spread = [1] * rank
    if axis is not None:
        spread[int(axis)] = -1
    scale, zero_point = (part.reshape(spread) if part.size > 1 else part.reshape(()) for part in parts)
    return scale, zero_point


def _conv(given: Mapping[str, Any]) -> Array:
    x, weight = given["x"], given["weight"].astype(np.float32)
    groups = _groups(given)
    sizes, strides = weight.shape[2:], _list(given["strides"])
    dilations = _list(given["dilations"]) if given.get("dilations") is not None else [1] * len(sizes)
    reaches = [(size - 1) * by + 1 for size, by in zip(sizes, dilations, strict=True)]
    windows = _windows(x.astype(np.float32), reaches, strides, _pads(given, x.shape, reaches, strides), 0.0)
    every: tuple[Any, ...] = (..., *(slice(None, None, by) for by in dilations))
    windows = windows[every]
    batch, channels, *place = windows.shape[: 2 + len(sizes)]
    parts = []
    for group in range(groups):
        inside = channels // groups
        part = windows[:, group * inside : (group + 1) * inside]
        columns = np.moveaxis(part, 1, 1 + len(sizes)).reshape(batch, int(np.prod(place)), -1)
        outside = weight.shape[0] // groups
        rows = weight[group * outside : (group + 1) * outside].reshape(outside, -1)
        parts.append(np.moveaxis(columns @ rows.T, 2, 1))
    return _with_bias(np.concatenate(parts, axis=1).reshape(batch, weight.shape[0], *place), given).astype(x.dtype)


def _depthwise(given: Mapping[str, Any]) -> Array:
    """A convolution of one channel with one filter each: all channels at once."""
    x, weight = given["x"], given["weight"].astype(np.float32)
    sizes, strides = weight.shape[2:], _list(given["strides"])
    windows = _windows(x.astype(np.float32), list(sizes), strides, _pads(given, x.shape, list(sizes), strides), 0.0)
    return _with_bias(np.einsum("nchwij,cij->nchw", windows, weight[:, 0]), given).astype(x.dtype)


def _any_conv(given: Mapping[str, Any]) -> Array:
    weight, channels = given["weight"], given["x"].shape[1]
    plain = given.get("dilations") is None or set(_list(given["dilations"])) == {1}
    if weight.ndim == 4 and weight.shape[1] == 1 and weight.shape[0] == channels and plain and channels > 1:
        return _depthwise(given)
    return _conv(given)


def _conv_transpose(given: Mapping[str, Any]) -> Array:
    x, weight = given["x"].astype(np.float32), given["weight"].astype(np.float32)
    groups = _groups(given)
    sizes, strides = weight.shape[2:], _list(given["strides"])
    pads = _list(given["pad"]) if str(given["pad_type"]) == "custom" else [0] * 2 * len(sizes)
    whole = [(extent - 1) * by + size for extent, by, size in zip(x.shape[2:], strides, sizes, strict=True)]
    wanted = _list(given["output_shape"])[2:] if given.get("output_shape") is not None else None
    kept = wanted or [w - pads[2 * axis] - pads[2 * axis + 1] for axis, w in enumerate(whole)]
    room = [max(w, pads[2 * axis] + k) for axis, (w, k) in enumerate(zip(whole, kept, strict=True))]
    out = np.zeros((x.shape[0], weight.shape[1] * groups, *room), np.float32)
    inside, outside = x.shape[1] // groups, weight.shape[1]
    for group in range(groups):
        part = x[:, group * inside : (group + 1) * inside]
        rows = weight[group * inside : (group + 1) * inside]
        for offset in np.ndindex(*sizes):
            spread = tuple(slice(o, o + (n - 1) * by + 1, by) for o, n, by in zip(offset, x.shape[2:], strides, strict=True))
            added = np.einsum("nc...,co->no...", part, rows[(slice(None), slice(None), *offset)])
            out[(slice(None), slice(group * outside, (group + 1) * outside), *spread)] += added
    cut = tuple(slice(pads[2 * axis], pads[2 * axis] + k) for axis, k in enumerate(kept))
    return _with_bias(out[(slice(None), slice(None), *cut)], given).astype(given["x"].dtype)


def _with_bias(values: Array, given: Mapping[str, Any]) -> Array:
    bias = given.get("bias")
    if bias is None:
        return values
    return values + np.asarray(bias, np.float32).reshape(-1, *[1] * (values.ndim - 2))


def _linear(given: Mapping[str, Any]) -> Array:
    x = given["x"]
    product = x.astype(np.float32) @ given["weight"].astype(np.float32).T
    bias = given.get("bias")
    return (product if bias is None else product + np.asarray(bias, np.float32)).astype(x.dtype)


def _matmul(given: Mapping[str, Any]) -> Array:
    x, y = given["x"].astype(np.float32), given["y"].astype(np.float32)
    x = x.swapaxes(-1, -2) if given.get("transpose_x") else x
    y = y.swapaxes(-1, -2) if given.get("transpose_y") else y
    return (x @ y).astype(given["x"].dtype)


def _pads(given: Mapping[str, Any], shape: Sequence[int], sizes: Sequence[int], strides: Sequence[int]) -> list[int]:
    """[start, end] an axis."""
    kind = str(given["pad_type"])
    if kind == "valid":
        return [0] * 2 * len(sizes)
    if kind == "custom":
        return _list(given["pad"])
    found = []
    for extent, size, by in zip(shape[2:], sizes, strides, strict=True):
        missing = max(0, (-(-extent // by) - 1) * by + size - extent)
        less = missing // 2
        found += [less, missing - less] if kind == "same" else [missing - less, less]
    return found


def _windows(x: Array, sizes: Sequence[int], strides: Sequence[int], pads: Sequence[int], fill: float) -> Array:
    """[N, C, *places, *sizes], a view of the padded array."""
    around = [(0, 0), (0, 0), *((pads[2 * axis], pads[2 * axis + 1]) for axis in range(len(sizes)))]
    padded = np.pad(x, around, constant_values=fill) if any(pads) else x
    windows = sliding_window_view(padded, tuple(sizes), tuple(range(2, 2 + len(sizes))))
    return windows[(slice(None), slice(None), *(slice(None, None, by) for by in strides))]


def _max_pool(given: Mapping[str, Any]) -> Array:
    x, sizes, strides = given["x"], _list(given["kernel_sizes"]), _list(given["strides"])
    windows = _windows(x, sizes, strides, _pads(given, x.shape, sizes, strides), -np.inf)
    return windows.max(axis=tuple(range(-len(sizes), 0)))


def _average_pool(given: Mapping[str, Any]) -> Array:
    x, sizes, strides = given["x"], _list(given["kernel_sizes"]), _list(given["strides"])
    pads, axes = _pads(given, x.shape, sizes, strides), tuple(range(-len(sizes), 0))
    total = _windows(x.astype(np.float32), sizes, strides, pads, 0.0).sum(axis=axes)
    if not given.get("exclude_padding_from_average"):
        return (total / np.prod(sizes)).astype(x.dtype)
    return (total / _windows(np.ones_like(x, np.float32), sizes, strides, pads, 0.0).sum(axis=axes)).astype(x.dtype)


def _reduce(how: Callable[..., Array]) -> Kernel:
    def kernel(given: Mapping[str, Any]) -> Array:
        x = given["x"]
        axes = None if given.get("axes") is None else tuple(_list(given["axes"]))
        return np.asarray(how(x.astype(np.float32), axis=axes, keepdims=bool(given.get("keep_dims")))).astype(x.dtype)

    return kernel


def _softmax(given: Mapping[str, Any]) -> Array:
    x, axis = given["x"].astype(np.float32), int(given["axis"])
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return (powers / powers.sum(axis=axis, keepdims=True)).astype(given["x"].dtype)


def _pad(given: Mapping[str, Any]) -> Array:
    x, pads = given["x"], _list(given["pad"])
    around = [(0, 0)] * (x.ndim - len(pads) // 2) + [(pads[i], pads[i + 1]) for i in range(0, len(pads), 2)]
    mode = str(given["mode"])
    if mode == "constant":
        return np.pad(x, around, constant_values=x.dtype.type(given["constant_val"]))
    return np.pad(x, around, mode="edge" if mode == "replicate" else "reflect")


def _slice(given: Mapping[str, Any]) -> Array:
    x = given["x"]
    begin, end = _list(given["begin"]), _list(given["end"])
    strides = _list(given["stride"]) if given.get("stride") is not None else [1] * x.ndim
    masks = [given[name] if given.get(name) is not None else [False] * x.ndim for name in ("begin_mask", "end_mask", "squeeze_mask")]
    cuts: list[Any] = []
    for axis in range(x.ndim):
        if masks[2][axis]:
            cuts.append(begin[axis])
        else:
            cuts.append(slice(None if masks[0][axis] else begin[axis], None if masks[1][axis] else end[axis], strides[axis]))
    return x[tuple(cuts)]


def _split(given: Mapping[str, Any]) -> list[Array]:
    axis = int(given["axis"])
    if given.get("split_sizes") is not None:
        return list(np.split(given["x"], np.cumsum(_list(given["split_sizes"]))[:-1], axis=axis))
    return list(np.split(given["x"], int(given["num_splits"]), axis=axis))


def _squeeze(given: Mapping[str, Any]) -> Array:
    return np.squeeze(given["x"], None if given.get("axes") is None else tuple(_list(given["axes"])))


def _expand(given: Mapping[str, Any]) -> Array:
    return np.expand_dims(given["x"], tuple(_list(given["axes"])))


def _nearest(given: Mapping[str, Any]) -> Array:
    x = given["x"]
    for axis, name in ((2, "scale_factor_height"), (3, "scale_factor_width")):
        x = x.repeat(round(float(given[name])), axis=axis)
    return x


def _bilinear(given: Mapping[str, Any]) -> Array:
    x = given["x"].astype(np.float32)
    for axis, name in ((2, "scale_factor_height"), (3, "scale_factor_width")):
        x = _between(x, axis, float(given[name]), bool(given["align_corners"]), bool(given.get("half_pixel_centers")))
    return x.astype(given["x"].dtype)


def _between(x: Array, axis: int, factor: float, align: bool, centres: bool) -> Array:
    """Linear interpolation along one axis."""
    before = x.shape[axis]
    after = int(np.floor(before * factor))
    place = np.arange(after, dtype=np.float64)
    inside = (place + 0.5) / factor - 0.5 if centres else place / factor
    at = np.clip(place * (before - 1) / max(after - 1, 1) if align else inside, 0, before - 1)
    low = np.floor(at).astype(int)
    rest = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return x.take(low, axis) * (1 - rest) + x.take(np.minimum(low + 1, before - 1), axis) * rest


def _shuffled(order: tuple[int, ...], depth_first: bool, name: str) -> Kernel:
    def kernel(given: Mapping[str, Any]) -> Array:
        x, size = given["x"], int(given[name])
        n, c, h, w = x.shape
        inner = (n, size, size, c // size**2, h, w) if depth_first else (n, c // size**2, size, size, h, w)
        return x.reshape(inner).transpose(order).reshape(n, c // size**2, h * size, w * size)

    return kernel


def _batch_norm(given: Mapping[str, Any]) -> Array:
    x = given["x"].astype(np.float32)
    spread = [1, -1] + [1] * (x.ndim - 2)
    mean, variance = (np.asarray(given[name], np.float32).reshape(spread) for name in ("mean", "variance"))
    found = (x - mean) / np.sqrt(variance + float(given.get("epsilon") or 1e-5))
    for name, how in (("gamma", np.multiply), ("beta", np.add)):
        if given.get(name) is not None:
            found = how(found, np.asarray(given[name], np.float32).reshape(spread))
    return found.astype(given["x"].dtype)


def _gelu(given: Mapping[str, Any]) -> Array:
    x = given["x"].astype(np.float32)
    if "TANH" in str(given.get("mode")):
        return (0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))).astype(given["x"].dtype)
    return (0.5 * x * (1 + _erf(x / np.float32(np.sqrt(2))))).astype(given["x"].dtype)


def _erf(x: Array) -> Array:
    from scipy.special import erf

    return np.asarray(erf(x), x.dtype)


def _cast(given: Mapping[str, Any]) -> Array:
    names = {"fp16": "float16", "fp32": "float32"}
    wanted = str(given["dtype"])
    return np.asarray(given["x"]).astype(names.get(wanted, wanted))


def _prelu(given: Mapping[str, Any]) -> Array:
    x = given["x"]
    slopes = np.asarray(given["alpha"], x.dtype).reshape([1, -1] + [1] * (x.ndim - 2))
    return np.where(x >= 0, x, x * slopes)


def _groups(given: Mapping[str, Any]) -> int:
    found = given.get("groups")
    return 1 if found is None else int(found)


def _list(values: Any) -> list[int]:
    return [int(value) for value in np.asarray(values).reshape(-1)]


def _one(how: Callable[[Array], Array]) -> Kernel:
    """Of one tensor, computed in 32 bit."""
    return lambda given: how(given["x"].astype(np.float32)).astype(given["x"].dtype)


def _two(how: Callable[[Any, Any], Any]) -> Kernel:
    """Of two tensors, computed in 32 bit."""

    def kernel(given: Mapping[str, Any]) -> Array:
        x, y = np.asarray(given["x"]), np.asarray(given["y"])
        return np.asarray(how(x.astype(np.float32), y.astype(np.float32))).astype(x.dtype)

    return kernel


def _leaky(given: Mapping[str, Any]) -> Array:
    x = given["x"]
    return np.where(x >= 0, x, x * x.dtype.type(given["alpha"]))


def _elu(given: Mapping[str, Any]) -> Array:
    x = given["x"]
    return np.where(x >= 0, x, x.dtype.type(given["alpha"]) * np.expm1(np.minimum(x, 0)))


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)), x.dtype)


KERNELS: dict[str, Kernel] = {
    "abs": _one(np.abs),
    "add": _two(np.add),
    "avg_pool": _average_pool,
    "batch_norm": _batch_norm,
    "cast": _cast,
    "clip": lambda given: np.clip(given["x"], given["x"].dtype.type(given["alpha"]), given["x"].dtype.type(given["beta"])),
    "concat": lambda given: np.concatenate(given["values"], axis=int(given["axis"])),
    "conv": _any_conv,
    "conv_transpose": _conv_transpose,
    "depth_to_space": _shuffled((0, 3, 4, 1, 5, 2), True, "block_size"),
    "dequantize": _dequantize,
    "elu": _elu,
    "erf": _one(_erf),
    "exp": _one(np.exp),
    "expand_dims": _expand,
    "gelu": _gelu,
    "identity": lambda given: given["x"],
    "leaky_relu": _leaky,
    "linear": _linear,
    "matmul": _matmul,
    "max_pool": _max_pool,
    "maximum": _two(np.maximum),
    "minimum": _two(np.minimum),
    "mul": _two(np.multiply),
    "pad": _pad,
    "pixel_shuffle": _shuffled((0, 1, 4, 2, 5, 3), False, "upscale_factor"),
    "pow": _two(np.power),
    "prelu": _prelu,
    "quantize": _quantize,
    "real_div": _two(np.divide),
    "reduce_max": _reduce(np.max),
    "reduce_mean": _reduce(np.mean),
    "reduce_sum": _reduce(np.sum),
    "relu": lambda given: np.maximum(given["x"], 0),
    "relu6": lambda given: np.clip(given["x"], 0, 6),
    "reshape": lambda given: given["x"].reshape(_list(given["shape"])),
    "sigmoid": _one(_sigmoid),
    "sigmoid_hard": lambda given: _hard(given),
    "silu": _one(lambda x: x * _sigmoid(x)),
    "slice_by_index": _slice,
    "softmax": _softmax,
    "split": _split,
    "sqrt": _one(np.sqrt),
    "squeeze": _squeeze,
    "sub": _two(np.subtract),
    "tanh": _one(np.tanh),
    "transpose": lambda given: np.transpose(given["x"], _list(given["perm"])),
    "upsample_bilinear": _bilinear,
    "upsample_nearest_neighbor": _nearest,
}


def _hard(given: Mapping[str, Any]) -> Array:
    x = given["x"].astype(np.float32)
    return np.clip(x * float(given["alpha"]) + float(given["beta"]), 0, 1).astype(given["x"].dtype)
