"""What was counted of one variant's answers: adds up over servers and time, and the difference of two counts is what came between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from lowbit.monitoring.moments import Moments


class Key(NamedTuple):
    """Whose answers: confidences of two variants differ by construction, so nothing is ever compared across them."""

    model: str
    version: str
    variant: str


@dataclass(frozen=True)
class Tally:
    """Counts of one variant.

    Attributes:
        requests: That ended, answered or not.
        errors: Of those, the ones that failed by the server's own fault.
        rows: That were answered by a run.
        recorded: Of those, the rows whose confidence and inputs were looked at.
        confidence: Counts in 256 equal bins over [0, 1]; () where the answers are no classes.
        seconds: Latency of answered requests: counts in the bins of `latency.EDGES_S`; () where nobody counted.
        predictions: Rows by their most probable class; () where the answers are no classes.
        inputs: Numbers of each input, whatever their place.
        columns: Of each tabular input, the numbers of each of its columns.
        busy_s: Seconds that cores worked for these rows.
        joules: That a meter counted for them; None without a meter.
    """

    requests: int = 0
    errors: int = 0
    rows: int = 0
    recorded: int = 0
    confidence: tuple[int, ...] = ()
    seconds: tuple[int, ...] = ()
    predictions: tuple[int, ...] = ()
    inputs: Mapping[str, Moments] = field(default_factory=dict)
    columns: Mapping[str, tuple[Moments, ...]] = field(default_factory=dict)
    busy_s: float = 0.0
    joules: float | None = None

    def __add__(self, other: Tally) -> Tally:
        """Of both."""
        return self._with(other, 1)

    def __sub__(self, before: Tally) -> Tally:
        """Of what came after `before`, which these hold, too."""
        return self._with(before, -1)

    def began_anew(self, before: Tally) -> bool:
        """True where these cannot hold `before`: the server that counts was started again."""
        counts = ("requests", "errors", "rows", "recorded")
        return any(getattr(self, name) < getattr(before, name) for name in counts) or any(
            now < then for now, then in zip(self.confidence, before.confidence, strict=False)
        )

    def _with(self, other: Tally, sign: int) -> Tally:
        joules = None if self.joules is None and other.joules is None else (self.joules or 0.0) + sign * (other.joules or 0.0)
        return Tally(
            self.requests + sign * other.requests,
            self.errors + sign * other.errors,
            self.rows + sign * other.rows,
            self.recorded + sign * other.recorded,
            _counts(self.confidence, other.confidence, sign),
            _counts(self.seconds, other.seconds, sign),
            _counts(self.predictions, other.predictions, sign),
            _moments(self.inputs, other.inputs, sign),
            _columns(self.columns, other.columns, sign),
            max(self.busy_s + sign * other.busy_s, 0.0),
            joules,
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, exactly."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        plain["inputs"] = {name: moments.to_json() for name, moments in self.inputs.items()}
        plain["columns"] = {name: [moments.to_json() for moments in columns] for name, columns in self.columns.items()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Tally:
        """What `to_json` gave; what is not there is nothing."""
        known = {each.name for each in fields(cls)}
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in document.items() if name in known
        }
        plain["inputs"] = {name: Moments.from_json(each) for name, each in document.get("inputs", {}).items()}
        plain["columns"] = {
            name: tuple(Moments.from_json(each) for each in columns) for name, columns in document.get("columns", {}).items()
        }
        return cls(**plain)


def _counts(one: Sequence[int], other: Sequence[int], sign: int) -> tuple[int, ...]:
    """Bin by bin; the shorter one is filled up with zeros, the classes of an answer may come to light late."""
    if not other:
        return tuple(one)
    longest = max(len(one), len(other))
    ours, theirs = (tuple(counts) + (0,) * (longest - len(counts)) for counts in (one, other))
    return tuple(max(a + sign * b, 0) for a, b in zip(ours, theirs, strict=True))


def _moments(one: Mapping[str, Moments], other: Mapping[str, Moments], sign: int) -> dict[str, Moments]:
    none = Moments()
    names = dict.fromkeys((*one, *other))
    return {
        name: one.get(name, none) + other.get(name, none) if sign > 0 else one.get(name, none) - other.get(name, none) for name in names
    }


def _columns(one: Mapping[str, tuple[Moments, ...]], other: Mapping[str, tuple[Moments, ...]], sign: int) -> dict[str, tuple[Moments, ...]]:
    found: dict[str, tuple[Moments, ...]] = {}
    for name in dict.fromkeys((*one, *other)):
        ours, theirs = one.get(name, ()), other.get(name, ())
        longest = max(len(ours), len(theirs))
        padded = [(*columns, *(Moments() for _ in range(longest - len(columns)))) for columns in (ours, theirs)]
        found[name] = tuple(a + b if sign > 0 else a - b for a, b in zip(*padded, strict=True))
    return found
