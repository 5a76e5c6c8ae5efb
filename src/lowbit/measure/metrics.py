"""Metrics: what "right" means for a task, from the model's outputs, the labels and the reference model."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowbit.data.preprocess import Preprocess
from lowbit.data.truth import check_truth, is_packed
from lowbit.errors import DataError, UsageError, unknown
from lowbit.measure.average_precision import AveragePrecision
from lowbit.measure.detection import BoxObserver, check_boxes, class_count, need_pycocotools
from lowbit.measure.observe import CustomObserver, Observed, Outputs, VectorObserver
from lowbit.measure.sequences import sequence_observer
from lowbit.measure.statistics import R2, MacroF1, Mean, Quotient, RelativeError, RocAuc, RootMean, Spearman, Statistic, pair_numbers
from lowbit.measure.tasks import Observer, check_classes, fidelity_metric, main_output, observer_for, task_of, width_of
from lowbit.types import Array, Budget, Policy, TensorInfo

TASKS = ("classification", "tokens", "span", "detection", "regression", "embedding", "fidelity", "custom")
SEQUENCES = ("tokens", "span")
"""Tasks whose labels are about single tokens."""


@dataclass(frozen=True)
class Metric:
    """One metric: how a batch is observed, and how the columns become a number.

    Attributes:
        name: As the user writes it.
        task: One of TASKS.
        higher_is_better: False for errors.
        bounded: True when values lie in 0-1, so that a budget in points (`1pp`) has a meaning.
        binary: True for the mean of a 0/1 column, which gets Tango's interval.
        statistic: Number from columns.
        observer: Columns from a batch; the same for all metrics of a task.
    """

    name: str
    task: str
    higher_is_better: bool
    bounded: bool
    binary: bool
    statistic: Statistic
    observer: Observer

    def observe(self, outputs: Outputs, labels: Array | None, reference: Outputs | None) -> Observed:
        """Per-sample columns of one batch.

        Args:
            outputs: Output name -> [N, ...] of the model that is judged.
            labels: [N] or [N, ...], None where there are none.
            reference: The baseline's outputs on the same samples; None when these outputs are the baseline's own.

        Raises:
            DataError: labels that do not fit the outputs.
            RunError: an output is missing or has no row per sample.
            UsageError: the user's own metric failed.
        """
        return self.observer(outputs, labels, reference)

    def kept(self, outputs: Outputs) -> Outputs:
        """What has to be kept of the baseline's outputs, for other models to be compared with: all, or the boxes of a detector."""
        return self.observer.kept(outputs) if isinstance(self.observer, BoxObserver) else outputs

    def value(self, columns: Mapping[str, Array], rows: Array | None = None) -> float:
        """The metric over all samples, or over some rows (positions or mask); NaN where it is not defined there."""
        chosen = columns if rows is None else {name: values[rows] for name, values in columns.items()}
        return self.statistic.value(self.statistic.units(chosen))

    def measurable(self, columns: Mapping[str, Array]) -> bool:
        """True when the columns hold what this metric needs."""
        if isinstance(self.statistic, Spearman):
            return "label" in columns and ("score" in columns or ("vector" in columns and _in_pairs(columns)))
        return all(name in columns for name in self.statistic.needs)

    def groups(self, labels: Array | None) -> Array | None:
        """Which samples must stay together when the data is split: the number of every sample's pair, int64 [N].

        Args:
            labels: All labels of the data set; None where there are none.

        Returns:
            None where every sample stands for itself.

        Raises:
            DataError: the metric is about pairs, and the samples do not come in pairs (see `pair_numbers`).
        """
        twins = isinstance(self.observer, VectorObserver) and self.observer.second is not None
        if self.task != "embedding" or labels is None or twins:
            return None
        try:
            return pair_numbers(labels)
        except DataError:
            if isinstance(self.statistic, Spearman):
                raise
            return None  # the metric looks at single samples; the rank correlation is not shown beside it


@dataclass(frozen=True)
class _Entry:
    tasks: tuple[str, ...]
    statistic: Statistic
    higher_is_better: bool = True
    bounded: bool = True
    binary: bool = False
    primary: bool = True


_CATALOGUE: dict[str, _Entry] = {
    "top1": _Entry(("classification",), Mean(("hit",)), binary=True),
    "top5": _Entry(("classification",), Mean(("hit5",)), binary=True),
    "macro_f1": _Entry(("classification",), MacroF1()),
    "roc_auc": _Entry(("classification",), RocAuc()),
    "token_f1": _Entry(("tokens",), Quotient(("f1_above", "f1_below"))),
    "token_accuracy": _Entry(("tokens",), Quotient(("token_right", "tokens"))),
    "exact_match": _Entry(("span",), Mean(("exact",)), binary=True),
    "span_f1": _Entry(("span",), Mean(("span_f1",))),
    "mAP": _Entry(("detection",), AveragePrecision()),
    "AP50": _Entry(("detection",), AveragePrecision((0,))),
    "box_f1": _Entry(("detection",), Quotient(("matched", "counted"))),
    "rmse": _Entry(("regression",), RootMean(("error2",)), higher_is_better=False, bounded=False),
    "mae": _Entry(("regression",), Mean(("error1",)), higher_is_better=False, bounded=False),
    "r2": _Entry(("regression",), R2(), bounded=False),
    "cosine": _Entry(("embedding", "fidelity"), Mean(("cosine",))),
    "spearman": _Entry(("embedding",), Spearman()),
    "agreement": _Entry(("fidelity",), Mean(("agree",)), binary=True),
    "fidelity": _Entry(("fidelity",), RelativeError(one_minus=True)),
    "box_iou": _Entry(("detection",), Quotient(("overlap", "matched")), primary=False),
    "score_gap": _Entry(("detection",), Quotient(("score_gap", "matched")), higher_is_better=False, primary=False),
    # These two are 0 for the baseline by definition, so no budget can be relative to it: shown, never decided on.
    "relative_error": _Entry(("fidelity", "regression"), RelativeError(), higher_is_better=False, bounded=False, primary=False),
    "kl": _Entry(("classification", "fidelity"), Mean(("kl",)), higher_is_better=False, bounded=False, primary=False),
}
_ALIASES = {
    "map50": "AP50",
    "map50_95": "mAP",
    "accuracy": "top1",
    "acc": "top1",
    "top_1": "top1",
    "top_5": "top5",
    "f1": "macro_f1",
    "auc": "roc_auc",
}
_DEFAULT = {
    "classification": "top1",
    "tokens": "token_f1",
    "span": "exact_match",
    "detection": "mAP",
    "regression": "rmse",
    "embedding": "cosine",
}


def metric_for(
    task: str | None,
    name: str | None,
    outputs: Sequence[TensorInfo],
    labels: Array | None,
    sample: Outputs | None = None,
    preprocess: Preprocess | None = None,
) -> tuple[str, Metric, tuple[Metric, ...]]:
    """The task, its metric, and other metrics worth showing.

    Without a task: a preprocessing with `boxes` means detection, integer labels are classes, other labels of the output's
    own shape are regression, similarities for a model with vectors are an embedding's, and no labels at all means fidelity
    to the baseline.

    Args:
        task: One of TASKS, None to find out.
        name: Name of a metric, or `module:callable` with (outputs, labels) -> scores [N]; None for the task's default.
        outputs: The model's outputs.
        labels: All labels [N] or [N, ...], None where there are none.
        sample: Outputs of one batch of the baseline, from which logits are told from probabilities once and for all.
        preprocess: Of the data, settled; detection needs its `boxes`.

    Raises:
        UsageError: an unknown task or metric, or a metric that does not belong to the task.
        DataError: labels are missing, out of range, all of one class, or not in pairs where the metric is about pairs.
    """
    if task is not None and task not in TASKS:
        raise unknown("task", task, TASKS)
    if name is not None and ":" in name:
        return "custom", *_custom(name, outputs, labels, sample)
    name = None if name is None else _canonical(name)
    if task == "custom":
        raise UsageError("The task 'custom' needs a metric of yours.", "Give --metric module:callable.")
    task = task or _task(name, outputs, labels, preprocess)
    if task == "detection":
        return _detection(name, outputs, labels, preprocess)
    if task in SEQUENCES:
        return _sequence(task, name, outputs, labels, preprocess)
    if is_packed(labels):
        raise DataError(f"The labels are boxes; the task '{task}' cannot use them.", "Give --task detection, or other labels.")
    name = name or _DEFAULT.get(task) or fidelity_metric(outputs)
    if task not in _CATALOGUE[name].tasks:
        raise unknown(f"metric for {task}", name, _names(task))
    if not _CATALOGUE[name].primary:
        raise UsageError(f"No budget can be about '{name}': the baseline's own value is 0.", "Use agreement, cosine or fidelity.")
    if labels is None and (task not in ("fidelity", "embedding") or name == "spearman"):
        raise DataError(f"The metric '{name}' needs labels; the data has none.", "Give labels, or no metric to compare with FP32.")
    if task == "classification":
        assert labels is not None
        check_classes(outputs, labels, name)
    metric = _metric(name, task, observer_for(task, name, outputs, labels, sample))
    metric.groups(labels)  # what does not come in pairs is refused now, not in the middle of the work
    return task, metric, tuple(other for other in companions(metric) if _fits(other.name, outputs, labels))


def _detection(
    name: str | None, outputs: Sequence[TensorInfo], labels: Array | None, preprocess: Preprocess | None
) -> tuple[str, Metric, tuple[Metric, ...]]:
    """Average precision where there are drawn boxes, else how many boxes the model has in common with FP32."""
    packed = is_packed(labels)
    settled, size = check_boxes(preprocess, labels, packed)
    name = name or ("box_f1" if labels is None else "mAP")
    if "detection" not in _CATALOGUE[name].tasks or not _CATALOGUE[name].primary:
        raise unknown("metric for detection", name, _names("detection"))
    classes = class_count(settled, size, {info.name: info.shape for info in outputs})
    if labels is not None:
        need_pycocotools()
        check_truth(labels, classes)
    elif name != "box_f1":
        raise DataError(f"The metric '{name}' needs labels; the data has none.", "Give labels, or no metric to compare with FP32.")
    metric = _metric(name, "detection", BoxObserver(settled, size, packed))
    return "detection", metric, companions(metric)


def _sequence(
    task: str, name: str | None, outputs: Sequence[TensorInfo], labels: Array | None, preprocess: Preprocess | None
) -> tuple[str, Metric, tuple[Metric, ...]]:
    """Classes of tokens, or answers in a text."""
    name = name or _DEFAULT[task]
    if task not in _CATALOGUE[name].tasks:
        raise unknown(f"metric for {task}", name, _names(task))
    if labels is None or np.ndim(labels) != 2:
        raise DataError(f"The metric '{name}' needs labels of tokens; the data has none.", "Give labels, or no task to compare with FP32.")
    metric = _metric(name, task, sequence_observer(task, outputs, preprocess))
    return task, metric, companions(metric)


def of_outcomes(task: str, name: str, outputs: Sequence[TensorInfo], columns: Mapping[str, Array]) -> Metric:
    """The metric of outcomes that are there already; it cannot observe anything new where that takes more than outputs."""
    if task == "detection" or task in SEQUENCES:
        return _metric(name, task, _observed_already)
    labels = columns.get("label")
    if labels is not None and "pair" in columns:
        labels = np.column_stack([columns["pair"], labels])
    return metric_for(task, name, outputs, labels)[1]


def _observed_already(_outputs: Outputs, _labels: Array | None, _reference: Outputs | None) -> Observed:
    raise AssertionError("these outcomes have been observed already")


def check_policy(metric: Metric, policy: Policy) -> None:
    """Refuses a policy that has no meaning for this metric; cheap, so call it before any work.

    Raises:
        UsageError: points for a metric without a 0-1 scale, or a threshold for a model that is no yes/no classifier.
    """
    budget: Budget = policy.max_drop
    if not budget.relative and not metric.bounded:
        raise UsageError(
            f"A budget in points ({budget}) has no meaning for {metric.name}: it has no 0-1 scale.",
            f"Use {budget.value * 100:g}%, relative to the baseline's {metric.name}.",
        )
    if policy.threshold is not None and metric.task not in ("classification", "custom"):
        raise UsageError(f"A threshold is for yes/no classifiers; this task is {metric.task}.", "Leave the threshold out.")


def companions(metric: Metric) -> tuple[Metric, ...]:
    """The other metrics of the same task, from the same columns; ask `measurable` which of them the columns allow."""
    task = "fidelity" if metric.task == "custom" else metric.task
    return tuple(_metric(name, task, metric.observer) for name in _names(task, primary=False) if name != metric.name)


def _in_pairs(columns: Mapping[str, Array]) -> bool:
    try:
        return len(Spearman().units(columns)["label"]) > 0
    except DataError:
        return False


def recall(metric: Metric) -> Metric:
    """The share of right samples, as a metric beside another one of the same task."""
    return _metric("top1", "classification", metric.observer)


def _names(task: str, primary: bool = True) -> list[str]:
    return [name for name, entry in _CATALOGUE.items() if task in entry.tasks and (entry.primary or not primary)]


def _canonical(name: str) -> str:
    plain = name.lower().replace("-", "_")
    plain = _ALIASES.get(plain, plain)
    found = next((key for key in _CATALOGUE if key.lower() == plain.lower()), None)
    if found is None:
        raise unknown("metric", name, [key for key, entry in _CATALOGUE.items() if entry.primary])
    return found


def _task(name: str | None, outputs: Sequence[TensorInfo], labels: Array | None, preprocess: Preprocess | None) -> str:
    if (preprocess is not None and preprocess.boxes is not None) or is_packed(labels):
        return "detection"
    if name is not None:
        tasks = _CATALOGUE[name].tasks
        return "fidelity" if labels is None and "fidelity" in tasks else tasks[0]
    return "fidelity" if labels is None else task_of(outputs, np.asarray(labels))


def _metric(name: str, task: str, observer: Observer) -> Metric:
    entry = _CATALOGUE[name]
    return Metric(name, task, entry.higher_is_better, entry.bounded, entry.binary, entry.statistic, observer)


def _fits(name: str, outputs: Sequence[TensorInfo], labels: Array | None) -> bool:
    """Whether a further metric has a meaning for this model; the columns decide the rest (`Metric.measurable`)."""
    width = width_of(main_output(outputs))
    if name == "top5":
        return width is None or width > 5
    if name == "roc_auc":
        return width in (1, 2)
    return labels is not None if name == "spearman" else True


def _custom(name: str, outputs: Sequence[TensorInfo], labels: Array | None, sample: Outputs | None) -> tuple[Metric, tuple[Metric, ...]]:
    """The user's own mean score; agreement and confidences are watched beside it where the outputs look like classes."""
    inner = observer_for("fidelity", fidelity_metric(outputs), outputs, labels, sample)
    observer = CustomObserver(inner, load_callable(name), name)
    metric = Metric(name, "custom", True, True, False, Mean(("custom",)), observer)
    return metric, companions(metric)


def load_callable(name: str) -> Callable[[Outputs, Array | None], Array]:
    """Imports `module:callable`; modules of the working directory are found too.

    Raises:
        UsageError: no such module, no such name in it, or not callable.
    """
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(f"The metric's module '{module_name}' cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UsageError(f"'{module_name}' has no callable '{attribute}'.", "Give --metric module:callable.")
    return function
