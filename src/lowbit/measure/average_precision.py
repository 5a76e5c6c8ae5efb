"""Average precision over resamples of images, from the matches that every image keeps.

The value is pycocotools' (COCOeval.accumulate and summarize for all areas): precision made monotone, read at 101 recalls,
averaged over classes that occur and over intersections over union. Nothing of it has to be matched again for a resample:
an image that is drawn twice counts each of its boxes twice. (Where two boxes of one image and class have the very same
score, its copies may then stand in another order than pycocotools would list them; neither order means anything.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowbit.measure.statistics import Columns, _Samples
from lowbit.types import Array

IOUS = np.linspace(0.5, 0.95, 10)
IGNORED = 16
"""Bit of `box_hit` from which on the bits say which boxes are left out."""
RECALLS = np.linspace(0.0, 1.0, 101)
_BLOCK = 4_000_000
"""Numbers in one block of resamples (32 MB)."""


@dataclass(frozen=True)
class AveragePrecision(_Samples):
    """Mean average precision at some of the IOUS, e.g. all (COCO's mAP) or the first (AP50)."""

    thresholds: tuple[int, ...] = tuple(range(len(IOUS)))
    needs: tuple[str, ...] = ("box_class", "box_score", "box_hit", "truth_class")

    def resampled(self, units: Columns, counts: Array) -> Array:
        table = _Table.of(units)
        step = max(1, _BLOCK // max(len(table.image), 1))
        blocks = [table.mean_precision(counts[start : start + step], self.thresholds) for start in range(0, len(counts), step)]
        return np.concatenate(blocks)


@dataclass(frozen=True)
class _Table:
    """All boxes of all images whose class somebody drew, sorted by class, then score: the highest first.

    Attributes:
        drawn: [n, C] how often each class is drawn in each image.
        image: [K] image of each box.
        label: [K] class of each box, 0 to C - 1.
        hits: [K] its bits.
    """

    drawn: Array
    image: Array
    label: Array
    hits: Array

    @classmethod
    def of(cls, units: Columns) -> _Table:
        truth = units["truth_class"]
        names, codes = np.unique(truth[truth >= 0], return_inverse=True)
        drawn = np.zeros((len(truth), len(names)))
        np.add.at(drawn, (np.nonzero(truth >= 0)[0], codes), 1)
        # Row by row, so that equal scores stay in the order of images and of boxes in them, as pycocotools has them.
        image, place = np.nonzero(np.isin(units["box_class"], names) & (units["box_class"] >= 0))
        label = np.searchsorted(names, units["box_class"][image, place])
        order = np.lexsort((-units["box_score"][image, place], label))
        return cls(drawn, image[order], label[order], units["box_hit"][image, place][order])

    def mean_precision(self, counts: Array, thresholds: tuple[int, ...]) -> Array:
        """Mean over classes and thresholds [B]; NaN where a resample holds no drawn box."""
        positives = counts @ self.drawn
        present = (positives > 0).sum(axis=1)
        weights = np.take(counts, self.image, axis=1)
        before = np.cumsum(weights, axis=1)
        total = np.zeros(len(counts))
        for threshold in thresholds:
            ignored = self.hits >> (IGNORED + threshold) & 1 > 0
            seen = np.cumsum(np.where(ignored, 0.0, weights), axis=1) if ignored.any() else before
            total += self._precision_sum(np.flatnonzero(self.hits >> threshold & 1), weights, seen, positives)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(present > 0, total / (len(RECALLS) * len(thresholds) * present), np.nan)

    def _precision_sum(self, right: Array, weights: Array, seen: Array, positives: Array) -> Array:
        """Sum [B] of the monotone precision over recalls and classes.

        Recall and the highest precision change at right boxes alone, so those are all that has to be looked at.

        Args:
            right: Positions of the right boxes.
            weights: [B, K] how often each box is drawn.
            seen: [B, K] boxes drawn up to each one, over all classes.
            positives: [B, C] how often each class is drawn in the resample.
        """
        if not len(right):
            return np.zeros(len(weights))
        label = self.label[right]
        first = np.searchsorted(self.label, label)  # the first box of that class
        first_right = np.searchsorted(label, label)
        hits = np.cumsum(weights[:, right], axis=1)
        hits = hits - np.where(first_right > 0, hits[:, first_right - 1], 0.0)
        shown = seen[:, right] - np.where(first > 0, seen[:, first - 1], 0.0)
        precision = np.divide(hits, shown, out=np.zeros_like(hits), where=shown > 0)
        # The highest precision from here to the end of the class: later classes are put below earlier ones, seen from the end.
        lift = 2.0 * (positives.shape[1] - label)
        highest = np.maximum.accumulate((precision + lift)[:, ::-1], axis=1)[:, ::-1] - lift
        wanted = positives[:, label]
        recall = np.divide(hits, wanted, out=np.full_like(hits, -1.0), where=wanted > 0)
        reached = np.searchsorted(RECALLS, recall, side="right")
        fresh = reached - np.where(first_right == np.arange(len(right)), 0, np.roll(reached, 1, axis=1))
        return np.asarray((highest * fresh).sum(axis=1))
