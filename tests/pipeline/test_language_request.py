"""Dealing text to those who calibrate, search and confirm; windows; which recipes go to which engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import UsageError
from lowbit.llm.decoder import Decoder, Rope
from lowbit.pipeline.language.recipes import Plan, catalogue, divides, plans
from lowbit.pipeline.language.request import named
from lowbit.pipeline.language.text import deal, window_size

SMALL = Decoder("llama", 2, 320, 5, 5, 64, 864, 4096, 512, "rms", 1e-6, "silu", True, Rope(10000.0, 64))
WIDE = Decoder("llama", 2, 1024, 16, 8, 64, 2816, 32000, 2048, "rms", 1e-6, "silu", True, Rope(10000.0, 64))


@settings(deadline=None)
@given(st.lists(st.integers(2, 400), min_size=1, max_size=5), st.integers(2, 32), st.integers(0, 6), st.integers(0, 2**31))
def test_no_window_is_on_two_sides_and_all_windows_are_the_texts(lengths: list[int], size: int, calibrate: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    documents = [(str(i), rng.integers(0, 3, length).astype(np.int32)) for i, length in enumerate(lengths)]  # few tokens: windows repeat
    parts = deal(documents, size, calibrate=calibrate, most=10_000)
    contents = [{tokens.tobytes() for _, tokens in part} for part in parts]
    assert not contents[0] & contents[1]
    assert not contents[1] & contents[2]
    assert not contents[0] & contents[2]
    for part in parts:
        for name, tokens in part:
            document, _, begin = name.rpartition(":")
            np.testing.assert_array_equal(documents[int(document)][1][int(begin) : int(begin) + size], tokens)
    again = deal(documents, size, calibrate=calibrate, most=10_000)
    assert [[name for name, _ in part] for part in again] == [[name for name, _ in part] for part in parts]


def test_text_is_dealt_in_halves_by_its_content() -> None:
    documents = [("a", np.arange(64 * 41, dtype=np.int32))]
    calibration, search, confirm = deal(documents, 64, calibrate=8, most=1000)
    assert (len(calibration), len(search), len(confirm)) == (8, 16, 17)
    again = deal([("renamed", documents[0][1])], 64, calibrate=8, most=1000)
    assert [tokens[0] for _, tokens in again[1]] == [tokens[0] for _, tokens in search]
    few = deal(documents, 64, calibrate=8, most=10)
    assert len(few[1]) + len(few[2]) == 10


def test_a_window_is_as_long_as_the_model_and_the_text_allow() -> None:
    assert window_size(512, [10**6], None) == 512
    assert window_size(100_000, [10**6], None) == 1024
    assert window_size(512, [256 * 45], None) == 256  # 45 windows of 256; of 512 only 22
    assert window_size(512, [700], None) == 64
    assert window_size(512, [700], 300) == 300
    with pytest.raises(UsageError, match="A window of 513 tokens does not fit"):
        window_size(512, [700], 513)


def test_a_catalogue_has_what_the_sizes_allow() -> None:
    assert divides(SMALL, 32)
    assert not divides(SMALL, 128)
    small, wide = catalogue(SMALL), catalogue(WIDE)
    assert "int4-gptq-g128" not in small
    assert "llamacpp-q4_k_m" not in small
    assert {"int4-gptq-g128", "int4-gptq-g64-asym", "llamacpp-q4_k_m"} <= set(wide)
    assert all(name == recipe.name for name, recipe in (small | wide).items())


def test_plans_begin_with_the_baseline_and_name_each_pair_once() -> None:
    found = plans(WIDE, ["openvino", "llamacpp"])
    ids = [plan.id for plan in found]
    assert ids[0] == "f16@torch"
    assert len(set(ids)) == len(ids)
    assert {"f16@openvino", "f16@llamacpp", "llamacpp-q4_k_m@llamacpp", "int4-gptq@openvino"} <= set(ids)
    assert "llamacpp-q4_k_m@openvino" not in ids
    only = plans(SMALL, ["llamacpp"], ["int4-tuned"])
    assert [plan.id for plan in only] == ["f16@torch", "f16@llamacpp", "int4-tuned@llamacpp"]
    assert only[-1] == Plan(catalogue(SMALL)["int4-tuned"], "llamacpp")


def test_a_recipe_that_no_engine_is_tried_with_is_refused_and_emulated_ones_run_on_torch() -> None:
    with pytest.raises(UsageError, match="'int8' is not tried on openvino"):
        plans(SMALL, ["openvino"], ["int8"])
    with pytest.raises(UsageError, match="'llamacpp-q8_0' is not tried on openvino or torch"):
        plans(SMALL, ["openvino", "torch"], ["llamacpp-q8_0"])
    assert [plan.id for plan in plans(SMALL, ["openvino"], ["w8a8-smooth"])] == ["f16@torch", "f16@openvino", "w8a8-smooth@torch"]
    assert [plan.id for plan in plans(SMALL, ["torch"], ["int4"])] == ["f16@torch", "int4@torch"]


def test_a_path_without_a_name_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert named(".").name == tmp_path.name
    assert named("a/b") == Path("a/b")


def test_what_is_not_a_recipe_or_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="'int4-gptq-g128'"):
        plans(SMALL, ["openvino"], ["int4-gptq-g128"])
    with pytest.raises(UsageError, match="No engine for language models is installed"):
        plans(SMALL, [])
