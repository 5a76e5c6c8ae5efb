"""Everything that watches one server's requests, put together as its settings say."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from lowbit.bundle.manifest import write_atomic
from lowbit.errors import LowbitError
from lowbit.serving.settings import Settings
from lowbit.serving.watch.logs import RequestLog
from lowbit.serving.watch.metrics import Metrics
from lowbit.serving.watch.observing import Observer
from lowbit.serving.watch.recording import Recorder
from lowbit.serving.watch.traces import Traces

MONITORING = "monitoring.json"


@dataclass(frozen=True)
class Watching:
    """What hangs on a server's requests.

    Attributes:
        metrics: Counts.
        recorder: Confidences and inputs; None where they are not kept.
        traces: None where there are none.
        log: Of requests.
        state: Folder in which the last recording stays when the server ends.
    """

    metrics: Metrics
    recorder: Recorder | None
    traces: Traces | None
    log: RequestLog
    state: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> Watching:
        """As the settings say.

        Raises:
            UsageError: traces are wanted, and their library is not installed.
        """
        traces = Traces() if settings.traces else None
        return cls(Metrics(), Recorder() if settings.record else None, traces, RequestLog(settings.access_log), settings.state)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """All there are."""
        return tuple(observer for observer in (self.metrics, self.recorder, self.traces, self.log) if observer is not None)

    def close(self) -> None:
        """Sends what is left to send, and keeps what was recorded."""
        if self.traces is not None:
            self.traces.close()
        if self.recorder is not None and self.state is not None:
            with contextlib.suppress(LowbitError):  # a full disk must not spoil a clean end
                write_atomic(self.state / MONITORING, json.dumps(self.recorder.snapshot()))
