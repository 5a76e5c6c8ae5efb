"""torch on the CPU: the reference in an engine's clothes, for Hugging Face folders, quantized tables and compressed-tensors folders.

Weights are dequantized when they are loaded, and a table's 8-bit activations emulated: exact, not fast. Where they would take more than
half of the free memory, a session scores texts block by block: one block is read, computed with and let go, and the numbers are the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit.errors import ModelError, RunError
from lowbit.llm.decoder import Weights
from lowbit.llm.engines.base import ArtifactFormat, EngineTuning
from lowbit.llm.engines.one_at_a_time import OneAtATime, checked
from lowbit.llm.folder import SourceFolder
from lowbit.llm.table import TABLE, Table
from lowbit.plugins import installed_version
from lowbit.runtimes.hardware import Hardware, probe
from lowbit.types import Array

if TYPE_CHECKING:
    from lowbit.llm.engines.torch_model import Cache, Model

DEFAULT = EngineTuning()
SHARE = 0.5
"""Of the free memory that weights may take and be kept; what is computed needs some, too, and so may others."""


class TorchCpu:
    name = "torch"
    opens: ArtifactFormat = "safetensors"
    extra = "torch"

    def version(self) -> str | None:
        return installed_version("torch")

    def tunings(self, hardware: Hardware) -> tuple[EngineTuning, ...]:
        found = [EngineTuning(kv="f32")]
        if hardware.bf16:
            found.append(EngineTuning(kv="bf16", precision="bf16"))
        return tuple(found)

    def open(self, artifact: Path, tuning: EngineTuning = DEFAULT, *, context: int = 2048) -> Session:
        return Session(_load(artifact, tuning), tuning, context)

    def batch(self, artifact: Path, tuning: EngineTuning = DEFAULT, *, context: int = 2048, slots: int = 4) -> OneAtATime:
        """Answers in turn, token by token: the weights are loaded once."""
        model = _load(artifact, tuning)
        _hold(model)
        first, *others = (Session(model, tuning, context) for _ in range(max(1, slots)))
        return OneAtATime(first, *others)


class Session:
    """One sequence. See lowbit.llm.engines.base.LanguageSession.

    Texts can be scored whatever the memory. An answer reads all weights for each token, so that they have to fit: `start` says where not.
    """

    def __init__(self, model: Model, tuning: EngineTuning, context: int) -> None:
        decoder = model.decoder
        self.vocabulary, self.context = decoder.vocabulary, max(1, min(context, decoder.positions))
        self.precision: str = tuning.precision
        self._model: Model | None = model
        self._piece = tuning.batch
        self._cache: Cache | None = None

    def logits(self, tokens: Sequence[int]) -> Array:
        return self._begin(tokens, every=True)

    def start(self, tokens: Sequence[int]) -> Array:
        _hold(self._open())
        return np.asarray(self._begin(tokens, every=False)[0])

    def step(self, token: int) -> Array:
        model = self._open()
        if self._cache is None:
            raise RunError("Nothing was started: a step follows a prompt.")
        if self._cache.length >= self.context:
            raise RunError(f"The context of {self.context} tokens is full.")
        return np.asarray(model.extend(np.asarray(checked([token], self.vocabulary, self.context, 0)), self._cache)[0])

    def close(self) -> None:
        self._model = self._cache = None

    def _begin(self, tokens: Sequence[int], every: bool) -> Array:
        from lowbit.llm.engines.torch_model import Cache

        model = self._open()
        text = np.asarray(checked(tokens, self.vocabulary, self.context, 0))
        self._cache = None
        cache = Cache(model.decoder, len(text) if every else self.context, model.dtype, passing=every)
        found = model.extend(text, cache, self._piece, every=every)
        self._cache = None if every else cache
        return found

    def _open(self) -> Model:
        if self._model is None:
            raise RunError("This session of torch is closed.")
        return self._model


def read_weights(artifact: Path) -> Weights:
    """The weights that an artifact's main file belongs to.

    Args:
        artifact: model.safetensors or its index, or table.json.

    Raises:
        RunError: it is missing or none of these.
    """
    if not artifact.is_file():
        raise RunError(f"There is no file '{artifact}'.")
    try:
        if artifact.name == TABLE:
            return Table.open(artifact.parent)
        if artifact.suffix != ".safetensors" and not artifact.name.endswith(".safetensors.index.json"):
            raise RunError(f"'{artifact.name}' is no safetensors file; this engine opens model.safetensors, its index, or {TABLE}.")
        if "quantization_config" in json.loads((artifact.parent / "config.json").read_text(encoding="utf-8")):
            from lowbit.llm.writers.compressed_read import CompressedFolder

            return CompressedFolder.open(artifact.parent)
        return SourceFolder.open(artifact.parent)
    except RunError:
        raise
    except ModelError as error:
        raise RunError(error.message, error.hint) from error
    except (OSError, ValueError) as error:
        raise RunError(f"'{artifact.parent}' cannot be read: {error}") from error


def _load(artifact: Path, tuning: EngineTuning) -> Model:
    """
    Raises:
        RunError: the artifact or the tuning cannot be used, or torch is not installed.
    """
    if tuning.precision not in ("f32", "bf16"):
        raise RunError(f"torch computes in f32 or bf16 here; found precision={tuning.precision}.")
    if tuning.kv in ("int8", "int4"):
        raise RunError(f"torch's cache has the precision of its arithmetic; found kv={tuning.kv}.", "Leave `kv` at f16.")
    if tuning.activations:
        raise RunError(
            f"torch rounds activations where a table's recipe says so; found activations={tuning.activations}.", "Leave it to the engine."
        )
    try:
        import torch

        from lowbit.llm.engines.torch_model import Model
        from lowbit.llm.forward import weights_bytes
    except ImportError as error:
        raise RunError("torch is not installed.", "pip install 'lowbit[torch]'") from error
    torch.set_num_threads(tuning.threads or probe().cores)
    dtype = torch.bfloat16 if tuning.precision == "bf16" else torch.float32
    try:
        weights = read_weights(artifact)
        return Model(weights, dtype, keep=weights_bytes(weights.decoder, dtype) <= SHARE * free_bytes())
    except RunError:
        raise
    except ModelError as error:
        raise RunError(error.message, error.hint) from error


def _hold(model: Model) -> None:
    """Has all weights in memory.

    Raises:
        RunError: they do not fit.
    """
    from lowbit.llm.forward import weights_bytes

    if model.kept:
        return
    needed, free = weights_bytes(model.decoder, model.dtype), free_bytes()
    if needed > free:
        bits = 8 * model.dtype.itemsize
        raise RunError(
            f"To answer, torch needs all weights in {bits} bit, {needed / 1e9:,.1f} GB; {free / 1e9:,.1f} GB of memory is free.",
            "It scores texts in less, block by block; to answer, use another engine, or a machine with more memory.",
        )
    model.keep()


def free_bytes() -> int:
    """Memory that may be taken here without anything being swapped out, at most what this process's container allows."""
    import psutil

    return int(min(psutil.virtual_memory().available, probe().memory_bytes))
