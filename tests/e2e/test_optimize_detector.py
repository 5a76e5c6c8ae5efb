"""Detection from a model and a folder of drawn boxes to a bundle: on a small detector made here, and on NanoDet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_runner import lowbit
from onnx import TensorProto, helper
from PIL import Image

from lowbit import optimize
from lowbit.data import Preprocess
from lowbit.data.boxes import Boxes
from lowbit.data.geometry import Letterbox
from lowbit.measure.outcomes import Outcomes
from lowbit.pipeline import results
from lowbit.pipeline.request import Options
from lowbit.pipeline.results import validate
from small_models import save

pytestmark = pytest.mark.usefixtures("short_timing")

CELL, SIDE = 8, 32
CELLS = (SIDE // CELL) ** 2
STEPS = Preprocess(kind="image", letterbox=Letterbox(value=0), scale=1 / 255, boxes=Boxes("corners", normalised=True))


def detector(path: Path) -> Path:
    """Finds red (class 0) and green (class 1) squares of a cell's size; batch fixed at 1, two outputs."""
    weight = np.zeros((2, 3, CELL, CELL), np.float32)
    for label in (0, 1):
        weight[label, label], weight[label, 1 - label] = 8 / CELL**2, -8 / CELL**2
    rows, columns = np.divmod(np.arange(CELLS), SIDE // CELL)
    corner = np.stack([columns, rows], axis=1) * CELL / SIDE
    boxes = np.concatenate([corner, corner + CELL / SIDE], axis=1)[None].astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["c"], name="conv", strides=[CELL, CELL], kernel_shape=[CELL, CELL]),
        helper.make_node("Sigmoid", ["c"], ["s"], name="sigmoid"),
        helper.make_node("Reshape", ["s", "shape"], ["r"], name="reshape"),
        helper.make_node("Transpose", ["r"], ["scores"], name="transpose", perm=[0, 2, 1]),
        helper.make_node("Identity", ["table"], ["boxes"], name="identity"),
    ]
    weights = {"w": weight, "b": np.full(2, -3, np.float32), "shape": np.array([1, 2, CELLS]), "table": boxes}
    outputs = {"scores": (TensorProto.FLOAT, [1, CELLS, 2]), "boxes": (TensorProto.FLOAT, [1, CELLS, 4])}
    return save(path, nodes, {"image": (TensorProto.FLOAT, [1, 3, SIDE, SIDE])}, outputs, weights)


def pictures(root: Path, n: int = 80) -> Path:
    """Pictures 64 x 32 (letterboxed to 32 x 16) with squares on the grid; drawn boxes are a little off, and a few are missing."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    scale = 2 * SIDE // SIDE  # a pixel of the model's input is two of the picture
    for index in range(n):
        pixels = rng.integers(0, 60, (32, 64, 3)).astype(np.uint8)
        lines = []
        for cell in rng.permutation(8)[: rng.integers(1, 4)]:
            row, column = divmod(int(cell), 4)
            label = int(rng.integers(0, 2))
            y, x, side = row * CELL * scale, column * CELL * scale, CELL * scale
            pixels[y : y + side, x : x + side, label] = rng.integers(110, 255)
            if rng.random() < 0.9:
                x1, y1 = x + rng.normal(0, 1.0), y + rng.normal(0, 1.0)
                shares = np.clip([(x1 + side / 2) / 64, (y1 + side / 2) / 32, side / 64, side / 32], 0, 1)
                lines.append(" ".join([str(label), *(f"{share:.5f}" for share in shares)]))
        Image.fromarray(pixels).save(root / "images" / f"{index:03}.png")
        (root / "labels" / f"{index:03}.txt").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Model, data and preprocessing."""
    folder = tmp_path_factory.mktemp("detection")
    steps = folder / "steps.yaml"
    steps.write_text(STEPS.to_yaml())
    return detector(folder / "squares.onnx"), pictures(folder / "squares"), steps


def test_a_detector_from_a_model_to_a_bundle(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, data, steps = case
    result = optimize(
        model,
        data,
        out=tmp_path / "out",
        preprocess=steps,
        task="detection",
        max_drop="10pp",
        runtimes=("onnxruntime",),
        recipes=("fp16", "int8-static-minmax"),
        batch=(1, 8),
        rounds=3,
    )
    manifest = json.loads((tmp_path / "out" / "bundle.json").read_text())
    assert (manifest["policy"]["task"], manifest["policy"]["metric"], manifest["policy"]["batch"]) == ("detection", "mAP", [1])
    baseline = manifest["baseline"]["search"]
    assert 0.3 < baseline["metric"]["value"] < 0.95
    assert baseline["agreement"] == 1
    assert baseline["metric"]["value"] < baseline["secondary"]["AP50"]
    found = {entry["id"]: entry for entry in manifest["candidates"]}
    static = found["int8-static-minmax@onnxruntime"]["search"]
    assert static["delta"]["method"] == "paired-bootstrap"
    assert static["delta"]["ci_low"] <= static["delta"]["value"] <= static["delta"]["ci_high"]
    assert abs(static["delta"]["value"]) < 0.1
    assert 0.8 < static["agreement"] <= 1
    assert static["secondary"]["box_f1"] == pytest.approx(static["agreement"])
    assert 0 < static["secondary"]["score_gap"] < 0.1  # INT8 does change the scores
    assert static["secondary"]["box_iou"] == pytest.approx(1, abs=0.02)
    kept = result.bundle.preprocess
    assert kept is not None
    assert kept.boxes == STEPS.boxes
    assert kept.letterbox == Letterbox((SIDE, SIDE), 0)
    columns = Outcomes.load(tmp_path / "out" / "baseline" / "outcomes-search.npz").columns
    assert columns["box"].shape == (32, 100, 4)
    with result.bundle.session() as session:
        assert session.predict([data / "images" / "000.png"])["scores"].shape == (1, CELLS, 2)


def test_without_labels_the_gate_is_fp32s_own_boxes(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, data, steps = case
    result = optimize(
        model,
        _unlabelled(data, tmp_path / "plain"),
        out=tmp_path / "out",
        preprocess=steps,
        max_drop="20pp",
        runtimes=("onnxruntime",),
        recipes=("int8-static-minmax",),
        rounds=3,
    )
    manifest = result.bundle.manifest
    assert (manifest.policy.task, manifest.policy.metric) == ("detection", "box_f1")
    found = {entry.id: entry for entry in manifest.candidates}["int8-static-minmax@onnxruntime"].search
    assert found is not None
    assert found.baseline.value == 1
    assert 0.8 < found.metric.value <= 1
    assert found.metric.value == pytest.approx(found.agreement)


def _unlabelled(data: Path, target: Path) -> Path:
    target.mkdir()
    for file in sorted((data / "images").iterdir())[:40]:
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_validate_and_compare(
    case: tuple[Path, Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, steps = case
    raw = onnx.load(model)
    weight = next(tensor for tensor in raw.graph.initializer if tensor.name == "w")
    shifted = np.frombuffer(weight.raw_data, np.float32) * np.float32(0.7)
    weight.raw_data = shifted.tobytes()
    worse = tmp_path / "worse.onnx"
    onnx.save(raw, worse)
    for file, name in ((model, "a"), (worse, "b")):
        arguments = ["validate", str(file), "--data", str(data), "--preprocess", str(steps), "--out", str(tmp_path / f"{name}.json")]
        shell = lowbit(capfd, monkeypatch, *arguments)
        assert shell.code == 0
        assert "mAP" in shell.out
        assert "box F1" not in shell.out  # of one model alone it says nothing
    shell = lowbit(
        capfd, monkeypatch, "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--max-drop", "1pp", "--output", "json"
    )
    found = json.loads(shell.out)["comparison"]
    assert found["metric"]["name"] == "mAP"
    assert found["agreement"] < 1
    assert found["agreement"] == pytest.approx(found["secondary"]["box_f1"])
    assert found["secondary"]["score_gap"] > 0.01
    assert results.load(tmp_path / "a.json").metric == "mAP"
    shell = lowbit(capfd, monkeypatch, "validate", str(model), "--data", str(data))
    assert shell.code == 2
    assert "no `boxes` section" in shell.err


def test_nanodet_scores_what_is_documented(shared_data: Path) -> None:
    folder = shared_data / "detection"
    scored = validate(folder / "nanodet_m_416.onnx", folder / "coco8", options=Options(preprocess="nanodet-m"))
    assert (scored.task, scored.metric, scored.n) == ("detection", "mAP", 8)
    assert scored.secondary["AP50"] == pytest.approx(0.770, abs=0.01)
    assert scored.value == pytest.approx(0.515, abs=0.02)


def test_ultraface_finds_the_faces(shared_data: Path) -> None:
    """Without labels: any slip in preprocessing, decoding or suppression changes how many boxes score above 0.7."""
    from lowbit.data.dataset import prepare
    from lowbit.data.decode import detect
    from lowbit.graph.load import load_model
    from lowbit.runtimes import registry
    from lowbit.types import Tuning

    folder = shared_data / "detection"
    model = load_model(folder / "ultraface_slim_320.onnx")
    files = sorted((folder / "face-images").glob("*.jpg"))
    steps = Preprocess.preset("ultraface").resolve(model.inputs[0], files[0])
    assert steps.boxes is not None
    assert steps.size == (240, 320)
    session = registry.get("onnxruntime").open(model.path, Tuning(threads=1), None)
    try:
        found = [detect(steps.boxes, (240, 320), session.run(prepare([file], model.inputs, steps))) for file in files]
    finally:
        session.close()
    assert [int((one.scores > 0.7).sum()) for one in found] == [47, 4, 5, 1, 14, 50]
