"""Exact replacements of what the Edge TPU does not list by what it lists: not one level changes."""

from __future__ import annotations

from dataclasses import replace

from lowbit.export.program.program import Kind, Operation, Option, Program, Tensor


def rewrite(program: Program) -> Program:
    """Taking every other row or column (residual networks without projections do) becomes a largest value of windows of one element.

    Constants that nobody reads any longer are dropped.
    """
    operations = tuple(_unstrided(operation, program) for operation in program.operations)
    used = {name for operation in operations for name in (*operation.inputs, *operation.outputs)}
    used |= {port.tensor for port in (*program.inputs, *program.outputs)}
    return replace(program, operations=operations, tensors={name: tensor for name, tensor in program.tensors.items() if name in used})


def _unstrided(operation: Operation, program: Program) -> Operation:
    if operation.kind is not Kind.STRIDED_SLICE:
        return operation
    source, begin, _, strides = (program.tensors[name] for name in operation.inputs)
    output = program.tensors[operation.outputs[0]]
    steps = _numbers(strides)
    whole = tuple(-(-extent // step) for extent, step in zip(source.shape, steps, strict=True)) == output.shape
    if len(steps) != 4 or steps[0] != 1 or steps[3] != 1 or any(_numbers(begin)) or not whole:
        return operation
    options: dict[str, Option] = {"filter_height": 1, "filter_width": 1, "stride_h": steps[1], "stride_w": steps[2], "padding": "VALID"}
    return Operation(Kind.MAX_POOL_2D, operation.inputs[:1], operation.outputs, options, operation.origin)


def _numbers(tensor: Tensor) -> tuple[int, ...]:
    return () if tensor.data is None else tuple(int(number) for number in tensor.data)
