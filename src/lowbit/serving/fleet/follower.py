"""Follows a registry: what its aliases and rollouts say is loaded, served, split and freed, whoever changes them.

A version is on its way in threads of its own, so that an alias which goes back to one that is loaded takes effect at the next look,
a fifth of a second later at most. Whatever fails, the versions that answer go on answering.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from lowbit.errors import LowbitError, UsageError
from lowbit.registry.records import ModelVersion
from lowbit.registry.registry import Registry
from lowbit.rollout.store import Rollouts
from lowbit.serving.fleet.counting import CRASHED, OUT_OF_MEMORY, StepCount, out_of_memory
from lowbit.serving.fleet.deaths import TOO_MANY, Deaths
from lowbit.serving.fleet.followed import Followed, versions_of, wanted
from lowbit.serving.fleet.model import Model
from lowbit.serving.fleet.reporting import Reports
from lowbit.serving.fleet.shadowing import Shadowing
from lowbit.serving.fleet.taking_back import taken_back
from lowbit.serving.fleet.threads import Thread
from lowbit.serving.fleet.trial import Trial, alike
from lowbit.serving.reloading import Source
from lowbit.serving.run.deployment import Deployment
from lowbit.serving.service import Service
from lowbit.serving.watch import logs
from lowbit.serving.watch.metrics import Metrics
from lowbit.serving.watch.observing import Observer

POLL_S = 0.2
AGAIN_S = 30.0
"""What could not be loaded is tried again after this."""
Load = Callable[[ModelVersion, str], Deployment]
"""Makes a deployment of a version, under a name; runs in a thread."""


class Follower(Observer):
    """Of one server; it observes what becomes known of answers.

    Attributes:
        models: By name in addresses.
        reports: Of what rollouts did here.
        away: Why the registry could not be read the last time; empty if it could.
    """

    def __init__(self, registry: Registry, service: Service, load: Load, metrics: Metrics, patience_s: float) -> None:
        """Follows nothing yet: see `begin`."""
        self.registry, self.rollouts = registry, Rollouts(registry)
        self.models: dict[str, Model] = {}
        self.away = ""
        self._service, self._load, self._metrics, self._patience_s = service, load, metrics, patience_s
        self._reading, self._loads = Thread("lowbit-follow"), asyncio.Semaphore(1)
        self._seen = -1
        self._shadowing = Shadowing(lambda: service.inside > 0)
        self._tasks: set[asyncio.Task[None]] = set()
        self.reports = Reports(self.rollouts, self._hurry)
        self.deaths = Deaths(registry.folder / "state" / "rollouts", self.reports.server)
        self.reports.beats.append(self.deaths.beat)
        self._asked = asyncio.Event()

    async def begin(self, followed: Sequence[Followed]) -> None:
        """Loads what answers; the rest follows while it does.

        Raises:
            UsageError: there is no such version.
            ModelError: it was changed, or cannot be run.
        """
        for each in followed:
            self._seen = await self._reading.run(self.registry.changes)
            want = await self._reading.run(partial(wanted, each, self.registry, self.rollouts))
            model = self.models[each.model] = Model(each, want)
            await self._bring(model, want.champion)
            self._settle(model)

    async def run(self) -> None:
        """Follows; never returns, whatever the registry's disk may do."""
        self._beside("answering again has ended", self._shadowing.run())
        self._beside("reports of rollouts have ended", self.reports.run(self.open_rollouts))
        for model in self.models.values():
            self._settle(model)
        while True:
            try:
                await self._look()
                self.away = ""
            except (LowbitError, OSError, sqlite3.Error) as error:
                if not self.away:
                    logs.warn("the registry cannot be read: what is loaded goes on", why=_why(error))
                self.away = _why(error)
            except Exception:
                logs.failed("following the registry failed")
            self._asked.clear()
            try:
                async with asyncio.timeout(POLL_S):
                    await self._asked.wait()
            except TimeoutError:
                pass

    async def close(self) -> None:
        """Says what was counted last, and lets the registry go."""
        for task in (*self._tasks, *(task for model in self.models.values() for task in model.loading.values())):
            task.cancel()
        await self.reports.close()
        await self._reading.close()
        self.deaths.close()
        self.registry.close()

    def open_rollouts(self) -> dict[str, Model]:
        """Rollouts that are under way, by id."""
        return {model.want.rollout: model for model in self.models.values() if model.want.rollout is not None}

    def _hurry(self) -> None:
        """Something has changed for certain: look now."""
        self._asked.set()

    async def _look(self) -> None:
        seen = await self._reading.run(self.registry.changes)
        late = any(self._may_try(model, digest) for model in self.models.values() for digest in model.failed)
        if seen == self._seen and not late:
            return
        for model in self.models.values():
            want = await self._reading.run(partial(wanted, model.followed, self.registry, self.rollouts))
            if want != model.want or late:
                if want.champion.digest != model.want.champion.digest:
                    logs.say("another version is to answer", model=model.name, version=str(want.champion.number))
                model.want = want
                self._settle(model)
        self._seen = seen

    def _settle(self, model: Model) -> None:
        """Serves what is wanted as far as it is loaded, begins to load the rest, and frees what nobody wants. On the event loop."""
        want, listed = model.want, versions_of(model.want)
        model.failed = {digest: each for digest, each in model.failed.items() if digest in listed and not self._may_try(model, digest)}
        champion = model.loaded.get(want.champion.digest)
        now = self._service.models.get(model.name) if champion is None else champion
        if now is not None:
            trial = self._trial(model, champion)
            before, kept = model.loaded, {digest: each for digest, each in model.loaded.items() if digest in listed or each is now}
            model.loaded = kept
            reached = self._service.arrange(now, tuple(kept.values()), trial)
            never = [
                each for digest, each in before.items() if digest not in kept and not any(each is other for other in reached)
            ]  # wanted no more once loaded
            for gone in (*reached, *never):
                self._beside("freeing an old version failed", self._free(gone))
        for digest, version in listed.items():
            if digest not in model.loaded and digest not in model.loading and digest not in model.failed:
                task = logs.logged("loading failed", self._loaded(model, version))
                model.loading[digest] = task

    def _may_try(self, model: Model, digest: str) -> bool:
        """A candidate that failed is not tried again: its rollout ends."""
        tried = model.want.canary is not None and model.want.canary.digest == digest
        return not tried and monotonic() - model.failed[digest][0] > AGAIN_S

    def _trial(self, model: Model, champion: Deployment | None) -> Trial | None:
        """The rollout's step, where one runs and its champion answers here."""
        want = model.want
        counts = self._counted(model)
        if counts is None or want.canary is None:
            return None
        canary = model.loaded.get(want.canary.digest)
        if want.canary.digest in model.failed:
            why = model.failed[want.canary.digest][1]
            counts.stop(OUT_OF_MEMORY if out_of_memory(why) else CRASHED if TOO_MANY in why else f"cannot be loaded: {why}")
        if champion is None or canary is None:
            return None
        if not alike(champion, canary):
            counts.stop("other inputs or outputs")
        counts.baseline.reader, counts.canary.reader = champion.reader, canary.reader
        share, mirrored = (0.0, canary) if want.mode == "shadow" else (want.share, None)
        return Trial(champion, None if mirrored else canary, share, counts, mirrored, want.shadow, self._shadowing)

    def _counted(self, model: Model) -> StepCount | None:
        """Counts of the step that runs, new ones where it begins; None where none runs."""
        old, step = model.counts, None if model.want.rollout is None else (model.want.rollout, model.want.step)
        if old is not None and (old.rollout, old.step) != step:
            old.over_since, model.counts = monotonic(), None
            if model.want.rollout != old.rollout:
                self._let_go(old.rollout)
        if step is not None and model.counts is None:
            model.counts = StepCount(*step)
            self.reports.add(model.counts)
        return model.counts

    async def _loaded(self, model: Model, version: ModelVersion) -> None:
        """Loads a version; one at a time, but for what shall answer."""
        try:
            if version.digest == model.want.champion.digest:
                await self._bring(model, version)
            else:
                async with self._loads:
                    if (rollout := model.want.rollout) is not None and model.want.canary == version:
                        await asyncio.to_thread(self.deaths.begin, rollout)
                        if model.want.rollout != rollout:
                            self._let_go(rollout)  # it ended meanwhile, before there was anything to let go
                    await self._bring(model, version)
        except Exception as error:  # whatever it is, the others go on
            why = _why(error)
            model.failed[version.digest] = (monotonic(), why)
            self._metrics.reloads.labels(model.name, "failed").inc()
            logs.warn("a version cannot be loaded", model=model.name, version=str(version.number), why=why)
            if not isinstance(error, LowbitError | OSError | MemoryError):
                logs.failed("loading failed", model=model.name)
        model.loading.pop(version.digest, None)
        self._settle(model)

    async def _bring(self, model: Model, version: ModelVersion) -> None:
        """Loads and studies in threads; then it is there."""
        made = await asyncio.to_thread(self._load, version, model.name)
        try:
            self._service.answers.adopt(await asyncio.to_thread(self._service.answers.studied, made))
        except BaseException:
            made.close()
            raise
        self._metrics.put(made)
        self._metrics.reloads.labels(model.name, "swapped").inc()
        logs.say("loaded", model=model.name, version=made.version)
        model.loaded[version.digest] = made

    async def _free(self, gone: Deployment) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                await gone.drained()
        except TimeoutError:
            logs.warn("the old version did not get idle", model=gone.name, version=gone.version)
        self._service.free(gone)
        if not any((each.name, each.version) == (gone.name, gone.version) for each in self._service.loaded):
            self._metrics.gone(gone)
        logs.say("freed", model=gone.name, version=gone.version)

    def _let_go(self, rollout: str) -> None:
        self._beside("letting a candidate go failed", asyncio.to_thread(self.deaths.end, rollout))

    def _beside(self, event: str, work: Coroutine[Any, Any, None]) -> None:
        task = logs.logged(event, work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def shares(self, name: str) -> Mapping[str, float]:
        """Of a model's requests that name no version, what goes to which digest now."""
        return self.models[name].shares(self._service.models.get(name))

    async def roll_back(self, name: str, version: str, by: str, why: str) -> dict[str, Any]:
        """Takes a version back that a model's traffic suffers from: a candidate by ending its rollout, the champion by its last move.

        What the registry says counts, not what answers here: others may have taken it back a moment ago, and that must not be done twice.

        Args:
            name: Of the model, in addresses.
            version: That is to answer no more.
            by: Who wants it.
            why: For the audit log.

        Returns:
            What was done, for a page.

        Raises:
            UsageError: the model is not followed, or there is nothing to go back to.
        """
        if (found := self.models.get(name)) is None:
            raise UsageError(f"Model '{name}' does not come from a registry.", "Load the bundle that it had before.")
        if not found.followed.rolls:
            raise UsageError(f"'{name}' is served as {found.followed.ref}, which is not the champion.", "Move that with `lowbit registry`.")
        done = await asyncio.to_thread(taken_back, self.registry, self.rollouts, found.followed.parsed.model, version, by=by, why=why)
        self._hurry()
        return done

    def labelled(self, model: str, version: str, variant: str, right: bool) -> None:  # noqa: ARG002
        """It became known what an answer of a version should have been: it counts in the step that runs."""
        found = self.models.get(model)
        counts = None if found is None else found.counts
        if found is None or counts is None or found.want.canary is None:
            return
        for arm, each in ((counts.baseline, found.want.champion), (counts.canary, found.want.canary)):
            if str(each.number) == version:
                arm.labelled(right=right)
                counts.changed = True


@contextlib.asynccontextmanager
async def following(
    folder: Path, followed: Sequence[Followed], service: Service, load: Callable[[Source], Deployment], metrics: Metrics
) -> AsyncIterator[Follower]:
    """A server's follower: what answers is loaded when this is entered, and the rest follows until it is left.

    Raises:
        UsageError: no registry, or no such version.
        ModelError: a version was changed, or cannot be run.
    """
    registry = await asyncio.to_thread(Registry.open, folder)

    def load_version(version: ModelVersion, name: str) -> Deployment:
        return load(Source(registry.checkout(version), name, str(version.number), version.digest))

    follower = Follower(registry, service, load_version, metrics, service.settings.drain_s)
    service.observers = (*service.observers, follower)  # labels are evidence, too
    try:
        await follower.begin(followed)
        running = logs.logged("following the registry has ended", follower.run())
        try:
            yield follower
        finally:
            running.cancel()
    finally:
        await follower.close()


def _why(error: BaseException) -> str:
    """For a log and an audit row: no paths."""
    return error.message if isinstance(error, LowbitError) else type(error).__name__
