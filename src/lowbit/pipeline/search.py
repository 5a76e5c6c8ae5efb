"""The search over candidates: make, time quickly, evaluate, remember. Anytime: stop it when you like.

Each finished candidate is one journal event; what the journal has is not run again. Candidates
that are plainly too slow or plainly broken stop early, and say why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lowbit.compress.calibrate import CalibrationStats
from lowbit.compress.evidence import Evidence
from lowbit.compress.quantize import quantize
from lowbit.errors import DataError, ModelError
from lowbit.graph.parameters import read_parameters, save_parameters
from lowbit.graph.profiles import target_of
from lowbit.measure.compare import compare
from lowbit.measure.outcomes import Outcomes
from lowbit.pipeline.artifacts import artifact_files, artifact_size
from lowbit.pipeline.context import Context
from lowbit.pipeline.evaluate import repeated
from lowbit.pipeline.judge import FAR
from lowbit.pipeline.plan import Plan, plan
from lowbit.pipeline.programs import make_program, notes_on
from lowbit.pipeline.recipes import structure
from lowbit.pipeline.score import recipe_of, score
from lowbit.pipeline.screen import QuickTimes, plainly_slow
from lowbit.pipeline.store import link_or_copy, need_space
from lowbit.pipeline.training import TRAINED
from lowbit.runtimes import registry
from lowbit.runtimes.base import Format, opens
from lowbit.types import Batch, Candidate

GLANCE = 64
"""Samples on which a candidate that is too slow anyway is looked at."""

CALIBRATION_BATCH = 8


def search(context: Context, quick: QuickTimes, keep: Callable[[], object]) -> None:
    """Tries every planned candidate that the journal does not have yet, until done or out of time.

    Args:
        context: The run.
        quick: Times candidates.
        keep: Called after each finished candidate: writes the best so far.
    """
    waiting = pending(context)
    context.reporter.stage(f"{len(waiting)} candidates", len(waiting))
    for index, entry in enumerate(waiting):
        if context.out_of_time():
            context.reporter.note(f"Time is up: {len(waiting) - index} candidates were not tried.")
            break
        candidate = try_candidate(context, entry, quick)
        context.record("candidate", candidate=candidate)
        context.reporter.candidate(candidate)
        keep()
        context.reporter.advance(index + 1)


def pending(context: Context) -> list[Plan]:
    """What the journal does not have yet, in the order of trying."""
    tunings = {runtime.name: runtime.tunings(context.hardware) for runtime in context.runtimes}
    plans = plan(context.recipes, tunings, {runtime.name for runtime in context.runtimes if opens(runtime) == "pt2"})
    return [entry for entry in plans if entry.id not in context.state.candidates]


def try_candidate(context: Context, entry: Plan, quick: QuickTimes) -> Candidate:
    """One candidate from recipe to evidence. What goes wrong becomes part of the evidence."""
    blank = Candidate(id=entry.id, recipe=entry.recipe.name, runtime=entry.runtime, precision=entry.precision, tuning=entry.tuning)
    need_space(context.store, 2 * context.model.size_bytes)
    try:
        artifact = make_artifact(context, entry)
        made = replace(blank, size_bytes=artifact_size(artifact), artifact=str(artifact.relative_to(context.store.out)))
        times = quick.of(entry, structure(entry.recipe), artifact)
        made = replace(made, measurements=times)
        notes = notes_on(artifact, context.fixed_batch, quick.opening(entry, structure(entry.recipe)))
        if reason := plainly_slow(times):
            # A few samples still tell a slow candidate from a broken one, which a reader wants to know.
            return replace(evaluated(context, made, artifact, most=GLANCE), status="dropped", reasons=(reason, *notes))
        found = evaluated(context, made, artifact)
        return replace(found, reasons=(*found.reasons, *notes))
    except (ModelError, DataError) as error:
        need_space(context.store, 0)  # a full disk is no evidence against a candidate
        return replace(blank, status="failed", reasons=(error.message,))


def make_artifact(context: Context, entry: Plan) -> Path:
    """The artifact in the candidate's own folder, with its recipe and parameter table; made once per recipe and target."""
    form = opens(registry.get(entry.runtime))
    if entry.recipe.method == "none" and form == "onnx":
        return context.store.out / "baseline" / "model.onnx"
    shared = shared_artifact(context, entry, form)
    folder = context.store.candidate(entry.id)
    artifact = folder / f"model.{form}"
    for file in artifact_files(shared):
        link_or_copy(file, artifact if file == shared else folder / file.name)
    (folder / "recipe.yaml").write_text(entry.recipe.to_yaml())
    if entry.recipe.activations and form == "onnx":
        save_parameters(read_parameters(artifact), folder)
    return artifact


def shared_artifact(context: Context, entry: Plan, form: Format) -> Path:
    """The artifact where it is made, before candidates link to it."""
    if form == "pt2":
        program = context.store.artifact(entry.recipe.name, form)
        return program if program.exists() else make_program(context, entry.recipe, program)
    target = target_of(entry.runtime)
    static = entry.recipe.method in ("static", *TRAINED)  # its placement is the target's own; other writers know no targets
    shared = context.store.artifact(f"{entry.recipe.name}-{target}" if static else entry.recipe.name)
    if not shared.exists():
        evidence = calibration(context) if entry.recipe.ranges else None
        feeds = context.calibration_feeds() if entry.recipe.method == "nncf" else []
        if entry.recipe.method in TRAINED:
            assert evidence is not None, f"{entry.recipe.name} needs calibration"
            TRAINED[entry.recipe.method](context, entry.recipe, shared, evidence, target)
        else:
            quantize(
                context.model.path,
                context.store.prepared,
                entry.recipe,
                shared,
                evidence=evidence,
                feeds=feeds,
                transformer=context.transformer,
                target=target,
            )
    return shared


def artifact_of(context: Context, candidate: Candidate) -> Path:
    """The candidate's artifact; made again where an earlier run pruned it."""
    if candidate.artifact is not None and (context.store.out / candidate.artifact).exists():
        return context.store.out / candidate.artifact
    recipe = recipe_of(context, candidate)
    return make_artifact(context, Plan(candidate.id, recipe, candidate.runtime, candidate.tuning, candidate.precision))


def calibration(context: Context) -> Evidence:
    """What the calibration samples say: range statistics from this run, from the folder, or from one pass over them."""
    if context.evidence is None:
        context.evidence = Evidence(context.store.prepared, lambda: calibration_batches(context))
        data = context.split.calibration
        if context.store.stats.exists():
            context.evidence.stats = CalibrationStats.load(context.store.stats)
        else:
            context.reporter.note(f"Calibrating on {len(data)} samples: {data.name}, {context.split.how_selected}.")
            context.store.stats.parent.mkdir(parents=True, exist_ok=True)
            np.save(context.store.calibrated, np.sort(data.hashes))
            context.evidence.stats.save(context.store.stats)
    return context.evidence


def calibration_batches(context: Context) -> Iterator[Batch]:
    """The calibration samples; for a model whose batch size is fixed the last batch is filled up with its own samples."""
    own = context.fixed_batch
    for batch in context.split.calibration.batches(own or CALIBRATION_BATCH):
        if own and len(batch.rows) < own:
            feeds = {name: repeated(values, own) for name, values in batch.feeds.items()}
            batch = Batch(repeated(batch.rows, own), feeds, None)
        yield batch


def evaluated(context: Context, candidate: Candidate, artifact: Path, most: int | None = None) -> Candidate:
    """The candidate compared on the search samples (the first `most` of them), or dropped on a part when it is plainly broken."""
    context.reporter.note(f"Evaluating {candidate.id}")
    data, expected = context.split.search, context.outcomes["search"]
    if most is not None:
        data = data.subset(np.arange(min(most, len(data))))

    def hopeless(outcomes: Outcomes) -> bool:
        seen = compare(context.metric, expected.take(np.arange(outcomes.n)), outcomes, context.policy, hardest=False)
        return seen.broken is not None or seen.delta.ci_low > FAR * context.policy.max_drop.value

    outcomes = score(context, candidate, artifact, data, context.references["search"], hopeless)
    folder = context.store.candidate(candidate.id)
    folder.mkdir(parents=True, exist_ok=True)
    outcomes.save(folder / "outcomes-search.npz")
    seen = outcomes.n
    slices = {name: values[:seen] for name, values in context.slices("search").items()}
    comparison = compare(context.metric, expected.take(np.arange(seen)), outcomes, context.policy, slices=slices)
    if seen < len(data):
        reason = f"Stopped after {seen} of {len(data)} samples: {comparison.broken or 'far over the budget already'}."
        return replace(candidate, status="dropped", search=comparison, reasons=(reason,))
    return replace(candidate, search=comparison)
