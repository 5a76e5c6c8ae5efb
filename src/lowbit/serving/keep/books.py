"""What is written down of a server's traffic: windows, answers, samples, labels. All of it runs in one thread beside the requests.

A disk that is full, or a database that another process holds for too long, costs what was to be written and nothing else: it is counted,
and windows are made up for once there is room, because they are differences of counts that only grow.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lowbit.errors import LowbitError
from lowbit.monitoring.baseline import Baseline
from lowbit.monitoring.labels import Joined
from lowbit.monitoring.looking import Look, look
from lowbit.monitoring.reviews import Review
from lowbit.monitoring.rules import Rules
from lowbit.monitoring.samples import Redaction
from lowbit.monitoring.snapshots import Snapshot, between
from lowbit.monitoring.store import Monitoring
from lowbit.monitoring.tally import Key
from lowbit.monitoring.windows import Window
from lowbit.serving.keep.budget import Budget
from lowbit.serving.keep.keepsakes import Given, Taken, predictions_of, samples_of
from lowbit.serving.keep.spending import Ran, Spending, Spent
from lowbit.serving.run.deployment import Deployment
from lowbit.serving.watch import logs

PRUNE_S = 3600.0
"""What is older than it may get is deleted so often."""
WINDOWS, ANSWERS, SAMPLES, REVIEWS = "windows", "answers", "samples", "reviews"
"""What may fail to be written."""
RULES, NOTHING = Rules(), Redaction()


class Books:
    """The written side of one server.

    Attributes:
        store: Of the state folder; None keeps nothing beyond the process.
        spending: CPU seconds and energy.
        failures: Times that something could not be written, by what.
        looks: What the rules said last, by variant.
        reviews: That are open, whoever opened them.
        samples: Rows that are kept, by model.
        labels: That met their answers, by variant and whether the answer was right.
        spent: By variant, when it was asked last.
    """

    def __init__(
        self,
        store: Monitoring | None,
        spending: Spending,
        *,
        rules: Rules = RULES,
        redaction: Redaction = NOTHING,
        budget: Budget | None = None,
        tell: Callable[[Review], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is written yet.

        Args:
            store: Open.
            spending: Of this server.
            rules: What counts as a shift.
            redaction: Done to inputs before they are written.
            budget: Of what was promised; None where nothing was.
            tell: Told of each review that is opened here.
            clock: Seconds since 1970.
        """
        self.store, self.spending = store, spending
        self.failures: Counter[str] = Counter()
        self.looks: dict[Key, Look] = {}
        self.reviews: tuple[Review, ...] = ()
        self.samples: Mapping[str, int] = {}
        self.labels: Counter[tuple[Key, bool]] = Counter()
        self.spent: Mapping[Key, Spent] = {}
        self._rules, self._redaction, self._budget, self._tell, self._clock = rules, redaction, budget, tell, clock
        self._kept: Snapshot | None = None
        self._pruned = clock()
        self._failing: set[str] = set()

    def meet(self, deployment: Deployment) -> None:
        """Keeps what a deployment's variants are compared with, unless a person accepted something else before. May run in any thread."""
        if self.store is None:
            return
        for variant in deployment.variants.values():
            with self._counted(WINDOWS):
                key = Key(deployment.name, deployment.version, variant.id)
                self.store.set_baseline(key, Baseline.of(deployment.bundle, variant.id), replace=False)

    def spend(self, ran: Mapping[Key, Ran]) -> Mapping[Key, Spent]:
        """Shares out what was spent since the last time."""
        self.spent = self.spending.share(ran)
        return self.spent

    def window(self, document: Mapping[str, Any], ran: Mapping[Key, Ran]) -> None:
        """Keeps what came since the last window, and asks the rules.

        Args:
            document: `Recorder.snapshot`'s.
            ran: Likewise of this moment.
        """
        spent, now = self.spend(ran), self._clock()
        if self.store is None:
            return
        snapshot = Snapshot.from_json(_with(document, spent), at=now, server=document["server"])
        came: tuple[Window, ...] = ()
        with self._counted(WINDOWS):
            windows = between(self._kept, snapshot)
            self.store.add(windows)
            self._kept, came = snapshot, windows
        with self._counted(REVIEWS):
            self._look(self.store, [window.key for window in came], now)
            if self._budget is not None:
                self._budget.look(self.store, now)
        if now - self._pruned >= PRUNE_S:
            self._pruned = now
            with self._counted(WINDOWS):
                self.store.prune(now)
        self.refresh()

    def _look(self, store: Monitoring, keys: Sequence[Key], now: float) -> None:
        """At the variants that had traffic here; those that another server has are looked at there."""
        for key in keys:
            if (looked := look(store, key, self._rules, now=now)) is not None:
                self.looks = {**self.looks, key: looked}
                if self._tell is not None:
                    for review in looked.opened:
                        self._tell(review)

    def refresh(self) -> None:
        """Asks again what other processes may have changed."""
        if self.store is None:
            return
        with self._counted(REVIEWS):
            self.reviews = tuple(self.store.reviews.listed("open"))
            self.samples = self.store.samples.count()

    def answers(self, given: Sequence[Given]) -> None:
        """Writes what requests were answered with."""
        if self.store is not None and given:
            with self._counted(ANSWERS, len(given)):
                self.store.labels.predicted(predictions_of(given))

    def label(self, request_id: str, label: Any, by: str) -> tuple[Joined, ...]:
        """Somebody says what an answer should have been.

        Raises:
            UsageError: it is no label.
            sqlite3.Error: it could not be written.
        """
        assert self.store is not None, "there is no page for labels without a store"
        joined = self.store.labels.label(request_id, label, by=by, now=self._clock())
        for each in joined:
            self.labels[each.key, each.right] += each.first
        return joined

    def sampled(self, taken: Sequence[Taken]) -> None:
        """Offers inputs to the sample."""
        if self.store is not None and taken:
            with self._counted(SAMPLES, len(taken)):
                self.store.samples.offer(samples_of(taken), self._redaction)

    @contextmanager
    def _counted(self, what: str, number: int = 1) -> Iterator[None]:
        """What fails within is counted and said once, until it works again."""
        try:
            yield
        except (sqlite3.Error, OSError, LowbitError, ValueError, KeyError) as error:
            self.failures[what] += number
            if what not in self._failing:
                logs.warn("monitoring cannot be written", what=what, why=f"{type(error).__name__}: {error}")
            self._failing.add(what)
        else:
            if what in self._failing:
                self._failing.discard(what)
                logs.say("monitoring is written again", what=what, failed=self.failures[what])

    def close(self) -> None:
        """Lets the file go."""
        if self.store is not None:
            self.store.close()


def _with(document: Mapping[str, Any], spent: Mapping[Key, Spent]) -> dict[str, Any]:
    """A recording with what its answers cost."""
    models = []
    for entry in document["models"]:
        mine = spent.get(Key(entry["model"], entry["version"], entry["variant"]), Spent())
        models.append({**entry, "busy_s": mine.cpu_s, "joules": mine.joules})
    return {**document, "models": models}
