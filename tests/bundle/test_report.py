"""The report says what the manifest says, asks nobody for anything, and fits a desk and a phone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_examples import CANDIDATES, EXAMPLES, comparison, keep, provisional, recover, ship, single, text
from headless_chromium import Chromium
from page_outline import EVIL, Outline

from lowbit.bundle.report import render_report
from lowbit.types import SliceResult


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_verdict_makes_a_well_formed_page(name: str) -> None:
    page = Outline(render_report(EXAMPLES[name]()))
    assert len(set(page.ids)) == len(page.ids)
    assert not {"None", "nan", "inf"} & set(page.text.split())


def test_the_headline_has_the_three_numbers_that_matter() -> None:
    text = Outline(render_report(ship())).text
    assert "int8-static-mse on openvino is 3.7× faster and 3.9× smaller; top-1 changes by −0.21 pp [−0.63, +0.21]." in text
    assert "[3.6×, 3.8×] over FP32 on onnxruntime at batch 1: 21.4 ms → 5.78 ms. 2.8× over the fastest FP32 on any runtime." in text
    assert "95 % interval [−0.63, +0.21], n = 4,000; budget 1 pp." in text
    assert "Of 4,000 samples 40 went from right to wrong and 32 from wrong to right." in text


def test_the_sections_come_in_the_order_of_a_readers_questions() -> None:
    assert Outline(render_report(ship())).headings == [
        "Why",
        "Accuracy against latency",
        "Every candidate",
        "Latency",
        "Confidence",
        "Slices and the hardest tenth",
        "Not chosen, and why",
        "What to do next",
        "How to run it",
        "Environment, data and method",
    ]


def test_sections_without_content_are_left_out() -> None:
    assert Outline(render_report(single())).headings == ["Why", "Every candidate", "How to run it", "Environment, data and method"]
    assert not {"Confidence", "Slices and the hardest tenth"} & set(Outline(render_report(keep())).headings)


def test_a_text_model_has_a_row_for_every_sequence_length() -> None:
    page = render_report(text())
    table = page.partition("By sequence length")[2].partition("</table>")[0]
    cells = [re.sub(r"<[^>]+>", " ", row).split() for row in table.split("<tr>")[1:]]
    assert " ".join(cells[0]) == "Length batch 1 baseline → chosen batch 8 baseline → chosen"
    assert [" ".join(row[:2]) for row in cells[1:]] == ["16 tokens", "32 tokens", "64 tokens"]
    assert " ".join(cells[1][2:9]) == "5.35 → 1.45 ms 1.68× [1.61, 1.74]"
    assert " ".join(cells[3][2:9]) == "21.4 → 5.78 ms 3.7× [3.55, 3.85]"
    assert "By sequence length" not in render_report(ship())


def test_what_was_turned_down_says_why() -> None:
    text = Outline(render_report(keep())).text
    assert "The output is NaN for 400 of 400 samples." in text
    assert "It could not be run. onnxruntime could not load it: node '/layer2/conv1/Conv' has no kernel for uint8." in text


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (ship, "Ship it"),
        (provisional, "Ship it behind a canary"),
        (recover, "Not yet: recover accuracy first"),
        (keep, "Keep the source precision"),
    ],
)
def test_every_verdict_has_its_own_words(example: object, words: str) -> None:
    assert callable(example)
    assert words in Outline(render_report(example())).text


def test_a_change_of_runtime_is_not_sold_as_quantization() -> None:
    text = Outline(render_report(recover())).text
    assert "Until then, fp32 on openvino in bf16 is 1.94× faster; top-1" in text


def test_markup_in_names_is_shown_and_never_run() -> None:
    part = comparison(0.0021, 4000).slices[0]
    found = comparison(0.0021, 4000)
    evil = SliceResult(EVIL, part.n, part.baseline, part.candidate, part.delta)
    candidates = tuple(replace(c, confirm=replace(found, slices=(evil,))) if c.id == "int8-static-mse@openvino" else c for c in CANDIDATES)
    manifest = ship(candidates=tuple(replace(c, recipe=EVIL, reasons=(EVIL,)) for c in candidates), notes=(EVIL,), command=EVIL)
    page = render_report(manifest, title=EVIL)
    outline = Outline(page)
    assert outline.text.count("<script>alert(1)</script>") >= 4
    assert not {"script", "img"} & outline.tags


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_source_refers_to_nothing_outside(name: str) -> None:
    page = render_report(EXAMPLES[name]())
    assert not re.search(r"(?:src|href|srcset|action|data)\s*=\s*[\"'](?!data:|#)", page)
    assert not re.search(r"url\(|@import|https?:|<script|<iframe|<object", page)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_asks_for_nothing_and_has_nothing_to_complain_of(browser: Chromium, tmp_path: Path, name: str, width: int) -> None:
    file = tmp_path / "report.html"
    file.write_text(render_report(EXAMPLES[name]()), encoding="utf-8")
    page = browser.open(file, width, dark=name == "keep")
    assert [url for url in page.urls if not url.startswith("data:")] == [file.resolve().as_uri()]
    assert page.messages == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("getComputedStyle(document.querySelector('h1')).fontSize") != "32px" or width == 390


LABELS_THAT_TOUCH = """
(() => {
  const shown = [...document.querySelectorAll('.scatter text.label')].filter(t => t.getClientRects().length);
  const boxes = shown.map(t => t.getBoundingClientRect());
  const touch = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3;
  return [boxes.length, boxes.filter((a, i) => boxes.some((b, j) => j > i && touch(a, b))).length];
})()
"""


@pytest.mark.parametrize("width", [1280, 390])
def test_labels_in_the_scatter_do_not_collide(browser: Chromium, tmp_path: Path, width: int) -> None:
    file = tmp_path / "report.html"
    file.write_text(render_report(ship()), encoding="utf-8")
    browser.open(file, width)
    shown, touching = browser.evaluate(LABELS_THAT_TOUCH)
    assert shown >= 4
    assert touching == 0


CONTRAST = """
(() => {
  const pixel = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
  const canvas = pixel.getContext('2d', {willReadFrequently: true});
  const rgba = c => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255]; };
  const behind = e => { let stack = []; for (; e; e = e.parentElement) stack.unshift(rgba(getComputedStyle(e).backgroundColor));
    return stack.reduce((below, [r, g, b, a]) => [r, g, b].map((v, i) => v * a + below[i] * (1 - a)), [255, 255, 255]); };
  const light = c => { const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const speaks = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  const texts = [...document.querySelectorAll('body *')].filter(e => !e.closest('svg') && speaks(e));
  return Math.min(...texts.map(e => ratio(rgba(getComputedStyle(e).color).slice(0, 3), behind(e))));
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_the_contrast_of_wcag_aa(browser: Chromium, tmp_path: Path, dark: bool) -> None:
    file = tmp_path / "report.html"
    file.write_text(render_report(ship()), encoding="utf-8")
    browser.open(file, 1280, dark=dark)
    assert browser.evaluate(CONTRAST) >= 4.5
