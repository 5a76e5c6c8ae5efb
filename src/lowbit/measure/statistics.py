"""Statistics of per-sample columns: their value, and their values under bootstrap counts, many resamples at a time.

The values are scikit-learn's and SciPy's; the resampled forms compute the same numbers from counts, because calling
a library two thousand times per comparison would take minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lowbit.errors import DataError
from lowbit.types import Array

Columns = Mapping[str, Array]
TINY = 1e-12
_PAIRS = (
    "Give labels [N, 2]: the pair's number and its similarity, the same for both samples of a pair; then order does not matter. "
    "Labels [N] work where samples 1 and 2, 3 and 4, … are the pairs and none is left out (--limit tears pairs)."
)


class Statistic(Protocol):
    """One number from columns [n]."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns without which there is no value."""
        ...

    @property
    def row_wise(self) -> bool:
        """True when a unit is a sample, so that a subset of samples has a value of its own."""
        ...

    def units(self, columns: Columns) -> Columns:
        """The columns of what is resampled: samples, or pairs of them."""
        ...

    def value(self, units: Columns) -> float:
        """The statistic; NaN where it is not defined (e.g. ROC-AUC of one class)."""
        ...

    def resampled(self, units: Columns, counts: Array) -> Array:
        """The statistic [B] of resamples in which unit i appears counts[:, i] times; counts [B, n]."""
        ...


class _Samples:
    """What statistics over samples share."""

    needs: tuple[str, ...] = ()
    row_wise: bool = True

    def units(self, columns: Columns) -> Columns:
        return {name: columns[name] for name in self.needs}

    def value(self, units: Columns) -> float:
        n = len(units[self.needs[0]])
        return float(self.resampled(units, np.ones((1, n)))[0]) if n else float("nan")

    def resampled(self, units: Columns, counts: Array) -> Array:
        raise NotImplementedError


@dataclass(frozen=True)
class Mean(_Samples):
    """Mean of a column: accuracy, top-5, agreement, MAE, cosine, KL, a user's own scores."""

    needs: tuple[str, ...]

    def resampled(self, units: Columns, counts: Array) -> Array:
        return counts @ units[self.needs[0]].astype(np.float64) / counts.sum(axis=1)


@dataclass(frozen=True)
class RootMean(Mean):
    """Square root of a column's mean: RMSE from squared errors."""

    def resampled(self, units: Columns, counts: Array) -> Array:
        return np.sqrt(super().resampled(units, counts))


@dataclass(frozen=True)
class Quotient(_Samples):
    """Sum of a column over the sum of another; NaN where that is 0."""

    needs: tuple[str, ...]

    def resampled(self, units: Columns, counts: Array) -> Array:
        above, below = (counts @ units[name].astype(np.float64) for name in self.needs)
        return np.divide(above, below, out=np.full(len(counts), np.nan), where=below > 0)


@dataclass(frozen=True)
class RelativeError(_Samples):
    """Root mean square difference from the reference over the reference's standard deviation; `one_minus` turns it round."""

    one_minus: bool = False
    needs: tuple[str, ...] = ("diff2", "ref1", "ref2")

    def resampled(self, units: Columns, counts: Array) -> Array:
        diff2, ref1, ref2 = (Mean((name,)).resampled(units, counts) for name in self.needs)
        error = np.sqrt(diff2 / np.maximum(ref2 - ref1**2, TINY))
        return 1 - error if self.one_minus else error


@dataclass(frozen=True)
class R2(_Samples):
    """Coefficient of determination, the mean over a sample's outputs, as `sklearn.metrics.r2_score`."""

    needs: tuple[str, ...] = ("label", "prediction")

    def value(self, units: Columns) -> float:
        from sklearn.metrics import r2_score

        return float(r2_score(units["label"], units["prediction"])) if len(units["label"]) > 1 else float("nan")

    def resampled(self, units: Columns, counts: Array) -> Array:
        n = len(units["label"])
        label = units["label"].reshape(n, -1).astype(np.float64)
        error2 = (label - units["prediction"].reshape(n, -1)) ** 2
        label = label - label.mean(axis=0)  # around its mean the variance below does not cancel
        shares = counts / counts.sum(axis=1, keepdims=True)
        variance = shares @ label**2 - (shares @ label) ** 2
        return np.mean(1 - (shares @ error2) / np.maximum(variance, TINY), axis=1)


@dataclass(frozen=True)
class MacroF1(_Samples):
    """F1 of each class that occurs in labels or predictions, averaged, as `sklearn.metrics.f1_score(average="macro")`."""

    needs: tuple[str, ...] = ("label", "predicted")

    def value(self, units: Columns) -> float:
        from sklearn.metrics import f1_score

        if not len(units["label"]):
            return float("nan")
        return float(f1_score(units["label"], units["predicted"], average="macro", zero_division=0.0))

    def resampled(self, units: Columns, counts: Array) -> Array:
        from scipy.sparse import csr_array

        n = len(units["label"])
        classes, codes = np.unique(np.concatenate([units["label"], units["predicted"]]), return_inverse=True)
        label, predicted = codes[:n], codes[n:]
        rows, ones = np.arange(n), np.ones(n)
        actual = csr_array((ones, (rows, label)), shape=(n, len(classes)))
        guessed = csr_array((ones, (rows, predicted)), shape=(n, len(classes)))
        right = csr_array(((label == predicted).astype(np.float64), (rows, label)), shape=(n, len(classes)))
        total = counts @ actual + counts @ guessed
        f1 = 2 * (counts @ right) / np.maximum(total, 1)
        return f1.sum(axis=1) / (total > 0).sum(axis=1)


@dataclass(frozen=True)
class RocAuc(_Samples):
    """Area under the ROC curve of `score` for label 1, as `sklearn.metrics.roc_auc_score`."""

    needs: tuple[str, ...] = ("label", "score")

    def value(self, units: Columns) -> float:
        from sklearn.metrics import roc_auc_score

        if len(np.unique(units["label"])) != 2:
            return float("nan")
        return float(roc_auc_score(units["label"], units["score"]))

    def resampled(self, units: Columns, counts: Array) -> Array:
        order, starts, _ = _ties(units["score"])
        yes = units["label"][order].astype(np.float64)
        drawn = counts[:, order]
        positives = np.add.reduceat(drawn * yes, starts, axis=1)
        negatives = np.add.reduceat(drawn * (1 - yes), starts, axis=1)
        below = np.cumsum(negatives, axis=1) - negatives
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return (positives * (below + negatives / 2)).sum(axis=1) / np.where(pairs > 0, pairs, np.nan)


@dataclass(frozen=True)
class Spearman:
    """Rank correlation of the cosine of two embeddings with the similarity a person gave the pair, as `scipy.stats.spearmanr`.

    A pair is two consecutive samples that both carry the pair's score, two samples that carry the same number in
    `pair`, or one sample where the model itself has two outputs (`score`). Samples without a partner are left out:
    at the end of a part that is only seen to its middle, or where the partner could not be read.
    """

    needs: tuple[str, ...] = ("label",)
    row_wise: bool = False

    def units(self, columns: Columns) -> Columns:
        if "score" in columns:
            return {"label": columns["label"], "score": columns["score"]}
        first, second = _pairs(columns)
        return {"label": columns["label"][first], "score": cosine(columns["vector"][first], columns["vector"][second])}

    def value(self, units: Columns) -> float:
        from scipy.stats import rankdata

        ranks = rankdata(np.stack([units["label"], units["score"]]), axis=1)
        return float(np.corrcoef(ranks)[0, 1]) if ranks.shape[1] > 1 and (ranks.std(axis=1) > 0).all() else float("nan")

    def resampled(self, units: Columns, counts: Array) -> Array:
        weights = counts / counts.sum(axis=1, keepdims=True)
        label, score = (_weighted_ranks(units[name], counts) for name in ("label", "score"))
        label = label - (weights * label).sum(axis=1, keepdims=True)
        score = score - (weights * score).sum(axis=1, keepdims=True)
        spread = np.sqrt((weights * label**2).sum(axis=1) * (weights * score**2).sum(axis=1))
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights * label * score).sum(axis=1) / spread


def cosine(first: Array, second: Array) -> Array:
    """Cosine [N] between the rows of two arrays [N, D]; 0 where a row is all zeros, 1 where both are."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = (np.abs(a).sum(axis=1) == 0) & (np.abs(b).sum(axis=1) == 0)
    return np.where(both_zero, 1.0, np.einsum("nd,nd->n", a, b) / np.maximum(norms, TINY))


def pair_numbers(labels: Array) -> Array:
    """The number of every sample's pair, int64 [N], from all labels of a data set.

    Args:
        labels: [N], where samples 2i and 2i + 1 are a pair and carry one similarity, or [N, 2]: the pair's number and its
            similarity, in any order. In [N, 2] a sample may be without its partner, which then counts for nothing.

    Raises:
        DataError: the samples do not come in pairs.
    """
    given = np.asarray(labels, np.float64).reshape(len(labels), -1)
    if given.shape[1] > 2:
        raise DataError(f"Labels of shape {list(np.shape(labels))} are no similarities of pairs.", _PAIRS)
    if given.shape[1] == 1:
        if len(given) % 2:
            raise DataError(f"{len(given)} samples are no pairs of consecutive ones: their number is odd.", _PAIRS)
        _pairs({"label": given[:, 0]})
        return np.arange(len(given), dtype=np.int64) // 2
    names, numbers, sizes = np.unique(given[:, 0], return_inverse=True, return_counts=True)
    if (sizes > 2).any():
        many = int(np.argmax(sizes > 2))
        raise DataError(f"Pair number {names[many]:g} is carried by {sizes[many]} samples; a pair is two.", _PAIRS)
    first, second = _pairs({"pair": numbers, "label": given[:, 1]})
    if not len(first):
        raise DataError("No two samples share a pair number.", _PAIRS)
    if len(torn := np.flatnonzero(given[first, 1] != given[second, 1])):
        one, other = given[first[torn[0]]], given[second[torn[0]]]
        raise DataError(f"The two samples of pair {one[0]:g} carry different similarities, {one[1]:g} and {other[1]:g}.", _PAIRS)
    return numbers.astype(np.int64)


def _pairs(columns: Columns) -> tuple[Array, Array]:
    """Positions of the first and the second sample of each pair; samples without a partner are in neither."""
    if "pair" in columns:
        order = np.argsort(columns["pair"], kind="stable")
        same = np.flatnonzero(np.diff(columns["pair"][order]) == 0)
        return order[same], order[same + 1]
    label = columns["label"]
    even = np.arange(0, len(label) - 1, 2)
    if not np.array_equal(label[even], label[even + 1]):
        raise DataError("The samples do not come in pairs: two consecutive ones must carry the same similarity.", _PAIRS)
    return even, even + 1


def _ties(values: Array) -> tuple[Array, Array, Array]:
    """Sorting order, where each run of equal values starts in it, and which run each sorted position is in."""
    order = np.argsort(values, kind="stable")
    fresh = np.concatenate([[True], np.diff(values[order]) != 0])
    return order, np.flatnonzero(fresh), np.cumsum(fresh) - 1


def _weighted_ranks(values: Array, counts: Array) -> Array:
    """Mid-ranks [B, n] of each unit within each resample."""
    order, starts, run = _ties(values)
    drawn = np.add.reduceat(counts[:, order], starts, axis=1)
    middle = np.cumsum(drawn, axis=1) - drawn / 2 + 0.5
    ranks = np.empty(counts.shape)
    ranks[:, order] = middle[:, run]
    return ranks
