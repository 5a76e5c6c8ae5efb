"""The report's section on layers: there when a bundle knows its layers, absent otherwise, and every word escaped."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_examples import recover

from lowbit.bundle.report import render_report
from lowbit.bundle.report_layers import FILE, find_layers, layers_page, mixed_sentences, noise_bars
from lowbit.compress.explain import Layer, Layers
from lowbit.errors import DataError

LAYERS = Layers(
    "w8a8",
    "minmax",
    False,
    "classes",
    100,
    2.9,
    (
        Layer("stem", "Conv", "x", None, 0.1, 0.1, 2, None),
        Layer("<b>block</b>", "Conv", "y", "stem", 0.9, 0.9, 1, 15.0, use=0.1, kurtosis=80.0, tail=0.83),
        Layer("head", "Gemm", "z", "<b>block</b>", 0.0, 0.0, 3, 75.0),
    ),
)


def test_a_report_without_layers_has_no_section() -> None:
    assert 'id="layers"' not in render_report(recover())


def test_the_section_names_the_worst_and_why() -> None:
    page = render_report(recover(), layers=LAYERS)
    assert page.index('id="layers"') < page.index('id="turned-down"')
    table = page.partition("The worst layers")[2]
    assert table.index("block") < table.index(">stem<") < table.index(">head<")
    assert "Conv: 0.1 % of its input&#x27;s values take 83 % of the range" in table
    assert "The 1 worst of 3 layers make up 90.0 % of the damage." in page
    assert "<b>block" not in page


def test_bars_are_as_high_as_the_noise_is_low() -> None:
    bars = noise_bars(LAYERS)
    heights = [float(part.partition('"')[0]) for part in bars.partition("<desc")[2].split(' height="')[1:]]
    assert heights == [100.0, 25.0, 100.0]  # nothing changed, 15 of 60 dB, and beyond the end of the axis
    assert bars.count('class="bad"') == 2  # a layer without any damage is no bad one


def test_layers_are_found_in_a_candidates_folder(tmp_path: Path) -> None:
    manifest = recover()
    assert find_layers(tmp_path, manifest) is None
    folder = tmp_path / "candidates" / manifest.candidates[0].id
    folder.mkdir(parents=True)
    (folder / FILE).write_text(json.dumps(LAYERS.to_json()))
    assert find_layers(tmp_path, manifest) == LAYERS
    (folder / FILE).write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        find_layers(tmp_path, manifest)


def test_mixed_precision_says_what_it_left_and_what_that_took() -> None:
    manifest = recover()
    assert mixed_sentences(manifest) == []
    reason = "3 of 55 products stay in floating point (a, b, c); predicted to take +12% of the time."
    whole = next(entry for entry in manifest.candidates if entry.precision == "int8" and entry.measurements)
    mixed = whole.model_copy(update={"id": "int8-mixed-1@onnxruntime", "recipe": "int8-mixed-1", "notes": (reason,)})
    with_mixed = manifest.model_copy(update={"candidates": (*manifest.candidates, mixed)})
    (sentence,) = mixed_sentences(with_mixed)
    assert sentence.startswith(f"int8-mixed-1@onnxruntime: {reason} Measured: ")
    assert re.search(r"(\d\S+×) over FP32 at batch 1, against \d\S+× for the fastest candidate of integers alone\.$", sentence)
    bare = mixed.model_copy(update={"notes": ()})
    (short,) = mixed_sentences(manifest.model_copy(update={"candidates": (*manifest.candidates, bare)}))
    assert short == sentence.replace(reason, "Its recipe.yaml names the products that stay in floating point.")
    assert sentence[:30] in render_report(with_mixed, layers=LAYERS)


def test_a_page_of_its_own_is_offline() -> None:
    page = layers_page(replace(LAYERS, layers=()), "<model>")
    assert "<title>&lt;model&gt; · lowbit analyze</title>" in page
    assert "http" not in page
    assert "<script" not in page
