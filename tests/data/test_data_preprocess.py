"""Preprocessing: values against Pillow and plain arithmetic, YAML, what is inferred."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lowbit.data import PRESETS, Preprocess, prepare
from lowbit.data.resolve import infer
from lowbit.data.steps import channel_axis, crop_box, match_channels, resized
from lowbit.errors import DataError, UsageError
from lowbit.types import TensorInfo

RGB = TensorInfo("pixels", ("n", 3, 8, 8), "float32")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_imagenet_preset_is_resize_crop_and_normalise() -> None:
    image = Image.fromarray(picture(20, 30))
    steps = Preprocess.preset("imagenet").resolve(RGB, image)
    assert (steps.resize, steps.crop, steps.layout, steps.channels) == (9, (8, 8), "nchw", "rgb")
    small = image.resize((int(9 * 30 / 20), 9), Image.Resampling.BILINEAR)
    left = round((small.width - 8) / 2)
    cropped = np.asarray(small.crop((left, 0, left + 8, 8)), np.float32)
    expected = ((cropped / np.float32(255) - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)
    np.testing.assert_array_equal(steps(image), expected)
    assert steps(image).dtype == np.float32


def test_caffe_preset_swaps_channels_and_takes_off_pixel_means() -> None:
    info = TensorInfo("data", (1, 3, 8, 8), "float32")
    pixels = picture(8, 8)
    out = Preprocess.preset("imagenet-caffe").resolve(info, pixels)(pixels)
    np.testing.assert_array_equal(out[0], pixels[..., 2].astype(np.float32) - 104)
    np.testing.assert_array_equal(out[2], pixels[..., 0].astype(np.float32) - 123)


def test_image_file_bytes_and_array_give_the_same(tmp_path) -> None:
    pixels = picture(8, 8)
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.save(tmp_path / "a.png")
    image.save(buffer, "PNG")
    steps = Preprocess.preset("cifar10").resolve(RGB, image)
    outs = [
        steps(raw) for raw in (image, tmp_path / "a.png", str(tmp_path / "a.png"), buffer.getvalue(), pixels, pixels.transpose(2, 0, 1))
    ]
    for out in outs[1:]:
        np.testing.assert_array_equal(out, outs[0])


def test_a_sample_of_the_final_size_is_left_alone_unless_told() -> None:
    pixels = picture(8, 8)
    unit = Preprocess.preset("unit").resolve(RGB, pixels)
    np.testing.assert_array_equal(unit(Image.fromarray(pixels)), pixels.transpose(2, 0, 1) / np.float32(255))
    strict = Preprocess.from_yaml("preset: unit\nkeep_exact: false").resolve(RGB, pixels)
    assert not np.array_equal(strict(Image.fromarray(pixels)), unit(pixels))


def test_array_resize_equals_image_resize() -> None:
    pixels = picture(17, 23)
    steps = Preprocess.preset("imagenet").resolve(RGB, pixels)
    np.testing.assert_array_equal(steps(pixels), steps(Image.fromarray(pixels)))


def test_block_and_single_samples_agree() -> None:
    block = np.stack([picture(8, 8, seed) for seed in range(5)])
    steps = Preprocess.preset("imagenet").resolve(RGB, block[0])
    np.testing.assert_array_equal(steps.batch(block), np.stack([steps(one) for one in block]))


@pytest.mark.parametrize(
    ("shape", "sample", "out"),
    [
        (("n", 1, 8, 8), (8, 8), (1, 8, 8)),
        (("n", 8, 8, 1), (8, 8), (8, 8, 1)),
        (("n", 8, 8), (8, 8), (8, 8)),
        (("n", 3, 8, 8), (8, 8, 3), (3, 8, 8)),
        (("n", 8, 8, 3), (3, 8, 8), (8, 8, 3)),
        (("n", 3, 8, 8), (8, 8), (3, 8, 8)),
        (("n", 1, 8, 8), (8, 8, 3), (1, 8, 8)),
    ],
)
def test_layouts_and_channels(shape, sample, out) -> None:
    raw = np.random.default_rng(1).integers(0, 256, sample, np.uint8)
    info = TensorInfo("x", shape, "float32")
    assert Preprocess.preset("unit").resolve(info, raw)(raw).shape == out


def test_grey_is_pillows_luma() -> None:
    pixels = picture(16, 16)
    expected = np.asarray(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(match_channels(pixels[np.newaxis], 1)[0, ..., 0], expected)


def test_geometry_rules() -> None:
    assert resized((300, 500), 256) == (256, 426)
    assert resized((500, 300), 256) == (426, 256)
    assert crop_box((256, 340), (224, 224)) == (16, 58)
    with pytest.raises(DataError, match="200x300"):
        crop_box((200, 300), (224, 224))
    assert channel_axis((3, 32, 3), 3, "nhwc") == 2
    assert channel_axis((3, 32, 3), 3, "nchw") == 0
    assert channel_axis((1, 32, 3), 3, "nchw") == 2


def test_inferred_scaling_is_visible() -> None:
    bytes_ = infer(RGB, picture(8, 8))
    assert bytes_.scale == 1 / 255
    assert "scaled by 1/255" in bytes_.to_yaml()
    floats = infer(RGB, picture(8, 8).astype(np.float32))
    assert floats.scale == 1.0
    assert "passed on as they are" in floats.note
    np.testing.assert_array_equal(floats(np.ones((8, 8, 3), np.float32)), np.ones((3, 8, 8), np.float32))


def test_pixel_means_switch_off_the_guessed_scale() -> None:
    given = Preprocess.from_yaml("mean: [104, 117, 123]")
    assert given.resolve(RGB, picture(8, 8)).scale == 1.0
    assert Preprocess.from_yaml("mean: [0.5]").resolve(RGB, picture(8, 8)).scale == 1 / 255


def test_table_rows_are_standardised_in_column_order() -> None:
    steps = Preprocess.from_yaml("columns: [b, a]\nmean: [10, 1]\nstd: [5, 2]\ntarget: y\ntarget_mean: 100\ntarget_std: 50")
    info = TensorInfo("x", ("n", 2), "float32")
    settled = steps.resolve(info, np.zeros(2))
    np.testing.assert_array_equal(settled({"a": 5, "b": 20, "c": 9}), np.float32([2, 2]))
    np.testing.assert_array_equal(settled.labels(np.array([100, 200])), [0, 2])
    feeds = prepare([{"a": 5, "b": 20}, {"a": 1, "b": 10}], [info], settled)
    np.testing.assert_array_equal(feeds["x"], np.float32([[2, 2], [0, 0]]))
    with pytest.raises(DataError, match="lacks b"):
        settled({"a": 1})


def test_prepare_several_inputs() -> None:
    inputs = [TensorInfo("ids", ("n", "t"), "int64"), TensorInfo("mask", ("n", "t"), "int64")]
    feeds = prepare([{"ids": [1, 2], "mask": [1, 1]}, {"ids": [3, 4], "mask": [1, 0]}], inputs, Preprocess(kind="array"))
    np.testing.assert_array_equal(feeds["ids"], [[1, 2], [3, 4]])
    assert feeds["mask"].dtype == np.int64
    with pytest.raises(DataError, match="mask"):
        prepare([{"ids": [1, 2]}], inputs, Preprocess(kind="array"))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_round_trip(name) -> None:
    channels = 1 if PRESETS[name].channels == "grey" else 3
    settled = PRESETS[name].resolve(TensorInfo("x", ("n", channels, 32, 32), "float32"), picture(32, 32))
    assert "auto" not in settled.to_yaml()
    assert Preprocess.from_yaml(settled.to_yaml()) == settled


sides = st.integers(1, 4096)
numbers = st.floats(-1e6, 1e6, allow_nan=False)
positive = st.floats(1e-6, 1e6)
words = st.text(min_size=1, max_size=12)


@given(
    kind=st.sampled_from(["auto", "image", "array"]),
    resize=st.one_of(st.none(), st.just("auto"), sides, st.tuples(sides, sides)),
    crop=st.one_of(st.none(), st.just("auto"), st.tuples(sides, sides)),
    keep_exact=st.booleans(),
    scale=st.one_of(st.just("auto"), positive, st.just(1 / 255)),
    mean=st.lists(numbers, min_size=3, max_size=3).map(tuple),
    std=st.lists(positive, min_size=3, max_size=3).map(tuple),
    layout=st.sampled_from(["auto", "nchw", "nhwc", "nhw"]),
    columns=st.lists(words, unique=True, max_size=3).map(tuple),
    target=st.one_of(st.none(), words),
    target_mean=st.one_of(st.none(), numbers),
    note=words,
)
def test_yaml_round_trip(**values) -> None:
    steps = Preprocess(**values)
    assert Preprocess.from_yaml(steps.to_yaml()) == steps


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cropp: 8", "Did you mean 'crop'"),
        ("preset: imagent", "Did you mean 'imagenet'"),
        ("channels: bg", "Did you mean 'bgr'"),
        ("std: [0, 1, 1]", "zero or negative"),
        ("mean: [1, 2, 3]\nstd: [1, 2]", "3 means and 2"),
        ("scale: -1", "above 0"),
        ("scale: .nan", "a number"),
        ("scale: 1/0", "a number"),
        ("crop: [8]", "height, width"),
        ("crop: true", "size in pixels"),
        ("resize: 0", "size in pixels"),
        ("schema: 2", "schema 2"),
        ("- a", "mapping"),
        ("a: [", "not YAML"),
        ("note: 2020-13-45", "not YAML"),
        ("columns: [a, a]", "different names"),
    ],
)
def test_yaml_mistakes_are_said(text, says) -> None:
    with pytest.raises(UsageError) as caught:
        Preprocess.from_yaml(text)
    assert says in str(caught.value)


def test_load_by_file_or_preset(tmp_path) -> None:
    (tmp_path / "p.yaml").write_text("preset: imagenet\nresize: 232\n")
    assert Preprocess.load(tmp_path / "p.yaml").resize == 232
    assert Preprocess.load("inception") == PRESETS["inception"]
    with pytest.raises(UsageError, match="Did you mean 'inception'"):
        Preprocess.load("incepton")
    with pytest.raises(UsageError, match="cannot be read"):
        Preprocess.load(tmp_path / "none.yaml")


def test_more_than_eight_bits_are_refused() -> None:
    deep = Image.fromarray(np.zeros((8, 8), np.uint16))
    with pytest.raises(DataError, match="8 bits"):
        Preprocess.preset("unit").resolve(RGB, picture(8, 8))(deep)


def test_wrong_number_of_means_is_said() -> None:
    with pytest.raises(UsageError, match="2 means"):
        Preprocess(mean=(0.1, 0.2)).resolve(RGB, picture(8, 8))
    with pytest.raises(UsageError, match="3 means"):
        Preprocess(mean=(0.1, 0.2, 0.3)).resolve(TensorInfo("x", ("n", 2), "float32"), np.zeros(2))


def test_dynamic_size_needs_a_crop() -> None:
    info = TensorInfo("x", ("n", 3, "h", "w"), "float32")
    with pytest.raises(DataError, match="dynamic"):
        Preprocess.preset("imagenet").resolve(info, Image.fromarray(picture(20, 20)))
    settled = Preprocess.from_yaml("preset: imagenet\ncrop: 14").resolve(info, Image.fromarray(picture(20, 20)))
    assert (settled.resize, settled.crop) == (16, (14, 14))
