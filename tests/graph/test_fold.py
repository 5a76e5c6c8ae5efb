"""Batch norms merge into the products around them and change no answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from graph_cases import Case, count, node, run, samples, weights
from lowbit.graph.fold import fold_batch_norms
from lowbit.graph.load import load_model
from lowbit.graph.prepare import prepare
from lowbit.types import Array


def norm(channels: int, seed: int = 9) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(0.5, 1.5, channels).astype(np.float32) for name in ("g", "b", "m", "v")}


BN = "g b m v"
IMAGE, ROW = {"x": ["N", 4, 8, 8]}, {"x": ["N", 16]}

FOLDED = {
    "Conv": Case(
        [node("Conv", "x w", "c"), node("BatchNormalization", f"c {BN}", "y")], IMAGE, ["y"], {"w": weights(6, 4, 3, 3), **norm(6)}
    ),
    "depthwise Conv": Case(
        [node("Conv", "x w k", "c", group=4), node("BatchNormalization", f"c {BN}", "y")],
        IMAGE,
        ["y"],
        {"w": weights(8, 1, 3, 3), "k": weights(8), **norm(8)},
    ),
    "ConvTranspose": Case(
        [node("ConvTranspose", "x w k", "c"), node("BatchNormalization", f"c {BN}", "y", epsilon=0.1)],
        IMAGE,
        ["y"],
        {"w": weights(4, 6, 3, 3), "k": weights(6), **norm(6)},
    ),
    "grouped ConvTranspose": Case(
        [node("ConvTranspose", "x w", "c", group=2), node("BatchNormalization", f"c {BN}", "y")],
        IMAGE,
        ["y"],
        {"w": weights(4, 3, 3, 3), **norm(6)},
    ),
    "Gemm": Case([node("Gemm", "x w", "c"), node("BatchNormalization", f"c {BN}", "y")], ROW, ["y"], {"w": weights(16, 6), **norm(6)}),
    "Gemm transposed": Case(
        [node("Gemm", "x w k", "c", transB=1), node("BatchNormalization", f"c {BN}", "r"), node("Relu", "r", "y")],
        ROW,
        ["y"],
        {"w": weights(6, 16), "k": weights(1), **norm(6)},
    ),
    "before two Conv": Case(
        [
            node("BatchNormalization", f"x {BN}", "n"),
            node("Conv", "n w k", "a"),
            node("Conv", "n u", "d", group=2),
            node("Concat", "a d", "y", axis=1),
        ],
        IMAGE,
        ["y"],
        {"w": weights(3, 4, 3, 3), "k": weights(3), "u": weights(6, 2, 3, 3), **norm(4)},
    ),
    "before Gemm": Case(
        [node("BatchNormalization", f"x {BN}", "n"), node("Gemm", "n w", "y")], ROW, ["y"], {"w": weights(16, 6), **norm(16)}
    ),
    "before a padded Conv, without a shift": Case(
        [node("BatchNormalization", f"x {BN}", "n"), node("Conv", "n w", "y", pads=[1, 1, 1, 1])],
        IMAGE,
        ["y"],
        {"w": weights(3, 4, 3, 3), **norm(4), "b": np.zeros(4, np.float32), "m": np.zeros(4, np.float32)},
    ),
}

LEFT = {
    "before a padded Conv": Case(
        [node("BatchNormalization", f"x {BN}", "n"), node("Conv", "n w", "y", pads=[1, 1, 1, 1])],
        IMAGE,
        ["y"],
        {"w": weights(3, 4, 3, 3), **norm(4)},
    ),
    "before a Relu": Case(
        [node("BatchNormalization", f"x {BN}", "n"), node("Relu", "n", "r"), node("Conv", "r w", "y")],
        IMAGE,
        ["y"],
        {"w": weights(3, 4, 3, 3), **norm(4)},
    ),
    "behind a Conv that another reads": Case(
        [node("Conv", "x w", "c"), node("BatchNormalization", f"c {BN}", "n"), node("Add", "c n", "y")],
        IMAGE,
        ["y"],
        {"w": weights(6, 4, 3, 3), **norm(6)},
    ),
    "between an output and a Conv that only one of its readers is": Case(
        [node("BatchNormalization", f"x {BN}", "n"), node("Conv", "n w", "y")], IMAGE, ["y", "n"], {"w": weights(3, 4, 3, 3), **norm(4)}
    ),
}


def folded(case: Case) -> tuple[int, onnx.ModelProto]:
    import onnx_ir

    model = onnx_ir.from_proto(case.proto())
    merged = fold_batch_norms(model)
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return merged, proto


def feeds(case: Case) -> dict[str, Array]:
    return {"x": samples([3 if size == "N" else int(size) for size in case.inputs["x"]])}


@pytest.mark.parametrize("name", FOLDED)
def test_what_can_be_merged_is(name: str) -> None:
    merged, model = folded(FOLDED[name])
    assert merged == 1
    assert count(model, "BatchNormalization") == 0
    for output, found in run(model, feeds(FOLDED[name])).items():
        np.testing.assert_allclose(found, run(FOLDED[name].proto(), feeds(FOLDED[name]))[output], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_is_left(name: str) -> None:
    merged, model = folded(LEFT[name])
    assert merged == 0
    assert count(model, "BatchNormalization") == 1
    for output, found in run(model, feeds(LEFT[name])).items():
        np.testing.assert_allclose(found, run(LEFT[name].proto(), feeds(LEFT[name]))[output], rtol=1e-5, atol=1e-5)


def test_a_weight_that_others_read_too_is_theirs_still() -> None:
    nodes = [node("Conv", "x w", "c"), node("BatchNormalization", f"c {BN}", "n"), node("Conv", "x w", "d"), node("Add", "n d", "y")]
    case = Case(nodes, IMAGE, ["y"], {"w": weights(6, 4, 3, 3), **norm(6)})
    merged, model = folded(case)
    assert merged == 1
    np.testing.assert_allclose(run(model, feeds(case))["y"], run(case.proto(), feeds(case))["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FOLDED)
def test_preparing_a_model_merges_them(tmp_path: Path, name: str) -> None:
    case = FOLDED[name]
    path = prepare(load_model(case.save(tmp_path / "m.onnx")), tmp_path / "prepared.onnx")
    model = onnx.load(path)
    assert count(model, "BatchNormalization") == 0
    np.testing.assert_allclose(run(model, feeds(case))["y"], run(case.proto(), feeds(case))["y"], rtol=1e-4, atol=1e-4)
