"""Answers requests, whichever way they came: checks, chooses the variant, runs, says who answered.

REST, gRPC, `/v1/predict` and Ray all end here, so that they give the same answers and the same refusals.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from lowbit.serving.answer import fitting
from lowbit.serving.answer.answered import Answered, Caller, said
from lowbit.serving.answer.answering import Answers, session_of
from lowbit.serving.answer.planning import Study
from lowbit.serving.protocol.refusals import Gone, Malformed, NotServed, Refusal, Unavailable
from lowbit.serving.protocol.requests import InferRequest, InferResponse
from lowbit.serving.run.deployment import Deployment, Inside
from lowbit.serving.settings import Settings
from lowbit.serving.watch import logs
from lowbit.serving.watch.observing import Observer

if TYPE_CHECKING:
    from lowbit.serving.fleet.trial import Trial


class Service:
    """The models that are served, and the way from a request to an answer.

    Attributes:
        settings: Limits and deadlines.
        observers: Told of every request.
        answers: Routes, caches, runs.
        leaving: True once the server is to stop: it is not ready any more, and connections are closed behind their answers.
        draining: True once nothing more is admitted.
        held: Bytes of bodies that are being read or answered.
    """

    def __init__(self, settings: Settings, observers: Sequence[Observer] = (), answers: Answers | None = None) -> None:
        """Serves nothing yet: see `put`."""
        self.settings = settings
        self.observers = tuple(observers)
        self.answers = answers or Answers()
        self.leaving = False
        self.draining = False
        self.held = 0
        self._inside = Inside()
        self._models: dict[str, Deployment] = {}
        self._beside: dict[str, dict[str, Deployment]] = {}
        self._trials: dict[str, Trial] = {}
        self._before: list[Deployment] = []

    @property
    def models(self) -> Mapping[str, Deployment]:
        """By name: the versions that answer whoever names none."""
        return self._models

    @property
    def loaded(self) -> tuple[Deployment, ...]:
        """All that a request can reach, the ones of `models` first."""
        return (*self._models.values(), *(each for beside in self._beside.values() for each in beside.values()))

    def answering(self, name: str) -> tuple[str, ...]:
        """Versions that may answer who names none: the one that is served, and the one that a rollout tries; none where nothing is."""
        trial = self._trials.get(name)
        found = (self._models.get(name), None if trial is None else trial.canary)
        return tuple(each.version for each in found if each is not None)

    @property
    def inside(self) -> int:
        """Requests that were admitted and have no answer yet, whichever version they are in."""
        return self._inside.count

    @property
    def ready(self) -> bool:
        """Whether requests should come here: it stays, and one of its models can answer at least."""
        return any(map(self.ready_for, self._models.values()))

    def ready_for(self, deployment: Deployment) -> bool:
        """Whether requests to one model should come here."""
        return deployment.alive and not (self.leaving or self.draining)

    def put(self, deployment: Deployment, study: Study | None = None) -> Deployment | None:
        """Serves a deployment from now on.

        Args:
            deployment: To serve.
            study: What `answers.studied` found out about it, in a thread perhaps; None finds out here.

        Returns:
            The one it takes the place of, which still has to end what it accepted: then it is to be given to `free`.

        Raises:
            UsageError: the routing policy does not fit it; the one before stays.
        """
        self.answers.adopt(study or self.answers.studied(deployment))
        before = self._models.get(deployment.name)
        self._models[deployment.name] = deployment
        if before is not None:
            self._before.append(before)
            self.answers.leave(before)
        return before

    def arrange(self, deployment: Deployment, beside: Sequence[Deployment] = (), trial: Trial | None = None) -> tuple[Deployment, ...]:
        """Serves one version of a model to whoever names none, and others beside it, all at once; `answers` has adopted them all.

        Args:
            deployment: What answers.
            beside: Other versions, for those who name them, and for the trial.
            trial: A rollout that runs; None for none.

        Returns:
            Those that no request can reach any more; they are to be given to `free` once they are idle.
        """
        name, kept = deployment.name, {id(each) for each in (deployment, *beside)}
        gone = tuple(each for each in self.loaded if each.name == name and id(each) not in kept)
        self._models[name] = deployment
        self._beside[name] = {each.version: each for each in beside if each is not deployment}
        if trial is None:
            self._trials.pop(name, None)
        else:
            self._trials[name] = trial
        self._before.extend(gone)
        for each in gone:
            self.answers.leave(each)
        return gone

    def free(self, deployment: Deployment) -> None:
        """Frees one that `put` or `arrange` gave back; what it has not answered is refused."""
        self._before = [each for each in self._before if each is not deployment]
        self.answers.forget(deployment)
        deployment.close()

    async def idle(self) -> None:
        """Waits until no request is inside and no variant runs anything, of whatever version."""
        await self._inside.empty()
        for deployment in (*self.loaded, *self._before):
            await deployment.drained()

    def close(self) -> None:
        """Refuses what has no answer yet, and frees all there is. Closing twice is fine."""
        for deployment in (*self.loaded, *self._before):
            deployment.close()

    def model(self, name: str, version: str | None = None) -> Deployment:
        """By name and version.

        Raises:
            NotServed: there is none.
        """
        found = self._models.get(name)
        if found is None:
            raise NotServed(f"There is no model '{name}'. Served: {', '.join(self._models) or 'none'}.")
        if version is None or version == found.version:
            return found
        beside = self._beside.get(name, {})
        if version not in beside:
            raise NotServed(f"Model '{name}' has no version '{version}'. Served: {', '.join((found.version, *beside))}.")
        return beside[version]

    def trial(self, name: str) -> Trial | None:
        """The rollout's step that runs of a model; None where none does."""
        return self._trials.get(name)

    def versions(self, name: str) -> tuple[str, ...]:
        """Of a model, all that can be named; the one that answers first."""
        return (self._models[name].version, *self._beside.get(name, {}))

    @contextlib.contextmanager
    def admitted(self, name: str, version: str | None, caller: Caller, place: Deployment | None = None) -> Iterator[Deployment]:
        """A place for a request that takes work before it can be asked: the server waits for it, and keeps the deployment, until it leaves.

        Args:
            name: Of the model.
            version: None for the one that is served; where a rollout runs, the caller's session decides.
            caller: Who asks.
            place: Where a refusal said that the request may be answered; it is not admitted again.

        Raises:
            Refusal: there is no such model, no room, or the server stops.
        """
        if place is None:
            self._admit()
        deployment = place or self._side(self.model(name, version), version, caller)
        self._inside.enter()
        deployment.inside.enter()
        try:
            yield deployment
        finally:
            self._inside.leave()
            deployment.inside.leave()

    @contextlib.contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Room for a body of so many bytes: many large ones together must not fill the memory. One alone always has it.

        Raises:
            Unavailable: there is none left.
        """
        most = self.settings.max_held_bytes
        if self.held and self.held + size > most:
            raise Unavailable(f"Bodies of {self.held:,} bytes are being answered; {most:,} are allowed at once.", retry_after_s=1)
        self.held += size
        try:
            yield
        finally:
            self.held -= size

    async def infer(
        self, name: str, version: str | None, request: InferRequest, caller: Caller, place: Deployment | None = None
    ) -> InferResponse:
        """Answers one request.

        Args:
            name: Of the model.
            version: None for the one that is served.
            request: What is asked.
            caller: Who asks.
            place: What `admitted` gave, for a request that has its place already.

        Raises:
            Refusal: of the kind that fits.
        """
        start, deployment = perf_counter(), place  # an event loop's own clock may be as coarse as a millisecond
        try:
            if deployment is None:
                self._admit()
                deployment = self.model(name, version)
            if place is None:
                self._inside.enter()
            first = deployment
            first.inside.enter()
            try:
                takes_arrays(deployment)
                fitting.check(deployment.inputs, request.inputs)
                wanted = fitting.wanted(deployment.outputs, request.outputs)
                deadline = asyncio.get_running_loop().time() + min(caller.deadline_s or np.inf, self.settings.deadline_s)
                trial = self._trials.get(name) if self._trials and version is None else None
                if trial is None:
                    found = await self.answers.answer(deployment, request, caller, deadline)
                else:
                    deployment, found = await self._tried(trial, place, request, caller, deadline)
                outputs = {each.name: fitting.shown(found.outputs[each.name], each) for each in wanted}
            finally:
                if place is None:
                    self._inside.leave()
                first.inside.leave()
        except Refusal as refusal:
            self.refused(refusal, caller, deployment, perf_counter() - start)
            raise
        except asyncio.CancelledError:
            self.refused(Gone("The client went away."), caller, deployment, perf_counter() - start)
            raise
        seconds = perf_counter() - start
        for observer in self.observers:
            try:
                observer.answered(deployment, request, caller, found, seconds)
            except Exception:  # who watches must not cost anybody an answer
                logs.failed("an observer failed", observer=type(observer).__name__)
        return InferResponse(deployment.name, deployment.version, outputs, request.id, said(found))

    def _side(self, deployment: Deployment, version: str | None, caller: Caller) -> Deployment:
        """Whom a request belongs to that names no version, where a rollout runs."""
        trial = self._trials.get(deployment.name) if self._trials and version is None else None
        return deployment if trial is None else trial.side(session_of(caller, self.answers.policy.now.tenant_header))

    async def _tried(
        self, trial: Trial, place: Deployment | None, request: InferRequest, caller: Caller, deadline: float
    ) -> tuple[Deployment, Answered]:
        """Answers by the side that the caller's session belongs to, or has its place in."""

        async def work(each: Deployment) -> Answered:
            each.inside.enter()
            try:
                return await self.answers.answer(each, request, caller, deadline)
            finally:
                each.inside.leave()

        def covered(canary: Deployment, refusal: Refusal, seconds: float) -> None:
            self.refused(refusal, caller, canary, seconds)

        side = place or trial.side(session_of(caller, self.answers.policy.now.tenant_header))
        return await trial.answer(side, request, work, deadline, covered, prepared=place is not None)

    def _admit(self) -> None:
        if self.draining:
            raise Unavailable("The server is stopping.", retry_after_s=1)
        if self.inside >= self.settings.max_requests:
            raise Unavailable(f"{self.inside} requests are being answered, which is the limit.", retry_after_s=1)

    def refused(self, refusal: Refusal, caller: Caller, deployment: Deployment | None = None, seconds: float = 0.0) -> None:
        """Tells the observers of a refusal, once: a transport calls it for what never came to `infer`, and may call it for all."""
        if refusal.told:
            return
        refusal.told = True
        for observer in self.observers:
            try:
                observer.refused(deployment, caller, refusal, seconds)
            except Exception:
                logs.failed("an observer failed", observer=type(observer).__name__)


def takes_arrays(deployment: Deployment) -> None:
    """For who is about to feed a model.

    Raises:
        Malformed: it is a language model, which is asked elsewhere.
    """
    if deployment.language is not None:
        raise Malformed(f"Model '{deployment.name}' is a language model: ask it over /v1/chat/completions or /v1/completions.")
