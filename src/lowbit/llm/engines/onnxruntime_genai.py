"""onnxruntime-genai on the CPU: ONNX decoders with a genai_config.json.

Answers come from its generator. Texts are scored, and several prompts answered at once, by onnxruntime on the same file:
see lowbit.llm.engines.genai_run.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import RunError
from lowbit.llm.engines.base import ArtifactFormat, EngineTuning
from lowbit.llm.engines.genai_batch import Batch
from lowbit.llm.engines.genai_files import WHOLE_ROW, Files, read_files
from lowbit.llm.engines.genai_run import Decoder
from lowbit.llm.engines.one_at_a_time import checked
from lowbit.plugins import installed_version
from lowbit.quiet import no_telemetry
from lowbit.runtimes.hardware import Hardware
from lowbit.types import Array

DEFAULT = EngineTuning()
PACKAGE = "onnxruntime_genai"


class OnnxRuntimeGenai:
    name = "onnxruntime-genai"
    opens: ArtifactFormat = "onnx"
    extra = "onnxruntime-genai"

    def version(self) -> str | None:
        return None if installed_version("onnxruntime") is None else installed_version(PACKAGE)

    def tunings(self, hardware: Hardware) -> tuple[EngineTuning, ...]:
        """Activations: rounded by blocks of weights (the engine's own choice), by tokens (8-bit weights: several times faster with
        long prompts), not at all. An artifact without such a graph refuses the tuning."""
        found = [EngineTuning(kv="f32"), EngineTuning(kv="f32", activations=WHOLE_ROW)]
        if hardware.cores > 2:
            found.append(EngineTuning(threads=max(1, hardware.cores // 2), kv="f32"))
        return tuple(found)

    def open(self, artifact: Path, tuning: EngineTuning = DEFAULT, *, context: int = 2048) -> Session:
        return Session(read_files(artifact, tuning, context), tuning.batch)

    def batch(self, artifact: Path, tuning: EngineTuning = DEFAULT, *, context: int = 2048, slots: int = 4) -> Batch:
        return Batch(Decoder(read_files(artifact, tuning, context), slots), slots)


class Session:
    """One sequence. See lowbit.llm.engines.base.LanguageSession.

    The weights are in memory once: the generator gives them back when a text is scored, and the other way round.
    """

    def __init__(self, files: Files, piece: int = 0) -> None:
        self._files, self._piece = files, piece
        self.vocabulary, self.context, self.precision = files.vocabulary, files.context, "f32"
        self._generator: _Generator | None = None
        self._scorer: Decoder | None = None
        self._length = 0  # tokens in the generator's cache
        self._closed = False
        self._generator = _Generator(files)

    def logits(self, tokens: Sequence[int]) -> Array:
        prompt = self._checked(tokens)
        self._length = 0
        if self._scorer is None:
            self._generator = None
            self._scorer = Decoder(self._files)
        return self._scorer.score(prompt)

    def start(self, tokens: Sequence[int]) -> Array:
        prompt = self._checked(tokens)
        if self._generator is None:
            self._scorer = None
            self._generator = _Generator(self._files)
        self._generator.forget()
        piece = self._piece or len(prompt)
        for at in range(0, len(prompt), piece):
            found = self._generator.add(prompt[at : at + piece])
        self._length = len(prompt)
        return found

    def step(self, token: int) -> Array:
        self._need_open()
        if self._generator is None or not self._length:
            raise RunError("Nothing was started: a step follows a prompt.")
        if self._length >= self.context:
            raise RunError(f"The context of {self.context} tokens is full.")
        found = self._generator.add(checked([token], self.vocabulary, self.context, 0))
        self._length += 1
        return found

    def close(self) -> None:
        self._generator = self._scorer = None
        self._closed = True

    def _checked(self, tokens: Sequence[int]) -> list[int]:
        self._need_open()
        return checked(tokens, self.vocabulary, self.context, 0)

    def _need_open(self) -> None:
        if self._closed:
            raise RunError("This session of onnxruntime-genai is closed.")


class _Generator:
    """onnxruntime-genai's model and one sequence of it."""

    def __init__(self, files: Files) -> None:
        no_telemetry()
        try:
            genai: Any = importlib.import_module(PACKAGE)
        except ImportError as error:
            raise RunError("onnxruntime-genai is not installed.", "pip install 'lowbit[onnxruntime-genai]'") from error
        try:
            config = genai.Config(str(files.graph.parent))
            options = {"intra_op_num_threads": files.threads, "log_severity_level": 4}
            config.overlay(json.dumps({"model": {"decoder": {"filename": files.graph.name, "session_options": options}}}))
            self._model: Any = genai.Model(config)
            parameters = genai.GeneratorParams(self._model)
            parameters.set_search_options(max_length=files.context)
            self._generator: Any = genai.Generator(self._model, parameters)
        except Exception as error:  # the library's own kinds
            raise RunError(f"onnxruntime-genai cannot load '{files.graph.name}': {str(error).splitlines()[0]}") from error

    def forget(self) -> None:
        if self._generator.token_count():
            self._generator.rewind_to(0)

    def add(self, tokens: Sequence[int]) -> Array:
        """Reads tokens; logits [V] of what follows."""
        try:
            self._generator.append_tokens(np.asarray(tokens, np.int32))
            return np.array(self._generator.get_logits(), np.float32)[0, -1]
        except RuntimeError as error:
            raise RunError(f"onnxruntime-genai failed: {str(error).splitlines()[0]}") from error
