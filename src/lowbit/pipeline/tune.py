"""Find the best threads and shapes for the few candidates that could win."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lowbit.measure.race import QUICK, RaceResult, Variant, race
from lowbit.measure.ratios import medians
from lowbit.pipeline.context import Context
from lowbit.pipeline.finalists import select_finalists
from lowbit.pipeline.plan import TUNED_SOURCE
from lowbit.pipeline.search import artifact_of
from lowbit.runtimes import registry
from lowbit.types import Candidate, Tuning

TUNED = 3
"""How many candidates are worth the time."""


def tune(context: Context) -> None:
    """Races the tunings of the likely finalists and of the fastest FP32, and records each one's best."""
    likely = select_finalists(list(context.state.candidates.values()), context.policy, TUNED)
    source = context.state.candidates.get(TUNED_SOURCE)
    names = [*likely, *fastest_fp32(context.state.candidates.values()), *([source.id] if source and source.status == "done" else [])]
    waiting = [name for name in dict.fromkeys(names) if name not in context.state.tuned]
    context.reporter.stage("Tuning threads and shapes", len(waiting))
    for index, name in enumerate(waiting):
        if context.out_of_time():
            return
        candidate = context.state.candidates[name]
        tuning = best_tuning(context, candidate)
        if context.policy.objective == "throughput" and context.hardware.cores > 1:
            tuning = replace(tuning, streams=context.hardware.cores, threads=context.hardware.cores)
        context.record("tuned", id=name, tuning=tuning)
        context.reporter.advance(index + 1)


def best_tuning(context: Context, candidate: Candidate) -> Tuning:
    """The tuning with the lowest latency, as geometric mean over the asked batch sizes; arithmetic stays as it is."""
    offered = registry.get(candidate.runtime).tunings(context.hardware)
    choices = [tuning for tuning in offered if tuning.streams == 1 and tuning.precision == candidate.tuning.precision]
    choices = list(dict.fromkeys([candidate.tuning, *choices]))
    if len(choices) == 1:
        return choices[0]
    path = artifact_of(context, candidate)
    variants = [Variant(str(index), candidate.runtime, path, tuning) for index, tuning in enumerate(choices)]
    context.reporter.note(f"Tuning {candidate.id}: {len(choices)} settings")
    races = [race(variants, context.sample(batch), batch=batch, **QUICK) for batch in context.policy.batch]
    return choices[pick(races, len(choices))]


def pick(races: Sequence[Mapping[str, RaceResult]], count: int) -> int:
    """Index of the setting with the lowest geometric mean of medians; settings that failed anywhere are out. Pure."""

    def cost(index: int) -> float:
        results = [found[str(index)] for found in races]
        if not all(result.usable for result in results):
            return math.inf
        return sum(math.log(float(np.median(medians(result.rounds)))) for result in results)

    return min(range(count), key=cost)


def fastest_fp32(candidates: Iterable[Candidate]) -> list[str]:
    """Id of the fastest candidate that computes in FP32 from FP32 weights, if there is one beside the baseline."""
    measured = [
        candidate for candidate in candidates if candidate.precision == "fp32" and candidate.status == "done" and candidate.measurements
    ]
    best = max(measured, key=speed, default=None)
    return [best.id] if best else []


def speed(candidate: Candidate) -> float:
    """Geometric mean of the speedups over the asked batch sizes."""
    ratios = [entry.speedup.value for entry in candidate.measurements if entry.speedup and entry.streams == 1]
    return math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios)) if ratios else 0.0
