"""The sessions of one variant: one for any number of rows, or one for each batch size that is faster with a fixed shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

import numpy as np

from lowbit.bundle import sizes
from lowbit.bundle.bundle import Bundle
from lowbit.bundle.manifest import candidate_of
from lowbit.errors import ModelError
from lowbit.types import Array, Candidate, Feeds, TensorInfo

PROBE_ROWS = 2
WARM_S = 3.0
"""A model is warmed up for so long at most."""
ANY = 2
"""The number that stands for an axis of any size when a model is tried."""


class Runs(Protocol):
    """What is needed of a session."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def run(self, x: Feeds) -> dict[str, Array]: ...

    def close(self) -> None: ...


class Sessions:
    """A variant's sessions, called with any number of rows.

    Attributes:
        inputs: What must be fed; the first axis is any number.
        outputs: What comes back.
        batch: Rows that are best run together; 1 where rows cannot share a run.
        workers: Runs that may go on at once.
    """

    def __init__(self, fixed: Mapping[int, Runs], costs: Mapping[int, float], free: Runs | None, batch: int, workers: int) -> None:
        """Use `open_sessions`."""
        first = free or next(iter(fixed.values()))
        self.workers = workers
        self._fixed, self._free = dict(fixed), free
        self._cover: Callable[[int], tuple[int, ...]] = lru_cache(1024)(lambda rows: sizes.cover(rows, costs))
        self.inputs = tuple(_free_axis(info) for info in first.inputs)
        self.outputs = tuple(_free_axis(info) for info in first.outputs)
        self.batch = batch

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Runs [N, ...], in parts where that is quicker.

        Raises:
            RunError: the runtime refuses the feeds.
        """
        if self._free is not None:
            return self._free.run(feeds)
        rows = len(next(iter(feeds.values())))
        parts, at = [], 0
        for size in self._cover(rows):
            mine = min(size, rows - at)
            part = self._fixed[size].run({name: _filled(array[at : at + mine], size) for name, array in feeds.items()})
            parts.append({name: array[:mine] for name, array in part.items()})
            at += mine
        return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def close(self) -> None:
        """Frees the model."""
        for session in (*self._fixed.values(), *([self._free] if self._free else [])):
            session.close()


def open_sessions(bundle: Bundle, candidate: str) -> Sessions:
    """Opens a candidate the way it was measured to be fastest, and runs it once.

    Args:
        bundle: Checked.
        candidate: Its id, or the baseline's.

    Raises:
        UsageError: no such candidate, or its artifact or runtime is not here.
        ModelError: it does not run.
    """
    found = candidate_of(bundle.manifest.entry(candidate))
    most = sizes.largest_useful(found.measurements)
    own = sizes.compiled(found.measurements, most)
    sessions = _fixed(bundle, candidate, own) if 1 in own else _free(bundle, candidate, found, most)
    try:
        _try(sessions)
    except BaseException:
        sessions.close()
        raise
    return sessions


def _fixed(bundle: Bundle, candidate: str, own: Mapping[int, tuple[object, float]]) -> Sessions:
    opened: dict[int, Runs] = {}
    try:
        for size in own:
            opened[size] = bundle.session(batch=size, candidate=candidate)
    except BaseException:
        for session in opened.values():
            session.close()
        raise
    return Sessions(opened, {size: time for size, (_, time) in own.items()}, None, max(own), 1)


def _free(bundle: Bundle, candidate: str, found: Candidate, most: int) -> Sessions:
    session = bundle.session(candidate=candidate)
    first = session.inputs[0].shape[0] if session.inputs[0].shape else None
    if isinstance(first, int):  # exported for one batch size alone
        return Sessions({first: session}, {first: 1.0}, None, first, 1)
    return Sessions({}, {}, session, most, found.tuning.streams)


def _try(sessions: Sessions) -> None:
    """Runs zeros: what cannot run is not served, and rows that do not come back apart are never put together."""
    shapes = {info.name: [PROBE_ROWS, *(dim if isinstance(dim, int) else ANY for dim in info.shape[1:])] for info in sessions.inputs}
    feeds = {info.name: np.zeros(shapes[info.name], info.dtype) for info in sessions.inputs}
    try:
        found = sessions.run(feeds)
    except ModelError:
        if not any(not isinstance(dim, int) for info in sessions.inputs for dim in info.shape[1:]):
            raise
        return  # axes of any size may have rules of their own that two does not fit
    if any(array.ndim == 0 or len(array) != PROBE_ROWS for array in found.values()):
        sessions.batch = 1
    if all(isinstance(dim, int) for info in sessions.inputs for dim in info.shape[1:]):
        _warm(sessions, feeds)


def _warm(sessions: Sessions, feeds: Feeds) -> None:
    """Runs every number of rows that may come, because some runtimes prepare each when they first see it, which a client would wait for."""
    end = time.monotonic() + WARM_S
    for rows in range(1, sessions.batch + 1):
        if time.monotonic() > end:
            return
        sessions.run({name: np.repeat(array[:1], rows, axis=0) for name, array in feeds.items()})


def _free_axis(info: TensorInfo) -> TensorInfo:
    return replace(info, shape=(None, *info.shape[1:])) if info.shape else info


def _filled(array: Array, size: int) -> Array:
    """Filled up to a size with its last row."""
    missing = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array
