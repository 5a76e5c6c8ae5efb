"""Dynamic batching: requests that wait while the runtime is busy go in together.

A free worker takes what is there at once; nobody waits for company unless a window is asked for. Under load the queue is what fills
batches, and an idle server answers as quickly as the runtime can. Everything but the runs themselves happens on the event loop, so there
are no locks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from lowbit.serving.refusals import Refusal, TooLate, Unavailable
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


@dataclass(eq=False)
class _Waiting:
    feeds: Feeds
    rows: int
    deadline: float
    since: float
    future: asyncio.Future[Answer] = field(repr=False)


class Batcher:
    """Puts requests together and hands each its own rows back.

    Attributes:
        settings: How.
        waiting: Rows in the queue now.
        running: Batches in the workers now.
    """

    def __init__(self, run: Run, settings: Batching, *, on_batch: Callable[[int], None] | None = None) -> None:
        """Starts the workers.

        Args:
            run: The runtime's call.
            settings: Limits.
            on_batch: Told the rows of every batch that ran.
        """
        self.settings = settings
        self.waiting = 0
        self.running = 0
        self._run = run
        self._on_batch = on_batch
        self._queues: dict[Hashable, deque[_Waiting]] = {}
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="lowbit-run")
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop holds tasks weakly
        self._wake: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    async def submit(self, feeds: Feeds, *, deadline: float = float("inf")) -> Answer:
        """Waits for the rows' answer.

        Args:
            feeds: Input name -> [N, ...] with the same N; requests whose other axes or dtypes differ never share a batch.
            deadline: On the event loop's clock; a request that has not started by then leaves the queue, and one that has is given up.

        Raises:
            Unavailable: the queue is full.
            TooLate: the deadline passed.
            Refusal: what the run raised for this request.
        """
        loop = asyncio.get_running_loop()
        now, rows = loop.time(), len(next(iter(feeds.values())))
        if deadline <= now:
            raise TooLate("The deadline had passed when the request came.")
        if self.waiting and self.waiting + rows > self.settings.max_queue:
            raise Unavailable(f"The queue is full: {self.waiting} rows wait, {self.settings.max_queue} may.", retry_after_s=1)
        entry = _Waiting(feeds, rows, deadline, now, loop.create_future())
        key = tuple((name, array.shape[1:], array.dtype.str) for name, array in sorted(feeds.items()))
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
            raise TooLate(f"The deadline passed {'while it ran' if entry.feeds is _TAKEN else 'in the queue'}.") from None
        finally:
            if entry.feeds is not _TAKEN:
                self._leave(key, entry)

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

    def close(self) -> None:
        """Refuses what still waits and ends the workers once they are done."""
        for entry in (entry for queue in self._queues.values() for entry in queue):
            if not entry.future.done():
                entry.future.set_exception(Unavailable("The server is stopping.", retry_after_s=1))
        self._queues.clear()
        self.waiting = 0
        self._pool.shutdown(wait=False)

    def _pump(self) -> None:
        """Gives every free worker a batch, or sees to it that somebody looks again when the window ends."""
        loop = asyncio.get_running_loop()
        while self.running < self.settings.workers and (queue := self._oldest()):
            due = queue[0].since + self.settings.window_s
            if self.settings.window_s and loop.time() < due and sum(entry.rows for entry in queue) < self.settings.max_batch:
                if self._wake is None or self._wake.cancelled() or self._wake.when() > due:
                    if self._wake is not None:
                        self._wake.cancel()
                    self._wake = loop.call_at(due, self._woken)
                break
            self.running += 1
            batch = self._take(queue)
            feeds = [entry.feeds for entry in batch]
            for entry in batch:
                entry.feeds = _TAKEN
            task = loop.create_task(self._serve(batch, feeds))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if not self.running and not self.waiting:
            self._idle.set()

    def _woken(self) -> None:
        self._wake = None
        self._pump()

    def _oldest(self) -> deque[_Waiting] | None:
        """The queue whose first request has waited longest."""
        for key in [key for key, queue in self._queues.items() if not queue]:
            del self._queues[key]
        return min(self._queues.values(), key=lambda queue: queue[0].since, default=None)

    def _take(self, queue: deque[_Waiting]) -> list[_Waiting]:
        """As many requests from the front as fit one batch, one at least."""
        taken = [queue.popleft()]
        rows = taken[0].rows
        while queue and rows + queue[0].rows <= self.settings.max_batch:
            taken.append(queue.popleft())
            rows += taken[-1].rows
        self.waiting -= rows
        return taken

    async def _serve(self, batch: Sequence[_Waiting], feeds: list[Feeds]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            found = await loop.run_in_executor(self._pool, _run_together, self._run, feeds, [entry.rows for entry in batch])
        except BaseException as error:  # the pool itself is gone
            found = [_refusal(error)] * len(batch)
        finally:
            self.running -= 1
        ran, rows = loop.time() - start, sum(entry.rows for entry in batch)
        if self._on_batch:
            self._on_batch(rows)
        for entry, outputs in zip(batch, found, strict=True):
            if entry.future.done():
                continue
            if isinstance(outputs, Refusal):
                entry.future.set_exception(outputs)
            else:
                entry.future.set_result(Answer(outputs, rows, start - entry.since, ran))
        self._pump()


_TAKEN: Feeds = {}
"""Stands where a request's arrays were, once a worker has them: they are freed with the batch."""


def _run_together(run: Run, feeds: Sequence[Feeds], rows: Sequence[int]) -> list[Mapping[str, Array] | Refusal]:
    """One run for all; where it fails, one for each, so that a bad request fails alone. Runs in a worker thread."""
    if len(feeds) == 1:
        return [_attempt(run, feeds[0])]
    try:
        outputs = run({name: np.concatenate([each[name] for each in feeds]) for name in feeds[0]})
    except Exception:
        return [_attempt(run, each) for each in feeds]
    ends = np.cumsum(rows)
    return [{name: array[end - n : end] for name, array in outputs.items()} for end, n in zip(ends, rows, strict=True)]


def _attempt(run: Run, feeds: Feeds) -> Mapping[str, Array] | Refusal:
    try:
        return run(feeds)
    except Exception as error:
        return _refusal(error)


def _refusal(error: BaseException) -> Refusal:
    if isinstance(error, Refusal):
        return error
    return Refusal(f"The model could not be run on this request: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
