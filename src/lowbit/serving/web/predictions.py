"""From a model's outputs to what a person asks for: a class with its confidence, a number, a vector, boxes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit.data.preprocess import Preprocess
from lowbit.data.steps import Size
from lowbit.errors import UsageError
from lowbit.measure.observe import looks_like_probabilities, to_probabilities
from lowbit.measure.tasks import main_output
from lowbit.serving.answer.certainty import ClassReader
from lowbit.types import Array, TensorInfo


@dataclass(frozen=True)
class Meaning:
    """What a model's outputs mean.

    Attributes:
        task: Of the bundle's policy.
        output: That carries the answer; None where there is none.
        classes: How classes are read; None where they are none.
        steps: The bundle's preprocessing.
    """

    task: str
    output: str | None
    classes: ClassReader | None
    steps: Preprocess | None

    @classmethod
    def of(cls, task: str, outputs: tuple[TensorInfo, ...], classes: ClassReader | None, steps: Preprocess | None) -> Meaning:
        """Finds the main output."""
        try:
            output = main_output(outputs).name
        except UsageError:
            output = None
        return cls(task, output, classes, steps)


def predictions(meaning: Meaning, outputs: Mapping[str, Array], sizes: Sequence[Size | None], top: int = 1) -> list[Any]:
    """One prediction a sample, as JSON has it.

    Args:
        meaning: Of the outputs.
        outputs: By name, [N, ...].
        sizes: Height and width of each sample's image, for boxes.
        top: Classes to name.

    Returns:
        For classes {"label", "name", "confidence", "top"}, for numbers {"value"} or {"values"}, for vectors {"vector"}, for detectors
        {"boxes"}; None where nothing more than the outputs is known.
    """
    if meaning.steps is not None and meaning.steps.boxes is not None and meaning.steps.size is not None:
        return _boxes(meaning.steps, meaning.steps.size, outputs, sizes)
    if meaning.output is None:
        return [None] * len(sizes)
    raw = outputs[meaning.output]
    rows = np.asarray(raw.reshape(len(raw), -1), np.float64)
    if meaning.classes is not None:
        return _classes(rows, meaning.classes.probabilities, meaning.steps, top)
    if meaning.task == "regression":
        return [_numbers(row, meaning.steps) for row in rows]
    if meaning.task == "embedding":
        return [{"vector": _plain(row)} for row in rows]
    return [None] * len(rows)


def _classes(rows: Array, probabilities: bool, steps: Preprocess | None, top: int) -> list[Any]:
    names = steps.text.labels if steps is not None and steps.text is not None else ()
    finite: Array = np.asarray(np.isfinite(rows).all(axis=1))
    clean = np.where(finite[:, None], rows, 0.0)
    already = probabilities or (rows.shape[1] > 1 and looks_like_probabilities(clean))
    likely = to_probabilities(clean, already)
    best = np.argsort(-likely, axis=1, kind="stable")[:, :top]
    found: list[Any] = []
    for row, columns, good in zip(likely, best.tolist(), finite, strict=True):
        listed = [_class(label, float(row[label]), names) for label in columns] if good else []
        found.append({**(listed[0] if listed else {"label": None, "confidence": 0.0}), **({"top": listed} if top > 1 else {})})
    return found


def _class(label: int, confidence: float, names: Sequence[str]) -> dict[str, Any]:
    named = {"name": names[label]} if label < len(names) else {}
    return {"label": label, **named, "confidence": confidence}


def _numbers(row: Array, steps: Preprocess | None) -> dict[str, Any]:
    """In the labels' own scale."""
    if steps is not None:
        row = row * (steps.target_std or 1.0) + (steps.target_mean or 0.0)
    values = _plain(row)
    return {"value": values[0]} if len(values) == 1 else {"values": values}


def _boxes(steps: Preprocess, size: Size, outputs: Mapping[str, Array], sizes: Sequence[Size | None]) -> list[Any]:
    """In pixels of each sample's own image, the highest scores first."""
    from lowbit.data.decode import detect
    from lowbit.data.geometry import to_original

    assert steps.boxes is not None, "asked before"
    found = detect(steps.boxes, size, outputs)
    listed: list[Any] = []
    for position, own in enumerate(sizes):
        kept = np.flatnonzero(found.scores[position] >= 0)
        boxes = found.boxes[position][kept].astype(np.float64)
        if own is not None:
            boxes = to_original(boxes, steps.frame(own), own)
        labels, scores = found.classes[position][kept].tolist(), found.scores[position][kept].tolist()
        rows = zip(boxes.tolist(), labels, scores, strict=True)
        listed.append({"boxes": [{"box": box, "label": label, "confidence": score} for box, label, score in rows]})
    return listed


def _plain(row: Array) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in row.tolist()]
