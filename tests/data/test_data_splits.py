"""The split: disjoint by content whatever the duplicates, the same whatever the order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.data import Dataset, open_data, refuse_leak, split
from lowbit.errors import DataError
from lowbit.types import TensorInfo

ROW = [TensorInfo("x", ("n", 1), "float32")]


def made(values, labels=None, name: str = "x") -> Dataset:
    arrays = {name: np.asarray(values, np.float32)[:, np.newaxis]}
    return open_data(arrays if labels is None else {**arrays, "y": np.asarray(labels)}, ROW)


def contents(data: Dataset) -> list[tuple[int, int]]:
    labels = np.zeros(len(data), int) if data.labels is None else data.labels
    return list(zip(data.hashes.tolist(), labels.tolist(), strict=True))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=8, max_size=60), st.randoms(use_true_random=False))
def test_parts_are_disjoint_complete_and_independent_of_order(samples, random) -> None:
    data = made([value for value, _ in samples], [label for _, label in samples])
    if len(set(data.hashes.tolist())) < 3:
        with pytest.raises(DataError, match="different samples"):
            split(data)
        return
    parts = split(data)
    three = [parts.calibration, parts.search, parts.confirm]
    hashes = [set(part.hashes.tolist()) for part in three]
    assert all(hashes)
    assert len(hashes[0] | hashes[1] | hashes[2]) == sum(map(len, hashes))
    assert sorted(sample for part in three for sample in contents(part)) == sorted(contents(data))
    shuffled = list(samples)
    random.shuffle(shuffled)
    again = split(made([value for value, _ in shuffled], [label for _, label in shuffled]))
    for part, other in zip(three, (again.calibration, again.search, again.confirm), strict=True):
        assert contents(part) == contents(other)
        assert part.fingerprint == other.fingerprint


def test_sizes_and_lowest_hashes() -> None:
    data = made(range(1000), np.arange(1000) % 4)
    parts = split(data)
    assert (len(parts.calibration), len(parts.search), len(parts.confirm)) == (200, 400, 400)
    assert parts.calibration.hashes.max() < min(parts.search.hashes.min(), parts.confirm.hashes.min())
    assert parts.how_selected == "lowest content hashes: 200 of 1000 samples"
    assert len(split(made(range(4000))).calibration) == 512


def test_each_beginning_of_a_part_is_a_random_sample() -> None:
    data = made(range(1000), np.arange(1000) // 250)  # sorted by class, as a folder is
    counts = np.bincount(split(data).search.labels[:100], minlength=4)
    assert counts.min() >= 12  # 25 expected a class


def test_one_sample_repeated_often_does_not_fill_the_calibration() -> None:
    parts = split(made([0] * 500 + list(range(1, 101))))
    assert len(set(parts.calibration.hashes.tolist())) > 1


def test_given_calibration_is_kept_and_all_data_validates() -> None:
    data = made(range(100))
    parts = split(data, made(range(200, 230)))
    assert len(parts.calibration) == 30
    assert (len(parts.search), len(parts.confirm)) == (50, 50)
    assert parts.how_selected.startswith("given: arrays, 30 samples")


def test_a_leak_is_refused_with_count_and_names() -> None:
    with pytest.raises(DataError) as caught:
        split(made(range(100)), made([*range(200, 220), 5, 6]))
    assert "2 of 22 calibration samples are also validation samples: row 20, row 21" in str(caught.value)
    data = made(range(20))
    with pytest.raises(DataError, match="20 of 20"):
        refuse_leak(data, data)
    refuse_leak(data, made(range(20, 40)))


def test_labels_do_not_hide_a_leak() -> None:
    with pytest.raises(DataError, match="8 of 8"):
        refuse_leak(made(range(8), [0] * 8), made(range(20), [1] * 20))
