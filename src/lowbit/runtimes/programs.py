"""Exported PyTorch programs (.pt2): read without running what is in them, and described like any other model.

A program is an archive with a graph, tensors, and here also the names that its inputs and outputs had before: torch allows no dots and
the like in them.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.errors import ModelError, RunError
from lowbit.frontends.bring import load_program
from lowbit.quiet import no_output
from lowbit.types import Dim, Model, TensorInfo

if TYPE_CHECKING:
    from torch.export import ExportedProgram

NAMES = "lowbit.json"
"""An extra file of a program, with the names of its inputs and outputs."""

QUANTIZED = "quantized_decomposed"
"""The namespace of PT2E's operators. torchao has what makes integer kernels of them."""


def read_program(path: Path) -> ExportedProgram:
    """A program from its file. Pickled objects in it are refused.

    Raises:
        RunError: no program, or one that is quantized where torchao is missing.
    """
    try:
        if QUANTIZED in _inside(path, "models/model.json"):  # names every operator
            _integer_kernels(path)
        with no_output():
            return load_program(path)
    except ModelError as error:
        raise RunError(error.message, error.hint or "") from error


def describe_program(path: Path) -> Model:
    """What `load_model` says of an ONNX file, of a program.

    Raises:
        RunError: as `read_program`.
    """
    program = read_program(path)
    inputs, outputs = tensor_infos(program, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    weights = sum(value.numel() for value in program.state_dict.values())
    return Model(path, digest, inputs, outputs, weights, path.stat().st_size, opset=0)


def tensor_infos(program: ExportedProgram, path: Path) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Inputs and outputs, by the names of the model that the program was made from where the file tells them."""
    signature, names = program.graph_signature, _names(path)
    nodes = {node.name: node for node in program.graph.nodes}
    found = []
    for side, sources in (("inputs", signature.user_inputs), ("outputs", signature.user_outputs)):
        called = names.get(side) or [str(source) for source in sources]
        values = [nodes[str(source)].meta["val"] for source in sources]
        found.append(
            tuple(TensorInfo(name, _dims(value), str(value.dtype).split(".")[-1]) for name, value in zip(called, values, strict=True))
        )
    return found[0], found[1]


def _dims(value: Any) -> tuple[Dim, ...]:
    return tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)


def _names(path: Path) -> dict[str, list[str]]:
    """Names of inputs and outputs, for a program that was made here; empty for any other."""
    text = _inside(path, f"extra/{NAMES}")
    found: dict[str, list[str]] = json.loads(text) if text else {}
    return found


def _inside(path: Path, ending: str) -> str:
    """Text of a file in the archive; empty where there is none, or no archive."""
    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        entry = next((name for name in archive.namelist() if name.endswith(ending)), None)
        return archive.read(entry).decode() if entry else ""


def _integer_kernels(path: Path) -> None:
    """Registers PT2E's operators, and the passes that turn them into integer kernels, by importing torchao."""
    if importlib.util.find_spec("torchao") is None:
        raise RunError(f"'{path.name}' is quantized by PT2E; torchao, which runs it, is not installed.", "pip install 'lowbit[torch]'")
    with no_output():  # it prints about kernels for accelerators that are not there
        importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
