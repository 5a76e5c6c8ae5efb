"""Answers requests, whichever way they came: checks, chooses the variant, runs, says who answered.

REST, gRPC, `/v1/predict` and Ray all end here, so that they give the same answers and the same refusals.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from time import perf_counter
from typing import Any

import numpy as np

from lowbit.serving.answer.answered import Caller, said
from lowbit.serving.answer.answering import Answers
from lowbit.serving.answer.planning import Study
from lowbit.serving.protocol.refusals import Gone, Malformed, NotServed, Refusal, Unavailable
from lowbit.serving.protocol.requests import InferRequest, InferResponse, Wanted
from lowbit.serving.protocol.wire import datatype_of
from lowbit.serving.run.deployment import Deployment, Inside
from lowbit.serving.settings import Settings
from lowbit.serving.watch import logs
from lowbit.serving.watch.observing import Observer
from lowbit.types import Array, Feeds, TensorInfo


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
        self._before: list[Deployment] = []

    @property
    def models(self) -> Mapping[str, Deployment]:
        """By name."""
        return self._models

    @property
    def inside(self) -> int:
        """Requests that were admitted and have no answer yet, whichever version they are in."""
        return self._inside.count

    @property
    def ready(self) -> bool:
        """Whether requests should come here."""
        return bool(self._models) and not (self.leaving or self.draining)

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
        return before

    def free(self, deployment: Deployment) -> None:
        """Frees one that `put` gave back; what it has not answered is refused."""
        self._before = [each for each in self._before if each is not deployment]
        deployment.close()

    async def idle(self) -> None:
        """Waits until no request is inside and no variant runs anything, of whatever version."""
        await self._inside.empty()
        for deployment in (*self._models.values(), *self._before):
            await deployment.drained()

    def close(self) -> None:
        """Refuses what has no answer yet, and frees all there is. Closing twice is fine."""
        for deployment in (*self._models.values(), *self._before):
            deployment.close()

    def model(self, name: str, version: str | None = None) -> Deployment:
        """By name and version.

        Raises:
            NotServed: there is none.
        """
        found = self._models.get(name)
        if found is None:
            raise NotServed(f"There is no model '{name}'. Served: {', '.join(self._models) or 'none'}.")
        if version is not None and version != found.version:
            raise NotServed(f"Model '{name}' has no version '{version}'. Served: {found.version}.")
        return found

    @contextlib.contextmanager
    def admitted(self, name: str, version: str | None = None) -> Iterator[Deployment]:
        """A place for a request that takes work before it can be asked: the server waits for it, and keeps the deployment, until it leaves.

        Raises:
            Refusal: there is no such model, no room, or the server stops.
        """
        self._admit()
        deployment = self.model(name, version)
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
            deployment.inside.enter()
            try:
                check(deployment.inputs, request.inputs)
                wanted = _wanted(deployment.outputs, request.outputs)
                deadline = asyncio.get_running_loop().time() + min(caller.deadline_s or np.inf, self.settings.deadline_s)
                found = await self.answers.answer(deployment, request, caller, deadline)
                outputs = {each.name: _shown(found.outputs[each.name], each) for each in wanted}
            finally:
                if place is None:
                    self._inside.leave()
                deployment.inside.leave()
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


def check(inputs: tuple[TensorInfo, ...], feeds: Feeds) -> None:
    """Compares feeds with what a model takes.

    Raises:
        Malformed: naming the first input that is missing, unknown, or of the wrong type or shape, or inputs with different numbers of rows.
    """
    declared = {info.name: info for info in inputs}
    for name in feeds:
        if name not in declared:
            raise Malformed(f"The model has no input '{name}'. Its inputs: {', '.join(declared)}.")
    for info in inputs:
        if info.name not in feeds:
            raise Malformed(f"Input '{info.name}' is missing. The model's inputs: {', '.join(declared)}.")
        _check_array(info, feeds[info.name])
    rows = {info.name: len(feeds[info.name]) for info in inputs if info.shape}
    if len(set(rows.values())) > 1:
        raise Malformed(f"The inputs have different numbers of rows: {', '.join(f'{name} {n}' for name, n in rows.items())}.")
    if 0 in rows.values():
        raise Malformed("The inputs have no rows: the first axis is 0.")


def _check_array(info: TensorInfo, array: Array) -> None:
    if not _same_kind(array.dtype, info.dtype):
        raise Malformed(f"Input '{info.name}' is {datatype_of(array.dtype.name)}; the model takes {datatype_of(info.dtype)}.")
    fits = len(array.shape) == len(info.shape) and all(
        not isinstance(want, int) or want == got for want, got in zip(info.shape, array.shape, strict=True)
    )
    if not fits:
        shape = ", ".join(str(dim) if isinstance(dim, int) else "any" for dim in info.shape)
        raise Malformed(f"Input '{info.name}' has shape {list(array.shape)}; the model takes [{shape}].")


@lru_cache(256)  # numpy works a dtype's name out each time
def _same_kind(dtype: np.dtype[Any], name: str) -> bool:
    return dtype.name == name or datatype_of(dtype.name) == datatype_of(name)


def _wanted(outputs: tuple[TensorInfo, ...], asked: tuple[Wanted, ...]) -> tuple[Wanted, ...]:
    names = [info.name for info in outputs]
    for each in asked:
        if each.name not in names:
            raise Malformed(f"The model has no output '{each.name}'. Its outputs: {', '.join(names)}.")
    return asked or tuple(Wanted(name) for name in names)


def _shown(array: Array, wanted: Wanted) -> Array:
    """The tensor, or its top classes as "value:index" strings (the protocol's classification extension)."""
    if not wanted.classification:
        return array
    if array.dtype.kind in "OSU":
        raise Malformed(f"Output '{wanted.name}' is strings: it has no top classes.")
    flat = np.asarray(array.reshape(len(array), -1), np.float64)  # also what has no sign, or a lowest value without a counterpart
    top = np.argsort(-flat, axis=1, kind="stable")[:, : wanted.classification]
    named = [[f"{flat[row, column]:.6f}:{column}".encode() for column in columns] for row, columns in enumerate(top)]
    return np.array(named, object)
