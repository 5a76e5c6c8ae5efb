"""Random small programs: valid by `problems.check_program`, seeded, every kind among them. For fuzzing whatever runs or writes programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from lowbit.export.program.problems import check_program
from lowbit.export.program.program import Kind, Option, Program
from lowbit.export.program.random_draft import Draft
from lowbit.export.program.shapes import RANKS
from lowbit.quant.affine import Affine
from lowbit.types import Feeds

_IMAGES = frozenset(RANKS) | {Kind.MEAN}
"""Kinds that need an image."""
_LARGEST_TENSOR = 4096
"""Elements; what would make a larger one is not drawn."""


def random_program(seed: int, *, float_io: bool | None = None, kinds: frozenset[Kind] | None = None) -> Program:
    """Draws a program of 2 to 10 operations.

    Args:
        seed: Same seed, same program. Seeds n, n + 1, ... take the kinds in turn, so that 40 in a row have all of them.
        float_io: Whether it is fed and answers real numbers; None draws it.
        kinds: Kinds that it may have besides QUANTIZE and DEQUANTIZE; None allows all.
    """
    allowed = [kind for kind in Kind if kind in _STEPS and (kinds is None or kind in kinds)]
    wanted = allowed[seed % len(allowed)]
    draft = Draft(seed)
    real = draft.chance(0.5) if float_io is None else float_io
    first = current = draft.feed(_first_shape(draft, image=wanted in _IMAGES), real=real)
    place = draft.whole(0, 3)
    for number in range(draft.whole(place + 1, 8)):
        if number == place:
            current = _grown(draft, wanted, current) or _grown(draft, wanted, first) or current
        else:
            current = _grown(draft, allowed[draft.whole(0, len(allowed) - 1)], current) or current
    program = draft.finish(f"random_{seed}", real=real)
    check_program(program)
    return program


def random_feeds(program: Program, samples: int, seed: int = 0) -> Feeds:
    """Samples for every input, float32: what becomes int8 inside is spread over the grid, and a little beyond; what is int8 lies on it."""
    dice = np.random.default_rng(seed)
    feeds: Feeds = {}
    for port in program.inputs:
        tensor = program.tensors[port.tensor]
        readers = [operation.outputs[0] for operation in program.operations if port.tensor in operation.inputs]
        grid = tensor.grid or program.tensors[readers[0]].grid
        assert grid is not None
        shape = (samples, *port.shape[1:])
        levels = dice.integers(-128, 128, shape) if tensor.dtype == "int8" else dice.uniform(-140, 140, shape)
        feeds[port.name] = ((levels - int(grid.zero_point)) * float(grid.scale)).astype(np.float32)
    return feeds


def _grown(draft: Draft, kind: Kind, current: str) -> str | None:
    """One step of that kind, on the current tensor or one that lies open; None where it does not fit or would be too large."""
    before = (dict(draft.tensors), list(draft.operations), list(draft.ports))
    name = _STEPS[kind](draft, current)
    if name is not None and int(np.prod(draft.shape(name))) > _LARGEST_TENSOR:
        draft.tensors, draft.operations, draft.ports = before
        return None
    return name


def _first_shape(draft: Draft, *, image: bool) -> tuple[int, ...]:
    if not image and draft.chance(0.25):
        return (1, draft.whole(2, 40))
    channels = int(draft.dice.choice([1, 2, 3, 4, 5, 8, 16, 17]))
    return (1, draft.whole(1, 10), draft.whole(1, 10), channels)


def _image(draft: Draft, name: str) -> bool:
    return len(draft.shape(name)) == 4


# ---- products ----------------------------------------------------------------------------------------------------------------------


def _weights(draft: Draft, shape: tuple[int, ...], axis: int, source: str, terms: int, *, bias: bool = True) -> tuple[str, str, Affine]:
    """Names of weights and bias ("" for none), and a grid for the output that fits sums of that many terms."""
    channels = shape[axis]
    per_channel = draft.chance(0.7)
    scale = (2.0 ** draft.dice.uniform(-9, -5) * 2.0 ** draft.dice.uniform(-1, 1, channels if per_channel else 1)).astype(np.float32)
    zero = np.zeros_like(scale, np.int32)
    scales, zeros = (scale, zero) if per_channel else (scale[0], zero[0])
    grid = Affine(np.asarray(scales), np.asarray(zeros), "int8", True, axis if per_channel else None)
    weights = draft.constant(draft.dice.integers(-127, 128, shape).astype(np.int8), grid, "weights")
    output = draft.grid(draft.spread(source) * 73 * float(scale.max()) * terms**0.5)
    if not bias:
        return weights, "", output
    step = float(draft.grid_of(source).scale) * scale.astype(np.float64)
    bias_grid = Affine(np.asarray(step if per_channel else step[0], np.float32), grid.zero_point, "int32", True, 0 if per_channel else None)
    values = draft.dice.normal(0, draft.spread(source) * 73 * float(scale.max()) * terms**0.5 / step, channels)
    return weights, draft.constant(np.clip(values, -(1 << 28), 1 << 28).astype(np.int32), bias_grid, "bias"), output


def _convolution(draft: Draft, source: str, *, depthwise: bool = False) -> str | None:
    if not _image(draft, source):
        return None
    _, height, width, channels = draft.shape(source)
    taps, dilation = (draft.whole(1, 5), draft.whole(1, 5)), draft.whole(1, 2) if draft.chance(0.2) else 1
    reach = [(each - 1) * dilation + 1 for each in taps]
    fits = reach[0] <= height and reach[1] <= width
    options = {
        "padding": "VALID" if fits and draft.chance(0.5) else "SAME",
        "stride_h": 1 if dilation > 1 else draft.whole(1, 3),
        "stride_w": 1 if dilation > 1 else draft.whole(1, 3),
        "dilation_h": dilation,
        "dilation_w": dilation,
        "activation": draft.activation(),
    }
    if depthwise:
        multiplier = draft.whole(1, 3) if draft.chance(0.3) else 1
        weights, bias, grid = _weights(draft, (1, *taps, channels * multiplier), 3, source, taps[0] * taps[1])
        return draft.add(Kind.DEPTHWISE_CONV_2D, (source, weights, bias), grid, depth_multiplier=multiplier, **options)
    shape = (draft.whole(1, 20), *taps, channels)
    weights, bias, grid = _weights(draft, shape, 0, source, taps[0] * taps[1] * channels)
    return draft.add(Kind.CONV_2D, (source, weights, bias), grid, **options)


def _depthwise(draft: Draft, source: str) -> str | None:
    return _convolution(draft, source, depthwise=True)


def _transpose_convolution(draft: Draft, source: str) -> str | None:
    if not _image(draft, source):
        return None
    _, height, width, channels = draft.shape(source)
    taps, strides = (draft.whole(1, 4), draft.whole(1, 4)), (draft.whole(1, 3), draft.whole(1, 3))
    padding = str(draft.dice.choice(["SAME", "VALID"]))
    extents = [
        extent * stride if padding == "SAME" else (extent - 1) * stride + tap
        for extent, stride, tap in zip((height, width), strides, taps, strict=True)
    ]
    weights, bias, grid = _weights(
        draft, (draft.whole(1, 9), *taps, channels), 0, source, taps[0] * taps[1] * channels, bias=draft.chance(0.8)
    )
    shape = draft.numbers(1, *extents, draft.shape(weights)[0])
    return draft.add(Kind.TRANSPOSE_CONV, (shape, weights, source, bias), grid, padding=padding, stride_h=strides[0], stride_w=strides[1])


def _fully_connected(draft: Draft, source: str) -> str | None:
    rank = len(draft.shape(source))
    if rank == 4:
        source = draft.add(Kind.RESHAPE, (source, draft.numbers(1, int(np.prod(draft.shape(source))))), draft.grid_of(source))
    elif rank != 2:
        return None
    width = draft.shape(source)[1]
    weights, bias, grid = _weights(draft, (draft.whole(1, 30), width), 0, source, width, bias=draft.chance(0.8))
    return draft.add(Kind.FULLY_CONNECTED, (source, weights, bias), grid, activation=draft.activation())


# ---- elements ----------------------------------------------------------------------------------------------------------------------


def _other(draft: Draft, source: str) -> str:
    """A second operand: the same shape, an open end, or a constant that broadcasts."""
    shape = draft.shape(source)
    alike = [end for end in draft.tensors if end != source and draft.shape(end) == shape and _computed(draft, end)]
    if alike and draft.chance(0.6):
        return alike[draft.whole(0, len(alike) - 1)]
    if draft.chance(0.2):
        return source
    per_channel = (*(1,) * (len(shape) - 1), shape[-1])
    chosen = [shape, per_channel, (1,) * len(shape)][draft.whole(0, 2)]
    grid = draft.grid(draft.spread(source))
    return draft.constant(draft.dice.integers(-128, 128, chosen).astype(np.int8), grid, "constant")


def _computed(draft: Draft, name: str) -> bool:
    return draft.tensors[name].data is None and draft.tensors[name].dtype == "int8"


def _sum(kind: Kind) -> Callable[[Draft, str], str | None]:
    def step(draft: Draft, source: str) -> str | None:
        other = _other(draft, source)
        pair = (source, other) if draft.chance(0.7) else (other, source)
        spread = (draft.spread(source) ** 2 + draft.spread(other) ** 2) ** 0.5
        return draft.add(kind, pair, draft.grid(spread), activation=draft.activation())

    return step


def _product(draft: Draft, source: str) -> str | None:
    other = _other(draft, source)
    spread = draft.spread(source) * draft.spread(other)
    return draft.add(Kind.MUL, (source, other), draft.grid(spread), activation=draft.activation())


def _unary(kind: Kind) -> Callable[[Draft, str], str | None]:
    def step(draft: Draft, source: str) -> str | None:
        options = {"alpha": float(np.float32(draft.dice.uniform(0, 1)))} if kind is Kind.LEAKY_RELU else {}
        return draft.add(kind, (source,), draft.grid(draft.spread(source)), **options)

    return step


def _relu6(draft: Draft, source: str) -> str | None:
    return draft.add(Kind.RELU6, (source,), draft.grid_of(source))


def _softmax(draft: Draft, source: str) -> str | None:
    return draft.add(Kind.SOFTMAX, (source,), None, beta=float(draft.dice.choice([1.0, 1.0, 0.5, 2.0])))


# ---- places ------------------------------------------------------------------------------------------------------------------------


def _pool(kind: Kind) -> Callable[[Draft, str], str | None]:
    def step(draft: Draft, source: str) -> str | None:
        if not _image(draft, source):
            return None
        _, height, width, _ = draft.shape(source)
        options: dict[str, Option] = {
            "filter_height": draft.whole(1, min(height, 4)),
            "filter_width": draft.whole(1, min(width, 4)),
            "stride_h": draft.whole(1, 3),
            "stride_w": draft.whole(1, 3),
            "padding": str(draft.dice.choice(["SAME", "VALID"])),
            "activation": draft.activation(),
        }
        return draft.add(kind, (source,), draft.grid_of(source), **options)

    return step


def _mean(draft: Draft, source: str) -> str | None:
    if not _image(draft, source):
        return None
    axes = [(1, 2), (1,), (2,), (-1,)][draft.whole(0, 3)] if draft.chance(0.5) else (1, 2)
    grid = draft.grid(draft.spread(source) * 0.7)
    grid = replace(grid, zero_point=draft.grid_of(source).zero_point) if draft.chance(0.5) else grid
    return draft.add(Kind.MEAN, (source, draft.numbers(*axes)), grid, keep_dims=draft.chance(0.5))


def _resize(kind: Kind) -> Callable[[Draft, str], str | None]:
    def step(draft: Draft, source: str) -> str | None:
        if not _image(draft, source):
            return None
        flags: list[dict[str, Option]] = [{}, {"align_corners": True}, {"half_pixel_centers": True}]
        _, height, width, _ = draft.shape(source)
        size = (2 * height, 2 * width) if draft.chance(0.5) else (draft.whole(1, 12), draft.whole(1, 12))
        return draft.add(kind, (source, draft.numbers(*size)), draft.grid_of(source), **flags[draft.whole(0, 2)])

    return step


# ---- moves -------------------------------------------------------------------------------------------------------------------------


def _concatenation(draft: Draft, source: str) -> str | None:
    shape = draft.shape(source)
    axis = draft.whole(1, len(shape) - 1)
    grid = draft.grid_of(source)
    parts = [source]
    for _ in range(draft.whole(1, 3)):
        if draft.chance(0.4):
            parts.append(source)
        elif draft.chance(0.5):
            extents = (*shape[:axis], draft.whole(1, 4), *shape[axis + 1 :])
            parts.append(draft.constant(draft.dice.integers(-128, 128, extents).astype(np.int8), grid, "constant"))
        else:
            alike = [name for name in draft.tensors if draft.shape(name) == shape and _computed(draft, name)]
            parts.append(draft.add(Kind.QUANTIZE, (alike[draft.whole(0, len(alike) - 1)],), grid))
    return draft.add(Kind.CONCATENATION, tuple(parts), grid, axis=axis - len(shape) if draft.chance(0.3) else axis)


def _pad(kind: Kind) -> Callable[[Draft, str], str | None]:
    def step(draft: Draft, source: str) -> str | None:
        shape = draft.shape(source)
        margins = np.zeros((len(shape), 2), np.int32)
        for axis in range(1, len(shape)):
            margins[axis] = draft.whole(0, 2), draft.whole(0, 2)
        grid = draft.grid_of(source)
        value = (draft.constant(np.array([draft.whole(-128, 127)], np.int8), grid, "value"),) if kind is Kind.PADV2 else ()
        return draft.add(kind, (source, draft.constant(margins), *value), grid)

    return step


def _reshape(draft: Draft, source: str) -> str | None:
    shape = draft.shape(source)
    if len(shape) == 4:
        options = [(1, int(np.prod(shape))), (1, shape[1] * shape[2], 1, shape[3]), (1, shape[2], shape[1], shape[3])]
        wanted = options[draft.whole(0, 2)]
    else:
        wanted = (1, 1, 1, int(np.prod(shape)))
    return draft.add(Kind.RESHAPE, (source, draft.numbers(*wanted)), draft.grid_of(source))


def _slice(draft: Draft, source: str) -> str | None:
    shape = draft.shape(source)
    begins = [draft.whole(0, extent - 1) for extent in shape]
    sizes = [draft.whole(1, extent - begin) for begin, extent in zip(begins, shape, strict=True)]
    sizes = [-1 if begin + size == extent and draft.chance(0.3) else size for begin, size, extent in zip(begins, sizes, shape, strict=True)]
    return draft.add(Kind.SLICE, (source, draft.numbers(*begins), draft.numbers(*sizes)), draft.grid_of(source))


def _strided_slice(draft: Draft, source: str) -> str | None:
    shape = draft.shape(source)
    begins = [draft.whole(0, extent - 1) for extent in shape]
    ends = [draft.whole(begin + 1, extent) for begin, extent in zip(begins, shape, strict=True)]
    strides = [draft.whole(1, 3) for _ in shape]
    lists = (draft.numbers(*begins), draft.numbers(*ends), draft.numbers(*strides))
    return draft.add(Kind.STRIDED_SLICE, (source, *lists), draft.grid_of(source))


def _transpose(draft: Draft, source: str) -> str | None:
    order = (0, *(int(axis) + 1 for axis in draft.dice.permutation(len(draft.shape(source)) - 1)))
    return draft.add(Kind.TRANSPOSE, (source, draft.numbers(*order)), draft.grid_of(source))


def _depth_to_space(draft: Draft, source: str) -> str | None:
    if not _image(draft, source):
        return None
    if draft.shape(source)[3] % 4:
        source = str(draft.add(Kind.CONCATENATION, (source,) * 4, draft.grid_of(source), axis=3))
    return draft.add(Kind.DEPTH_TO_SPACE, (source,), draft.grid_of(source), block_size=2)


_STEPS: Mapping[Kind, Callable[[Draft, str], str | None]] = {
    Kind.ADD: _sum(Kind.ADD),
    Kind.AVERAGE_POOL_2D: _pool(Kind.AVERAGE_POOL_2D),
    Kind.CONCATENATION: _concatenation,
    Kind.CONV_2D: _convolution,
    Kind.DEPTH_TO_SPACE: _depth_to_space,
    Kind.DEPTHWISE_CONV_2D: _depthwise,
    Kind.FULLY_CONNECTED: _fully_connected,
    Kind.HARD_SWISH: _unary(Kind.HARD_SWISH),
    Kind.LEAKY_RELU: _unary(Kind.LEAKY_RELU),
    Kind.LOGISTIC: _unary(Kind.LOGISTIC),
    Kind.MAX_POOL_2D: _pool(Kind.MAX_POOL_2D),
    Kind.MEAN: _mean,
    Kind.MUL: _product,
    Kind.PAD: _pad(Kind.PAD),
    Kind.PADV2: _pad(Kind.PADV2),
    Kind.QUANTIZE: _unary(Kind.QUANTIZE),
    Kind.RELU: _unary(Kind.RELU),
    Kind.RELU6: _relu6,
    Kind.RESHAPE: _reshape,
    Kind.RESIZE_BILINEAR: _resize(Kind.RESIZE_BILINEAR),
    Kind.RESIZE_NEAREST_NEIGHBOR: _resize(Kind.RESIZE_NEAREST_NEIGHBOR),
    Kind.SLICE: _slice,
    Kind.SOFTMAX: _softmax,
    Kind.STRIDED_SLICE: _strided_slice,
    Kind.SUB: _sum(Kind.SUB),
    Kind.TANH: _unary(Kind.TANH),
    Kind.TRANSPOSE: _transpose,
    Kind.TRANSPOSE_CONV: _transpose_convolution,
}
