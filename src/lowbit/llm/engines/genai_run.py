"""An ONNX decoder run by onnxruntime itself: a text scored at all positions, and several sequences in one cache.

onnxruntime-genai tells the last position's logits only, and batches on a CPU only what starts together; the graph can do both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.errors import RunError
from lowbit.llm.engines.genai_files import Files
from lowbit.quiet import no_telemetry
from lowbit.types import Array

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, IOBinding

PARTS = ("key", "value")


class Decoder:
    """A graph loaded by onnxruntime.

    Args:
        files: The artifact.
        sequences: That the cache holds at once; 0: texts are scored only.

    Raises:
        RunError: the graph is damaged, or has an operator that onnxruntime does not know.
    """

    def __init__(self, files: Files, sequences: int = 0) -> None:
        self.files = files
        self._session = _load(files)
        self._choices = {each.name for each in self._session.get_overridable_initializers()}
        shape = (sequences, files.kv_heads, files.context, files.head_size)
        # Pages that nobody has written to take no memory.
        self._cache = {name: np.zeros(shape, np.float32) for name in self._names("past_key_values")} if sequences else {}

    def score(self, tokens: Sequence[int]) -> Array:
        """Logits float32 [T, V] of a text of its own."""
        feeds = self._tokens(np.asarray([tokens], np.int64), np.asarray([0]))
        empty = np.zeros((1, self.files.kv_heads, 0, self.files.head_size), np.float32)
        feeds |= dict.fromkeys(self._names("past_key_values"), empty)
        if "logits_from" not in self._choices:
            return self._run(feeds)[0]
        return self._run({**feeds, "logits_from": np.zeros(1, np.int64)})[0]

    def _run(self, feeds: dict[str, Array]) -> Array:
        try:
            return np.asarray(self._session.run(["logits"], feeds)[0])
        except Exception as error:  # the library's own kinds
            raise RunError(f"onnxruntime failed to run '{self.files.graph.name}': {_first_line(error)}") from error

    def read(self, place: int, tokens: Sequence[int], before: int = 0) -> Array:
        """Reads a piece of a prompt into one place of the cache.

        Args:
            place: Of the sequence.
            tokens: Of the piece.
            before: Tokens of this sequence that are in the cache already.

        Returns:
            Logits [V] of what follows.
        """
        return self._cached(np.asarray([tokens], np.int64), np.asarray([before]), place)[0]

    def advance(self, tokens: Array, before: Array) -> Array:
        """One more token for each of the first sequences.

        Args:
            tokens: [n].
            before: [n], tokens of each that are in the cache already; where nobody is, 0 (the token is then forgotten).

        Returns:
            Logits [n, V].
        """
        return self._cached(tokens[:, None].astype(np.int64), before, 0)

    def _cached(self, tokens: Array, before: Array, place: int) -> Array:
        binding = self._session.io_binding()
        for name, array in self._tokens(tokens, before).items():
            binding.bind_cpu_input(name, array)
        self._bind_cache(binding, place, len(tokens))
        logits = np.empty((len(tokens), 1, self.files.vocabulary), np.float32)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # the library's own kinds
            raise RunError(f"onnxruntime failed to run '{self.files.graph.name}': {_first_line(error)}") from error
        return logits[:, 0]

    def _bind_cache(self, binding: IOBinding, place: int, count: int) -> None:
        """Keys and values are read and written in the same memory: of `count` sequences from `place` on."""
        for name, array in self._cache.items():
            part = array[place : place + count]
            binding.bind_input(name, "cpu", 0, np.float32, part.shape, part.ctypes.data)
            binding.bind_output(name.replace("past_key_values", "present"), "cpu", 0, np.float32, part.shape, part.ctypes.data)

    def _tokens(self, tokens: Array, before: Array) -> dict[str, Array]:
        total = before + tokens.shape[1]
        mask = (np.arange(int(total.max())) < total[:, None]).astype(np.int64)
        feeds = {"input_ids": tokens, "attention_mask": mask}
        if self.files.positions:
            feeds["position_ids"] = before[:, None].astype(np.int64) + np.arange(tokens.shape[1])
        return feeds

    def _names(self, what: str) -> list[str]:
        return [f"{what}.{layer}.{part}" for layer in range(self.files.layers) for part in PARTS]


def _load(files: Files) -> InferenceSession:
    no_telemetry()
    try:
        import onnxruntime
    except ImportError as error:
        raise RunError("onnxruntime is not installed.", "pip install 'lowbit[onnxruntime-genai]'") from error
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = files.threads
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(files.graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's own kinds
        raise RunError(f"onnxruntime cannot load '{files.graph.name}': {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
