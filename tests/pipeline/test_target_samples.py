"""Samples for targets that measure ranges by themselves: none of them judges what came of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from target_case import INPUT, OUTPUT, samples, target_bundle

from conftest import missing
from lowbit.bundle.bundle import Bundle
from lowbit.data.dataset import Dataset
from lowbit.data.open import open_data
from lowbit.errors import DataError
from lowbit.export.litert.recalibrated.environment import environment
from lowbit.export.litert.target import LiteRT
from lowbit.export.neutral import Neutral
from lowbit.pipeline.targets.leave import leave
from lowbit.pipeline.targets.samples import parted, with_samples
from lowbit.types import Array, TensorInfo

IMAGE = TensorInfo("x", ("N", 3, 4, 4), "float32")


def opened(n: int, seed: int) -> Dataset:
    values = np.random.default_rng(seed).normal(size=(n, 3, 4, 4)).astype(np.float32)
    return open_data({"x": values, "label": np.arange(n) % 2}, [IMAGE])


def source() -> Neutral:
    return Neutral("m", ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), {}, {}, {}, {}, (IMAGE,), (), None, (), "int8")


def rows(values: Array) -> set[bytes]:
    return {row.tobytes() for row in values}


def of(data: Dataset) -> set[bytes]:
    return rows(next(data.batches(len(data))).feeds["x"])


def test_given_samples_calibrate_and_all_others_judge() -> None:
    judges, calibration = opened(60, 1), opened(40, 2)
    found, left = with_samples(source(), judges, calibration, 25)
    assert found.samples["x"].shape == (25, 3, 4, 4)
    assert rows(found.samples["x"]) < of(calibration)
    assert of(left) == of(judges)
    assert len(with_samples(source(), judges, calibration, 100)[0].samples["x"]) == 40


def test_without_others_some_judges_are_set_aside() -> None:
    judges = opened(60, 1)
    found, left = with_samples(source(), judges, None, 10)
    assert len(found.samples["x"]) == 10
    assert len(left) == 48  # a fifth was set aside, of which ten were wanted
    assert not rows(found.samples["x"]) & of(left)
    again, same = with_samples(source(), judges.subset(np.arange(60)[::-1]), None, 10)
    assert np.array_equal(found.samples["x"], again.samples["x"]), "whatever the order"
    assert left.fingerprint == same.fingerprint


def test_what_calibrates_may_not_judge() -> None:
    data = opened(40, 3)
    with pytest.raises(DataError, match="also validation samples"):
        with_samples(source(), data, data.subset(np.arange(10)), 10)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return target_bundle(tmp_path_factory.mktemp("samples"))


def labelled(bundle: Bundle, pictures: Array) -> dict[str, Array]:
    with bundle.session(candidate=bundle.manifest.baseline.id) as session:
        return {INPUT: pictures, "label": session.run({INPUT: pictures})[OUTPUT].argmax(1)}


def test_the_search_s_own_samples_calibrate_where_they_are_among_the_data(bundle: Bundle) -> None:
    judges, known = parted(bundle, labelled(bundle, samples(300)))
    assert judges is not None
    assert known is not None
    assert len(known) == bundle.manifest.data.calibration.n
    assert known.fingerprint == bundle.manifest.data.calibration.sha256
    assert len(judges) + len(known) == 300
    assert not np.isin(known.hashes, judges.hashes).any()
    others, none = parted(bundle, labelled(bundle, samples(50, seed=8)))
    assert others is not None
    assert len(others) == 50
    assert none is None
    assert parted(bundle, None) == (None, None)


def test_an_export_recalibrates_on_them(bundle: Bundle, tmp_path: Path) -> None:
    if LiteRT().version() is None or environment() is None:
        missing("litert-torch's environment (LOWBIT_LITERT_TORCH_PYTHON or .venv-litert-torch)")
    data, out = labelled(bundle, samples(300)), tmp_path / "out"
    found = leave(bundle, "litert", out, data=data, settings=["way=recalibrated"], time=False)
    assert found.facts["recipe"] == "static_wi8_ai8"
    assert found.facts["calibration_samples"] == min(100, bundle.manifest.data.calibration.n)
    assert found.words.startswith("recalibrated")
    assert [each.kernels for each in found.kernels] == ["recalibrated: xnnpack", "recalibrated: built-in"]
    for each in found.kernels:
        assert each.error is None
        assert each.samples == 300 - bundle.manifest.data.calibration.n
        assert each.agreement >= 0.85
        assert each.verdict in ("ship", "provisional")
        assert np.isnan(each.identical), "there is no exact reference"
