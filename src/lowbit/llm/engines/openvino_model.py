"""What both of OpenVINO's ways to answer need: its library, its properties for a tuning, the facts of an artifact, checks of tokens."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lowbit.errors import RunError
from lowbit.llm.engines.base import EngineTuning, KvPrecision
from lowbit.quiet import no_telemetry
from lowbit.types import Array

CACHES: dict[KvPrecision, str] = {"f32": "f32", "bf16": "bf16", "f16": "f16", "int8": "u8", "int4": "u4"}
"""Our word for the cache's precision -> OpenVINO's."""

CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
"""Arithmetic -> the word by which a device says that it has it."""


def library(name: str = "openvino") -> ModuleType:
    """The package, with telemetry off.

    Raises:
        RunError: it is not installed.
    """
    no_telemetry()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RunError(f"The package {name.replace('_', '-')} is not installed.", "pip install 'lowbit[openvino-genai]'") from error


def properties(openvino: ModuleType, tuning: EngineTuning) -> dict[str, Any]:
    """OpenVINO's properties for a tuning; the arithmetic is always pinned (left alone, the CPU plugin takes bfloat16).

    Raises:
        RunError: arithmetic or a cache that would silently be another.
    """
    if CAPABILITIES[tuning.precision] not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RunError(f"openvino has no {tuning.precision} arithmetic on this CPU.", "Use f32.")
    if tuning.kv == "bf16" and tuning.precision != "bf16":
        raise RunError(f"openvino has no cache of bf16 beside {tuning.precision} arithmetic.", "Use a cache of f16, or bf16 for both.")
    found: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": tuning.precision,
        "KV_CACHE_PRECISION": CACHES[tuning.kv],
    }
    if threads := max(tuning.threads, tuning.prompt_threads):
        found["INFERENCE_NUM_THREADS"] = threads
    if tuning.activations is not None:
        found["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = tuning.activations
    return found


def check_artifact(artifact: Path) -> None:
    """
    Raises:
        RunError: no such file, not an .xml, or its weights are missing.
    """
    if artifact.suffix != ".xml":
        raise RunError(f"'{artifact.name}' is not an OpenVINO model.", "Its main file is called openvino_model.xml.")
    for path in (artifact, artifact.with_suffix(".bin")):
        if not path.is_file():
            raise RunError(f"'{path.name}' is missing in '{path.parent.name}'.", "Write the artifact again.")


def read(openvino: ModuleType, artifact: Path) -> Any:
    """The model, its weights mapped.

    Raises:
        RunError: it cannot be read, or is not a decoder with a cache.
    """
    check_artifact(artifact)
    try:
        model = openvino.Core().read_model(str(artifact))
    except Exception as error:  # pybind turns the library's errors into RuntimeError, TypeError or ValueError
        raise RunError(f"openvino cannot load '{artifact.name}': {last_line(error)}", "Write the artifact again.") from error
    names = {name for port in model.inputs for name in port.get_names()}
    if not {"input_ids", "attention_mask", "beam_idx"} <= names or not model.get_sinks():
        raise RunError(f"'{artifact.name}' is not a decoder with a cache of its own.", "Write it with lowbit, or export it with its past.")
    return model


def longest(model: Any, artifact: Path, context: int, many: bool = False) -> int:
    """Tokens that prompt and answer may have: as asked for, at most what the model was made for (or can do with `many` at once)."""
    positions: object = None
    noted = ["lowbit", "positions_of_many" if many else "positions"]
    if model.has_rt_info(noted):
        positions = model.get_rt_info(noted).value
    elif (config := artifact.parent / "config.json").is_file():  # written by someone else
        positions = json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings")
    return context if positions is None else min(context, int(str(positions)))


def checked(tokens: Sequence[int], vocabulary: int) -> Array:
    """int64 [T].

    Raises:
        RunError: none, or one that is not in the vocabulary.
    """
    array = np.asarray(tokens, np.int64).reshape(-1)
    if array.size == 0:
        raise RunError("There is no token to compute with.", "Give one at least, e.g. the token that starts a text.")
    if array.min() < 0 or array.max() >= vocabulary:
        wrong = int(array.min() if array.min() < 0 else array.max())
        raise RunError(f"Token {wrong} is not in the vocabulary of {vocabulary:,}.")
    return array


def last_line(error: Exception) -> str:
    """What the library says in the end; before it come places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
