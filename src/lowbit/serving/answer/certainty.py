"""How certain an answer is, row by row, and below what its model's own samples say that it had better be asked again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowbit.bundle.bundle import Bundle
from lowbit.errors import DataError, UsageError
from lowbit.types import Array, TensorInfo

SHARE = 0.1
"""At most this share of the validation samples may lie below a threshold that is found here: full precision is the dearer one."""
NO_FLIPS = 0.01
"""The share below it where no sample was answered differently."""
COLUMNS = ("predicted", "margin", "confidence")
THROUGH = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "QuantizeLinear", "DequantizeLinear")
"""Operators that leave probabilities what they are."""


@dataclass(frozen=True)
class Certainty:
    """Of each row of an answer.

    Attributes:
        confidence: Probability of the most probable class, [N]; 0 where the row is no number.
        margin: Its lead over the next, [N].
    """

    confidence: Array
    margin: Array

    def by(self, name: str) -> Array:
        """ "margin" or "confidence"."""
        return self.margin if name == "margin" else self.confidence


@dataclass(frozen=True)
class ClassReader:
    """Reads the certainty of a classifier's answers; quick enough for every request.

    Attributes:
        output: Name of the output with the classes, [N, C] or [N, C, 1, ...]; one class alone scores "yes".
        probabilities: Whether it holds probabilities; False: logits.
    """

    output: str
    probabilities: bool

    def __call__(self, outputs: Mapping[str, Array]) -> Certainty:
        """Certainty of each row."""
        raw = outputs[self.output]
        rows = raw.reshape(len(raw), -1).astype(np.float32, copy=False)
        finite = np.asarray(np.isfinite(rows).all(axis=1))
        if not finite.all():
            rows = np.where(finite[:, None], rows, 0.0)
        best, second = self._one(rows[:, 0]) if rows.shape[1] == 1 else self._many(rows)
        return Certainty(np.where(finite, best, 0.0), np.where(finite, best - second, 0.0))

    def top(self, outputs: Mapping[str, Array]) -> tuple[Array, Array]:
        """Confidence and class of each row, [N] both: half the work of `Certainty`, for who needs no margin.

        The class is the most probable one; of one class alone 1 for "yes" and 0 for "no"; -1, with confidence 0, where a row is none.
        """
        raw = outputs[self.output]
        rows = raw.reshape(len(raw), -1).astype(np.float32, copy=False)
        finite = np.asarray(np.isfinite(rows).all(axis=1))
        if not finite.all():
            found = self.top({self.output: np.where(finite[:, None], rows, 0.0)})
            return np.where(finite, found[0], 0.0), np.where(finite, found[1], -1)
        if rows.shape[1] == 1:
            score = rows[:, 0]
            return self._one(score)[0], (score > (0.5 if self.probabilities else 0.0)).astype(np.int64)
        best = rows.max(axis=1)
        confidence = np.clip(best, 0, 1) if self.probabilities else 1 / np.exp(rows - best[:, None]).sum(axis=1)
        return confidence, rows.argmax(axis=1)

    def _one(self, score: Array) -> tuple[Array, Array]:
        yes = np.clip(score, 0, 1) if self.probabilities else 1 / (1 + np.exp(-np.clip(score, -80, 80)))
        best = np.maximum(yes, 1 - yes)
        return best, 1 - best

    def _many(self, rows: Array) -> tuple[Array, Array]:
        top = np.partition(rows, rows.shape[1] - 2, axis=1)[:, -2:]
        second, best = top[:, 0], top[:, 1]
        if self.probabilities:
            return np.clip(best, 0, 1), np.clip(second, 0, 1)
        largest = 1 / np.exp(rows - best[:, None]).sum(axis=1)
        return largest, largest * np.exp(second - best)


def reader_for(bundle: Bundle, outputs: tuple[TensorInfo, ...]) -> ClassReader | None:
    """How the certainty of a bundle's answers is read; None where they are no classes."""
    from lowbit.measure.tasks import main_output

    manifest = bundle.manifest
    if manifest.policy.task != "classification":
        return None
    try:
        output = main_output(outputs)
    except UsageError:
        return None
    if sum(1 for size in output.shape[1:] if size != 1) > 1:
        return None
    artifacts = [bundle.folder / path for path in (manifest.model.artifact, manifest.baseline.artifact) if path is not None]
    graph = next((artifact for artifact in artifacts if artifact.suffix == ".onnx"), None)  # a program was made from the baseline's
    return ClassReader(output.name, graph is not None and _ends_in_probabilities(graph, output.name))


def _ends_in_probabilities(artifact: Path, output: str) -> bool:
    """Whether the graph makes the output with a softmax or a sigmoid."""
    import onnx

    graph = onnx.load(artifact, load_external_data=False).graph
    makers = {name: node for node in graph.node for name in node.output}
    node = makers.get(output)
    while node is not None and node.op_type in THROUGH:
        node = makers.get(node.input[0])
    return node is not None and node.op_type in ("Softmax", "Sigmoid")


Samples = Mapping[str, Mapping[str, Array]]
"""Columns of what a candidate answered to the samples, by the part of the samples."""


def threshold(first: Samples, second: Samples, by: str = "margin") -> float | None:
    """The certainty below which one variant is to be asked again at another's precision.

    Every validation sample that the two answered differently lies below it, unless more than `SHARE` of all would; `NO_FLIPS` of all lie
    below it where they agreed on every sample.

    Args:
        first: Of the candidate that answers first.
        second: Of the one that is asked again.
        by: "margin" or "confidence".

    Returns:
        None where there are no samples that both answered.
    """
    both = sorted(first.keys() & second.keys())
    if not both:
        return None
    certain = np.concatenate([first[part][by] for part in both])
    differ = np.concatenate([first[part]["predicted"] != second[part]["predicted"] for part in both])
    return lowest_safe(certain, differ)


def lowest_safe(certain: Array, differ: Array) -> float:
    """See `threshold`: certainties of samples [n] and whether they were answered differently [n]."""
    if not differ.any():
        return float(np.quantile(certain, NO_FLIPS))
    above_all = float(np.nextafter(np.float64(certain[differ].max()), 2.0))
    return min(above_all, float(np.quantile(certain, SHARE)))


def samples(bundle: Bundle, candidate: str) -> Samples:
    """What a candidate answered to the samples; only parts that have classes. Reads the disk."""
    from lowbit.measure.outcomes import Outcomes

    baseline = candidate == bundle.manifest.baseline.id
    folder = bundle.folder / ("baseline" if baseline else f"candidates/{candidate}")
    found: dict[str, Mapping[str, Array]] = {}
    for part in ("search", "confirm"):
        try:
            columns = Outcomes.load(folder / f"outcomes-{part}.npz").columns
        except DataError:
            continue
        if set(COLUMNS) <= columns.keys():
            found[part] = {name: columns[name] for name in COLUMNS}
    return found
