"""Alerts: to the log always, to a webhook where there is one. Sending never waits for anybody, and what cannot be sent is counted."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import lowbit
from lowbit.errors import UsageError
from lowbit.monitoring.reviews import Review

log = logging.getLogger("lowbit.monitoring")

WAITING = 1_000
"""Alerts that may wait; more than that are left out, and counted."""
PAUSES_S = (0.5, 2.0, 8.0, 30.0)
"""Between attempts."""
TIMEOUT_S = 5.0
AGAIN = (408, 425, 429)
"""Answers of a receiver after which another attempt makes sense; so do all from 500 on."""


@dataclass(frozen=True)
class Alert:
    """Something that somebody should know.

    Attributes:
        event: "review opened", "review answered", "budget burns", ...
        severity: "page", "ticket" or "info".
        text: In a sentence.
        at: Seconds since 1970.
        facts: Model, version, variant, numbers: whatever belongs to it.
    """

    event: str
    severity: str
    text: str
    at: float
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, review: Review) -> Alert:
        """A review was opened."""
        found = review.evidence["finding"]
        facts = {"review": review.id, **review.key._asdict(), "kind": review.kind, "value": found["value"], "limit": found["limit"]}
        return cls("review opened", "ticket", found["text"], review.opened, facts | {"n": found["n"]})

    def to_json(self) -> dict[str, Any]:
        """What a webhook is sent."""
        plain = {name: getattr(self, name) for name in ("event", "severity", "text", "at")}
        return {**plain, **self.facts, "lowbit": lowbit.__version__}


class Webhook:
    """Posts alerts as JSON, one after the other, in a thread of its own.

    Attributes:
        counts: "sent", "failed" (given up after all attempts) and "dropped" (found no room).
    """

    def __init__(
        self, url: str, *, pauses_s: tuple[float, ...] = PAUSES_S, waiting: int = WAITING, headers: Mapping[str, str] = {}
    ) -> None:
        """Begins to send.

        Args:
            url: http or https; never written to a log, as it may hold a secret.
            pauses_s: Between attempts; one more attempt than pauses.
            waiting: Alerts that may wait.
            headers: Sent along, e.g. of an authorization.

        Raises:
            UsageError: it is no such address.
        """
        self._url, self._host, self._pauses = url, _host(url), pauses_s
        self._headers = {"content-type": "application/json", "user-agent": f"lowbit/{lowbit.__version__}", **headers}
        self.counts: Counter[str] = Counter(sent=0, failed=0, dropped=0)
        self._queue: queue.Queue[Alert | None] = queue.Queue(waiting)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lowbit-webhook", daemon=True)
        self._thread.start()

    def send(self, alert: Alert) -> bool:
        """Takes an alert; returns at once. False where there was no room."""
        try:
            self._queue.put_nowait(alert)
        except queue.Full:
            self.counts["dropped"] += 1
            log.warning("an alert found no room", extra={"facts": {"event_lost": alert.event, "host": self._host}})
            return False
        return True

    def close(self, wait_s: float = 5.0) -> None:
        """Sends what waits for at most so long; what is left then is counted as failed."""
        deadline = time.monotonic() + wait_s
        self._ending.set()
        try:
            self._queue.put(None, timeout=wait_s)
        except queue.Full:
            log.warning("the webhook did not end in time", extra={"facts": {"host": self._host}})
        self._thread.join(max(deadline - time.monotonic(), 0.0))
        left = 0
        while True:
            try:
                left += self._queue.get_nowait() is not None
            except queue.Empty:
                break
        if left:
            self.counts["failed"] += left
            log.warning("alerts were not sent", extra={"facts": {"n": left, "host": self._host}})

    def _work(self) -> None:
        while (alert := self._queue.get()) is not None:
            self._deliver(alert)

    def _deliver(self, alert: Alert) -> None:
        for pause in (*self._pauses, None):
            why, again = self._attempt(alert)
            if why is None:
                self.counts["sent"] += 1
                return
            if pause is None or not again:
                break
            self._ending.wait(pause)  # whoever waits for the end waits for attempts, not for pauses
        self.counts["failed"] += 1
        log.warning("an alert could not be sent", extra={"facts": {"event_lost": alert.event, "host": self._host, "why": why}})

    def _attempt(self, alert: Alert) -> tuple[str | None, bool]:
        """Why it failed, None if it did not; and whether another attempt makes sense."""
        body = json.dumps(alert.to_json(), default=str).encode()
        request = urllib.request.Request(self._url, body, self._headers, method="POST")  # the scheme was checked
        try:
            with _opener().open(request, timeout=TIMEOUT_S):
                return None, False
        except urllib.error.HTTPError as error:
            return f"HTTP {error.code}", error.code >= 500 or error.code in AGAIN
        except Exception as error:  # refused, reset, timed out, a name that is not known: all of them may pass
            return type(error).__name__, True


def _host(url: str) -> str:
    """Whom it is sent to.

    Raises:
        UsageError: it is no address that could be sent to; the message does not repeat it.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.port != 0 and "@" not in parts.netloc and url.isprintable() and " " not in url
    except ValueError:  # half an IPv6 address, or a port that is no number
        usable = False
    if not usable or not parts.hostname:
        raise UsageError(
            "A webhook is an address of http or https, without a user's name.", "Give e.g. --webhook https://hooks.example.com/lowbit."
        )
    return parts.hostname


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """An address that was given is the one that is posted to: a redirect would turn it into another, and the POST into a GET."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirects)


class Alerts:
    """All places that alerts go to."""

    def __init__(self, webhook: Webhook | None = None, more: tuple[Callable[[Alert], None], ...] = ()) -> None:
        """The log, a webhook, and what else is called."""
        self.webhook, self._more = webhook, more
        self._logged = 0

    def send(self, alert: Alert) -> None:
        """Tells everybody; nothing here waits or fails."""
        self._logged += 1
        level = logging.INFO if alert.severity == "info" else logging.WARNING
        log.log(
            level, alert.event, extra={"facts": {name: value for name, value in alert.to_json().items() if name not in ("event", "lowbit")}}
        )
        if self.webhook is not None:
            self.webhook.send(alert)
        for each in self._more:
            try:
                each(alert)
            except Exception:
                log.exception("an alert was not taken")

    def counts(self) -> dict[tuple[str, str], int]:
        """(sink, result) -> alerts, for `lowbit_alerts_total`."""
        found = {("log", "sent"): self._logged}
        if self.webhook is not None:
            found |= {("webhook", result): n for result, n in self.webhook.counts.items()}
        return found

    def close(self) -> None:
        """Sends what waits."""
        if self.webhook is not None:
            self.webhook.close()
