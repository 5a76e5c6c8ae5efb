"""What "right" means for each kind of model: per-sample columns from outputs, and the statistics over them.

`fidelity` compares with the FP32 model and needs no labels, `metric` needs them. `score` is what accuracy
control is given: one number a sample whose mean is the metric (or the fidelity where there is no metric).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit.measure.statistics import R2, Mean, RelativeError, Statistic, cosine
from panel.paths import SHARED

Array = np.ndarray[Any, Any]
VERSION = 1
"""Raise it when what `columns` gives changes: scores kept on disk are then made anew."""

Outputs = Mapping[str, Array]
Columns = dict[str, Array]


@dataclass(frozen=True)
class Task(ABC):
    """One kind of model.

    Attributes:
        fidelity: Name and statistic; higher is better.
        metric: Name and statistic, None without labels.
        higher_is_better: Direction of the metric.
        extras: Further statistics to report.
    """

    fidelity: tuple[str, Statistic]
    metric: tuple[str, Statistic] | None = None
    higher_is_better: bool = True
    extras: tuple[tuple[str, Statistic], ...] = ()

    @abstractmethod
    def columns(self, outputs: Outputs, reference: Outputs, labels: Array | None) -> Columns:
        """Per-sample columns [n]; `reference` holds the FP32 outputs of the same samples."""

    def score(self, outputs: Outputs, reference: Outputs, labels: Array | None) -> Array:
        """[n]: the mean over samples is what accuracy control must not lose."""
        columns = self.columns(outputs, reference, labels)
        kind = self.metric[1] if self.metric and labels is not None else self.fidelity[1]
        return columns[kind.needs[0]].astype(float)


class Classes(Task):
    """Logits [n, classes]."""

    def columns(self, outputs: Outputs, reference: Outputs, labels: Array | None) -> Columns:
        ours, theirs = only(outputs), only(reference)
        found = {"agree": ours.argmax(1) == theirs.argmax(1), "cosine": cosine(ours, theirs)}
        return found if labels is None else found | {"hit": ours.argmax(1) == labels}


class Sentences(Task):
    """Unit vectors [n, 384]; the labels are those of a linear head on top."""

    def columns(self, outputs: Outputs, reference: Outputs, labels: Array | None) -> Columns:
        ours, theirs = only(outputs), only(reference)
        with np.load(SHARED / "sst2" / "minilm_linear_head.npz") as head:
            ours_class, theirs_class = ((x @ head["weight"].T + head["bias"]).argmax(1) for x in (ours, theirs))
        found = {"cosine": cosine(ours, theirs), "agree": ours_class == theirs_class}
        return found if labels is None else found | {"hit": ours_class == labels}

    def score(self, outputs: Outputs, reference: Outputs, labels: Array | None) -> Array:  # noqa: ARG002
        return self.columns(outputs, reference, None)["cosine"]


class Characters(Task):
    """Logits [n, time, vocabulary], labels [n, time] the next characters; a sample is a row of text."""

    SKIPPED = 32  # the state starts at zero: the first characters of a row are guesses

    def columns(self, outputs: Outputs, reference: Outputs, labels: Array | None) -> Columns:
        ours, theirs = (only(found)[:, self.SKIPPED :] for found in (outputs, reference))
        found = {"agree": (ours.argmax(2) == theirs.argmax(2)).mean(1), "cosine": cosine(rows(ours), rows(theirs))}
        if labels is None:
            return found
        shifted = ours - ours.max(2, keepdims=True)
        chosen = np.take_along_axis(shifted, labels[:, self.SKIPPED :, None], axis=2)[..., 0]
        return found | {"bits": ((np.log(np.exp(shifted).sum(2)) - chosen) / np.log(2)).mean(1)}

    def score(self, outputs: Outputs, reference: Outputs, labels: Array | None) -> Array:  # noqa: ARG002
        return self.columns(outputs, reference, None)["agree"]


class Numbers(Task):
    """One number a sample."""

    def columns(self, outputs: Outputs, reference: Outputs, labels: Array | None) -> Columns:
        ours, theirs = (only(found).reshape(-1) for found in (outputs, reference))
        found = {"diff2": (ours - theirs) ** 2, "ref1": theirs, "ref2": theirs**2, "prediction": ours}
        return found if labels is None else found | {"label": labels.reshape(-1).astype(np.float64)}

    def score(self, outputs: Outputs, reference: Outputs, labels: Array | None) -> Array:
        found = self.columns(outputs, reference, labels)
        target = found["ref1"] if labels is None else found["label"]
        return 1 - (found["prediction"] - target) ** 2 / target.var()  # the mean is R²


class Boxes(Task):
    """Dense detections: scores and boxes, each output [n, cells, k].

    Until detection is a task of its own: the relative error of every output (cosines of such long outputs hide damage),
    and how far the two models find the same (cell, class) pairs above a threshold (Jaccard index).
    """

    def columns(self, outputs: Outputs, reference: Outputs, labels: Array | None) -> Columns:  # noqa: ARG002
        pairs = [(rows(outputs[name]), rows(reference[name])) for name in reference]
        errors = [np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-9) for a, b in pairs]
        scores = [(hits(outputs[name]), hits(reference[name])) for name in reference if is_score(reference[name])]
        both = np.sum([(a & b).sum(1) for a, b in scores], axis=0)
        either = np.sum([(a | b).sum(1) for a, b in scores], axis=0)
        found = {f"cosine {name}": cosine(*pair) for name, pair in zip(reference, pairs, strict=True)}
        return found | {
            "cosine": np.mean([cosine(a, b) for a, b in pairs], axis=0),
            "closeness": 1 - np.mean(errors, axis=0),
            "same_hits": np.where(either > 0, both / np.maximum(either, 1), 1.0),
        }


TASKS: Mapping[str, Task] = {
    "classes": Classes(("agreement", Mean(("agree",))), ("top-1", Mean(("hit",))), extras=(("cosine", Mean(("cosine",))),)),
    "logits": Classes(("cosine", Mean(("cosine",))), extras=(("agreement", Mean(("agree",))),)),
    "sentences": Sentences(
        ("cosine", Mean(("cosine",))), ("head accuracy", Mean(("hit",))), extras=(("head agreement", Mean(("agree",))),)
    ),
    "characters": Characters(
        ("agreement", Mean(("agree",))), ("bits per character", Mean(("bits",))), False, extras=(("cosine", Mean(("cosine",))),)
    ),
    "numbers": Numbers(("1 - relative error", RelativeError(one_minus=True)), ("R²", R2())),
    "boxes": Boxes(
        ("1 - relative error", Mean(("closeness",))), extras=(("same hits", Mean(("same_hits",))), ("cosine", Mean(("cosine",))))
    ),
}


THRESHOLD = 0.4
"""Score from which a cell counts as a detection."""


def only(outputs: Outputs) -> Array:
    """The single output in float64."""
    (values,) = outputs.values()
    return values.astype(np.float64)


def rows(values: Array) -> Array:
    return values.astype(np.float64).reshape(len(values), -1)


def is_score(values: Array) -> bool:
    """Probabilities: all within 0-1, unlike distances and corners."""
    return bool(values.min() >= 0 and values.max() <= 1.001)


def hits(scores: Array) -> Array:
    """Which (cell, class) pairs are found [n, cells x classes]; a background column of a softmax is left out."""
    background = scores.shape[-1] == 2
    return np.asarray((scores[..., 1:] if background else scores) > THRESHOLD).reshape(len(scores), -1)
