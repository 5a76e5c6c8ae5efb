"""A number that knows where it comes from, and how sure it is.

    measured   by lowbit, on a machine that is named
    stated     somebody says so: a workload file, a price table, a report
    assumed    nobody said anything: a default, with its name
    derived    follows from others by a formula

Ranges go along: what is derived from figures with a low and a high end has both, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Origin = Literal["measured", "stated", "assumed", "derived"]


@dataclass(frozen=True)
class Figure:
    """One number with its unit and origin.

    Attributes:
        value: The best guess.
        unit: E.g. "USD/month".
        origin: See the module.
        note: The machine, the file, the default's name or the formula.
        low: Lower end; None where there is no range.
        high: Upper end; None where there is no range.
    """

    value: float
    unit: str
    origin: Origin
    note: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        ends = [end for end in (self.low, self.high) if end is not None]
        assert math.isfinite(self.value), f"{self.note}: {self.value} is no number"
        assert len(ends) in (0, 2), f"{self.note}: a range has two ends"
        assert not ends or self.low <= self.value <= self.high, f"{self.note}: {self.value} is not within {ends}"  # type: ignore[operator]

    @property
    def ends(self) -> tuple[float, float]:
        """Low and high; the value twice where there is no range."""
        return (self.value if self.low is None else self.low), (self.value if self.high is None else self.high)

    @property
    def ranged(self) -> bool:
        """Whether there is a range of any width."""
        low, high = self.ends
        return low < high

    def document(self) -> dict[str, Any]:
        """For JSON."""
        found = {"value": self.value, "unit": self.unit, "origin": self.origin, "note": self.note}
        return found | ({"low": self.low, "high": self.high} if self.ranged else {})


def measured(value: float, unit: str, note: str, ends: tuple[float, float] | None = None) -> Figure:
    """A figure that lowbit took itself."""
    return _of(value, unit, "measured", note, ends)


def stated(value: float, unit: str, note: str, ends: tuple[float, float] | None = None) -> Figure:
    """A figure that somebody gave."""
    return _of(value, unit, "stated", note, ends)


def assumed(value: float, unit: str, note: str, ends: tuple[float, float] | None = None) -> Figure:
    """A default."""
    return _of(value, unit, "assumed", note, ends)


def derived(function: Callable[..., float], *of: Figure, unit: str, note: str) -> Figure:
    """What follows from figures by a function that rises or falls in each of them; the ends are those of all corners."""
    value = function(*(figure.value for figure in of))
    if not any(figure.ranged for figure in of):
        return Figure(value, unit, "derived", note)
    corners = [function(*corner) for corner in itertools.product(*(set(figure.ends) for figure in of))]
    return Figure(value, unit, "derived", note, min(value, *corners), max(value, *corners))


def _of(value: float, unit: str, origin: Origin, note: str, ends: tuple[float, float] | None) -> Figure:
    low, high = ends if ends is not None and ends[0] < ends[1] else (None, None)
    return Figure(value, unit, origin, note, low, high)
