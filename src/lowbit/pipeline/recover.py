"""Mixed precision for a model that integers alone cost too much: what the verdict `recover` tries first.

The best static candidate over budget is taken apart: how much each product still costs in accuracy after the recipe's transforms
(compress/transformed.py), how long it takes in each precision (compress/latency.py), and the fastest choices of what to leave in
floating point (compress/allocate.py).
At most five of them are evaluated end to end (compress/mixed.py). Each is a candidate like any other: journaled, gated, explained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lowbit.bundle.manifest import write_atomic
from lowbit.compress.allocate import FLOAT, between, frontier
from lowbit.compress.calibrate import CalibrationStats
from lowbit.compress.damage import Kind
from lowbit.compress.explain import explain
from lowbit.compress.latency import LatencyTable, Layout, Write, layout, measure_latency, starting_with
from lowbit.compress.mixed import Evidence, mixed
from lowbit.compress.quantize import quantize
from lowbit.compress.sensitivity import Sensitivity
from lowbit.compress.transformed import transformed_sensitivity
from lowbit.errors import LowbitError
from lowbit.graph import ir_files
from lowbit.graph.groups import Group, find_groups
from lowbit.graph.profiles import profile, target_of
from lowbit.measure.slices import HARDEST
from lowbit.pipeline.context import Context
from lowbit.pipeline.judge import FAR, guards
from lowbit.pipeline.plan import Plan
from lowbit.pipeline.score import recipe_of
from lowbit.pipeline.screen import QuickTimes
from lowbit.pipeline.search import calibration, calibration_batches, try_candidate
from lowbit.recipe import Recipe
from lowbit.runtimes import registry
from lowbit.types import Candidate, Comparison, Policy, Tuning

MIXED = "int8-mixed"
"""Recipes made here are called this and a number."""

STATIC = ("int8-fitted", "int8-smoothed", "int8-static")
"""How the names of recipes begin that are taken apart, or trained."""

INTEGER = "w8a8"
KINDS: Mapping[str, Kind] = {"classification": "classes", "embedding": "embedding"}
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
    """The static integer candidate that is least over its limits, where all are over and that one by less than `FAR` times. Pure."""
    integer = [each for each in candidates if each.precision == "int8" and each.status == "done" and _sound(each)]
    if not integer or min(_overrun(each, policy) for each in integer) <= 1:
        return None
    best = least_over(integer, policy)
    return best if best is not None and _overrun(best, policy) <= FAR else None


def least_over(candidates: Iterable[Candidate], policy: Policy) -> Candidate | None:
    """The static integer candidate that is least over its limits, or farthest below; None where there is none. Pure."""
    static = [each for each in candidates if each.recipe.startswith(STATIC) and _sound(each)]
    return min(static, key=lambda each: (_overrun(each, policy), each.id), default=None)


def _sound(candidate: Candidate) -> bool:
    return candidate.search is not None and candidate.search.broken is None


def _overrun(candidate: Candidate, policy: Policy) -> float:
    assert candidate.search is not None
    return overrun(candidate.search, policy)


def overrun(evidence: Comparison, policy: Policy) -> float:
    """How many times its limit the worst of the metric, the guards and the slices is; at most 1 where all hold. Pure.

    Slices count as in the judgement: by the end of their interval that is certain, and the hardest tenth only beyond `FAR` times.
    """
    budget = policy.max_drop.value
    limits = [(evidence.delta.value, budget), *((delta.value, limit) for delta, limit in guards(evidence, policy).values())]
    limits += [(each.delta.ci_low, budget * (FAR if each.name == HARDEST else 1)) for each in evidence.slices]
    return max(_times(value, limit) for value, limit in limits)


def _times(value: float, limit: float) -> float:
    if limit > 0:
        return value / limit
    return math.inf if value > 0 else 0.0


def _search(context: Context, quick: QuickTimes, base: Candidate) -> None:
    recipe = recipe_of(context, base)
    tuning = _tuning(context, base)
    target = profile(target_of(base.runtime))
    graph = ir_files.read(context.store.prepared).graph
    groups = layout(graph, find_groups(graph, target), target)
    found, stats = _sensitivity(context, recipe, base.runtime)
    context.reporter.note(f"Sensitivity of {len(groups.products)} products: {found.passes:.1f} passes over {found.samples} samples.")
    write_layers(context, base, recipe, found, stats, groups.groups)
    batch = max(context.policy.batch)
    times = measure_latency(
        groups, [INTEGER], _writer(context, recipe, base.runtime), base.runtime, context.sample(batch), batch=batch, tuning=tuning
    )
    costs = dict(found.damage), times.seconds, times.boundaries
    points = starting_with(INTEGER, frontier(*costs), costs[0], times, groups)
    count = 0

    def evaluate(formats: Mapping[str, str]) -> Evidence:
        nonlocal count
        count += 1
        kept = {name: form for name, form in formats.items() if form == FLOAT and name in groups.products}
        own = replace(recipe, name=f"{MIXED}-{count}", formats=kept)
        suffix = "" if tuning.precision == "f32" else f"+{tuning.precision}"
        candidate = try_candidate(context, Plan(f"{own.name}{suffix}@{base.runtime}", own, base.runtime, tuning, own.precision), quick)
        candidate = replace(candidate, reasons=(*candidate.reasons, explained(formats, groups, times)))
        context.record("candidate", candidate=candidate)
        context.reporter.candidate(candidate)
        if candidate.search is None or candidate.search.broken is not None:
            return Evidence(FAR)
        return Evidence(overrun(candidate.search, context.policy))

    assert base.search is not None, "only what was evaluated is worth recovering"
    known = [(0, Evidence(overrun(base.search, context.policy)))]
    outcome = mixed(points, evaluate, budget=1.0, known=known, between=lambda fast, slow: between(*costs, fast, slow))
    context.reporter.note(f"Mixed precision: {outcome.reason} {outcome.cost:.1f} evaluations.")


def write_layers(
    context: Context, base: Candidate, recipe: Recipe, found: Sensitivity, stats: CalibrationStats, groups: Sequence[Group]
) -> None:
    """Leaves in the folder of the candidate that was taken apart what each of its layers suffers, for the report."""
    assert recipe.ranges is not None
    shared = recipe.weights.granularity == "per-tensor"
    layers = explain(found, groups, stats, format_name=INTEGER, ranges=recipe.ranges, shared=shared)
    write_atomic(context.store.candidate(base.id) / "layers.json", json.dumps(layers.to_json(), indent=1, allow_nan=False) + "\n")


def explained(formats: Mapping[str, str], groups: Layout, times: LatencyTable) -> str:
    """What is left in floating point, and what that costs by the prediction, in a sentence."""
    kept = [name for name in groups.products if formats[name] == FLOAT]
    slower = times.predict(formats) / times.predict(dict.fromkeys(formats, INTEGER)) - 1
    named = ", ".join(kept[:3]) + (f" and {len(kept) - 3} more" if len(kept) > 3 else "")
    if not kept:
        return f"All {len(groups.products)} products are integers: the fastest choice by measured group times."
    share = f"{abs(slower):.0%} {'more' if slower > 0 else 'less'}"
    said = f"{len(kept)} of {len(groups.products)} products stay in floating point ({named})"
    return f"{said}; predicted to take {share} time than all integers."


def _tuning(context: Context, base: Candidate) -> Tuning:
    """Where the runtime computes natively in 16 bit, that is what is left in floating point runs in."""
    offered = registry.get(base.runtime).tunings(context.hardware)
    half = [t for t in offered if t.precision != "f32" and t.streams == 1 and t.fixed_shape == base.tuning.fixed_shape]
    return half[0] if half else base.tuning


def _sensitivity(context: Context, recipe: Recipe, runtime: str) -> tuple[Sensitivity, CalibrationStats]:
    return transformed_sensitivity(
        calibration(context),
        recipe,
        profile(target_of(runtime)),
        INTEGER,
        [batch.feeds for batch in calibration_batches(context)],
        kind=KINDS.get(context.metric.task, "values"),
    )


def _writer(context: Context, recipe: Recipe, runtime: str) -> Write:
    """Artifacts for timing: transforms change no kernel, so they are left out."""

    def write(formats: Mapping[str, str]) -> Path:
        kept = {name: form for name, form in formats.items() if form == FLOAT}
        plain = replace(recipe, name="timing", transforms=(), formats=kept)
        path = context.store.work / "timing" / f"{len(list((context.store.work / 'timing').glob('*.onnx')))}.onnx"
        return quantize(context.model.path, context.store.prepared, plain, path, evidence=calibration(context), target=target_of(runtime))

    return write
