"""What a person's answer "roll back" does: the version that is meant answers no more, and no other is touched."""

from __future__ import annotations

from typing import Any

from lowbit.errors import UsageError
from lowbit.registry.records import CHAMPION
from lowbit.registry.registry import Registry
from lowbit.rollout.store import Rollouts


def taken_back(registry: Registry, rollouts: Rollouts, model: str, version: str, *, by: str, why: str) -> dict[str, Any]:
    """See `Follower.roll_back`. Reads and writes the disk."""
    running, champion, done = rollouts.running(model), registry.aliases(model).get(CHAMPION), dict[str, Any]()
    tried = None if running is None else {each.digest: each for each in registry.versions(model)}[running.candidate]
    if champion is not None and str(champion.number) == version:
        event = registry.rollback(model, by=by, why=why)
        if event.after == champion.digest:
            raise UsageError(f"Version {version} is what was gone back to already.", "Promote another version instead.")
        done = {"alias": event.alias, "before": event.before, "after": event.after, "event": event.id}
    elif tried is None or str(tried.number) != version:
        return {"said": f"Version {version} is neither the champion nor tried any more: nothing was changed."}
    if running is not None:  # also a comparison with a champion that is none any more
        done |= {"rollout": running.id, "state": rollouts.abort(running.id, by=by, why=why).state}
    return done
