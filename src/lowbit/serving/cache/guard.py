"""Whether similar answers may be given: they are worked out again until they are known to be right, and now and then after that."""

from __future__ import annotations

import math
import random
from functools import lru_cache

DOUBT = 0.05
"""The chance that answers which are wrong as often as the budget allows, or more often, are ever given."""
SURELY = 0.001
"""Faults that were less likely than this within the budget switch it off."""
MEMORY = 20_000
"""Checks that count; beyond, all of them count half, so that the shares follow what comes now."""
EXACT = 1e-17
"""Share of a sum below which a term does not change it."""


class Guard:
    """Counts how often a similar image's answer named another class than the model did.

    proving   every hit is worked out, and that is what is answered
    on        hits are answered; some are worked out to go on knowing
    off       there were too many faults: nobody looks any more

    Nobody looks at the counts whenever it suits: who looks again and again until chance has its say would be convinced by anything. The
    k-th look comes once there are twice as many checks as at the one before, and may be wrong with a chance of `DOUBT` / k(k+1), which
    together are `DOUBT`. The first is where no fault at all would do.

    Attributes:
        checked: Hits that were worked out.
        wrong: Of them, those that named another class.
    """

    def __init__(self, budget: float, share: float, seed: int = 0, *, proved: bool = False) -> None:
        """Starts proving.

        Args:
            budget: Share of hits that may be wrong, above 0 and below 1.
            share: Of hits that are worked out while on.
            seed: Of the draw.
            proved: Starts on.
        """
        self.budget, self.share = budget, share
        self.checked = self.wrong = 0
        self.state = "on" if proved else "proving"
        self._draw = random.Random(seed)
        self._look = 1
        self._next = math.ceil(math.log(_doubt(1)) / math.log1p(-budget))

    @property
    def upper(self) -> float:
        """One-sided 95 % upper bound on the share of wrong hits."""
        return upper_bound(self.wrong, self.checked)

    def checks(self) -> bool:
        """Whether this hit is to be worked out."""
        return self.state == "proving" or self._draw.random() < self.share

    def told(self, *, right: bool) -> None:
        """What came of a check."""
        self.checked += 1
        self.wrong += not right
        if not right and self.state != "off":
            self._doubted()
        if self.checked >= self._next:
            self._looked()
        if self.checked >= MEMORY:
            self.checked, self.wrong = self.checked // 2, (self.wrong + 1) // 2

    def _doubted(self) -> None:
        """A fault: is it one too many?"""
        if at_least(self.wrong, self.checked, self.budget) < SURELY:
            self.state = "off"
        elif self.state == "on" and at_most(self.wrong, self.checked, self.budget) > DOUBT:
            self.state = "proving"

    def _looked(self) -> None:
        if self.state == "proving" and at_most(self.wrong, self.checked, self.budget) <= _doubt(self._look):
            self.state = "on"
        self._look += 1
        self._next = min(2 * self.checked, MEMORY)


def _doubt(look: int) -> float:
    return DOUBT / (look * (look + 1))


def at_most(found: int, n: int, share: float) -> float:
    """P(X <= found) of a binomial X: n trials that each succeed with a chance of `share`, above 0 and below 1; exact."""
    if found < 0 or found >= n:
        return float(found >= 0)
    return _below(found, n, share) if found <= n * share else 1 - _below(n - found - 1, n, 1 - share)


def at_least(found: int, n: int, share: float) -> float:
    """P(X >= found); see `at_most`. A tail of its own: 1 - `at_most` would lose the small ones."""
    return at_most(n - found, n, 1 - share)


def _below(found: int, n: int, share: float) -> float:
    """P(X <= found) for a found that is no more than the mean: the largest term is the last, and the sum goes down from it."""
    chances = math.lgamma(n + 1) - math.lgamma(found + 1) - math.lgamma(n - found + 1)
    term = math.exp(chances + found * math.log(share) + (n - found) * math.log1p(-share))
    total = 0.0
    for number in range(found, -1, -1):
        total += term
        term *= number * (1 - share) / ((n - number + 1) * share)
        if term < EXACT * total:
            break
    return min(total, 1.0)


@lru_cache(64)
def upper_bound(found: int, n: int, doubt: float = DOUBT) -> float:
    """Clopper and Pearson's one-sided upper bound of a share (1934, doi:10.1093/biomet/26.4.404).

    Args:
        found: Of n.
        n: Trials; 0 leaves everything possible.
        doubt: The chance that the share is above.
    """
    if found >= n:
        return 1.0
    low, high = found / n, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(found, n, middle) > doubt else (low, middle)
    return high
