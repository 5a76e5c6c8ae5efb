"""The report of a language model says what the manifest says, asks nobody for anything, and runs no word of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from headless_chromium import Chromium
from language_examples import BASELINE, CANDIDATES, FACTS, INT4, INT8, TASK, language
from page_outline import EVIL, Outline

from lowbit.bundle.report import render_report

ENDPOINT = "http://127.0.0.1:8000/v1"
"""Shown in the code that asks a served bundle; no page opens it."""


def rows(page: str, label: str) -> dict[str, list[str]]:
    """Cells of a table's rows, each as text, by the candidate they are of."""
    body = page.partition(f'aria-label="{label}"')[2].partition("<tbody>")[2].partition("</tbody>")[0].replace("<wbr>", "")
    cells = [re.findall(r"<t[hd].*?</t[hd]>", row) for row in body.split("</tr>")[:-1]]
    texts = [[" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in row] for row in cells]
    return {name.split()[0]: rest for name, *rest in texts}


def test_the_page_begins_with_the_decision_and_its_numbers() -> None:
    page = Outline(render_report(language()))
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    assert not {"None", "nan", "inf"} & set(page.text.split())
    assert "Ship itint4-gptq on openvino answers a request 2.6× as fast as the best 16-bit version and is 3.2× smaller" in page.text
    assert "95 % interval [+3.79, +4.95] on 51,200 tokens; budget +8 %. It is 13.05; more is worse." in page.text
    assert "0.960 sprompts of 512 tokens, answers of 128, one at a time: first token after 120 ms, then 152 tokens a second." in page.text
    assert "Size84.0 MB3.2× smaller; it was 269 MB." in page.text


def test_the_sections_come_in_the_order_of_a_readers_questions() -> None:
    assert Outline(render_report(language())).headings == [
        "Why",
        "Perplexity against size",
        "Perplexity against time",
        "Every candidate",
        "Speed on the workload",
        "Tasks",
        "Not chosen, and why",
        "What to do next",
        "How to run it",
        "Environment, text and method",
    ]


def test_every_candidate_has_its_numbers() -> None:
    found = rows(render_report(language()), "Candidates")
    assert list(found) == [BASELINE, INT4, INT8, "f16@llamacpp", "int8-row@onnxruntime-genai"]
    assert found[BASELINE] == ["baseline", "12.5", "–", "–", "269 MB", "16.00", "1.28 GB"]
    assert found[INT4] == ["ship chosen", "13.01 +4.37 % [+3.79, +4.95]", "0.0456", "91.7 %", "84.0 MB", "4.50", "384 MB"]
    assert found["int8-row@onnxruntime-genai"] == ["failed", *["–"] * 6]


def test_speeds_are_sorted_and_quick_ones_marked() -> None:
    found = rows(render_report(language()), "Speeds")
    assert list(found) == [INT4, INT8, "f16@llamacpp", BASELINE]
    assert found[INT4] == ["0.960 [0.912, 1.01]", "120", "4,267", "152", "133", "0.308"]
    assert found[INT8][0] == "~ 1.60 [1.52, 1.68]"
    without = {
        ident: entry.model_copy(update={"speed": entry.speed.model_copy(update={"usd_per_million_tokens": None})}) if entry.speed else entry
        for ident, entry in FACTS.items()
    }
    manifest = language()
    assert manifest.language is not None
    cheap = manifest.model_copy(update={"language": manifest.language.model_copy(update={"candidates": without})})
    assert "$ a million" in render_report(manifest)
    assert "$ a million" not in render_report(cheap)


def test_tasks_and_what_was_turned_down_are_told() -> None:
    text = Outline(render_report(language())).text
    assert f"{INT4}arithmetic, exact match62.5 %61.2 %−1.30 pp[−3.00, +0.40]" in text
    assert "failed int8-row@onnxruntime-genai It could not be made." in text
    assert "Not drawn, for want of a number: int8-row@onnxruntime-genai." in text


def test_what_was_not_measured_is_left_out() -> None:
    bare = {ident: entry.model_copy(update={"speed": None, "tasks": ()}) for ident, entry in FACTS.items()}
    manifest = language(next_steps=())
    assert manifest.language is not None
    page = Outline(render_report(manifest.model_copy(update={"language": manifest.language.model_copy(update={"candidates": bare})})))
    assert not {"Perplexity against time", "Speed on the workload", "Tasks", "What to do next"} & set(page.headings)
    assert "A request–It was not timed." in page.text


def test_the_source_refers_to_nothing_outside() -> None:
    page = render_report(language())
    assert not re.search(r"(?:src|href|srcset|action|data)\s*=\s*[\"'](?!data:|#)", page)
    assert not re.search(r"url\(|@import|https?:|<script|<iframe|<object", page.replace(ENDPOINT, ""))


def test_markup_in_names_is_shown_and_never_run() -> None:
    manifest = language(
        candidates=tuple(replace(each, recipe=EVIL) if each.id == INT4 else each for each in CANDIDATES),
        verdicts={each.id: ("ship" if each.id == INT4 else "reject", EVIL) for each in CANDIDATES},
        reasons=(EVIL,),
        next_steps=(EVIL,),
        notes=(EVIL,),
        command=EVIL,
    )
    assert manifest.language is not None
    told = FACTS[INT4].model_copy(update={"tasks": (TASK.model_copy(update={"name": EVIL, "metric": EVIL}),)})
    entry = manifest.language.model_copy(update={"candidates": {**FACTS, INT4: told}, "workload": EVIL})
    outline = Outline(render_report(manifest.model_copy(update={"language": entry}), title=EVIL))
    # Title and heading, headline, reason, next step, three verdicts, note, command, task and its metric, workload in three places.
    assert outline.text.count("<script>alert(1)</script>") == 15
    assert not {"script", "img"} & outline.tags


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_asks_for_nothing_and_has_nothing_to_complain_of(browser: Chromium, tmp_path: Path, width: int) -> None:
    file = tmp_path / "report.html"
    file.write_text(render_report(language()), encoding="utf-8")
    page = browser.open(file, width)
    assert [url for url in page.urls if not url.startswith("data:")] == [file.resolve().as_uri()]
    assert page.messages == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
