"""What was seen of the champion and of the candidate since a step began: counts alone, so that servers add up.

A latency is kept as a count in bins 2 % apart, a confidence as a count in 256, and cost as a sum and a sum of squares. From counts that
only grow every guardrail's test follows, whenever one looks and however many servers there were.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lowbit.errors import DataError
from lowbit.measure.compare import BINS

PER_DECADE = 117
"""Latency bins in a factor of 10: each is 2 % wider than the one before."""
EDGES_S: tuple[float, ...] = tuple(1e-4 * 10 ** (step / PER_DECADE) for step in range(int(5.5 * PER_DECADE) + 1))
"""From 0.1 ms to 31 s. Bin i holds EDGES_S[i - 1] <= seconds < EDGES_S[i]; the first and the last are open."""
LATENCY_BINS = len(EDGES_S) + 1
_SIZES = {"seconds": LATENCY_BINS, "confidence": BINS}
_FLOATS = ("busy_s", "busy_squares")


def latency_bin(seconds: float) -> int:
    """The bin of a latency, 0 to LATENCY_BINS - 1."""
    return bisect_right(EDGES_S, seconds)


@dataclass(frozen=True)
class Arm:
    """One side of the comparison, cumulative since the step began. `Arm + Arm` is what two servers saw.

    Attributes:
        requests: Answered or failed.
        errors: Of those, failed on the server's side. A client's own mistakes are none.
        seconds: Counts of latencies in LATENCY_BINS bins; () where none were kept.
        confidence: Counts of confidences in 256 equal bins over [0, 1]; () where the model gives none.
        shadowed: Rows that were answered again at full precision in the background.
        disagreed: Of those, rows whose first class differed.
        labelled: Rows whose true label came later.
        right: Of those, rows that were right.
        busy_n: Requests whose cost was measured: those that ran alone.
        busy_s: Sum of their seconds of compute per row.
        busy_squares: Sum of the squares of these.
    """

    requests: int = 0
    errors: int = 0
    seconds: tuple[int, ...] = ()
    confidence: tuple[int, ...] = ()
    shadowed: int = 0
    disagreed: int = 0
    labelled: int = 0
    right: int = 0
    busy_n: int = 0
    busy_s: float = 0.0
    busy_squares: float = 0.0

    def __add__(self, other: Arm) -> Arm:
        """Both together."""
        return Arm(**{each.name: _sum(getattr(self, each.name), getattr(other, each.name)) for each in fields(Arm)})

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Arm:
        """Reads one arm of what `Evidence.to_json` gives.

        Raises:
            DataError: a key that is not known, no number, a negative one, or more failures than requests.
        """
        known = {each.name for each in fields(cls)}
        if strange := set(raw) - known:
            raise DataError(f"An arm of a rollout has no {sorted(strange)}; it has {', '.join(sorted(known))}.")
        arm = cls(**{name: _read(name, value) for name, value in raw.items()})
        for part, whole in (("errors", "requests"), ("disagreed", "shadowed"), ("right", "labelled")):
            if getattr(arm, part) > getattr(arm, whole):
                raise DataError(f"An arm of a rollout has {getattr(arm, part):,} {part} of {getattr(arm, whole):,} {whole}.")
        return arm


@dataclass(frozen=True)
class Evidence:
    """Both arms of one step.

    Attributes:
        baseline: What the champion answered in that time.
        canary: What the candidate answered.
        hard: What no number weighs against: "crashed", "not a number", "out of memory". The candidate goes at once.
    """

    baseline: Arm = Arm()
    canary: Arm = Arm()
    hard: tuple[str, ...] = ()

    def __add__(self, other: Evidence) -> Evidence:
        """What two servers saw, or one before and after it restarted."""
        return Evidence(self.baseline + other.baseline, self.canary + other.canary, tuple(sorted({*self.hard, *other.hard})))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, lists and words; `from_json` reads it back to an equal record."""
        return {**{name: _plain(getattr(self, name)) for name in _ARMS}, "hard": list(self.hard)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Evidence:
        """Reads what `to_json` gives.

        Raises:
            DataError: it is none.
        """
        if not isinstance(raw, Mapping) or set(raw) - {*_ARMS, "hard"} or not all(isinstance(raw.get(arm, {}), Mapping) for arm in _ARMS):
            raise DataError("Evidence of a rollout has the arms baseline and canary, and hard.")
        hard = raw.get("hard", [])
        if not isinstance(hard, list | tuple) or not all(isinstance(word, str) for word in hard):
            raise DataError(f"Hard stops of a rollout are words, not {hard!r}.")
        return cls(Arm.from_json(raw.get("baseline", {})), Arm.from_json(raw.get("canary", {})), tuple(hard))


_ARMS = ("baseline", "canary")


def _plain(arm: Arm) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(arm).items()}


def _sum(one: Any, other: Any) -> Any:
    if not isinstance(one, tuple):
        return one + other
    if not one or not other:
        return one or other
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _read(name: str, value: Any) -> Any:
    if name in _SIZES:
        if not isinstance(value, list | tuple) or len(value) not in (0, _SIZES[name]) or not all(_whole(count) for count in value):
            raise DataError(f"'{name}' of a rollout's arm must be {_SIZES[name]} counts, or none.")
        return tuple(value)
    if name in _FLOATS:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise DataError(f"'{name}' of a rollout's arm must be a number from 0, not {value!r}.")
        return float(value)
    if not _whole(value):
        raise DataError(f"'{name}' of a rollout's arm must be a count from 0, not {value!r}.")
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
