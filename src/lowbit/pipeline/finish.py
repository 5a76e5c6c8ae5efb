"""From a searched field to evidence that may be decided on: confirm the finalists, then race them properly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lowbit.measure.compare import compare
from lowbit.measure.outcomes import Outcomes
from lowbit.measure.race import FINAL, RaceResult, Variant, energy_of, fastest, measurement, race
from lowbit.pipeline.context import BASELINE, Context
from lowbit.pipeline.evaluate import evaluate
from lowbit.pipeline.finalists import select_finalists
from lowbit.pipeline.journal import encode
from lowbit.pipeline.tune import fastest_fp32
from lowbit.runtimes import registry
from lowbit.types import Candidate, Measurement


def confirm(context: Context) -> tuple[str, ...]:
    """Evaluates the finalists on the samples that the search never saw; returns their ids.

    All finalists that were ever confirmed on these samples share the error rate, also when a longer
    second run adds some: looking again is not free.
    """
    finalists = select_finalists(list(context.state.candidates.values()), context.policy)
    context.record("finalists", ids=list(finalists))
    earlier = [name for name, candidate in context.state.candidates.items() if candidate.confirm is not None]
    everyone = list(dict.fromkeys([*earlier, *finalists]))
    if set(everyone) == set(earlier):
        return finalists
    context.reporter.stage(f"Confirming {len(finalists)} finalists on {len(context.split.confirm):,} unseen samples", len(everyone))
    for index, name in enumerate(everyone):
        outcomes = confirming_outcomes(context, context.state.candidates[name])
        slices = context.slices("confirm")
        comparison = compare(
            context.metric, context.outcomes["confirm"], outcomes, context.policy, alpha_share=1 / len(everyone), slices=slices
        )
        context.record("confirmed", id=name, comparison=comparison)
        context.reporter.advance(index + 1)
    return finalists


def confirming_outcomes(context: Context, candidate: Candidate) -> Outcomes:
    """Outcomes on the confirming samples, from the folder where they are already known."""
    saved = context.store.candidate(candidate.id) / "outcomes-confirm.npz"
    if saved.exists():
        return Outcomes.load(saved)
    assert candidate.artifact is not None, f"{candidate.id} has no artifact"
    context.reporter.note(f"Confirming {candidate.id}")
    session = registry.get(candidate.runtime).open(
        context.store.out / candidate.artifact, replace(candidate.tuning, fixed_shape=False), None
    )
    try:
        outcomes = evaluate(session, context.split.confirm, context.metric, reference=context.references["confirm"])
    finally:
        session.close()
    saved.parent.mkdir(parents=True, exist_ok=True)
    outcomes.save(saved)
    return outcomes


def race_finalists(context: Context, finalists: tuple[str, ...]) -> None:
    """Times the baseline, the fastest FP32 and the finalists in one run, at every batch size and with several streams."""
    baseline = context.state.baseline
    assert baseline is not None, "the baseline comes first"
    names = [*fastest_fp32(context.state.candidates.values()), *finalists]
    entries = [baseline, *(context.state.candidates[name] for name in dict.fromkeys(names))]
    if set(context.state.raced) == {entry.id for entry in entries}:
        return  # this very race was run before the interruption
    settings = [(batch, 1) for batch in context.policy.batch]
    if context.hardware.cores > 1:
        settings.append((context.policy.batch[-1], context.hardware.cores))
    rounds = context.rounds
    context.reporter.stage(f"Timing {len(entries)} variants, each alone in its process", rounds * len(settings))
    found: dict[str, list[Measurement]] = {entry.id: [] for entry in entries}
    last: dict[str, RaceResult] = {}
    for index, (batch, streams) in enumerate(settings):
        variants = [variant(context, entry, streams) for entry in entries]
        results = race(
            variants,
            context.sample(batch),
            batch=batch,
            streams=streams,
            progress=lambda done, _, before=index: context.reporter.advance(before * rounds + done),  # type: ignore[misc]
            rounds=rounds,
            seconds_per_round=FINAL["seconds_per_round"],
        )
        fp32 = {entry.id: results[entry.id] for entry in entries if entry.precision == "fp32"}
        best_fp32 = fp32.get(fastest(fp32) or BASELINE)
        for entry in entries:
            if results[entry.id].usable:
                found[entry.id].append(measurement(results[entry.id], results[BASELINE], best_fp32))
                if streams == 1:
                    last[entry.id] = results[entry.id]
    # One event for the whole race: its ratios belong together, so half of them would be worth nothing.
    context.record(
        "measured", raced=[entry.id for entry in entries], results=[timing(context, name, found[name], last[name]) for name in last]
    )
    for name in last:
        context.reporter.candidate(context.state.candidates.get(name, baseline))


def timing(context: Context, name: str, measurements: Sequence[Measurement], result: RaceResult) -> dict[str, object]:
    """One variant's part of the "measured" event."""
    return {
        "id": name,
        "measurements": [encode(entry) for entry in measurements],
        "peak_memory_bytes": result.peak_memory_bytes,
        "energy": encode(energy_of(result, context.hardware.cores)),
    }


def variant(context: Context, candidate: Candidate, streams: int) -> Variant:
    """The candidate as a race runs it; with several streams every stream gets one of the threads."""
    assert candidate.artifact is not None, f"{candidate.id} has no artifact"
    tuning = candidate.tuning
    if streams > 1:
        tuning = replace(tuning, streams=streams, threads=context.hardware.cores)
    return Variant(candidate.id, candidate.runtime, context.store.out / candidate.artifact, tuning)
