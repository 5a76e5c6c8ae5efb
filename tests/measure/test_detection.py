"""Boxes as outcomes: average precision is pycocotools' own, resamples are paired, closeness is what it says."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lowbit.data import Preprocess
from lowbit.data.boxes import Boxes
from lowbit.data.geometry import Letterbox
from lowbit.data.truth import Truth, pack
from lowbit.errors import DataError, UsageError
from lowbit.measure.compare import compare
from lowbit.measure.detection import against, right_boxes, same_boxes
from lowbit.measure.metrics import Metric, check_policy, metric_for
from lowbit.measure.outcomes import Outcomes
from lowbit.types import Budget, Policy, TensorInfo

Array = NDArray[Any]
SIDE = 64
CORNERS = Preprocess(
    kind="image", letterbox=Letterbox((SIDE, SIDE)), boxes=Boxes("corners", score_threshold=0.01, nms_iou=1.0, confident=0.3)
)
OUTPUTS = (TensorInfo("scores", (1, 12, 3), "float32"), TensorInfo("boxes", (1, 12, 4), "float32"))


def random_boxes(rng: np.random.Generator, n: int) -> Array:
    corner = rng.uniform(0, 40, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(8, 24, (n, 2))], axis=1)


def scene(seed: int, images: int = 30, crowds: bool = False, digits: int = 1) -> tuple[Array, dict[str, Array]]:
    """Labels, and outputs whose boxes are near the drawn ones, elsewhere, or of another class; with one digit scores repeat."""
    rng = np.random.default_rng(seed)
    truths, scores, boxes = [], np.zeros((images, 12, 3), np.float32), np.zeros((images, 12, 4), np.float32)
    for image in range(images):
        count = int(rng.integers(0, 6))
        drawn, classes = random_boxes(rng, count), rng.integers(0, 3, count)
        crowd = rng.random(count) < 0.3 if crowds else np.zeros(count, bool)
        truths.append(Truth((SIDE, SIDE), classes, drawn, crowd))
        near = np.concatenate([drawn + rng.normal(0, 2, drawn.shape), drawn + rng.normal(0, 5, drawn.shape)])
        found = np.concatenate([near, random_boxes(rng, 12 - len(near))])
        guesses = np.concatenate([classes, classes, rng.integers(0, 3, 12 - len(near))])
        boxes[image] = np.clip(found, 0, SIDE)
        scores[image, np.arange(12), guesses] = np.round(rng.uniform(0.05, 1, 12), digits)
    return pack(truths), {"scores": scores, "boxes": boxes}


def detection(labels: Array | None, name: str | None = None) -> Metric:
    return metric_for("detection", name, OUTPUTS, labels, preprocess=CORNERS)[1]


def coco_stats(labels: Array, columns: dict[str, Array], images: Array) -> tuple[float, float]:
    """pycocotools' own summary of some images, each as often as it is listed."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": c, "name": str(c)} for c in range(3)], "info": {}}
    found = []
    for number, image in enumerate(images.tolist(), 1):
        truth["images"].append({"id": number, "width": SIDE, "height": SIDE})
        for label, x1, y1, x2, y2, crowd in labels[image, 1 : 1 + int(labels[image, 0, 2])]:
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": int(crowd)}
            truth["annotations"].append({"id": len(truth["annotations"]) + 1, "image_id": number, "category_id": int(label), **box})
        for box, score, label in zip(*(columns[name][image] for name in ("box", "box_score", "box_class")), strict=True):
            if label >= 0:
                x1, y1, x2, y2 = map(float, box)
                found.append({"image_id": number, "category_id": int(label), "score": float(score), "bbox": [x1, y1, x2 - x1, y2 - y1]})
    with contextlib.redirect_stdout(io.StringIO()):
        real = COCO()
        real.dataset = truth
        real.createIndex()
        evaluation = COCOeval(real, real.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), crowds=st.booleans())
def test_average_precision_is_that_of_pycocotools(seed: int, crowds: bool) -> None:
    labels, outputs = scene(seed, crowds=crowds)
    columns = detection(labels).observe(outputs, labels, None)
    whole, at_half = coco_stats(labels, columns, np.arange(30))
    assert detection(labels, "mAP").value(columns) == pytest.approx(whole, abs=1e-6)
    assert detection(labels, "ap50").value(columns) == pytest.approx(at_half, abs=1e-6)
    assert 0.02 < whole < at_half < 0.99


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000), crowds=st.booleans())
def test_a_resample_is_what_pycocotools_says_of_those_images(seed: int, crowds: bool) -> None:
    """Images drawn several times, and images (with whole classes) not drawn at all."""
    labels, outputs = scene(seed, images=12, crowds=crowds, digits=6)
    columns = detection(labels).observe(outputs, labels, None)
    drawn = np.sort(np.random.default_rng(seed + 1).integers(0, 12, (3, 12)), axis=1)
    counts = np.stack([np.bincount(row, minlength=12) for row in drawn]).astype(np.float64)
    for name, position in (("mAP", 0), ("AP50", 1)):
        statistic = detection(labels, name).statistic
        values = statistic.resampled(statistic.units(columns), counts)
        expected = [coco_stats(labels, columns, row)[position] for row in drawn]
        np.testing.assert_allclose(values, [np.nan if value < 0 else value for value in expected], atol=1e-6)


def test_resamples_do_not_depend_on_how_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, outputs = scene(3)
    columns = detection(labels).observe(outputs, labels, None)
    statistic = detection(labels).statistic
    counts = np.random.default_rng(0).poisson(1, (40, 30)).astype(np.float64)
    whole = statistic.resampled(statistic.units(columns), counts)
    monkeypatch.setattr("lowbit.measure.average_precision._BLOCK", 1000)
    np.testing.assert_array_equal(statistic.resampled(statistic.units(columns), counts), whole)


def test_a_box_in_a_crowd_is_left_out_and_a_second_find_is_wrong() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9.0], [30, 30, 40, 40], [31, 31, 39, 39]])
    truth = Truth((SIDE, SIDE), np.zeros(2, np.int64), np.array([[0, 0, 10, 10], [28, 28, 60, 60.0]]), np.array([False, True]))
    bits = right_boxes(truth, boxes, np.array([0.9, 0.8, 0.7, 0.6]), np.zeros(4, np.int32))
    assert bits[0] == 2**10 - 1
    assert bits[1] == 0
    assert bits[2:].tolist() == [(2**10 - 1) << 16] * 2


def test_the_paired_interval_knows_that_both_models_saw_the_same_images() -> None:
    """A candidate that is worse by little on every image is known to be; two unpaired intervals would overlap."""
    labels, outputs = scene(5, images=200)
    worse = {"scores": outputs["scores"], "boxes": outputs["boxes"] + np.float32(1.0)}
    metric = detection(labels)
    policy = Policy("detection", "mAP", Budget.parse("1pp"))
    ours = Outcomes(metric.observe(outputs, labels, None))
    reference = metric.kept(outputs)
    theirs = Outcomes(metric.observe(worse, labels, reference))
    found = compare(metric, ours, theirs, policy)
    own = [
        metric.statistic.resampled(metric.statistic.units(o.columns), np.random.default_rng(1).poisson(1, (300, 200)) * 1.0)
        for o in (ours, theirs)
    ]
    assert found.delta.method == "paired-bootstrap"
    assert 0 < found.delta.ci_low < found.delta.value < found.delta.ci_high
    assert found.delta.ci_high - found.delta.ci_low < 3 * (own[0].std() + own[1].std())
    assert 0.5 < found.agreement < 1
    assert found.secondary["box_f1"] == pytest.approx(found.agreement)
    assert 0.5 < found.secondary["box_iou"] < 1
    assert found.secondary["score_gap"] == pytest.approx(0, abs=0.05)
    assert {piece.name for piece in found.slices} == {"hardest tenth"}


def test_no_change_on_a_few_images_is_no_proof() -> None:
    labels, outputs = scene(6, images=20)
    metric = detection(labels)
    outcomes = Outcomes(metric.observe(outputs, labels, None))
    found = compare(metric, outcomes, Outcomes(dict(outcomes.columns)), Policy("detection", "mAP", Budget.parse("1pp")))
    assert found.delta.value == 0
    assert found.delta.ci_high > 0.05
    assert found.agreement == 1


def test_closeness_counts_boxes_that_both_are_confident_of() -> None:
    def model(*rows: tuple[float, float, int]) -> dict[str, Array]:
        """(left edge, score, class) of boxes 10 x 10."""
        box = np.array([[[x, 0, x + 10, 10] for x, _, _ in rows]], np.float32)
        return {"box": box, "box_score": np.array([[s for _, s, _ in rows]]), "box_class": np.array([[c for _, _, c in rows]])}

    fp32 = model((0, 0.9, 0), (20, 0.8, 0), (40, 0.5, 1), (60, 0.2, 0))
    int8 = model((1, 0.85, 0), (20, 0.7, 1), (40, 0.25, 1), (60, 0.2, 0))
    found = against(int8, fp32, 0.3)
    assert found["matched"].tolist() == [1]  # one moved, one changed its class, one lost its confidence
    assert found["counted"].tolist() == [2.5]  # FP32 has three, INT8 two
    assert found["overlap"] == pytest.approx([9 / 11])
    assert found["score_gap"] == pytest.approx([0.05])
    one = {name: values[0] for name, values in fp32.items()}
    assert same_boxes(one, one, 0.3)[0].tolist() == [0, 1, 2]


def test_each_box_has_one_partner_the_closest() -> None:
    near = {"box": np.array([[0, 0, 10, 10], [1, 0, 11, 10.0]]), "box_score": np.array([0.9, 0.8]), "box_class": np.zeros(2)}
    one = {"box": np.array([[1, 0, 11, 10.0]]), "box_score": np.array([0.9]), "box_class": np.zeros(1)}
    rows, others, overlap = same_boxes(near, one, 0.3)
    assert (rows.tolist(), others.tolist(), overlap.tolist()) == ([1], [0], [1.0])


def test_without_labels_the_gate_is_about_the_boxes_of_fp32() -> None:
    _, outputs = scene(7, images=60)
    task, metric, others = metric_for("detection", None, OUTPUTS, None, preprocess=CORNERS)
    assert (task, metric.name) == ("detection", "box_f1")
    ours = Outcomes(metric.observe(outputs, None, None))
    fewer = {**outputs, "scores": np.where(outputs["scores"] > 0.7, outputs["scores"], 0)}
    theirs = Outcomes(metric.observe(fewer, None, metric.kept(outputs)))
    found = compare(metric, ours, theirs, Policy(task, metric.name, Budget.parse("1%")), secondary=others)
    lost, all_of_them = (int(((outputs["scores"] >= 0.3) & (outputs["scores"] <= 0.7)).sum()), int((outputs["scores"] >= 0.3).sum()))
    assert found.baseline.value == 1
    assert found.metric.value == pytest.approx(2 * (all_of_them - lost) / (2 * all_of_them - lost))
    assert found.agreement == found.metric.value
    assert "mAP" not in found.secondary


def test_results_that_saw_no_reference_are_compared_all_the_same() -> None:
    labels, outputs = scene(8)
    worse = {**outputs, "boxes": outputs["boxes"] + np.float32(3)}
    metric = detection(labels)
    policy = Policy("detection", "mAP", Budget.parse("1pp"))
    ours = Outcomes(metric.observe(outputs, labels, None))
    alone, beside = (Outcomes(metric.observe(worse, labels, seen)) for seen in (None, metric.kept(outputs)))
    assert compare(metric, ours, alone, policy).agreement == compare(metric, ours, beside, policy).agreement < 1


def test_a_model_that_answers_nan_is_broken_and_finds_nothing_there() -> None:
    labels, outputs = scene(9)
    scores = outputs["scores"].copy()
    scores[2, 0, 0] = np.nan
    metric = detection(labels)
    ours, theirs = (Outcomes(metric.observe({**outputs, "scores": s}, labels, None)) for s in (outputs["scores"], scores))
    assert (theirs.columns["box_class"][2] == -1).all()
    found = compare(metric, ours, theirs, Policy("detection", "mAP", Budget.parse("1pp")))
    assert found.broken is not None
    assert "NaN" in found.broken


def test_what_cannot_be_scored_is_refused() -> None:
    labels, _ = scene(1)
    with pytest.raises(UsageError, match="no `boxes` section"):
        metric_for("detection", None, OUTPUTS, labels)
    with pytest.raises(UsageError, match="no `boxes` section"):
        metric_for(None, None, OUTPUTS, labels)  # drawn boxes mean detection
    with pytest.raises(DataError, match="are no boxes"):
        metric_for(None, None, OUTPUTS, np.arange(30), preprocess=CORNERS)
    with pytest.raises(DataError, match="task 'classification' cannot use them"):
        metric_for("classification", None, OUTPUTS, labels, preprocess=CORNERS)
    with pytest.raises(DataError, match="needs labels"):
        metric_for("detection", "mAP", OUTPUTS, None, preprocess=CORNERS)
    with pytest.raises(UsageError, match="Unknown metric for detection 'top1'"):
        metric_for("detection", "top1", OUTPUTS, labels, preprocess=CORNERS)
    with pytest.raises(DataError, match="classes run up to 2; the model has classes 0 to 1"):
        metric_for("detection", None, (TensorInfo("s", (1, 12, 2), "float32"), OUTPUTS[1]), labels, preprocess=CORNERS)
    with pytest.raises(UsageError, match=r"need scores .* the model gives logits"):
        metric_for("detection", None, (TensorInfo("logits", (1, 10), "float32"),), labels, preprocess=CORNERS)
    with pytest.raises(DataError, match="no box at all"):
        metric_for("detection", None, OUTPUTS, pack([Truth((8, 8), np.zeros(0), np.zeros((0, 4)), np.zeros(0, bool))]), preprocess=CORNERS)
    with pytest.raises(UsageError, match="threshold is for yes/no"):
        check_policy(detection(labels), Policy("detection", "mAP", Budget.parse("1pp"), threshold=0.5))


def test_a_missing_pycocotools_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    labels, _ = scene(1)
    with pytest.raises(UsageError, match="needs pycocotools") as caught:
        detection(labels)
    assert caught.value.hint == "pip install 'lowbit[detection]'"
    assert detection(None).name == "box_f1"  # boxes against FP32's need no library
