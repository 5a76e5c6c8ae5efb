"""Inputs that are kept: a fair choice, retention, redaction; what was deleted is not left in the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lowbit.errors import UsageError
from lowbit.monitoring.database import FILE, Database
from lowbit.monitoring.samples import MAX_BYTES, Redaction, Sample, Samples, blurred, packed, unpacked
from lowbit.monitoring.store import Monitoring, Retention
from lowbit.types import Array


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path)
    yield opened
    opened.close()


def row(i: int, model: str = "demo") -> Sample:
    return Sample(model, "v1", f"r{i}", float(i), {"x": np.array([i], np.float32)})


def test_every_request_has_the_same_chance(database: Database) -> None:
    """400 offers, 40 places, 60 reservoirs: the early and the late ones are kept alike, within four standard errors."""
    kept = np.zeros(400)
    for seed in range(60):
        samples = Samples(database, most=40, seed=seed)
        samples.offer(row(i, f"m{seed}") for i in range(400))
        found = [int(each.inputs["x"][0]) for each in samples.listed(f"m{seed}")]
        assert len(found) == 40
        kept[found] += 1
    halves = kept[:200].sum(), kept[200:].sum()
    assert sum(halves) == 2_400
    assert abs(halves[0] - 1_200) < 4 * np.sqrt(2_400 * 0.25)


def test_room_is_made_use_of_little_by_little(tmp_path: Path) -> None:
    """A week of steady traffic with retention every hour: what is kept is of all hours, and not of the minutes after each cleaning."""
    kept = Retention(samples_s=40.0, samples=200)
    with Monitoring(tmp_path, retention=kept) as state:
        for hour in range(120):
            state.samples.offer(
                Sample("demo", "v1", "", hour + i / 100, {"x": np.array([i], np.float32)}) for i in range(100)
            )  # 4,000 requests in the time of retention
            state.prune(hour + 1.0)
        found = state.samples.listed()
        assert 150 < len(found) <= 200
        assert all(each.at >= 80 for each in found)
        assert np.mean([each.at for each in found]) == pytest.approx(100, abs=4), "early and late hours alike"
        assert np.mean([each.inputs["x"][0] for each in found]) == pytest.approx(49.5, abs=10), "and early and late in each hour"


def test_a_smaller_sample_is_made_of_a_larger_one(tmp_path: Path) -> None:
    with Monitoring(tmp_path) as state:
        state.samples.offer(row(i) for i in range(100))
    with Monitoring(tmp_path, retention=Retention(samples=30)) as state:
        assert state.prune(100.0) == 70
        assert state.samples.count() == {"demo": 30}
        state.samples.offer(row(i) for i in range(100, 120))
        assert state.samples.count() == {"demo": 30}


def test_arrays_come_back_as_they_were(database: Database) -> None:
    inputs: dict[str, Array] = {
        "image": np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32),
        "ids": np.arange(5, dtype=np.int64),
        "file": np.array(3.5),
    }
    samples = Samples(database)
    assert samples.offer([Sample("demo", "v1", "a", 1.0, inputs)]) == 1
    (found,) = samples.listed("demo")
    assert (found.model, found.version, found.request_id, found.at) == ("demo", "v1", "a", 1.0)
    assert list(found.inputs) == list(inputs)
    for name, array in inputs.items():
        assert found.inputs[name].dtype == array.dtype
        np.testing.assert_array_equal(found.inputs[name], array)
    assert samples.count() == {"demo": 1}


def test_models_do_not_take_each_others_places(database: Database) -> None:
    samples = Samples(database, most=10, seed=0)
    samples.offer([row(i, model) for i in range(100) for model in ("one", "two")])
    assert samples.count() == {"one": 10, "two": 10}
    assert samples.forget("one") == 10
    assert samples.count() == {"two": 10}
    assert len(samples.listed("two", since=50.0)) == len([each for each in samples.listed("two") if each.at >= 50])


def test_what_is_too_large_is_not_kept(database: Database) -> None:
    noise = np.random.default_rng(0).integers(0, 256, MAX_BYTES + 1000, dtype=np.uint8)
    assert Samples(database).offer([Sample("demo", "v1", "a", 1.0, {"x": noise})]) == 0


def test_what_is_dropped_never_comes_to_the_disk(tmp_path: Path) -> None:
    secret = b"a name that nobody should read"
    inputs: dict[str, Array] = {"x": np.zeros(3, np.float32), "name": np.frombuffer(secret, np.uint8)}
    with Monitoring(tmp_path) as state:
        state.samples.offer([Sample("demo", "v1", "a", 1.0, inputs)], Redaction(drop=frozenset({"name"})))
        (found,) = state.samples.listed()
        assert list(found.inputs) == ["x"]
    assert all(secret not in file.read_bytes() for file in tmp_path.iterdir())


def test_what_was_deleted_is_not_left_in_the_file(tmp_path: Path) -> None:
    """Incompressible, so that it is recognized; deleted by retention, then the log is written back."""
    secret = np.random.default_rng(1).integers(0, 256, 500, dtype=np.uint8)
    with Monitoring(tmp_path, retention=Retention(samples_s=100)) as state:
        state.samples.offer([Sample("demo", "v1", "a", 0.0, {"x": secret}), row(1_000)])
    written = packed({"x": secret})[250:500]
    assert written in (tmp_path / FILE).read_bytes()
    with Monitoring(tmp_path, retention=Retention(samples_s=100)) as state:
        assert state.prune(1_050.0) == 1
        assert [each.at for each in state.samples.listed()] == [1_000.0]
        assert all(written not in file.read_bytes() for file in tmp_path.iterdir()), "while the server goes on, too"
    assert all(written not in file.read_bytes() for file in tmp_path.iterdir())


@settings(deadline=None)
@given(
    arrays.arrays(
        np.float32, st.tuples(st.integers(1, 3), st.integers(2, 40), st.integers(2, 40)), elements=st.floats(-1000, 1000, width=32)
    )
)
def test_a_blurred_image_keeps_the_means_of_blocks(image: Array) -> None:
    found = blurred(image)
    assert (found.shape, found.dtype) == (image.shape, image.dtype)
    block = image[:, :8, :8].astype(np.float64)
    assert found[:, :8, :8] == pytest.approx(np.broadcast_to(block.mean(axis=(1, 2), keepdims=True), block.shape), abs=0.01)
    assert found.mean(dtype=np.float64) == pytest.approx(image.mean(dtype=np.float64), abs=0.01)


@pytest.mark.parametrize("shape", [(24, 32, 3), (24, 32, 1), (2, 24, 32, 3)])
def test_an_image_with_its_channels_last_is_blurred_in_rows_and_columns(shape: tuple[int, ...]) -> None:
    """Blurred along columns and channels alone, rows would show a face."""
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found, block = blurred(image), image[..., 8:16, :8, :].astype(np.float64)
    means = np.broadcast_to(block.mean(axis=(-3, -2), keepdims=True), block.shape)
    assert found[..., 8:16, :8, :] == pytest.approx(means, abs=1e-5)


@settings(deadline=None)
@given(arrays.arrays(np.float32, 20, elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False)))
def test_blurred_numbers_keep_their_size_alone(values: Array) -> None:
    found = blurred(values)
    assert np.all(np.sign(found) == np.sign(values))
    assert np.all(np.abs(found - values) <= 0.25 * np.abs(values))
    assert len(np.unique(np.abs(np.frexp(found)[0]))) <= 3


def test_tokens_cannot_be_blurred() -> None:
    with pytest.raises(UsageError, match="Drop this one"):
        blurred(np.arange(4))
    with pytest.raises(UsageError, match="no input 'nmae'"):
        Redaction(drop=frozenset({"nmae"})).check(["name"])


def test_pickled_objects_are_refused() -> None:
    import io

    stream = io.BytesIO()
    np.savez(stream, names=np.array('["x"]'), input0=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match="allow_pickle"):
        unpacked(stream.getvalue())
    assert list(unpacked(packed({"a/b": np.zeros(2)}))) == ["a/b"]
