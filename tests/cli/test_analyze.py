"""`lowbit analyze`: from a model and samples to the worst layers and why, as a shell sees it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_runner import lowbit
from onnx import TensorProto, helper

from small_models import cnn_weights, images, save


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "val.npz", images=images(40), labels=np.arange(40) % 10)
    return tmp_path / "val.npz"


def spoiled(path: Path) -> Path:
    """Conv, Relu, Flatten, Gemm; pixel 0 of the convolution's channel 0 is amplified so far that the rest of the tensor has few levels."""
    gain = np.ones((1, 6, 8, 8), np.float32)
    gain[0, 0, 0, 0] = 300
    weights = cnn_weights() | {"gain": gain}
    weights["b1"] = np.full(6, 0.5, np.float32)
    weights["w2"][:, 0] /= 300
    nodes = [
        helper.make_node("Conv", ["input.1", "w1", "b1"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Mul", ["r", "gain"], ["m"], name="amplify"),
        helper.make_node("Flatten", ["m"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["logits"], name="gemm", transB=1),
    ]
    inputs = {"input.1": (TensorProto.FLOAT, ["N", 3, 8, 8])}
    return save(path, nodes, inputs, {"logits": (TensorProto.FLOAT, ["N", 10])}, weights)


def test_the_spoiled_layer_is_named_with_its_reason(data: Path, tmp_path: Path, capfd, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    shell = lowbit(capfd, monkeypatch, "analyze", spoiled(tmp_path / "m.onnx"), "--data", data, "-n", 40)
    assert shell.code == 0, shell.err
    assert "2 layers, each quantized alone:" in shell.out
    rows = [line for line in shell.out.splitlines() if line.startswith(("gemm", "conv"))]
    assert [row.split()[0] for row in rows] == ["gemm", "conv"]
    assert "channels of its input differ" in rows[0]
    assert "With the 1 worst of 2 layers left in floating point" in shell.out
    assert "Calibrating on 40 samples" in shell.err
    assert "Calibrating" not in shell.out


def test_json_has_every_layer_in_order(data: Path, tmp_path: Path, capfd, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "layers.json"
    call = ["analyze", spoiled(tmp_path / "m.onnx"), "--data", data, "-n", 40, "--output", "json", "--out", out]
    shell = lowbit(capfd, monkeypatch, *call)
    assert shell.code == 0, shell.err
    found = json.loads(shell.out)
    assert json.loads(out.read_text()) == found
    assert (found["format"], found["samples"], found["task"], found["kind"]) == ("w8a8", 40, "classification", "classes")
    assert found["passes"] <= 3
    assert [layer["name"] for layer in found["layers"]] == ["conv", "gemm"]
    assert found["leave_in_float"] == ["gemm"]
    gemm = found["layers"][1]
    assert gemm["input_spread"] > 100
    assert gemm["kurtosis"] > 100
    assert gemm["sqnr_activations"] < gemm["sqnr_weights"]
    assert gemm["sqnr_w4a8"] <= gemm["sqnr_activations"] + 0.5
    assert sum(layer["share"] for layer in found["layers"]) == pytest.approx(1)


def test_the_page_shows_a_bar_a_layer(data: Path, tmp_path: Path, capfd, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "layers.html"
    shell = lowbit(capfd, monkeypatch, "analyze", spoiled(tmp_path / "m.onnx"), "--data", data, "--out", out)
    assert shell.code == 0, shell.err
    page = out.read_text()
    assert page.count("<rect") == 2
    assert "<title>gemm: " in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--out", "x.txt"], 2, "ends in neither .json nor .html"),
        (["--out", "nowhere/x.html"], 2, "There is no folder 'nowhere'"),
        (["--runtime", "openvin"], 2, "Did you mean 'openvino'?"),
        (["--ranges", "all"], 2, "'all' is not one of"),
    ],
)
def test_wrong_calls(more: list[str], code: int, said: str, data: Path, tmp_path: Path, capfd, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    shell = lowbit(capfd, monkeypatch, "analyze", spoiled(tmp_path / "m.onnx"), "--data", data, *more)
    assert (shell.code, said in shell.err) == (code, True), shell.err


def test_a_model_without_products_is_refused_kindly(data: Path, tmp_path: Path, capfd, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    nodes = [helper.make_node("Relu", ["input.1"], ["y"], name="relu")]
    shape = (TensorProto.FLOAT, ["N", 3, 8, 8])
    model = save(tmp_path / "relu.onnx", nodes, {"input.1": shape}, {"y": shape}, {})
    shell = lowbit(capfd, monkeypatch, "analyze", model, "--data", data, "--task", "fidelity")
    assert shell.code == 3
    assert "There is nothing to measure" in shell.err


def test_the_first_layers_of_mcunet_do_the_damage(shared_data: Path, capfd, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    model, samples = shared_data / "imagenet-models/mcunet-320kb-1mb.onnx", shared_data / "imagenet-sample"
    call = ["analyze", model, "--data", samples, "--preprocess", "inception", "--output", "json"]
    shell = lowbit(capfd, monkeypatch, *call)
    assert shell.code == 0, shell.err
    found = json.loads(shell.out)
    by_rank = sorted(found["layers"], key=lambda layer: layer["rank"])
    assert len(by_rank) == 55
    # The tensor between the two is the worst there is: both round it when they are quantized alone.
    assert {"/first_conv/conv/Conv", "/blocks/blocks.0/mobile_inverted_conv/depth_conv/conv/Conv"} <= {e["name"] for e in by_rank[:4]}
    assert by_rank[0]["share"] > 5 / 55
