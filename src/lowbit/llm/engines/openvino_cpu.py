"""OpenVINO on the CPU: one sequence through a model with a cache of its own, several through openvino-genai's continuous batching.

Products of quantized weights round their inputs to 8 bit in groups as they run, unless the tuning sets `activations` to 0; the logits
then equal those of the same weights in floating point.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.errors import RunError
from lowbit.llm.engines.base import ArtifactFormat, EngineTuning
from lowbit.llm.engines.openvino_model import checked, last_line, library, longest, properties, read
from lowbit.plugins import installed_version
from lowbit.runtimes.hardware import Hardware
from lowbit.types import Array

if TYPE_CHECKING:
    from lowbit.llm.engines.openvino_batch import Batch

DEFAULT = EngineTuning()

PIECE = 1024
"""Tokens of a prompt that are computed at once where the tuning leaves it open."""


class OpenVino:
    name = "openvino"
    opens: ArtifactFormat = "openvino"
    extra = "openvino-genai"

    def version(self) -> str | None:
        return installed_version("openvino")

    def tunings(self, hardware: Hardware) -> tuple[EngineTuning, ...]:
        """Activations in wider groups read prompts faster (where the weights' own groups are as wide; else they stay as they are), and
        may answer slower; bfloat16 is faster for whatever is not quantized."""
        found = [EngineTuning(), EngineTuning(activations=128), EngineTuning(kv="int8")]
        if hardware.bf16:
            found += [EngineTuning(precision="bf16"), EngineTuning(activations=128, precision="bf16")]
        if hardware.cores > 2:  # memory may be saturated by fewer
            found.append(EngineTuning(threads=max(1, hardware.cores // 2)))
        return tuple(found)

    def open(self, artifact: Path, tuning: EngineTuning = DEFAULT, *, context: int = 2048) -> Session:
        openvino = library()
        asked = properties(openvino, tuning)
        model = read(openvino, artifact)
        limit = longest(model, artifact, context)
        _ask_where(model)
        try:
            compiled = openvino.Core().compile_model(model, "CPU", asked)
        except Exception as error:  # pybind turns the library's errors into RuntimeError, TypeError or ValueError
            raise RunError(f"openvino cannot run '{artifact.name}': {last_line(error)}") from error
        return Session(compiled, limit, tuning.batch or PIECE)

    def batch(self, artifact: Path, tuning: EngineTuning = DEFAULT, *, context: int = 2048, slots: int = 4) -> Batch:
        from lowbit.llm.engines.openvino_batch import Batch

        return Batch(artifact, tuning, context, slots)


def _ask_where(model: Any) -> None:
    """Adds an input `first` [1]: the position of the first token whose logits are computed. Of a prompt only the last one's are wanted."""
    from openvino import opset13 as ops

    head = model.output("logits").get_node().input_value(0).get_node()
    while head.get_type_name() in ("Add", "Convert"):  # its bias
        head = head.input_value(0).get_node()
    if head.get_type_name() != "MatMul":
        raise RunError(f"The logits are not a matrix product but '{head.get_type_name()}'; the model was not written by lowbit.")
    first = ops.parameter([1], np.int64, name="first")
    first.output(0).set_names({"first"})
    one = ops.constant(np.array([1], np.int64))
    end = ops.constant(np.array([np.iinfo(np.int64).max]))
    head.input(0).replace_source_output(ops.slice(head.input_value(0), first, end, one, one).output(0))
    model.add_parameters([first])
    model.validate_nodes_and_infer_types()


class Session:
    """One sequence. See lowbit.llm.engines.base.LanguageSession."""

    def __init__(self, compiled: Any, context: int, piece: int) -> None:
        self._request: Any = compiled.create_infer_request()
        self._positions = any("position_ids" in port.get_names() for port in compiled.inputs)
        self._ones = np.ones((1, context), np.int64)
        self._counted = np.arange(context, dtype=np.int64)[None]
        self._row = np.zeros(1, np.int32)
        self._piece = piece
        self._length: int | None = None  # tokens in the cache; None: nothing was started
        self.vocabulary: int = compiled.output("logits").partial_shape[2].get_length()
        self.context = context
        self.precision = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())

    def logits(self, tokens: Sequence[int]) -> Array:
        array = self._begin(tokens)
        found = np.empty((len(array), self.vocabulary), np.float32)
        for start in range(0, len(array), self._piece):
            found[start : start + self._piece] = self._run(array[start : start + self._piece], start, 0)
        return found

    def start(self, tokens: Sequence[int]) -> Array:
        array = self._begin(tokens)
        for start in range(0, len(array), self._piece):
            piece = array[start : start + self._piece]
            found = self._run(piece, start, len(piece) - 1)
        self._length = len(array)
        return np.array(found[0])

    def step(self, token: int) -> Array:
        self._open()
        if self._length is None:
            raise RunError("Nothing was started: a step follows a prompt.")
        if self._length >= self.context:
            raise RunError(f"The context of {self.context} tokens is full.")
        found = self._run(checked([token], self.vocabulary), self._length, 0)
        self._length += 1
        return np.array(found[0])

    def close(self) -> None:
        self._request = None

    def _begin(self, tokens: Sequence[int]) -> Array:
        request = self._open()
        array = checked(tokens, self.vocabulary)
        if len(array) > self.context:
            raise RunError(f"{len(array)} tokens are more than the context of {self.context} holds.")
        request.reset_state()
        self._length = None
        return array

    def _run(self, tokens: Array, past: int, first: int) -> Array:
        """Logits [T - first, V] of tokens that follow `past` others, valid until the next call."""
        end = past + len(tokens)
        feeds = {
            "input_ids": tokens[None],
            "attention_mask": self._ones[:, :end],
            "beam_idx": self._row,
            "first": np.array([first], np.int64),
        }
        if self._positions:
            feeds["position_ids"] = self._counted[:, past:end]
        request = self._open()
        try:
            request.infer(feeds, share_inputs=True)
        except Exception as error:
            self._length = None
            raise RunError(f"openvino failed: {last_line(error)}") from error
        logits: Array = request.get_output_tensor(0).data[0]
        return logits

    def _open(self) -> Any:
        if self._request is None:
            raise RunError("The session is closed.", "Open it again.")
        return self._request
