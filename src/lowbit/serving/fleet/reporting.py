"""Once a second a server says what its rollouts' arms did, and looks whether a decision follows.

There is no lease and no leader: every server looks, and the store lets one of them change anything. If this one dies, another looks;
started again, it reports under a new name, and what it had said before stays said.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import secrets
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TypeVar

from lowbit.errors import LowbitError
from lowbit.rollout.store import Rollouts
from lowbit.serving.fleet.counting import StepCount
from lowbit.serving.fleet.threads import Thread
from lowbit.serving.watch import logs

EVERY_S = 1.0
LATE_S = 60.0
"""Requests of a step that has ended may still end in this time, and are reported to it."""
GIVE_UP_S = 3600.0
"""What could not be reported of such a step is tried again for so long."""
T = TypeVar("T")


class Reports:
    """Of one server.

    Attributes:
        server: Its name; another each time that it starts.
        failed: Reports and looks that failed.
        beats: Called each time, in the thread.
    """

    def __init__(self, rollouts: Rollouts, changed: Callable[[], None]) -> None:
        """Nothing to say yet.

        Args:
            rollouts: Where to.
            changed: Called when a look had a consequence.
        """
        self.server, self.failed = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}", 0
        self._rollouts, self._changed = rollouts, changed
        self.beats: list[Callable[[], None]] = []
        self._writing = Thread("lowbit-report")
        self._counts: list[StepCount] = []
        self._numbers = itertools.count(1)
        self._looked: dict[str, float] = {}  # on the monotonic clock: the other one may be put back
        self._down = False

    def add(self, counts: StepCount) -> None:
        """A step begins here."""
        counts.name = f"{self.server}-{next(self._numbers)}"
        self._counts.append(counts)

    async def run(self, open_rollouts: Callable[[], Iterable[str]]) -> None:
        """Reports and looks; never returns.

        Args:
            open_rollouts: Ids of those to look at.
        """
        while True:
            await asyncio.sleep(EVERY_S)
            await self.once(open_rollouts())

    async def once(self, ids: Iterable[str]) -> None:
        """Reports what is new, and looks where it is time. What fails keeps nothing else from its turn."""
        before = self.failed
        for counts in [each for each in self._counts if each.changed]:
            await self._tried(self._report(counts))
        for beat in self.beats:
            await self._tried(self._writing.run(beat))
        for each in ids:
            if await self._tried(self._writing.run(partial(self._look, each))):
                self._changed()
        self._down = self.failed > before
        now = time.monotonic()
        self._counts = [
            each for each in self._counts if each.over_since is None or now - each.over_since < (GIVE_UP_S if each.changed else LATE_S)
        ]

    async def _tried(self, work: Awaitable[T]) -> T | None:
        """What it gives; None where it failed. A full or locked disk costs a report, and no answer."""
        try:
            return await work
        except (LowbitError, OSError, sqlite3.Error) as error:
            self.failed += 1
            if not self._down:
                logs.warn("a rollout's evidence cannot be reported", why=error.message if isinstance(error, LowbitError) else str(error))
            self._down = True
        except Exception:
            self.failed += 1
            logs.failed("a look at a rollout failed")
        return None

    async def _report(self, counts: StepCount) -> None:
        evidence = counts.taken()
        try:
            await self._writing.run(partial(self._rollouts.report, counts.rollout, counts.step, counts.name, evidence))
        except BaseException:
            counts.changed = True
            raise

    def _look(self, rollout: str) -> bool:
        """Whether anything followed from a look, where it is time for one or something cannot wait; in the thread."""
        now, stopped = time.monotonic(), any(counts.stopped for counts in self._counts if counts.rollout == rollout)
        if not stopped and now - self._looked.get(rollout, -math.inf) < self._rollouts.get(rollout).plan.look_s:
            return False
        self._looked[rollout] = now
        decided = self._rollouts.look(rollout)
        return decided is not None and decided.decision.action != "hold"

    async def close(self) -> None:
        """Says the last."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(EVERY_S):
                for counts in [each for each in self._counts if each.changed]:
                    await self._report(counts)
        await self._writing.close()
