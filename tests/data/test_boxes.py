"""Detection in the data room: letterbox and its way back, decoding, suppression, the YAML, and drawn boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from lowbit.data import Preprocess, open_data, split
from lowbit.data.boxes import Boxes
from lowbit.data.decode import decode, detect, grid, iou, suppress
from lowbit.data.geometry import Frame, Letterbox, frame_of, letterboxed, to_model, to_original
from lowbit.data.truth import Truth, check_truth, is_packed, pack, unpack
from lowbit.errors import DataError, UsageError
from lowbit.types import TensorInfo

Array = NDArray[Any]
INPUT = TensorInfo("images", (1, 3, 32, 32), "float32")
sides = st.integers(1, 300)


# Letterbox -------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(height=sides, width=sides, target=st.tuples(sides, sides), align=st.sampled_from(["centre", "corner"]))
def test_a_letterboxed_image_fits_and_touches_two_sides(height: int, width: int, target: tuple[int, int], align: str) -> None:
    (h, w), (top, left) = letterboxed((height, width), target, align)
    assert 1 <= h <= target[0]
    assert 1 <= w <= target[1]
    assert h == target[0] or w == target[1]
    assert 0 <= top <= target[0] - h
    assert 0 <= left <= target[1] - w
    assert (top, left) == (0, 0) if align == "corner" else abs(target[0] - h - 2 * top) <= 1
    exact = min(target[0] / height, target[1] / width)
    assert h == pytest.approx(height * exact, abs=0.5 + 1e-9) or h == 1


@settings(deadline=None)
@given(size=st.tuples(sides, sides), target=st.tuples(sides, sides), seed=st.integers(0, 1000))
def test_boxes_come_back_to_where_they_were(size: tuple[int, int], target: tuple[int, int], seed: int) -> None:
    points = np.sort(np.random.default_rng(seed).uniform(0, 1, (5, 2, 2)), axis=1)
    boxes = (points * np.array([size[1], size[0]])).reshape(5, 4)
    for frame in (frame_of(size, None, None, Letterbox(target)), frame_of(size, target, None, None)):
        inside = to_model(boxes, frame)
        assert (inside.reshape(5, 2, 2) <= np.array([target[1], target[0]]) + 1e-6).all()
        np.testing.assert_allclose(to_original(inside, frame, size), boxes, atol=1e-6)


def test_the_way_back_undoes_short_side_and_crop_and_clips() -> None:
    frame = frame_of((100, 200), 50, (40, 40), None)
    assert frame == Frame((0.5, 0.5), (-5.0, -30.0))
    assert to_original(np.array([0, 0, 40, 40.0]), frame, (100, 200)).tolist() == [60, 10, 140, 90]
    assert to_original(np.array([-100, -100, 400, 400.0]), frame, (100, 200)).tolist() == [0, 0, 200, 100]
    assert frame_of((40, 40), 50, (40, 40), None) == Frame((1.0, 1.0), (0.0, 0.0))  # keep_exact


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_pixels_land_where_the_frame_says(dtype: Any) -> None:
    """A white square in a black picture, filled up with 114: as a file's image, and as an array."""
    pixels = np.zeros((20, 40, 3), dtype)
    pixels[10:20, 0:10] = 200
    steps = Preprocess(kind="image", letterbox=Letterbox(), scale=1.0).resolve(INPUT, pixels)
    assert steps.size == (32, 32)
    for sample in (pixels, Image.fromarray(pixels)) if dtype == np.uint8 else (pixels,):
        out = steps(sample)
        assert (out[:, :8] == 114).all()
        assert (out[:, 24:] == 114).all()
        x1, y1, x2, y2 = to_model(np.array([0, 10, 10, 20]), steps.frame((20, 40)))
        assert [x1, y1, x2, y2] == [0, 16, 8, 24]
        np.testing.assert_allclose(out[:, 17:23, 0:6], 200)
        assert (out[:, 8:14] == 0).all()
    same = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(dtype)
    np.testing.assert_array_equal(steps(same), np.moveaxis(same, -1, 0))


# YAML ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nanodet-m", "ultraface", "yolov5", "yolov8"])
def test_a_detectors_preset_survives_the_yaml(name: str) -> None:
    settled = Preprocess.preset(name).resolve(INPUT, Image.new("RGB", (50, 30)))
    assert settled.boxes is not None
    assert settled.size == (32, 32)
    assert Preprocess.from_yaml(settled.to_yaml()) == settled
    assert Preprocess.from_yaml(f"preset: {name}") == Preprocess.preset(name)


def test_what_a_section_leaves_out_is_the_presets() -> None:
    read = Preprocess.from_yaml("preset: nanodet-m\nletterbox: [320, 320]\nboxes: {score_threshold: 0.3}")
    assert read.letterbox == Letterbox((320, 320), value=0)
    assert read.boxes is not None
    assert (read.boxes.bins, read.boxes.score_threshold, read.boxes.shift) == (8, 0.3, -0.5)
    other = Preprocess.from_yaml("preset: nanodet-m\nboxes: {kind: yolov8}")
    assert other.boxes == Boxes("yolov8")
    assert Preprocess.from_yaml("letterbox: auto").letterbox == Letterbox()
    assert Preprocess.from_yaml("letterbox: {size: [4, 6], value: 0, align: corner}").letterbox == Letterbox((4, 6), 0, "corner")
    one = Preprocess.from_yaml("boxes: {kind: corners, scores: s, boxes: [b]}").boxes
    assert one is not None
    assert (one.scores, one.boxes) == (("s",), ("b",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("boxes: {kind: yolov9}", "Unknown kind of boxes 'yolov9'"),
        ("boxes: {kind: yolov8, iou: 0.5}", "Unknown key of `boxes` 'iou'"),
        ("boxes: {nms_iou: 0.5}", "has no `kind`"),
        ("boxes: yolov8", "a mapping with `kind`"),
        ("boxes: {kind: yolov8, bins: 8}", "`bins` is for boxes of kind distances"),
        ("boxes: {kind: yolov8, score_threshold: 5}", "not between 0 and 1"),
        ("boxes: {kind: yolov8, score_threshold: 0}", "would keep everything"),
        ("boxes: {kind: yolov8, max_detections: 0}", "not between 1 and 1000"),
        ("boxes: {kind: distances, strides: 8}", "a list of whole numbers"),
        ("boxes: {kind: distances, strides: []}", "are not pixels a cell"),
        ("boxes: {kind: yolov8, boxes: [a]}", "come from one output"),
        ("letterbox: {size: [4, 4], colour: 0}", "Unknown key of `letterbox` 'colour'"),
        ("letterbox: {align: left}", "Unknown value of `align` 'left'"),
        ("letterbox: {value: 300}", "not between 0 and 255"),
        ("letterbox: {size: null}", "or auto"),
        ("letterbox: auto\nresize: 256", "both `letterbox` and `resize`"),
    ],
)
def test_a_section_that_is_not_understood_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocess.from_yaml(text)


def test_a_letterbox_needs_a_size() -> None:
    dynamic = TensorInfo("x", (1, 3, "h", "w"), "float32")
    with pytest.raises(DataError, match="dynamic") as caught:
        Preprocess.preset("yolov8").resolve(dynamic, Image.new("RGB", (4, 4)))
    assert caught.value.hint == "Give `letterbox: [height, width]` in the preprocessing."


# Decoding --------------------------------------------------------------------------------------------------------------


def test_distances_are_expected_strides_from_the_cells_centre() -> None:
    """Two strides of a 16 x 16 input: one sure bin a side, and one side between two bins."""
    logits = np.full((1, 5, 4, 8), -50.0, np.float32)
    logits[..., 1] = 50  # one stride to each side
    logits[0, 3, 2, 2] = 50  # the fourth cell's right side: halfway between one and two
    scores = np.zeros((1, 5, 3), np.float32)
    flat = logits.reshape(1, 5, 32)
    spec = Boxes("distances", strides=(8, 16), bins=8, shift=-0.5)
    outputs = {"b1": flat[:, 4:], "s0": scores[:, :4], "b0": flat[:, :4], "s1": scores[:, 4:]}
    found, boxes = decode(spec, (16, 16), outputs)
    assert found.shape == (1, 5, 3)
    expected = [
        [-4.5, -4.5, 11.5, 11.5],
        [3.5, -4.5, 19.5, 11.5],
        [-4.5, 3.5, 11.5, 19.5],
        [3.5, 3.5, 23.5, 19.5],
        [-8.5, -8.5, 23.5, 23.5],
    ]
    np.testing.assert_allclose(boxes[0], expected, atol=1e-4)
    together = {"out": np.concatenate([scores, flat], axis=2)}
    both = {"s": scores, "b": flat}
    named = Boxes("distances", scores=("s0", "s1"), boxes=("b0", "b1"), strides=(8, 16), bins=8, shift=-0.5)
    for other, given_spec in ((together, spec), (both, spec), (outputs, named)):
        np.testing.assert_array_equal(decode(given_spec, (16, 16), other)[1], boxes)


def test_the_grid_rounds_up_and_runs_row_by_row() -> None:
    centres, strides = grid((20, 12), (8,), 0.5, 0.0)
    assert centres.tolist() == [[4, 4], [12, 4], [4, 12], [12, 12], [4, 20], [12, 20]]
    assert strides.tolist() == [8] * 6


def test_corners_leave_the_background_out() -> None:
    outputs = {"boxes": np.array([[[0, 0, 0.5, 0.25]]], np.float32), "scores": np.array([[[0.7, 0.1, 0.2]]], np.float32)}
    scores, boxes = decode(Boxes("corners", background=0, normalised=True), (40, 80), outputs)
    np.testing.assert_allclose(scores, [[[0.1, 0.2]]], atol=1e-7)
    np.testing.assert_allclose(boxes, [[[0, 0, 40, 10]]])
    with pytest.raises(UsageError, match="none of the 3 classes"):
        decode(Boxes("corners", background=3), (40, 80), outputs)


def test_both_forms_of_yolo_say_the_same() -> None:
    rows = np.array([[[10, 20, 4, 8, 0.1, 0.8], [30, 30, 2, 2, 0.3, 0.2]] + [[0, 0, 1, 1, 0, 0]] * 6], np.float32)
    scores, boxes = decode(Boxes("yolov8"), (40, 40), {"out": np.moveaxis(rows, 1, 2)})
    assert boxes[0, 0].tolist() == [8, 16, 12, 24]
    older = np.insert(rows, 4, 0.5, axis=2)
    halved, same = decode(Boxes("yolov5"), (40, 40), {"out": older})
    np.testing.assert_array_equal(same, boxes)
    np.testing.assert_allclose(halved, scores / 2)
    with pytest.raises(UsageError, match=r"need one output \[N, 4 \+ C, n\]"):
        decode(Boxes("yolov8"), (40, 40), {"out": rows})
    np.testing.assert_allclose(decode(Boxes("yolov8", sigmoid=True), (40, 40), {"out": np.moveaxis(rows, 1, 2)})[0][0, 2], [0.5, 0.5])


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        (Boxes("distances", bins=8), {"a": (1, 5, 3), "b": (1, 5, 32)}),
        (Boxes("distances", strides=(8, 16), bins=8), {"a": (1, 4, 32), "b": (1, 4, 32), "c": (1, 1, 3), "d": (1, 1, 32)}),
        (Boxes("corners"), {"a": (1, 5, 3)}),
        (Boxes("corners", scores=("a",), boxes=("x",)), {"a": (1, 5, 3), "b": (1, 5, 4)}),
        (Boxes("corners", scores=("a",)), {"a": (1, 5, 3), "b": (1, 5, 4)}),
        (Boxes("corners", scores=("a",), boxes=("b",)), {"a": (1, 6, 3), "b": (1, 5, 4)}),
        (Boxes("yolov8"), {"a": (1, 10)}),
        (Boxes("yolov5"), {"a": (1, 10, 7), "b": (1, 10, 7)}),
    ],
)
def test_outputs_that_are_something_else_are_refused(spec: Boxes, shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(UsageError):
        decode(spec, (16, 16), {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


def plain_suppression(boxes: Array, classes: Array, most: float) -> list[int]:
    kept: list[int] = []
    for index in range(len(boxes)):
        if all(classes[k] != classes[index] or iou(boxes[k : k + 1], boxes[index : index + 1])[0, 0] <= most for k in kept):
            kept.append(index)
    return kept


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), n=st.integers(0, 25), most=st.floats(0.1, 0.9))
def test_suppression_is_greedy_within_each_class(seed: int, n: int, most: float) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 10, (n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 8, (n, 2))], axis=1)
    classes = rng.integers(0, 3, n)
    assert suppress(boxes, classes, most).tolist() == plain_suppression(boxes, classes, most)


def test_detections_are_the_best_first_and_the_rest_is_empty() -> None:
    boxes = np.array([[[0, 0, 8, 8], [0, 0, 8, 7], [20, 20, 30, 30], [1, 1, 2, 2]]], np.float32)
    scores = np.array([[[0.6, 0.0], [0.9, 0.3], [0.05, 0.7], [0.01, 0.0]]], np.float32)
    found = detect(Boxes("corners", nms_iou=0.5, max_detections=4), (32, 32), {"scores": scores, "boxes": boxes})
    assert found.classes.tolist() == [[0, 1, 1, -1]]  # one cell may hold two classes; 0.05 is not above 0.05
    np.testing.assert_allclose(found.scores, [[0.9, 0.7, 0.3, -1]])
    assert found.boxes[0, :3].tolist() == [[0, 0, 8, 7], [20, 20, 30, 30], [0, 0, 8, 7]]


# Drawn boxes -----------------------------------------------------------------------------------------------------------


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)).save(path)


def yolo_folder(root: Path, beside: bool = False, n: int = 12) -> Path:
    """n pictures 40 x 20; picture i has i % 3 boxes, and those with none have no text file."""
    for index in range(n):
        picture(root / ("" if beside else "images") / f"{index:02}.png", index)
        lines = [
            f"{number} 0.5 0.5 0.25 {0.1 * (index + 1):.1f}" if index < 9 else f"{number} 0.5 0.5 0.25 0.9" for number in range(index % 3)
        ]
        if lines:
            text = root / ("" if beside else "labels") / f"{index:02}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("\n".join(lines) + "\n")
    return root


def test_packed_boxes_come_out_as_they_went_in() -> None:
    truths = [
        Truth((20, 40), np.array([3, 1]), np.array([[0, 1, 2, 3], [4, 5, 6, 7.5]]), np.array([False, True])),
        Truth((7, 9), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, bool)),
    ]
    packed = pack(truths)
    assert packed.shape == (2, 3, 6)
    assert is_packed(packed)
    for row, truth in zip(packed, truths, strict=True):
        back = unpack(row)
        assert back.size == truth.size
        for name in ("classes", "boxes", "crowd"):
            np.testing.assert_array_equal(getattr(back, name), getattr(truth, name))
    assert not is_packed(np.zeros((2, 3, 6)))
    assert not is_packed(np.zeros(4))
    check_truth(packed, 4)
    with pytest.raises(DataError, match="up to 3"):
        check_truth(packed, 3)


@pytest.mark.parametrize("where", ["", "images", "beside"])
def test_a_yolo_folder_is_read(tmp_path: Path, where: str) -> None:
    root = yolo_folder(tmp_path / "set", beside=where == "beside")
    data = open_data(root / where if where == "images" else root, [INPUT], Preprocess.preset("yolov8"))
    assert len(data) == 12
    assert data.sample_name(4) == "04.png"
    assert data.labels is not None
    truth = unpack(data.labels[4])
    assert truth.size == (20, 40)
    assert truth.classes.tolist() == [0]
    np.testing.assert_allclose(truth.boxes, [[15, 5, 25, 15]])
    assert [len(unpack(row).classes) for row in data.labels] == [0, 1, 2] * 4


def test_boxes_go_through_splits_batches_and_fingerprints(tmp_path: Path) -> None:
    root = yolo_folder(tmp_path / "set")
    data = open_data(root, [INPUT], Preprocess.preset("yolov8"))
    parts = split(data)
    rows = np.concatenate([parts.calibration.rows, parts.search.rows, parts.confirm.rows])
    assert sorted(rows.tolist()) == list(range(12))
    for part in (parts.search, parts.confirm):
        for batch in part.batches(2):
            assert batch.feeds["images"].shape[1:] == (3, 32, 32)
            assert batch.labels is not None
            names = [int(part.sample_name(int(row)).removesuffix(".png")) for row in batch.rows]
            assert [len(unpack(label).classes) for label in batch.labels] == [name % 3 for name in names]
    before = data.fingerprint
    assert data.subset(np.arange(12)[::-1]).fingerprint == before
    (root / "labels" / "04.txt").write_text("0 0.5 0.5 0.25 0.4\n")
    assert open_data(root, [INPUT], Preprocess.preset("yolov8")).fingerprint != before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", "is no box"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2", "is no box"),
        ("0.5 0.5 0.5 0.2 0.2", "not a whole number"),
        ("-1 0.5 0.5 0.2 0.2", "not a whole number"),
        ("0 120 40 30 20", "not within 0 to 1"),
        ("0 nan 0.5 0.2 0.2", "is no box"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    root = yolo_folder(tmp_path / "set")
    (root / "labels" / "07.txt").write_text(f"0 0.5 0.5 0.2 0.2\n{line}\n")
    with pytest.raises(DataError, match=rf"'07.txt', line 2: .*{message}"):
        open_data(root, [INPUT], Preprocess.preset("yolov8"))


def test_captions_and_class_folders_are_no_boxes(tmp_path: Path) -> None:
    for index in range(10):
        picture(tmp_path / "flat" / f"{index}.png", index)
        (tmp_path / "flat" / f"{index}.txt").write_text("a photo of noise")
        picture(tmp_path / "classes" / "ab"[index % 2] / f"{index}.png", index)
    (tmp_path / "classes" / "readme.txt").write_text("0 0.5 0.5 0.5 0.5")
    assert open_data(tmp_path / "flat", [INPUT]).labels is None
    labels = open_data(tmp_path / "classes", [INPUT]).labels
    assert labels is not None
    assert labels.tolist() == [0] * 5 + [1] * 5


def coco_file(path: Path, images: Path, n: int = 10) -> Path:
    """Categories 7 and 3; every picture has one box, the first one is a crowd."""
    for index in range(n):
        picture(images / f"{index}.png", index)
    raw = {
        "images": [{"id": 100 + i, "file_name": f"{i}.png", "width": 40, "height": 20} for i in range(n)],
        "annotations": [
            {"id": i, "image_id": 100 + i, "category_id": (7, 3)[i % 2], "bbox": [1, 2, 3 + i, 4], "iscrowd": int(i == 0)} for i in range(n)
        ],
        "categories": [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(raw))
    return path


@pytest.mark.parametrize(
    ("file", "images", "opened"),
    [
        ("annotations/instances_val.json", "val", "annotations/instances_val.json"),
        ("boxes.json", "images", "boxes.json"),
        ("_annotations.coco.json", "", ""),
    ],
)
def test_a_coco_file_is_read(tmp_path: Path, file: str, images: str, opened: str) -> None:
    coco_file(tmp_path / file, tmp_path / images)
    data = open_data(tmp_path / opened, [INPUT], Preprocess.preset("yolov8"))
    assert data.classes == ("three", "seven")
    assert data.labels is not None
    first, second = unpack(data.labels[0]), unpack(data.labels[1])
    assert (first.classes.tolist(), first.crowd.tolist(), first.boxes.tolist()) == ([1], [True], [[1, 2, 4, 6]])
    assert (second.classes.tolist(), second.crowd.tolist(), second.boxes.tolist()) == ([0], [False], [[1, 2, 5, 6]])
    assert next(data.batches(3)).feeds["images"].shape == (3, 3, 32, 32)


def test_a_broken_coco_file_is_refused(tmp_path: Path) -> None:
    path = coco_file(tmp_path / "boxes.json", tmp_path / "images")
    raw = json.loads(path.read_text())
    for change, message in (
        ({"annotations": [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}]}, "not a COCO file of boxes"),
        ({"annotations": [{"image_id": 100, "category_id": 3, "bbox": [0, 0, 1]}]}, "not a COCO file of boxes"),
        ({"images": [{"id": 100, "file_name": "none.png", "width": 4, "height": 4}], "annotations": []}, "are not there: none.png"),
        ({"images": [{"id": 100, "file_name": "../x.png", "width": 4, "height": 4}], "annotations": []}, "relative to their folder"),
    ):
        path.write_text(json.dumps({**raw, **change}))
        with pytest.raises(DataError, match=message):
            open_data(path, [INPUT], Preprocess.preset("yolov8"))
    path.write_text("[1, 2]")
    with pytest.raises(DataError, match="is not a COCO file"):
        open_data(path, [INPUT], Preprocess.preset("yolov8"))
    path.write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        open_data(path, [INPUT], Preprocess.preset("yolov8"))
