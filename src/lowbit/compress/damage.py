"""How much worse a model's outputs are than they were: one number a sample, by the nature of the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from lowbit.errors import ModelError, unknown
from lowbit.measure.observe import looks_like_probabilities, to_probabilities
from lowbit.measure.statistics import cosine
from lowbit.types import Array

Kind = Literal["classes", "embedding", "values"]
"""What outputs are: logits or probabilities, vectors that are compared by their angle, or numbers."""

LEAST = 1e-12
"""Smallest probability that counts."""


def check_kind(kind: str) -> None:
    """Raises UsageError for a kind that is none."""
    if kind not in get_args(Kind):
        raise unknown("kind of output", kind, get_args(Kind))


class Judge:
    """Compares outputs with those of the float model.

    Args:
        reference: The float outputs, each [n, ...], one list a batch of samples.
        kind: See `Kind`.
    """

    def __init__(self, reference: Sequence[Sequence[Array]], kind: Kind) -> None:
        self.kind = kind
        self.used = [i for i, array in enumerate(reference[0]) if array.dtype.kind == "f"]
        if not self.used:
            raise ModelError("The model has no floating point output, so there is nothing that rounding could be seen to change.")
        outputs = [[batch[i] for batch in reference] for i in self.used]
        self.already = [kind == "classes" and all(looks_like_probabilities(_rows(a)) for a in arrays) for arrays in outputs]
        self.spread = [_spread(arrays) if kind == "values" else 1.0 for arrays in outputs]
        self.reference = [[self._view(batch, number) for batch in arrays] for number, arrays in enumerate(outputs)]

    def own(self, outputs: Sequence[Sequence[Array]]) -> Array:
        """Damage of every sample, float64 [n], the mean over outputs; outputs as the reference was given."""
        found = []
        for number, index in enumerate(self.used):
            pairs = zip(self.reference[number], (self._view(batch[index], number) for batch in outputs), strict=True)
            found.append(np.concatenate([self._damage(exact, seen) for exact, seen in pairs]) / self.spread[number])
        return np.mean(found, axis=0)

    @property
    def crosses(self) -> bool:
        """Whether `crossed` is defined: one class distribution a sample."""
        return self.kind == "classes" and all(view.ndim == 2 for views in self.reference for view in views)

    def crossed(self, outputs: Sequence[Sequence[Array]], weights: Array) -> float:
        """KL divergence where every sample's change of the logits meets every sample's distribution.

        n samples have n changes and n distributions. How far a change matters depends on the distribution it meets (a confident
        prediction shrugs it off), and pairing all with all averages that chance out.

        Args:
            outputs: As the reference was given.
            weights: Of the samples as distributions, [n], summing to 1 or so.
        """
        total = 0.0
        for number, index in enumerate(self.used):
            exact = np.concatenate(self.reference[number])
            change = np.concatenate([self._view(batch[index], number) for batch in outputs]) - exact
            for weight, row in zip(weights, exact, strict=True):
                total += weight * float(_divergence(row[None], _normal(row + change)).mean())
        return total / len(self.used)

    def _view(self, array: Array, number: int) -> Array:
        """What is compared: log probabilities, else plain numbers, float64."""
        if self.kind != "classes":
            return array.reshape(len(array), -1).astype(np.float64)
        flat = to_probabilities(_rows(array), self.already[number])
        return np.log(np.clip(flat, LEAST, 1)).reshape(*(array.shape[:-1] if array.ndim > 1 else array.shape), -1)

    def _damage(self, exact: Array, seen: Array) -> Array:
        if exact.shape != seen.shape:
            raise ModelError(f"An output changes its shape with its precision: {exact.shape} and {seen.shape}.")
        if self.kind == "classes":
            return _divergence(exact, seen).reshape(len(exact), -1).mean(axis=1)
        if self.kind == "embedding":
            return np.maximum(1 - cosine(exact, seen), 0.0)
        return np.asarray(((exact - seen) ** 2).mean(axis=1))

    def importance(self) -> Array:
        """How much a change of the logits would matter, [n]: trace of the KL divergence's Hessian, the sum of p (1 - p)."""
        found = []
        for views in self.reference:
            chances = [np.exp(view) for view in views]
            found.append(np.concatenate([(p * (1 - p)).sum(axis=-1).reshape(len(p), -1).mean(axis=1) for p in chances]))
        return np.mean(found, axis=0)


def _spread(arrays: Sequence[Array]) -> float:
    """Mean squared deviation from the mean; where all values are the same their mean square, or 1."""
    values = np.concatenate([array.reshape(-1).astype(np.float64) for array in arrays])
    return float(values.var()) or float((values**2).mean()) or 1.0


def _rows(array: Array) -> Array:
    return np.asarray(array, np.float64).reshape(-1, array.shape[-1] if array.ndim > 1 else 1)


def _normal(scores: Array) -> Array:
    """Log probabilities of scores, over the last axis."""
    scores = scores - scores.max(axis=-1, keepdims=True)
    return np.asarray(scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True)))


def _divergence(exact: Array, seen: Array) -> Array:
    """Kullback-Leibler divergence of log probabilities, over the last axis, in nats."""
    return np.maximum((np.exp(exact) * (exact - seen)).sum(axis=-1), 0.0)
