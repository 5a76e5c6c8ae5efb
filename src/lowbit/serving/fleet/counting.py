"""What a running rollout needs to know of both its arms, counted as requests end.

Everything here runs on the event loop and costs microseconds; nothing of it runs where there is no rollout.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

import numpy as np

from lowbit.measure.compare import BINS
from lowbit.rollout.evidence import EDGES_S, LATENCY_BINS, Arm, Evidence
from lowbit.serving.answer.answered import Answered
from lowbit.serving.answer.certainty import ClassReader
from lowbit.types import Array

CRASHES = 3
"""So many failures of the canary with no answer between them, and it is a crash."""
CRASHED, NOT_A_NUMBER, OUT_OF_MEMORY = "crashed", "not a number", "out of memory"
"""Reasons that end a rollout at once."""


class ArmCount:
    """One side's answers since a step began.

    Attributes:
        reader: Of certainties; None where answers are no classes.
    """

    def __init__(self) -> None:
        """Nothing yet."""
        self.reader: ClassReader | None = None
        self._requests = self._errors = self._shadowed = self._disagreed = self._labelled = self._right = self._busy_n = 0
        self._busy_s = self._busy_squares = 0.0
        self._seconds = [0] * LATENCY_BINS
        self._confidence = [0] * BINS

    def answered(self, found: Answered, seconds: float, rows: int) -> None:
        """A request was answered.

        Time and confidence are those of runs: an answer that was kept would compare caches, and the new version's is empty. What a row
        costs is taken from requests that ran alone: a share of a larger batch is cheaper, and the smaller arm has smaller batches.
        """
        self._requests += 1
        if not found.batch:
            return
        self._seconds[bisect_right(EDGES_S, seconds)] += 1
        if found.batch <= rows:
            each = found.ran_s / rows
            self._busy_n += 1
            self._busy_s += each
            self._busy_squares += each * each
        if self.reader is not None:
            certain, _ = found.top(self.reader)
            for place in [int(certain[0] * BINS)] if rows == 1 else (certain * BINS).astype(np.intp).tolist():
                self._confidence[min(place, BINS - 1)] += 1

    def failed(self) -> None:
        """A request was not answered, and it was our fault."""
        self._requests += 1
        self._errors += 1

    def left(self, seconds: float) -> None:
        """A client went away before its answer: that took longer than so many seconds. Else nobody would see what nobody waits for."""
        self._requests += 1
        self._seconds[bisect_right(EDGES_S, seconds)] += 1

    def shadowed(self, rows: int, disagreed: int) -> None:
        """Rows were answered again at full precision, and so many had another class."""
        self._shadowed += rows
        self._disagreed += disagreed

    def labelled(self, *, right: bool) -> None:
        """It became known what the answer to a row should have been."""
        self._labelled += 1
        self._right += right

    def arm(self) -> Arm:
        """All of it."""
        return Arm(
            requests=self._requests,
            errors=self._errors,
            seconds=tuple(self._seconds),
            confidence=tuple(self._confidence) if self.reader is not None else (),
            shadowed=self._shadowed,
            disagreed=self._disagreed,
            labelled=self._labelled,
            right=self._right,
            busy_n=self._busy_n,
            busy_s=self._busy_s,
            busy_squares=self._busy_squares,
        )


class StepCount:
    """Both arms of one step of one rollout.

    Attributes:
        rollout: Its id.
        step: Its number.
        baseline: The champion's side.
        canary: The candidate's.
        changed: Whether anything was counted since `taken`.
        name: Under which its server reports it; nothing else has it, whatever was counted before.
        over_since: When another step took its place, on the monotonic clock; None while it lasts.
    """

    def __init__(self, rollout: str, step: int) -> None:
        """Nothing yet."""
        self.rollout, self.step = rollout, step
        self.baseline, self.canary = ArmCount(), ArmCount()
        self.name = ""
        self.over_since: float | None = None
        self.changed = True  # a server that follows says so, even without traffic
        self._hard: list[str] = []
        self._in_a_row = 0

    def canary_answered(self, found: Answered, seconds: float, rows: int) -> None:
        """The canary answered one."""
        self._in_a_row = 0
        self.changed = True
        self.canary.answered(found, seconds, rows)

    def canary_failed(self, why: str, *, ran: bool = True) -> None:
        """It did not.

        Args:
            why: What the runtime said.
            ran: Whether its run failed; else it had no room or no time, which is slow but no crash.
        """
        self.changed = True
        self._in_a_row += ran
        self.canary.failed()
        if out_of_memory(why):
            self.stop(OUT_OF_MEMORY)
        elif self._in_a_row >= CRASHES:
            self.stop(CRASHED)

    def shadowed(self, champion: bool, rows: int, disagreed: int) -> None:
        """One side's rows were answered again; see `ArmCount.shadowed`."""
        self.changed = True
        (self.baseline if champion else self.canary).shadowed(rows, disagreed)

    def stop(self, why: str) -> None:
        """Something that ends a rollout at once."""
        if why not in self._hard:
            self._hard.append(why)
            self.changed = True

    @property
    def stopped(self) -> bool:
        """Whether something did: the canary gets no more requests here, whatever the step's share."""
        return bool(self._hard)

    def taken(self) -> Evidence:
        """All of it, to be reported."""
        self.changed = False
        return Evidence(baseline=self.baseline.arm(), canary=self.canary.arm(), hard=tuple(self._hard))


def out_of_memory(why: str) -> bool:
    """Whether a runtime's words say so."""
    low = why.lower()
    return any(words in low for words in ("memoryerror", "bad_alloc", "out of memory", "failed to allocate"))


def has_nan(outputs: Mapping[str, Array]) -> bool:
    """Whether any output holds something that is no number; one pass: the least of numbers with a NaN among them is NaN."""
    return any(array.dtype.kind == "f" and array.size > 0 and bool(np.isnan(array.min())) for array in outputs.values())
