"""Some answers are scored once more by the 16-bit model, after they went out: the answer's own tokens are fed to it (teacher forcing), so
that both models' perplexity of one text can be compared.

Nobody waits for it. It runs one at a time, in a thread of its own, while no answer waits for a slot, and a fifth of the time at most while
some are computed; what finds no room is dropped.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from lowbit.llm.engines.base import LanguageSession
from lowbit.serving.watch import logs
from lowbit.types import Array

ROOM = 16
"""Answers that may wait to be scored."""
DUTY = 0.2
LOOK_S = 0.02
PATIENCE_S = 30.0
"""An answer that finds no moment in this time is dropped."""
AT_ONCE_BYTES = 64 << 20
"""Logits of a text up to this size are worked out in one go; longer texts go token by token, which takes longer and no room."""


@dataclass(frozen=True)
class Scored:
    """One answer under the 16-bit model.

    Attributes:
        tokens: Of the answer.
        nats: Sum of -log p over them.
        agreed: Tokens that it would have said, too, as the likeliest.
    """

    tokens: int
    nats: float
    agreed: int


@dataclass(frozen=True)
class _Kept:
    prompt: Sequence[int]
    answer: Sequence[int]
    tell: Callable[[Scored], None]


class Rescorer:
    """Of one deployment; everything but `close` on the event loop.

    Attributes:
        share: Of answers that are scored, 0-1.
        dropped: Answers that found no room or no moment.
        failed: Whose scoring failed.
    """

    def __init__(
        self, share: float, opens: Callable[[], LanguageSession], busy: Callable[[], tuple[bool, bool]], seed: int | None = None
    ) -> None:
        """Opens nothing yet: the first answer does.

        Args:
            share: Of answers.
            opens: Opens the 16-bit model.
            busy: Whether answers wait, and whether any are computed.
            seed: Of the choice by chance.
        """
        self.share, self.dropped, self.failed = share, 0, 0
        self._opens, self._busy, self._chance = opens, busy, random.Random(seed).random
        self._kept: deque[_Kept] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lowbit-rescoring")
        self._session: LanguageSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def drawn(self, share: float | None = None) -> bool:
        """Whether chance takes an answer; `share` is another than usual."""
        return self._chance() < (self.share if share is None else share)

    def offer(self, prompt: Sequence[int], answer: Sequence[int], tell: Callable[[Scored], None]) -> None:
        """An answer went out; `tell` is called on the event loop, perhaps."""
        if self._closed or not answer or len(self._kept) >= ROOM:
            self.dropped += bool(answer)
            return
        self._kept.append(_Kept(tuple(prompt), tuple(answer), tell))
        if self._task is None or self._task.done():
            self._task = logs.logged("scoring answers again has ended", self._run())

    async def idle(self) -> None:
        """Waits until nothing is left to score."""
        while self._task is not None and not self._task.done():
            await asyncio.sleep(LOOK_S)

    async def _run(self) -> None:
        while self._kept and not self._closed:
            kept = self._kept.popleft()
            if not await self._moment():
                self.dropped += 1
                continue
            start = perf_counter()
            try:
                kept.tell(await asyncio.get_running_loop().run_in_executor(self._thread, self._score, kept))
            except Exception:  # nobody is waiting for it
                self.failed += 1
                logs.failed("scoring an answer again failed")
            if self._busy()[1]:
                await asyncio.sleep((perf_counter() - start) * (1 / DUTY - 1))

    async def _moment(self) -> bool:
        end = perf_counter() + PATIENCE_S
        while self._busy()[0]:
            if perf_counter() > end or self._closed:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    def _score(self, kept: _Kept) -> Scored:
        """In the thread."""
        if self._session is None:
            self._session = self._opens()
        return score(self._session, kept.prompt, kept.answer)

    def close(self) -> None:
        """Scores nothing more, and frees the model behind what runs."""
        self._closed = True

        def free() -> None:
            if self._session is not None:
                self._session.close()

        self._thread.submit(free)
        self._thread.shutdown(wait=False)


def score(session: LanguageSession, prompt: Sequence[int], answer: Sequence[int]) -> Scored:
    """What a model thinks of an answer to a prompt.

    Raises:
        RunError: the text does not fit it.
    """
    whole = [*prompt, *answer]
    if 4 * len(whole) * session.vocabulary <= AT_ONCE_BYTES:
        rows = session.logits(whole[:-1])[len(prompt) - 1 :]
        return _of(rows, answer)
    logits, found = session.start(prompt), Scored(0, 0.0, 0)
    for place, token in enumerate(answer):
        one = _of(logits[None], [token])
        found = Scored(found.tokens + 1, found.nats + one.nats, found.agreed + one.agreed)
        if place + 1 < len(answer):
            logits = session.step(token)
    return found


def _of(rows: Array, answer: Sequence[int]) -> Scored:
    """Logits [T, V] and the tokens that followed."""
    tokens = np.asarray(answer, np.intp)
    highest = rows.max(axis=1)
    total = np.log(np.exp(rows - highest[:, None]).sum(axis=1, dtype=np.float64))
    said = rows[np.arange(len(tokens)), tokens].astype(np.float64) - highest - total
    return Scored(len(tokens), float(-said.sum()), int(np.count_nonzero(rows.argmax(axis=1) == tokens)))
