"""Which writer makes which format, and what an engine opens: resolved late, so that nothing heavy is imported to list them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowbit.errors import unknown
from lowbit.llm.decoder import Weights
from lowbit.llm.engines.base import ArtifactFormat

WRITERS: dict[ArtifactFormat, str] = {
    "gguf": "lowbit.llm.writers.gguf_file",
    "openvino": "lowbit.llm.writers.openvino_ir",
    "onnx": "lowbit.llm.writers.genai_onnx",
    "safetensors": "lowbit.llm.writers.compressed_tensors_folder",
}
"""Format of an artifact -> the module that writes it."""


def write(weights: Weights, form: str, folder: Path, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Writes weights in a format; returns the main file.

    Raises:
        UsageError: the format is not known, or cannot hold these grids.
    """
    if form not in WRITERS:
        raise unknown("format", form, WRITERS)
    module: Any = importlib.import_module(WRITERS[form])
    written: Path = module.write(weights, folder, progress=progress)
    return written
