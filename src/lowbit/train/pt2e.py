"""Programs for PyTorch's own compiler, from the torch twin of an ONNX graph; in FP32, or quantized by PT2E (torchao) for x86.

    write_program(prepared, out, feeds)                   FP32
    write_pt2e(prepared, out, batches)                    INT8, activation ranges from the samples
    write_pt2e(prepared, out, batches, dynamic=True)      INT8 weights of linear layers, activations rounded at run time

PT2E's quantizer knows convolutions and linear layers by name. ONNX writes the latter as products with a constant and sums with another,
so they are put together again first.
"""

from __future__ import annotations

import importlib.util
import json
import operator
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from lowbit.errors import ModelError, UsageError
from lowbit.quiet import no_output
from lowbit.runtimes.programs import NAMES
from lowbit.train.parts import Compute, Rounding
from lowbit.train.twin import Twin
from lowbit.types import Feeds

BATCH = {0: Dim("batch", min=1, max=4096)}
"""The axis that is left open."""

NUMBERS = (
    "Reshape",
    "Expand",
    "Pad",
    "Slice",
    "Tile",
    "Split",
    "Squeeze",
    "Unsqueeze",
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "Resize",
)
"""Operators whose further inputs are shapes, axes and positions: plain numbers, which they take as such."""


def write_program(source: Path, out: Path, feeds: Feeds) -> Path:
    """Writes an FP32 graph as a program.

    Args:
        source: The ONNX file.
        out: The .pt2 file to write.
        feeds: One batch of two or more samples.

    Returns:
        `out`.

    Raises:
        ModelError: the graph has operators that the twin does not know, or whose shapes follow from values.
    """
    twin = _Fixed(source)
    return _save(_program(twin, feeds), twin, out)


def write_pt2e(source: Path, out: Path, batches: Iterable[Feeds], *, dynamic: bool = False) -> Path:
    """Writes an FP32 graph as a program in INT8: unsigned activations, signed weights a channel, as torchao's quantizer for x86 has it.

    Args:
        source: The ONNX file.
        out: The .pt2 file to write.
        batches: Calibration samples, the first batch of two or more; for `dynamic` that one alone is used.
        dynamic: Round activations at run time, in linear layers alone.

    Returns:
        `out`.

    Raises:
        UsageError: torchao is not installed.
        ModelError: as `write_program`; or there is nothing to quantize.
    """
    if importlib.util.find_spec("torchao") is None:
        raise UsageError("PT2E needs torchao, which is not installed.", "pip install 'lowbit[torch]'")
    twin = _Fixed(source)
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        raise UsageError("There are no calibration samples.", "Give some.")
    example = _positions(twin, first)
    program = _program(twin, first)
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    as_linear(module)
    _name_sources(module)
    used = [example] if dynamic else chain([example], (_positions(twin, feeds) for feeds in rest))
    with no_output(), torch.no_grad():
        quantized = _quantize(module, used, dynamic=dynamic)
    if not any("quantize_per" in str(node.target) for node in quantized.graph.nodes):
        raise ModelError(f"PT2E finds nothing to quantize in '{source.name}'.", "It knows convolutions and products with constant weights.")
    shapes = tuple(BATCH for _ in example) if _is_open(program) else None
    return _save(_export(quantized, example, shapes), twin, out)


def _quantize(module: fx.GraphModule, samples: Iterable[tuple[Tensor, ...]], *, dynamic: bool) -> fx.GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    config = x86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic)
    if dynamic:  # there are kernels with ranges of their own for linear layers alone
        quantizer.set_function_type_qconfig(torch.nn.functional.linear, config)
    else:
        quantizer.set_global(config)
    prepared = prepare_pt2e(module, quantizer)
    for values in samples:
        prepared(*values)
    made = convert_pt2e(prepared)
    return fx.GraphModule(made, made.graph)  # with what the graph reads: the FP32 weights stay behind


class _Fixed(Twin):
    """A twin that has its shapes' arithmetic done before it is exported: an exporter cannot look into tensors.

    Attributes:
        literals: Tensors that follow from constants and shapes alone -> their values.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        factors = {name for step in self.plan.steps if isinstance(step, Compute) and _reads_factors(step) for name in step.inputs[1:]}
        held = {name: value for name, value in super()._held().items() if name in self.plan.constants}
        small = {name: value for name, value in held.items() if value.numel() == 1 or name in factors}
        self._written = self._integers | small
        self.literals = dict(self._written)
        self.requires_grad_(False)

    @torch.no_grad()
    def settle(self, example: Mapping[str, Tensor], *, batch: bool) -> bool:
        """Computes what shapes lead to on an example.

        Args:
            example: Feeds of two or more samples.
            batch: Settle what follows from the number of samples, too; else that alone is left to be computed.

        Returns:
            Whether something was left.
        """
        names = _from_shapes(self)
        self.literals = dict(self._written)
        whole = self(example, names)
        part = whole if batch else self({name: value[1:] for name, value in example.items()}, names)
        same = [name for name in names if torch.equal(whole[name], part[name])]
        self.literals |= {name: whole[name] for name in same}
        return len(same) < len(names)

    def _held(self) -> dict[str, Tensor]:
        written = {name: torch.tensor(value.tolist(), dtype=value.dtype) for name, value in self.literals.items()}
        return super()._held() | written

    def _run(self, step: Compute | Rounding, values: dict[str, Tensor]) -> None:
        if not isinstance(step, Compute):
            super()._run(step, values)
        elif not all(name in self.literals for name in step.outputs if name):
            seen: dict[str, Any] = {name: values[name] for name in step.inputs if name}
            if step.attributes.op in NUMBERS:
                whole = {name: self.literals[name] for name in step.inputs[1:] if name and name in self.literals}
                plain = {name: value for name, value in whole.items() if not value.is_floating_point() or _reads_factors(step)}
                seen |= {name: value.tolist() for name, value in plain.items() if value.ndim == 1}
            super()._run(step, seen)
            values.update({name: seen[name] for name in step.outputs if name})


def _reads_factors(step: Compute) -> bool:
    """Whether its further inputs are plain numbers also where they have fractions."""
    return step.attributes.op == "Resize"


def _from_shapes(twin: Twin) -> list[str]:
    """Computed tensors that depend on nothing but constants and the shapes of others."""
    known, found = set(twin.plan.constants), []
    for step in twin.plan.steps:
        if not isinstance(step, Compute):
            continue
        if step.attributes.op in ("Shape", "Size") or all(name in known for name in step.inputs if name):
            made = [name for name in step.outputs if name]
            known.update(made)
            found += made
    return found


class _Positional(nn.Module):
    """A twin with its inputs one by one, in the file's order, and likewise its outputs."""

    def __init__(self, twin: Twin) -> None:
        super().__init__()
        self.twin = twin

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        found = self.twin(dict(zip(self.twin.plan.inputs, values, strict=True)))
        return tuple(found[name] for name in self.twin.plan.outputs)


def _positions(twin: Twin, feeds: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(np.array(feeds[name])) for name in twin.plan.inputs)


def _program(twin: _Fixed, feeds: Mapping[str, Any]) -> ExportedProgram:
    """With an open batch axis where the graph's shapes allow one, else for as many samples as are fed."""
    example = _positions(twin, feeds)
    named = dict(zip(twin.plan.inputs, example, strict=True))
    if all(value.ndim and len(value) >= 2 for value in example):
        with suppress(ModelError, RuntimeError):  # torch's own, of a graph that takes no other number than it is fed
            if not twin.settle(named, batch=False):
                return _export(_Positional(twin), example, (tuple(BATCH for _ in example),))
    twin.settle(named, batch=True)
    return _export(_Positional(twin), example, None)


def _export(module: nn.Module, example: tuple[Tensor, ...], shapes: Any) -> ExportedProgram:
    try:
        with no_output(), torch.no_grad():
            return torch.export.export(module, example, dynamic_shapes=shapes)
    except Exception as error:  # torch raises a dozen kinds
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"The torch twin cannot be exported: {said[:300]}", "Use another runtime for this model.") from error


def _is_open(program: ExportedProgram) -> bool:
    """Whether a program takes any number of samples."""
    first = next(node for node in program.graph.nodes if node.name == program.graph_signature.user_inputs[0])
    return not isinstance(first.meta["val"].shape[0], int)


def as_linear(module: fx.GraphModule) -> int:
    """Turns products with a constant matrix, and sums with a constant row behind them, into linear layers; returns how many.

    The weights are stored transposed, as linear layers have them, where PT2E looks for them.
    """
    aten, graph = torch.ops.aten, module.graph
    found = 0
    for node in list(graph.nodes):
        if node.target not in (aten.matmul.default, aten.mm.default) or not _is_constant(module, node.args[1], 2):
            continue
        weight = _constant(module, node.args[1])
        name = f"_linear_weight_{found}"
        setattr(module, name, nn.Parameter(weight.t().contiguous(), requires_grad=False))
        total, bias = _bias(module, node, weight.shape[1])
        with graph.inserting_before(total):
            made = graph.get_attr(name)
            args = (node.args[0], made) if bias is None else (node.args[0], made, bias)
            linear = graph.call_function(aten.linear.default, args)
        linear.meta = dict(total.meta)
        made.meta = {"val": weight.t()}
        total.replace_all_uses_with(linear)
        graph.erase_node(total)
        if total is not node:
            graph.erase_node(node)
        found += 1
    graph.eliminate_dead_code()
    module.recompile()
    return found


def _name_sources(module: fx.GraphModule) -> None:
    """Says what the operators come from. torchao's quantizer finds them by the torch.nn classes, which a twin is not made of."""
    aten = torch.ops.aten
    classes = {aten.conv2d.default: nn.Conv2d, aten.linear.default: nn.Linear, aten.relu.default: nn.ReLU, aten.add.Tensor: operator.add}
    for node in module.graph.nodes:
        if node.target in classes:
            node.meta["source_fn_stack"] = [(node.name, classes[node.target])]


def _bias(module: fx.GraphModule, product: fx.Node, size: int) -> tuple[fx.Node, Any]:
    """The sum right behind a product and its constant row; the product and None where there is no such sum."""
    users = list(product.users)
    if len(users) == 1 and users[0].target == torch.ops.aten.add.Tensor and not users[0].kwargs:
        other = users[0].args[1] if users[0].args[0] is product else users[0].args[0]
        if _is_constant(module, other, 1) and len(_constant(module, other)) == size:
            # It may stand between the two: the linear layer goes where the sum was.
            return users[0], other
    return product, None


def _is_constant(module: fx.GraphModule, node: Any, axes: int) -> bool:
    return _source(node) is not None and _constant(module, node).ndim == axes


def _source(node: Any) -> tuple[str, bool] | None:
    """The attribute that a node reads, and whether it turns it around."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "get_attr":
        return str(node.target), False
    turned = node.target in (torch.ops.aten.t.default, torch.ops.aten.numpy_T.default)
    if turned and isinstance(node.args[0], fx.Node) and node.args[0].op == "get_attr":
        return str(node.args[0].target), True
    return None


def _constant(module: fx.GraphModule, node: Any) -> Tensor:
    source = _source(node)
    assert source is not None
    value: Any = module
    for part in source[0].split("."):
        value = getattr(value, part)
    found: Tensor = value.detach()
    return found.t() if source[1] else found


def _save(program: ExportedProgram, twin: Twin, out: Path) -> Path:
    """Without what the file's readers need not know: where the code lies that made it, and the samples that it was traced with."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    if program.example_inputs is not None:
        program.example_inputs = tuple(torch.zeros_like(value) for value in program.example_inputs[0]), {}
    names = {"inputs": list(twin.plan.inputs), "outputs": list(twin.plan.outputs)}
    with no_output():
        torch.export.save(program, out, extra_files={NAMES: json.dumps(names)})
    return out
