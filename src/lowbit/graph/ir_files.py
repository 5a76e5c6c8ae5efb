"""Read and write ONNX files as onnx-ir models: the one place where protobuf meets the graph code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST_FILE = 1 << 30
"""Weights beyond this many bytes go into a file beside the model: protobuf stops at 2 GiB."""


def read(path: Path) -> ir.Model:
    """Opens a model; external weights stay on disk until they are asked for."""
    import onnx_ir

    return onnx_ir.load(path)


def write(model: ir.Model, path: Path) -> None:
    """Writes a model, with its weights in `NAME.data` beside it where they are too large for one file."""
    import onnx_ir

    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    onnx_ir.save(model, path, external_data=f"{path.name}.data" if size > LARGEST_FILE else None)
