"""Training as a part of the search, and of a bundle that is there already."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_runner import lowbit
from e2e_case import Case, make_case
from onnx import helper, numpy_helper

from conftest import missing
from lowbit import optimize
from lowbit.errors import DataError, UsageError
from lowbit.pipeline import training
from lowbit.pipeline.again import qat
from small_models import images, reference, save

if importlib.util.find_spec("torch") is None:
    missing("torch")

pytestmark = pytest.mark.usefixtures("short_timing")
STATIC = ("int8-static-minmax",)
SECONDS = 0.05  # minutes: training ends within seconds


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"), n=400)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples to learn from, without labels."""
    path = tmp_path_factory.mktemp("pool") / "pool.npz"
    np.savez(path, images=images(120, seed=9))
    return path


@pytest.fixture(scope="module")
def out(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished bundle without training."""
    out = tmp_path_factory.mktemp("optimize") / "bundle"
    optimize(case.model, case.data, out=out, max_drop="5pp", recipes=STATIC, runtimes=("onnxruntime",), rounds=3)
    return out


def entries(out: Path) -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in json.loads((out / "bundle.json").read_text())["candidates"]}


def test_a_bundle_is_trained_further_and_decided_on_again(case: Case, out: Path, pool: Path) -> None:
    before = json.loads((out / "bundle.json").read_text())
    assert "int8-qat@onnxruntime" not in entries(out)
    result = qat(out, case.data, train=pool, minutes=SECONDS)
    trained, static = (entries(out)[f"{name}@onnxruntime"] for name in ("int8-qat", "int8-static-minmax"))
    assert trained["status"] == "done"
    assert trained["agreement"] >= static["agreement"] - 0.01
    assert trained["size_bytes"] == pytest.approx(static["size_bytes"], rel=0.1)  # its nodes are written once more
    assert trained["verdict"] in ("ship", "reject", "provisional")
    assert {"model.onnx", "recipe.yaml", "parameters.json"} <= {file.name for file in (out / "candidates" / trained["id"]).iterdir()}
    assert "method: qat" in (out / "candidates" / trained["id"] / "recipe.yaml").read_text()
    after = json.loads((out / "bundle.json").read_text())
    assert after["source"] == before["source"]
    assert after["data"] == before["data"]
    assert len(after["candidates"]) == len(before["candidates"]) + 1
    assert result.bundle.session().run({"input.1": images(2)})["logits"].shape == (2, 10)


def test_training_again_is_another_candidate(case: Case, out: Path, pool: Path) -> None:
    qat(out, case.data, train=pool, minutes=SECONDS)
    number = sum(name.startswith("int8-qat") for name in entries(out))
    qat(out, case.data, train=pool, minutes=SECONDS)
    assert sum(name.startswith("int8-qat") for name in entries(out)) == number + 1


def test_an_interrupted_training_goes_on(case: Case, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.train import qat as loop
    from lowbit.train.checkpoint import Progress

    options = {"max_drop": "5pp", "recipes": STATIC, "runtimes": ("onnxruntime",), "rounds": 3, "train": pool, "qat": "always"}
    epochs: list[int] = []

    def stop(self: Progress, path: Path) -> None:
        saved(self, path)
        epochs.append(self.history[-1].number)
        if len(self.history) == 3 and len(epochs) == 3:
            raise KeyboardInterrupt

    saved = Progress.save
    monkeypatch.setattr(loop.Progress, "save", stop)
    with pytest.raises(Exception, match="Stopped"):
        optimize(case.model, case.data, out=tmp_path / "bundle", qat_minutes=0.5, **options)  # type: ignore[arg-type]
    assert epochs == [0, 1, 2]
    optimize(case.model, case.data, out=tmp_path / "bundle", qat_minutes=0.5, **options)  # type: ignore[arg-type]
    assert epochs[3] == 3
    candidate = entries(tmp_path / "bundle")["int8-qat@onnxruntime"]
    assert candidate["status"] in ("done", "dropped")  # dropped: a faster one is as good, which is the machine's mood
    assert candidate["search"]["broken"] is None


def test_samples_that_judge_are_not_learned_from(case: Case, out: Path) -> None:
    with pytest.raises(DataError, match="400 of 400 training samples are also validation samples"):
        qat(out, case.data, train=case.data, minutes=SECONDS)


def test_labels_that_are_not_there_are_missed_before_anything_is_trained(case: Case, out: Path, pool: Path) -> None:
    with pytest.raises(UsageError, match=r"'pool\.npz' has no labels to train on"):
        qat(out, case.data, train=pool, train_labels=True, minutes=SECONDS)


def test_other_data_are_refused(out: Path, tmp_path: Path) -> None:
    other = make_case(tmp_path, n=300)
    with pytest.raises(UsageError, match="holds the bundle of another run"):
        qat(out, other.data, minutes=SECONDS)


def test_without_pytorch_it_says_what_to_install(case: Case, out: Path, pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "installed", lambda: False)
    with pytest.raises(UsageError, match="Training needs PyTorch"):
        qat(out, case.data, train=pool, minutes=SECONDS)


def test_the_command_line(case: Case, out: Path, pool: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shell = lowbit(capfd, monkeypatch, "qat", out, "--data", case.data, "--train", pool, "--qat-time", "3s", "--output", "json")
    assert shell.code == 0
    assert any(entry["id"].startswith("int8-qat") for entry in json.loads(shell.out)["candidates"])
    assert "int8-qat" in shell.err
    assert lowbit(capfd, monkeypatch, "qat", case.data, "--data", case.data).code == 2


def test_research_recipes_are_tried_only_when_they_are_asked_for(case: Case, out: Path, tmp_path: Path) -> None:
    assert not any(name.startswith("research") for name in entries(out))
    asked = {"recipes": ("research-w3a8",), "runtimes": ("onnxruntime",), "rounds": 3, "qat_minutes": SECONDS}
    optimize(case.model, case.data, out=tmp_path / "bundle", max_drop="5pp", **asked)  # type: ignore[arg-type]
    found = entries(tmp_path / "bundle")["research-w3a8@onnxruntime"]
    assert found["status"] in ("done", "dropped")
    with np.load(tmp_path / "bundle" / "candidates" / found["id"] / "parameters.npz") as table:
        assert len(table.files) > 0


def test_binary_weights_are_two_levels_in_an_int8_file(case: Case, tmp_path: Path) -> None:
    asked = {"recipes": ("research-binary",), "runtimes": ("onnxruntime",), "rounds": 3, "qat_minutes": SECONDS}
    optimize(case.model, case.data, out=tmp_path / "bundle", max_drop="5pp", **asked)  # type: ignore[arg-type]
    found = entries(tmp_path / "bundle")["research-binary@onnxruntime"]
    assert found["status"] in ("done", "dropped")
    model = onnx.load(tmp_path / "bundle" / "candidates" / found["id"] / "model.onnx")
    weights = [numpy_helper.to_array(each) for each in model.graph.initializer if each.data_type == onnx.TensorProto.INT8 and each.dims]
    weights = [each for each in weights if each.ndim > 1]
    assert len(weights) >= 2
    for each in weights:
        assert set(np.unique(each)) == {-1, 1}
    assert "dtype: int1" in (tmp_path / "bundle" / "candidates" / found["id"] / "recipe.yaml").read_text()


def test_a_pruned_model_is_smaller_and_passes_the_same_gate(case: Case, pool: Path, tmp_path: Path) -> None:
    data = dict(np.load(case.data))
    model = wide(tmp_path / "wide.onnx")
    model = wide(model, -reference(model, {"x": data["images"]})["y"].mean(0))  # centred, every class has its samples
    data["labels"] = reference(model, {"x": data["images"]})["y"].argmax(1)
    np.savez(tmp_path / "data.npz", **data)
    asked = {"recipes": ("int8-pruned", *STATIC), "runtimes": ("onnxruntime",), "rounds": 3, "qat_minutes": SECONDS, "train": pool}
    optimize(model, tmp_path / "data.npz", out=tmp_path / "bundle", max_drop="5pp", **asked)  # type: ignore[arg-type]
    found = entries(tmp_path / "bundle")
    pruned, static = found["int8-pruned@onnxruntime"], found["int8-static-minmax@onnxruntime"]
    assert pruned["status"] in ("done", "dropped")
    assert pruned["size_bytes"] < 0.85 * static["size_bytes"]
    stored = onnx.load(tmp_path / "bundle" / pruned["artifact"]).graph.initializer
    assert {tensor.dims[0] for tensor in stored if len(tensor.dims) == 4} <= {16, 32}  # of 48 channels


def wide(path: Path, shift: np.ndarray | None = None) -> Path:  # type: ignore[type-arg]
    """Conv, Relu, Conv, Relu, mean, Gemm: 48 channels, x [N, 3, 8, 8] -> y [N, 10]."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (48, 3, 3, 3), "b1": (48,), "w2": (48, 48, 3, 3), "b2": (48,), "w3": (48, 10), "b3": (10,)}
    weights = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    weights["b3"] = np.zeros(10, np.float32) if shift is None else shift.astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["m"], name="mean"),
        helper.make_node("Flatten", ["m"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="gemm"),
    ]
    return save(path, nodes, {"x": (1, ["N", 3, 8, 8])}, {"y": (1, ["N", 10])}, weights)


def test_asked_for_always_it_is_trained_once(case: Case, pool: Path, tmp_path: Path) -> None:
    options = {"max_drop": "5pp", "recipes": STATIC, "runtimes": ("onnxruntime",), "rounds": 3, "train": pool, "qat": "always"}
    for _ in range(2):
        optimize(case.model, case.data, out=tmp_path / "bundle", qat_minutes=SECONDS, **options)  # type: ignore[arg-type]
    assert [name for name in entries(tmp_path / "bundle") if name.startswith("int8-qat")] == ["int8-qat@onnxruntime"]


def test_labels_of_other_classes_are_refused(case: Case, out: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "more.npz", images=images(60, seed=5), labels=np.full(60, 12))
    with pytest.raises(DataError, match=r"has class 12; the model gives 10 scores"):
        qat(out, case.data, train=tmp_path / "more.npz", train_labels=True, minutes=SECONDS)
