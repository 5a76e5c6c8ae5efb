"""The split: disjoint by content whatever the duplicates, the same whatever the order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from lowbit.data import Dataset, open_data, refuse_leak, split
from lowbit.data.splits import in_content_order
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


def test_the_validation_fingerprint_is_that_of_the_samples_whatever_the_cut() -> None:
    data = made(range(100), np.arange(100) % 3)
    given = split(data, made(range(200, 230)))
    assert given.validation.fingerprint == data.fingerprint
    assert len(given.validation) == 100
    own = split(data)
    rest = np.flatnonzero(~np.isin(data.hashes, own.calibration.hashes))
    assert own.validation.fingerprint == data.subset(rest).fingerprint != data.fingerprint


def pairs_of(ids: list[tuple[int, int]], scores: list[float], order: np.ndarray, names: np.ndarray) -> tuple[Dataset, np.ndarray]:
    """Pairs (first, second) called `names`, with a similarity, both samples of each in `order`; labels [N, 2]."""
    values = np.asarray(ids).reshape(-1)[order]
    numbers = np.repeat(names, 2)[order]
    return made(values, np.stack([numbers, np.repeat(scores, 2)[order]], axis=1)), numbers


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10_000), st.integers(12, 60), st.integers(20, 400))
def test_partners_stay_together_and_next_to_each_other(seed: int, n: int, pool: int) -> None:
    rng = np.random.default_rng(seed)
    ids = [(int(a), int(b)) for a, b in rng.integers(0, pool, (n, 2))]  # sentences occur in several pairs
    scores = rng.integers(0, 6, n).astype(float).tolist()
    data, numbers = pairs_of(ids, scores, np.arange(2 * n), np.arange(n))
    try:
        parts = split(data, groups=numbers)
    except DataError:
        reject()  # everything hangs together
    three = [parts.calibration, parts.search, parts.confirm]
    hashes = [set(part.hashes.tolist()) for part in three]
    assert all(hashes)
    assert len(hashes[0] | hashes[1] | hashes[2]) == sum(map(len, hashes))  # no sample in two parts
    assert sum(map(len, three)) == 2 * n
    for part in three:
        assert (part.labels[::2] == part.labels[1::2]).all()  # number and similarity: partners, in a row
    again, others = pairs_of(ids, scores, rng.permutation(2 * n), rng.permutation(n))
    shuffled = split(again, groups=others)
    for part, other in zip(three, (shuffled.calibration, shuffled.search, shuffled.confirm), strict=True):
        assert part.hashes.tolist() == other.hashes.tolist()
        assert part.labels[:, 1].tolist() == other.labels[:, 1].tolist()


def test_pairs_without_common_samples_are_cut_as_single_samples_are() -> None:
    data = made(range(400), np.repeat(np.linspace(0, 1, 200), 2))
    parts = split(data, groups=np.arange(400) // 2)
    assert (len(parts.calibration), len(parts.search), len(parts.confirm)) == (80, 160, 160)
    given = split(data, made(range(1000, 1030)), groups=np.arange(400) // 2)
    assert (len(given.search), len(given.confirm)) == (200, 200)
    assert (given.search.labels[::2] == given.search.labels[1::2]).all()


def test_content_order_is_one_order_whatever_the_sources() -> None:
    order = np.random.default_rng(0).permutation(50)
    data, other = made(range(50), np.arange(50) % 3), made(order, order % 3)
    assert contents(in_content_order(data)) == contents(in_content_order(other)) == sorted(contents(data))


def test_pairs_that_all_hang_together_cannot_be_split() -> None:
    query = [(0, index) for index in range(1, 21)]
    data, numbers = pairs_of(query, [0.5] * 20, np.arange(40), np.arange(20))
    with pytest.raises(DataError, match="1 families that share no sample; at least 3"):
        split(data, groups=numbers)
