"""What was recorded becomes windows, reviews and alerts while the server runs: a task that wakes once a second, and a thread that writes.

Requests are never waited for, and wait for nothing here. What the process knows and has not written yet is lost when it is killed: up to a
window of counts, and up to a second of answers and samples. Told to stop, it writes all of it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from lowbit.errors import UsageError
from lowbit.monitoring.alerts import Alert, Alerts, Webhook
from lowbit.monitoring.labels import Joined
from lowbit.monitoring.rules import Rules
from lowbit.monitoring.store import Monitoring
from lowbit.monitoring.tally import Key
from lowbit.serving.keep.books import ANSWERS, SAMPLES, Books
from lowbit.serving.keep.budget import Budget
from lowbit.serving.keep.keepsakes import Predictions, Sampler
from lowbit.serving.keep.settings import KeepSettings
from lowbit.serving.keep.spending import Ran, Spending, Spent, bill, of_server
from lowbit.serving.protocol.refusals import Unavailable
from lowbit.serving.run.deployment import Deployment
from lowbit.serving.settings import Settings
from lowbit.serving.watch import logs
from lowbit.serving.watch.observing import Observer
from lowbit.serving.watch.recording import Recorder

FLUSH_S = 1.0
"""Answers and samples are written so often."""
REFRESH_S = 5.0
"""What other processes may have changed, and what was spent, is asked for so often."""
Result = TypeVar("Result")


class Keeper:
    """Keeps what a server's observers hold on to. As an asynchronous context manager; observers are told of labels on the event loop.

    Attributes:
        settings: What is kept.
        recorder: Counts.
        predictions: None where labels are not waited for.
        sampler: None where inputs are not kept.
        books: The written side; only to be touched in the thread, but for its plain facts.
        alerts: Where they go.
        observers: Gives who is told of labels.
    """

    def __init__(
        self, recorder: Recorder, settings: KeepSettings, *, store: Monitoring | None = None, spending: Spending | None = None
    ) -> None:
        """Begins with nothing.

        Args:
            recorder: Hangs on the server's requests.
            settings: What is kept.
            store: Of the state folder; None keeps nothing beyond the process.
            spending: Of this process; None begins now.
        """
        self.settings, self.recorder = settings, recorder
        self.predictions = Predictions() if settings.feedback else None
        self.sampler = Sampler(settings.sample) if settings.sample else None
        self.alerts = Alerts(None if settings.webhook is None else Webhook(settings.webhook))
        self.observers: Callable[[], Sequence[Observer]] = tuple
        self.books = Books(
            store,
            spending or Spending.here(),
            rules=Rules(sla=settings.sla),
            redaction=settings.redaction,
            budget=None if settings.sla is None else Budget(settings.sla, self.alerts.send),
            tell=lambda review: self.alerts.send(Alert.of(review)),
        )
        self._redacted: dict[str, frozenset[str]] = {}  # inputs of each model, as its first version had them
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lowbit-monitoring")
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, settings: Settings, recorder: Recorder) -> Keeper:
        """As the settings say.

        Raises:
            UsageError: the state folder cannot be used, or something is to be kept and there is none.
        """
        wish = settings.keep
        if settings.state is None and wish.lasting is not None:
            raise UsageError(f"There is nowhere to keep {wish.lasting}.", "Give a folder: --state FOLDER.")
        store = None if settings.state is None else Monitoring(settings.state, retention=wish.retention)
        return cls(recorder, wish, store=store, spending=Spending.here(elsewhere=settings.ray is not None))

    @property
    def keepsakes(self) -> tuple[Observer, ...]:
        """Those that hold on to answers and inputs."""
        return tuple(observer for observer in (self.predictions, self.sampler) if observer is not None)

    @property
    def failures(self) -> Mapping[str, int]:
        """What could not be written, or found no room before it could, by what it was."""
        found = dict(self.books.failures)
        for what, observer in ((ANSWERS, self.predictions), (SAMPLES, self.sampler)):
            if observer is not None:
                found[what] = found.get(what, 0) + observer.waiting.dropped
        return found

    def meet(self, deployment: Deployment) -> None:
        """Keeps what its variants are compared with. Reads the disk: to be called in a thread, right after it was loaded."""
        self.books.meet(deployment)
        self._redact(deployment)

    def _redact(self, deployment: Deployment) -> None:
        """A later version whose inputs have other names must not let through what was to be redacted: its inputs are not kept."""
        if deployment.language is not None:
            if self.sampler is not None:  # what it was asked is not among what is counted of it
                self.sampler.left_out.add((deployment.name, deployment.version))
            return
        redaction, names = self.settings.redaction, {info.name: info.dtype for info in deployment.inputs}
        mine = (redaction.drop | redaction.blur) & names.keys()
        lacking = self._redacted.setdefault(deployment.name, mine) - mine
        if self.sampler is not None and (lacking or any(not names[name].startswith("float") for name in mine & redaction.blur)):
            self.sampler.left_out.add((deployment.name, deployment.version))
            logs.warn("its inputs are not kept: they are not those that are redacted", model=deployment.name, version=deployment.version)

    def check(self, deployments: Iterable[Deployment]) -> None:
        """Compares what is to be redacted with what comes in: a name that is written wrong must not let an input through.

        Raises:
            UsageError: no model has such an input, or one cannot be blurred.
        """
        redaction = self.settings.redaction
        inputs = [info for deployment in deployments for info in deployment.inputs]
        redaction.check([info.name for info in inputs])
        for info in inputs:
            if info.name in redaction.blur and not info.dtype.startswith("float"):
                raise UsageError(
                    f"Input '{info.name}' is {info.dtype}: only floating-point numbers can be blurred.", f"--redact {info.name} drops it."
                )

    async def __aenter__(self) -> Keeper:
        """Begins to keep."""
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Writes what is left, and lets the file go."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.flush()
        await self.window()
        await self._do(self.books.close)
        await self._do(self.alerts.close)
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        window_at, refresh_at = loop.time() + self.settings.window_s, loop.time() + REFRESH_S
        while True:
            await asyncio.sleep(max(0.0, min(FLUSH_S, window_at - loop.time())))
            try:
                await self.flush()
                if loop.time() >= window_at:
                    window_at = loop.time() + self.settings.window_s
                    await self.window()
                elif loop.time() >= refresh_at:
                    refresh_at = loop.time() + REFRESH_S
                    await self.refresh()
            except Exception:  # whatever it was, the next second has its turn
                logs.failed("monitoring failed")

    async def flush(self) -> None:
        """Writes the answers and samples that wait."""
        if self.predictions is not None and len(self.predictions.waiting):
            await self._do(self.books.answers, self.predictions.waiting.take())
        if self.sampler is not None and len(self.sampler.waiting):
            await self._do(self.books.sampled, self.sampler.waiting.take())

    async def window(self) -> None:
        """Ends a window now."""
        await self._do(self.books.window, self.recorder.snapshot(), self.recorder.ran())

    async def refresh(self) -> None:
        """Asks again what was spent, and which reviews are open."""
        await self._do(self.books.spend, self.recorder.ran())
        await self._do(self.books.refresh)

    async def label(self, request_id: str, label: Any, by: str = "") -> tuple[Joined, ...]:
        """Somebody says what an answer should have been; whoever watches is told.

        Returns:
            One for each row whose answer is known here, or to another server of the same folder.

        Raises:
            UsageError: it is no label.
            Unavailable: it could not be written.
        """
        await self.flush()
        joined = await self.ask(lambda _: self.books.label(request_id, label, by))
        for each in joined:
            if each.first:
                self._tell(each)
        return joined

    def _tell(self, joined: Joined) -> None:
        for observer in self.observers():
            try:
                observer.labelled(*joined.key, joined.right)
            except Exception:  # who watches must not cost anybody a label
                logs.failed("an observer failed", observer=type(observer).__name__)

    async def ask(self, work: Callable[[Monitoring], Result]) -> Result:
        """Has something done with the store, in the thread.

        Raises:
            Unavailable: the disk is full, or another process holds the file for too long.
        """
        store = self.books.store
        assert store is not None, "pages that need a store are there only with one"
        try:
            return await self._do(work, store)
        except (sqlite3.Error, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else error  # no path
            raise Unavailable(f"The state folder cannot be used now: {why}.", retry_after_s=5) from error

    async def bills(self) -> dict[str, Any]:
        """What `GET /v1/cost` shows."""
        ran = self.recorder.ran()
        spent = await self._do(self.books.spend, ran)
        return {"server": self.server_bill(), "models": [self.bill(key, spent[key], each) for key, each in ran.items()]}

    def bill(self, key: Key, spent: Spent, ran: Ran) -> dict[str, Any]:
        """Of one variant."""
        return bill(key, ran, spent, self.books.spending, self.settings.price)

    def server_bill(self) -> dict[str, Any]:
        """Of the whole server."""
        requests = sum(each.requests for each in self.recorder.ran().values())
        return of_server(requests, self.books.spending, self.settings.price)

    async def _do(self, work: Callable[..., Result], *given: Any) -> Result:
        """In the thread; what was begun ends there, whether or not somebody still waits for it."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work, *given))
