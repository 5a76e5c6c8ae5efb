"""Per-sample columns on disk: whole or not there, and a kind word for what is damaged."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.errors import DataError
from lowbit.measure.outcomes import Outcomes

COLUMNS = {"finite": np.ones(2000, bool), "cosine": np.random.default_rng(0).normal(size=2000), "pair": np.arange(2000)}


def test_what_is_saved_comes_back(tmp_path):
    Outcomes(COLUMNS).save(tmp_path / "o.npz")
    loaded = Outcomes.load(tmp_path / "o.npz").columns
    assert set(loaded) == set(COLUMNS)
    assert all(np.array_equal(loaded[name], values) and loaded[name].dtype == values.dtype for name, values in COLUMNS.items())
    assert [file.name for file in tmp_path.iterdir()] == ["o.npz"]


def test_a_save_that_fails_leaves_what_was_there(tmp_path):
    Outcomes(COLUMNS).save(tmp_path / "o.npz")
    before = (tmp_path / "o.npz").read_bytes()
    with pytest.raises(ValueError, match="allow_pickle"):
        Outcomes({"first": np.zeros(2), "second": np.array([None, {}])}).save(tmp_path / "o.npz")
    assert (tmp_path / "o.npz").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["o.npz"]


@pytest.mark.parametrize("kept", [0, 3, 40, 300, 5000, -30, -1])
def test_a_cut_off_file_is_no_outcomes(tmp_path, kept):
    Outcomes(COLUMNS).save(tmp_path / "o.npz")
    whole = (tmp_path / "o.npz").read_bytes()
    (tmp_path / "o.npz").write_bytes(whole[:kept])
    with pytest.raises(DataError, match=r"o\.npz.*per-sample outcomes"):
        Outcomes.load(tmp_path / "o.npz")


def test_no_flipped_byte_comes_out_as_a_bare_error(tmp_path):
    Outcomes(COLUMNS).save(tmp_path / "o.npz")
    whole = (tmp_path / "o.npz").read_bytes()
    refused = 0
    for position in np.random.default_rng(1).integers(0, len(whole), 300).tolist():
        (tmp_path / "o.npz").write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            Outcomes.load(tmp_path / "o.npz")
        except DataError:
            refused += 1
    assert refused > 250


def test_what_is_no_archive_of_columns(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "single.npz", value=np.array(3))
    np.savez(tmp_path / "uneven.npz", a=np.zeros(3), b=np.zeros(4))
    np.savez(tmp_path / "empty.npz")
    for name in ("one.npy", "single.npz", "uneven.npz", "empty.npz", "absent.npz"):
        with pytest.raises(DataError, match="per-sample outcomes"):
            Outcomes.load(tmp_path / name)
