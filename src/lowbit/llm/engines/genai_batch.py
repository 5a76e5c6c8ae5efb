"""Answers to several prompts at once on an ONNX decoder: prompts are read one by one, then every step computes one token of each answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from lowbit.errors import RunError
from lowbit.llm.engines.base import Emitted, Sampling
from lowbit.llm.engines.genai_run import Decoder
from lowbit.llm.engines.one_at_a_time import Answer, new_answer
from lowbit.types import Array

PIECE = 64
"""Tokens of a prompt in a step in which others wait for their next token."""


class Batch:
    """See lowbit.llm.engines.base.ContinuousBatch. A place in the cache for each slot; the weights are read once a step for all."""

    def __init__(self, decoder: Decoder, slots: int) -> None:
        self._decoder: Decoder | None = decoder
        self.vocabulary, self.context, self.slots = decoder.files.vocabulary, decoder.files.context, slots
        self._waiting: deque[Answer] = deque()
        self._running: dict[int, Answer] = {}  # slot -> whose it is
        self._inside: dict[int, int] = {}  # slot -> tokens in the cache
        self._last: dict[int, int] = {}  # slot -> the answer's last token, which is not there yet

    def add(self, request: int, tokens: Sequence[int], sampling: Sampling) -> None:
        self._need()
        taken = [answer.request for answer in (*self._waiting, *self._running.values())]
        self._waiting.append(new_answer(request, tokens, sampling, self.vocabulary, self.context, taken))

    def step(self) -> list[Emitted]:
        decoder = self._need()
        for slot in range(self.slots):
            if slot not in self._running and self._waiting:
                self._running[slot], self._inside[slot] = self._waiting.popleft(), 0
        speaking = sorted(self._last)
        emitted = self._advance(decoder, speaking) if speaking else []
        reading = [slot for slot in self._running if slot not in self._last and slot not in speaking]
        # Who was there first is read first; with nobody waiting for a token, all at once.
        for slot in reading[:1] if speaking else reading:
            emitted += self._read(decoder, slot, PIECE if speaking else self.context)
        return emitted

    def _advance(self, decoder: Decoder, slots: Sequence[int]) -> list[Emitted]:
        count = slots[-1] + 1
        tokens, before = np.zeros(count, np.int64), np.zeros(count, np.int64)
        for slot in range(count):
            # A slot whose prompt is still being read writes after it, where the next piece will be.
            tokens[slot], before[slot] = self._last.get(slot, 0), min(self._inside.get(slot, 0), self.context - 1)
        logits = decoder.advance(tokens, before)
        for slot in slots:
            self._inside[slot] += 1
        return [self._tell(slot, logits[slot]) for slot in slots]

    def _read(self, decoder: Decoder, slot: int, most: int) -> list[Emitted]:
        prompt, inside = self._running[slot].prompt, self._inside[slot]
        piece = prompt[inside : inside + most]
        logits = decoder.read(slot, piece, inside)
        self._inside[slot] += len(piece)
        return [self._tell(slot, logits)] if self._inside[slot] == len(prompt) else []

    def _tell(self, slot: int, logits: Array) -> Emitted:
        emitted = self._running[slot].drawn(logits, self.context)
        if emitted.finished is None and emitted.token is not None:
            self._last[slot] = emitted.token
        else:
            self._free(slot)
        return emitted

    def drop(self, request: int) -> None:
        self._waiting = deque(answer for answer in self._waiting if answer.request != request)
        for slot in [slot for slot, answer in self._running.items() if answer.request == request]:
            self._free(slot)

    def close(self) -> None:
        self._decoder = None
        for each in (self._waiting, self._running, self._inside, self._last):
            each.clear()

    @property
    def kv_use(self) -> float:
        """Share of the cache that is in use, 0-1; may be asked from another thread."""
        return sum(list(self._inside.values())) / (self.context * self.slots)

    def _free(self, slot: int) -> None:
        for each in (self._running, self._inside, self._last):
            each.pop(slot, None)

    def _need(self) -> Decoder:
        if self._decoder is None:
            raise RunError("This batch of onnxruntime-genai is closed.")
        return self._decoder
