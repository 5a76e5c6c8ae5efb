"""Some requests are answered once more, after their answers went out: at full precision, or by a candidate that answers nobody yet.

This is work nobody waits for. It runs one at a time, only while no row waits for a run, and takes a share of the time at most; what
finds no room is dropped. No request's numbers change by it.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from lowbit.serving.answer.answered import Answered
from lowbit.serving.fleet.counting import NOT_A_NUMBER, has_nan
from lowbit.serving.protocol.refusals import Refusal, Unavailable
from lowbit.serving.run.deployment import CHOSEN, FULL
from lowbit.serving.watch import logs

if TYPE_CHECKING:
    from lowbit.serving.fleet.trial import Trial
    from lowbit.serving.protocol.requests import InferRequest
    from lowbit.serving.run.deployment import Deployment, Variant
    from lowbit.types import Array, Feeds

ROOM, ROOM_BYTES = 64, 32 << 20
"""Requests that may wait to be answered again, and bytes of their inputs."""
DUTY = 0.2
"""Of the time, while requests are inside."""
PATIENCE_S = 10.0
"""For a run of this kind."""
LOOK_S = 0.002
FAULTS = 500


@dataclass(frozen=True)
class _Kept:
    trial: Trial
    side: Deployment
    inputs: Feeds
    predicted: Array | None
    size: int


class Shadowing:
    """Of one server.

    Attributes:
        dropped: Requests that found no room.
        failed: Whose run at full precision failed.
    """

    def __init__(self, busy: Callable[[], bool], seed: int | None = None) -> None:
        """Nothing yet.

        Args:
            busy: Whether requests are inside.
            seed: Of the choice by chance.
        """
        self.dropped = self.failed = 0
        self._busy, self._chance = busy, random.Random(seed).random
        self._kept: deque[_Kept] = deque()
        self._bytes = 0
        self._some = asyncio.Event()

    def offer(self, trial: Trial, side: Deployment, request: InferRequest, found: Answered) -> None:
        """A request was answered by one side; on the event loop, in microseconds."""
        if self._chance() >= drawn(trial, side):
            return
        full = side.variant(FULL)
        predicted = found.top(side.reader)[1] if side.reader is not None and full is not None else None
        if trial.mirrored is None:
            if predicted is None:
                return
            if found.variant is full or found.escalated == len(predicted):
                trial.counts.shadowed(side is trial.champion, len(predicted), 0)  # it is full precision that answered
                return
        size = sum(array.nbytes for array in request.inputs.values())
        if len(self._kept) >= ROOM or self._bytes + size > ROOM_BYTES:
            self.dropped += 1
            return
        self._kept.append(_Kept(trial, side, request.inputs, predicted, size))
        self._bytes += size
        self._some.set()

    async def run(self) -> None:
        """Answers what was kept; never returns."""
        while True:
            await self._some.wait()
            while self._kept:
                kept = self._kept.popleft()
                self._bytes -= kept.size
                start = perf_counter()
                try:
                    await self._again(kept)
                except Exception:  # nobody is waiting for it
                    logs.failed("answering again failed", model=kept.side.name)
                if self._busy():
                    await asyncio.sleep((perf_counter() - start) * (1 / DUTY - 1))
            self._some.clear()

    async def _again(self, kept: _Kept) -> None:
        trial = kept.trial
        if trial.mirrored is not None:
            await _mirrored(trial, trial.mirrored, kept.inputs)
        if kept.predicted is None or kept.side.reader is None:
            return
        try:
            outputs = await _ran(trial, kept.side.variant(FULL), kept.inputs)
        except Refusal:  # there is nothing to compare with
            self.failed += 1
            return
        if outputs is not None:
            differ = int(np.count_nonzero(outputs.top(kept.side.reader)[1] != kept.predicted))
            trial.counts.shadowed(kept.side is trial.champion, len(kept.predicted), differ)


def drawn(trial: Trial, side: Deployment) -> float:
    """Share of a side's answers that are looked at again: both arms as often, so the smaller one has more of its own."""
    small = min(trial.share, 1 - trial.share)
    larger = side is (trial.champion if trial.share < 0.5 else trial.canary)
    return trial.shadow if larger or small <= 0 else min(1.0, trial.shadow * (1 - small) / small)


async def _mirrored(trial: Trial, candidate: Deployment, inputs: Feeds) -> None:
    """The candidate answers what the champion has answered; it counts as if somebody had asked it."""
    rows, counts = len(next(iter(inputs.values()))), trial.counts
    try:
        found = await _ran(trial, candidate.variants[CHOSEN], inputs)
    except Refusal as refusal:
        if refusal.status >= FAULTS:
            counts.canary_failed(refusal.message, ran=refusal.status == FAULTS)
        return
    if found is None:
        return
    if has_nan(found.outputs) and not has_nan(inputs):
        counts.canary_failed("", ran=False)
        counts.stop(NOT_A_NUMBER)
        return
    counts.canary_answered(found, found.queued_s + found.ran_s, rows)
    full = candidate.variant(FULL)
    again = found if full is found.variant else await _ran(trial, full, inputs)
    if candidate.reader is not None and again is not None:
        differ = again.top(candidate.reader)[1] != found.top(candidate.reader)[1]
        counts.shadowed(False, rows, int(np.count_nonzero(differ)))


async def _ran(trial: Trial, variant: Variant | None, inputs: Feeds) -> Answered | None:
    """A variant's answer, once no client's row waits for a run of either version; None where that does not come in time.

    Raises:
        Refusal: the run failed.
    """
    if variant is None:
        return None
    end = perf_counter() + PATIENCE_S
    while variant.batcher.running or crowded(trial):
        if perf_counter() > end:
            return None
        await asyncio.sleep(LOOK_S)
    try:
        got = await variant.batcher.submit(inputs, deadline=asyncio.get_running_loop().time() + PATIENCE_S)
    except Unavailable:
        return None
    return Answered(got.outputs, variant, batch=got.batch, queued_s=got.queued_s, ran_s=got.ran_s)


def crowded(trial: Trial) -> bool:
    """Whether rows wait for any variant of the versions that are compared."""
    sides = (trial.champion, trial.canary or trial.mirrored)
    return any(variant.batcher.waiting for side in sides if side is not None for variant in side.variants.values())
