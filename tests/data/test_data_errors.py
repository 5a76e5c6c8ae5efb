"""Bad input: each with its class, and a message that names what is wrong."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data_sources import IDS, RGB, ROW, class_folders, images, module  # noqa: F401

from lowbit.data import Preprocess, check_labels, open_data
from lowbit.data.fit import cast
from lowbit.errors import DataError, LowbitError, UsageError
from lowbit.types import TensorInfo


def says(words: str, spec, inputs=ROW, error=DataError, **options) -> None:
    with pytest.raises(error) as caught:
        open_data(spec, inputs, **options)
    assert type(caught.value) is error
    assert words in str(caught.value), str(caught.value)


def test_nothing_there_and_unknown_kinds(tmp_path) -> None:
    says("no data at", tmp_path / "none.npz")
    (tmp_path / "a.txt").write_text("x")
    says("no data that lowbit reads", tmp_path / "a.txt", error=UsageError)
    (tmp_path / "empty").mkdir()
    says("no samples", tmp_path / "empty", RGB)


@pytest.mark.parametrize(("n", "words"), [(0, "no samples; at least 8"), (1, "1 sample; at least 8"), (7, "7 samples; at least 8")])
def test_too_few(n, words) -> None:
    says(words, {"x": np.ones((n, 2), np.float32)})


def test_limit_too_low() -> None:
    says("limit of 3", {"x": np.ones((20, 2))}, error=UsageError, limit=3)


def test_names_shapes_and_dtypes_that_do_not_match() -> None:
    says("The data has foo float64 [10, 2]", {"foo": np.ones((10, 2))})
    says("The model wants x float32 [n, 2]", {"foo": np.ones((10, 2))})
    says("a sample is float32 [3]", {"x": np.ones((10, 3), np.float32)})
    says("pixels float32 [n, 3, 8, 8]", {"images": images(10, 9)}, RGB)
    says("do not fit that exactly", {"ids": np.full((10, 2), 0.5)}, IDS)
    says("holds Python objects", {"x": [[1], [1, 2]] and np.array([[1], [1, 2]], dtype=object)})
    says("not an array", {"x": [[1], [1, 2]] * 5})
    says("no field 'price'", {"x": np.ones((10, 2))}, target="price")


def test_lengths_that_differ() -> None:
    says("x has 10, labels has 9", {"x": np.ones((10, 2)), "labels": np.arange(9)})


def test_nan_and_inf_are_counted() -> None:
    values = np.ones((20, 2))
    values[[3, 5], 1] = [np.nan, np.inf]
    says("2 of 20 samples hold NaN or infinite values: row 3, row 5", {"x": values})
    says("1 NaN", {"x": np.ones((10, 2)), "y": np.r_[np.ones(9), np.nan]})


def test_pickles_are_refused(tmp_path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}] * 10, dtype=object))
    says("could run code", tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz", x=np.ones((10, 2)), labels=np.array([1] * 10, dtype=object))
    says("labels hold pickled", tmp_path / "d.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_broken_npz(tmp_path, save) -> None:
    path = tmp_path / "d.npz"
    save(path, x=np.random.default_rng(0).normal(size=(100, 2)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    says("not a readable .npz", path)
    path.write_bytes(b"hello")
    says("not a readable .npz", path)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damaged_npz_never_escapes(tmp_path_factory, data) -> None:
    path = tmp_path_factory.mktemp("npz") / "d.npz"
    save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    save(path, x=np.arange(20, dtype=np.float32).reshape(10, 2), y=np.arange(10))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    with contextlib.suppress(LowbitError):
        open_data(path, ROW)


def test_corrupt_images_are_skipped_and_counted(tmp_path) -> None:
    pixels = class_folders(tmp_path / "val", n=30)
    whole = (tmp_path / "val/cat/003.png").read_bytes()
    (tmp_path / "val/cat/003.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "val/dog/040.png").write_bytes(b"")
    (tmp_path / "val/dog/041.png").write_text("<html>not found</html>")
    data = open_data(tmp_path / "val", RGB)
    assert data.skipped == ("cat/003.png", "dog/040.png", "dog/041.png")
    assert (len(data), data.labels.tolist()) == (57, [0] * 29 + [1] * 28)
    feeds = np.concatenate([batch.feeds["pixels"] for batch in data.batches(10)])
    np.testing.assert_array_equal(feeds, np.delete(pixels, [3, 40, 41], axis=0).transpose(0, 3, 1, 2) / np.float32(255))
    (tmp_path / "val/dog/042.png").write_bytes(b"")
    says("4 of 60 images cannot be read, more than 5%", tmp_path / "val", RGB)


def test_truncated_jpeg_is_found_by_the_scan(tmp_path) -> None:
    for index, one in enumerate(images(40, 64)):
        Image.fromarray(one).save(tmp_path / f"{index:02}.jpg")
    whole = (tmp_path / "05.jpg").read_bytes()
    (tmp_path / "05.jpg").write_bytes(whole[:-200])
    assert open_data(tmp_path, RGB).skipped == ("05.jpg",)


def test_image_folders_with_mistakes(tmp_path) -> None:
    class_folders(tmp_path / "val")
    (tmp_path / "val" / "empty").mkdir()
    says("1 class folders of 'val' hold no image: empty", tmp_path / "val", RGB)
    (tmp_path / "val" / "empty").rmdir()
    says("one input", tmp_path / "val", [*RGB, *IDS])
    says("not an image's", tmp_path / "val", ROW)
    says("names a column", tmp_path / "val", RGB, UsageError, target="y")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("name,label\na,1", "no column `file`"),
        ("file,label\nnone.png,1", "1 of 1 files that labels.csv lists are not there: none.png"),
        ("file,label\n0.png,1\n1.png", "line 3: 1 fields where the header has 2"),
        ("file,label\n/etc/passwd,1", "relative to their folder"),
        ("file,label\n../x.png,1", "relative to their folder"),
        ('file,label\n"0.png,1', "not a readable CSV"),
        ("file,label\n0.png,", "empty"),
    ],
)
def test_labels_csv_mistakes(tmp_path, text, words) -> None:
    for index, one in enumerate(images(2)):
        Image.fromarray(one).save(tmp_path / f"{index}.png")
    (tmp_path / "labels.csv").write_text(text)
    says(words, tmp_path, RGB)


GOOD = "\n".join("1,2,0" for _ in range(9))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,y\n1,2,0\n1,z,0\n" + GOOD, "line 3, column `b`: 'z' is not a number"),
        ("a,b,y\n1,2,0\n1,,0\n" + GOOD, "line 3, column `b`: the cell is empty"),
        ("a,b,y\n1,2\n" + GOOD, "line 2: 2 fields where the header has 3"),
        ("a,b,y\n1,nan,0\n" + GOOD, "1 of 10 samples hold NaN"),
        ("a,a,y\n" + GOOD, "different column names"),
        ("a,b,c,y\n" + "\n".join("1,2,3,0" for _ in range(9)), "the table has 3 number columns"),
        ("", "different column names"),
        ("a,b,y\n", "no samples"),
    ],
)
def test_csv_mistakes(tmp_path, text, words) -> None:
    (tmp_path / "t.csv").write_text(text)
    says(words, tmp_path / "t.csv")


def test_csv_not_text_and_parquet_not_parquet(tmp_path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a,b,y\n\xff\xfe\x00,1,2\n")
    says("not a readable CSV", tmp_path / "t.csv")
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nothing PAR1")
    says("not a readable Parquet", tmp_path / "t.parquet")


def test_columns_that_the_table_lacks(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("a,b,y\n" + GOOD)
    says("lacks the columns c", tmp_path / "t.csv", preprocess=Preprocess(columns=("a", "c")))
    says("no column 'price'", tmp_path / "t.csv", target="price")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: a list where an object"),
        ('{"x": [1, 2]}', "1 of 11 samples have no label"),
        ('{"y": 1}', "line 2: The data has nothing for the model's input x"),
        ('{"x": [1, [2]], "y": 1}', "line 2, `x`"),
        ('{"x": "hello", "y": 1}', "Line 2: `x` is str"),
        ('{"x": [1, NaN], "y": 1}', "1 of 11 samples hold NaN or infinite values: line 2"),
        ('{"x": [1, 2, 3], "y": 1}', "line 2 is [3]"),
        ('{"x": [1, "a"], "y": 1}', "line 2, `x`"),
        ("[" * 100_000, "line 2: not JSON"),
    ],
)
def test_jsonl_mistakes(tmp_path, line, words) -> None:
    good = '{"x": [1, 2], "y": 0}'
    (tmp_path / "d.jsonl").write_text("\n".join([good, line] + [good] * 9))
    with pytest.raises(DataError) as caught:
        list(open_data(tmp_path / "d.jsonl", ROW).batches(11))
    assert words in str(caught.value), str(caught.value)


def test_custom_mistakes(module) -> None:  # noqa: F811
    says("no module 'lowbit_nowhere'", "lowbit_nowhere:f", error=UsageError)
    says("has no 'nowhere'", f"{module}:nowhere", error=UsageError)
    says("not something to call", f"{module}:number", error=UsageError)
    says("gives a int", f"{module}:nothing", error=UsageError)
    says("no samples", f"{module}:empty")
    says("ZeroDivisionError", f"{module}:fails")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([0, 1, 10]), "1 of 3 labels are out of range: the model has classes 0 to 9"),
        (np.array([-1, 1]), "out of range"),
        (np.array([3, 3, 3]), "All 3 labels are class 3"),
        (np.array([0.5, 1.5]), "whole numbers"),
    ],
)
def test_check_labels(labels, words) -> None:
    with pytest.raises(DataError) as caught:
        check_labels(labels, 10)
    assert words in str(caught.value)
    check_labels(np.array([0, 9]), 10)


@pytest.mark.parametrize(
    ("values", "dtype", "fits"),
    [
        (np.array([1, 2], np.int32), "int64", True),
        (np.array([1, 2**31], np.int64), "int32", False),
        (np.array([1, 2**31 - 1], np.int64), "int32", True),
        (np.array([2**63], np.uint64), "int64", False),
        (np.array([-1], np.int64), "uint64", False),
        (np.array([1.0, 2.0]), "int64", True),
        (np.array([1.5]), "int64", False),
        (np.array([2.0**60]), "int64", False),
        (np.array([np.nan]), "int64", False),
        (np.array([1e-3], np.float64), "float32", True),
        (np.array([1e300]), "float32", False),
        (np.array([70000]), "float16", False),
        (np.array([0, 1]), "bool", True),
        (np.array([0, 2]), "bool", False),
        (np.array([300]), "uint8", False),
        (np.array(["a"]), "float32", False),
        (np.array([1.0]), "object", False),
        (np.array([1.0]), "string", False),
    ],
)
def test_casts(values, dtype, fits) -> None:
    if fits:
        assert cast(values, dtype).dtype == np.dtype(dtype)
        np.testing.assert_allclose(cast(values, dtype), values, rtol=1e-6)
    else:
        with pytest.raises(DataError):
            cast(values, dtype)


text = st.text(max_size=80)
json_like = st.one_of(text, st.text(alphabet='{}[]":,x y01.-eNa\n', max_size=60))


@settings(deadline=None, max_examples=200)
@given(st.lists(json_like, max_size=4))
def test_jsonl_never_escapes(tmp_path_factory, lines) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "d.jsonl"
    path.write_text("\n".join(['{"x": [1, 2], "y": 0}'] * 8 + lines), encoding="utf-8")
    with contextlib.suppress(LowbitError):
        list(open_data(path, ROW).batches(4))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=120) | st.text(alphabet="abxy,;\n\r\t\"'01.-", max_size=120).map(str.encode), st.sampled_from(["t.csv", "t.tsv"]))
def test_csv_never_escapes(tmp_path_factory, raw, name) -> None:
    path = tmp_path_factory.mktemp("csv") / name
    path.write_bytes(raw)
    with contextlib.suppress(LowbitError):
        list(open_data(path, ROW).batches(4))


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(
        text,
        st.text(alphabet="abcdefghijklmnopqrstuvwxyz_:[]{}, -\n&*!#|>'\"0123456789./", max_size=80),
        st.dictionaries(
            st.sampled_from(
                ["resize", "crop", "mean", "std", "scale", "columns", "layout", "dtype", "target_std", "preset", "schema", "note"]
            ),
            st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | text, lambda inner: st.lists(inner, max_size=3)),
        ).map(yaml.safe_dump),
    )
)
def test_yaml_never_escapes(source) -> None:
    with contextlib.suppress(LowbitError):
        Preprocess.from_yaml(source)


def test_preprocessing_that_does_not_fit_the_model() -> None:
    says("takes 3 channels", {"images": images(10)}, RGB, UsageError, preprocess=Preprocess.preset("mnist"))
    says(
        "only floating-point input",
        {"ids": np.ones((10, 2)), "b": np.ones((10, 2))},
        [*IDS, TensorInfo("b", ("n", 2), "int64")],
        UsageError,
        preprocess=Preprocess.preset("unit"),
    )
