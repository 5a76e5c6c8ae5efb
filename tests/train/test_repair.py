"""What is left after a cut takes over for what has gone: exactly where it can, and never for the worse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from graph_cases import Case, node, weights
from lowbit.graph import ir_files
from lowbit.graph.channel_sets import Carried
from lowbit.graph.channels import channels_of, prune
from lowbit.train.pool import Pool
from lowbit.train.repair import repair
from lowbit.train.twin import Twin
from lowbit.types import Array


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def images(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 1, (count, 1, 8, 8)).astype(np.float32)


def case(*, twice: bool) -> Case:
    """Two convolutions, a sum with the first one's answer, scores; `twice`: channels 4 to 7 in the middle are those before, doubled."""
    nodes = [
        node("Conv", "x w0 b0", "r", pads=[1] * 4),
        node("Conv", "r w1 b1", "a", pads=[1, 0, 1, 2], strides=[2, 1]),
        node("Conv", "a w2 b2", "c"),
        node("Conv", "r w3 _", "d", strides=[2, 1]),
        node("Add", "c d", "s"),
        node("Relu", "s", "o"),
        node("GlobalAveragePool", "o", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f wh bh", "y", transB=1),
    ]
    constants = {
        "w0": weights(6, 1, 3, 3, scale=0.6),
        "b0": weights(6, seed=1),
        "w1": weights(8, 6, 3, 3, seed=2),
        "b1": weights(8, seed=3),
        "w2": weights(6, 8, 1, 1, seed=4),
        "b2": weights(6, seed=5),
        "w3": weights(6, 6, 1, 1, seed=6),
        "wh": weights(5, 6, seed=7),
        "bh": weights(5, seed=8),
    }
    if twice:
        for name in ("w1", "b1"):
            constants[name][4:] = 2 * constants[name][:4]  # type: ignore[index]
    return Case(nodes, {"x": ["N", 1, 8, 8]}, ["y"], constants)


def halved(tmp_path: Path, *, twice: bool) -> tuple[Twin, Twin, dict[str, Carried]]:
    """The model, and the same without channels 4 to 7 in the middle; where its channels were."""
    source, out = case(twice=twice).save(tmp_path / "model.onnx"), tmp_path / "cut.onnx"
    found, model = channels_of(ir_files.read(source).graph), ir_files.read(source)
    chosen = {"Conv:a": np.arange(8) < 4}
    prune(model, chosen)
    ir_files.write(model, out)
    stays = found.kept(chosen)
    kept = {name: Carried(np.flatnonzero(stays[each.channels]), each.axis, each.rank) for name, each in found.carried.items()}
    return Twin(source), Twin(out), kept


def distance(one: Twin, other: Twin, x: Array) -> float:
    with torch.no_grad():
        ours, theirs = (twin({"x": torch.from_numpy(x)})["y"] for twin in (one, other))
    return float((ours - theirs).square().sum() / theirs.square().sum())


def test_channels_that_said_nothing_new_are_replaced_exactly(tmp_path: Path) -> None:
    teacher, student, kept = halved(tmp_path, twice=True)
    fresh = images(50, seed=9)
    before = distance(student, teacher, fresh)
    found = repair(student, teacher, Pool({"x": images(256)}), kept)
    assert before > 0.05
    assert distance(student, teacher, fresh) < 1e-3 * before
    was, now = found["Conv:c"]
    assert now < 1e-3 * was
    assert found["Conv:r"] == pytest.approx((0, 0), abs=1e-9)


def test_what_cannot_be_replaced_comes_nearer(tmp_path: Path) -> None:
    teacher, student, kept = halved(tmp_path, twice=False)
    fresh = images(50, seed=9)
    before = distance(student, teacher, fresh)
    found = repair(student, teacher, Pool({"x": images(256)}), kept)
    assert distance(student, teacher, fresh) < 0.7 * before
    assert all(now <= was for was, now in found.values())


def test_few_samples_do_no_harm(tmp_path: Path) -> None:
    """Three batches, the first of which judges: a solution that does not carry over is not used."""
    teacher, student, kept = halved(tmp_path, twice=True)
    before = distance(student, teacher, images(50, seed=9))
    repair(student, teacher, Pool({"x": images(130)}), kept)
    assert distance(student, teacher, images(50, seed=9)) < before
