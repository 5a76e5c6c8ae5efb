"""Feeding batches to a session and keeping one row per sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowbit.errors import DataError, RunError
from lowbit.pipeline.evaluate import Reference, call_batch, repeated, run_padded
from lowbit.types import Array, Feeds, TensorInfo


class Fixed:
    """A session whose batch size is fixed, and which counts what it is fed."""

    inputs = (TensorInfo("x", (4, 2), "float32"),)
    outputs = (TensorInfo("y", (4,), "float32"),)

    def __init__(self, answer: Any) -> None:
        self.answer, self.fed = answer, 0

    def run(self, feeds: Feeds) -> dict[str, Array]:
        self.fed = len(feeds["x"])
        found: dict[str, Array] = self.answer(feeds["x"])
        return found


def test_a_short_batch_is_filled_up_and_cut_again() -> None:
    session = Fixed(lambda x: {"y": x.sum(axis=1)})
    x = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    outputs = run_padded(session, {"x": x}, 4)  # type: ignore[arg-type]
    assert session.fed == 4
    assert outputs["y"].tolist() == [3, 7, 11]


def test_an_output_without_a_row_per_sample_is_left_out() -> None:
    session = Fixed(lambda x: {"y": x[:, 0], "loss": np.float32(1), "flat": np.zeros((6 * len(x), 3))})
    assert set(run_padded(session, {"x": np.zeros((4, 2), np.float32)}, 4)) == {"y"}  # type: ignore[arg-type]


def test_a_model_that_answers_no_sample_is_refused() -> None:
    """Forty-eight rows for eight samples are not eight answers."""
    session = Fixed(lambda x: {"flat": np.zeros((6 * len(x), 3))})
    with pytest.raises(RunError, match="No output has a row for each of 4 samples"):
        run_padded(session, {"x": np.zeros((4, 2), np.float32)}, 4)  # type: ignore[arg-type]


def test_reference_outputs_come_back_by_row(tmp_path: Path) -> None:
    reference = Reference(tmp_path / "r", 5)
    reference.write(np.arange(3), {"y": np.arange(6, dtype=np.float32).reshape(3, 2)})
    reference.write(np.arange(3, 5), {"y": np.array([[6, 7], [8, 9]], np.float32)})
    assert reference.rows(np.array([4, 0]))["y"].tolist() == [[8, 9], [0, 1]]


def test_outputs_that_change_their_shape_are_refused(tmp_path: Path) -> None:
    reference = Reference(tmp_path / "r", 4)
    reference.write(np.arange(2), {"y": np.zeros((2, 3))})
    with pytest.raises(DataError, match="changes its shape"):
        reference.write(np.arange(2, 4), {"y": np.zeros((2, 5))})


def test_repeated_fills_up_in_order() -> None:
    assert repeated(np.array([1, 2, 3]), 7).tolist() == [1, 2, 3, 1, 2, 3, 1]


def test_the_models_own_batch_goes_before_the_wanted() -> None:
    assert call_batch((TensorInfo("x", (4, 2), "float32"),), 32) == 4
    assert call_batch((TensorInfo("x", ("N", 2), "float32"),), 32) == 32
