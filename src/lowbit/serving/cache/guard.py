"""Whether similar answers may be given: they are worked out again until they are known to be right, and now and then after that."""

from __future__ import annotations

import math
import random

Z = 1.6448536269514722
"""Of a one-sided 95 % bound."""
MEMORY = 20_000
"""Checks that count; beyond, older ones count half, so that the bound follows what comes now."""


class Guard:
    """Counts how often a similar image's answer named another class than the model did.

    proving   every hit is worked out, and that is what is answered, until the upper bound is within the budget
    on        hits are answered; some are worked out to go on knowing
    off       the lower bound is over the budget: nobody looks any more

    Attributes:
        checked: Hits that were worked out.
        wrong: Of them, those that named another class.
    """

    def __init__(self, budget: float, share: float, seed: int = 0) -> None:
        """Starts proving.

        Args:
            budget: Share of hits that may be wrong.
            share: Of hits that are worked out while on.
            seed: Of the draw.
        """
        self.budget, self.share = budget, share
        self.checked = self.wrong = 0.0
        self._draw = random.Random(seed)
        self._off = False

    @property
    def state(self) -> str:
        """ "proving", "on" or "off"."""
        if self._off:
            return "off"
        return "on" if self.upper <= self.budget else "proving"

    @property
    def upper(self) -> float:
        """One-sided 95 % upper bound on the share of wrong hits."""
        return wilson(self.wrong, self.checked)[1]

    def checks(self) -> bool:
        """Whether this hit is to be worked out."""
        return self.state == "proving" or self._draw.random() < self.share

    def told(self, *, right: bool) -> None:
        """What came of a check."""
        self.checked += 1
        self.wrong += not right
        if self.checked >= MEMORY:
            self.checked, self.wrong = self.checked / 2, self.wrong / 2
        self._off = self._off or wilson(self.wrong, self.checked)[0] > self.budget


def wilson(found: float, n: float, z: float = Z) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    Args:
        found: Of n.
        n: Trials; 0 leaves everything possible.
        z: Normal quantile of each side.
    """
    if n <= 0:
        return 0.0, 1.0
    share, spread = found / n, z * z / n
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    middle = share + spread / 2
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))
