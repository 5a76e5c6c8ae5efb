"""Dynamic batching: requests that wait while the runtime is busy go in together.

A free worker takes what is there at once; nobody waits for company unless a window is asked for. Under load the queue is what fills
batches, and an idle server answers as quickly as the runtime can. Everything but the runs themselves happens on the event loop, so there
are no locks.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np

from lowbit.serving.protocol.refusals import Refusal, TooLate, Unavailable
from lowbit.types import Array, Feeds

Run = Callable[[Feeds], Mapping[str, Array]]
"""Runs any number of rows; called in a worker thread."""


@dataclass(frozen=True)
class Batching:
    """How requests are put together.

    Attributes:
        max_batch: Rows in a batch; a request with more goes alone.
        window_s: How long a free worker waits for a batch to fill.
        max_queue: Rows that may wait; a request beyond them is refused at once. A request always fits an empty queue.
        workers: Batches that run at once.
    """

    max_batch: int = 8
    window_s: float = 0.0
    max_queue: int = 256
    workers: int = 1


@dataclass(frozen=True)
class Answer:
    """What came back for one request.

    Attributes:
        outputs: By name, the request's own rows.
        batch: Rows that ran together.
        queued_s: From submission to the start of the run.
        ran_s: The run.
    """

    outputs: Mapping[str, Array]
    batch: int
    queued_s: float
    ran_s: float


class Padding(Protocol):
    """Brings requests of different lengths to one, so that they can share a batch."""

    def key(self, feeds: Feeds) -> Hashable:
        """Requests with the same key may run together; None where this one cannot be filled up."""
        ...

    def length(self, feeds: Feeds) -> int:
        """Of a request."""
        ...

    def fill(self, feeds: Feeds, length: int) -> Feeds:
        """The same with another length."""
        ...

    def trim(self, outputs: Mapping[str, Array], length: int) -> Mapping[str, Array]:
        """Outputs of that length."""
        ...


@dataclass(eq=False)
class _Waiting:
    feeds: Feeds
    rows: int
    deadline: float
    since: float
    future: asyncio.Future[Answer] = field(repr=False)
    came: float = field(default_factory=perf_counter)  # an event loop's own clock may be as coarse as a millisecond
    taken: bool = False


class Batcher:
    """Puts requests together and hands each its own rows back.

    Attributes:
        settings: How.
        waiting: Rows in the queue now.
        running: Batches in the workers now.
    """

    def __init__(
        self, run: Run, settings: Batching, *, on_batch: Callable[[int], None] | None = None, padding: Padding | None = None
    ) -> None:
        """Starts the workers.

        Args:
            run: The runtime's call.
            settings: Limits.
            on_batch: Told the rows of every batch that ran.
            padding: For sequences; None where lengths may not be changed.
        """
        self.settings = settings
        self.waiting = 0
        self.running = 0
        self._run, self._on_batch, self._padding = run, on_batch, padding
        self._queues: dict[Hashable, deque[_Waiting]] = {}
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="lowbit-run")
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop holds tasks weakly
        self._wake: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._taken: set[_Waiting] = set()  # in the workers
        self._row_s = 0.0  # from one row to the next, as the last batches had it
        self._ended = 0.0  # the last batch
        self._inside = 0  # rows in the workers

    async def submit(self, feeds: Feeds, *, deadline: float = float("inf")) -> Answer:
        """Waits for the rows' answer.

        Args:
            feeds: Input name -> [N, ...] with the same N; requests whose other axes or dtypes differ never share a batch, but for sequences
                that may be filled up.
            deadline: On the event loop's clock; a request that has not started by then leaves the queue, and one that has is given up.

        Raises:
            Unavailable: the queue is full, or so long that the deadline would pass in it.
            TooLate: the deadline passed.
            Refusal: what the run raised for this request.
        """
        loop = asyncio.get_running_loop()
        now, rows = loop.time(), len(next(iter(feeds.values())))
        self._admit(rows, now, deadline)
        entry = _Waiting(feeds, rows, deadline, now, loop.create_future())
        key = (self._padding and self._padding.key(feeds)) or tuple((n, a.shape[1:], a.dtype.str) for n, a in sorted(feeds.items()))
        self._queues.setdefault(key, deque()).append(entry)
        self.waiting += rows
        self._idle.clear()
        self._pump()
        try:
            if deadline == float("inf"):
                return await entry.future
            async with asyncio.timeout_at(deadline):
                return await entry.future
        except TimeoutError:
            raise TooLate(f"The deadline passed {'while it ran' if entry.taken else 'in the queue'}.") from None
        finally:
            if not entry.taken:
                self._leave(key, entry)

    def _admit(self, rows: int, now: float, deadline: float) -> None:
        """Refuses at once what could only wait in vain: its client can still go elsewhere."""
        if self._closed:
            raise Unavailable("The server is stopping.", retry_after_s=1)
        if deadline <= now:
            raise TooLate("The deadline had passed when the request came.")
        if self.waiting and self.waiting + rows > self.settings.max_queue:
            raise Unavailable(f"The queue is full: {self.waiting} rows wait, {self.settings.max_queue} may.", retry_after_s=1)
        expected = MARGIN * self._row_s * (self.waiting + rows + self._inside / 2)
        if self.waiting and now + expected > deadline:
            left = 1000 * (deadline - now)
            raise Unavailable(f"The answer would take about {1000 * expected:.0f} ms, and {left:.0f} ms are left.", retry_after_s=1)

    def _leave(self, key: Hashable, entry: _Waiting) -> None:
        """A client that has gone, or a deadline that has passed, makes room at once."""
        queue = self._queues.get(key, deque())
        if entry in queue:
            queue.remove(entry)
            self.waiting -= entry.rows
            self._pump()

    async def drained(self) -> None:
        """Waits until nothing is queued or running."""
        await self._idle.wait()

    def close(self, then: Callable[[], None] | None = None) -> None:
        """Refuses what has no answer yet, and ends the workers once they are done: a run cannot be stopped. Closing twice is fine.

        Args:
            then: Called once no worker runs anything any more, in this thread or another.
        """
        if self._closed:
            return
        self._closed = True
        for entry in (*self._taken, *(entry for queue in self._queues.values() for entry in queue)):
            entry.taken = True
            if not entry.future.done():
                entry.future.set_exception(Unavailable("The server is stopping.", retry_after_s=1))
        self._queues.clear()
        self.waiting = 0
        if self._wake is not None:
            self._wake.cancel()
        if not self.running:
            self._idle.set()
            self._end(then)
        else:
            threading.Thread(target=self._end, args=(then,), name="lowbit-end").start()

    def _end(self, then: Callable[[], None] | None) -> None:
        self._pool.shutdown()
        if then is not None:
            then()

    def _pump(self) -> None:
        """Gives every free worker a batch, or sees to it that somebody looks again when the window ends."""
        loop = asyncio.get_running_loop()
        while self.running < self.settings.workers and (queue := self._next(loop)) is not None:
            batch = self._take(queue, loop.time())
            if not batch:
                continue
            self.running += 1
            self._inside += sum(entry.rows for entry in batch)
            feeds = [entry.feeds for entry in batch]
            for entry in batch:
                entry.feeds = _TAKEN
            self._taken.update(batch)
            task = loop.create_task(self._serve(batch, feeds))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if not self.running and not self.waiting:
            self._idle.set()

    def _next(self, loop: asyncio.AbstractEventLoop) -> deque[_Waiting] | None:
        """Of the queues that are full or whose window has ended, the one whose first request has waited longest: none starves."""
        for key in [key for key, queue in self._queues.items() if not queue]:
            del self._queues[key]
        if not self.settings.window_s:
            return min(self._queues.values(), key=_since, default=None)
        latest = loop.time() - self.settings.window_s
        ready = [queue for queue in self._queues.values() if _since(queue) <= latest or _rows(queue) >= self.settings.max_batch]
        if not ready and self._queues:
            self._look_again(loop, min(map(_since, self._queues.values())) + self.settings.window_s)
        return min(ready, key=_since, default=None)

    def _look_again(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._wake is not None and not self._wake.cancelled():
            if self._wake.when() <= when:
                return
            self._wake.cancel()
        self._wake = loop.call_at(when, self._woken)

    def _woken(self) -> None:
        self._wake = None
        self._pump()

    def _take(self, queue: deque[_Waiting], now: float) -> list[_Waiting]:
        """As many requests from the front as fit one batch, without those that nobody waits for any more or that would come too late."""
        taken: list[_Waiting] = []
        rows = 0
        ends = now + self._row_s * min(_rows(queue), self.settings.max_batch)
        while queue and (not taken or rows + queue[0].rows <= self.settings.max_batch):
            entry = queue.popleft()
            self.waiting -= entry.rows
            in_vain = entry.deadline <= (ends if queue else now)  # what is expected may be wrong: the last one is tried
            if entry.future.done() or in_vain:
                _give_up(entry, now)
                continue
            entry.taken = True
            taken.append(entry)
            rows += entry.rows
        return taken

    async def _serve(self, batch: Sequence[_Waiting], feeds: list[Feeds]) -> None:
        loop = asyncio.get_running_loop()
        start = perf_counter()
        rows = sum(entry.rows for entry in batch)
        found: list[Mapping[str, Array] | Refusal]
        try:
            found = await loop.run_in_executor(self._pool, _run_together, self._run, feeds, [entry.rows for entry in batch], self._padding)
        except BaseException as error:  # the pool itself is gone
            found = [_refusal(error)] * len(batch)
        finally:
            self.running -= 1
            self._inside -= rows
            self._taken.difference_update(batch)
        end = perf_counter()
        ran, step = end - start, (end - max(self._ended, batch[0].came)) / rows
        self._ended = end
        for entry, outputs in zip(batch, found, strict=True):
            if entry.future.done():
                continue
            if isinstance(outputs, Refusal):
                entry.future.set_exception(outputs)
            else:
                entry.future.set_result(Answer(outputs, rows, start - entry.came, ran))
        self._row_s += (step - self._row_s) * (RECENT if self._row_s else 1.0)
        self._pump()
        if self._on_batch:
            self._on_batch(rows)


RECENT = 0.2
"""Weight of the last batch in what a row is expected to take."""
MARGIN = 1.25
"""On what an answer is expected to take: work on an answer that comes too late is lost to all."""


def _since(queue: deque[_Waiting]) -> float:
    return queue[0].since


def _rows(queue: deque[_Waiting]) -> int:
    return sum(entry.rows for entry in queue)


def _give_up(entry: _Waiting, now: float) -> None:
    entry.taken, entry.feeds = True, _TAKEN
    if entry.future.done():
        return
    if entry.deadline <= now:
        entry.future.set_exception(TooLate("The deadline passed in the queue."))
    else:
        left = 1000 * (entry.deadline - now)
        entry.future.set_exception(Unavailable(f"The answer would come too late: {left:.0f} ms are left.", retry_after_s=1))


_TAKEN: Feeds = {}
"""Stands where a request's arrays were, once a worker has them: they are freed with the batch."""


def _run_together(
    run: Run, feeds: Sequence[Feeds], rows: Sequence[int], padding: Padding | None = None
) -> list[Mapping[str, Array] | Refusal]:
    """One run for all; where it fails, one for each, so that a bad request fails alone. Runs in a worker thread."""
    if len(feeds) == 1:
        return [_attempt(run, feeds[0])]
    lengths = [padding.length(each) for each in feeds] if padding else []
    ragged = len(set(lengths)) > 1
    try:
        filled = [padding.fill(each, max(lengths)) for each in feeds] if padding and ragged else feeds
        outputs = run({name: np.concatenate([each[name] for each in filled]) for name in filled[0]})
    except Unavailable as refusal:  # nobody's own fault: asking for each alone would find nobody, too
        return [Unavailable(refusal.message, refusal.retry_after_s) for _ in feeds]
    except Exception:
        return [_attempt(run, each) for each in feeds]
    total = sum(rows)
    if any(array.ndim == 0 or len(array) != total for array in outputs.values()):  # nobody's rows can be told from another's
        return [_attempt(run, each) for each in feeds]
    ends = np.cumsum(rows)
    found = [{name: array[end - n : end] for name, array in outputs.items()} for end, n in zip(ends, rows, strict=True)]
    if padding and ragged:
        return [padding.trim(each, length) for each, length in zip(found, lengths, strict=True)]
    return list(found)


def _attempt(run: Run, feeds: Feeds) -> Mapping[str, Array] | Refusal:
    try:
        return run(feeds)
    except Exception as error:
        return _refusal(error)


def _refusal(error: BaseException) -> Refusal:
    if isinstance(error, Refusal):
        return error
    return Refusal(f"The model could not be run on this request: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
