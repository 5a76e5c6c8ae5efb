"""How a target's answers are compared: the same classes, the cosine, the levels; and what it is asked."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from lowbit.bundle.bundle import Bundle
from lowbit.bundle.schema import CalibrationEntry, DataEntry, ValidationEntry
from lowbit.data import split
from lowbit.data.open import open_data
from lowbit.errors import DataError
from lowbit.export.base import Abilities, Finding
from lowbit.export.neutral import Neutral
from lowbit.export.program.program import Kind, Operation, Port, Program, Tensor
from lowbit.pipeline.targets.leave import words_of
from lowbit.pipeline.targets.prove import agreement, cosine, identical, with_ties
from lowbit.pipeline.targets.samples import draws, questions, whole_calls, without_calibration
from lowbit.quant.affine import Affine, dequantize
from lowbit.quant.observers import Observer, TensorStats
from lowbit.types import Dim, TensorInfo

IMAGE = TensorInfo("x", ("N", 3, 4, 4), "float32")


def test_agreement_is_the_share_of_the_same_largest_outputs() -> None:
    ours = np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]]
    theirs = ours.copy()
    theirs[0] = theirs[1]
    share, low, high = agreement(theirs, ours)
    assert share == 7 / 8
    assert low == pytest.approx(0.5291, abs=1e-4)  # Wilson's interval of 7 of 8
    assert high == pytest.approx(0.9776, abs=1e-4)


def test_equal_highest_outputs_count_as_the_same_only_where_that_is_said() -> None:
    ours, theirs = np.array([[0.0, 0.9, 1.0], [1.0, 0.0, 0.0]]), np.array([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    assert agreement(theirs, ours)[0] == 0.0
    assert with_ties(theirs, ours) == 0.5
    assert math.isnan(with_ties(np.zeros((5, 1)), np.zeros((5, 1))))


def test_one_number_a_sample_has_no_class() -> None:
    assert all(math.isnan(value) for value in agreement(np.zeros((5, 1)), np.zeros((5, 1))))
    assert all(math.isnan(value) for value in agreement(np.zeros((5, 3)), np.zeros((5, 4))))


def test_cosine_is_a_mean_over_samples() -> None:
    ours = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    assert cosine(ours, ours) == 1.0
    assert cosine(np.array([[3.0, 0.0], [2.0, 0.0], [0.0, 0.0]]), ours) == pytest.approx(2 / 3)
    assert cosine(-ours, ours) == pytest.approx(-1 / 3)


def test_of_one_number_a_sample_the_cosine_is_over_all_samples() -> None:
    ours, theirs = np.array([[1.0], [2.0], [2.0]]), np.array([[2.0], [1.0], [2.0]])
    assert cosine(theirs, ours) == pytest.approx(-0.5), "their correlation"
    assert cosine(np.ones((3, 1)), ours) == 0.0, "a constant says nothing"
    assert cosine(ours, ours) == pytest.approx(1.0)


def test_levels_are_counted_on_the_outputs_own_grid() -> None:
    grid = Affine(np.float32(0.5), np.int32(-3), "int8", symmetric=False)
    tensors = {"q": Tensor("q", (1, 4), "int8", grid), "real": Tensor("real", (1, 4), "float32")}
    program = Program("p", tensors, (Operation(Kind.DEQUANTIZE, ("q",), ("real",)),), (), (Port("y", (1, 4), "real"),))
    levels = np.array([[-128, -3, 0, 127]], np.int8)
    answers = dequantize(levels, grid)
    assert identical(program, [{"y": levels}], [{"y": answers}]) == (1.0, 0)
    assert identical(program, [{"y": levels}], [{"y": answers + np.float32([0, 1.5, 0, 0])}]) == (0.75, 3)


def test_draws_are_distributed_as_calibration_saw_it() -> None:
    seen = np.random.default_rng(0).normal(2.0, 0.5, 20_000).astype(np.float32)
    stats = Observer().update(seen).finalize()
    found = draws(stats, IMAGE, 300)
    assert found.shape == (300, 3, 4, 4)
    assert found.dtype == np.float32
    assert found.mean() == pytest.approx(2.0, abs=0.02)
    assert found.std() == pytest.approx(0.5, abs=0.02)
    assert found.min() >= stats.low
    assert found.max() <= stats.high
    assert np.array_equal(found, draws(stats, IMAGE, 300))


def test_without_a_histogram_draws_are_uniform_between_the_extremes() -> None:
    found = draws(TensorStats(-1.0, 3.0), IMAGE, 200)
    assert found.mean() == pytest.approx(1.0, abs=0.05)
    assert found.min() < -0.95
    assert found.max() > 2.95


@pytest.mark.parametrize(
    ("stats", "info"),
    [
        (None, IMAGE),
        (TensorStats(0.0, 1.0), TensorInfo("ids", ("N", 8), "int64")),
        (TensorStats(0.0, 1.0), TensorInfo("x", ("N", "t"), "float32")),
    ],
)
def test_what_cannot_be_made_up_is_asked_for(stats: TensorStats | None, info: TensorInfo) -> None:
    with pytest.raises(DataError, match=info.name) as caught:
        draws(stats, info, 4)
    assert "--data" in str(caught.value.hint)


def test_maps_and_sequences_have_no_row_of_classes() -> None:
    maps = np.random.default_rng(0).normal(size=(3, 4, 5, 6))
    assert all(math.isnan(value) for value in (*agreement(maps, maps), with_ties(maps, maps)))


@pytest.mark.parametrize(("n", "batch", "whole"), [(500, None, 500), (500, "N", 500), (500, 1, 500), (500, 8, 496), (3, 8, 8)])
def test_calls_of_a_fixed_batch_are_full(n: int, batch: Dim, whole: int) -> None:
    assert whole_calls(n, batch) == whole


def test_too_few_samples_for_one_call_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(10 * 48, dtype=np.float32).reshape(10, 3, 4, 4))
    sixteen = TensorInfo("x", (16, 3, 4, 4), "float32")
    source = Neutral("m", ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), {}, {}, {}, {}, (sixteen,), (), None, (), "int8")
    with pytest.raises(DataError, match="10 samples are left to judge, and the model takes 16 in a call"):
        questions(source, open_data(tmp_path / "data.npz", [IMAGE]), 500)


@pytest.mark.parametrize("limit", [None, 300])
def test_what_calibrated_is_not_asked_again(limit: int | None, tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(500, 3, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=values, label=np.arange(500) // 250)
    searched = open_data(tmp_path / "data.npz", [IMAGE], limit=limit)
    parts = split(searched, None, None)
    validation = ValidationEntry(
        sha256="0" * 64, n=len(parts.validation), n_search=len(parts.search), n_confirm=len(parts.confirm), skipped=0
    )
    calibration = CalibrationEntry(sha256=parts.calibration.fingerprint, n=len(parts.calibration), how_selected="")
    known = DataEntry(source="data.npz", calibration=calibration, validation=validation)
    bundle = Bundle(tmp_path / "bundle", SimpleNamespace(data=known))  # type: ignore[arg-type]
    left = without_calibration(bundle, open_data(tmp_path / "data.npz", [IMAGE]))
    assert len(left) == 500 - len(parts.calibration)
    assert not np.isin(left.hashes, parts.calibration.hashes).any()
    assert len(without_calibration(bundle, searched.subset(np.arange(100)))) == 100, "another part is not recognised without hashes"


def test_what_calibrated_is_known_by_its_content(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(60, 3, 4, 4)).astype(np.float32)
    data = open_data({"x": values, "label": np.arange(60) % 2}, [IMAGE])
    (tmp_path / "calibration").mkdir()
    np.save(tmp_path / "calibration" / "samples.npy", np.sort(data.hashes[:20]))
    bundle = Bundle(tmp_path, SimpleNamespace(data=None))  # type: ignore[arg-type]
    some = data.subset(np.arange(10, 40))
    assert np.array_equal(without_calibration(bundle, some).hashes, data.hashes[20:40])
    assert len(without_calibration(bundle, data.subset(np.arange(20)))) == 0


def test_words_follow_from_what_was_found() -> None:
    able = Abilities(True, "checked", (), "meets documented conditions; not compiled")
    note, warning = Finding("r", "note", "n"), Finding("r", "warning", "w")
    assert words_of(able, (note,), ()) == able.words
    assert words_of(able, (note, warning), ()).startswith("does not meet all documented conditions")
