"""Ask an exported artifact what the bundle's own artifact and the full-precision model were asked, and compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from lowbit.bundle.bundle import Bundle
from lowbit.bundle.manifest import policy_of
from lowbit.bundle.schema import DeltaEntry, FindingEntry, KernelsEntry, MetricEntry
from lowbit.errors import DataError, LowbitError, RunError
from lowbit.export.base import Artifact, Referenced, Target
from lowbit.export.neutral import Neutral
from lowbit.export.program import reference
from lowbit.export.program.program import Program
from lowbit.measure.compare import compare
from lowbit.measure.intervals import wilson
from lowbit.measure.metrics import Metric, metric_for
from lowbit.measure.outcomes import Outcomes
from lowbit.measure.tasks import main_output
from lowbit.pipeline.reporting import Reporter
from lowbit.pipeline.results import verdict
from lowbit.pipeline.targets.plausible import doubt
from lowbit.pipeline.targets.samples import Questions
from lowbit.quant.affine import quantize
from lowbit.types import Array, Comparison, Feeds


@dataclass
class Yardstick:
    """What everything is compared with, asked once for all kernel sets of an artifact.

    Attributes:
        feeds: Of every batch.
        labels: Likewise; None where there are none.
        ours: Answers of the bundle's own artifact.
        full: Outcomes of the full-precision model; None where answers are not judged.
        full_outputs: What the metric keeps of its answers, to compare others with.
        exact: Levels that the artifact's program has to give; where it is no program, what the file itself says step by step; else none.
        doubts: What people should know before they believe a comparison.
    """

    metric: Metric | None
    feeds: list[Feeds] = field(default_factory=list)
    labels: list[Array | None] = field(default_factory=list)
    ours: list[dict[str, Array]] = field(default_factory=list)
    full: Outcomes | None = None
    full_outputs: list[Mapping[str, Array]] = field(default_factory=list)
    exact: list[dict[str, Array]] = field(default_factory=list)
    doubts: list[FindingEntry] = field(default_factory=list)


def yardstick(bundle: Bundle, source: Neutral, target: Target, artifact: Artifact, asked: Questions) -> Yardstick:
    """Asks the bundle's own artifact, the artifact's reference where it has one, and full precision where there is data."""
    found = Yardstick(_metric(bundle, source, asked))
    columns: list[Mapping[str, Array]] = []
    try:
        exact = _exact(target, artifact)
    except RunError as error:
        exact = None
        found.doubts.append(FindingEntry(rule="its own reference", severity="warning", text=f"Not compared with it: {error.message}"))
    with (
        bundle.session(runtime="onnxruntime", candidate=source.candidate) as ours,
        bundle.session(candidate=bundle.manifest.baseline.id) as full,
    ):
        for feeds, labels in asked.batches():
            found.feeds.append(feeds)
            found.labels.append(labels)
            found.ours.append(ours.run(feeds))
            if exact is not None:
                found.exact.append(exact(feeds))
            if found.metric is not None:
                whole = full.run(feeds)
                columns.append(found.metric.observe(whole, labels, None))
                found.full_outputs.append(found.metric.kept(whole))
    if columns and found.metric is not None:
        found.full = Outcomes.join(columns)
        doubtful = doubt(found.metric, found.metric.value(found.full.columns), asked.n, bundle.manifest.baseline.metric)
        found.doubts += [doubtful] if doubtful is not None else []
    return found


def _exact(target: Target, artifact: Artifact) -> Callable[[Feeds], dict[str, Array]] | None:
    """What an artifact's answers are held against: its program's exact interpreter, or the file step by step; None where neither is."""
    if artifact.program is not None:
        return partial(reference.run_integers, artifact.program)
    return target.reference(artifact).run if isinstance(target, Referenced) else None


def _metric(bundle: Bundle, source: Neutral, asked: Questions) -> Metric | None:
    """The metric that the bundle was judged by; None where the samples are made up."""
    if asked.data is None:
        return None
    policy = bundle.manifest.policy
    return metric_for(policy.task, policy.metric, source.outputs, asked.data.labels, preprocess=asked.data.preprocess)[1]


def prove(
    bundle: Bundle, source: Neutral, target: Target, artifact: Artifact, kernels: str, asked: Questions, by: Yardstick, reporter: Reporter
) -> KernelsEntry:
    """Asks one kernel set. What cannot be loaded or fails is told in the entry, never raised."""
    try:
        session = target.open(artifact, kernels)
    except RunError as error:
        return _failed(kernels, asked, error)
    reporter.stage(f"{target.title}, {kernels}: {asked.n:,} samples", asked.n)
    answers: list[dict[str, Array]] = []
    done = 0
    try:
        for feeds in by.feeds:
            answers.append(session.run(feeds))
            done += len(next(iter(feeds.values())))
            reporter.advance(done)
    except (RunError, DataError) as error:
        return _failed(kernels, asked, error)
    finally:
        session.close()
    return _judged(bundle, source, artifact, kernels, asked, by, answers)


def _judged(
    bundle: Bundle,
    source: Neutral,
    artifact: Artifact,
    kernels: str,
    asked: Questions,
    by: Yardstick,
    answers: list[dict[str, Array]],
) -> KernelsEntry:
    main = main_output(source.outputs).name
    theirs, ours = (np.concatenate([np.asarray(each[main], np.float64) for each in parts]) for parts in (answers, by.ours))
    classes = bundle.manifest.policy.task in ("classification", "fidelity")
    unknown = math.nan
    share, low, high = agreement(theirs, ours) if classes else (unknown, unknown, unknown)
    same, step = identical(artifact.program, by.exact, answers) if artifact.program else (math.nan, None)
    exact = [each[main] for each in by.exact]
    comparison = _comparison(bundle, by, answers)
    return KernelsEntry(
        kernels=kernels,
        samples=asked.n,
        drawn=asked.data is None,
        agreement=share,
        agreement_low=low,
        agreement_high=high,
        agreement_with_ties=with_ties(theirs, ours) if classes else unknown,
        cosine=cosine(theirs, ours),
        identical=same,
        largest_step=step,
        agreement_exact=agreement(theirs, np.concatenate(exact))[0] if classes and exact else unknown,
        metric=MetricEntry.model_validate(comparison.metric) if comparison else None,
        delta=DeltaEntry.model_validate(comparison.delta) if comparison else None,
        verdict=verdict(comparison, policy_of(bundle.manifest.policy)) if comparison else None,  # type: ignore[arg-type]
    )


def _comparison(bundle: Bundle, by: Yardstick, answers: list[dict[str, Array]]) -> Comparison | None:
    """Against the full-precision model, as the search's own candidates were compared."""
    if by.metric is None or by.full is None:
        return None
    triples = zip(answers, by.labels, by.full_outputs, strict=True)
    ours = Outcomes.join([by.metric.observe(given, labels, full) for given, labels, full in triples])
    return compare(by.metric, by.full, ours, policy_of(bundle.manifest.policy))


def _failed(kernels: str, asked: Questions, error: LowbitError) -> KernelsEntry:
    unknown = math.nan
    return KernelsEntry(
        kernels=kernels,
        samples=0,
        drawn=asked.data is None,
        agreement=unknown,
        agreement_low=unknown,
        agreement_high=unknown,
        agreement_with_ties=unknown,
        cosine=unknown,
        identical=unknown,
        largest_step=None,
        metric=None,
        delta=None,
        verdict=None,
        error=error.message,
    )


def agreement(theirs: Array, ours: Array) -> tuple[float, float, float]:
    """Share of samples whose largest output is the same, with its 95 % interval (Wilson 1927).

    Args:
        theirs: Answers [N, classes].
        ours: The same shape.

    Returns:
        Share, low, high; NaN where a sample has not one row of classes.
    """
    if not _of_classes(theirs, ours):
        return math.nan, math.nan, math.nan
    same = (theirs.argmax(-1) == ours.argmax(-1)).reshape(-1)
    bounds = wilson(int(same.sum()), same.size)
    return float(same.mean()), float(bounds[0]), float(bounds[1])


def _of_classes(theirs: Array, ours: Array) -> bool:
    """Whether samples have one row of classes each: in maps and sequences the axis of classes is anywhere, and positions depend."""
    return theirs.shape == ours.shape and theirs.ndim == 2 and theirs.shape[1] > 1


def with_ties(theirs: Array, ours: Array) -> float:
    """Share of samples whose class in `ours` is among the highest outputs of `theirs` [N, ..., classes]: levels are often equal."""
    if not _of_classes(theirs, ours):
        return math.nan
    chosen = np.take_along_axis(theirs, ours.argmax(-1)[..., None], -1)[..., 0]
    return float((chosen == theirs.max(-1)).mean())


def cosine(theirs: Array, ours: Array) -> float:
    """Mean over samples of the cosine between two models' answers [N, ...]; NaN where their shapes differ.

    Of one number a sample only the sign would be left: there it is the correlation of all samples' numbers (0 where one is constant).
    """
    if theirs.shape != ours.shape:
        return math.nan
    if single := theirs.size == len(theirs) > 1:
        theirs, ours = theirs - theirs.mean(), ours - ours.mean()
    rows = 1 if single else len(theirs)
    a, b = theirs.reshape(rows, -1), ours.reshape(rows, -1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean(np.where(norms > 0, (a * b).sum(axis=1) / np.maximum(norms, 1e-300), (a == b).all(axis=1))))


def identical(program: Program, exact: Sequence[Mapping[str, Array]], answers: Sequence[Mapping[str, Array]]) -> tuple[float, int]:
    """How many output levels equal the exact interpreter's.

    Args:
        program: Whose outputs.
        exact: Output -> levels [N, ...] of every batch.
        answers: Output -> real numbers: levels times scale, which round back to the very same levels.

    Returns:
        Their share, and the largest difference in levels.
    """
    grids = {port.name: program.output_grid(port) for port in program.outputs}
    same = count = step = 0
    for wanted, given in zip(exact, answers, strict=True):
        for name, levels in wanted.items():
            apart = np.abs(levels.astype(np.int64) - quantize(given[name], grids[name]).astype(np.int64))
            same, count, step = same + int((apart == 0).sum()), count + apart.size, max(step, int(apart.max(initial=0)))
    return same / count, step
