"""What lies in an artifact for onnxruntime-genai, and which of its graphs a tuning asks for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.errors import RunError
from lowbit.llm.engines.base import EngineTuning
from lowbit.runtimes.hardware import probe

CONFIG = "genai_config.json"
WHOLE_ROW = 1024
"""Groups of activations from this size on mean: one scale a token."""
LARGEST_BLOCK = 256  # of MatMulNBits


@dataclass(frozen=True)
class Files:
    """An artifact and how it is run.

    Attributes:
        graph: The ONNX file.
        vocabulary, context, layers, kv_heads, head_size: From genai_config.json; context: at most what was asked for.
        positions: Whether the graph has an input of positions.
        threads: Of the session.
    """

    graph: Path
    vocabulary: int
    context: int
    layers: int
    kv_heads: int
    head_size: int
    positions: bool
    threads: int


def read_files(artifact: Path, tuning: EngineTuning, context: int) -> Files:
    """
    Raises:
        RunError: a file is missing or damaged, or the tuning asks for what the engine does not have.
    """
    if not artifact.is_file():
        raise RunError(f"There is no file '{artifact}'.")
    if artifact.suffix != ".onnx":
        raise RunError(f"'{artifact.name}' is no ONNX file; this engine opens model.onnx with {CONFIG} beside it.")
    if tuning.kv not in ("f32", "f16"):
        raise RunError(
            f"The cache of this engine on a CPU is f32; found kv={tuning.kv}.", "Leave `kv` at f16 (it is then more exact) or ask for f32."
        )
    model = _model(artifact)
    decoder = model["decoder"]
    return Files(
        graph=_graph(artifact, tuning.activations),
        vocabulary=int(model["vocab_size"]),
        context=max(1, min(context, int(model["context_length"]))),
        layers=int(decoder["num_hidden_layers"]),
        kv_heads=int(decoder["num_key_value_heads"]),
        head_size=int(decoder["head_size"]),
        positions="position_ids" in decoder["inputs"],
        threads=tuning.threads or probe().cores,
    )


def _model(artifact: Path) -> dict[str, Any]:
    path = artifact.with_name(CONFIG)
    if not path.is_file():
        raise RunError(f"'{artifact.parent}' has no {CONFIG}; onnxruntime-genai needs it beside {artifact.name}.")
    try:
        model: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["model"]
        needed = ("vocab_size", "context_length")
        inside = ("num_hidden_layers", "num_key_value_heads", "head_size", "inputs")
        [int(model[key]) for key in needed], [model["decoder"][key] for key in inside]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"'{path}' cannot be read: {type(error).__name__} {error}.") from error
    return model


def _graph(artifact: Path, activations: int | None) -> Path:
    """The graph that rounds activations as asked: see lowbit.llm.writers.genai_onnx."""
    float_graph, token_graph = (artifact.with_name(f"{artifact.stem}.{kind}.onnx") for kind in ("float", "token"))
    if activations is None or (activations == 0 and not float_graph.is_file()):  # nothing is quantized: nothing is rounded
        return artifact
    if activations == 0:
        return float_graph
    if activations <= LARGEST_BLOCK and float_graph.is_file():
        return artifact
    if activations >= WHOLE_ROW and token_graph.is_file():
        return token_graph
    raise RunError(
        f"'{artifact.name}' has no way to round activations in groups of {activations}.",
        f"Leave `activations` to the engine, or 0: not rounded, or {WHOLE_ROW}: a scale a token, where {token_graph.name} is there.",
    )
