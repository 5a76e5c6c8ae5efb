"""Results of one model on one data set, kept per sample, and the paired comparison of two of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lowbit.bundle.manifest import write_atomic
from lowbit.data import open_data
from lowbit.errors import DataError, UsageError
from lowbit.graph.load import load_model
from lowbit.measure.compare import compare
from lowbit.measure.metrics import Metric, metric_for
from lowbit.measure.outcomes import Outcomes
from lowbit.pipeline.evaluate import evaluate
from lowbit.pipeline.judge import FAR, damaged_slices, guards, over_budget
from lowbit.pipeline.reporting import Reporter
from lowbit.pipeline.request import Data, Options, read_policy, read_preprocess
from lowbit.runtimes import registry
from lowbit.types import Comparison, Policy, TensorInfo, Tuning

SCHEMA: Literal[1] = 1
MEANINGS = {
    "ship": "the whole interval lies within the budget of {budget}",
    "provisional": "the estimate lies within the budget of {budget}, but not the whole interval, or a slice loses more",
    "recover": "over the budget of {budget} by up to three times",
    "refuse": "broken, or over the budget of {budget} by more than three times",
}


@dataclass(frozen=True)
class Scored:
    """One model's outcomes on one data set.

    Attributes:
        model: Base name of the file.
        runtime: Where it ran.
        metric: Name, value and number of samples.
        secondary: Other metrics.
        fingerprint: Of the data; two results compare only where it is the same.
        outcomes: Per-sample columns.
    """

    model: str
    model_sha256: str
    runtime: str
    task: str
    metric: str
    value: float
    n: int
    secondary: dict[str, float]
    fingerprint: str
    outputs: tuple[TensorInfo, ...]
    outcomes: Outcomes


def validate(
    model: str | Path,
    data: Data,
    *,
    runtime: str = "onnxruntime",
    precision: Literal["f32", "bf16", "f16"] = "f32",
    options: Options | None = None,
    reporter: Reporter | None = None,
) -> Scored:
    """Scores a model on a data set.

    Raises:
        UsageError, ModelError, DataError: what the user can mend.
    """
    options, reporter = options or Options(), reporter or Reporter()
    source = load_model(model)
    engine = registry.get(runtime)
    samples = open_data(
        data, source.inputs, read_preprocess(options.preprocess), target=options.target, slices=options.slices, limit=options.limit
    )
    if samples.labels is None and options.metric is None:
        raise DataError("The data has no labels, so there is nothing to score one model against.", "Add labels, or use `lowbit optimize`.")
    task, metric, others = metric_for(options.task, options.metric, source.outputs, samples.labels)
    session = engine.open(source.path, Tuning(precision=precision), None)
    try:
        reporter.stage(f"Scoring {len(samples):,} samples on {runtime}", len(samples))
        outcomes = evaluate(session, samples, metric, progress=reporter.advance)
    finally:
        session.close()
    value = metric.value(outcomes.columns)
    secondary = {other.name: other.value(outcomes.columns) for other in others if other.measurable(outcomes.columns)}
    return Scored(
        source.path.name,
        source.sha256,
        runtime,
        task,
        metric.name,
        value,
        outcomes.n,
        secondary,
        samples.fingerprint,
        source.outputs,
        outcomes,
    )


def save(scored: Scored, path: Path) -> None:
    """Writes the results JSON, and the per-sample columns beside it as .npz."""
    columns = path.with_suffix(".npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    scored.outcomes.save(columns)
    write_atomic(path, json.dumps({**summary(scored), "samples": columns.name}, indent=1) + "\n")


def summary(scored: Scored) -> dict[str, Any]:
    """Everything but the samples, as JSON values."""
    return {
        "schema": SCHEMA,
        "model": scored.model,
        "model_sha256": scored.model_sha256,
        "runtime": scored.runtime,
        "task": scored.task,
        "metric": {"name": scored.metric, "value": scored.value, "n": scored.n},
        "secondary": scored.secondary,
        "data": {"sha256": scored.fingerprint},
        "outputs": [{"name": info.name, "shape": list(info.shape), "dtype": info.dtype} for info in scored.outputs],
    }


def load(path: Path) -> Scored:
    """Reads what `save` wrote.

    Raises:
        DataError: no such file, or not results of `lowbit validate`.
    """
    if not path.is_file():
        raise DataError(f"There is no results file '{path}'.", "Make one with `lowbit validate MODEL --data DATA --out FILE.json`.")
    try:
        raw = json.loads(path.read_text())
        if raw["schema"] != SCHEMA:
            raise DataError(f"'{path.name}' has results schema {raw['schema']}; this version reads {SCHEMA}.")
        outputs = tuple(TensorInfo(info["name"], tuple(info["shape"]), info["dtype"]) for info in raw["outputs"])
        return Scored(
            raw["model"],
            raw["model_sha256"],
            raw["runtime"],
            raw["task"],
            raw["metric"]["name"],
            raw["metric"]["value"],
            raw["metric"]["n"],
            raw["secondary"],
            raw["data"]["sha256"],
            outputs,
            Outcomes.load(path.parent / raw["samples"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{path.name}' is not a results file of `lowbit validate`: {error!r}.") from error


def compare_results(baseline: Scored, candidate: Scored, options: Options) -> tuple[Comparison, Policy, str]:
    """Compares two results sample by sample.

    Returns:
        The comparison, the policy, and a verdict: "ship", "provisional", "recover" or "refuse". Speed is not part of it.

    Raises:
        UsageError: the two were made with other data or another metric, or the budget has no meaning for the metric.
    """
    if baseline.fingerprint != candidate.fingerprint or baseline.n != candidate.n:
        raise UsageError(
            "The two results were made on different data, so their samples cannot be paired.", "Validate both models on the same data."
        )
    if baseline.metric != candidate.metric:
        raise UsageError(
            f"The two results use different metrics: {baseline.metric} and {candidate.metric}.", "Validate both with one --metric."
        )
    metric = metric_of(baseline)
    policy = read_policy(options, baseline.task, metric, 0)
    found = compare(metric, baseline.outcomes, candidate.outcomes, policy)
    return found, policy, verdict(found, policy)


def metric_of(scored: Scored) -> Metric:
    labels = scored.outcomes.columns.get("label")
    return metric_for(scored.task, scored.metric, scored.outputs, labels)[1]


def verdict(comparison: Comparison, policy: Policy) -> str:
    """The accuracy half of the gate (docs/concepts/decision.md). Pure."""
    budget, delta = policy.max_drop.value, comparison.delta
    if comparison.broken is not None or delta.value > FAR * budget:
        return "refuse"
    if over_budget(comparison, policy):
        return "recover"
    sure = delta.ci_high <= budget and all(guard.ci_high <= limit for guard, limit in guards(comparison, policy).values())
    return "ship" if sure and not damaged_slices(comparison, policy) else "provisional"
