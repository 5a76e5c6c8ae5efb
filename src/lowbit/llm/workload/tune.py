"""Screens an engine's tunings on the workload, and says which of them change the numbers.

Threads and batches of a prompt change the order of sums at most; they are exact for our purposes. A cache in fewer bits,
quantized activations and other arithmetic change what the model says: whoever picks such a tuning has to evaluate it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lowbit.llm.candidate import EngineCandidate
from lowbit.llm.engines.base import EngineTuning
from lowbit.llm.workload.measure import SCREENING_ROUNDS, Progress, measure
from lowbit.llm.workload.rank import LanguageObjective, cost_of, over
from lowbit.llm.workload.speed import Speed
from lowbit.llm.workload.workload import Workload


@dataclass(frozen=True)
class Tuned:
    """What screening found for one artifact on one engine.

    Attributes:
        best: Fastest tuning of all; the default where no other is faster beyond doubt.
        best_exact: Fastest of those that leave the numbers as the default has them.
        speeds: Tuning, and what was measured of it; the default first.
    """

    best: EngineTuning
    best_exact: EngineTuning
    speeds: tuple[tuple[EngineTuning, Speed], ...]

    @property
    def needs_evaluation(self) -> bool:
        """Whether the fastest changes the numbers."""
        return self.best != self.best_exact


def is_exact(tuning: EngineTuning, default: EngineTuning) -> bool:
    """Whether a tuning leaves the numbers as the default has them, but for the order of sums."""
    return (tuning.kv, tuning.activations, tuning.precision) == (default.kv, default.activations, default.precision)


def tune(
    candidate: EngineCandidate,
    tunings: Sequence[EngineTuning],
    workload: Workload,
    *,
    objective: LanguageObjective = "latency",
    rounds: int = SCREENING_ROUNDS,
    progress: Progress | None = None,
    turn_timeout_s: float = 600.0,
) -> Tuned:
    """Races the tunings of one artifact.

    Args:
        candidate: Engine and artifact; its own tuning counts only where it is among the tunings.
        tunings: To try, the default first, as `Engine.tunings` gives them.
        workload: What is asked.
        objective: What "fastest" means.
        rounds: Turns of each; few, to tell what is much faster.
        progress: Called after each round.
        turn_timeout_s: For one turn.

    Returns:
        The fastest; the default where nothing could be measured.
    """
    tried = {name(tuning): tuning for tuning in tunings}
    runs = [replace(candidate, id=id_, tuning=tuning) for id_, tuning in tried.items()]
    found = measure(runs, workload, rounds=rounds, progress=progress, turn_timeout_s=turn_timeout_s)
    speeds = tuple((tried[id_], speed) for id_, speed in found.items())
    default = tunings[0]
    return Tuned(
        best=fastest(speeds, objective, default),
        best_exact=fastest([pair for pair in speeds if is_exact(pair[0], default)], objective, default),
        speeds=speeds,
    )


def fastest(speeds: Sequence[tuple[EngineTuning, Speed]], objective: LanguageObjective, default: EngineTuning) -> EngineTuning:
    """The fastest, if it is faster than the default within rounds and beyond doubt; else the default."""
    usable = [(tuning, speed) for tuning, speed in speeds if speed.usable]
    if not usable:
        return default
    best, speed = min(usable, key=lambda pair: cost_of(pair[1], objective))
    standard = next((each for tuning, each in usable if tuning == default), None)
    if standard is None or objective == "memory":
        return best
    ratio = over(speed, standard, objective)
    return best if ratio is not None and ratio.ci_low > 1 else default


def name(tuning: EngineTuning) -> str:
    """Short words for what differs from the plain one.

    >>> name(EngineTuning(threads=2, kv="int8"))
    'threads=2,kv=int8'
    >>> name(EngineTuning())
    'default'
    """
    plain = EngineTuning()
    changed = [f"{key}={value}" for key, value in vars(tuning).items() if value != getattr(plain, key)]
    return ",".join(changed) or "default"
