"""Listings of chosen samples: written, moved, opened like data, refused where the pool changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowbit.data import Dataset, open_data
from lowbit.data.guess import guess_inputs
from lowbit.data.listing import Listing, check_place, is_listing, listing_of
from lowbit.errors import DataError, LowbitError, UsageError
from lowbit.types import TensorInfo

INPUTS = [TensorInfo("x", (None, 4), "float32")]


def npz(path: Path, n: int = 40) -> Path:
    values = np.arange(4 * n, dtype=np.float32).reshape(n, 4)
    np.savez(path, x=values, labels=np.arange(n) % 3, light=np.array(["day", "night"] * (n // 2)))
    return path


def listed(data: Dataset, pool: Path, out: Path, rows: list[int]) -> Path:
    chosen = data.subset(np.array(rows))
    listing_of(chosen, pool, out, target=None, of=len(data), method="random", seed=0).save(out)
    return out


def test_a_listing_opens_as_the_samples_it_lists(tmp_path: Path) -> None:
    pool = npz(tmp_path / "pool.npz")
    data = open_data(pool, INPUTS)
    rows = [30, 2, 3, 17, 9, 8, 21, 39]
    out = listed(data, pool, tmp_path / "sub" / "s.json", rows)
    found = open_data(out, INPUTS, slices=["light"])
    assert found.rows.tolist() == sorted(rows)
    np.testing.assert_array_equal(next(found.batches(8)).feeds["x"], data.source.read(np.array(sorted(rows)))["x"])
    assert found.labels is not None
    assert found.labels.tolist() == [row % 3 for row in sorted(rows)]
    assert found.slices["light"].tolist() == ["day" if row % 2 == 0 else "night" for row in sorted(rows)]
    assert found.fingerprint == data.subset(np.array(rows)).fingerprint
    assert len(open_data(listed(data, pool, out, list(range(20))), INPUTS, limit=10)) == 10


def test_a_listing_moves_with_its_pool_and_names_no_place(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    pool = npz(tmp_path / "a" / "pool.npz")
    out = listed(open_data(pool, INPUTS), pool, tmp_path / "a" / "s.json", list(range(8)))
    assert str(tmp_path) not in out.read_text()
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert len(open_data(tmp_path / "b" / "s.json", INPUTS)) == 8


def test_a_listing_of_a_listing_names_the_data(tmp_path: Path) -> None:
    pool = npz(tmp_path / "pool.npz")
    first = listed(open_data(pool, INPUTS), pool, tmp_path / "a" / "s.json", list(range(10, 30)))
    second = listed(open_data(first, INPUTS), first, tmp_path / "t.json", [0, 2, 4, 6, 8, 10, 12, 14])
    assert Listing.load(second).pool == "pool.npz"
    assert open_data(second, INPUTS).rows.tolist() == list(range(10, 26, 2))


def test_a_pool_that_changed_is_refused(tmp_path: Path) -> None:
    pool = npz(tmp_path / "pool.npz")
    out = listed(open_data(pool, INPUTS), pool, tmp_path / "s.json", [1, 5, 6, 7, 8, 9, 10, 39])
    arrays = dict(np.load(pool))
    arrays["x"][5] += 1
    np.savez(pool, **arrays)
    with pytest.raises(DataError, match=r"1 of 8 listed samples of 'pool.npz' are no longer what they were: row 5"):
        open_data(out, INPUTS)
    npz(pool, 20)
    with pytest.raises(DataError, match="1 of 8 listed samples"):
        open_data(out, INPUTS)
    pool.unlink()
    with pytest.raises(DataError, match="There is no data"):
        open_data(out, INPUTS)


def test_a_folder_of_images_reads_the_listed_files_alone(tmp_path: Path) -> None:
    for index in range(20):
        file = tmp_path / "pool" / str(index % 2) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), index * 10, np.uint8)).save(file)
    inputs = [TensorInfo("x", (None, 3, 8, 8), "float32")]
    data = open_data(tmp_path / "pool", inputs)
    out = listed(data, tmp_path / "pool", tmp_path / "s.json", list(range(8)))
    (tmp_path / "pool" / "1" / "19.png").write_bytes(b"broken")  # not listed: nobody looks
    found = open_data(out, inputs)
    assert [found.sample_name(i) for i in range(2)] == ["0/0.png", "0/10.png"]
    assert found.skipped == ()


@pytest.mark.parametrize(
    "text",
    [
        '{"lowbit_selection": 1}',
        '{"lowbit_selection": 2, "samples": []}',
        '{"lowbit_selection": 1, "pool": "p", "target": null, "of": 1, "method": "m", "seed": 0, "samples": [{"row": 1}]}',
        '{"lowbit_selection": 1, "pool": 3, "target": null, "of": 1, "method": "m", "seed": 0, "samples": []}',
        '{"lowbit_selection": 1, "pool": "p", "target": null, "of": 1, "method": "m", "seed": 0, '
        '"samples": [{"row": -1, "hash": "0", "name": ""}]}',
        '{"lowbit_selection": 1, "pool": "p", "target": null, "of": 1, "method": "m", "seed": 0, '
        '"samples": [{"row": 1, "hash": "xyz", "name": ""}]}',
        '{"lowbit_selection": 1, "pool"',
    ],
)
def test_broken_listings_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    assert is_listing(tmp_path / "s.json")
    with pytest.raises(DataError, match=r"'s.json' is"):
        open_data(tmp_path / "s.json", INPUTS)


def test_other_json_is_no_listing(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text(json.dumps({"images": [], "lowbit": 1}))
    assert not is_listing(file)
    with pytest.raises(UsageError, match="is no listing"):
        check_place(file)
    with pytest.raises(UsageError, match=r"does not end in \.json"):
        check_place(tmp_path / "s.txt")
    (tmp_path / "d.json").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_place(tmp_path / "d.json")
    check_place(tmp_path / "new.json")


def test_a_listing_round_trips(tmp_path: Path) -> None:
    pool = npz(tmp_path / "pool.npz")
    out = listed(open_data(pool, INPUTS), pool, tmp_path / "s.json", list(range(8)))
    found = Listing.load(out)
    found.save(tmp_path / "t.json")
    assert (tmp_path / "t.json").read_bytes() == out.read_bytes()
    assert (found.pool, found.of, len(found.samples)) == ("pool.npz", 40, 8)
    assert Listing.load(out).pool_beside(out) == tmp_path / "pool.npz"


def test_inputs_are_guessed_from_the_data(tmp_path: Path) -> None:
    assert guess_inputs(npz(tmp_path / "a.npz")) == (TensorInfo("x", (None, 4), "float32"),)
    pixels = {"images": np.zeros((9, 3, 8, 8), np.uint8), "other": np.zeros((9, 2)), "labels": np.zeros(9)}
    assert guess_inputs(pixels) == (TensorInfo("images", (None, 3, 8, 8), "float32"),)
    tokens = {"ids": np.zeros((9, 16), np.int64), "mask": np.zeros((9, 16), np.int64), "text": np.array([["a"]] * 9)}
    assert [(info.name, info.dtype) for info in guess_inputs(tokens)] == [("ids", "int64"), ("mask", "int64")]
    assert guess_inputs(tmp_path)[0].shape == (None, 3, 64, 64)
    table = tmp_path / "t.csv"
    table.write_text("a,b,label\n" + "".join(f"{i},{i * 2},{i % 2}\n" for i in range(10)))
    data = open_data(table, guess_inputs(table))
    assert data.preprocess.columns == ("a", "b")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [("s.jsonl", "{}", "Give --model"), ("a.npz", "no zip", "cannot be read as an .npz"), ("gone.npz", None, "There is no data")],
)
def test_data_that_does_not_say_what_it_holds(tmp_path: Path, name: str, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(LowbitError, match=words):
        guess_inputs(tmp_path / name)
    with pytest.raises(DataError, match="No array looks like samples"):
        guess_inputs({"labels": np.zeros(9)})
