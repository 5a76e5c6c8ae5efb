"""Structured logs: one JSON object a line, on stderr. What fails is logged always, what is answered as often as was asked for."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lowbit.serving.watch.observing import Observer

if TYPE_CHECKING:
    from lowbit.serving.answer.answered import Answered, Caller
    from lowbit.serving.protocol.refusals import Refusal
    from lowbit.serving.protocol.requests import InferRequest
    from lowbit.serving.run.deployment import Deployment

log = logging.getLogger("lowbit.serving")
FAULTS = 500
"""Status from which a refusal is the server's own fault or state, and is worth a warning."""


class JsonLines(logging.Formatter):
    """A record as one line of JSON; what a caller gives as `extra={"facts": {...}}` stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.name != log.name:
            document["logger"] = record.name
        if record.exc_info:
            document["trace"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


def configure(stream: Any = None) -> None:
    """All logs of this process go to stderr as JSON lines. Not for a library: the command line calls it."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    log.setLevel(logging.INFO)


def say(event: str, **facts: Any) -> None:
    """Something happened to the server."""
    log.info(event, extra={"facts": facts})


def warn(event: str, **facts: Any) -> None:
    """Something happened that somebody should look at."""
    log.warning(event, extra={"facts": facts})


def failed(event: str, **facts: Any) -> None:
    """Something of ours failed, with its trace: to be called where an exception was caught."""
    log.error(event, exc_info=True, extra={"facts": facts})


def logged(event: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task beside the requests whose failure is not silent: nobody awaits it."""

    async def watched() -> None:
        try:
            await work
        except Exception:
            failed(event)

    task = asyncio.get_running_loop().create_task(watched())
    task.add_done_callback(lambda _: work.close())  # cancelled before it began, it would be called forgotten
    return task


class RequestLog(Observer):
    """Logs requests with their ids.

    Attributes:
        share: Of the answered ones.
    """

    def __init__(self, share: float, seed: int | None = None) -> None:
        """Logs that share of answers, chosen by chance."""
        self.share = share
        self._chance = random.Random(seed).random

    def answered(self, deployment: Deployment, request: InferRequest, caller: Caller, found: Answered, seconds: float) -> None:  # noqa: ARG002
        """One line, for some."""
        if not self.share or self._chance() >= self.share:
            return
        facts = {
            "request_id": caller.request_id,
            "model": deployment.name,
            "version": deployment.version,
            "variant": found.variant.id,
            "route": found.route,
            "batch": found.batch,
            "queued_ms": round(1000 * found.queued_s, 3),
            "ran_ms": round(1000 * found.ran_s, 3),
            "ms": round(1000 * seconds, 3),
        }
        log.info("answered", extra={"facts": facts})

    def refused(self, deployment: Deployment | None, caller: Caller, refusal: Refusal, seconds: float) -> None:
        """One line: a warning for what is our fault, else information, because a client's mistakes are its own."""
        facts = {
            "request_id": caller.request_id,
            "model": deployment.name if deployment else None,
            "outcome": refusal.outcome,
            "status": refusal.status,
            "why": refusal.message,
            "ms": round(1000 * seconds, 3),
        }
        log.log(logging.WARNING if refusal.status >= FAULTS else logging.INFO, "refused", extra={"facts": facts})
