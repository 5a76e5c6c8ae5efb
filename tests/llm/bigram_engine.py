"""An engine whose models are tables of which token follows which: real language models, every figure of which is known by hand.

An artifact is JSON: `probabilities` [V][V], and how it behaves: `start_s`, `step_s` (seconds per token of context and token), `fail`.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import RunError
from lowbit.llm.candidate import EngineCandidate
from lowbit.llm.engines.base import Emitted, EngineTuning, Sampling
from lowbit.runtimes.hardware import Hardware

ENGINE = "bigram_engine:BigramEngine"
PLAIN = EngineTuning()


def write(path: Path, probabilities: Any, **behaviour: Any) -> EngineCandidate:
    """An artifact, as a candidate whose id is its file's name."""
    path.write_text(json.dumps({"probabilities": np.asarray(probabilities).tolist(), **behaviour}))
    return EngineCandidate(path.stem, ENGINE, path)


def table(vocabulary: int, seed: int = 0, sharpness: float = 1.0) -> np.ndarray:
    """Probabilities [V, V] of a random language."""
    logits = np.random.default_rng(seed).normal(size=(vocabulary, vocabulary)) * sharpness
    found = np.exp(logits)
    return found / found.sum(axis=1, keepdims=True)


def draw(probabilities: np.ndarray, length: int, seed: int = 0) -> np.ndarray:
    """A text of that language, int32 [T]."""
    random = np.random.default_rng(seed)
    tokens = [0]
    while len(tokens) < length:
        tokens.append(int(random.choice(len(probabilities), p=probabilities[tokens[-1]])))
    return np.array(tokens, np.int32)


class BigramSession:
    precision = "f32"

    def __init__(self, probabilities: Any, context: int = 64, told: dict[str, Any] | None = None, factor: float = 1.0) -> None:
        with np.errstate(divide="ignore"):
            self._logits = np.log(np.asarray(probabilities)).astype(np.float32) + 3.0  # any shift is the same model
        self.vocabulary, self.context = self._logits.shape[1], context
        self._told, self._factor = told or {}, factor
        self._length = 0

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        self._check(tokens)
        self._fail("logits")
        return self._logits[np.asarray(tokens)].copy()

    def start(self, tokens: Sequence[int]) -> np.ndarray:
        self._check(tokens)
        self._fail("start")
        time.sleep(self._told.get("start_s", 0.0) * len(tokens) * self._factor)
        self._length = len(tokens)
        return self._logits[tokens[-1]].copy()

    def step(self, token: int) -> np.ndarray:
        self._length += 1
        if self._length > self.context:
            raise RunError("The context is full.")
        time.sleep(self._told.get("step_s", 0.0) * self._factor)
        return self._logits[token].copy()

    def close(self) -> None:
        pass

    def _check(self, tokens: Sequence[int]) -> None:
        if not len(tokens) or len(tokens) > self.context or max(tokens) >= self.vocabulary:
            raise RunError(f"{len(tokens)} tokens do not fit.")

    def _fail(self, where: str) -> None:
        if self._told.get("fail") == f"crash in {where}":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self._told.get("fail") == f"hang in {where}":
            time.sleep(600)


class BigramBatch:
    """One prompt is read a step, while all others that have begun get a token."""

    def __init__(self, told: dict[str, Any], context: int, slots: int) -> None:
        self._next = np.asarray(told["probabilities"]).argmax(axis=1)
        self.vocabulary, self.context, self.slots = len(self._next), context, slots
        self._told = told
        self._waiting: dict[int, tuple[list[int], int]] = {}
        self._running: dict[int, list[int]] = {}  # request -> its last token, tokens to come, length

    def add(self, request: int, tokens: Sequence[int], sampling: Sampling) -> None:
        if len(tokens) + sampling.tokens > self.context:
            raise RunError("No room.")
        self._waiting[request] = (list(tokens), sampling.tokens)

    def step(self) -> list[Emitted]:
        found = []
        if self._running:
            time.sleep(self._told.get("step_s", 0.0))
        for request, (last, left, _) in list(self._running.items()):
            found.append(self._emit(request, int(self._next[last]), left - 1))
        if self._waiting and len(self._running) < self.slots:
            request, (tokens, left) = next(iter(self._waiting.items()))
            del self._waiting[request]
            time.sleep(self._told.get("start_s", 0.0) * len(tokens))
            found.append(self._emit(request, int(self._next[tokens[-1]]), left - 1))
        return found

    def _emit(self, request: int, token: int, left: int) -> Emitted:
        self._running[request] = [token, left, 0]
        if left == 0:
            del self._running[request]
        return Emitted(request, token, None, "length" if left == 0 else None)

    def drop(self, request: int) -> None:
        self._running.pop(request, None)
        self._waiting.pop(request, None)

    def close(self) -> None:
        pass


class BigramEngine:
    name = "bigram"
    opens = "safetensors"
    extra = "none"

    def version(self) -> str | None:
        return "1"

    def tunings(self, hardware: Hardware) -> tuple[EngineTuning, ...]:  # noqa: ARG002
        return (PLAIN, EngineTuning(kv="int8"))

    def open(self, artifact: Path, tuning: EngineTuning = PLAIN, *, context: int = 2048) -> BigramSession:
        told = self._read(artifact)
        factor = told.get("threads_factor", {}).get(str(tuning.threads), 1.0) * told.get("kv_factor", {}).get(tuning.kv, 1.0)
        return BigramSession(told["probabilities"], context, told, factor)

    def batch(self, artifact: Path, tuning: EngineTuning = PLAIN, *, context: int = 2048, slots: int = 4) -> BigramBatch:  # noqa: ARG002
        return BigramBatch(self._read(artifact), context, slots)

    def _read(self, artifact: Path) -> dict[str, Any]:
        if not artifact.is_file():
            raise RunError(f"{artifact.name} is missing.")
        told = json.loads(artifact.read_text())
        if told.get("ballast_bytes"):
            self.ballast = np.ones(told["ballast_bytes"], np.uint8)
        return told
