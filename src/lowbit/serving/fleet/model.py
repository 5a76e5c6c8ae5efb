"""One model that a server follows: what the registry wants of it, and what is here."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from lowbit.rollout.desired import Desired
from lowbit.serving.fleet.counting import StepCount
from lowbit.serving.fleet.followed import Followed
from lowbit.serving.run.deployment import Deployment


@dataclass
class Model:
    """One model that is followed, as it stands here.

    Attributes:
        followed: Which.
        want: As the registry had it last.
        loaded: By digest; everything of it can be reached.
        failed: Digest -> when it could not be loaded, and why.
        counts: Of the step that runs; None where none does.
    """

    followed: Followed
    want: Desired
    loaded: dict[str, Deployment] = field(default_factory=dict)
    loading: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    failed: dict[str, tuple[float, str]] = field(default_factory=dict)
    counts: StepCount | None = None

    @property
    def name(self) -> str:
        """In addresses."""
        return self.followed.model

    def shares(self, now: Deployment | None) -> dict[str, float]:
        """By digest, what gets how much of the requests that name no version; `now` answers whoever the candidate does not."""
        if now is None:
            return {}
        canary, share = self.want.canary, self.want.share
        if canary is None or not share or canary.digest not in self.loaded or now.digest != self.want.champion.digest:
            return {now.digest: 1.0}
        return {now.digest: 1.0 - share, canary.digest: share}
