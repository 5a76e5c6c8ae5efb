"""A table of tensor statistics as plain arrays, and on disk as one `.npz`."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lowbit.errors import DataError
from lowbit.quant.observers import Histogram, TensorStats
from lowbit.types import Array

SCHEMA = 1


def to_arrays(tensors: Mapping[str, TensorStats]) -> dict[str, Array]:
    """All statistics side by side, one row a tensor; the histograms lie one after another in `counts`."""
    stats = list(tensors.values())
    histograms = [s.histogram for s in stats]
    return {
        "schema": np.array(SCHEMA),
        "name": np.array(list(tensors), dtype=np.str_),
        "low": np.array([s.low for s in stats], np.float64),
        "high": np.array([s.high for s in stats], np.float64),
        "exponent": np.array([h.exponent for h in histograms], np.int32),
        "first": np.array([h.first for h in histograms], np.int64),
        "zeros": np.array([h.zeros for h in histograms], np.int64),
        "bins": np.array([len(h.counts) for h in histograms], np.int64),
        "counts": np.concatenate([np.zeros(0, np.int64), *(h.counts for h in histograms)]),
    }


def from_arrays(arrays: Mapping[str, Array]) -> dict[str, TensorStats]:
    """What `to_arrays` was given.

    Raises:
        DataError: of another schema.
    """
    if int(arrays["schema"]) != SCHEMA:
        raise DataError(f"Calibration statistics have schema {int(arrays['schema'])}; this version reads {SCHEMA}.", "Calibrate again.")
    ends = np.cumsum(arrays["bins"])
    tensors: dict[str, TensorStats] = {}
    for i, name in enumerate(arrays["name"]):
        counts = arrays["counts"][ends[i] - arrays["bins"][i] : ends[i]]
        histogram = Histogram(int(arrays["exponent"][i]), int(arrays["first"][i]), counts, int(arrays["zeros"][i]))
        tensors[str(name)] = TensorStats(float(arrays["low"][i]), float(arrays["high"][i]), histogram)
    return tensors


def write(path: Path, arrays: Mapping[str, Array]) -> None:
    """Writes arrays as a compressed `.npz`; the same arrays give the same bytes. Nothing half-written stays behind."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Array]:
    """Reads what `write` wrote.

    Raises:
        DataError: no such file, or not one of ours.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError as error:
        raise DataError(f"No calibration statistics at '{path.name}'.", "Calibrate first.") from error
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"'{path.name}' does not hold calibration statistics.", "Calibrate again.") from error
