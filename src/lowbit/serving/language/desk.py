"""One variant's engine behind a queue: one thread owns the batch, prompts join between its steps, tokens go to the event loop.

A step is a call of native code that others need not wait for; what it gives is handed over in one call of the loop, however many answers
it belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lowbit.errors import LowbitError, RunError
from lowbit.llm.engines.base import ContinuousBatch, Emitted, Sampling
from lowbit.serving.protocol.refusals import Malformed, Refusal, Unavailable
from lowbit.serving.watch import logs

NOTHING_S = 0.0005
"""Pause where a step gave nothing although somebody waits."""
RETRY_S = 60.0
"""Nobody is told to come back later than after this."""
AGAIN_S = 30.0
"""An engine that could not be opened again is tried again after this."""
WARM_TOKENS = 2


class Crowded(Unavailable):
    """As many answers as may wait do."""

    status, code, outcome = 429, "RESOURCE_EXHAUSTED", "unavailable"


class EngineFailed(Refusal):
    """The engine failed on this answer."""


@dataclass
class Ticket:
    """One answer that somebody waits for.

    Attributes:
        number: Of the request to the engine.
        tokens: Of the prompt.
        sampling: How the answer is drawn.
        sink: Told of each token on the event loop, and of the refusal that ends it.
        asked_at: When it came, on the performance counter.
        began_at: When the engine took it; None as long as it waits.
        ran_s: Time of steps while it was inside.
        shared_s: The same, each step divided by the answers that were inside.
        ended: Nothing comes any more.
    """

    number: int
    tokens: Sequence[int]
    sampling: Sampling
    sink: Callable[[Ticket, Emitted | Refusal], None]
    asked_at: float
    began_at: float | None = None
    ran_s: float = 0.0
    shared_s: float = 0.0
    ended: bool = False

    @property
    def queued_s(self) -> float:
        """Time in the queue."""
        return (self.began_at or time.perf_counter()) - self.asked_at

    @property
    def company(self) -> int:
        """Answers that ran together, on average over its time; 1 where it was alone."""
        return max(1, round(self.ran_s / self.shared_s)) if self.shared_s else 1


@dataclass(frozen=True)
class DeskSettings:
    """Of one desk.

    Attributes:
        max_batch: Answers that are computed at once.
        max_queue: Answers that may wait.
    """

    max_batch: int
    max_queue: int


class Desk:
    """In front of one engine. Everything but `close` is called on the event loop.

    Attributes:
        settings: Its limits.
        vocabulary: Logits a token gets.
        context: Tokens that a prompt and its answer may have together.
        tells: Whether the engine tells tokens' probabilities.
    """

    def __init__(self, open_batch: Callable[[], ContinuousBatch], *, max_queue: int = 256) -> None:
        """Opens the engine, has it answer once, and starts the thread.

        Raises:
            RunError: it cannot be opened, or fails on its first tokens.
        """
        self._open = open_batch
        self._batch: ContinuousBatch | None = open_batch()
        self.settings = DeskSettings(self._batch.slots, max_queue)
        self.vocabulary, self.context = self._batch.vocabulary, self._batch.context
        try:
            self.tells = _warmed(self._batch)
        except BaseException:
            self._batch.close()
            raise
        self._numbers = 0
        self._waiting: deque[Ticket] = deque()
        self._inside: dict[int, Ticket] = {}
        self._left: list[int] = []
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._empty: asyncio.Event | None = None
        self._closed = False
        self._then: list[Callable[[], None]] = []
        self._mean_s = 1.0
        self._thread = threading.Thread(target=self._work, name="lowbit-language", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Answers that wait for a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Answers that are computed."""
        return len(self._inside)

    @property
    def kv_use(self) -> float | None:
        """Share of the cache of keys and values that is in use, 0-1; None where the engine does not say."""
        found: Any = getattr(self._batch, "kv_use", None)
        return float(found) if isinstance(found, int | float) else None

    @property
    def alive(self) -> bool:
        """Whether there is an engine."""
        return self._batch is not None and not self._closed

    def ask(
        self, prompts: Sequence[tuple[Sequence[int], Sampling]], sink: Callable[[Ticket, Emitted | Refusal], None]
    ) -> tuple[Ticket, ...]:
        """Takes prompts in, all or none.

        Raises:
            Crowded: there is no room for all of them.
            Unavailable: there is no engine any more.
            Malformed: more than could ever be taken at once.
        """
        self._check(len(prompts))
        self._loop = asyncio.get_running_loop()
        now, made = time.perf_counter(), []
        with self._changed:
            for tokens, sampling in prompts:
                self._numbers += 1
                made.append(Ticket(self._numbers, tokens, sampling, sink, now))
            self._waiting.extend(made)
            self._changed.notify()
        return tuple(made)

    def _check(self, more: int) -> None:
        if not self.alive:
            raise Unavailable("The model is not here any more.", retry_after_s=1)
        most = self.settings.max_queue
        free = max(0, self.settings.max_batch - len(self._inside))
        if more > most + self.settings.max_batch:
            raise Malformed(f"{more} answers are asked for at once; {most + self.settings.max_batch} are allowed.")
        if len(self._waiting) + more > most + free:
            rounds = (len(self._waiting) + more) / self.settings.max_batch
            raise Crowded(f"{len(self._waiting)} answers wait, and {most} may.", retry_after_s=min(RETRY_S, 1 + rounds * self._mean_s))

    def drop(self, ticket: Ticket) -> None:
        """Nobody waits for this one any more; its place is free after the step that runs. Dropping what has ended is fine."""
        with self._changed:
            if ticket.ended:
                return
            ticket.ended = True
            with contextlib.suppress(ValueError):
                self._waiting.remove(ticket)
            if ticket.number in self._inside:
                self._left.append(ticket.number)
            self._changed.notify()
        self._look()

    async def submit(self, *_: Any, **__: Any) -> Any:
        """What a batcher of arrays has.

        Raises:
            Malformed: always.
        """
        raise Malformed("This is a language model: ask it over /v1/chat/completions or /v1/completions.")

    async def drained(self) -> None:
        """Waits until nobody waits or is computed."""
        self._loop = asyncio.get_running_loop()
        while self._waiting or self._inside:
            if self._empty is None:
                self._empty = asyncio.Event()
            await self._empty.wait()

    def close(self, then: Callable[[], None] = lambda: None) -> None:
        """Refuses what has no answer yet, and frees the engine behind the step that runs. Closing twice is fine."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._then.append(then)
            lost = [*self._waiting, *self._inside.values()]
            self._waiting.clear()
            self._changed.notify()
        for ticket in lost:
            self._tell([(ticket, Unavailable("The server is stopping.", retry_after_s=1))])
        self._wake()

    # ── the thread ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._waiting or self._inside):
                    if not self._changed.wait(AGAIN_S if self._batch is None else None):
                        break
                if self._closed:
                    break
                joining, leaving = self._due()
            if self._batch is None:
                self._fail("The engine could not be opened again.")
                self._anew()
                continue
            if not self._dropped(leaving):
                continue
            for ticket in joining:
                self._join(ticket)
            if self._inside:
                self._step()
            elif leaving:
                self._wake()
        with self._changed:
            self._inside.clear()  # they were told when it was closed
        self._wake()
        batch, self._batch = self._batch, None
        try:
            if batch is not None:
                batch.close()
        except Exception:
            logs.failed("an engine was not freed")
        for then in self._then:
            then()

    def _dropped(self, leaving: list[int]) -> bool:
        """Has the engine forget who left. One that cannot is in no state that anybody knows: the thread must not end by it."""
        assert self._batch is not None, "there is one before anybody leaves"
        try:
            for number in leaving:
                self._batch.drop(number)
        except Exception as error:
            logs.failed("an engine did not let an answer go")
            self._fail(f"The engine failed: {error if isinstance(error, LowbitError | MemoryError) else type(error).__name__}.")
            self._anew()
            return False
        return True

    def _due(self) -> tuple[list[Ticket], list[int]]:
        """Who joins and who leaves before the next step; under the lock."""
        leaving, self._left = self._left, []
        for number in leaving:
            self._inside.pop(number, None)
        joining = []
        while self._waiting and len(self._inside) < self.settings.max_batch:
            ticket = self._waiting.popleft()
            self._inside[ticket.number] = ticket
            joining.append(ticket)
        return joining, leaving

    def _join(self, ticket: Ticket) -> None:
        assert self._batch is not None, "there is one before a prompt joins"
        ticket.began_at = time.perf_counter()
        try:
            self._batch.add(ticket.number, ticket.tokens, ticket.sampling)
        except LowbitError as error:  # lengths and tokens were checked before
            self._end([(ticket, EngineFailed(error.message))])
        except Exception as error:
            logs.failed("an engine did not take a prompt")
            self._end([(ticket, EngineFailed(f"The engine did not take the prompt: {type(error).__name__}."))])

    def _step(self) -> None:
        assert self._batch is not None, "there is one before a step"
        start = time.perf_counter()
        try:
            emitted = self._batch.step()
        except Exception as error:
            logs.failed("an engine failed")
            self._fail(f"The engine failed: {error if isinstance(error, LowbitError | MemoryError) else type(error).__name__}.")
            self._anew()
            return
        took, inside = time.perf_counter() - start, len(self._inside)
        told: list[tuple[Ticket, Emitted | Refusal]] = []
        ended: list[tuple[Ticket, Emitted | Refusal]] = []
        for ticket in list(self._inside.values()):
            ticket.ran_s += took
            ticket.shared_s += took / max(1, inside)
        for each in emitted:
            ticket_or_none = self._inside.get(each.request)
            if ticket_or_none is None:
                continue
            if each.finished == "failed":
                ended.append((ticket_or_none, EngineFailed(each.reason or "The engine failed on this answer.")))
            else:
                (told if each.finished is None else ended).append((ticket_or_none, each))
        self._tell(told)
        self._end(ended)
        if not emitted:
            time.sleep(NOTHING_S)

    def _fail(self, why: str) -> None:
        """Everything that is inside failed."""
        with self._changed:
            lost = [*self._inside.values(), *(self._waiting if self._batch is None else ())]
            if self._batch is None:
                self._waiting.clear()
        self._end([(ticket, EngineFailed(why)) for ticket in lost])

    def _anew(self) -> None:
        """An engine that failed in the middle of a step is in no state that anybody knows: another takes its place."""
        batch, self._batch = self._batch, None
        with contextlib.suppress(Exception):
            if batch is not None:
                batch.close()
        try:
            self._batch = self._open()
        except Exception:
            logs.failed("an engine could not be opened again")

    def _end(self, ended: list[tuple[Ticket, Emitted | Refusal]]) -> None:
        """Answers that are over, one way or the other; their places are free."""
        if not ended:
            return
        with self._changed:
            for ticket, _ in ended:
                self._inside.pop(ticket.number, None)
                spent = time.perf_counter() - (ticket.began_at or ticket.asked_at)
                self._mean_s = 0.9 * self._mean_s + 0.1 * spent
        self._tell(ended)
        self._wake()

    def _tell(self, told: list[tuple[Ticket, Emitted | Refusal]]) -> None:
        if told:
            self._call(_handed, told)

    def _wake(self) -> None:
        self._call(self._look)

    def _look(self) -> None:
        """Whether nobody is there any more; on the event loop."""
        if self._empty is not None and not self._waiting and not self._inside:
            self._empty.set()
            self._empty = None

    def _call(self, work: Callable[..., None], *given: Any) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it everybody who waited
                self._loop.call_soon_threadsafe(work, *given)


def _handed(told: list[tuple[Ticket, Emitted | Refusal]]) -> None:
    for ticket, what in told:
        if ticket.ended:
            continue
        ticket.ended = isinstance(what, Refusal) or what.finished is not None
        ticket.sink(ticket, what)


def _warmed(batch: ContinuousBatch) -> bool:
    """Has the engine answer once, so that nobody waits for what it prepares; tells whether it says how probable tokens are."""
    batch.add(0, [min(5, batch.vocabulary - 1)] * min(4, batch.context - WARM_TOKENS - 1), Sampling(WARM_TOKENS))
    told: list[Emitted] = []
    while not told or told[-1].finished is None:
        told += batch.step()
    if told[-1].finished == "failed":
        raise RunError(f"The engine failed on its first tokens: {told[-1].reason}", "Its log may say why.")
    tokens = [each for each in told if each.token is not None]
    return bool(tokens) and all(each.logprob is not None for each in tokens)
