"""The documents in which a server shows its registry and rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lowbit.errors import LowbitError, UsageError
from lowbit.serving.protocol.refusals import NotServed

if TYPE_CHECKING:
    from lowbit.registry.records import ModelVersion
    from lowbit.rollout.records import Decided, Rollout
    from lowbit.serving.fleet.follower import Follower

DECISIONS, ROLLOUTS = 200, 200
"""So many are shown, of a rollout and at all: each has evidence to be read."""


class Shown:
    """The documents of a registry. All of it reads the disk."""

    def __init__(self, follower: Follower) -> None:
        """Of the registry that is followed."""
        self._follower, self._registry, self._rollouts = follower, follower.registry, follower.rollouts

    def models(self) -> list[dict[str, Any]]:
        """Every model with its versions."""
        return [self.model(name) for name in self._registry.models()]

    def model(self, name: str) -> dict[str, Any]:
        """One model with its versions and aliases."""
        versions, aliases = self._registry.versions(name), self._registry.aliases(name)
        numbers = {version.digest: version.number for version in versions}
        here = [each for each in self._follower.models.values() if each.followed.parsed.model == name]
        loaded = {digest for each in here for digest in each.loaded}
        shares: dict[str, float] = {}
        for each in here:
            shares |= self._follower.shares(each.name)
        return {
            "name": name,
            "served_as": [each.name for each in here],
            "aliases": {alias: version.number for alias, version in aliases.items()},
            "versions": [_version(each, numbers, each.digest in loaded, shares.get(each.digest, 0.0)) for each in versions],
        }

    def audit(self, limit: int) -> dict[str, Any]:
        """The newest rows, the newest first, and whether the chain holds from the first row on."""
        from lowbit.registry.audit import broken_links

        try:
            rows = self._registry.audit()
            problems = [problem.text for problem in broken_links(rows)]
        except LowbitError as error:
            return {"rows": [], "verified": False, "head": None, "problems": [error.message]}
        told = [asdict(row) for row in reversed(rows[-limit:])]
        return {"rows": told, "verified": not problems, "head": self._registry.head(), "problems": problems[:10]}

    def rollouts(self, limit: int) -> list[dict[str, Any]]:
        """The newest so many, the newest first."""
        numbers: dict[str, dict[str, int]] = {}
        return [self._rollout(each, numbers) for each in self._rollouts.listed()[:limit]]

    def rollout(self, id: str, limit: int = DECISIONS) -> dict[str, Any]:
        """One, with its evidence and its last decisions, at most so many.

        Raises:
            NotServed: there is none of this id.
        """
        found = self.known(id)
        decisions = self._rollouts.decisions(id, last=limit)
        return {
            **self._rollout(found, {}),
            "plan": found.plan.to_json(),
            "evidence": self._rollouts.evidence(id, found.step).to_json(),
            "decisions": [_decided(each) for each in decisions],
        }

    def known(self, id: str) -> Rollout:
        """By id.

        Raises:
            NotServed: there is none.
        """
        try:
            return self._rollouts.get(id)
        except UsageError as error:
            raise NotServed(error.message) from error

    def _rollout(self, found: Rollout, numbers: dict[str, dict[str, int]]) -> dict[str, Any]:
        if found.model not in numbers:
            numbers[found.model] = {version.digest: version.number for version in self._registry.versions(found.model)}
        known, last = numbers[found.model], self._rollouts.decisions(found.id, last=1)
        return {
            "id": found.id,
            "model": found.model,
            "champion": known.get(found.champion),
            "candidate": known.get(found.candidate),
            "mode": found.plan.mode,
            "state": found.state,
            "step": found.step,
            "steps": list(found.plan.steps),
            "share": found.share,
            "step_since": found.step_since,
            "started": found.started,
            "ended": found.ended,
            "by": found.by,
            "why": found.why,
            "decision": _decided(last[0]) if last else None,
        }


def _version(version: ModelVersion, numbers: Mapping[str, int], loaded: bool, share: float) -> dict[str, Any]:
    return {
        "number": version.number,
        "digest": version.digest,
        "kind": version.kind,
        "candidate": version.candidate,
        "precision": version.precision,
        "runtime": version.runtime,
        "parents": [numbers[parent] for parent in version.parents if parent in numbers],
        "created": version.created,
        "by": version.by,
        "size_bytes": version.size_bytes,
        "lineage": dict(version.lineage),
        "loaded": loaded,
        "share": share,
    }


def _decided(decided: Decided) -> dict[str, Any]:
    return {
        "id": decided.id,
        "at": decided.at,
        "step": decided.look.step,
        "action": decided.decision.action,
        "verdicts": [asdict(verdict) for verdict in decided.decision.verdicts],
        "reasons": list(decided.decision.reasons),
        "sha256": decided.sha256,
    }
