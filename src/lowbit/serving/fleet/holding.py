"""While a person is asked about a version that answers, no rollout of its model moves on; its guardrails go on, and may still end it.

The review says so itself (`policy: hold`). A person who resumes the rollout has answered for the reviews that were open by then.
Several servers of one state folder do the same, and read it a few seconds apart: whoever has not seen why a rollout waits leaves it alone.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Literal

from lowbit.errors import UsageError
from lowbit.monitoring.reviews import Review
from lowbit.rollout.records import Rollout
from lowbit.rollout.store import Rollouts
from lowbit.serving.watch import logs

if TYPE_CHECKING:
    from lowbit.serving.fleet.model import Model

BY = "review"
"""Who pauses and resumes, in the rollout's history."""
READ_S = 30.0
"""By then a server has read the reviews for which another one paused; it resumes where there are none, as the other may have ended."""


class Holding:
    """Of one server; several may do the same, as pausing twice is pausing once."""

    def __init__(self, rollouts: Rollouts, models: Mapping[str, Model], reviews: Callable[[], Iterable[Review]]) -> None:
        """Holds nothing yet.

        Args:
            rollouts: Of the registry.
            models: That are followed, by name in addresses.
            reviews: Gives the open ones.
        """
        self._rollouts, self._models, self._reviews = rollouts, models, reviews
        self._known: set[str] = set()
        self._since: dict[str, float] = {}  # when a rollout was first seen to wait for nothing that is open here

    def beat(self) -> None:
        """Pauses what has to wait, and resumes what waits no more. In a thread."""
        for name, model in list(self._models.items()):
            if model.want.rollout is None:
                continue
            versions = {str(each.number) for each in (model.want.champion, model.want.canary) if each is not None}
            reviews = [review for review in self._reviews() if review.key.model == name and review.key.version in versions]
            try:
                self._one(model.want.rollout, reviews)
            except (UsageError, sqlite3.Error) as error:  # it has ended meanwhile, or the disk is full: the next second tries again
                logs.warn("a rollout could not be held", rollout=model.want.rollout, why=str(error))

    def _one(self, id: str, reviews: list[Review]) -> None:
        rollout = self._rollouts.get(id)
        held = any(each.policy == "hold" for each in reviews)
        since = self._since.setdefault(id, monotonic())
        if held or rollout.state != "paused":
            del self._since[id]
        wish = wanted(rollout, reviews, self._known, monotonic() - since)
        if wish == "pause":
            self._rollouts.pause(id, by=BY, why=f"A person is asked: {', '.join(f'{each.kind} ({each.id})' for each in reviews)}.")
        elif wish == "resume":
            self._rollouts.resume(id, by=BY, why="A person has answered.")
        if wish is not None:
            logs.say(f"rollout: {wish}", rollout=id, reviews=[each.id for each in reviews])
        self._known |= {each.id for each in reviews}


def wanted(rollout: Rollout, reviews: Iterable[Review], known: Collection[str], waited_s: float) -> Literal["pause", "resume"] | None:
    """What follows from the open reviews of the versions that a rollout is about. Pure.

    Args:
        rollout: As it is.
        reviews: Open.
        known: Ids of those that were seen before: who resumed since has answered for them.
        waited_s: For so long it has been seen to wait while nothing was open.
    """
    holding = {review.id for review in reviews if review.policy == "hold"}
    if rollout.state == "running" and holding - set(known):
        return "pause"
    asked = set(re.findall(r"\((\w+)\)", rollout.why))
    mine = bool(asked) and asked <= set(known)
    if rollout.state == "paused" and rollout.by == BY and not holding and (mine or waited_s >= READ_S):
        return "resume"
    return None
