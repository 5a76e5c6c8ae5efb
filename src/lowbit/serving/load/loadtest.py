"""Load from outside, honestly: requests leave when they are due, not when the server is ready for them (open loop).

Arrivals are Poisson, drawn beforehand from a seed. A latency runs from the moment at which a request was due, so that a server which stalls
pays for everybody who would have come meanwhile, and the client's own lateness is not hidden either. (Tene, "How NOT to measure latency",
calls the opposite coordinated omission.)
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lowbit.types import Array

Send = Callable[[int], Awaitable[int]]
"""Sends the request of that number and gives the HTTP status of its answer; 0 where there was none."""
SPIN_S = 0.001
"""Timers of event loops are about so coarse: the rest of a wait is spent looking at the clock."""
GRACE_S = 30.0
"""Behind the last request its answers may take so long."""
UNAVAILABLE, LATE = 503, 504


@dataclass(frozen=True)
class Step:
    """What came of one rate.

    Attributes:
        rate: Requests a second that were asked for; None in a closed loop.
        seconds: During which they were sent.
        statuses: HTTP status -> answers; 0: no answer.
        latencies_s: Of the answers with a result [n], sorted.
        all_latencies_s: Of everything [n], sorted.
        more: What a target tells beside that, for JSON.
    """

    rate: float | None
    seconds: float
    statuses: Counter[int]
    latencies_s: Array = field(repr=False)
    all_latencies_s: Array = field(repr=False)
    more: dict[str, float | None] = field(default_factory=dict)

    @property
    def sent(self) -> int:
        """Requests."""
        return self.statuses.total()

    @property
    def ok(self) -> int:
        """Answers with a result."""
        return self.statuses[200]

    @property
    def throughput(self) -> float:
        """Results a second."""
        return self.ok / self.seconds

    @property
    def errors(self) -> float:
        """Share of requests without a result."""
        return 1 - self.ok / self.sent if self.sent else 0.0

    def quantile(self, q: float) -> float:
        """Seconds within which that share of the results came; NaN where there is none. Nearest rank: a latency that was seen."""
        n = len(self.latencies_s)
        return float(self.latencies_s[max(0, math.ceil(q * n) - 1)]) if n else math.nan

    def document(self) -> dict[str, object]:
        """For JSON."""
        quantiles = {f"p{q:g}_ms": _ms(self.quantile(q / 100)) for q in (50, 90, 95, 99, 99.9)}
        slowest = _ms(float(self.all_latencies_s[-1])) if len(self.all_latencies_s) else None
        return {
            "rate": self.rate,
            "seconds": round(self.seconds, 3),
            "sent": self.sent,
            "ok": self.ok,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "throughput": round(self.throughput, 2),
            "errors": round(self.errors, 6),
            **quantiles,
            "max_ms": slowest,
            **self.more,
        }


def _ms(seconds: float) -> float | None:
    return None if math.isnan(seconds) else round(1000 * seconds, 3)


@dataclass(frozen=True)
class Objective:
    """What must hold.

    Attributes:
        p99_s: Within which 99 % of the results must come.
        errors: Share of requests that may have none.
    """

    p99_s: float
    errors: float = 0.01

    def held(self, step: Step) -> bool:
        """Whether it did."""
        return step.ok > 0 and step.quantile(0.99) <= self.p99_s and step.errors <= self.errors


def arrivals(rate: float, seconds: float, seed: int) -> Array:
    """Moments of a Poisson process [n], in seconds from the start, below `seconds`."""
    rng = np.random.default_rng(seed)
    count = rng.poisson(rate * seconds)
    return np.sort(rng.uniform(0, seconds, count))


async def open_loop(send: Send, rate: float, seconds: float, seed: int = 0) -> Step:
    """Sends at a rate, whatever comes back."""
    due = arrivals(rate, seconds, seed)
    statuses = np.zeros(len(due), np.int64)
    took = np.full(len(due), np.nan)
    tasks: set[asyncio.Task[None]] = set()
    start = time.perf_counter()

    async def one(number: int) -> None:
        statuses[number] = await send(number)
        took[number] = time.perf_counter() - start - due[number]

    for number, moment in enumerate(due.tolist()):
        await _until(start + moment)
        task = asyncio.create_task(one(number))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await _until(start + seconds)
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=GRACE_S)
        for task in late:
            task.cancel()
    took = np.where(np.isnan(took), seconds + GRACE_S - due, took)
    return _step(rate, seconds, statuses, took)


async def closed_loop(send: Send, clients: int, seconds: float) -> Step:
    """Clients that each wait for an answer before they ask again: what a server can do at most, not how long its users wait."""
    statuses: list[int] = []
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def client(first: int) -> None:
        number = first
        while (start := time.perf_counter()) < end:
            statuses.append(await send(number))
            took.append(time.perf_counter() - start)
            number += clients

    start = time.perf_counter()
    await asyncio.gather(*(client(first) for first in range(clients)))
    return _step(None, time.perf_counter() - start, np.array(statuses, np.int64), np.array(took))


def _step(rate: float | None, seconds: float, statuses: Array, took: Array) -> Step:
    return Step(rate, seconds, Counter(statuses.tolist()), np.sort(took[statuses == 200]), np.sort(took))


async def _until(moment: float) -> None:
    left = moment - time.perf_counter()
    if left > SPIN_S:
        await asyncio.sleep(left - SPIN_S)
    while time.perf_counter() < moment:
        await asyncio.sleep(0)


async def steps(
    send: Send, rates: Sequence[float], seconds: float, seed: int = 0, on_step: Callable[[Step], None] | None = None
) -> list[Step]:
    """One step for each rate."""
    found = []
    for number, rate in enumerate(rates):
        found.append(await open_loop(send, rate, seconds, seed + number))
        if on_step:
            on_step(found[-1])
    return found


async def until_it_breaks(
    send: Send,
    objective: Objective,
    seconds: float,
    *,
    first: float = 10.0,
    growth: float = 1.5,
    halvings: int = 3,
    most: float = 100_000.0,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> tuple[list[Step], Step | None]:
    """Raises the rate until the objective breaks, then halves the gap between the last that held and the first that did not.

    Returns:
        All steps in the order in which they ran, and the one with the highest rate that held (None: none did).
    """
    found: list[Step] = []

    async def holds(rate: float) -> bool:
        step = await open_loop(send, rate, seconds, seed + len(found))
        found.append(step)
        if on_step:
            on_step(step)
        return objective.held(step)

    low, high = 0.0, first
    while high <= most and await holds(high):
        low, high = high, high * growth
    for _ in range(halvings):
        middle = (low + high) / 2
        if await holds(middle):
            low = middle
        else:
            high = middle
    held = [step for step in found if objective.held(step)]
    return found, max(held, key=lambda step: step.rate or 0.0, default=None)
