"""From a searched field to evidence that may be decided on: confirm the finalists, then race them properly."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from lowbit.errors import DataError
from lowbit.measure.compare import compare
from lowbit.measure.outcomes import Outcomes
from lowbit.measure.race import FINAL, RaceResult, Variant, energy_of, fastest, measurement, race
from lowbit.pipeline.context import BASELINE, Context
from lowbit.pipeline.finalists import select_finalists
from lowbit.pipeline.journal import encode
from lowbit.pipeline.plan import TUNED_SOURCE
from lowbit.pipeline.recipes import FP32
from lowbit.pipeline.score import score
from lowbit.pipeline.search import artifact_of, pending
from lowbit.pipeline.tune import fastest_fp32
from lowbit.types import Candidate

LEAST_S = 15.0
"""A race gets this long, whatever the time limit: without it there is nothing to decide on."""


def confirm(context: Context) -> tuple[str, ...]:
    """Evaluates the finalists on the samples that the search never saw; returns their ids.

    All finalists that were ever confirmed on these samples share the error rate, also when a longer
    second run adds some: looking again is not free.
    """
    finalists = context.state.finalists or select_finalists(list(context.state.candidates.values()), context.policy)
    if not context.state.finalists:
        context.record("finalists", ids=list(finalists))
    earlier = [name for name, candidate in context.state.candidates.items() if candidate.confirm is not None]
    everyone = list(dict.fromkeys([*earlier, *finalists]))
    if set(everyone) == set(earlier):
        return finalists
    context.reporter.stage(f"Confirming {len(finalists)} finalists on {len(context.split.confirm):,} unseen samples", len(everyone))
    for index, name in enumerate(everyone):
        outcomes = confirming_outcomes(context, context.state.candidates[name])
        comparison = compare(
            context.metric,
            context.outcomes["confirm"],
            outcomes,
            context.policy,
            alpha_share=1 / len(everyone),
            slices=context.slices("confirm"),
        )
        context.record("confirmed", id=name, comparison=comparison)
        context.reporter.advance(index + 1)
    return finalists


def confirming_outcomes(context: Context, candidate: Candidate) -> Outcomes:
    """Outcomes on the confirming samples, from the folder where they are already known."""
    saved = context.store.candidate(candidate.id) / "outcomes-confirm.npz"
    if saved.exists():
        with suppress(DataError):  # cut off by a crash: evaluated again
            return Outcomes.load(saved)
    context.reporter.note(f"Confirming {candidate.id}")
    outcomes = score(context, candidate, artifact_of(context, candidate), context.split.confirm, context.references["confirm"])
    saved.parent.mkdir(parents=True, exist_ok=True)
    outcomes.save(saved)
    return outcomes


def race_finalists(context: Context, finalists: tuple[str, ...]) -> None:
    """Times the baseline, the fastest FP32 and the finalists in one run, at every batch size and with several streams."""
    entries = field_of(context, finalists)
    key = [{"id": entry.id, "tuning": encode(entry.tuning), "rounds": context.rounds} for entry in entries]
    if context.state.raced == key:
        return  # this very race was run before the interruption
    settings = [(batch, 1) for batch in context.policy.batch]
    if context.hardware.cores > 1:
        settings.append((context.policy.batch[-1], context.hardware.cores))
    context.reporter.stage(f"Timing {len(entries)} variants, each alone in its process", context.rounds * len(settings))
    heats = [heat(context, entries, batch, streams, index) for index, (batch, streams) in enumerate(settings)]
    # One event for the whole race: its ratios belong together, so half of them would be worth nothing.
    context.record("measured", raced=key, results=[timing(context, entry, entries, heats) for entry in entries])
    for entry in entries:
        context.reporter.candidate(context.state.candidates.get(entry.id, entry))


def field_of(context: Context, finalists: tuple[str, ...]) -> list[Candidate]:
    """Who races: the baseline, the tuned source on its runtime, the fastest FP32 elsewhere, the finalists."""
    baseline, candidates = context.state.baseline, context.state.candidates
    assert baseline is not None, "the baseline comes first"
    tuned = candidates.get(TUNED_SOURCE)
    names = [TUNED_SOURCE] if tuned is not None and tuned.status == "done" and tuned.tuning != baseline.tuning else []
    names += [*fastest_fp32(candidate for candidate in candidates.values() if candidate.id != TUNED_SOURCE), *finalists]
    return [baseline, *(candidates[name] for name in dict.fromkeys(names))]


def heat(context: Context, entries: Sequence[Candidate], batch: int, streams: int, index: int) -> dict[str, RaceResult]:
    """One race of everybody, at one batch size and number of streams."""
    deadline = None if context.end is None else max(context.end, time.monotonic() + LEAST_S)
    return race(
        [variant(context, entry, streams) for entry in entries],
        context.sample(batch),
        batch=batch,
        streams=streams,
        rounds=context.rounds,
        seconds_per_round=FINAL["seconds_per_round"],
        progress=lambda done, _: context.reporter.advance(index * context.rounds + done),
        deadline=deadline,
    )


def timing(context: Context, entry: Candidate, entries: Sequence[Candidate], heats: Sequence[dict[str, RaceResult]]) -> dict[str, object]:
    """One variant's part of the "measured" event: nothing but what this race showed, also if that is an error."""
    own = [results[entry.id] for results in heats]
    usable = [result for result in own if result.usable]
    energy = energy_of(usable[0], context.hardware.cores) if usable else None
    return {
        "id": entry.id,
        "measurements": [
            encode(measurement(results[entry.id], results[BASELINE], best_fp32(context, entries, results)))
            for results in heats
            if results[entry.id].usable
        ],
        "peak_memory_bytes": max((result.peak_memory_bytes or 0 for result in usable), default=None),
        "energy": encode(energy) if energy else None,
        "errors": [f"Failed in the final timing: {result.error}" for result in own if result.error],
    }


def best_fp32(context: Context, entries: Sequence[Candidate], results: Mapping[str, RaceResult]) -> RaceResult | None:
    """The fastest FP32 of this race; None while FP32 has not been tried on every runtime."""
    if any(entry.recipe.name == FP32.name and entry.precision == "fp32" for entry in pending(context)):
        return None
    fp32 = {entry.id: results[entry.id] for entry in entries if entry.precision == "fp32"}
    return fp32.get(fastest(fp32) or BASELINE)


def variant(context: Context, candidate: Candidate, streams: int) -> Variant:
    """The candidate as a race runs it; with several streams every stream gets one of the threads."""
    threads = context.hardware.cores if streams > 1 else (0 if candidate.tuning.streams > 1 else candidate.tuning.threads)
    tuning = replace(candidate.tuning, streams=streams, threads=threads)
    return Variant(candidate.id, candidate.runtime, artifact_of(context, candidate), tuning)
