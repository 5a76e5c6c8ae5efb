"""One running rollout as a server sees it: which requests the candidate answers, and that nobody loses an answer by it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING

from lowbit.rollout.desired import assigned
from lowbit.serving.answer.answered import Answered
from lowbit.serving.fleet.counting import NOT_A_NUMBER, ArmCount, StepCount, has_nan
from lowbit.serving.protocol.refusals import NotServed, Refusal, TooLate
from lowbit.serving.watch import logs

if TYPE_CHECKING:
    from lowbit.serving.fleet.shadowing import Shadowing
    from lowbit.serving.protocol.requests import InferRequest
    from lowbit.serving.run.deployment import Deployment

Work = Callable[["Deployment"], Awaitable[Answered]]
"""Answers the request at hand by a deployment.

Raises:
    Refusal: of the kind that fits.
"""
Covered = Callable[["Deployment", Refusal, float], None]
"""Told who failed, why, and after how many seconds."""
FAULTS = 500
"""Status from which a refusal is the server's own fault."""
ALONE = 0.75
"""Of the time that is left a candidate has so much for itself; after it the champion is asked, too."""


@dataclass(frozen=True)
class Trial:
    """A rollout's step.

    Attributes:
        champion: Answers the rest.
        canary: The candidate; None where it is only mirrored, or cannot be used here.
        share: Of sessions that the candidate answers, 0-1.
        counts: Of both.
        mirrored: The candidate, where it answers nobody but is asked all the same.
        shadow: Share of requests that are answered again, 0-1.
        shadowing: Does so, later; None where nobody does.
    """

    champion: Deployment
    canary: Deployment | None
    share: float
    counts: StepCount
    mirrored: Deployment | None = None
    shadow: float = 0.0
    shadowing: Shadowing | None = None

    def side(self, session: str) -> Deployment:
        """Who answers a session: always the same side, and who is with the candidate stays with it when the share grows."""
        if self.canary is None or self.counts.stopped or not assigned(self.counts.rollout, self.share, session):
            return self.champion
        return self.canary

    async def answer(
        self, side: Deployment, request: InferRequest, work: Work, deadline: float, covered: Covered, *, prepared: bool = False
    ) -> tuple[Deployment, Answered]:
        """Answers a request, and counts it.

        Args:
            side: What `side` gave, when the request came; the rollout may have moved on since.
            request: Its inputs.
            work: Runs it.
            deadline: On the event loop's clock.
            covered: Told of every failure of the candidate for which the champion answers.
            prepared: Whether the inputs were made by this side's own preprocessing: they may not fit the other.

        Returns:
            Who answered, and what.

        Raises:
            Refusal: the champion's, or that of the only side; where the candidate failed, with `elsewhere` set.
        """
        rows, start = len(next(iter(request.inputs.values()))), perf_counter()
        if side is self.champion:
            found = await self._champion(work, start, rows)
        elif side is not self.canary:
            return side, await work(side)
        elif prepared and not self.alike:
            found = await self._alone(request, work, start, rows, deadline)
        else:
            side, found = await self._covered(work, start, rows, deadline, covered)
        if self.shadowing is not None and found.batch:
            self.shadowing.offer(self, side, request, found)
        return side, found

    async def _champion(self, work: Work, start: float, rows: int) -> Answered:
        try:
            found = await work(self.champion)
        except Refusal as refusal:
            if refusal.status >= FAULTS:
                self.counts.baseline.failed()
                self.counts.changed = True
            raise
        except asyncio.CancelledError:
            self._left(self.counts.baseline, start)
            raise
        self.counts.baseline.answered(found, perf_counter() - start, rows)
        self.counts.changed = True
        return found

    async def _canary(self, work: Work, start: float, rows: int) -> Answered:
        canary = self.canary
        assert canary is not None, "nobody is assigned to it"
        try:
            found = await work(canary)
        except Refusal as refusal:
            if refusal.status >= FAULTS:
                self.counts.canary_failed(refusal.message, ran=refusal.status == FAULTS)
            raise
        except asyncio.CancelledError:
            self._left(self.counts.canary, start)
            raise
        if has_nan(found.outputs):
            raise NotANumber(found, perf_counter() - start)
        self.counts.canary_answered(found, perf_counter() - start, rows)
        return found

    def _left(self, arm: ArmCount, start: float) -> None:
        arm.left(perf_counter() - start)
        self.counts.changed = True

    async def _soon(self, work: Work, start: float, rows: int, deadline: float) -> Answered | None:
        """The candidate's answer; None where it takes too long: it still counts, with the time that it took."""
        loop = asyncio.get_running_loop()
        trying = loop.create_task(self._canary(work, start, rows))
        try:
            done, _ = await asyncio.wait((trying,), timeout=ALONE * (deadline - loop.time()))
        except asyncio.CancelledError:
            trying.cancel()
            raise
        if done:
            return trying.result()
        trying.add_done_callback(_seen)
        logs.warn("the candidate takes long: the champion answers", model=self.champion.name, rollout=self.counts.rollout)
        return None

    async def _alone(self, request: InferRequest, work: Work, start: float, rows: int, deadline: float) -> Answered:
        """The candidate's answer, or a refusal that says who may be asked instead."""
        try:
            if (found := await self._soon(work, start, rows, deadline)) is None:
                raise TooLate("The candidate takes too long.")
            return found
        except NotANumber as refusal:
            self._judge(refusal, has_nan(request.inputs), rows)
            refusal.elsewhere = self.champion
            raise
        except Refusal as refusal:
            if refusal.status >= FAULTS or isinstance(refusal, NotServed):
                refusal.elsewhere = self.champion
            raise

    def _judge(self, refusal: NotANumber, excused: bool, rows: int) -> None:
        """Counts an answer that is not a number: no fault of the candidate's where the inputs are to blame."""
        if excused:
            self.counts.canary_answered(refusal.found, refusal.seconds, rows)
        else:
            self.counts.canary_failed("", ran=False)
            self.counts.stop(NOT_A_NUMBER)

    @cached_property
    def alike(self) -> bool:
        """Whether both sides have the same preprocessing, byte for byte."""
        if self.canary is None:
            return False
        one, other = (each.digests.get(each.bundle.manifest.preprocess or "") for each in (self.champion, self.canary))
        return one == other

    async def _covered(self, work: Work, start: float, rows: int, deadline: float, covered: Covered) -> tuple[Deployment, Answered]:
        """The candidate's answer; where it fails, or takes too long, the champion's."""
        canary = self.canary
        assert canary is not None, "nobody is assigned to it"
        try:
            mine = await self._soon(work, start, rows, deadline)
        except NotANumber as refusal:
            covered(canary, refusal, perf_counter() - start)
            found = await work(self.champion)
            self._judge(refusal, has_nan(found.outputs), rows)
            return self.champion, found
        except Refusal as refusal:
            if refusal.status < FAULTS and not isinstance(refusal, NotServed):
                raise
            covered(canary, refusal, perf_counter() - start)
            return self.champion, await work(self.champion)
        return (canary, mine) if mine is not None else (self.champion, await work(self.champion))


class NotANumber(Refusal):
    """What the candidate answered, after so many seconds, cannot be used."""

    def __init__(self, found: Answered, seconds: float) -> None:
        super().__init__("The candidate's answer is not a number.")
        self.found, self.seconds = found, seconds


def _seen(task: asyncio.Future[Answered]) -> None:
    """Nobody waits for it any more; what it raised was counted."""
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()


def alike(one: Deployment, other: Deployment) -> bool:
    """Whether two versions take and give the same: names, types and shapes but for the names of their axes."""

    def seen(each: Deployment) -> list[object]:
        return [
            (info.name, info.dtype, tuple(dim if isinstance(dim, int) else None for dim in info.shape))
            for info in (*each.inputs, *each.outputs)
        ]

    return seen(one) == seen(other)
