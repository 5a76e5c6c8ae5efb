"""What a server should hold and how it should split, for one model: a function of what the registry says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from lowbit.registry.records import CHAMPION, FALLBACK, ModelVersion
from lowbit.rollout.plan import Mode
from lowbit.rollout.records import Rollout

if TYPE_CHECKING:
    from lowbit.registry.registry import Registry


@dataclass(frozen=True)
class Desired:
    """The state that a server works towards.

    Attributes:
        champion: Answers, except for the canary's share.
        canary: The candidate of the running rollout; None without one.
        share: Of keys that it answers: 0 in mode shadow.
        mode: Of the rollout; None without one.
        rollout: Its id; what keys are drawn by.
        step: Its step; evidence is counted per step.
        shadow: Share of answers that are asked again in the background.
        warm: Versions that are kept loaded although they answer nothing, so that a rollback waits for no loading.
    """

    champion: ModelVersion
    canary: ModelVersion | None = None
    share: float = 0.0
    mode: Mode | None = None
    rollout: str | None = None
    step: int = 0
    shadow: float = 0.0
    warm: tuple[ModelVersion, ...] = field(default=())


class Running(Protocol):
    """What knows the open rollout of a model; `Rollouts` does."""

    def running(self, model: str) -> Rollout | None:
        """The open one (running or paused); None where there is none."""
        ...


def desired(registry: Registry, rollouts: Running, model: str) -> Desired:
    """What is to be served of a model.

    The rollout's candidate has its share only as long as the champion is the one that it was compared with: if a person moved the alias,
    everybody gets the new champion at once, and the next look ends the rollout.

    Raises:
        UsageError: there is no such model, or nothing of it can answer.
    """
    with registry.snapshot():  # all of one moment
        return _desired(registry, rollouts, model)


def _desired(registry: Registry, rollouts: Running, model: str) -> Desired:
    rollout = rollouts.running(model)
    aliases = registry.aliases(model)
    champion = aliases.get(CHAMPION) or registry.resolve(model)
    warm = tuple(version for name, version in sorted(aliases.items()) if name == FALLBACK and version.digest != champion.digest)
    canary = None if rollout is None else registry.version(model, rollout.candidate)
    if rollout is None or canary is None or rollout.champion != champion.digest:
        return Desired(champion, warm=warm)
    rest = tuple(version for version in warm if version.digest != canary.digest)
    return Desired(champion, canary, rollout.share, rollout.plan.mode, rollout.id, rollout.step, rollout.plan.shadow, rest)


def assigned(rollout: str, share: float, key: str) -> bool:
    """Whether the candidate answers this key. The same key gets the same side, and who has it at 5 % has it at 25 %.

    >>> [assigned("fashion-1", share, "session-7") for share in (0.0, 0.3, 0.8, 1.0)]
    [False, False, True, True]
    """
    if share <= 0 or share >= 1:
        return share >= 1
    drawn = int.from_bytes(hashlib.blake2b(f"{rollout}\0{key}".encode("utf-8", "surrogateescape"), digest_size=8).digest())
    return drawn < share * 2**64
