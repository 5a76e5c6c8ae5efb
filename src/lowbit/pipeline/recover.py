"""Mixed precision for a model that integers alone cost too much: what the verdict `recover` tries first.

The best static candidate over budget is taken apart: how much each product costs in accuracy (compress/sensitivity.py), how long it
takes in each precision (compress/latency.py), and the fastest choices of what to leave in floating point (compress/allocate.py).
At most five of them are evaluated end to end (compress/mixed.py). Each is a candidate like any other: journaled, gated, explained.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lowbit.bundle.manifest import write_atomic
from lowbit.compress.allocate import FLOAT, Assignment, frontier
from lowbit.compress.explain import explain
from lowbit.compress.latency import Layout, layout, measure_latency
from lowbit.compress.mixed import Evidence, mixed
from lowbit.compress.quantize import quantize
from lowbit.compress.sensitivity import Sensitivity, sensitivity
from lowbit.errors import LowbitError
from lowbit.graph import ir_files
from lowbit.graph.groups import Group, find_groups
from lowbit.graph.place import Format
from lowbit.graph.profiles import profile, target_of
from lowbit.pipeline.context import Context
from lowbit.pipeline.judge import FAR
from lowbit.pipeline.plan import Plan
from lowbit.pipeline.score import recipe_of
from lowbit.pipeline.screen import QuickTimes
from lowbit.pipeline.search import calibration, calibration_batches, try_candidate
from lowbit.recipe import Recipe
from lowbit.runtimes import registry
from lowbit.types import Candidate, Policy, Tuning

MIXED = "int8-mixed"
"""Recipes made here are called this and a number."""

INTEGER = "w8a8"
KINDS = {"classification": "classes", "embedding": "embedding"}
"""What the sensitivity of a task is measured by; squared error where none is named."""


def recover(context: Context, quick: QuickTimes) -> None:
    """Adds mixed-precision candidates where the search left integers over budget, and remembers that it did."""
    candidates = context.state.candidates
    base = worth_recovering(candidates.values(), context.policy)
    if base is None or any(each.recipe.startswith(MIXED) for each in candidates.values()) or context.out_of_time():
        return
    context.reporter.stage("Mixed precision")
    try:
        _search(context, quick, base)
    except LowbitError as error:  # what cannot be taken apart stays as it was found
        context.reporter.note(f"Mixed precision was not possible: {error.message}")


def worth_recovering(candidates: Iterable[Candidate], policy: Policy) -> Candidate | None:
    """The static integer candidate with the least drop, where all are over budget and that one by less than `FAR` times. Pure."""
    integer = [
        each
        for each in candidates
        if each.precision == "int8" and each.status == "done" and each.search is not None and each.search.broken is None
    ]
    drops = {each.id: each.search.delta.value for each in integer if each.search is not None}
    if not drops or min(drops.values()) <= policy.max_drop.value:
        return None
    static = [each for each in integer if each.recipe.startswith(("int8-fitted", "int8-smoothed", "int8-static"))]
    best = min(static, key=lambda each: drops[each.id], default=None)
    return best if best is not None and drops[best.id] <= FAR * policy.max_drop.value else None


def _search(context: Context, quick: QuickTimes, base: Candidate) -> None:
    recipe = recipe_of(context, base)
    tuning = _tuning(context, base)
    target = profile(target_of(base.runtime))
    graph = ir_files.read(context.store.prepared).graph
    groups = layout(graph, find_groups(graph, target), target)
    found = _sensitivity(context, recipe, base.runtime)
    context.reporter.note(f"Sensitivity of {len(groups.products)} products: {found.passes:.1f} passes over {found.samples} samples.")
    write_layers(context, base, recipe, found, groups.groups)
    batch = max(context.policy.batch)
    times = measure_latency(
        groups, [INTEGER], _writer(context, recipe, base.runtime), base.runtime, context.sample(batch), batch=batch, tuning=tuning
    )
    points = frontier(dict(found.damage), times.seconds, times.boundaries)
    count = 0

    def evaluate(formats: Mapping[str, str]) -> Evidence:
        nonlocal count
        count += 1
        kept = {name: form for name, form in formats.items() if form == FLOAT and name in groups.products}
        own = replace(recipe, name=f"{MIXED}-{count}", formats=kept)
        suffix = "" if tuning.precision == "f32" else f"+{tuning.precision}"
        candidate = try_candidate(context, Plan(f"{own.name}{suffix}@{base.runtime}", own, base.runtime, tuning, own.precision), quick)
        candidate = replace(candidate, reasons=(*candidate.reasons, explained(points, formats, groups)))
        context.record("candidate", candidate=candidate)
        context.reporter.candidate(candidate)
        if candidate.search is None or candidate.search.broken is not None:
            return Evidence(FAR * context.policy.max_drop.value)
        return Evidence(candidate.search.delta.value)

    outcome = mixed(points, evaluate, context.policy.max_drop.value)
    context.reporter.note(f"Mixed precision: {outcome.reason} {outcome.cost:.1f} evaluations.")


def write_layers(context: Context, base: Candidate, recipe: Recipe, found: Sensitivity, groups: Sequence[Group]) -> None:
    """Leaves in the folder of the candidate that was taken apart what each of its layers suffers, for the report."""
    assert recipe.ranges is not None
    shared = recipe.weights.granularity == "per-tensor"
    layers = explain(found, groups, calibration(context).stats, format_name=INTEGER, ranges=recipe.ranges, shared=shared)
    write_atomic(context.store.candidate(base.id) / "layers.json", json.dumps(layers.to_json(), indent=1, allow_nan=False) + "\n")


def explained(points: Iterable[Assignment], formats: Mapping[str, str], groups: Layout) -> str:
    """What is left in floating point, and what that costs by the prediction, in a sentence."""
    points = list(points)
    kept = [name for name in groups.products if formats[name] == FLOAT]
    chosen = next(point for point in points if point.formats == formats)
    slower = chosen.predicted_seconds / points[0].predicted_seconds - 1
    named = ", ".join(kept[:3]) + (f" and {len(kept) - 3} more" if len(kept) > 3 else "")
    if not kept:
        return f"All {len(groups.products)} products are integers: the fastest choice by measured group times."
    return f"{len(kept)} of {len(groups.products)} products stay in floating point ({named}); predicted to take {slower:+.0%} of the time."


def _tuning(context: Context, base: Candidate) -> Tuning:
    """Where the runtime computes natively in 16 bit, that is what is left in floating point runs in."""
    offered = registry.get(base.runtime).tunings(context.hardware)
    half = [t for t in offered if t.precision != "f32" and t.streams == 1 and t.fixed_shape == base.tuning.fixed_shape]
    return half[0] if half else base.tuning


def _sensitivity(context: Context, recipe: Recipe, runtime: str) -> Sensitivity:
    assert recipe.activations is not None
    assert recipe.ranges is not None
    return sensitivity(
        context.store.prepared,
        profile(target_of(runtime)),
        {INTEGER: Format(recipe.weights, recipe.activations)},
        calibration(context).stats,
        [batch.feeds for batch in calibration_batches(context)],
        kind=KINDS.get(context.metric.task, "values"),  # type: ignore[arg-type]
        ranges=recipe.ranges,
    )


def _writer(context: Context, recipe: Recipe, runtime: str):  # type: ignore[no-untyped-def]
    """Artifacts for timing: transforms change no kernel, so they are left out."""

    def write(formats: Mapping[str, str]) -> Path:
        kept = {name: form for name, form in formats.items() if form == FLOAT}
        plain = replace(recipe, name="timing", transforms=(), formats=kept)
        path = context.store.work / "timing" / f"{len(list((context.store.work / 'timing').glob('*.onnx')))}.onnx"
        return quantize(context.model.path, context.store.prepared, plain, path, evidence=calibration(context), target=target_of(runtime))

    return write
