"""A model that is served from a registry, and what of it a server should have loaded now."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.registry.records import CHAMPION, ModelVersion, Ref, parse_ref
from lowbit.registry.registry import Registry
from lowbit.rollout.desired import Desired, desired
from lowbit.rollout.store import Rollouts


@dataclass(frozen=True)
class Followed:
    """A reference whose version is served, whichever that is.

    Attributes:
        ref: "fashion", "fashion@champion", "fashion@3", ...
        name: In addresses; the registry's name if None.
    """

    ref: str
    name: str | None = None

    @property
    def parsed(self) -> Ref:
        """The reference, taken apart.

        Raises:
            UsageError: it is none.
        """
        return parse_ref(self.ref)

    @property
    def model(self) -> str:
        """The model's name in addresses."""
        return self.name or self.parsed.model

    @property
    def rolls(self) -> bool:
        """Whether rollouts of the model happen here: it is the champion that is followed."""
        ref = self.parsed
        return ref.number is None and ref.digest is None and ref.alias in (None, CHAMPION)


def wanted(followed: Followed, registry: Registry, rollouts: Rollouts) -> Desired:
    """What a server should have loaded, as the registry is now. Reads the disk.

    Raises:
        UsageError: there is no such version.
    """
    return desired(registry, rollouts, followed.parsed.model) if followed.rolls else Desired(registry.resolve(followed.ref))


def versions_of(want: Desired) -> dict[str, ModelVersion]:
    """By digest, all that should be loaded: the champion first, then what is tried, then what is kept warm."""
    listed = (want.champion, *([want.canary] if want.canary is not None else []), *want.warm)
    return {version.digest: version for version in listed}
