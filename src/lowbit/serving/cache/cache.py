"""The cache as answering sees it: look, run once, keep.

An exact answer is what the model said of the same tensors. A similar one is what it said of an image that is nearly the same: only where
that was asked for, never for critical requests, never from answers that were close, and only as long as checks say that it would say the
same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import numpy as np

from lowbit.bundle.bundle import Bundle
from lowbit.serving.answered import Answered, Plan
from lowbit.serving.cache import images, keys
from lowbit.serving.cache.flights import Flights
from lowbit.serving.cache.guard import Guard
from lowbit.serving.cache.images import Look, Pixels
from lowbit.serving.cache.remote import Link, Shared, SharedIndex
from lowbit.serving.cache.settings import CacheSettings
from lowbit.serving.cache.similar import MARGIN, Index, LocalIndex
from lowbit.serving.cache.store import Kept, Local, Store
from lowbit.types import Array, Feeds, TensorInfo

Work = Callable[[], Awaitable[Answered]]
RESULTS = ("miss", "exact", "similar", "shared", "shadow")
SAVED = ("exact", "similar", "shared")
STATES = ("proving", "on", "off")


class Cache:
    """Exact answers, similar ones where they are asked for, and one run for all who ask the same at the same time.

    Attributes:
        store: Of exact answers.
        similar: Of similar ones; None leaves them out.
        guard: Says whether similar ones may be given.
        counts: Requests by what became of them, and rows that did not have to run ("saved_rows").
    """

    def __init__(self, store: Store, similar: Index | None = None, guard: Guard | None = None) -> None:
        """Starts with whatever the stores have."""
        self.store, self.similar = store, similar
        self.guard = guard or Guard(0.005, 0.02)
        self.counts = Counter(dict.fromkeys((*RESULTS, "saved_rows"), 0))
        self._flights: Flights[Answered] = Flights()

    @classmethod
    def of(cls, settings: CacheSettings) -> Cache | None:
        """The cache that settings describe; None where they keep nothing.

        Raises:
            UsageError: the address of Redis is none, or its package is missing.
        """
        if not settings.max_bytes:
            return None
        local = Local(settings.max_bytes, settings.ttl_s)
        guard = Guard(settings.similar_budget, settings.shadow, settings.seed)
        if settings.redis is None:
            return cls(local, LocalIndex(settings.max_bytes, settings.ttl_s) if settings.similar else None, guard)
        link = Link(settings.redis)
        return cls(Shared(link, local), SharedIndex(link, settings.ttl_s) if settings.similar else None, guard)

    @property
    def looks(self) -> bool:
        """Whether it needs the certainty of answers."""
        return self.similar is not None

    def namespace(self, bundle: Bundle, candidate: str, how: str) -> bytes:
        """See `keys.namespace`."""
        return keys.namespace(bundle, candidate, how)

    def pixels(self, bundle: Bundle, inputs: tuple[TensorInfo, ...]) -> Pixels | None:
        """How images are looked at; None where nobody does."""
        return images.pixels_of(bundle, inputs) if self.similar is not None else None

    async def answered(self, plan: Plan, inputs: Feeds, critical: bool, work: Work, deadline: float) -> Answered:
        """A kept answer, another request's, or the work's, which is then kept.

        Raises:
            Refusal: what the work raised, or TooLate while waiting for another request's.
        """
        assert plan.space is not None, "asked only where there is one"
        key = keys.key(plan.space, inputs)
        kept = await self.store.get(key)
        if kept is not None:
            return self._counted("exact", inputs, _answered(plan, kept, "exact"))
        # A critical request must not be handed what another was given for being similar.
        flight = key + (b"critical" if critical else b"")
        found, shared = await self._flights.once(flight, lambda: self._look(key, plan, inputs, critical, work), deadline)
        return self._counted("shared" if shared else found.cache, inputs, replace(found, cache="shared", batch=0) if shared else found)

    async def _look(self, key: bytes, plan: Plan, inputs: Feeds, critical: bool, work: Work) -> Answered:
        look = plan.pixels.look(inputs) if plan.pixels and plan.reader and not critical and self.guard.state != "off" else None
        if look is None or self.similar is None:
            return await self._work(key, plan, None, work)
        kept = await self.similar.near(plan.similar_space, look)
        if kept is None:
            return await self._work(key, plan, look, work)
        if not self.guard.checks():
            return _answered(plan, kept, "similar")
        found = await self._work(key, plan, None, work)
        self.guard.told(right=_same_class(plan, kept, found))
        return replace(found, cache="shadow")

    async def _work(self, key: bytes, plan: Plan, look: Look | None, work: Work) -> Answered:
        found = replace(await work(), cache="miss")
        if settled(found, plan):
            await self.store.put(key, _kept(found))
            if look is not None and self.similar is not None and _clear(plan, found.outputs):
                await self.similar.put(plan.similar_space, look, _kept(found))
        return found

    def _counted(self, what: str, inputs: Feeds, found: Answered) -> Answered:
        self.counts[what] += 1
        if what in SAVED:
            self.counts["saved_rows"] += len(next(iter(inputs.values())))
        return found

    def facts(self) -> dict[str, float]:
        """Numbers for metrics, by name."""
        found = {**{name: float(value) for name, value in self.counts.items()}, **self.store.facts()}
        if self.similar is not None:
            guard = self.guard
            found |= {"similar_checked": guard.checked, "similar_wrong": guard.wrong, "similar_wrong_upper": guard.upper}
            found |= {f"similar_{state}": float(guard.state == state) for state in STATES}
        return found

    async def open(self) -> None:
        """Connects what is to be connected; what is away is taken up later."""
        await self.store.open()

    async def close(self) -> None:
        """Lets the stores go."""
        await self.store.close()


def settled(found: Answered, plan: Plan) -> bool:
    """Whether the next request would be answered the same: not where uncertain rows could not be asked again for want of time."""
    return plan.again is None or bool(found.escalated) or not found.uncertain


def _clear(plan: Plan, outputs: Mapping[str, Array]) -> bool:
    assert plan.reader is not None, "looked at only where classes can be read"
    margin = plan.reader(outputs).margin
    return len(margin) == 1 and bool(margin[0] >= max(MARGIN, plan.below if plan.by == "margin" else 0.0))


def _same_class(plan: Plan, kept: Kept, found: Answered) -> bool:
    assert plan.reader is not None, "looked at only where classes can be read"
    output = plan.reader.output
    first, second = kept.outputs[output], found.outputs[output]
    if first.shape != second.shape:
        return False
    if first.size == 1:  # the one class is "yes"
        edge = 0.5 if plan.reader.probabilities else 0.0
        return bool((first > edge) == (second > edge))
    return bool(np.argmax(first) == np.argmax(second))


def _kept(found: Answered) -> Kept:
    about = {"escalated": found.escalated, "escalated_to": found.escalated_to, "uncertain": found.uncertain}
    return Kept(found.outputs, about)


def _answered(plan: Plan, kept: Kept, how: str) -> Answered:
    return Answered(kept.outputs, plan.variant, cache=how, **kept.about)
