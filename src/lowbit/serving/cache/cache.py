"""The cache as answering sees it: look, run once, keep.

An exact answer is what the model said of the same tensors. A similar one is what it said of an image that is nearly the same: only where
that was asked for, never for critical requests, never from answers that were close, and only as long as checks say that it would say the
same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace

import numpy as np

from lowbit.errors import UsageError
from lowbit.serving.answer.answered import Answered, Plan
from lowbit.serving.cache.flights import Flights
from lowbit.serving.cache.guard import Guard
from lowbit.serving.cache.images import Look
from lowbit.serving.cache.remote import Link, Shared, SharedIndex
from lowbit.serving.cache.settings import CacheSettings
from lowbit.serving.cache.similar import MARGIN, Index, LocalIndex
from lowbit.serving.cache.store import Kept, Local, Store
from lowbit.serving.protocol import framing, wire
from lowbit.types import Array, Feeds

Work = Callable[[], Awaitable[Answered]]
RESULTS = ("miss", "exact", "similar", "shared", "shadow")
SAVED = ("exact", "similar", "shared")
STATES = ("on", "proving", "off")
"""From the best to the worst."""


class Cache:
    """Exact answers, similar ones where they are asked for, and one run for all who ask the same at the same time.

    Attributes:
        store: Of exact answers.
        similar: Of similar ones; None leaves them out.
        guards: By the namespace of similar answers: each says whether similar ones may be given there. What one model gets right says
            nothing of another, nor of another version or variant.
        counts: Requests by what became of them, and rows that did not have to run ("saved_rows").
    """

    def __init__(self, store: Store, similar: Index | None = None, guarded: Callable[[], Guard] = lambda: Guard(0.005, 0.02)) -> None:
        """Starts with whatever the stores have; `guarded` makes a guard."""
        self.store, self.similar = store, similar
        self.guards: dict[bytes, Guard] = {}
        self._guarded = guarded
        self.counts = Counter(dict.fromkeys((*RESULTS, "saved_rows"), 0))
        self._flights: Flights[Answered] = Flights()

    @classmethod
    def of(cls, settings: CacheSettings) -> Cache | None:
        """The cache that settings describe; None where they keep nothing.

        Raises:
            UsageError: the address of Redis is none, its package is missing, or answers are to be kept for no time.
        """
        if not settings.max_bytes:
            return None
        if not 0 < settings.ttl_s < float("inf"):
            raise UsageError(f"Answers cannot be kept for {settings.ttl_s:g} seconds.", "Give a time above 0: --cache-ttl 10m.")
        if not 0 < settings.similar_budget < 1:
            raise UsageError(f"A share of {settings.similar_budget:g} wrong answers cannot be shown.", "Give one above 0 and below 1.")
        local = Local(settings.max_bytes, settings.ttl_s)

        def guard() -> Guard:
            return Guard(settings.similar_budget, settings.shadow, settings.seed)

        if settings.redis is None:
            return cls(local, LocalIndex(settings.max_bytes, settings.ttl_s) if settings.similar else None, guard)
        link = Link(settings.redis)
        return cls(Shared(link, local), SharedIndex(link, settings.ttl_s) if settings.similar else None, guard)

    @property
    def looks(self) -> bool:
        """Whether it needs the certainty of answers."""
        return self.similar is not None

    def guard(self, plan: Plan) -> Guard:
        """Of a plan's similar answers."""
        space = plan.similar_space
        if (found := self.guards.get(space)) is None:
            found = self.guards[space] = self._guarded()
        return found

    def only(self, spaces: Collection[bytes]) -> None:
        """Forgets the guards of all other namespaces: nobody asks there any more."""
        for space in set(self.guards) - set(spaces):
            self.guards.pop(space, None)

    async def answered(self, plan: Plan, inputs: Feeds, critical: bool, work: Work, deadline: float) -> Answered:
        """A kept answer, another request's, or the work's, which is then kept.

        Raises:
            Refusal: what the work raised, or TooLate while waiting for another request's.
        """
        assert plan.space is not None, "asked only where there is one"
        key = framing.digest(plan.space, inputs)
        kept = await self.store.get(key, lambda found: fits(found, plan, inputs))
        if kept is not None:
            return self._counted("exact", inputs, _answered(plan, kept, "exact"))
        # A critical request must not be handed what another was given for being similar.
        flight = key + (b"critical" if critical else b"")
        found, shared = await self._flights.once(
            flight, lambda: self._look(key, plan, inputs, critical, work), deadline, lambda found: settled(found, plan)
        )
        return self._counted("shared" if shared else found.cache, inputs, replace(found, cache="shared", batch=0) if shared else found)

    async def _look(self, key: bytes, plan: Plan, inputs: Feeds, critical: bool, work: Work) -> Answered:
        if self.similar is None or plan.pixels is None or plan.reader is None or critical:
            return await self._work(key, plan, None, work)
        guard = self.guard(plan)
        look = plan.pixels.look(inputs) if guard.state != "off" else None
        if look is None:
            return await self._work(key, plan, None, work)
        kept = await self.similar.near(plan.similar_space, look, lambda found: fits(found, plan, inputs))
        if kept is None:
            return await self._work(key, plan, look, work)
        if not guard.checks():
            return _answered(plan, kept, "similar")
        found = await self._work(key, plan, None, work)
        guard.told(right=_same_class(plan, kept, found))
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
        """Numbers for metrics, by name; of guards the worst."""
        found = {**{name: float(value) for name, value in self.counts.items()}, **self.store.facts()}
        if self.similar is not None:
            guards = self.guards.values()
            worst = max((guard.state for guard in guards), key=STATES.index, default="proving")
            found |= {"similar_checked": sum(guard.checked for guard in guards), "similar_wrong": sum(guard.wrong for guard in guards)}
            found |= {"similar_wrong_upper": max((guard.upper for guard in guards), default=1.0)}
            found |= {f"similar_{state}": float(worst == state) for state in STATES}
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


def fits(kept: Kept, plan: Plan, inputs: Feeds) -> bool:
    """Whether an answer is one that the plan's variant could give: what comes from another process may be anything."""
    rows, outputs = len(next(iter(inputs.values()))), {info.name: info for info in plan.variant.sessions.outputs}
    if kept.outputs.keys() != outputs.keys() or kept.about["escalated_to"] not in (None, plan.again.id if plan.again else None):
        return False
    if not all(0 <= (kept.about[count] or 0) <= rows for count in ("escalated", "uncertain")):
        return False
    for name, array in kept.outputs.items():
        shape = (rows, *outputs[name].shape[1:])
        alike = len(shape) == array.ndim and all(dim == size for dim, size in zip(shape, array.shape, strict=True) if isinstance(dim, int))
        if not alike or wire.datatype_of(array.dtype.name) != wire.datatype_of(outputs[name].dtype):
            return False
    return True


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
