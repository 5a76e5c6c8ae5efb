"""Detections as outcomes: what each image's boxes hit, and how close they are to another model's boxes.

Columns, with D boxes kept an image and M drawn ones (rows without a box have class -1):

    box, box_score, box_class   [n, D, 4], [n, D], [n, D]: in the model's input, the highest scores first
    box_hit                     int32 [n, D], only with labels: bit t: right at IOUS[t]; bit IGNORED + t: left out (a crowd)
    truth_class                 int32 [n, M], only with labels: classes of the drawn boxes, crowds left out
    matched, counted            [n]: confident boxes that both models have; mean number of the two models' confident boxes
    overlap, score_gap          [n]: sums over the matched ones of intersection over union and of the scores' distance
    confident                   [n]: the score from which a box is confident
    compared                    [n]: False where there was no other model, and matched to score_gap are of the model with itself
    hardness                    [n], only with labels: 1 - F1 of the confident boxes against the drawn ones
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit.data.decode import EMPTY, Detections, detect, iou
from lowbit.data.geometry import to_original
from lowbit.data.preprocess import Preprocess
from lowbit.data.steps import Size
from lowbit.data.truth import Truth, unpack
from lowbit.errors import DataError, RunError, UsageError
from lowbit.measure.average_precision import IGNORED, IOUS
from lowbit.measure.observe import Observed, Outputs
from lowbit.types import Array

SAME = 0.5
"""Intersection over union from which two models' boxes of one class are the same object."""


def need_pycocotools() -> None:
    """Raises UsageError where pycocotools, which says what a right box is, is not installed."""
    if importlib.util.find_spec("pycocotools") is None:
        raise UsageError("Scoring boxes against labels needs pycocotools, which is not installed.", "pip install 'lowbit[detection]'")


@dataclass(frozen=True)
class BoxObserver:
    """Boxes of a detector.

    Attributes:
        preprocess: Settled, with `boxes`.
        size: Height and width of the model's input.
        labelled: Whether labels are drawn boxes.
    """

    preprocess: Preprocess
    size: Size
    labelled: bool

    def __call__(self, outputs: Outputs, labels: Array | None, reference: Outputs | None) -> Observed:
        spec = self.preprocess.boxes
        assert spec is not None, "checked when the metric was made"
        finite, clean = _finite(outputs)
        found = detect(spec, self.size, clean)
        columns: Observed = {
            "finite": finite,
            "width": np.full(len(finite), sum(values[0].size for values in clean.values())),
            "fingerprint": np.sum([values.reshape(len(finite), -1).sum(axis=1, dtype=np.float64) for values in clean.values()], axis=0),
            "box": found.boxes,
            "box_score": found.scores,
            "box_class": found.classes,
        }
        columns |= against(columns, columns if reference is None else reference, spec.confident)
        columns["compared"] = np.full(len(finite), reference is not None)
        columns["confident"] = np.full(len(finite), spec.confident)
        if labels is not None and self.labelled:
            columns |= self._hits(found, labels, spec.confident)
        return columns

    def kept(self, outputs: Outputs) -> Outputs:
        """What another model is compared with: decoded boxes, a hundredth of the raw outputs."""
        columns = self(outputs, None, None)
        return {name: columns[name] for name in ("box", "box_score", "box_class")}

    def _hits(self, found: Detections, labels: Array, confident: float) -> Observed:
        n = len(labels)
        if n != len(found.scores):
            raise RunError(f"The model gave {len(found.scores)} outputs for {n} samples.")
        hits = np.zeros(found.classes.shape, np.int32)
        drawn = np.full((n, labels.shape[1] - 1), EMPTY, np.int32)
        hardness = np.zeros(n)
        for image, row in enumerate(labels):
            truth = unpack(row)
            boxes = to_original(found.boxes[image], self.preprocess.frame(truth.size), truth.size)
            hits[image] = right_boxes(truth, boxes, found.scores[image], found.classes[image])
            plain = truth.classes[~truth.crowd]
            drawn[image, : len(plain)] = plain
            sure = (found.scores[image] >= confident) & (hits[image] >> IGNORED & 1 == 0)
            hardness[image] = 1 - 2 * (sure & (hits[image] & 1 > 0)).sum() / max(sure.sum() + len(plain), 1)
        return {"box_hit": hits, "truth_class": drawn, "hardness": hardness}


def _finite(outputs: Outputs) -> tuple[Array, dict[str, Array]]:
    """Which samples are without NaN and infinity, and outputs in which the others are zeros."""
    floats = {name: np.asarray(values, np.float32) for name, values in outputs.items() if np.asarray(values).dtype.kind == "f"}
    if not floats:
        raise RunError(f"No output has floating-point numbers: {', '.join(outputs) or 'there is none'}.")
    finite = np.all([np.isfinite(values.reshape(len(values), -1)).all(axis=1) for values in floats.values()], axis=0)
    clean = floats if finite.all() else {name: np.where(_wide(finite, values), values, 0) for name, values in floats.items()}
    return np.asarray(finite), clean


def _wide(mask: Array, values: Array) -> Array:
    return mask.reshape(-1, *[1] * (values.ndim - 1))


def right_boxes(truth: Truth, boxes: Array, scores: Array, classes: Array) -> Array:
    """Which of an image's boxes are right at which intersection over union, as COCO's evaluation matches them.

    Args:
        truth: The drawn boxes.
        boxes: [D, 4] as x1, y1, x2, y2 in the image's pixels, the highest scores first.
        scores: [D].
        classes: [D]; EMPTY where there is no box.

    Returns:
        Bits int32 [D], as the column `box_hit` has them.
    """
    bits = np.zeros(len(classes), np.int32)
    for label in np.intersect1d(truth.classes, classes[classes != EMPTY]):
        rows = np.flatnonzero(classes == label)
        drawn = truth.classes == label
        found = _coco_image(_coco(truth.boxes[drawn], crowd=truth.crowd[drawn]), _coco(boxes[rows], scores=scores[rows]))
        ignored = found["dtIgnore"].astype(bool)
        right = (found["dtMatches"] > 0) & ~ignored
        weights = 1 << np.arange(len(IOUS))
        bits[rows] = weights @ right + ((weights @ ignored) << IGNORED)
    return bits


def _coco(boxes: Array, *, crowd: Array | None = None, scores: Array | None = None) -> list[dict[str, Any]]:
    """Boxes as pycocotools has them: x, y, width, height; ids from 1, as 0 means nothing there."""
    sides = boxes[:, 2:] - boxes[:, :2]
    found: list[dict[str, Any]] = []
    for index, (corner, side) in enumerate(zip(boxes[:, :2].tolist(), sides.tolist(), strict=True)):
        entry: dict[str, Any] = {"id": index + 1, "bbox": [*corner, *side], "area": side[0] * side[1]}
        if crowd is not None:
            entry |= {"iscrowd": int(crowd[index]), "ignore": int(crowd[index])}
        if scores is not None:
            entry |= {"score": float(scores[index])}
        found.append(entry)
    return found


def _coco_image(drawn: list[dict[str, Any]], found: list[dict[str, Any]]) -> Mapping[str, Array]:
    """COCOeval's own matching of one class of one image, at all of its intersections over union."""
    from pycocotools.cocoeval import COCOeval

    evaluator = COCOeval(iouType="bbox")
    evaluator.params.maxDets = [len(found)]
    evaluator._gts[0, 0], evaluator._dts[0, 0] = drawn, found
    evaluator.ious = {(0, 0): evaluator.computeIoU(0, 0)}
    result: Mapping[str, Array] = evaluator.evaluateImg(0, 0, [0, float("inf")], len(found))
    return result


def same_boxes(first: Mapping[str, Array], second: Mapping[str, Array], confident: float) -> tuple[Array, Array, Array]:
    """Which confident boxes of one image two models have in common: pairs of one class, the most overlapping first, each box once.

    Args:
        first: `box`, `box_score`, `box_class` of one image of one model.
        second: The other model's.
        confident: Score from which a box counts.

    Returns:
        Rows in the first, rows in the second, and their intersection over union.
    """
    ours, theirs = (np.flatnonzero(side["box_score"] >= confident) for side in (first, second))
    overlap = iou(first["box"][ours], second["box"][theirs])
    overlap[first["box_class"][ours][:, None] != second["box_class"][theirs][None]] = 0
    rows, columns = np.nonzero(overlap >= SAME)
    free_rows, free_columns = np.ones(len(ours), bool), np.ones(len(theirs), bool)
    pairs = []
    for pair in np.argsort(-overlap[rows, columns], kind="stable"):
        row, column = rows[pair], columns[pair]
        if free_rows[row] and free_columns[column]:
            free_rows[row] = free_columns[column] = False
            pairs.append((row, column))
    chosen = np.array(pairs, np.int64).reshape(-1, 2)
    return ours[chosen[:, 0]], theirs[chosen[:, 1]], overlap[chosen[:, 0], chosen[:, 1]]


def against(columns: Mapping[str, Array], reference: Mapping[str, Array], confident: float) -> Observed:
    """The columns that compare a model's boxes with another's on the same images."""
    counted = sum(np.sum(side["box_score"] >= confident, axis=1) for side in (columns, reference)) / 2
    found: Observed = {"matched": np.zeros(len(counted)), "counted": counted, "overlap": np.zeros(len(counted))}
    found["score_gap"] = np.zeros(len(counted))
    for image in range(len(counted)):
        ours, theirs = ({name: side[name][image] for name in ("box", "box_score", "box_class")} for side in (columns, reference))
        rows, others, overlap = same_boxes(ours, theirs, confident)
        found["matched"][image], found["overlap"][image] = len(rows), overlap.sum()
        gap = ours["box_score"][rows].astype(np.float64) - theirs["box_score"][others]
        found["score_gap"][image] = np.abs(gap).sum()
    return found


def paired(baseline: Mapping[str, Array], candidate: Mapping[str, Array]) -> Mapping[str, Array]:
    """The candidate's columns, compared with the baseline's boxes where they were not yet."""
    if "box" not in candidate or baseline is candidate or bool(candidate["compared"].all()):
        return candidate
    return {**candidate, **against(candidate, baseline, float(baseline["confident"][0]))}


def check_boxes(preprocess: Preprocess | None, labels: Array | None, packed: bool) -> tuple[Preprocess, Size]:
    """What a detector needs to be scored at all.

    Returns:
        The preprocessing, and height and width of the model's input.

    Raises:
        UsageError: the preprocessing does not say what the outputs mean, or not which size the input has.
        DataError: the labels are no boxes.
    """
    if preprocess is None or preprocess.boxes is None:
        raise UsageError(
            "The task 'detection' needs to know what the outputs mean: the preprocessing has no `boxes` section.",
            "Give --preprocess with a detector's preset (e.g. yolov8) or a YAML file with `boxes` (docs/guides/data.md).",
        )
    if labels is not None and not packed:
        raise DataError(
            f"The labels of shape {list(labels.shape)} are no boxes.",
            "Give a folder with YOLO's `images` and `labels`, or a COCO .json file; without labels, boxes are compared with FP32's.",
        )
    if preprocess.size is None:
        raise UsageError("The preprocessing leaves the images' size open; boxes need it.", "Give `letterbox: [height, width]`.")
    return preprocess, preprocess.size


def class_count(preprocess: Preprocess, size: Size, shapes: Mapping[str, Sequence[Any]]) -> int | None:
    """Classes of the detector by its outputs' shapes, with a check that they are what the `boxes` section says.

    Args:
        preprocess: Settled, with `boxes`.
        size: Height and width of the model's input.
        shapes: Output name -> shape.

    Returns:
        None where the shapes are not known before the model runs.

    Raises:
        UsageError: the outputs are not what the section says.
    """
    if any(not isinstance(side, int) for shape in shapes.values() for side in shape[1:]):
        return None
    from lowbit.data.decode import decode

    assert preprocess.boxes is not None
    empty = {name: np.zeros((1, *shape[1:]), np.float32) for name, shape in shapes.items()}
    return int(decode(preprocess.boxes, size, empty)[0].shape[2])
