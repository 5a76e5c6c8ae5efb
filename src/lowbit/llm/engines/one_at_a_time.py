"""Several prompts for engines that batch nothing: each session answers one at a time, sessions take turns token by token."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from lowbit.errors import RunError
from lowbit.llm.engines.base import Emitted, LanguageSession, Sampling
from lowbit.llm.engines.sampling import choose, generator
from lowbit.types import Array


@dataclass
class Answer:
    """A request that is being answered.

    Attributes:
        request: Its number.
        prompt: Tokens.
        sampling: How its tokens are drawn.
        random: Its own draws.
        count: Tokens of the answer so far.
    """

    request: int
    prompt: list[int]
    sampling: Sampling
    random: np.random.Generator = field(repr=False)
    count: int = 0

    def drawn(self, logits: Array, context: int) -> Emitted:
        """The next token, and whether the answer ends by it.

        Args:
            logits: Of what follows the prompt and the answer so far.
            context: Tokens that both may have together.
        """
        try:
            token, logprob = choose(logits, self.sampling, self.random)
        except FloatingPointError as error:
            return Emitted(self.request, None, None, "failed", str(error))
        if token in self.sampling.eos:
            return Emitted(self.request, None, logprob, "stop")
        self.count += 1
        full = len(self.prompt) + self.count >= context
        return Emitted(self.request, token, logprob, "length" if full or self.count >= self.sampling.tokens else None)


def checked(tokens: Sequence[int], vocabulary: int, context: int, room: int = 1) -> list[int]:
    """A prompt as a list.

    Args:
        tokens: Of the prompt.
        vocabulary: Tokens that there are.
        context: Tokens that prompt and answer may have together.
        room: Tokens that must be left for an answer.

    Raises:
        RunError: no token, an unknown one, or more than fit.
    """
    found = [int(token) for token in tokens]
    if not found:
        raise RunError("There is no token to read; at least one is needed.")
    if unknown := next((token for token in found if not 0 <= token < vocabulary), None):
        raise RunError(f"Token {unknown} is not in the vocabulary of {vocabulary} (0-{vocabulary - 1}).")
    if len(found) + room > context:
        left = " and an answer" if room else ""
        raise RunError(f"{len(found)} tokens{left} are more than the context of {context} holds.")
    return found


def new_answer(request: int, tokens: Sequence[int], sampling: Sampling, vocabulary: int, context: int, taken: Collection[int]) -> Answer:
    """A request, checked.

    Args:
        request: Its number.
        tokens: Of the prompt.
        sampling: How its tokens are to be drawn.
        vocabulary, context: As `checked`.
        taken: Numbers of requests that are being answered.

    Raises:
        RunError: as `checked`; no token is asked for, or the number is taken.
    """
    prompt = checked(tokens, vocabulary, context)
    if sampling.tokens < 1:
        raise RunError(f"An answer has one token at least; found {sampling.tokens}.")
    if request in taken:
        raise RunError(f"Request {request} is being answered already.")
    return Answer(request, prompt, sampling, generator(sampling))


class OneAtATime:
    """Continuous batching in form only: one sequence a session. Fulfils lowbit.llm.engines.base.ContinuousBatch.

    Args:
        session: Answers one prompt after the other.
        *others: More sessions of the same artifact; as many prompts are answered in turn.
    """

    def __init__(self, session: LanguageSession, *others: LanguageSession) -> None:
        self._sessions = (session, *others)
        self.vocabulary, self.context, self.slots = session.vocabulary, session.context, len(self._sessions)
        self._waiting: deque[Answer] = deque()
        self._running: dict[int, tuple[Answer, int | None]] = {}  # place of a session -> answer, its last token
        self._closed = False

    def add(self, request: int, tokens: Sequence[int], sampling: Sampling) -> None:
        if self._closed:
            raise RunError("This batch is closed.")
        taken = [answer.request for answer in (*self._waiting, *(answer for answer, _ in self._running.values()))]
        self._waiting.append(new_answer(request, tokens, sampling, self.vocabulary, self.context, taken))

    def step(self) -> list[Emitted]:
        if self._closed:
            raise RunError("This batch is closed.")
        for place in range(self.slots):
            if place not in self._running and self._waiting:
                self._running[place] = self._waiting.popleft(), None
        return [self._advance(place) for place in sorted(self._running)]

    def _advance(self, place: int) -> Emitted:
        answer, last = self._running[place]
        session = self._sessions[place]
        try:
            logits = session.start(answer.prompt) if last is None else session.step(last)
            emitted = answer.drawn(logits, self.context)
        except RunError as error:
            emitted = Emitted(answer.request, None, None, "failed", error.message)
        if emitted.finished is None:
            self._running[place] = answer, emitted.token
        else:
            del self._running[place]
        return emitted

    def drop(self, request: int) -> None:
        self._waiting = deque(answer for answer in self._waiting if answer.request != request)
        for place in [place for place, (answer, _) in self._running.items() if answer.request == request]:
            del self._running[place]

    def close(self) -> None:
        for session in self._sessions:
            session.close()
        self._waiting.clear()
        self._running.clear()
        self._closed = True
