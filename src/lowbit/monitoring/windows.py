"""Windows of traffic: what came in a span of time, or the latest so many answers. Pure, and mergeable over servers and restarts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from lowbit.monitoring import latency
from lowbit.monitoring.tally import Key, Tally

PERCENTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class Window:
    """What came to one variant in a span of time.

    Attributes:
        key: Model, version and variant.
        since: Seconds since 1970.
        until: Likewise.
        tally: What was counted.
        server: Which server counted; "" for several.
    """

    key: Key
    since: float
    until: float
    tally: Tally = field(default_factory=Tally)
    server: str = ""

    def __add__(self, other: Window) -> Window:
        """Both together, of the same variant."""
        assert self.key == other.key, (self.key, other.key)
        server = self.server if self.server == other.server else ""
        return Window(self.key, min(self.since, other.since), max(self.until, other.until), self.tally + other.tally, server)

    @property
    def error_rate(self) -> float:
        """Failed by the server's fault, of all that ended."""
        return self.tally.errors / self.tally.requests if self.tally.requests else 0.0

    @property
    def throughput_per_s(self) -> float:
        """Requests a second."""
        return self.tally.requests / (self.until - self.since) if self.until > self.since else 0.0

    def latency_ms(self) -> dict[str, float] | None:
        """ "p50", "p95" and "p99" in milliseconds; None where nothing was counted."""
        found = {f"p{share * 100:g}": latency.quantile(self.tally.seconds, share) for share in PERCENTILES}
        return {name: 1000 * value for name, value in found.items() if value is not None} or None

    def to_json(self) -> dict[str, Any]:
        """Everything, exactly."""
        return {**self.key._asdict(), "since": self.since, "until": self.until, "server": self.server, "tally": self.tally.to_json()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Window:
        """What `to_json` gave."""
        key = Key(document["model"], document["version"], document["variant"])
        return cls(key, document["since"], document["until"], Tally.from_json(document["tally"]), document.get("server", ""))


def merged(windows: Iterable[Window]) -> dict[Key, Window]:
    """One window for each variant: all of its windows together, whichever server they are from."""
    groups: dict[Key, list[Window]] = {}
    for window in windows:
        groups.setdefault(window.key, []).append(window)
    return {key: reduce(Window.__add__, group) for key, group in groups.items()}


def latest(windows: Sequence[Window], *, rows: int, since: float = 0.0) -> Window | None:
    """The shortest window up to now that holds so many recorded rows, or all there are.

    Args:
        windows: Of one variant, in any order.
        rows: Recorded rows that are enough.
        since: What ended before is left out, seconds since 1970.

    Returns:
        None where there is nothing.
    """
    found: Window | None = None
    for window in sorted(windows, key=lambda each: each.until, reverse=True):
        if window.until < since or (found is not None and found.tally.recorded >= rows):
            break
        found = window if found is None else found + window
    return found


def buckets(windows: Iterable[Window], seconds: float) -> list[Window]:
    """Windows of one length in time: those of all servers whose end falls into the same span are one, in order of time.

    Args:
        windows: Of any variants.
        seconds: Length of a span.
    """
    groups: dict[tuple[Key, int], Window] = {}
    for window in windows:
        place = (window.key, int(window.until // seconds))
        groups[place] = groups[place] + window if place in groups else window
    return sorted(groups.values(), key=lambda window: (window.until, window.key))
