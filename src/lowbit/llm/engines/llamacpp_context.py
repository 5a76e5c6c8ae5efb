"""llama.cpp's model and cache behind one small object: load, decode tokens of any sequences, read logits, forget a sequence.

The library's low-level functions are used, not its Python class: they tell the logits of several sequences and positions at once.
What the library logs is kept, not printed: the last error becomes our message.
"""

from __future__ import annotations

import ctypes
import importlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lowbit.errors import RunError
from lowbit.llm.engines.base import EngineTuning, KvPrecision
from lowbit.runtimes.hardware import probe
from lowbit.types import Array

GGML_TYPES: dict[KvPrecision, int] = {"f32": 0, "f16": 1, "bf16": 30, "int8": 8, "int4": 2}
"""ggml's numbers of the cache's types; int8 is Q8_0 and int4 is Q4_0, 32 elements of a head a scale."""

BATCH = 512
"""Tokens that are computed at once where the tuning leaves it open."""

ERROR = 4  # ggml's log level
_messages: deque[str] = deque(maxlen=8)
_callback: Any = None


def library() -> ModuleType:
    """llama-cpp-python's low-level functions, silenced.

    Raises:
        RunError: it is not installed, or does not load.
    """
    global _callback
    try:
        module = importlib.import_module("llama_cpp.llama_cpp")
    except ImportError as error:
        raise RunError("llama.cpp's Python package is not installed.", "pip install 'lowbit[llamacpp]'") from error
    except (OSError, RuntimeError) as error:  # its shared library does not load
        raise RunError(f"llama.cpp's Python package does not load: {error}") from error
    if _callback is None:
        _callback = module.llama_log_callback(_keep)
        module.llama_backend_init()
    module.llama_log_set(_callback, ctypes.c_void_p(0))
    return module


def may_repack(system: bytes) -> bool:
    """Whether llama.cpp may lay weights out for this processor's own instructions.

    Not where it was built for AMX: compilers drop parts of its tile configuration, and the process dies of a segmentation fault
    (https://github.com/ggml-org/llama.cpp/pull/26954, of August 2026, open).

    >>> may_repack(b"CPU : AVX512_BF16 = 1 | AMX_INT8 = 1 | REPACK = 1 | ")
    False
    """
    return b"AMX_INT8 = 1" not in system


def _keep(level: int, text: bytes, _: Any) -> None:
    if level == ERROR:
        _messages.append(text.decode("utf-8", "replace").strip())


class Context:
    """A loaded model with a cache for several sequences. From one thread at a time.

    Args:
        artifact: The GGUF file.
        tuning: Threads, cache precision, tokens at once.
        context: Tokens that one sequence may have.
        sequences: That the cache holds at once.

    Attributes:
        vocabulary: Logits a token gets.
        context: Tokens that one sequence may have: as asked for, at most what the model was made for.
        batch: Tokens that one call of `decode` takes at most.
        precision: Of the products of weights that are not quantized; sums are in f32 throughout.

    Raises:
        RunError: the file is missing, no GGUF, not one that llama.cpp knows, or does not fit the tuning.
    """

    def __init__(self, artifact: Path, tuning: EngineTuning, context: int, sequences: int = 1) -> None:
        self._library = library()
        self._model: Any = None
        self._context: Any = None
        _check_tuning(tuning)
        _check_file(artifact)
        _messages.clear()
        self._open(artifact, tuning, context, sequences)
        self._arrays = _Arrays(self.batch, sequences)

    def _open(self, artifact: Path, tuning: EngineTuning, context: int, sequences: int) -> None:
        lib = self._library
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = may_repack(lib.llama_print_system_info())
        self._model = lib.llama_model_load_from_file(str(artifact).encode(), params)
        if not self._model:
            raise RunError(f"llama.cpp cannot load '{artifact.name}'{_why()}.")
        try:
            self.vocabulary: int = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
            self.context = max(1, min(context, lib.llama_model_n_ctx_train(self._model)))
            self.precision = {0: "f32", 32: "bf16"}.get(lib.llama_model_ftype(self._model), "f16")
            self.batch = max(sequences, min(tuning.batch or BATCH, self.context * sequences))
            self._context = lib.llama_init_from_model(self._model, self._params(tuning, sequences))
            if not self._context:
                raise RunError(f"llama.cpp cannot run '{artifact.name}' with a cache of {tuning.kv}{_why()}.")
        except BaseException:
            self.close()
            raise
        self._memory = lib.llama_get_memory(self._context)

    def _params(self, tuning: EngineTuning, sequences: int) -> Any:
        lib, cores = self._library, probe().cores
        params = lib.llama_context_default_params()
        params.n_ctx = self.context * sequences
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = self.batch
        params.n_threads = tuning.threads or cores
        params.n_threads_batch = tuning.prompt_threads or cores
        params.type_k = params.type_v = GGML_TYPES[tuning.kv]
        # Values in blocks can only be read by the fused attention; a cache in f32 is rounded to f16 by it.
        fused = {"f32": lib.LLAMA_FLASH_ATTN_TYPE_DISABLED, "int8": lib.LLAMA_FLASH_ATTN_TYPE_ENABLED}
        fused["int4"] = fused["int8"]
        params.flash_attn_type = fused.get(tuning.kv, lib.LLAMA_FLASH_ATTN_TYPE_AUTO)
        params.kv_unified = False
        params.no_perf = True
        return params

    def check(self, tokens: Sequence[int]) -> Array:
        """Tokens as int32 [T].

        Raises:
            RunError: there is none, or one that the model does not have.
        """
        self.need_open()
        array = np.asarray(tokens)
        if array.ndim != 1 or not len(array):
            raise RunError("There is no token to read; at least one is needed.")
        if array.dtype.kind not in "iu":
            raise RunError(f"Tokens are whole numbers; found {array.dtype}.")
        if (unknown := array[(array < 0) | (array >= self.vocabulary)]).size:
            raise RunError(f"Token {unknown[0]} is not in the vocabulary of {self.vocabulary} (0-{self.vocabulary - 1}).")
        return array.astype(np.int32)

    def decode(self, tokens: Array, positions: Array, sequences: Array, wanted: Array) -> Array:
        """Computes at most `batch` tokens, and adds them to the cache.

        Args:
            tokens, positions, sequences: int32 [n].
            wanted: bool [n], whose logits are to be told.

        Returns:
            float32 [number wanted, V], in the order of the tokens.

        Raises:
            RunError: llama.cpp failed.
        """
        self.need_open()
        lib = self._library
        result = lib.llama_decode(self._context, self._arrays.fill(lib, tokens, positions, sequences, wanted))
        if result != 0:
            raise RunError(f"llama.cpp failed to compute {len(tokens)} tokens (code {result}){_why()}.")
        count = int(wanted.sum())
        if count == 0:
            return np.empty((0, self.vocabulary), np.float32)
        pointer = lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(count, self.vocabulary)).copy()

    def forget(self, sequence: int) -> None:
        """Empties a sequence's part of the cache."""
        self._library.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def need_open(self) -> None:
        """
        Raises:
            RunError: it was closed.
        """
        if self._context is None:
            raise RunError("This session of llama.cpp is closed.")

    def close(self) -> None:
        """Frees model and cache; twice is fine."""
        if self._context:
            self._library.llama_free(self._context)
        if self._model:
            self._library.llama_model_free(self._model)
        self._context = self._model = None


class _Arrays:
    """The memory that a batch of tokens is handed over in."""

    def __init__(self, size: int, sequences: int) -> None:
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._counts = np.ones(size, np.int32)  # each token belongs to one sequence
        self._wanted = np.zeros(size, np.int8)
        self._numbers = np.arange(sequences, dtype=np.int32)
        self._addresses = np.zeros(size, np.uintp)

    def fill(self, lib: ModuleType, tokens: Array, positions: Array, sequences: Array, wanted: Array) -> Any:
        count = len(tokens)
        self._tokens[:count], self._positions[:count], self._wanted[:count] = tokens, positions, wanted
        self._addresses[:count] = self._numbers.ctypes.data + 4 * sequences.astype(np.uintp)
        return lib.llama_batch(
            n_tokens=count,
            token=self._tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            embd=None,
            pos=self._positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            n_seq_id=self._counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._addresses.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )


def _check_tuning(tuning: EngineTuning) -> None:
    if tuning.activations not in (None, 32):
        raise RunError(
            f"llama.cpp rounds what quantized layers read in blocks as their format has it; found activations={tuning.activations}.",
            "Leave `activations` to the engine.",
        )


def _check_file(artifact: Path) -> None:
    if not artifact.is_file():
        raise RunError(f"There is no file '{artifact}'.")
    with artifact.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise RunError(f"'{artifact.name}' is no GGUF file: it does not begin with GGUF.")


def _why() -> str:
    """What the library last said went wrong."""
    said = [text.split(": ", 1)[-1] for text in _messages if text]
    return f": {said[0].rstrip('.')}" if said else ""
