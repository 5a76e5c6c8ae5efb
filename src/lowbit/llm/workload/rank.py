"""Who is best for an objective. Pure: the same measurements, the same order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from lowbit.errors import UsageError, unknown
from lowbit.llm.workload.speed import Round, Speed, faster
from lowbit.types import Ratio

LanguageObjective = Literal["latency", "ttft", "throughput", "memory", "cost"]
"""End-to-end seconds of a request; seconds to its first token; output tokens a second of all requests together; peak memory;
machine time, and so money, a million tokens."""

SAME_MEMORY = 0.02
"""Peaks that are nearer than this are the same."""

FIGURES: Mapping[str, Callable[[Round], float]] = {
    "latency": lambda each: each.total_s,
    "ttft": lambda each: each.ttft_s,
    "throughput": lambda each: 1 / each.output_tokens_per_s,
    "cost": lambda each: 1 / each.requests_per_s,
}
"""Objective -> what of a round is to be small."""


@dataclass(frozen=True)
class Place:
    """One candidate's place.

    Attributes:
        rank: From 1; those that cannot be told apart from the first of their group share its rank.
        id: The candidate's.
        value: Seconds, seconds, tokens a second, bytes, or machine hours a million tokens.
        over_first: How many times better the group's first is, within rounds; None for memory, and for the first itself.
    """

    rank: int
    id: str
    value: float
    over_first: Ratio | None = None


def rank(speeds: Mapping[str, Speed], objective: LanguageObjective = "latency") -> tuple[Place, ...]:
    """Usable candidates, the best first; ties share a rank.

    Args:
        speeds: Id -> speed, of one measurement.
        objective: What "best" means.

    Raises:
        UsageError: an objective that is not known.
    """
    if objective not in get_args(LanguageObjective):
        raise unknown("objective", objective, get_args(LanguageObjective))
    usable = [speed for speed in speeds.values() if speed.usable]
    order = sorted(usable, key=lambda speed: cost_of(speed, objective))
    places: list[Place] = []
    first: Speed | None = None
    for index, speed in enumerate(order):
        ratio = None if first is None else over(first, speed, objective)
        if first is None or not _tied(first, speed, ratio, objective):
            first = speed
            places.append(Place(index + 1, speed.id, value_of(speed, objective)))
        else:
            places.append(Place(places[-1].rank, speed.id, value_of(speed, objective), ratio))
    return tuple(places)


def over(speed: Speed, other: Speed, objective: LanguageObjective) -> Ratio | None:
    """How many times better one is than the other, within rounds; None for memory, or without common rounds."""
    return None if objective == "memory" else faster(speed, other, FIGURES[objective])


def cost_of(speed: Speed, objective: LanguageObjective) -> float:
    """A number that is smaller for a better one."""
    value = value_of(speed, objective)
    return 1 / value if objective == "throughput" else value


def value_of(speed: Speed, objective: LanguageObjective) -> float:
    """The figure of an objective.

    Raises:
        UsageError: the candidate has none.
    """
    if not speed.usable:
        raise UsageError(f"{speed.id} was not measured: {speed.error or 'no rounds'}.")
    assert speed.total_s is not None
    assert speed.ttft_ms is not None
    assert speed.output_tokens_per_s is not None
    assert speed.per_million_tokens is not None
    return {
        "latency": speed.total_s.value,
        "ttft": speed.ttft_ms.value / 1e3,
        "throughput": speed.output_tokens_per_s.value,
        "memory": float(speed.peak_memory_bytes or 0),
        "cost": speed.per_million_tokens.hours,
    }[objective]


def _tied(first: Speed, speed: Speed, ratio: Ratio | None, objective: LanguageObjective) -> bool:
    if objective == "memory":
        return value_of(speed, objective) <= value_of(first, objective) * (1 + SAME_MEMORY)
    return ratio is not None and ratio.ci_low <= 1
