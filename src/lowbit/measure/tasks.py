"""What a task is, seen from a model's outputs and the labels, and how its outputs are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lowbit.errors import DataError, UsageError
from lowbit.measure.observe import ClassObserver, NumberObserver, Observed, Outputs, VectorObserver, class_labels, looks_like_probabilities
from lowbit.types import Array, TensorInfo

Observer = Callable[[Outputs, Array | None, Outputs | None], Observed]
"""(outputs, labels, reference outputs) of a batch -> columns."""

EMBEDDING_WORDS = ("embed", "hidden", "pool", "feature", "sentence", "vector")


def main_output(outputs: Sequence[TensorInfo]) -> TensorInfo:
    """The output that carries the answer: the first floating-point one with one axis of numbers per sample."""
    floats = [output for output in outputs if output.dtype.startswith(("float", "bfloat"))]
    if not floats:
        raise UsageError(
            f"No output has floating-point numbers ({', '.join(f'{o.name}: {o.dtype}' for o in outputs) or 'there is none'}).",
            "Give a metric of your own: --metric module:callable.",
        )
    return next((output for output in floats if len(_axes(output)) <= 1), floats[0])


def _named_as_vector(output: TensorInfo) -> bool:
    return any(word in output.name.lower() for word in EMBEDDING_WORDS)


def _axes(output: TensorInfo) -> tuple[object, ...]:
    """Axes after the batch axis that are not 1."""
    return tuple(size for size in output.shape[1:] if size != 1)


def width_of(output: TensorInfo) -> int | None:
    """Numbers per sample, None where the model does not say."""
    sizes = [size for size in output.shape[1:] if isinstance(size, int)]
    return int(np.prod(sizes, dtype=np.int64)) if len(sizes) == len(output.shape) - 1 else None


def task_of(outputs: Sequence[TensorInfo], labels: Array) -> str:
    """The task that labels and outputs suggest (see `metric_for`)."""
    output = main_output(outputs)
    width = width_of(output)
    labels = np.asarray(labels)
    whole = not np.issubdtype(labels.dtype, np.floating) or bool(np.array_equal(labels, np.round(labels)))
    if width == 1:
        return "classification" if whole and set(np.unique(labels)) <= {0, 1} else "regression"
    if _named_as_vector(output) and labels.size <= 2 * len(labels):
        return "embedding"
    if labels.size == len(labels):
        return "classification" if whole else "embedding"
    one_hot = whole and labels.min() >= 0 and bool((labels.reshape(len(labels), -1).sum(axis=1) == 1).all())
    return "classification" if one_hot and labels.shape[1:] == (width,) else "regression"


def fidelity_metric(outputs: Sequence[TensorInfo]) -> str:
    """What closeness to the baseline means: the same class, the same direction, or nearly the same number."""
    output = main_output(outputs)
    if width_of(output) == 1:
        return "fidelity"
    vector = len(_axes(output)) > 1 or _named_as_vector(output)
    return "cosine" if vector else "agreement"


def observer_for(task: str, name: str, outputs: Sequence[TensorInfo], labels: Array | None, sample: Outputs | None) -> Observer:
    """How this task reads the outputs."""
    output = main_output(outputs)
    if task == "classification" or name == "agreement":
        settled = None
        if sample is not None and output.name in sample:
            raw = np.asarray(sample[output.name], np.float64)
            settled = looks_like_probabilities(raw.reshape(len(raw), -1))
        return ClassObserver(output.name, task == "classification", settled)
    if task == "embedding":
        twins = [o for o in outputs if o.name != output.name and o.shape == output.shape and o.dtype == output.dtype]
        return VectorObserver(output.name, twins[0].name if len(twins) == 1 and labels is not None else None)
    return NumberObserver(output.name, labelled=task == "regression")


def check_classes(outputs: Sequence[TensorInfo], labels: Array, name: str) -> None:
    """Refuses labels that cannot be this model's classes, and metrics that say nothing about them.

    Raises:
        DataError: labels out of range, or all of one class.
        UsageError: top5 with five classes or fewer, roc_auc with more than two.
    """
    numbers = class_labels(labels, len(np.asarray(labels)))
    width = width_of(main_output(outputs))
    classes = None if width is None else max(width, 2)
    if not len(numbers):
        raise DataError("There are no labels.", "Give validation samples.")
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or (classes is not None and high >= classes):
        allowed = "0 and above" if classes is None else f"0 to {classes - 1}"
        raise DataError(
            f"Labels run from {low} to {high}; the model knows classes {allowed}.",
            "Number the labels as the model was trained (some models count a background class first).",
        )
    if len(np.unique(numbers)) < 2:
        raise DataError(f"All {len(numbers)} labels are class {low}, which shows nothing.", "Give validation samples of several classes.")
    if name == "top5" and classes is not None and classes <= 5:
        raise UsageError(f"top5 is always 100 % with {classes} classes.", "Use top1.")
    if name == "roc_auc" and classes is not None and classes != 2:
        raise UsageError(f"roc_auc is for two classes; this model has {classes}.", "Use top1 or macro_f1.")
