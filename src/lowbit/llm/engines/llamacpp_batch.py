"""Answers to several prompts at once with llama.cpp: every step computes one token of each answer, and a piece of the prompts that wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lowbit.errors import RunError
from lowbit.llm.engines.base import Emitted, Sampling
from lowbit.llm.engines.llamacpp_context import Context
from lowbit.llm.engines.sampling import choose, generator
from lowbit.types import Array

PIECE = 32
"""Tokens of prompts in a step in which others wait for their next token: it takes a few times as long; smaller pieces slow prompts down."""


@dataclass
class _Answer:
    """One request and how far it is.

    Attributes:
        request: Its number.
        prompt: Tokens, int32 [T].
        sampling: As asked for.
        rng: Of its draws.
        done: Tokens of the prompt and the answer that are in the cache.
        next: The answer's last token, which is not there yet; None while the prompt is read.
        answered: Tokens told so far.
    """

    request: int
    prompt: Array
    sampling: Sampling
    rng: np.random.Generator
    done: int = 0
    next: int | None = None
    answered: int = 0


@dataclass
class _Work:
    """The tokens of one step, and whose last token's logits are wanted."""

    tokens: list[Array] = field(default_factory=list)
    positions: list[Array] = field(default_factory=list)
    slots: list[Array] = field(default_factory=list)
    wanted: list[Array] = field(default_factory=list)
    tellers: list[int] = field(default_factory=list)
    size: int = 0

    def add(self, slot: int, tokens: Array, at: int, tell: bool) -> None:
        count = len(tokens)
        self.tokens.append(tokens)
        self.positions.append(np.arange(at, at + count, dtype=np.int32))
        self.slots.append(np.full(count, slot, np.int32))
        wanted = np.zeros(count, bool)
        if tell:
            wanted[-1] = True
            self.tellers.append(slot)
        self.wanted.append(wanted)
        self.size += count


class Batch:
    """See lowbit.llm.engines.base.ContinuousBatch. One cache, a part of it for each slot."""

    def __init__(self, context: Context, slots: int) -> None:
        self._context = context
        self._running: dict[int, _Answer] = {}  # slot -> whose it is
        self._waiting: deque[_Answer] = deque()
        self._turn = 0  # whose prompt is read first
        self.slots = slots
        self.vocabulary = context.vocabulary
        self.context = context.context

    def add(self, request: int, tokens: Sequence[int], sampling: Sampling) -> None:
        prompt = self._context.check(tokens)
        if len(prompt) >= self.context:
            raise RunError(f"A prompt of {len(prompt)} tokens leaves no room for an answer in a context of {self.context}.")
        if sampling.tokens < 1:
            raise RunError(f"An answer has one token at least; found {sampling.tokens}.")
        if any(each.request == request for each in (*self._running.values(), *self._waiting)):
            raise RunError(f"Request {request} is being answered already.")
        self._waiting.append(_Answer(request, prompt, sampling, generator(sampling)))

    def step(self) -> list[Emitted]:
        self._context.need_open()
        for slot in range(self.slots):
            if slot not in self._running and self._waiting:
                self._running[slot] = self._waiting.popleft()
        work = self._work()
        if work.size == 0:
            return []
        joined = (np.concatenate(each) for each in (work.tokens, work.positions, work.slots, work.wanted))
        logits = self._context.decode(*joined)
        return [self._tell(slot, logits[row]) for row, slot in enumerate(work.tellers)]

    def drop(self, request: int) -> None:
        self._waiting = deque(each for each in self._waiting if each.request != request)
        for slot in [slot for slot, each in self._running.items() if each.request == request]:
            self._free(slot)

    def close(self) -> None:
        self._running.clear()
        self._waiting.clear()
        self._context.close()

    @property
    def kv_use(self) -> float:
        """Share of the cache that is in use, 0-1; may be asked from another thread."""
        return sum(each.done for each in list(self._running.values())) / (self.context * self.slots)

    def _work(self) -> _Work:
        """One token of each answer, then pieces of prompts in turn."""
        work = _Work()
        for slot, each in self._running.items():
            if each.next is not None:
                work.add(slot, np.array([each.next], np.int32), each.done, tell=True)
                each.done += 1
        room = min(self._context.batch - work.size, PIECE if work.size else self._context.batch)
        reading = sorted(slot for slot, each in self._running.items() if each.next is None)
        reading = [slot for slot in reading if slot >= self._turn] + [slot for slot in reading if slot < self._turn]
        for slot in reading:
            if room <= 0:
                break
            each = self._running[slot]
            piece = each.prompt[each.done : each.done + room]
            work.add(slot, piece, each.done, tell=each.done + len(piece) == len(each.prompt))
            each.done += len(piece)
            room -= len(piece)
            self._turn = slot if each.done < len(each.prompt) else (slot + 1) % self.slots
        return work

    def _tell(self, slot: int, logits: Array) -> Emitted:
        each = self._running[slot]
        try:
            token, logprob = choose(logits, each.sampling, each.rng)
        except FloatingPointError as error:
            self._free(slot)
            return Emitted(each.request, None, finished="failed", reason=f"The model gave no numbers to choose from. {error}")
        if token in each.sampling.eos:
            self._free(slot)
            return Emitted(each.request, None, logprob, "stop")
        each.next = token
        each.answered += 1
        if each.answered >= each.sampling.tokens or each.done >= self.context:
            self._free(slot)
            return Emitted(each.request, token, logprob, "length")
        return Emitted(each.request, token, logprob)

    def _free(self, slot: int) -> None:
        del self._running[slot]
        self._context.forget(slot)
