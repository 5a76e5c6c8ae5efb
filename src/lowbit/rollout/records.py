"""A rollout as it stands, and what a look at it said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lowbit.rollout.decide import Decision, Look
from lowbit.rollout.plan import Plan

State = Literal["running", "paused", "promoted", "rolled_back", "aborted"]
OPEN: frozenset[str] = frozenset({"running", "paused"})
"""States in which the candidate has its share."""


@dataclass(frozen=True)
class Rollout:
    """One candidate on its way in.

    Attributes:
        id: Its name: the model's and a number, e.g. "fashion-7".
        model: That both versions are of.
        champion: Digest of the version that answered when it began.
        candidate: Digest of the version that is let in.
        plan: By which.
        state: "running", "paused", "promoted", "rolled_back" or "aborted"; the last three are ends.
        step: Position in the plan's steps.
        share: Of keys that the candidate answers now; 0 after a rollback, 1 after a promotion.
        step_since: When the step began, seconds since 1970; moved on by the length of a pause.
        revision: Rises with every change. Who changes it says which revision was read, and loses if that is gone.
        started: Seconds since 1970.
        ended: None while it is open.
        paused_at: When the pause began; None: it is not paused.
        by: Who did the last thing: a person, or "rollout" for what followed from evidence.
        why: In words.
    """

    id: str
    model: str
    champion: str
    candidate: str
    plan: Plan = field(hash=False)
    state: State
    step: int
    share: float
    step_since: float
    revision: int
    started: float
    ended: float | None
    by: str
    why: str
    paused_at: float | None = None

    @property
    def open(self) -> bool:
        """Whether the candidate still has its share."""
        return self.state in OPEN


@dataclass(frozen=True)
class Decided:
    """A look that was kept.

    Attributes:
        id: Rises over all rollouts.
        rollout: Whose.
        revision: That was read.
        at: Seconds since 1970.
        look: Everything that the decision was made from.
        decision: What followed.
        sha256: Of plan, look and decision as JSON.
    """

    id: int
    rollout: str
    revision: int
    at: float
    look: Look = field(hash=False)
    decision: Decision = field(hash=False)
    sha256: str


@dataclass(frozen=True)
class Mismatch:
    """A decision that does not replay to what was written.

    Attributes:
        decision: Its id.
        text: What differs, in words.
    """

    decision: int
    text: str
