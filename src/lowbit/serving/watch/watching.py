"""Everything that watches one server's requests, put together as its settings say."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.bundle.manifest import write_atomic
from lowbit.errors import LowbitError, UsageError
from lowbit.serving.keep.keeping import Keeper
from lowbit.serving.keep.kept_metrics import KeptFacts
from lowbit.serving.run.deployment import Deployment
from lowbit.serving.settings import Settings
from lowbit.serving.watch.logs import RequestLog
from lowbit.serving.watch.metrics import Metrics
from lowbit.serving.watch.observing import Observer
from lowbit.serving.watch.recording import Recorder
from lowbit.serving.watch.traces import Traces

if TYPE_CHECKING:
    from lowbit.serving.service import Service

MONITORING = "monitoring.json"


@dataclass(frozen=True)
class Watching:
    """What hangs on a server's requests.

    Attributes:
        metrics: Counts.
        recorder: Confidences, classes, latencies and inputs; None where they are not kept.
        keeper: Makes windows out of them; None where there is no recorder.
        traces: None where there are none.
        log: Of requests.
        state: Folder in which the last recording stays when the server ends.
    """

    metrics: Metrics
    recorder: Recorder | None
    keeper: Keeper | None
    traces: Traces | None
    log: RequestLog
    state: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> Watching:
        """As the settings say.

        Raises:
            UsageError: traces are wanted, and their library is not installed; the state folder cannot be used; something is to be kept, and
                there is nowhere, or nothing is recorded.
        """
        traces, metrics = Traces() if settings.traces else None, Metrics()
        if settings.record:
            recorder = Recorder()
            keeper = Keeper.of(settings, recorder)
            return cls(metrics, recorder, keeper, traces, RequestLog(settings.access_log), settings.state)
        if settings.keep.lasting is not None:
            raise UsageError(f"There is nothing to keep {settings.keep.lasting} with.", "Leave --no-record out.")
        return cls(metrics, None, None, traces, RequestLog(settings.access_log), settings.state)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """All there are."""
        kept = () if self.keeper is None else self.keeper.keepsakes
        found = (self.metrics, self.metrics.spoken, self.recorder, *kept, self.traces, self.log)
        return tuple(observer for observer in found if observer is not None)

    @contextlib.asynccontextmanager
    async def keeping(self, service: Service) -> AsyncIterator[Keeper | None]:
        """Reads gauges from a service, and keeps what is recorded of it until this ends."""
        self.metrics.watch(service)
        if self.keeper is None:
            yield None
            return
        self.keeper.observers = lambda: service.observers  # more of them may come
        self.metrics.registry.register(KeptFacts(self.keeper))
        async with self.keeper:
            yield self.keeper

    def meet(self, deployment: Deployment) -> None:
        """A deployment was loaded just now; in a thread."""
        if self.keeper is not None:
            self.keeper.meet(deployment)

    def check(self, service: Service) -> None:
        """Compares wishes with what is served.

        Raises:
            UsageError: an input is to be redacted that no model has.
        """
        if self.keeper is not None:
            self.keeper.check(service.loaded)

    def close(self) -> None:
        """Sends what is left to send, and keeps what was recorded."""
        if self.traces is not None:
            self.traces.close()
        if self.recorder is not None and self.state is not None:
            with contextlib.suppress(LowbitError):  # a full disk must not spoil a clean end
                write_atomic(self.state / MONITORING, json.dumps(self.recorder.snapshot()))
