"""`lowbit calibrate select`: from a pool to a listing that calibrates, as a shell sees it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_runner import lowbit

from lowbit.cli.calibrate import METHODS as OFFERED
from lowbit.data import open_data
from lowbit.data.selection import METHODS
from lowbit.errors import UsageError
from lowbit.graph.load import load_model
from lowbit.pipeline.request import Options, read_request
from lowbit.pipeline.select import select, without_copies
from lowbit.types import TensorInfo
from small_models import cnn, images


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """60 different images of three classes, and the first six once more."""
    x = images(60)
    x[7] *= 5  # an edge case
    rows = np.concatenate([np.arange(60), np.arange(6)])
    np.savez(tmp_path / "pool.npz", images=x[rows], labels=rows % 3, light=np.where(rows % 10, "day", "night"))
    return tmp_path / "pool.npz"


def test_a_selection_calibrates_a_search(pool: Path, tmp_path: Path, capfd, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    model, out = cnn(tmp_path / "m.onnx"), tmp_path / "selection.json"
    shell = lowbit(capfd, monkeypatch, "calibrate", "select", pool, "--model", model, "-n", 12, "--slice", "light", "--out", out)
    assert shell.code == 0, shell.err
    assert "12 of 60 samples of pool.npz by mixed, labels and slices in proportion, 6 copies left out" in shell.out
    assert "Listing: " in shell.out
    listing = json.loads(out.read_text())
    rows = [sample["row"] for sample in listing["samples"]]
    assert len(set(rows)) == 12
    assert 7 in rows
    assert set(np.load(pool)["light"][rows]) == {"day", "night"}
    assert np.bincount(np.load(pool)["labels"][rows]).min() >= 2

    np.savez(tmp_path / "val.npz", images=images(40, seed=9), labels=np.arange(40) % 3)
    request = read_request(model, tmp_path / "val.npz", Options(calibration=out))
    assert request.split.calibration.rows.tolist() == sorted(rows)
    assert request.split.how_selected == "given: pool.npz, 12 samples"
    with pytest.raises(Exception, match="calibration samples are also validation samples"):
        read_request(model, pool, Options(calibration=out))


def test_the_report_says_what_production_has_more(pool: Path, tmp_path: Path, capfd, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    model, out = cnn(tmp_path / "m.onnx"), tmp_path / "s.json"
    np.savez(tmp_path / "seen.npz", images=np.concatenate([images(20, seed=3), 30 * images(4, seed=4)]))
    call = ["calibrate", "select", pool, "--model", model, "-n", 16, "--production", tmp_path / "seen.npz", "--out", out]
    shell = lowbit(capfd, monkeypatch, *call, "--output", "json")
    assert shell.code == 0, shell.err
    seen = json.loads(shell.out)["coverage"]["production"]
    assert seen["n"] == 24
    assert 4 <= seen["exceeding"] < 12
    assert {entry["name"] for entry in seen["worst"][:4]} == {f"row {i}" for i in range(20, 24)}
    table = lowbit(capfd, monkeypatch, *call)
    assert f"Production: {seen['outside']} of 24 samples lie outside" in table.out
    assert "exceeds the range of" in table.out


def test_the_order_of_the_pool_does_not_matter(pool: Path, tmp_path: Path) -> None:
    model = cnn(tmp_path / "m.onnx")
    arrays = dict(np.load(pool))
    first = select(arrays, 12, model=model)
    order = np.random.default_rng(0).permutation(len(arrays["images"]))
    second = select({name: values[order] for name, values in arrays.items()}, 12, model=model)
    assert sorted(first.chosen.hashes) == sorted(second.chosen.hashes)
    assert first.coverage == second.coverage
    assert sorted(select(arrays, 12, model=model, method="random", seed=1).chosen.hashes) != sorted(first.chosen.hashes)


def test_of_copies_with_different_labels_the_order_decides_nothing() -> None:
    x, labels = np.repeat(images(12), 2, axis=0), np.arange(24) % 2
    info = [TensorInfo("x", (None, 3, 8, 8), "float32")]
    for order in (np.arange(24), np.arange(24)[::-1]):
        found, copies = without_copies(open_data({"x": x[order], "labels": labels[order]}, info))
        assert (len(found), copies) == (12, 12)
        assert found.labels is not None
        assert found.labels.tolist() == [0] * 12


def test_without_a_model_the_same_listing_fits_it(pool: Path, tmp_path: Path, capfd, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "s.json"
    shell = lowbit(capfd, monkeypatch, "calibrate", "select", pool, "-n", 10, "--no-stratify", "--out", out)
    assert shell.code == 0, shell.err
    assert "give --model" in shell.err
    assert "in proportion" not in shell.out
    assert len(open_data(out, load_model(cnn(tmp_path / "m.onnx")).inputs)) == 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-n", "61"], "61 samples were asked for; 'pool.npz' has 60 different ones"),
        (["--out", "s.txt"], "does not end in .json"),
        (["-n", "7"], "7 is not in the range"),
        (["--method", "kmeans"], "'kmeans' is not one of"),
    ],
)
def test_wrong_calls_are_named(pool: Path, tmp_path: Path, capfd, monkeypatch, arguments: list[str], words: str) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    shell = lowbit(capfd, monkeypatch, "calibrate", "select", pool, *arguments)
    assert shell.code == 2
    assert words in shell.err
    assert not (tmp_path / "selection.json").exists()


def test_the_methods_offered_are_those_there_are() -> None:
    assert OFFERED == METHODS
    with pytest.raises(UsageError, match="Unknown selection method 'kmeans'"):
        select({"x": np.zeros((9, 2))}, 8, method="kmeans")  # type: ignore[arg-type]


def test_real_data(shared_data: Path) -> None:
    """ResNet-20 and CIFAR: chosen samples reach further than random ones, and photographs of another kind lie outside."""
    pool, model = shared_data / "cifar10" / "cifar10_train5k.npz", shared_data / "cifar10-resnet" / "resnet20.onnx"
    found = select(pool, 64, model=model, preprocess="imagenet", limit=1000, production={"images": np.full((8, 3, 32, 32), 255, np.uint8)})
    coverage = found.coverage
    assert coverage.chosen.ranges > coverage.random.ranges + 0.03
    assert coverage.chosen.farthest < 0.9 * coverage.random.farthest
    assert coverage.chosen.groups == 1.0
    assert coverage.production is not None
    assert coverage.production.outside == 8
