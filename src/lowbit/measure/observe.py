"""From one batch of model outputs to per-sample columns (see `Outcomes` for what they mean).

A sample whose output has a NaN or an infinity is marked in `finite` and counted as a miss: its output is taken as zeros,
so that every number that follows is finite. `compare` calls such a candidate broken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lowbit.errors import DataError, RunError, UsageError
from lowbit.measure.statistics import cosine
from lowbit.types import Array

Outputs = Mapping[str, Array]
Observed = dict[str, Array]
KEPT_OUTPUTS = 64
"""Up to this many numbers a sample, regression keeps predictions and labels; beyond, errors alone."""


@dataclass(frozen=True)
class ClassObserver:
    """Classes: logits or probabilities [N, C], or one column that scores "yes".

    Attributes:
        output: The output to read.
        labelled: True when labels say what is right; False when the reference model does.
        probabilities: Whether outputs are probabilities already; None: seen from the values of each batch.
    """

    output: str
    labelled: bool
    probabilities: bool | None = None

    def __call__(self, outputs: Outputs, labels: Array | None, reference: Outputs | None) -> Observed:
        raw, columns = _main(outputs, self.output)
        target = None if reference is None else _reference(reference, self.output, raw)
        settled = looks_like_probabilities(raw if target is None else target) if self.probabilities is None else self.probabilities
        probability = to_probabilities(raw, settled)
        n, width = probability.shape
        top = np.sort(probability, axis=1)[:, -2:]
        columns |= {
            "predicted": probability.argmax(axis=1),
            "confidence": np.where(columns["finite"], top[:, -1], 0.0),
            "margin": top[:, -1] - top[:, 0] if width > 1 else np.ones(n),
        }
        if width == 2:
            columns["score"] = probability[:, 1]
        if labels is not None and self.labelled:
            columns |= _hits(probability, class_labels(labels, n), columns["finite"])
        if target is not None or not self.labelled:
            columns |= _against(probability, columns, None if target is None else to_probabilities(target, settled))
        return columns


@dataclass(frozen=True)
class NumberObserver:
    """Numbers: regression against labels, or closeness to the reference model.

    Attributes:
        output: The output to read.
        labelled: False to leave labels alone.
    """

    output: str
    labelled: bool = True

    def __call__(self, outputs: Outputs, labels: Array | None, reference: Outputs | None) -> Observed:
        raw, columns = _main(outputs, self.output)
        n, width = raw.shape
        kept = (lambda values: values[:, 0] if width == 1 else values) if width <= KEPT_OUTPUTS else None
        if kept is not None:
            columns["prediction"] = kept(raw)
        if labels is not None and self.labelled:
            truth = np.asarray(labels, np.float64).reshape(len(labels), -1)
            if truth.shape != raw.shape:
                raise DataError(
                    f"The model gives {width} numbers a sample, the labels have {truth.shape[1]} ({len(truth)} labels for {n} samples).",
                    "Give one label per output, or another metric with --metric.",
                )
            difference = raw - truth
            columns |= {"error1": np.abs(difference).mean(axis=1), "error2": (difference**2).mean(axis=1)}
            if kept is not None:
                columns["label"] = kept(truth)
        target = raw if reference is None else _reference(reference, self.output, raw)
        columns |= {"diff2": ((raw - target) ** 2).mean(axis=1), "ref1": target.mean(axis=1), "ref2": (target**2).mean(axis=1)}
        if width > 1:
            columns["cosine"] = cosine(raw, target)
        return columns


@dataclass(frozen=True)
class VectorObserver:
    """Embeddings: cosine to the reference model's, and what Spearman over pairs needs.

    Attributes:
        output: The embedding.
        second: The other embedding of the pair, where the model makes both.
    """

    output: str
    second: str | None = None

    def __call__(self, outputs: Outputs, labels: Array | None, reference: Outputs | None) -> Observed:
        raw, columns = _main(outputs, self.output)
        columns["cosine"] = np.ones(len(raw)) if reference is None else cosine(raw, _reference(reference, self.output, raw))
        if labels is None:
            return columns
        scores = np.asarray(labels, np.float64).reshape(len(labels), -1)
        if len(scores) != len(raw) or scores.shape[1] > 2:
            raise DataError(
                f"Labels of shape {np.shape(labels)} are no similarities of pairs.",
                "Give [N] (two consecutive samples carry the same similarity) or [N, 2] (the pair's number, its similarity).",
            )
        columns["label"] = scores[:, -1]
        if self.second is not None:
            columns["score"] = cosine(raw, _finite(_rows(outputs[self.second])))
        else:
            columns["vector"] = raw.astype(np.float32)
            if scores.shape[1] == 2:
                columns["pair"] = scores[:, 0]
        return columns


@dataclass(frozen=True)
class CustomObserver:
    """A user's own score per sample beside what the inner observer sees.

    Attributes:
        inner: Observer of the outputs.
        score: (outputs, labels) -> [N], higher is better.
        name: What the user called it.
    """

    inner: Callable[[Outputs, Array | None, Outputs | None], Observed]
    score: Callable[[Outputs, Array | None], Array]
    name: str

    def __call__(self, outputs: Outputs, labels: Array | None, reference: Outputs | None) -> Observed:
        columns = self.inner(outputs, labels, reference)
        n = len(columns["finite"])
        try:
            scores = np.asarray(self.score(outputs, labels), np.float64)
        except Exception as error:
            raise UsageError(f"The metric '{self.name}' failed: {type(error).__name__}: {error}") from error
        if scores.shape != (n,):
            raise UsageError(f"The metric '{self.name}' returned shape {scores.shape} for {n} samples.", "Return one score per sample.")
        if not np.isfinite(scores[columns["finite"]]).all():
            raise UsageError(f"The metric '{self.name}' returned NaN or infinity for finite outputs.", "Return a finite score per sample.")
        return columns | {"custom": np.nan_to_num(scores, nan=0.0, posinf=0.0, neginf=0.0)}


def looks_like_probabilities(raw: Array) -> bool:
    """True when rows [N, C] already lie on the simplex (a softmax sits in the model), with room for quantization noise.

    One column counts as probabilities when all its values lie in 0-1.
    """
    if raw.min(initial=0.0) < -0.01 or raw.max(initial=0.0) > 1.01:
        return False
    return raw.shape[1] == 1 or bool(np.median(np.abs(raw.sum(axis=1) - 1)) < 0.05)


def to_probabilities(raw: Array, already: bool) -> Array:
    """Probabilities [N, C] of logits or probabilities; one column becomes the two classes "no" and "yes"."""
    if raw.shape[1] == 1:
        yes = np.clip(raw, 0, 1) if already else 1 / (1 + np.exp(-np.clip(raw, -500, 500)))
        return np.concatenate([1 - yes, yes], axis=1)
    if already:
        return np.clip(raw, 0, 1)
    powers = np.exp(raw - raw.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def class_labels(labels: Array, n: int) -> Array:
    """Class numbers int64 [N] from numbers, one-hot rows, or a column [N, 1].

    Raises:
        DataError: another number of labels than samples, or labels that are no class numbers.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] > 1:
        labels = labels.argmax(axis=1)
    labels = labels.reshape(-1)
    if len(labels) != n:
        raise DataError(f"There are {len(labels)} labels for {n} samples.", "Give one class number per sample.")
    if not np.issubdtype(labels.dtype, np.number) and labels.dtype != bool:
        raise DataError(f"Labels such as '{labels[0]}' are no class numbers.", "Number the classes from 0.")
    numbers = labels.astype(np.int64)
    if not np.array_equal(numbers, labels):
        raise DataError("Some labels are not whole numbers.", "Number the classes from 0, or use --metric rmse for regression.")
    return numbers


def _main(outputs: Outputs, name: str) -> tuple[Array, Observed]:
    """The output float64 [N, K] without NaN, and the columns every model has."""
    if name not in outputs:
        raise RunError(f"The output '{name}' is missing; there is {', '.join(outputs) or 'none'}.")
    raw = _rows(outputs[name])
    finite, raw = _finite_rows(raw), _finite(raw)
    # One number that differs wherever outputs differ: constant outputs are then seen without keeping them.
    fingerprint = raw @ np.cos(np.arange(raw.shape[1]) * 1.7 + 0.3)
    return raw, {"finite": finite, "width": np.full(len(raw), raw.shape[1]), "fingerprint": fingerprint}


def _rows(array: Array) -> Array:
    array = np.asarray(array, np.float64)
    if array.ndim == 0 or 0 in array.shape:
        raise RunError(f"An output of shape {array.shape} has no row per sample.")
    return array.reshape(len(array), -1)


def _finite(raw: Array) -> Array:
    return np.where(_finite_rows(raw)[:, None], raw, 0.0)


def _finite_rows(raw: Array) -> Array:
    return np.asarray(np.isfinite(raw).all(axis=1))


def _reference(reference: Outputs, name: str, raw: Array) -> Array:
    """The reference's rows, or zeros where a broken candidate gives another number of outputs (`compare` sees it in `width`)."""
    rows = _finite(_rows(reference[name]))
    if len(rows) != len(raw):
        raise RunError(f"The model gave {len(raw)} outputs for {len(rows)} samples.")
    return rows if rows.shape == raw.shape else np.zeros_like(raw)


def _hits(probability: Array, labels: Array, finite: Array) -> Observed:
    if len(labels) != len(probability):
        raise RunError(f"The model gave {len(probability)} outputs for {len(labels)} samples.")
    found: Observed = {"label": labels, "hit": (probability.argmax(axis=1) == labels) & finite}
    if (width := probability.shape[1]) > 5:
        best = np.argpartition(probability, width - 5, axis=1)[:, -5:]
        found["hit5"] = (best == labels[:, None]).any(axis=1) & finite
    return found


def _against(probability: Array, columns: Observed, reference: Array | None) -> Observed:
    """Agreement with the reference and Kullback-Leibler divergence from it; no reference means: this is the reference."""
    if reference is None:
        return {"agree": np.ones(len(probability), bool), "kl": np.zeros(len(probability))}
    agree = (reference.argmax(axis=1) == columns["predicted"]) & columns["finite"]
    p, q = np.clip(reference, 1e-12, 1), np.clip(probability, 1e-12, 1)
    return {"agree": agree, "kl": (p * np.log(p / q)).sum(axis=1)}
