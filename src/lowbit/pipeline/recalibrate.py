"""A challenger from recent inputs: the static INT8 of a bundle with its ranges found anew on what the model is asked today.

Three ways to judge it, the best there is: the original data; labels that came later; else agreement with full precision on recent samples
that were kept apart. The last says nothing about whether full precision is still right.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from lowbit.bundle.bundle import Bundle
from lowbit.data.content import hash_blocks
from lowbit.data.dataset import Dataset
from lowbit.data.open import open_data
from lowbit.data.preprocess import Preprocess
from lowbit.data.ready import ReadyDataset, ready
from lowbit.errors import DataError, UsageError
from lowbit.measure.paired import binary_delta
from lowbit.measure.tasks import main_output
from lowbit.monitoring.samples import Sample
from lowbit.monitoring.store import Monitoring
from lowbit.pipeline.again import source_of
from lowbit.pipeline.optimize import Result, carry_out
from lowbit.pipeline.reporting import Reporter
from lowbit.pipeline.request import Data, Options, read_request
from lowbit.types import Array, Delta, Feeds, TensorInfo

JudgedBy = Literal["original data", "labels of recent samples", "agreement with full precision on recent samples"]

LEAST = 64
"""Different recent samples, below which their ranges are worth less than the old ones."""
MOST = 512
"""Samples that calibrate: more change no range."""
HELD = 5
"""One sample of so many is kept apart."""
LABELLED = 200
"""Labelled samples from which on they judge: with fewer an interval of accuracy holds everything."""
BATCH = 64
STATIC = ("int8-static", "int8-fitted", "int8-nncf", "int8-smoothed")
"""Recipes whose ranges come from calibration, and nothing from training."""


@dataclass(frozen=True)
class Agreement:
    """How often two artifacts answer as full precision does, on the same recent samples that calibrated neither.

    Attributes:
        n: Samples.
        before: Share of what ships today.
        after: Share of the challenger.
        delta: Paired; positive: the challenger agrees less often.
    """

    n: int
    before: float
    after: float
    delta: Delta


@dataclass(frozen=True)
class Recalibrated:
    """A challenger and what speaks for it.

    Attributes:
        result: Its decision and bundle.
        judged_by: What the decision rests on.
        calibrated_on: Recent samples.
        left_out: How many were not used, by why.
        agreement: On samples that were kept apart; None where the outputs are no classes, or where no new ranges were chosen.
    """

    result: Result
    judged_by: JudgedBy
    calibrated_on: int
    left_out: Mapping[str, int]
    agreement: Agreement | None

    @property
    def challenger(self) -> bool:
        """Whether new ranges were chosen; else the decision keeps full precision."""
        return self.result.decision.verdict != "keep"

    def to_json(self) -> dict[str, Any]:
        """For `--output json`."""
        decision = self.result.decision
        return {
            "bundle": str(self.result.bundle.folder),
            "verdict": decision.verdict,
            "chosen": decision.chosen,
            "reasons": list(decision.reasons),
            "judged_by": self.judged_by,
            "calibrated_on": self.calibrated_on,
            "left_out": dict(self.left_out),
            "challenger": self.challenger,
            "agreement": asdict(self.agreement) if self.agreement else None,
        }


@dataclass(frozen=True)
class Parts:
    """Recent samples by what they are for, positions in all of them.

    Attributes:
        calibrate: Ranges are found on these.
        judge: The decision rests on these; none where the original data do.
        apart: Today's and the challenger's answers are compared on these.
    """

    calibrate: Array
    judge: Array
    apart: Array


@dataclass(frozen=True)
class Plan:
    """What a recalibration does, worked out before anything runs.

    Attributes:
        today: What serves.
        model: Name under which it is served.
        recipe: Whose ranges are found anew.
        recent: The different recent samples.
        parts: What each of them is for.
        judged_by: What the decision rests on.
        judge: Those data.
        left_out: Samples that are not used, by why.
    """

    today: Bundle
    model: str
    recipe: str
    recent: ReadyDataset
    parts: Parts
    judged_by: JudgedBy
    judge: Dataset
    left_out: Mapping[str, int]

    @property
    def calibration(self) -> Dataset:
        """The recent samples that ranges are found on."""
        return self.recent.subset(self.parts.calibrate)


def planned(
    bundle: str | Path, state: Path, *, model: str | None = None, data: Data | None = None, target: str | None = None, since: float = 0.0
) -> Plan:
    """Reads the samples and divides them; the arguments and errors are those of `recalibrate`."""
    today = Bundle.load(bundle)
    recipe = recipe_of(today)
    with Monitoring(state, create=False) as monitoring:
        samples, missing = _fitting(_kept(monitoring, model, since), today)
        labels = monitoring.labels.of([sample.request_id for sample in samples])
    name = model or samples[0].model
    recent, numbers = _dataset(samples, labels, today, name)
    original = None if data is None else open_data(data, today_inputs(today), today.preprocess, target=target)
    seen = np.zeros(len(recent), bool) if original is None else np.isin(recent.hashes, _prepared_hashes(original))
    parts = divide(recent.hashes, numbers >= 0, seen, judged=original is not None)
    judged_by: JudgedBy = "original data"
    if original is None:
        judged_by = "labels of recent samples" if (numbers >= 0).sum() >= LABELLED else "agreement with full precision on recent samples"
    judge = original if original is not None else _judge(recent, numbers, parts, judged_by)
    left_out = Counter(missing) + Counter({"equal to samples that judge": int(seen.sum())})
    return Plan(today, name, recipe, recent, parts, judged_by, judge, left_out)


def recalibrate(
    bundle: str | Path,
    state: Path,
    *,
    out: Path,
    model: str | None = None,
    data: Data | None = None,
    target: str | None = None,
    since: float = 0.0,
    time_limit_s: float | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
    command: str | None = None,
) -> Recalibrated:
    """Finds the ranges of a bundle's static INT8 anew on recent inputs, and decides again.

    Args:
        bundle: What serves today.
        state: The server's state folder, with the inputs that `lowbit serve --sample-inputs` kept.
        out: Folder of the challenger.
        model: Name under which it is served; needed where the folder has samples of several models.
        data: The original data, to judge by.
        target: Their label's column.
        since: Only samples that came after this, seconds since 1970.
        time_limit_s: Decide with what is found by then.
        force: Replace what is in `out`.
        reporter: Who is told about progress.
        command: For the manifest.

    Raises:
        UsageError: no bundle, no samples, or nothing in the bundle comes from calibration.
        DataError: too few samples, or they do not fit the model.
    """
    started, reporter = time.monotonic(), reporter or Reporter()
    plan = planned(bundle, state, model=model, data=data, target=target, since=since)
    today, calibrated_on = plan.today, len(plan.parts.calibrate)
    reporter.note(f"{calibrated_on:,} recent samples calibrate; judged by {plan.judged_by}.")
    with TemporaryDirectory(prefix="lowbit-") as scratch:
        source = source_of(today.folder, today.manifest, Path(scratch))
        request = read_request(source, plan.judge, options_of(plan, time_limit_s=time_limit_s, force=force))
        result = carry_out(request, out, reporter, command or f"lowbit recalibrate {today.folder.name}", started)
    compared = today.manifest.policy.task == "classification" and result.bundle.manifest.chosen.recipe == plan.recipe
    agreement = _agreement(today, result.bundle, plan.recent.subset(plan.parts.apart)) if compared else None
    return Recalibrated(result, plan.judged_by, calibrated_on, plan.left_out, agreement)


def options_of(plan: Plan, *, time_limit_s: float | None = None, force: bool = False) -> Options:
    """The bundle's policy again; without labels it can only be about fidelity."""
    policy = plan.today.manifest.policy
    right = plan.judged_by != "agreement with full precision on recent samples"
    return Options(
        max_drop=policy.max_drop,
        task=policy.task if right else "fidelity",
        metric=policy.metric if right else None,
        calibration=plan.calibration,
        preprocess=plan.today.preprocess,
        runtimes=tuple(dict.fromkeys(("onnxruntime", plan.today.manifest.chosen.runtime))),
        recipes=(plan.recipe,),
        batch=tuple(policy.batch),
        objective=policy.objective,
        confidence=policy.confidence,
        max_latency_ms=policy.max_latency_ms,
        threshold=policy.threshold if right else None,
        max_fpr_rise=f"{100 * policy.max_fpr_rise:g}pp" if right and policy.max_fpr_rise is not None else None,
        safety_critical=policy.safety_critical,
        time_limit_s=time_limit_s,
        qat="never",
        force=force,
    )


def recipe_of(bundle: Bundle) -> str:
    """The recipe of what ships, whose ranges are found anew.

    Raises:
        UsageError: nothing in it comes from calibration alone.
    """
    chosen = bundle.manifest.chosen
    if not chosen.recipe.startswith(STATIC):
        raise UsageError(
            f"'{chosen.id}' has no ranges that calibration alone has found, so there is nothing to find anew.",
            f"Recalibration is for {', '.join(STATIC)}; for others run `lowbit optimize` on newer data.",
        )
    return chosen.recipe


def divide(hashes: Array, labelled: Array, seen: Array, *, judged: bool) -> Parts:
    """What each recent sample is for. Pure; the same samples are always divided alike.

    Args:
        hashes: Content of the samples, uint64 [n], all different.
        labelled: Whether each has a label, [n].
        seen: Whether each is among the original data, [n]: those may not calibrate.
        judged: Whether the original data judge.

    Raises:
        DataError: there are too few.
    """
    order = np.argsort(hashes, kind="stable")
    order = order[~seen[order]]
    if len(order) < LEAST:
        raise DataError(
            f"There are {len(order)} different recent samples; at least {LEAST} are needed.",
            "Let `lowbit serve --sample-inputs` run for longer.",
        )
    none = np.empty(0, np.int64)
    if judged:
        apart = order[::HELD]
        return Parts(_without(order, apart)[:MOST], none, apart)
    if labelled.sum() >= LABELLED:
        judge = order[labelled[order]]
        rest = _without(order, judge)
        if len(rest) < LEAST:  # all have labels: some of them calibrate
            taken = judge[::HELD] if len(judge) >= HELD * LEAST else judge[: len(judge) // 2]
            judge, rest = _without(judge, taken), np.concatenate([rest, taken])
        return Parts(rest[:MOST], judge, judge)
    judge = order[::2]
    return Parts(order[1::2][:MOST], judge, judge)


def _without(order: Array, taken: Array) -> Array:
    """What is left, in the order that it had: sorted by position it would be the oldest samples that calibrate."""
    return order[~np.isin(order, taken)]


def today_inputs(bundle: Bundle) -> tuple[TensorInfo, ...]:
    """What the model must be fed."""
    return tuple(TensorInfo(entry.name, tuple(entry.shape), entry.dtype) for entry in bundle.manifest.model.inputs)


def _kept(monitoring: Monitoring, model: str | None, since: float) -> list[Sample]:
    """The samples of one model.

    Raises:
        UsageError: there are none, or of several models.
    """
    counts = monitoring.samples.count()
    if not counts:
        raise UsageError("No inputs were kept.", "Turn sampling on: lowbit serve --state FOLDER --sample-inputs 0.05.")
    if model is None and len(counts) > 1:
        raise UsageError(f"Inputs of several models were kept: {', '.join(counts)}.", "Say of which: --model NAME.")
    if model is not None and model not in counts:
        raise UsageError(f"No inputs of '{model}' were kept. Kept: {', '.join(counts)}.")
    found = monitoring.samples.listed(model, since=since)
    if not found:
        raise UsageError("No inputs were kept in that time.", "Go back further: --since.")
    return found


def _fitting(samples: Sequence[Sample], bundle: Bundle) -> tuple[list[Sample], dict[str, int]]:
    """Those with all inputs, of the most common shape.

    Raises:
        UsageError: an input is dropped before anything is written.
    """
    names = [entry.name for entry in bundle.manifest.model.inputs]
    if lacking := [name for name in names if all(name not in sample.inputs for sample in samples)]:
        raise UsageError(
            f"The kept samples lack input '{lacking[0]}': it is dropped before it is written.",
            "A model is calibrated on all of its inputs.",
        )
    whole = [sample for sample in samples if all(name in sample.inputs for name in names)]
    shapes = Counter(tuple(sample.inputs[name].shape for name in names) for sample in whole)
    common = shapes.most_common(1)[0][0]
    kept = [sample for sample in whole if tuple(sample.inputs[name].shape for name in names) == common]
    return kept, {"lack an input": len(samples) - len(whole), "of another shape": len(whole) - len(kept)}


def _dataset(samples: Sequence[Sample], labels: Mapping[str, Any], bundle: Bundle, model: str) -> tuple[ReadyDataset, Array]:
    """Different samples as a data set, and the class of each, -1 where there is no label."""
    inputs = today_inputs(bundle)
    arrays = {info.name: np.stack([sample.inputs[info.name] for sample in samples]) for info in inputs}
    found = ready(f"recent inputs of {model}", arrays, inputs, bundle.preprocess or Preprocess(kind="array", scale=1.0))
    classes = [labels.get(sample.request_id) for sample in samples]
    numbers = np.array([value if isinstance(value, int) and value >= 0 else -1 for value in classes], np.int64)
    _, first = np.unique(found.hashes, return_index=True)
    kept = np.sort(first)
    different = found.subset(kept)
    assert isinstance(different, ReadyDataset), type(different)
    return different, numbers[found.rows][kept]


def _judge(recent: ReadyDataset, numbers: Array, parts: Parts, judged_by: JudgedBy) -> Dataset:
    """The recent samples that the decision rests on, with their labels where those count."""
    chosen = recent.subset(parts.judge)
    if judged_by != "labels of recent samples":
        return chosen
    arrays = {name: np.asarray(values[chosen.rows]) for name, values in recent.source.arrays.items()}  # type: ignore[attr-defined]
    return ready(recent.name, arrays, recent.inputs, recent.preprocess, numbers[parts.judge])


def _prepared_hashes(data: Dataset) -> Array:
    """Content of the samples after their preprocessing: what a server is fed with them."""
    found = [hash_blocks(batch.feeds, len(batch.rows))[0] for batch in data.batches(BATCH)]
    return np.concatenate(found).astype(np.uint64)


def _agreement(today: Bundle, challenger: Bundle, apart: Dataset) -> Agreement:
    """Both against full precision on the same samples."""
    full = _answers(today, today.manifest.baseline.id, apart)
    before, after = _answers(today, None, apart) == full, _answers(challenger, None, apart) == full
    worse, better = int((before & ~after).sum()), int((after & ~before).sum())
    delta = binary_delta(worse, better, len(full), 0.05)
    return Agreement(len(full), float(before.mean()), float(after.mean()), delta)


def _answers(bundle: Bundle, candidate: str | None, data: Dataset) -> Array:
    """The class that a candidate gives each sample, [n]."""
    first = today_inputs(bundle)[0].shape[0]
    size = first if isinstance(first, int) else BATCH
    found = []
    with bundle.session(candidate=candidate) as session:
        output = main_output(session.outputs).name
        for batch in data.batches(size):
            raw = session.run(_filled(batch.feeds, size))[output]
            rows = raw.reshape(len(raw), -1)[: len(batch.rows)]
            found.append(rows[:, 0] > 0 if rows.shape[1] == 1 else rows.argmax(axis=1))
    return np.concatenate(found)


def _filled(feeds: Feeds, size: int) -> Feeds:
    """Up to the model's own batch size, with the last row again."""
    return {name: np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)]) for name, rows in feeds.items()}
