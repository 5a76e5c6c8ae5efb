"""Each operation of a program as calls of kernels: their constants and plans as C. One function a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lowbit.errors import ModelError
from lowbit.export.cortexm import walks
from lowbit.export.cortexm.c_text import Constant, Struct, Value, real
from lowbit.export.program import fixed_point as fp
from lowbit.export.program import tables
from lowbit.export.program.program import Kind, Operation, Program, Tensor
from lowbit.quant.affine import Affine
from lowbit.types import Array


@dataclass(frozen=True)
class Calls:
    """What stands for one operation.

    Attributes:
        kernels: Files of kernels that it needs.
        lines: Calls; "{name}" stands for where tensor `name` lies, by its number.
        constants: Arrays beside the program's own.
        structs: Plans of the calls.
    """

    kernels: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    constants: tuple[Constant, ...] = ()
    structs: tuple[Struct, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Of constants and plans, in flash."""
        return sum(c.size_bytes for c in self.constants) + sum(s.size_bytes for s in self.structs)


@dataclass(frozen=True)
class Step:
    """One operation with its tensors at hand.

    Attributes:
        program: All of it.
        operation: This one.
        number: From 1 on.
        at: Tensor -> C expression of where it lies.
    """

    program: Program
    operation: Operation
    number: int
    at: Mapping[str, str] = field(repr=False)

    def tensor(self, index: int) -> Tensor:
        """An input; an empty name is no tensor.

        Raises:
            ModelError: It is left out, and may not be.
        """
        names = self.operation.inputs
        if index >= len(names) or not names[index]:
            raise ModelError(f"{_where(self.operation)}: input {index} is missing.", "Export the bundle again; its program is broken.")
        return self.program.tensors[names[index]]

    @property
    def output(self) -> Tensor:
        """The only output."""
        return self.program.tensors[self.operation.outputs[0]]

    @property
    def bias(self) -> str:
        """C expression of the third input, or NULL."""
        names = self.operation.inputs
        return self.at[names[2]] if len(names) > 2 and names[2] else "NULL"

    def constant(self, index: int) -> Array:
        """Values of an input that must be known.

        Raises:
            ModelError: They are computed.
        """
        tensor = self.tensor(index)
        if tensor.data is None:
            raise ModelError(
                f"{_where(self.operation)}: '{tensor.name}' is computed while the model runs; C code has fixed shapes and places.",
                "Take another candidate, or export a model with fixed shapes.",
            )
        return tensor.data

    def number_of(self, name: str, default: int | None = None) -> int:
        """An integer option."""
        value = self.operation.options.get(name, default)
        assert isinstance(value, int), f"{self.operation.kind} lacks {name}"
        return int(value)

    def named(self, name: str) -> str:
        """A C name that belongs to this step."""
        return f"{name}_{self.number}"


def calls(step: Step) -> Calls:
    """An operation as C.

    Raises:
        ModelError: a kind, type, or shape that the kernels do not take.
    """
    _check_types(step)
    try:
        return _KINDS[step.operation.kind](step)
    except ValueError as error:
        raise ModelError(f"{_where(step.operation)} has {error}.", "Leave this part out of the model, or choose another target.") from error


def _where(operation: Operation) -> str:
    return f"{operation.kind} (from {', '.join(operation.origin) or operation.outputs[0]})"


def _check_types(step: Step) -> None:
    floats = {Kind.QUANTIZE: (0,), Kind.DEQUANTIZE: (1,)}.get(step.operation.kind, ())
    for index, tensor in enumerate((step.program.tensors[step.operation.inputs[_first_input(step)]], step.output)):
        if tensor.dtype != "int8" and not (tensor.dtype == "float32" and index in floats):
            raise ModelError(
                f"{_where(step.operation)}: '{tensor.name}' is {tensor.dtype}; the kernels compute on int8.",
                "Take an int8 candidate (`lowbit export --candidate`), or a target that computes in other types.",
            )


def _first_input(step: Step) -> int:
    return 2 if step.operation.kind is Kind.TRANSPOSE_CONV else 0


_WINDOW = (
    *("in_height", "in_width", "in_channels", "out_height", "out_width", "out_channels", "height", "width"),
    *("stride_height", "stride_width", "dilation_height", "dilation_width", "pad_top", "pad_left"),
)
"""Fields of a window, in order."""

# ---- parts of plans ----------------------------------------------------------------------------------------------------------------


def _grid(tensor: Tensor) -> Affine:
    assert tensor.grid is not None, f"'{tensor.name}' has no grid"
    return tensor.grid


def _zero(tensor: Tensor) -> int:
    return int(_grid(tensor).zero_point)


def _window(step: Step, source: Tensor, height: int, width: int) -> dict[str, Value]:
    """Of a convolution or a pool; the padding as LiteRT computes it."""
    _, in_height, in_width, in_channels = source.shape
    _, out_height, out_width, out_channels = step.output.shape
    padding = str(step.operation.options["padding"])
    strides = step.number_of("stride_h"), step.number_of("stride_w")
    dilations = step.number_of("dilation_h", 1), step.number_of("dilation_w", 1)
    top = fp.window(padding, in_height, height, strides[0], dilations[0])[1]
    left = fp.window(padding, in_width, width, strides[1], dilations[1])[1]
    extents = (in_height, in_width, in_channels), (out_height, out_width, out_channels)
    return _window_fields(*extents, (height, width), strides, dilations, (top, left))


def _window_fields(
    source: Sequence[int], output: Sequence[int], taps: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]
) -> dict[str, Value]:
    return dict(zip(_WINDOW, (*source, *output, *taps, *strides, *dilations, *pads), strict=True))


def _scaling(step: Step, factors: tuple[Array, Array]) -> tuple[dict[str, Value], tuple[Constant, Constant]]:
    """From sums to the output, with its arrays."""
    low, high = fp.activation_bounds(str(step.operation.options.get("activation", "NONE")), _grid(step.output))
    multiplier, shift = (
        Constant(step.named(name), values.astype(np.int32)) for name, values in zip(("multiplier", "shift"), factors, strict=True)
    )
    fields: dict[str, Value] = {"multiplier": multiplier.name, "shift": shift.name, "zero_point": _zero(step.output)}
    return {**fields, "low": low, "high": high}, (multiplier, shift)


def _move(step: Step, name: str, walk: walks.Walk, start_in: int = 0, start_out: int = 0) -> Struct:
    fields: dict[str, Value] = {"extent": walk.extents, "step_in": walk.steps[0], "step_out": walk.steps[1]}
    return Struct("lowbit_move_plan", step.named(name), {**fields, "start_in": start_in, "start_out": start_out})


def _unary(step: Step, function: str, plan: Struct, kernels: tuple[str, ...], constants: Sequence[Constant] = (), source: int = 0) -> Calls:
    line = f"{function}(&{plan.name}, {step.at[step.operation.inputs[source]]}, {step.at[step.output.name]})"
    return Calls(kernels, (line,), tuple(constants), (plan,))


# ---- kinds -------------------------------------------------------------------------------------------------------------------------


def _convolution(step: Step) -> Calls:
    source, filters = step.tensor(0), step.tensor(1)
    depthwise = step.operation.kind is Kind.DEPTHWISE_CONV_2D
    _, height, width, _ = filters.shape
    window = _window(step, source, height, width)
    factors = fp.convolution_multipliers(_grid(source), _grid(filters), _grid(step.output), step.output.shape[3])
    return _windowed(step, source, filters, window, factors, "depthwise_conv_2d" if depthwise else "conv_2d")


def _transpose_convolution(step: Step) -> Calls:
    filters, source = step.tensor(1), step.tensor(2)
    _, height, width, _ = filters.shape
    strides = step.number_of("stride_h"), step.number_of("stride_w")
    padding = str(step.operation.options["padding"])
    extents = step.output.shape[1:3]
    pads = [fp.transpose_window(padding, *each) for each in zip(extents, (height, width), strides, strict=True)]
    window = _window_fields(source.shape[1:], step.output.shape[1:], (height, width), strides, (1, 1), pads)
    factors = fp.convolution_multipliers(_grid(source), _grid(filters), _grid(step.output), step.output.shape[3])
    names = step.operation.inputs
    bias = step.at[names[3]] if len(names) > 3 and names[3] else "NULL"
    return _windowed(step, source, filters, window, factors, "transpose_conv", source_at=2, bias=bias)


def _windowed(
    step: Step,
    source: Tensor,
    filters: Tensor,
    window: dict[str, Value],
    factors: tuple[Array, Array],
    kernel: str,
    *,
    source_at: int = 0,
    bias: str | None = None,
) -> Calls:
    scaling, arrays = _scaling(step, factors)
    fields: dict[str, Value] = {"window": window, "input_zero_point": _zero(source), "weights": step.at[filters.name]}
    plan = Struct("lowbit_convolution", step.named("step"), {**fields, "bias": step.bias if bias is None else bias, "output": scaling})
    return _unary(step, f"lowbit_{kernel}", plan, (kernel,), arrays, source_at)


def _fully_connected(step: Step) -> Calls:
    source, weights = step.tensor(0), step.tensor(1)
    outputs, inputs = weights.shape
    rows = int(np.prod(source.shape)) // inputs
    scaling, arrays = _scaling(step, fp.fully_connected_multipliers(_grid(source), _grid(weights), _grid(step.output), outputs))
    fields: dict[str, Value] = {"rows": rows, "inputs": inputs, "outputs": outputs, "input_zero_point": _zero(source)}
    fields |= {"weights": step.at[weights.name], "bias": step.bias, "output": scaling, "uniform": int(_grid(weights).scale.size == 1)}
    return _unary(step, "lowbit_fully_connected", Struct("lowbit_dense", step.named("step"), fields), ("fully_connected",), arrays)


def _pool(step: Step) -> Calls:
    source = step.tensor(0)
    low, high = fp.activation_bounds(str(step.operation.options.get("activation", "NONE")), _grid(step.output))
    window = _window(step, source, step.number_of("filter_height"), step.number_of("filter_width"))
    plan = Struct("lowbit_pool", step.named("step"), {"window": window, "low": low, "high": high})
    function = "lowbit_max_pool" if step.operation.kind is Kind.MAX_POOL_2D else "lowbit_average_pool"
    return _unary(step, function, plan, ("pool",))


def _pair(step: Step) -> Calls:
    left, right, output = step.tensor(0), step.tensor(1), step.output
    kind = step.operation.kind
    low, high = fp.activation_bounds(str(step.operation.options.get("activation", "NONE")), _grid(output))
    walk = walks.pair(left.shape, right.shape, output.shape)
    fields: dict[str, Value] = {"extent": walk.extents, "step_a": walk.steps[0], "step_b": walk.steps[1]}
    fields |= {"zero_point_a": _zero(left), "zero_point_b": _zero(right)}
    if kind is Kind.MUL:
        factor = fp.mul_multiplier(_grid(left), _grid(right), _grid(output))
    else:
        factors = (fp.sub_factors if kind is Kind.SUB else fp.add_factors)(_grid(left), _grid(right), _grid(output))
        factor = factors.output
        fields |= {"multiplier_a": factors.left.multiplier, "multiplier_b": factors.right.multiplier}
        fields |= {"shift_a": factors.left.shift, "shift_b": factors.right.shift, "sign": -1 if kind is Kind.SUB else 1}
    fields |= {"multiplier": factor.multiplier, "shift": factor.shift, "zero_point": _zero(output), "low": low, "high": high}
    plan = Struct("lowbit_pair", step.named("step"), fields)
    kernel = "mul" if kind is Kind.MUL else "add"
    line = f"lowbit_{kernel}(&{plan.name}, {step.at[left.name]}, {step.at[right.name]}, {step.at[output.name]})"
    return Calls((kernel,), (line,), (), (plan,))


def _mean(step: Step) -> Calls:
    source = step.tensor(0)
    axes = [int(axis) for axis in np.atleast_1d(step.constant(1))]
    kept, reduced = walks.reduction(source.shape, axes)
    count = int(np.prod(reduced.extents))
    factor = fp.mean_multiplier(_grid(source), _grid(step.output), count)
    fields: dict[str, Value] = {"kept": kept.extents, "step_kept": kept.steps[0]}
    fields |= {"reduced": reduced.extents, "step_reduced": reduced.steps[0], "count": count}
    fields |= {"input_zero_point": _zero(source), "multiplier": factor.multiplier, "shift": factor.shift, "zero_point": _zero(step.output)}
    return _unary(step, "lowbit_mean", Struct("lowbit_mean_plan", step.named("step"), fields), ("mean",))


def _softmax(step: Step) -> Calls:
    source = step.tensor(0)
    beta = step.operation.options.get("beta", 1.0)
    assert isinstance(beta, int | float), f"beta is {beta}"
    exponentials = Constant(step.named("exponentials"), tables.softmax_exponentials(_grid(source), beta))
    width = source.shape[-1]
    fields: dict[str, Value] = {"rows": int(np.prod(source.shape)) // width, "width": width, "exponentials": exponentials.name}
    return _unary(step, "lowbit_softmax", Struct("lowbit_softmax_plan", step.named("step"), fields), ("softmax",), (exponentials,))


def _resize(step: Step) -> Calls:
    source = step.tensor(0)
    nearest = step.operation.kind is Kind.RESIZE_NEAREST_NEIGHBOR
    options = {name: bool(step.operation.options.get(name, False)) for name in ("align_corners", "half_pixel_centers")}
    _, out_height, out_width, channels = step.output.shape
    arrays: dict[str, Array] = {}
    for (first, second, part), extent, output in (
        (("rows", "rows_below", "row_parts"), source.shape[1], out_height),
        (("columns", "columns_right", "column_parts"), source.shape[2], out_width),
    ):
        if nearest:
            arrays[first] = fp.nearest_places(extent, output, **options)
        else:
            arrays[first], arrays[second], arrays[part] = fp.bilinear_places(extent, output, **options)
    constants = {name: Constant(step.named(name), values.astype(np.int16)) for name, values in arrays.items()}
    fields: dict[str, Value] = {"in_width": source.shape[2], "channels": channels, "out_height": out_height, "out_width": out_width}
    fields |= {name: constant.name for name, constant in constants.items()}
    function = "lowbit_resize_nearest" if nearest else "lowbit_resize_bilinear"
    return _unary(step, function, Struct("lowbit_resize_plan", step.named("step"), fields), ("resize",), list(constants.values()))


def _table(step: Step) -> Calls:
    source, output = step.tensor(0), step.output
    values = tables.table(step.operation.kind, _grid(source), _grid(output), step.operation.options)
    table = Constant(step.named("table"), values)
    line = f"lowbit_table({table.name}, {step.at[source.name]}, {step.at[output.name]}, {int(np.prod(source.shape))})"
    return Calls(("table",), (line,), (table,))


def _quantize(step: Step) -> Calls:
    if step.tensor(0).dtype == "int8":
        return _table(step)
    return _float_edge(step, "lowbit_quantize", _grid(step.output))


def _dequantize(step: Step) -> Calls:
    return _float_edge(step, "lowbit_dequantize", _grid(step.tensor(0)))


def _float_edge(step: Step, function: str, grid: Affine) -> Calls:
    source, output = step.tensor(0), step.output
    count = int(np.prod(source.shape))
    line = f"{function}({real(float(grid.scale))}, {int(grid.zero_point)}, {step.at[source.name]}, {step.at[output.name]}, {count})"
    return Calls(("float_io",), (line,))


def _reshape(step: Step) -> Calls:
    """Nothing: both tensors are one; a constant is copied."""
    source, output = step.at[step.tensor(0).name], step.at[step.output.name]
    if source == output:
        return Calls()
    count = int(np.prod(step.output.shape))
    plan = _move(step, "step", walks.Walk((count,), ((1,), (1,))).padded())
    return _unary(step, "lowbit_move", plan, ("move",))


def _concatenation(step: Step) -> Calls:
    axis = step.number_of("axis") % len(step.output.shape)
    structs, lines, begin = [], [], 0
    for index in range(len(step.operation.inputs)):
        part = step.tensor(index)
        places = [begin if a == axis else 0 for a in range(len(part.shape))]
        walk, start = walks.paste(part.shape, step.output.shape, places)
        plan = _move(step, f"part_{index}_of", walk, start_out=start)
        structs.append(plan)
        lines.append(f"lowbit_move(&{plan.name}, {step.at[part.name]}, {step.at[step.output.name]})")
        begin += part.shape[axis]
    return Calls(("move",), tuple(lines), (), tuple(structs))


def _pad(step: Step) -> Calls:
    source, output = step.tensor(0), step.output
    before = [int(pair[0]) for pair in step.constant(1).reshape(-1, 2)]
    value = int(step.constant(2).reshape(-1)[0]) if step.operation.kind is Kind.PADV2 else _zero(output)
    walk, start = walks.paste(source.shape, output.shape, before)
    plan = _move(step, "step", walk, start_out=start)
    fill = f"lowbit_fill({step.at[output.name]}, {value}, {int(np.prod(output.shape))})"
    return Calls(("move",), (fill, f"lowbit_move(&{plan.name}, {step.at[source.name]}, {step.at[output.name]})"), (), (plan,))


def _slice(step: Step) -> Calls:
    source = step.tensor(0)
    begin = [int(b) for b in step.constant(1).reshape(-1)]
    size = [int(s) for s in step.constant(2).reshape(-1)]
    size = [source.shape[a] - begin[a] if s == -1 else s for a, s in enumerate(size)]
    return _cut(step, begin, [1] * len(begin), size)


def _strided_slice(step: Step) -> Calls:
    shape = step.tensor(0).shape
    begin, end, strides = ([int(v) for v in step.constant(index).reshape(-1)] for index in (1, 2, 3))
    spans = [range(*slice(b, e, s).indices(extent)) for b, e, s, extent in zip(begin, end, strides, shape, strict=True)]
    return _cut(step, [span.start for span in spans], strides, [len(span) for span in spans])


def _cut(step: Step, begin: Sequence[int], strides: Sequence[int], size: Sequence[int]) -> Calls:
    walk, start = walks.cut(step.tensor(0).shape, begin, strides, size)
    return _unary(step, "lowbit_move", _move(step, "step", walk, start_in=start), ("move",))


def _transpose(step: Step) -> Calls:
    walk = walks.transpose(step.tensor(0).shape, [int(axis) for axis in step.constant(1).reshape(-1)])
    return _unary(step, "lowbit_move", _move(step, "step", walk), ("move",))


def _depth_to_space(step: Step) -> Calls:
    walk = walks.depth_to_space(step.tensor(0).shape, step.number_of("block_size"))
    return _unary(step, "lowbit_move", _move(step, "step", walk), ("move",))


_KINDS: Mapping[Kind, Callable[[Step], Calls]] = {
    Kind.ADD: _pair,
    Kind.AVERAGE_POOL_2D: _pool,
    Kind.CONCATENATION: _concatenation,
    Kind.CONV_2D: _convolution,
    Kind.DEPTH_TO_SPACE: _depth_to_space,
    Kind.DEPTHWISE_CONV_2D: _convolution,
    Kind.DEQUANTIZE: _dequantize,
    Kind.FULLY_CONNECTED: _fully_connected,
    Kind.HARD_SWISH: _table,
    Kind.LEAKY_RELU: _table,
    Kind.LOGISTIC: _table,
    Kind.MAX_POOL_2D: _pool,
    Kind.MEAN: _mean,
    Kind.MUL: _pair,
    Kind.PAD: _pad,
    Kind.PADV2: _pad,
    Kind.QUANTIZE: _quantize,
    Kind.RELU: _table,
    Kind.RELU6: _table,
    Kind.RESHAPE: _reshape,
    Kind.RESIZE_BILINEAR: _resize,
    Kind.RESIZE_NEAREST_NEIGHBOR: _resize,
    Kind.SLICE: _slice,
    Kind.SOFTMAX: _softmax,
    Kind.STRIDED_SLICE: _strided_slice,
    Kind.SUB: _pair,
    Kind.TANH: _table,
    Kind.TRANSPOSE: _transpose,
    Kind.TRANSPOSE_CONV: _transpose_convolution,
}
