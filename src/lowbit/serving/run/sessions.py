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
from lowbit.errors import LowbitError, ModelError, RunError
from lowbit.pipeline.recipes import BATCH_SCALED
from lowbit.recipe import Recipe
from lowbit.types import Array, Candidate, Feeds, TensorInfo

PROBE_ROWS = 2
WARM_S = 3.0
"""A model is warmed up for so long at most."""
ANY = (8, 2, 32, 224)
"""Numbers that stand for an axis of any size when a model is tried, until one fits its rules."""
TOKENS = (30, 2)
"""Whole numbers are tried below these: more than a small vocabulary has may be refused."""
LOUD = 100.0
"""How much larger a row's neighbours are when it is tried whether it minds them."""
NOISE = 1e-4
"""Of an output's largest magnitude: what neighbours may change. The runs have one shape, so that the order of their sums is the same; where
activations share a scale with a neighbour, far more changes."""
MASK = "mask"


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
            RunError: the runtime refuses the feeds, or they need parts and the outputs have no rows to put together.
        """
        if self._free is not None:
            return self._free.run(feeds)
        rows = len(next(iter(feeds.values())))
        sizes = self._cover(rows)
        if sizes == (rows,):
            return self._fixed[rows].run(feeds)
        parts, at = [], 0
        for size in sizes:
            mine = min(size, rows - at)
            part = self._fixed[size].run({name: _filled(array[at : at + mine], size) for name, array in feeds.items()})
            if not has_rows(part, size):
                raise RunError(f"This model answers {size} rows at once, and {rows} came: its outputs cannot be taken apart.")
            parts.append({name: array[:mine] for name, array in part.items()})
            at += mine
        return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def close(self) -> None:
        """Frees the model."""
        for session in (*self._fixed.values(), *([self._free] if self._free else [])):
            session.close()


def has_rows(outputs: Mapping[str, Array], rows: int) -> bool:
    """Whether every output has so many rows, so that it can be taken apart by them."""
    return all(array.ndim and len(array) == rows for array in outputs.values())


def open_sessions(bundle: Bundle, candidate: str) -> Sessions:
    """Opens a candidate the way it was measured to be fastest, and runs it once.

    Args:
        bundle: Checked.
        candidate: Its id, or the baseline's.

    Raises:
        UsageError: no such candidate, or its artifact or runtime is not here: no other takes its place.
        ModelError: it does not run.
    """
    found = candidate_of(bundle.manifest.entry(candidate))
    most = sizes.largest_useful(found.measurements)
    own = sizes.compiled(found.measurements, most)
    sessions = _fixed(bundle, candidate, found, own) if 1 in own else _free(bundle, candidate, found, most)
    try:
        _try(sessions)
        if _scaled_by_batch(bundle, candidate):
            sessions.batch = 1
    except BaseException:
        sessions.close()
        raise
    return sessions


def _fixed(bundle: Bundle, candidate: str, found: Candidate, own: Mapping[int, tuple[object, float]]) -> Sessions:
    opened: dict[int, Runs] = {}
    try:
        for size in own:
            opened[size] = bundle.session(found.runtime, size, candidate=candidate)
    except BaseException:
        for session in opened.values():
            session.close()
        raise
    return Sessions(opened, {size: time for size, (_, time) in own.items()}, None, max(own), 1)


def _free(bundle: Bundle, candidate: str, found: Candidate, most: int) -> Sessions:
    session = bundle.session(found.runtime, candidate=candidate)
    first = session.inputs[0].shape[0] if session.inputs[0].shape else None
    if isinstance(first, int):  # exported for one batch size alone
        return Sessions({first: session}, {first: 1.0}, None, first, 1)
    return Sessions({}, {}, session, most, found.tuning.streams)


def _scaled_by_batch(bundle: Bundle, candidate: str) -> bool:
    """Whether the recipe says that rows share a scale: no --max-batch may put together what does not come apart."""
    file = bundle.folder / "candidates" / candidate / "recipe.yaml"
    if not file.is_file():
        return False
    try:
        return Recipe.from_yaml(file.read_text(encoding="utf-8")).method in BATCH_SCALED
    except (LowbitError, OSError, ValueError):  # it only explains; what the model does was tried
        return False


def _try(sessions: Sessions) -> None:
    """Runs made-up rows: what cannot run is not served, and rows that mind each other are never put together.

    A row minds its neighbours where its outputs do not come back by rows, or change with what stands beside it (activations that are
    quantized with one scale for the whole batch). What cannot be tried is not proven, and stays alone.
    """
    anything = any(not isinstance(dim, int) for info in sessions.inputs for dim in info.shape[1:])
    found = _runnable(sessions, anything=anything)
    if found is None or not all(_alone(sessions, *found, rows) for rows in {PROBE_ROWS, max(PROBE_ROWS, sessions.batch)}):
        sessions.batch = 1
    if found is not None and not anything:
        _warm(sessions, found[0])


def _runnable(sessions: Sessions, *, anything: bool) -> tuple[Feeds, Feeds] | None:
    """A quiet row that the model takes, and a loud one; None where no guess at axes of any size was right.

    Raises:
        ModelError: its axes are known, and it does not run.
    """
    last: ModelError | None = None
    for size in ANY if anything else ANY[:1]:
        for high in TOKENS:
            quiet, loud = ({info.name: make(info, size, high) for info in sessions.inputs} for make in (_quiet, _loud))
            try:
                sessions.run(quiet)
            except ModelError as error:
                last = error
            else:
                return quiet, loud
    if anything or last is None:
        return None
    raise last


def _quiet(info: TensorInfo, size: int, high: int, seed: int = 0) -> Array:
    """A row [1, ...] of random numbers around 0, or of whole numbers below `high`; nothing of it is masked."""
    shape = [1, *(dim if isinstance(dim, int) else size for dim in info.shape[1:])]
    dtype, rng = np.dtype(info.dtype), np.random.default_rng(seed)
    if dtype.kind == "f":
        return rng.standard_normal(shape, np.float32).astype(dtype)
    if dtype.kind in "iub":
        return np.ones(shape, dtype) if MASK in info.name else rng.integers(0, 2 if dtype.kind == "b" else high, shape).astype(dtype)
    return np.zeros(shape, dtype)


def _loud(info: TensorInfo, size: int, high: int) -> Array:
    """Another row: far larger where it holds numbers of any size or pixels, else other words."""
    row = _quiet(info, size, high, seed=1)
    if row.dtype.kind == "f":
        return (row.astype(np.float32) * LOUD).astype(row.dtype)
    pixels = row.dtype.kind in "iu" and row.dtype.itemsize == 1 and MASK not in info.name
    return np.full_like(row, np.iinfo(row.dtype).max) if pixels else row


def _alone(sessions: Sessions, quiet: Feeds, loud: Feeds, rows: int) -> bool:
    """Whether both rows have the same answer beside others like themselves as beside each other: of two ranges one may hold the other."""
    try:
        one, two = (sessions.run({name: np.repeat(array, rows, axis=0) for name, array in row.items()}) for row in (quiet, loud))
        both = sessions.run({name: np.concatenate([array, np.repeat(loud[name], rows - 1, axis=0)]) for name, array in quiet.items()})
    except ModelError:
        return False
    if not all(has_rows(outputs, rows) for outputs in (one, two, both)):
        return False
    return all(_same(one[name][:1], array[:1]) and _same(two[name][-1:], array[-1:]) for name, array in both.items())


def _same(one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    room = NOISE * float(np.abs(np.nan_to_num(one)).max(initial=0.0))
    return bool(np.allclose(one, other, rtol=0, atol=room, equal_nan=True))


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
