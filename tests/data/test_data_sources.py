"""Every kind of source: the right values reach the model, labels and slices with them."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from lowbit.data import Dataset, Preprocess, open_data
from lowbit.data import spool as spool_module
from lowbit.data.arrays import open_npz
from lowbit.data.source import Request
from lowbit.data.spool import FileRows
from lowbit.errors import UsageError
from lowbit.types import TensorInfo

RGB = [TensorInfo("pixels", ("n", 3, 8, 8), "float32")]
ROW = [TensorInfo("x", ("n", 2), "float32")]
IDS = [TensorInfo("ids", ("n", "t"), "int64")]


def images(n: int, size: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


def everything(data: Dataset, size: int = 3) -> np.ndarray:
    """The first input of all samples, by way of batches."""
    name = data.inputs[0].name
    batches = list(data.batches(size))
    np.testing.assert_array_equal(np.concatenate([batch.rows for batch in batches]), np.arange(len(data)))
    if data.labels is not None:
        np.testing.assert_array_equal(np.concatenate([batch.labels for batch in batches]), data.labels)
    return np.concatenate([batch.feeds[name] for batch in batches])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("nchw", [True, False])
def test_npz_images_for_any_input_name(tmp_path, save, nchw) -> None:
    pixels = images(10)
    labels = np.arange(10, dtype=np.uint8) % 3
    stored = pixels.transpose(0, 3, 1, 2) if nchw else pixels
    save(tmp_path / "d.npz", images=stored, labels=labels, site=np.array(["a", "b"] * 5), classes=np.array(["x", "y", "z"]))
    data = open_data(tmp_path / "d.npz", RGB, slices=["site"])
    np.testing.assert_array_equal(everything(data), pixels.transpose(0, 3, 1, 2) / np.float32(255))
    assert (data.name, len(data), data.classes) == ("d.npz", 10, ("x", "y", "z"))
    assert data.labels.dtype == np.int64
    np.testing.assert_array_equal(data.labels, labels)
    assert data.slices["site"].tolist() == ["a", "b"] * 5


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_fortran_order_and_big_endian(tmp_path, save) -> None:
    values = np.arange(24, dtype=">f8").reshape(12, 2)
    save(tmp_path / "d.npz", x=np.asfortranarray(values))
    np.testing.assert_array_equal(everything(open_data(tmp_path / "d.npz", ROW)), values.astype(np.float32))


def test_stored_npz_is_read_by_row(tmp_path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((100_000, 16), np.float32), other=np.zeros((1_000_000, 8)))
    request = Request([TensorInfo("x", ("n", 16), "float32")])
    tracemalloc.start()
    source = open_npz(tmp_path / "d.npz", request)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(source.arrays["x"], FileRows)
    assert peak < 1_000_000  # the arrays have 6.4 and 64 MB


def test_spool_goes_to_disk_when_large(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(spool_module.Spool.__init__, "__defaults__", (1000,))
    values = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    np.savez_compressed(tmp_path / "d.npz", x=values)
    source = open_npz(tmp_path / "d.npz", Request(ROW))
    assert isinstance(source.arrays["x"], FileRows)
    np.testing.assert_array_equal(everything(open_data(tmp_path / "d.npz", ROW)), values)


def test_mapping_of_arrays() -> None:
    ids = np.arange(40, dtype=np.int32).reshape(10, 4)
    mask = np.ones((10, 4), np.int8)
    inputs = [*IDS, TensorInfo("mask", ("n", "t"), "int64")]
    data = open_data({"ids": ids, "mask": mask, "y": np.linspace(0, 1, 10)}, inputs)
    np.testing.assert_array_equal(everything(data), ids)
    assert next(data.batches(4)).feeds["mask"].dtype == np.int64
    assert data.labels.dtype == np.float64


def class_folders(root, n: int = 6, seed: int = 0) -> np.ndarray:
    pixels = images(2 * n, seed=seed)
    for index, one in enumerate(pixels):
        folder = root / ("cat" if index < n else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(folder / f"{index:03}.png")
    return pixels


@pytest.mark.parametrize("size", [1, 5, 100])
def test_class_folders(tmp_path, size) -> None:
    pixels = class_folders(tmp_path / "val")
    (tmp_path / "val" / "notes.txt").write_text("not an image")
    data = open_data(tmp_path / "val", RGB)
    np.testing.assert_array_equal(everything(data, size), pixels.transpose(0, 3, 1, 2) / np.float32(255))
    assert (data.name, data.classes) == ("val", ("cat", "dog"))
    assert data.labels.tolist() == [0] * 6 + [1] * 6
    assert data.sample_name(0) == "cat/000.png"


def test_limit_is_spread_over_the_classes(tmp_path) -> None:
    class_folders(tmp_path / "val", n=20)
    data = open_data(tmp_path / "val", RGB, limit=10)
    assert np.bincount(data.labels).tolist() == [5, 5]


@pytest.mark.parametrize("subfolder", ["", "images"])
def test_labels_csv(tmp_path, subfolder) -> None:
    pixels = images(10)
    (tmp_path / subfolder).mkdir(exist_ok=True)
    lines = ["file,class_index,light"]
    for index, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / subfolder / f"{index}.png")
        lines.append(f"{index}.png,{index * 2},{'day' if index % 2 else 'night'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    data = open_data(tmp_path, RGB, slices=["light"])
    assert data.labels.tolist() == list(range(0, 20, 2))
    assert data.slices["light"].tolist() == ["night", "day"] * 5
    np.testing.assert_array_equal(everything(data), pixels.transpose(0, 3, 1, 2) / np.float32(255))


def test_label_names_become_sorted_ids_and_flat_folders_have_none(tmp_path) -> None:
    for index, one in enumerate(images(8)):
        Image.fromarray(one).save(tmp_path / f"{index}.png")
    assert open_data(tmp_path, RGB).labels is None
    (tmp_path / "labels.csv").write_text("file,label\n" + "\n".join(f"{index}.png,{'ba'[index % 2]}" for index in range(8)))
    data = open_data(tmp_path, RGB)
    assert data.classes == ("a", "b")
    assert data.labels.tolist() == [1, 0] * 4


def test_csv_by_order_target_and_slices(tmp_path) -> None:
    rows = "\n".join(f"{index * 3},{index}.5,{index},{'train' if index % 2 else 'test'}" for index in range(20))
    (tmp_path / "t.csv").write_text(f"price,a,b,part\n{rows}\n")
    data = open_data(tmp_path / "t.csv", ROW, target="price", slices=["part"])
    np.testing.assert_array_equal(everything(data), [[index + 0.5, index] for index in range(20)])
    assert data.labels.tolist() == list(range(0, 60, 3))
    assert data.preprocess.columns == ("a", "b")
    np.testing.assert_array_equal(data.preprocess({"part": "test", "b": 3, "a": 4.5}), [4.5, 3])
    assert set(data.slices["part"]) == {"train", "test"}


def test_csv_last_column_is_the_label(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("a;b;outcome\n" + "\n".join(f"{index};1;{'yes' if index % 2 else 'no'}" for index in range(10)))
    data = open_data(tmp_path / "t.csv", ROW)
    assert data.classes == ("no", "yes")
    assert data.labels.tolist() == [0, 1] * 5


def test_csv_columns_and_target_scale_from_preprocessing(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("y,b,a,c\n" + "\n".join(f"{index},{index},7,x" for index in range(10)))
    steps = Preprocess.from_yaml("columns: [a, b]\nmean: [7, 1]\nstd: [1, 2]\ntarget: y\ntarget_mean: 1\ntarget_std: 2")
    data = open_data(tmp_path / "t.csv", ROW, steps)
    np.testing.assert_array_equal(everything(data)[:, 0], np.zeros(10))
    np.testing.assert_array_equal(everything(data)[:, 1], (np.arange(10) - 1) / np.float32(2))
    np.testing.assert_array_equal(data.labels, (np.arange(10) - 1) / 2)


def test_csv_with_a_column_for_each_input(tmp_path) -> None:
    inputs = [TensorInfo("b", ("n", 1), "float32"), TensorInfo("a", ("n",), "int64")]
    (tmp_path / "t.csv").write_text("a,b,label\n" + "\n".join(f"{index},{index}.25,{index % 2}" for index in range(10)))
    batch = next(open_data(tmp_path / "t.csv", inputs).batches(4))
    np.testing.assert_array_equal(batch.feeds["b"], [[0.25], [1.25], [2.25], [3.25]])
    np.testing.assert_array_equal(batch.feeds["a"], [0, 1, 2, 3])
    assert batch.feeds["a"].dtype == np.int64


def test_parquet_equals_csv(tmp_path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {"a": [float(index) for index in range(12)], "b": list(range(12)), "label": ["n", "y"] * 6}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    rows = "\n".join(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))
    (tmp_path / "t.csv").write_text(f"a,b,label\n{rows}")
    one, other = (open_data(tmp_path / name, ROW) for name in ("t.parquet", "t.csv"))
    np.testing.assert_array_equal(everything(one), everything(other))
    assert one.fingerprint == other.fingerprint


def test_jsonl(tmp_path) -> None:
    lines = [json.dumps({"ids": [index, index + 1], "label": ["neg", "pos"][index % 2], "lang": "en"}) for index in range(10)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines) + "\n\n")
    data = open_data(tmp_path / "d.jsonl", IDS, slices=["lang"])
    np.testing.assert_array_equal(everything(data), [[index, index + 1] for index in range(10)])
    assert everything(data).dtype == np.int64
    assert (data.classes, data.sample_name(2)) == (("neg", "pos"), "line 3")
    assert data.slices["lang"].tolist() == ["en"] * 10


CUSTOM = """
import numpy as np
from PIL import Image

def pairs():
    for index in range(10):
        yield np.full(2, index, np.float32), index % 2

def records():
    return [{"x": [index, 1], "label": index % 2, "site": "ab"[index % 2]} for index in range(10)]

def arrays():
    return {"x": np.ones((10, 2)), "y": np.arange(10)}

def pictures():
    rng = np.random.default_rng(0)
    return ((Image.fromarray(rng.integers(0, 256, (8 + index, 20, 3), np.uint8)), index % 2) for index in range(10))

class Torchlike:
    def __len__(self): return 10
    def __getitem__(self, index): return np.full(2, index, np.float32), np.int64(index)

def empty(): return iter(())
def fails(): yield 1 / 0
number = 3
def nothing(): return 5
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    import sys

    (tmp_path / "lowbit_custom_data.py").write_text(CUSTOM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "lowbit_custom_data"
    sys.modules.pop("lowbit_custom_data", None)


def test_custom_generator_sequence_mapping_and_object(module) -> None:
    expected = np.repeat(np.arange(10, dtype=np.float32)[:, np.newaxis], 2, axis=1)
    for name in ("pairs", "Torchlike"):
        data = open_data(f"{module}:{name}", ROW)
        np.testing.assert_array_equal(everything(data), expected)
        assert data.name == f"{module}:{name}"
    assert open_data(f"{module}:records", ROW, slices=["site"]).slices["site"].tolist() == ["a", "b"] * 5
    assert open_data(f"{module}:arrays", ROW).labels.tolist() == list(range(10))


def test_custom_pictures_of_different_sizes(module) -> None:
    data = open_data(f"{module}:pictures", RGB, Preprocess.preset("imagenet"))
    assert everything(data).shape == (10, 3, 8, 8)


def test_fingerprint_and_hashes_follow_content_alone() -> None:
    values = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    labels = np.arange(30) % 3
    order = np.random.default_rng(1).permutation(30)
    one = open_data({"x": values, "y": labels}, ROW)
    other = open_data({"images": values[order].astype(np.float64), "labels": labels[order].astype(np.uint8)}, ROW)
    assert one.fingerprint == other.fingerprint
    np.testing.assert_array_equal(one.hashes[order], other.hashes)
    assert one.fingerprint != open_data({"x": values, "y": (labels + 1) % 3}, ROW).fingerprint
    assert one.fingerprint != one.subset(np.arange(29)).fingerprint
    assert one.hashes.dtype == np.uint64


PINNED_HASH = 2236989790300949699
PINNED_FINGERPRINT = "09612e8a93d6790467f7aeef624ebd90166865211b4dc58616c467ce40219d79"


def test_hashes_are_pinned() -> None:
    """Fingerprints are kept in bundles: this fails when the hash changes by accident."""
    data = open_data({"x": np.arange(16, dtype=np.float32).reshape(8, 2), "y": np.arange(8)}, ROW)
    assert int(data.hashes[0]) == PINNED_HASH
    assert data.fingerprint == PINNED_FINGERPRINT


def test_subset_is_a_view() -> None:
    values = np.arange(40, dtype=np.float32).reshape(20, 2)
    data = open_data({"x": values, "y": np.arange(20)}, ROW)
    part = data.subset(np.array([7, 3])).subset(np.array([1, 0]))
    np.testing.assert_array_equal(everything(part), values[[3, 7]])
    assert part.labels.tolist() == [3, 7]
    assert part.sample_name(0) == "row 3"


def test_batches_can_be_left_early_and_started_again(tmp_path) -> None:
    class_folders(tmp_path / "val", n=40)
    data = open_data(tmp_path / "val", RGB)
    first = [next(iter(data.batches(4))).feeds["pixels"] for _ in range(3)]
    np.testing.assert_array_equal(first[0], first[2])


def test_unknown_slice_names_what_there_is() -> None:
    with pytest.raises(UsageError, match="Did you mean 'site'"):
        open_data({"x": np.ones((10, 2)), "site": np.zeros(10, int)}, ROW, slices=["sit"])


def test_the_width_of_integers_does_not_change_a_hash() -> None:
    ids = np.arange(20).reshape(10, 2)
    wide, narrow = (open_data({"ids": ids.astype(dtype)}, IDS) for dtype in (np.int64, np.int16))
    np.testing.assert_array_equal(wide.hashes, narrow.hashes)
    assert wide.fingerprint == narrow.fingerprint


def test_a_table_may_outgrow_memory(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(spool_module.Spool.__init__, "__defaults__", (1000,))
    (tmp_path / "t.csv").write_text("a,b,y\n" + "\n".join(f"{index},{index}.5,{index % 2}" for index in range(10_000)))
    data = open_data(tmp_path / "t.csv", ROW)
    assert isinstance(data.source.arrays["x"], FileRows)
    np.testing.assert_array_equal(everything(data, 999)[:, 1], np.arange(10_000) + 0.5)
    assert data.sample_name(9_999) == "data row 10000"
