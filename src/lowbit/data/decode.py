"""From a detector's outputs to boxes: decoding, and non-maximum suppression per class. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lowbit.data.boxes import Boxes
from lowbit.data.steps import Size
from lowbit.errors import UsageError
from lowbit.types import Array

MOST_CANDIDATES = 1000
"""Highest scores an image that go into non-maximum suppression, as the reference implementations have it."""
EMPTY = -1
"""Class and score of a row that holds no box."""

Outputs = Mapping[str, Array]


@dataclass(frozen=True)
class Detections:
    """Boxes of a batch, the highest scores first; rows without a box have class and score EMPTY.

    Attributes:
        boxes: float32 [N, D, 4]: x1, y1, x2, y2 in pixels of the model's input, not clipped.
        scores: float32 [N, D].
        classes: int32 [N, D].
    """

    boxes: Array
    scores: Array
    classes: Array


def detect(spec: Boxes, size: Size, outputs: Outputs) -> Detections:
    """Decodes a batch.

    Args:
        spec: What the outputs mean.
        size: Height and width of the model's input.
        outputs: Output name -> [N, ...].

    Raises:
        UsageError: the outputs are not what `spec` says.
    """
    scores, boxes = decode(spec, size, outputs)
    n, most = len(scores), spec.max_detections
    found = Detections(np.zeros((n, most, 4), np.float32), np.full((n, most), EMPTY, np.float32), np.full((n, most), EMPTY, np.int32))
    for image in range(n):
        cells, classes = np.nonzero(scores[image] > spec.score_threshold)
        values = scores[image][cells, classes]
        order = np.argsort(-values, kind="stable")[:MOST_CANDIDATES]
        kept = order[suppress(boxes[image][cells[order]], classes[order], spec.nms_iou)][:most]
        found.boxes[image, : len(kept)] = boxes[image][cells[kept]]
        found.scores[image, : len(kept)] = values[kept]
        found.classes[image, : len(kept)] = classes[kept]
    return found


def suppress(boxes: Array, classes: Array, most: float) -> Array:
    """Greedy non-maximum suppression within each class.

    Args:
        boxes: [n, 4], the highest scores first.
        classes: [n].
        most: Overlap (intersection over union) up to which both boxes stay.

    Returns:
        Positions of what stays, in order.
    """
    overlapping = (iou(boxes, boxes) > most) & (classes[:, None] == classes[None, :])
    alive = np.ones(len(boxes), bool)
    for position in np.flatnonzero(np.triu(overlapping, 1).any(axis=1)):
        if alive[position]:
            alive[position + 1 :] &= ~overlapping[position, position + 1 :]
    return np.flatnonzero(alive)


def iou(first: Array, second: Array) -> Array:
    """Intersection over union [n, m] of boxes [n, 4] and [m, 4] as x1, y1, x2, y2; of two empty boxes 1 where they are the same."""
    a, b = np.asarray(first, np.float64)[:, None], np.asarray(second, np.float64)[None]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    shared = sides[..., 0] * sides[..., 1]
    union = _area(a) + _area(b) - shared
    return np.divide(shared, union, out=(a == b).all(axis=2).astype(np.float64), where=union > 0)


def _area(boxes: Array) -> Array:
    sides = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None)
    return sides[..., 0] * sides[..., 1]


def decode(spec: Boxes, size: Size, outputs: Outputs) -> tuple[Array, Array]:
    """Scores [N, n, C] and boxes [N, n, 4] as x1, y1, x2, y2 in pixels of the model's input, before any selection.

    Raises:
        UsageError: the outputs are not what `spec` says.
    """
    if spec.kind == "distances":
        scores, boxes = _distances(spec, size, outputs)
    elif spec.kind == "corners":
        scores, boxes = _corners(spec, outputs)
    else:
        scores, boxes = _centres(spec, outputs)
    if spec.sigmoid:
        scores = 1 / (1 + np.exp(-np.clip(scores, -80, 80)))
    if spec.background is not None:
        if not 0 <= spec.background < scores.shape[2]:
            raise UsageError(f"`background: {spec.background}` is none of the {scores.shape[2]} classes of the scores.")
        scores = np.delete(scores, spec.background, axis=2)
    if spec.normalised:
        boxes = boxes * np.array([size[1], size[0]] * 2, boxes.dtype)
    return scores, boxes


def _corners(spec: Boxes, outputs: Outputs) -> tuple[Array, Array]:
    names = _named(spec, outputs)
    if names is None:
        boxes = [name for name, values in outputs.items() if values.ndim == 3 and values.shape[2] == 4]
        scores = [name for name, values in outputs.items() if values.ndim == 3 and name not in boxes]
        if len(boxes) != 1 or len(scores) != 1:
            raise _mismatch(spec, outputs, "scores [N, n, C] and boxes [N, n, 4]")
        names = scores, boxes
    score, box = (outputs[found[0]] for found in names)
    if score.ndim != 3 or box.ndim != 3 or box.shape[2] != 4 or score.shape[:2] != box.shape[:2]:
        raise _mismatch(spec, outputs, "scores [N, n, C] and boxes [N, n, 4]")
    return score, box


def _centres(spec: Boxes, outputs: Outputs) -> tuple[Array, Array]:
    """YOLO's centre, width and height; version 5 has objectness and one row a box, version 8 one column a box."""
    first = 4 if spec.kind == "yolov8" else 5
    names = spec.scores or tuple(name for name, values in outputs.items() if values.ndim == 3)
    wanted = "one output [N, 4 + C, n]" if first == 4 else "one output [N, n, 5 + C]"
    if len(names) != 1 or names[0] not in outputs:
        raise _mismatch(spec, outputs, wanted)
    raw = outputs[names[0]]
    if raw.ndim == 3 and first == 4:
        raw = np.moveaxis(raw, 1, 2)
    # More channels than boxes: the export has its axes the other way round.
    if raw.ndim != 3 or raw.shape[2] <= first or raw.shape[2] > raw.shape[1]:
        raise _mismatch(spec, outputs, wanted)
    middle, half = raw[..., :2], raw[..., 2:4] / 2
    scores = raw[..., first:] if first == 4 else raw[..., first:] * raw[..., 4:5]
    return scores, np.concatenate([middle - half, middle + half], axis=2)


def _distances(spec: Boxes, size: Size, outputs: Outputs) -> tuple[Array, Array]:
    centres, strides = grid(size, spec.strides, spec.centre, spec.shift)
    scores, distances = _per_stride(spec, size, outputs)
    n = len(distances)
    if spec.bins > 1:
        logits = distances.reshape(n, len(centres), 4, spec.bins)
        powers = np.exp(logits - logits.max(axis=3, keepdims=True))
        distances = (powers @ np.arange(spec.bins, dtype=powers.dtype)) / powers.sum(axis=3)
    distances = distances * strides[:, None].astype(distances.dtype)
    centres = centres.astype(distances.dtype)
    return scores, np.concatenate([centres - distances[..., :2], centres + distances[..., 2:]], axis=2)


def grid(size: Size, strides: Sequence[int], centre: float, shift: float) -> tuple[Array, Array]:
    """Centres [n, 2] (x, y) of all strides' cells in pixels, row by row, and each cell's stride [n]."""
    centres, sizes = [], []
    for stride in strides:
        rows, columns = cells(size, stride)
        y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        centres.append((np.stack([x.ravel(), y.ravel()], axis=1) + centre) * stride + shift)
        sizes.append(np.full(rows * columns, stride))
    return np.concatenate(centres), np.concatenate(sizes)


def cells(size: Size, stride: int) -> tuple[int, int]:
    """Rows and columns of a stride's cells."""
    return -(-size[0] // stride), -(-size[1] // stride)


def _per_stride(spec: Boxes, size: Size, outputs: Outputs) -> tuple[Array, Array]:
    """Scores [N, n, C] and distances [N, n, 4 x bins] of all strides, one after the other."""
    counts = [int(np.prod(cells(size, stride))) for stride in spec.strides]
    wanted = f"for {size[0]}x{size[1]} and strides {list(spec.strides)} scores and distances [N, n, {4 * spec.bins}] of {counts} cells"
    names = _named(spec, outputs) or _by_cells(spec, outputs, counts)
    if names is None:
        raise _mismatch(spec, outputs, wanted)
    scores, distances = (np.concatenate([outputs[name] for name in found], axis=1) for found in names)
    if names[0] == names[1]:
        scores, distances = scores[..., : -4 * spec.bins], distances[..., -4 * spec.bins :]
    if scores.shape[1] != sum(counts) or distances.shape[1:] != (sum(counts), 4 * spec.bins):
        raise _mismatch(spec, outputs, wanted)
    return scores, distances


def _by_cells(spec: Boxes, outputs: Outputs, counts: Sequence[int]) -> tuple[list[str], list[str]] | None:
    """Names of scores and distances, one of each per stride or for all; None where shapes do not tell."""
    width = 4 * spec.bins
    flat = {name: values.shape for name, values in outputs.items() if values.ndim == 3}
    whole = [name for name, shape in flat.items() if shape[1] == sum(counts)]
    if len(whole) == 1 and flat[whole[0]][2] > width:
        return whole, whole
    groups = [whole] if len(whole) == 2 else [[name for name, shape in flat.items() if shape[1] == count] for count in counts]
    scores: list[str] = []
    distances: list[str] = []
    for group in groups:
        boxes = [name for name in group if flat[name][2] == width]
        others = [name for name in group if flat[name][2] != width]
        if len(boxes) != 1 or len(others) != 1:
            return None
        scores, distances = [*scores, *others], [*distances, *boxes]
    return scores, distances


def _named(spec: Boxes, outputs: Outputs) -> tuple[list[str], list[str]] | None:
    """Names given by the user, None where there are none.

    Raises:
        UsageError: one of them is no output, or only one side is named.
    """
    if not spec.scores and not spec.boxes:
        return None
    for name in (*spec.scores, *spec.boxes):
        if name not in outputs:
            raise _mismatch(spec, outputs, f"an output '{name}'")
    if len(spec.scores) != len(spec.boxes):
        raise UsageError(
            f"The boxes section names {len(spec.scores)} outputs with scores and {len(spec.boxes)} with boxes.", "Name as many of each."
        )
    if any(outputs[name].ndim != 3 for name in (*spec.scores, *spec.boxes)):
        raise _mismatch(spec, outputs, "outputs [N, n, k]")
    return list(spec.scores), list(spec.boxes)


def _mismatch(spec: Boxes, outputs: Outputs, wanted: str) -> UsageError:
    present = ", ".join(f"{name} {list(values.shape)}" for name, values in outputs.items())
    return UsageError(
        f"Boxes of kind {spec.kind} need {wanted}; the model gives {present}.",
        "Correct the `boxes` section of the preprocessing: its kind, strides and bins, or name the outputs in `scores` and `boxes`.",
    )
