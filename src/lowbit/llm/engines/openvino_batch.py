"""Answers to several prompts at once through openvino-genai's continuous batching, which is fed tokens and tells tokens."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.errors import RunError
from lowbit.llm.engines.base import Emitted, EngineTuning, Sampling
from lowbit.llm.engines.openvino_model import checked, last_line, library, longest, properties, read
from lowbit.types import Array

BLOCK = 32
"""Tokens of one block of the cache, on CPUs."""

STEP = 256
"""Tokens of all requests that are computed in one step where the tuning leaves it open."""


@dataclass
class _Asked:
    """A request, and the library's handle once it computes."""

    request: int
    prompt: Array
    sampling: Sampling
    limit: int  # tokens that the answer may have
    told: int = 0
    handle: Any = None


class Batch:
    """See lowbit.llm.engines.base.ContinuousBatch."""

    def __init__(self, artifact: Path, tuning: EngineTuning, context: int, slots: int) -> None:
        openvino, genai = library(), library("openvino_genai")
        asked = properties(openvino, tuning)
        model = read(openvino, artifact)
        self.context = longest(model, artifact, context, many=True)
        self.vocabulary: int = model.output("logits").partial_shape[2].get_length()
        self.slots = slots
        self._openvino, self._genai = openvino, genai
        self._waiting: deque[_Asked] = deque()
        self._running: dict[int, _Asked] = {}
        self._number = 0  # of the library's requests: one of ours may come again
        del model
        try:
            self._pipeline: Any = genai.ContinuousBatchingPipeline(str(artifact.parent), self._scheduler(tuning.batch), "CPU", asked)
        except Exception as error:
            raise RunError(f"openvino-genai cannot run '{artifact.name}': {last_line(error)}") from error

    def add(self, request: int, tokens: Sequence[int], sampling: Sampling) -> None:
        self._open()
        prompt = checked(tokens, self.vocabulary)
        if len(prompt) >= self.context:
            raise RunError(f"A prompt of {len(prompt)} tokens leaves no room for an answer in a context of {self.context}.")
        if sampling.tokens < 1:
            raise RunError(f"An answer has one token at least; found {sampling.tokens}.")
        if request in self._running or any(each.request == request for each in self._waiting):
            raise RunError(f"Request {request} is being answered already.")
        self._waiting.append(_Asked(request, prompt, sampling, min(sampling.tokens, self.context - len(prompt))))

    def step(self) -> list[Emitted]:
        pipeline = self._open()
        found: list[Emitted] = []
        while self._waiting and len(self._running) < self.slots:
            found += self._begin(self._waiting.popleft())
        if not self._running and not pipeline.has_non_finished_requests():  # one that was dropped gives its cache back in a step
            return found
        try:
            pipeline.step()
        except Exception as error:  # who is inside stays inside the library, and would fail every later step
            raise RunError(f"openvino-genai failed: {last_line(error)}") from error
        return found + [emitted for asked in list(self._running.values()) for emitted in self._told(asked)]

    def drop(self, request: int) -> None:
        if (asked := self._running.pop(request, None)) is not None:
            asked.handle.cancel()
        self._waiting = deque(each for each in self._waiting if each.request != request)

    def close(self) -> None:
        if self._pipeline is None:
            return
        for request in (*self._running, *(each.request for each in self._waiting)):
            self.drop(request)
        with suppress(Exception):  # what was dropped gives its cache back; if not, it goes with the rest now
            self.step()
        self._pipeline = None

    @property
    def kv_use(self) -> float:
        """Share of the cache that is in use, 0-1; may be asked from another thread."""
        return sum(len(each.prompt) + each.told for each in list(self._running.values())) / (self.context * self.slots)

    def _scheduler(self, tokens: int) -> Any:
        found = self._genai.SchedulerConfig()
        found.num_kv_blocks = self.slots * (-(-self.context // BLOCK) + 1)
        found.max_num_seqs = self.slots
        found.max_num_batched_tokens = max(tokens or STEP, self.slots)
        found.dynamic_split_fuse = True
        found.enable_prefix_caching = False  # a prompt that comes again is computed again, so that times mean something
        return found

    def _begin(self, asked: _Asked) -> list[Emitted]:
        """Hands a request to the library; tells where it does not take it (a temperature out of its range, say)."""
        self._number += 1
        tokens = self._openvino.Tensor(asked.prompt[None])
        try:
            asked.handle = self._open().add_request(self._number, tokens, self._config(asked))
        except Exception as error:
            return [_failed(asked.request, error)]
        self._running[asked.request] = asked
        return []

    def _config(self, asked: _Asked) -> Any:
        sampling = asked.sampling
        found = self._genai.GenerationConfig()
        found.max_new_tokens = asked.limit
        found.ignore_eos = True  # ends are ours to say: those of generation_config.json may not be asked for
        found.logprobs = 1
        if sampling.temperature > 0:
            found.do_sample = True
            found.temperature, found.top_p = sampling.temperature, sampling.top_p
            if sampling.top_k:
                found.top_k = sampling.top_k
            found.rng_seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
        return found

    def _told(self, asked: _Asked) -> list[Emitted]:
        """What one request has to tell after a step."""
        found: list[Emitted] = []
        while asked.handle.can_read():
            for output in asked.handle.read().values():
                for token, logprob in zip(output.generated_ids, output.generated_log_probs, strict=True):
                    if asked.request in self._running:
                        found.append(self._emitted(asked, token, logprob))
        if asked.request in self._running and asked.handle.get_status() != self._genai.GenerationStatus.RUNNING:
            del self._running[asked.request]
            found.append(Emitted(asked.request, None, finished="failed", reason="openvino-genai ended it: the cache has no room"))
        return found

    def _emitted(self, asked: _Asked, token: int, logprob: float) -> Emitted:
        asked.told += 1
        if token in asked.sampling.eos:
            self.drop(asked.request)
            return Emitted(asked.request, None, finished="stop")
        last = asked.told == asked.limit
        if last:
            self.drop(asked.request)
        return Emitted(asked.request, token, logprob, "length" if last else None)

    def _open(self) -> Any:
        if self._pipeline is None:
            raise RunError("The batch is closed.", "Open it again.")
        return self._pipeline


def _failed(request: int, error: Exception) -> Emitted:
    return Emitted(request, None, finished="failed", reason=last_line(error))
