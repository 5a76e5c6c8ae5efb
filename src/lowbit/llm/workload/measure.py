"""Measures candidates on a workload: each alone in its process, the others blocked, rounds in turn, rest between turns.

Sessions that share a process disturb each other, and variants timed minutes apart see different machines (lowbit.measure.race
says it of other models); so does this. Candidates whose weights do not fit in memory together run in several heats: within a
heat rounds belong together, across heats they do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lowbit.errors import UsageError
from lowbit.llm.candidate import EngineCandidate
from lowbit.llm.workload.speed import Speed, noisy, summed_up
from lowbit.llm.workload.stages import STEPS, is_sampled, round_of
from lowbit.llm.workload.workload import Workload
from lowbit.measure.lane import Lane
from lowbit.measure.load import others_share

WORKER = "lowbit.llm.workload.worker"
ROUNDS = 7
SCREENING_ROUNDS = 3
ROOM = 0.7
"""Share of the free memory that a heat may take."""
HELD = 1.5
"""What a process holds, as a multiple of its artifact: repacked weights, cache, library."""

Progress = Callable[[int, int], None]
"""Called after each round with rounds done and in all."""


def measure(
    candidates: Sequence[EngineCandidate],
    workload: Workload,
    *,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
    price_per_hour: float | None = None,
    steps: int = STEPS,
    load_timeout_s: float = 600.0,
    turn_timeout_s: float = 600.0,
    deadline: float | None = None,
) -> dict[str, Speed]:
    """Runs the race.

    A candidate that cannot be loaded, crashes (also by a signal, or for want of memory) or hangs gets an `error`; the others go on.

    Args:
        candidates: Who runs, in the order of turns.
        workload: What is asked.
        rounds: Turns of each.
        progress: Called after each round.
        price_per_hour: Dollars for this machine (lowbit.cost.prices); None: no cost in dollars.
        steps: That are written at each end of a long answer.
        load_timeout_s: For opening and warming up.
        turn_timeout_s: For one turn.
        deadline: `time.monotonic()` after which no further round begins; the rounds done by then stand.

    Returns:
        Id -> speed, in the order of `candidates`.

    Raises:
        UsageError: two candidates have one id.
    """
    if len({each.id for each in candidates}) != len(candidates):
        raise UsageError("Two candidates of a measurement have the same id.", "Give each its own.")
    groups = heats({each.id: artifact_bytes(each.artifact) for each in candidates}, _free_bytes() * ROOM / HELD)
    found: dict[str, Speed] = {}
    for heat, ids in enumerate(groups):
        group = [each for each in candidates if each.id in ids]
        told = _heat(group, workload, rounds, _shifted(progress, heat, len(groups)), steps, (load_timeout_s, turn_timeout_s), deadline)
        for id_, (lane, turns) in told.items():
            found[id_] = replace(_speed(id_, lane, turns, workload, steps, price_per_hour), heat=heat)
    return {each.id: found[each.id] for each in candidates}


def heats(sizes: Mapping[str, int], room: float) -> list[list[str]]:
    """Who runs together: as many as there is room for, in their order; one that is too large for any company runs alone.

    >>> heats({"a": 4, "b": 3, "c": 9, "d": 1}, 8)
    [['a', 'b'], ['c'], ['d']]
    """
    found: list[list[str]] = []
    left = 0.0
    for id_, size in sizes.items():
        if not found or size > left:
            found.append([])
            left = room
        found[-1].append(id_)
        left -= size
    return found


def artifact_bytes(artifact: Path) -> int:
    """Of the main file and what lies beside it, of which it is the name; 0 where it is missing, which its engine will say."""
    if not artifact.is_file():
        return 0
    if artifact.suffix == ".gguf":
        return artifact.stat().st_size
    return sum(file.stat().st_size for file in artifact.parent.iterdir() if file.is_file())


def _free_bytes() -> float:
    import psutil

    return float(psutil.virtual_memory().available)


def _heat(
    candidates: Sequence[EngineCandidate],
    workload: Workload,
    rounds: int,
    progress: Progress | None,
    steps: int,
    timeouts: tuple[float, float],
    deadline: float | None,
) -> dict[str, tuple[Lane, list[dict[str, Any]]]]:
    """Lanes, ended by then, and their answers. A lane that fails is left out of later rounds."""
    common = {"shapes": [asdict(shape) for shape in workload.shapes], "concurrency": workload.concurrency, "steps": steps}
    turns: dict[str, list[dict[str, Any]]] = {each.id: [] for each in candidates}
    with ExitStack() as stack:
        lanes = {each.id: stack.enter_context(Lane(WORKER)) for each in candidates}
        for each in candidates:
            lanes[each.id].load({**each.spec(), **common}, timeouts[0])
        for done in range(rounds):
            if deadline is not None and time.monotonic() >= deadline:
                break
            for id_, lane in lanes.items():
                if lane.error is None and (answer := lane.ask({"seed": done + 1}, timeouts[1])) is not None:
                    turns[id_].append(answer)
            if progress is not None:
                progress(done + 1, rounds)
    return {id_: (lane, turns[id_]) for id_, lane in lanes.items()}


def _speed(id_: str, lane: Lane, turns: Sequence[dict[str, Any]], workload: Workload, steps: int, price_per_hour: float | None) -> Speed:
    ready = lane.ready
    if lane.error is not None or not turns:
        return Speed(id_, load_seconds=ready.get("load_seconds"), error=lane.error or "There was no time for a round.")
    rounds = [round_of(turn["shapes"], workload.shapes, workload.concurrency, steps) for turn in turns]
    speed = summed_up(id_, rounds, workload, cores=ready["cores"], price_per_hour=price_per_hour, method=ready["energy_method"])
    wall, cpu, busy = (sum(turn[key] for turn in turns) for key in ("wall", "cpu", "busy"))
    load = others_share(busy, cpu, wall, ready["cores"])
    assert speed.total_s is not None
    return replace(
        speed,
        peak_memory_bytes=max(each["peak"] for each in (ready, *turns)),
        peak_anonymous_bytes=max((each["anonymous"] for each in (ready, *turns) if each["anonymous"] is not None), default=None),
        load_seconds=ready["load_seconds"],
        precision=ready["precision"],
        sampled=is_sampled(workload.shapes, steps),
        other_load=load,
        noisy=noisy(speed.total_s, rounds=len(rounds), other_load=load),
    )


def _shifted(progress: Progress | None, heat: int, count: int) -> Progress | None:
    """Heats one after the other, seen from outside."""
    return None if progress is None else lambda done, of: progress(heat * of + done, count * of)
