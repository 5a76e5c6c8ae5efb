"""Times variants against each other, each alone in its own process, in rounds: A B C, A B C, ...

Sessions that share a process disturb each other: thread pools go on spinning after a run, caches and
allocators are shared. Variants that are timed minutes apart see different machines: clocks and other
load drift. So every variant gets a worker (lowbit.measure.worker) that sleeps until it is its turn, and
comparisons are made within a round (lowbit.measure.ratios).

All workers are loaded at once, so their memory adds up: race few large models at a time.
"""

from __future__ import annotations

import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from lowbit.errors import UsageError
from lowbit.measure.energy import energy
from lowbit.measure.lane import Lane
from lowbit.measure.load import others_share
from lowbit.measure.ratios import medians, summary
from lowbit.runtimes.base import DEFAULT
from lowbit.types import Energy, Feeds, Measurement, Tuning

FEWEST_CALLS = 3
MOST_CALLS = 5000
SLOW_CALL_S = 0.1


class Effort(TypedDict):
    rounds: int
    seconds_per_round: float


QUICK: Effort = {"rounds": 5, "seconds_per_round": 0.1}
"""For screening: `race(..., **QUICK)`. Tells twice as fast from just as fast."""

FINAL: Effort = {"rounds": 12, "seconds_per_round": 0.25}
"""For what is reported."""

Progress = Callable[[int, int], None]
"""Called after each round with rounds done and rounds in all."""


@dataclass(frozen=True)
class Variant:
    """One model file on one runtime (its name, or "module:class") with one tuning; `id` is unique within a race."""

    id: str
    runtime: str
    model: Path
    tuning: Tuning = DEFAULT


@dataclass(frozen=True)
class RaceResult:
    """What was seen of one variant; raw, so that any statement can be made again from it.

    Attributes:
        rounds: Seconds of every timed call, per round. Rounds of one race belong together by position.
        walls: Wall seconds of each round.
        batch: Samples per call.
        streams: Calls in flight at once.
        tuning: What was asked for.
        precision: Arithmetic that the runtime really used for floating point.
        load_seconds: To open the artifact.
        memory_before_bytes: Of the process just before the artifact was opened, its runtime imported.
        peak_memory_bytes: Most that the process has held.
        cpu_seconds_per_inference: CPU seconds of all threads, per sample.
        other_load: Share of the cores' time that other processes took during its turns, 0-1.
        joules_per_inference: Counted by a meter, per sample; None without one.
        energy_method: The meter's.
        error: Why it could not be loaded or run to the end; None if it could.
    """

    rounds: tuple[tuple[float, ...], ...] = ()
    walls: tuple[float, ...] = ()
    batch: int = 1
    streams: int = 1
    tuning: Tuning = DEFAULT
    precision: str | None = None
    load_seconds: float | None = None
    memory_before_bytes: int | None = None
    peak_memory_bytes: int | None = None
    cpu_seconds_per_inference: float | None = None
    other_load: float | None = None
    joules_per_inference: float | None = None
    energy_method: str | None = None
    error: str | None = None

    @property
    def usable(self) -> bool:
        return self.error is None and bool(self.rounds)


def race(
    variants: Sequence[Variant],
    feeds: Feeds | Path,
    *,
    batch: int,
    rounds: int = FINAL["rounds"],
    seconds_per_round: float = FINAL["seconds_per_round"],
    streams: int = 1,
    load_timeout_s: float = 300.0,
    turn_timeout_s: float = 120.0,
    progress: Progress | None = None,
    deadline: float | None = None,
) -> dict[str, RaceResult]:
    """Runs the race.

    A variant that cannot be loaded, crashes (also by a signal, or for want of memory) or hangs gets an
    `error`; the others go on.

    Args:
        variants: Who runs, in the order of turns.
        feeds: One batch of real samples, or an .npz file with it; arrays are named as the model's inputs.
        batch: Samples in that batch.
        rounds: Turns of each variant.
        seconds_per_round: How long a turn should take; at least three calls are timed however slow they are.
        streams: Calls in flight at once; with several a turn counts what is finished in `seconds_per_round`.
        load_timeout_s: For opening and warming up.
        turn_timeout_s: For one turn, on top of what it is expected to take.
        progress: Called after each round.
        deadline: `time.monotonic()` after which no further round begins; the rounds done by then stand.

    Returns:
        Variant id -> what was seen, in the order of `variants`.

    Raises:
        UsageError: Two variants have one id, or the feeds hold another number of samples than `batch`.
    """
    if len({variant.id for variant in variants}) != len(variants):
        raise UsageError("Two variants of a race have the same id.", "Give each its own.")
    with ExitStack() as stack:
        path = feeds if isinstance(feeds, Path) else save_feeds(feeds, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        _check_batch(path, batch)
        specs = {variant.id: _spec(variant, path, batch, streams) for variant in variants}
        lanes = {id_: stack.enter_context(Lane()) for id_ in specs}
        for id_, lane in lanes.items():
            lane.load(specs[id_], load_timeout_s)
        turns = _rounds(lanes, rounds, seconds_per_round, streams, turn_timeout_s, progress, deadline)
    return {variant.id: _result(variant, lanes[variant.id], turns[variant.id], batch, streams) for variant in variants}


def measurement(result: RaceResult, baseline: RaceResult | None = None, best_fp32: RaceResult | None = None) -> Measurement:
    """Sums up one result of a race against two others of the same race.

    Args:
        result: A usable one.
        baseline: The source model on the baseline runtime; None, or not usable, leaves the speedup out.
        best_fp32: The fastest FP32 (see `fastest`).
    """
    assert result.usable, "a measurement needs rounds without an error"

    def timings(other: RaceResult | None) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...]] | None:
        return (other.rounds, other.walls) if other is not None and other.usable else None

    return summary(
        result.rounds,
        result.walls,
        batch=result.batch,
        streams=result.streams,
        tuning=result.tuning,
        baseline=timings(baseline),
        best_fp32=timings(best_fp32),
        other_load=max((each.other_load or 0.0 for each in (result, baseline, best_fp32) if each is not None), default=0.0),
    )


def energy_of(result: RaceResult, cores: int) -> Energy:
    """Energy per inference of a usable result: counted where there was a meter, else modelled for `cores`."""
    assert result.usable, "energy needs rounds without an error"
    assert result.cpu_seconds_per_inference is not None
    return energy(
        wall_s=sum(result.walls) / _samples(result),
        cpu_s=result.cpu_seconds_per_inference,
        cores=cores,
        joules=result.joules_per_inference,
        method=result.energy_method,
    )


def fastest(results: Mapping[str, RaceResult]) -> str | None:
    """Id of the usable result with the least median latency, with several streams the most samples a second."""
    usable = {id_: result for id_, result in results.items() if result.usable}
    if not usable:
        return None
    return min(usable, key=lambda id_: _cost(usable[id_]))


def save_feeds(feeds: Feeds, folder: Path) -> Path:
    """Writes feeds as .npz. Not `numpy.savez`: it cannot store inputs called `file` or `allow_pickle`."""
    path = folder / "feeds.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in feeds.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    return path


def _cost(result: RaceResult) -> float:
    if result.streams == 1:
        return float(np.median(medians(result.rounds)))
    return sum(result.walls) / _samples(result)


def _samples(result: RaceResult) -> int:
    return sum(len(calls) for calls in result.rounds) * result.batch


def _check_batch(path: Path, batch: int) -> None:
    with np.load(path) as arrays:
        sizes = {name: arrays[name].shape[0] for name in arrays.files if arrays[name].ndim}
    if batch not in sizes.values():
        found = ", ".join(f"'{name}' has {size}" for name, size in sizes.items()) or "none"
        raise UsageError(f"The feeds do not hold a batch of {batch} samples: {found}.", "Cut the feeds to the batch size.")


def _spec(variant: Variant, feeds: Path, batch: int, streams: int) -> dict[str, Any]:
    return {
        "runtime": variant.runtime,
        "model": str(variant.model.absolute()),
        "tuning": vars(variant.tuning),
        "feeds": str(feeds.absolute()),
        "batch": batch,
        "streams": streams,
    }


def _rounds(
    lanes: Mapping[str, Lane],
    rounds: int,
    seconds: float,
    streams: int,
    timeout_s: float,
    progress: Progress | None,
    deadline: float | None,
) -> dict[str, list[dict[str, Any]]]:
    """The answers of each lane, turn by turn. A lane that fails is left out of later rounds."""
    turns: dict[str, list[dict[str, Any]]] = {id_: [] for id_ in lanes}
    for done in range(rounds):
        if deadline is not None and time.monotonic() >= deadline:
            break
        for id_, lane in lanes.items():
            if lane.error is None and (answer := lane.ask(_turn(lane, seconds, streams), timeout_s + 10 * seconds)) is not None:
                turns[id_].append(answer)
        if progress is not None:
            progress(done + 1, rounds)
    return turns


def _turn(lane: Lane, seconds: float, streams: int) -> dict[str, Any]:
    """The same number of calls in every round, so that rounds weigh alike."""
    per_call = lane.ready["per_call"]
    iterations = min(MOST_CALLS, max(FEWEST_CALLS, round(seconds / per_call)))
    # With several streams calls wait for each other, so the turn must be long enough for a few of each.
    seconds = max(seconds, FEWEST_CALLS * per_call * streams)
    return {"iterations": iterations, "seconds": seconds, "warm_up": 1 if per_call > SLOW_CALL_S else 2}


def _result(variant: Variant, lane: Lane, turns: Sequence[dict[str, Any]], batch: int, streams: int) -> RaceResult:
    start = RaceResult(batch=batch, streams=streams, tuning=variant.tuning, error=lane.error)
    if not lane.ready:
        return start
    ready = lane.ready
    known = replace(
        start,
        precision=ready["precision"],
        load_seconds=ready["load_seconds"],
        memory_before_bytes=ready["before"],
        peak_memory_bytes=max([ready["peak"], *(turn["peak"] for turn in turns)]),
        energy_method=ready["energy_method"],
    )
    samples = sum(len(turn["seconds"]) for turn in turns) * batch
    if not samples:
        return known
    walls, cpu = tuple(turn["wall"] for turn in turns), sum(turn["cpu"] for turn in turns)
    joules = [turn["joules"] for turn in turns if turn["joules"] is not None]
    return replace(
        known,
        rounds=tuple(tuple(turn["seconds"]) for turn in turns),
        walls=walls,
        cpu_seconds_per_inference=cpu / samples,
        other_load=others_share(sum(turn["busy"] for turn in turns), cpu, sum(walls), ready["cores"]),
        joules_per_inference=sum(joules) / samples if joules else None,
    )
