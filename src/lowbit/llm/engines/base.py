"""What every engine for language models promises: open an artifact, score a text, prefill and decode. One file per engine fulfils it.

The suite in tests/conformance/test_engines.py is the other half of this contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from lowbit.runtimes.hardware import Hardware
from lowbit.types import Array

ArtifactFormat = Literal["gguf", "openvino", "onnx", "safetensors"]
"""What an artifact is. Its path is its main file: model.gguf; openvino_model.xml; model.onnx (genai_config.json beside it);
model.safetensors or model.safetensors.index.json (config.json beside it)."""

KvPrecision = Literal["f32", "bf16", "f16", "int8", "int4"]


@dataclass(frozen=True)
class EngineTuning:
    """How an engine is asked to run an artifact.

    Attributes:
        threads: Of one token's products; 0 means all cores.
        prompt_threads: Of a prompt's products where the engine tells them apart; 0 means all cores.
        kv: Precision of keys and values in the cache.
        activations: Group of inputs whose activations share a scale where the engine quantizes them as it runs; 0: not
            quantized, None: the engine's own choice.
        precision: Arithmetic of what is floating point.
        batch: Tokens of a prompt that are computed at once, where the engine lets that be chosen; 0: its own choice.
    """

    threads: int = 0
    prompt_threads: int = 0
    kv: KvPrecision = "f16"
    activations: int | None = None
    precision: Literal["f32", "bf16", "f16"] = "f32"
    batch: int = 0


@runtime_checkable
class LanguageSession(Protocol):
    """A loaded artifact. One sequence at a time, from one thread at a time.

    Attributes:
        vocabulary: Logits a token gets.
        context: Tokens that prompt and answer may have together.
        precision: Arithmetic really used for what is floating point.
    """

    vocabulary: int
    context: int
    precision: str

    def logits(self, tokens: Sequence[int]) -> Array:
        """Scores a text as a sequence of its own: float32 [T, V], row t the logits of what follows tokens 0..t.

        Raises:
            RunError: no token, one that is not in the vocabulary, or more than the context holds.
        """
        ...

    def start(self, tokens: Sequence[int]) -> Array:
        """Forgets what was, reads a prompt, and gives the logits of what follows: float32 [V].

        Raises:
            RunError: as `logits`.
        """
        ...

    def step(self, token: int) -> Array:
        """Adds one token to the sequence: float32 [V], the logits of what follows it.

        Raises:
            RunError: nothing was started, an unknown token, or the context is full.
        """
        ...

    def close(self) -> None:
        """Frees the artifact; closing twice is fine, a later call raises RunError."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are drawn.

    Attributes:
        tokens: Most that the answer may have.
        temperature: 0 takes the likeliest.
        top_p: Smallest set of likeliest tokens that holds this much probability; 1: all.
        top_k: 0: all.
        seed: Of the draws; None: another each time.
        eos: Tokens that end the answer, not part of it; empty where the client asked to ignore them.
    """

    tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    eos: tuple[int, ...] = ()


@dataclass(frozen=True)
class Emitted:
    """One more token of one answer.

    Attributes:
        request: Whose.
        token: None where the answer ended by an end token, which is no part of it.
        logprob: Natural logarithm of the token's probability before temperature and cuts; None where the engine does not tell.
        finished: "stop" (an end token), "length" (no more asked for, or the context is full), "failed", or None: more comes.
        reason: What failed.
    """

    request: int
    token: int | None
    logprob: float | None = None
    finished: Literal["stop", "length", "failed"] | None = None
    reason: str | None = None


@runtime_checkable
class ContinuousBatch(Protocol):
    """Answers to several prompts at once, each joining and leaving between steps. From one thread at a time.

    Attributes:
        vocabulary: As of a session.
        context: Tokens that a prompt and its answer may have together.
        slots: Requests that are computed at once; more wait their turn within.
    """

    vocabulary: int
    context: int
    slots: int

    def add(self, request: int, tokens: Sequence[int], sampling: Sampling) -> None:
        """Takes a prompt in.

        Raises:
            RunError: no token, an unknown one, or a prompt that leaves no room for an answer.
        """
        ...

    def step(self) -> list[Emitted]:
        """Computes what is next, for whoever is in; empty where nobody is."""
        ...

    def drop(self, request: int) -> None:
        """Ends an answer that nobody waits for any more; an unknown number is fine."""
        ...

    def close(self) -> None:
        """Frees the artifact."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Something that runs language models on this hardware.

    Attributes:
        name: In candidates' ids: "llamacpp", "openvino", "onnxruntime-genai", "torch".
        opens: The format of its artifacts.
        extra: Of lowbit's extras that installs it.
    """

    name: str
    opens: ArtifactFormat
    extra: str

    def version(self) -> str | None:
        """The installed version, None where it is not installed. Imports nothing heavy."""
        ...

    def tunings(self, hardware: Hardware) -> tuple[EngineTuning, ...]:
        """Tunings worth trying here, the default first. KV caches in fewer bits than 16 are among them where the engine has such."""
        ...

    def open(self, artifact: Path, tuning: EngineTuning = EngineTuning(), *, context: int = 2048) -> LanguageSession:
        """Loads an artifact for one sequence.

        Raises:
            RunError: the file is missing or of another format, an operator or option is not supported, or the library is not installed.
        """
        ...

    def batch(self, artifact: Path, tuning: EngineTuning = EngineTuning(), *, context: int = 2048, slots: int = 4) -> ContinuousBatch:
        """Loads an artifact for several sequences at once; the engine's own continuous batching where it has one.

        Raises:
            RunError: as `open`.
        """
        ...
