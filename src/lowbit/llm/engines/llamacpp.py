"""llama.cpp on the CPU, through llama-cpp-python: GGUF files, one sequence or several in one batch.

Layers in blocks (Q4_0, Q8_0, K-quants) read activations that llama.cpp rounds to 8 bit in blocks of 32 (of 256 for K-quants):
logits therefore differ from those of the same weights in floating point, by about as much as 8-bit activations cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lowbit.errors import RunError
from lowbit.llm.engines.base import ArtifactFormat, EngineTuning
from lowbit.llm.engines.llamacpp_batch import Batch
from lowbit.llm.engines.llamacpp_context import Context
from lowbit.plugins import installed_version
from lowbit.runtimes.hardware import Hardware
from lowbit.types import Array

DEFAULT = EngineTuning()


class LlamaCpp:
    name = "llamacpp"
    opens: ArtifactFormat = "gguf"
    extra = "llamacpp"

    def version(self) -> str | None:
        return installed_version("llama_cpp", "llama_cpp_python")

    def tunings(self, hardware: Hardware) -> tuple[EngineTuning, ...]:
        found = [EngineTuning(), EngineTuning(kv="int8"), EngineTuning(kv="int4")]
        if hardware.cores > 2:  # memory may be saturated by fewer; a prompt's products are not
            found.append(EngineTuning(threads=max(1, hardware.cores // 2)))
        return tuple(found)

    def open(self, artifact: Path, tuning: EngineTuning = DEFAULT, *, context: int = 2048) -> Session:
        return Session(Context(artifact, tuning, context))

    def batch(self, artifact: Path, tuning: EngineTuning = DEFAULT, *, context: int = 2048, slots: int = 4) -> Batch:
        return Batch(Context(artifact, tuning, context, slots), slots)


class Session:
    """One sequence. See lowbit.llm.engines.base.LanguageSession."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._length: int | None = None  # tokens in the cache; None: nothing was started
        self.vocabulary = context.vocabulary
        self.context = context.context
        self.precision = context.precision

    def logits(self, tokens: Sequence[int]) -> Array:
        array = self._begin(tokens)
        return np.concatenate(
            [self._decode(array[at : at + self._context.batch], at, every=True) for at in range(0, len(array), self._context.batch)]
        )

    def start(self, tokens: Sequence[int]) -> Array:
        array = self._begin(tokens)
        found = np.empty((0, self.vocabulary), np.float32)
        for at in range(0, len(array), self._context.batch):
            chunk = array[at : at + self._context.batch]
            found = self._decode(chunk, at, last=at + len(chunk) == len(array))
        self._length = len(array)
        return np.asarray(found[0])

    def step(self, token: int) -> Array:
        self._context.need_open()
        if self._length is None:
            raise RunError("Nothing was started: a step follows a prompt.")
        if self._length >= self.context:
            raise RunError(f"The context of {self.context} tokens is full.")
        found = self._decode(self._context.check([token]), self._length, last=True)
        self._length += 1
        return np.asarray(found[0])

    def close(self) -> None:
        self._context.close()

    def _begin(self, tokens: Sequence[int]) -> Array:
        array = self._context.check(tokens)
        if len(array) > self.context:
            raise RunError(f"{len(array)} tokens are more than the context of {self.context} holds.")
        self._context.forget(0)
        self._length = None
        return array

    def _decode(self, chunk: Array, at: int, *, every: bool = False, last: bool = False) -> Array:
        wanted = np.full(len(chunk), every)
        if last:
            wanted[-1] = True
        positions = np.arange(at, at + len(chunk), dtype=np.int32)
        return self._context.decode(chunk, positions, np.zeros(len(chunk), np.int32), wanted)
