"""Results of one model on one data set, kept per sample, and the paired comparison of two of them."""

from __future__ import annotations

import errno
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lowbit.bundle.manifest import write_atomic
from lowbit.data import open_data
from lowbit.data.splits import in_content_order
from lowbit.errors import DataError, Interrupted, UsageError
from lowbit.measure.compare import compare
from lowbit.measure.metrics import Metric, metric_for, of_outcomes
from lowbit.measure.outcomes import Outcomes
from lowbit.measure.slices import slice_rows
from lowbit.pipeline.artifacts import load_artifact, need_opens
from lowbit.pipeline.evaluate import evaluate
from lowbit.pipeline.judge import FAR, damaged_slices, guards, over_budget
from lowbit.pipeline.reporting import Reporter
from lowbit.pipeline.request import Data, Options, read_policy, read_preprocess
from lowbit.runtimes import registry
from lowbit.types import Array, Comparison, Policy, TensorInfo, Tuning

SCHEMA: Literal[1] = 1
SLICE = "slice:"
"""Start of a slice column's name among the columns of a samples file."""
OURS = frozenset({"finite", "width", "fingerprint"})
"""Columns that every samples file of ours has."""
NEEDS_REFERENCE = ("kl", "relative_error", "box_f1", "box_iou", "score_gap")
"""Metrics of the distance to another model: of one model alone they say nothing."""

MEANINGS = {
    "ship": "the whole interval lies within the budget of {budget}",
    "provisional": "the estimate lies within the budget of {budget}, but not a whole interval, or a slice loses more",
    "recover": "over the budget of {budget} by up to three times, or the false-positive rate rises too much",
    "refuse": "broken, or over the budget of {budget} by more than three times",
}


@dataclass(frozen=True)
class Scored:
    """One model's outcomes on one data set.

    Attributes:
        model: Base name of the file.
        model_sha256: Its digest.
        runtime: Where it ran.
        task: One of `lowbit.measure.metrics.TASKS`.
        metric: Its name.
        value: Its value; NaN where it is not defined on these samples.
        n: Number of samples.
        secondary: Other metrics by name.
        fingerprint: Of the data; two results compare only where it is the same.
        outputs: The model's.
        outcomes: Per-sample columns, in the order of the samples' content.
        slices: Slice column -> values [n], in the same order.
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
    slices: Mapping[str, Array] = field(default_factory=dict)


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
    engine = registry.get(runtime)
    need_opens(engine, Path(model))
    source = load_artifact(model)
    samples = open_data(
        data, source.inputs, read_preprocess(options.preprocess), target=options.target, slices=options.slices, limit=options.limit
    )
    if samples.labels is None and options.metric is None:
        raise DataError("The data has no labels, so there is nothing to score one model against.", "Add labels, or use `lowbit optimize`.")
    task, metric, others = metric_for(options.task, options.metric, source.outputs, samples.labels, preprocess=samples.preprocess)
    # Results of one data set pair up sample by sample, in whatever order its files are.
    samples = in_content_order(samples, metric.groups(samples.labels))
    session = engine.open(source.path, Tuning(precision=precision), None)
    try:
        reporter.stage(f"Scoring {len(samples):,} samples on {runtime}", len(samples))
        outcomes = evaluate(session, samples, metric, progress=reporter.advance)
    finally:
        session.close()
    value = metric.value(outcomes.columns)
    secondary = {
        other.name: other.value(outcomes.columns)
        for other in others
        if other.name not in NEEDS_REFERENCE and other.measurable(outcomes.columns)
    }
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
        samples.slices,
    )


def samples_file(path: Path) -> Path:
    """Where the per-sample columns of the results file `path` lie: `val.samples.npz` beside `val.json`."""
    return path.with_name(f"{path.stem}.samples.npz")


def check_target(path: Path) -> None:
    """Refuses to write results over anything that is not results already; cheap, so call it before the work.

    Raises:
        UsageError: `path`, or the samples file beside it, is something else.
    """
    for file, ours in ((path, _is_summary), (samples_file(path), _is_samples)):
        if file.exists() and not (file.is_file() and ours(file)):
            raise UsageError(f"'{file}' exists and was not written by `lowbit validate`.", "Give another --out, or remove it.")


def _is_summary(path: Path) -> bool:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(raw, dict) and {"schema", "model_sha256", "metric", "samples"} <= set(raw)


def _is_samples(path: Path) -> bool:
    try:
        return set(Outcomes.load(path).columns) >= OURS
    except DataError:
        return False


def save(scored: Scored, path: Path) -> None:
    """Writes the results JSON, and the per-sample columns beside it as `.samples.npz`; each whole or not at all.

    Raises:
        UsageError: one of them exists and is not results, or the folder cannot be written to.
        Interrupted: the disk is full.
    """
    check_target(path)
    columns = samples_file(path)
    sliced = {SLICE + name: values for name, values in scored.slices.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Outcomes({**scored.outcomes.columns, **sliced}).save(columns)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Interrupted(f"The disk is full: {columns.name} was not written.", "Free some space and run the same command.") from error
        raise UsageError(f"'{columns}' cannot be written: {error.strerror}.", "Give another --out.") from error
    written = {**summary(scored), "samples": columns.name, "samples_sha256": _digest(columns)}
    write_atomic(path, json.dumps(written, indent=1, allow_nan=False) + "\n")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def summary(scored: Scored) -> dict[str, Any]:
    """Everything but the samples, as strict JSON values: a metric that is not defined on these samples is null."""
    found: dict[str, Any] = plain(_summary(scored))
    return found


def plain(value: Any) -> Any:
    """The same in values that JSON has: NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(scored: Scored) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "model": scored.model,
        "model_sha256": scored.model_sha256,
        "runtime": scored.runtime,
        "task": scored.task,
        "metric": {"name": scored.metric, "value": scored.value, "n": scored.n},
        "secondary": scored.secondary,
        "slices": [{"name": name, "value": value, "n": n} for name, value, n in slice_values(scored)],
        "data": {"sha256": scored.fingerprint},
        "outputs": [{"name": info.name, "shape": list(info.shape), "dtype": info.dtype} for info in scored.outputs],
    }


def slice_values(scored: Scored) -> list[tuple[str, float, int]]:
    """Name, value of the metric and number of samples of every slice; none where the metric is not about single samples."""
    if not scored.slices or not (metric := metric_of(scored)).statistic.row_wise:
        return []
    rows = slice_rows(scored.outcomes.columns, scored.slices, hardest=False)
    return [(name, metric.value(scored.outcomes.columns, chosen), len(chosen)) for name, chosen in rows.items()]


def load(path: Path) -> Scored:
    """Reads what `save` wrote.

    Raises:
        DataError: no such file, not results of `lowbit validate`, or samples that belong to other results.
    """
    if not path.is_file():
        raise DataError(f"There is no results file '{path}'.", "Make one with `lowbit validate MODEL --data DATA --out FILE.json`.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["schema"] != SCHEMA:
            raise DataError(f"'{path.name}' has results schema {raw['schema']}; this version reads {SCHEMA}.")
        outputs = tuple(TensorInfo(info["name"], tuple(info["shape"]), info["dtype"]) for info in raw["outputs"])
        outcomes, slices = _read_samples(path.with_name(raw["samples"]), raw["samples_sha256"])
        return Scored(
            raw["model"],
            raw["model_sha256"],
            raw["runtime"],
            raw["task"],
            raw["metric"]["name"],
            _number(raw["metric"]["value"]),
            raw["metric"]["n"],
            {name: _number(value) for name, value in raw["secondary"].items()},
            raw["data"]["sha256"],
            outputs,
            outcomes,
            slices,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"'{path.name}' is not a results file of `lowbit validate`: {error!r}.") from error


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _read_samples(path: Path, digest: str) -> tuple[Outcomes, dict[str, Array]]:
    """Outcomes and slice columns.

    Raises:
        DataError: missing, damaged, or replaced since the results were written.
    """
    columns = Outcomes.load(path).columns
    if _digest(path) != digest:
        raise DataError(f"'{path.name}' belongs to other results.", "Run `lowbit validate` again.")
    slices = {name.removeprefix(SLICE): values for name, values in columns.items() if name.startswith(SLICE)}
    return Outcomes({name: values for name, values in columns.items() if not name.startswith(SLICE)}), slices


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
    slices = {**candidate.slices, **baseline.slices}
    found = compare(metric, baseline.outcomes, candidate.outcomes, policy, slices=slices)
    return found, policy, verdict(found, policy)


def comparison_json(comparison: Comparison, policy: Policy, given: str) -> dict[str, Any]:
    """What `lowbit compare --output json` prints, as strict JSON values."""
    found: dict[str, Any] = plain(
        {"schema": SCHEMA, "verdict": given, "policy": asdict(policy), "comparison": asdict(comparison)},
    )
    return found


def metric_of(scored: Scored) -> Metric:
    return of_outcomes(scored.task, scored.metric, scored.outputs, scored.outcomes.columns)


def verdict(comparison: Comparison, policy: Policy) -> str:
    """The accuracy half of the gate (docs/concepts/decision.md): what `judge` says of a confirmed candidate that is fast. Pure."""
    budget, delta = policy.max_drop.value, comparison.delta
    if comparison.broken is not None or delta.value > FAR * budget:
        return "refuse"
    if over_budget(comparison, policy):
        return "recover"
    sure = delta.ci_high <= budget and all(guard.ci_high <= limit for guard, limit in guards(comparison, policy).values())
    return "ship" if sure and not damaged_slices(comparison, policy) else "provisional"
