"""What was promised, and how fast the allowance for breaking it is used up. Pure.

Burn rates over two windows each, long and short, so that an alert comes soon, and goes soon after the trouble did (Beyer et al., "The Site
Reliability Workbook", 2018, chapter 5): 14.4 times the even rate for an hour uses up 2 % of a month's budget, 6 times for six hours 5 %,
once for three days 10 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

from lowbit.errors import UsageError
from lowbit.monitoring import latency
from lowbit.monitoring.findings import Finding
from lowbit.monitoring.windows import Window

HOUR_S = 3600.0


@dataclass(frozen=True)
class Sla:
    """A promise.

    Attributes:
        latency_s: Requests are answered within this.
        share: That many of them, 0-1.
        available: Share of requests that do not fail by the server's fault.
    """

    latency_s: float = 0.1
    share: float = 0.99
    available: float = 0.999

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UsageError: one of them promises nothing, or more than anybody can keep.
        """
        if not 0 < self.latency_s < math.inf:
            raise UsageError(f"A promise of {self.latency_s:g} s cannot be kept.", "Give e.g. 100ms.")
        for name, value in (("share of quick answers", self.share), ("share of answers", self.available)):
            if not 0 < value < 1:
                raise UsageError(f"A {name} of {value:g} is not between 0 and 1.", "Give e.g. 0.99; 1 leaves no budget to burn.")

    @classmethod
    def parse(cls, text: str) -> Sla:
        """Reads "100ms", "100ms:0.99" or "100ms:0.99:0.999".

        Raises:
            UsageError: not of that form.
        """
        parts = text.split(":")
        units = {"ms": 1e-3, "s": 1.0}
        unit = next((unit for unit in units if parts[0].strip().endswith(unit)), "")
        try:
            seconds = float(parts[0].strip().removesuffix(unit)) * units[unit]
            return cls(seconds, *(float(part) for part in parts[1:]))
        except (KeyError, ValueError, TypeError) as error:
            raise UsageError(
                f"'{text}' is not a promise.", "Give e.g. 100ms:0.99:0.999: 99 % within 100 ms, 99.9 % without an error."
            ) from error


SLA = Sla()
"""Where nobody says more: 99 % within 100 ms, 99.9 % without an error."""


@dataclass(frozen=True)
class Pair:
    """A long and a short window that have to burn alike.

    Attributes:
        long_s: Seconds.
        short_s: Seconds.
        rate: Times the even rate.
        severity: Of the alert.
    """

    long_s: float
    short_s: float
    rate: float
    severity: str


PAIRS = (
    Pair(HOUR_S, HOUR_S / 12, 14.4, "page"),
    Pair(6 * HOUR_S, HOUR_S / 2, 6.0, "page"),
    Pair(72 * HOUR_S, 6 * HOUR_S, 1.0, "ticket"),
)


@dataclass(frozen=True)
class Burn:
    """How fast a budget is used up.

    Attributes:
        objective: "latency" or "errors".
        pair: Which windows.
        long: Burn rate of the long one: 1 uses up exactly the budget.
        short: Of the short one.
        n: Requests in the long one.
    """

    objective: str
    pair: Pair
    long: float
    short: float
    n: int

    @property
    def alert(self) -> bool:
        """Whether both are over the rate."""
        return self.long > self.pair.rate and self.short > self.pair.rate


def burns(windows: Iterable[Window], sla: Sla, now: float) -> tuple[Burn, ...]:
    """Burn rates of a model now.

    Args:
        windows: Of one model, whichever variants and servers.
        sla: What was promised.
        now: Seconds since 1970.
    """
    kept = list(windows)
    spans = {
        span: _rates([each for each in kept if now - span < each.until <= now], sla)
        for pair in PAIRS
        for span in (pair.long_s, pair.short_s)
    }
    return tuple(
        Burn(objective, pair, spans[pair.long_s][place], spans[pair.short_s][place], spans[pair.long_s][2])
        for pair in PAIRS
        for place, objective in enumerate(("latency", "errors"))
    )


def _rates(windows: list[Window], sla: Sla) -> tuple[float, float, int]:
    """Burn rate of latency, of errors, and the requests they rest on."""
    if not windows:
        return 0.0, 0.0, 0
    together = reduce(lambda one, other: one + other, (window.tally for window in windows))
    slow = latency.share_over(together.seconds, sla.latency_s) if together.seconds else 0.0
    failed = together.errors / together.requests if together.requests else 0.0
    return slow / (1 - sla.share), failed / (1 - sla.available), together.requests


def findings(window: Window, sla: Sla) -> list[Finding | None]:
    """What a window says of the promise; told, and never a review: nobody can accept it as normal."""
    slow, failed, n = _rates([window], sla)
    found: list[Finding | None] = []
    if sum(window.tally.seconds):
        share = slow * (1 - sla.share)
        text = f"{share:.2%} of the answers took more than {1000 * sla.latency_s:g} ms; {1 - sla.share:.2%} may"
        found.append(Finding("latency", slow, 1.0, False, f"{text}: {slow:.1f} times the budget.", n, {"share": share}))
    if window.tally.requests:
        text = f"{window.error_rate:.2%} of the requests failed; {1 - sla.available:.2%} may"
        found.append(Finding("errors", failed, 1.0, False, f"{text}: {failed:.1f} times the budget.", n, {"share": window.error_rate}))
    return found
