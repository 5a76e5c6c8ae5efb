"""Choose a format for every group: an integer program over predicted damage and measured seconds. Pure.

One binary variable for each group and format, exactly one a group; one variable for each boundary that is 1 where the two sides
differ. Damages add up, seconds add up, boundaries cost what they cost:

    minimise    sum seconds[g, f] x[g, f] + sum boundary[a, b] z[a, b]
    subject to  sum_f x[g, f] = 1,  sum damage[g, f] x[g, f] <= budget,  z[a, b] >= x[a in d] - x[b in d] for every domain d

The form follows the integer programs of HAWQ-V3 (Yao et al. 2021, arXiv 2011.10680) and AdaQuant (Hubara et al. 2020, arXiv
2006.10518), with boundaries added. HiGHS solves it in milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lowbit.errors import UsageError
from lowbit.types import Array

FLOAT = "float"
"""The format of a group that is left in floating point."""

POINTS = 12
"""Most points of a frontier."""

BETWEEN = 3
"""Points that are looked for between two neighbours of a frontier, when that is where the budget is met."""

CROWDING = 1.5
"""Points stand closer where the model is fast: mixed precision that keeps most of the speed ends there."""

TIE = 1e-6
"""Weight of what is not minimised, so that among equals the better one wins."""

TIME_LIMIT_S = 10.0


@dataclass(frozen=True)
class Boundary:
    """Two groups, and the seconds a call takes more when one hands its output to the other in another domain."""

    first: str
    second: str
    seconds: float


@dataclass(frozen=True)
class Assignment:
    """A format for every group.

    Attributes:
        formats: Group -> format.
        predicted_damage: Sum of the groups' damages.
        predicted_seconds: Sum of the groups' seconds and of the boundaries that are crossed.
    """

    formats: Mapping[str, str]
    predicted_damage: float
    predicted_seconds: float


Cost = Mapping[tuple[str, str], float]
"""(group, format) -> damage or seconds."""


def domain(form: str) -> str:
    """What a format hands on: activations of so many bits, or floating point.

    >>> domain("w4a8"), domain("w8a8"), domain("w4"), domain("float")
    ('a8', 'a8', 'float', 'float')
    """
    found = re.search(r"a\d+$", form)
    return found[0] if found else FLOAT


def allocate(damage: Cost, seconds: Cost, boundaries: Sequence[Boundary], budget: float) -> Assignment:
    """The fastest assignment whose predicted damage is within `budget`.

    Args:
        damage: Of each group in each format, not negative; what is missing is 0, as for groups that only follow others.
        seconds: Of each group in each format that it may have.
        boundaries: Between groups of `seconds`.
        budget: Most damage in all, in the units of `damage`; inf for the fastest of all.

    Raises:
        UsageError: no assignment is within the budget.
    """
    return _Program(damage, seconds, boundaries).solve("seconds", budget)


def least_damage(damage: Cost, seconds: Cost, boundaries: Sequence[Boundary], most_seconds: float) -> Assignment:
    """The assignment of least predicted damage that takes at most `most_seconds`: the dual of `allocate`.

    Raises:
        UsageError: no assignment is that fast.
    """
    return _Program(damage, seconds, boundaries).solve("damage", most_seconds)


def frontier(damage: Cost, seconds: Cost, boundaries: Sequence[Boundary], points: int = POINTS) -> tuple[Assignment, ...]:
    """Assignments that no other beats in both damage and seconds, the fastest first; at most `points`."""
    program = _Program(damage, seconds, boundaries)
    fastest, safest = program.solve("seconds", np.inf), program.solve("damage", np.inf)
    if points < 2 or safest.predicted_seconds <= fastest.predicted_seconds:
        return (fastest,)
    ratio = safest.predicted_seconds / fastest.predicted_seconds
    shares = (np.arange(1, points - 1) / (points - 1)) ** CROWDING
    inner = [program.solve("damage", fastest.predicted_seconds * ratio**share) for share in shares]
    found: list[Assignment] = []
    for each in (fastest, *inner, safest):
        if not found or each.predicted_damage < found[-1].predicted_damage:
            found.append(each)
    return tuple(found)


def between(
    damage: Cost, seconds: Cost, boundaries: Sequence[Boundary], fast: Assignment, slow: Assignment, points: int = BETWEEN
) -> tuple[Assignment, ...]:
    """More points of a frontier, evenly between two of it in seconds, the fastest first; fewer, or none, where there are no more."""
    program = _Program(damage, seconds, boundaries)
    found: list[Assignment] = []
    for most in np.linspace(fast.predicted_seconds, slow.predicted_seconds, points + 2)[1:-1]:
        each = program.solve("damage", float(most))
        last = found[-1] if found else fast
        if each.predicted_seconds < slow.predicted_seconds and slow.predicted_damage < each.predicted_damage < last.predicted_damage:
            found.append(each)
    return tuple(found)


class _Program:
    """The constraints, with damage and seconds scaled to 1: solvers have absolute tolerances."""

    def __init__(self, damage: Cost, seconds: Cost, boundaries: Sequence[Boundary]) -> None:
        self.pairs = sorted(seconds)
        self.groups = sorted({group for group, _ in self.pairs})
        self.boundaries = [b for b in boundaries if b.first != b.second and b.seconds > 0]
        self.damage, self.seconds = damage, seconds
        crossings = [b.seconds for b in self.boundaries]
        self.costs = {
            "damage": np.array([damage.get(pair, 0.0) for pair in self.pairs] + [0.0] * len(crossings)),
            "seconds": np.array([seconds[pair] for pair in self.pairs] + crossings),
        }
        self.units = {name: max(float(np.abs(cost).sum()), 1e-300) for name, cost in self.costs.items()}
        self.rows = self._choices(), self._crossings()

    def solve(self, goal: str, limit: float) -> Assignment:
        """The least of `goal`, with at most `limit` of the other cost."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        other = "damage" if goal == "seconds" else "seconds"
        ours, theirs = (self.costs[name] / self.units[name] for name in (goal, other))
        choices, crossings = self.rows
        constraints = [LinearConstraint(choices, 1, 1)]
        if len(crossings):
            constraints.append(LinearConstraint(crossings, -np.inf, 0))
        if np.isfinite(limit):
            constraints.append(LinearConstraint(theirs[None], -np.inf, limit / self.units[other]))
        whole = np.arange(len(ours)) < len(self.pairs)
        # HiGHS's presolve prints a line to standard output now and then, whatever it is told; programs this small do without it.
        options = {"mip_rel_gap": 1e-6, "time_limit": TIME_LIMIT_S, "presolve": False}
        result = milp(ours + TIE * theirs, integrality=whole, bounds=Bounds(0, 1), constraints=constraints, options=options)
        if result.x is None:
            raise UsageError(f"No choice of formats has at most {limit:.4g} of {other}.", "Allow more, or offer more formats.")
        return self._assignment(result.x)

    def _choices(self) -> Array:
        """One row a group: its formats add up to 1."""
        rows = np.zeros((len(self.groups), len(self.pairs) + len(self.boundaries)))
        place = {group: index for index, group in enumerate(self.groups)}
        for column, (group, _) in enumerate(self.pairs):
            rows[place[group], column] = 1
        return rows

    def _crossings(self) -> Array:
        """One row a boundary and domain. One direction will do: who is not in this domain is in another, which has a row of its own."""
        members: dict[tuple[str, str], list[int]] = {}
        for column, (group, form) in enumerate(self.pairs):
            members.setdefault((group, domain(form)), []).append(column)
        domains = sorted({name for _, name in members})
        rows = np.zeros((len(self.boundaries) * len(domains), len(self.pairs) + len(self.boundaries)))
        for index, boundary in enumerate(self.boundaries):
            for offset, name in enumerate(domains):
                row = rows[index * len(domains) + offset]
                row[members.get((boundary.first, name), [])] = 1
                row[members.get((boundary.second, name), [])] = -1
                row[len(self.pairs) + index] = -1
        return rows

    def _assignment(self, x: Array) -> Assignment:
        """Read off the binary variables; both costs anew, because the solver's are scaled and rounded."""
        formats = {group: form for (group, form), value in zip(self.pairs, x[: len(self.pairs)], strict=True) if value > 0.5}
        crossed = sum(b.seconds for b in self.boundaries if domain(formats[b.first]) != domain(formats[b.second]))
        damage = sum(self.damage.get(pair, 0.0) for pair in formats.items())
        return Assignment(formats, damage, crossed + sum(self.seconds[pair] for pair in formats.items()))
