"""A PyTorch module or exported program as an ONNX file, with a dynamic batch axis (and sequence axis) where it allows one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.errors import ModelError
from lowbit.frontends.trouble import about_shapes, explain
from lowbit.quiet import no_output

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

OPSET = 18
"""The version that torch's translations are written in; newer ones are converted to, older ones from it."""

MAX_BATCH = 4096
MAX_BYTES = 2_000_000_000
"""What one protobuf file can hold."""

Inputs = Mapping[str, "Tensor"]


@contextmanager
def inference(module: nn.Module) -> Iterator[None]:
    """The module in eval mode, without gradients; afterwards every part is in the mode that it was in."""
    import torch

    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def export_module(module: nn.Module, inputs: Inputs, path: Path, outputs: Sequence[str], *, max_tokens: int | None = None) -> None:
    """Writes a module to an ONNX file. The module is not changed.

    Axis 0 of every input becomes `batch`; axis 1 of two-dimensional integer inputs becomes `tokens`. Where the module fixes
    one of them, it is fixed in the file, too.

    Args:
        module: On the CPU.
        inputs: Input name -> example, in the order of `forward`'s arguments; two or more samples.
        path: The file to write.
        outputs: Names of the outputs.
        max_tokens: Longest sequence that the module takes.

    Raises:
        ModelError: the module cannot be exported; says which operator or line, and what to do.
    """
    first: Exception | None = None
    for shapes in _axes(inputs, max_tokens):
        try:
            with inference(module), no_output(logging.CRITICAL):
                program = _to_onnx(module, tuple(inputs.values()), list(inputs), outputs, shapes)
        except Exception as error:  # torch raises a dozen kinds
            first = first or error
            if not about_shapes(error):
                break
        else:
            _save(program, path)
            return
    assert first is not None
    raise explain(first, type(module).__name__, module, tuple(inputs.values())) from first


def export_program(program: ExportedProgram, path: Path, outputs: Sequence[str]) -> None:
    """Writes a program of `torch.export` to an ONNX file; its axes are as dynamic as they were exported.

    Raises:
        ModelError: it holds an operator that ONNX does not have.
    """
    import torch

    try:
        with no_output(logging.CRITICAL):
            converted = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, output_names=list(outputs))
    except Exception as error:
        raise explain(error, path.stem, program, ()) from error
    _save(converted, path)


def _to_onnx(module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], outputs: Sequence[str], shapes: Any) -> Any:
    import torch

    return torch.onnx.export(
        module,
        inputs,
        input_names=names,
        output_names=list(outputs),
        dynamic_shapes=shapes,
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _axes(inputs: Inputs, max_tokens: int | None) -> Iterator[Any]:
    """Dynamic axes to try, the most dynamic first."""
    from torch.export import Dim

    batch = Dim("batch", min=1, max=MAX_BATCH)
    tokens = Dim("tokens", min=2, max=max_tokens) if max_tokens else Dim("tokens", min=2)
    sequences = {name for name, value in inputs.items() if value.ndim == 2 and not value.is_floating_point()}
    if sequences:
        yield tuple({0: batch, 1: tokens} if name in sequences else {0: batch} for name in inputs)
    if all(value.ndim for value in inputs.values()):
        yield tuple({0: batch} for _ in inputs)
    yield None


def _save(program: Any, path: Path) -> None:
    """Writes the graph alone: the exporter's notes hold source lines and this machine's paths."""
    import onnx

    proto = program.model_proto
    if proto.ByteSize() > MAX_BYTES:
        raise ModelError(f"The exported model has {proto.ByteSize() / 1e9:.1f} GB; up to {MAX_BYTES / 1e9:.0f} GB can be optimized.")
    proto.ClearField("metadata_props")
    _clear(proto.graph)
    for function in proto.functions:
        for part in (function, *function.node, *function.value_info):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
    onnx.save_model(proto, path)


def _clear(graph: Any) -> None:
    """Takes the notes off a graph and those inside its nodes (branches, loops)."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _clear(inner)
