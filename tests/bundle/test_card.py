"""The model card: metadata that parses, and the same numbers as the manifest."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml
from bundle_examples import CANDIDATES, EXAMPLES, POLICY, keep, ship, single

from lowbit.bundle.card import render_card


def split(card: str) -> tuple[dict[str, object], str]:
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_head_is_what_a_hub_reads() -> None:
    head, _ = split(render_card(ship()))
    assert head["base_model_relation"] == "quantized"
    assert head["base_model"] == "fashion-resnet.onnx"
    assert head["tags"] == ["onnx", "lowbit", "int8", "openvino"]
    assert head["model-index"][0]["results"][0]["metrics"] == [{"type": "top1", "value": 0.932}]  # type: ignore[index]
    assert "base_model_relation" not in split(render_card(keep()))[0]


def test_a_program_is_tagged_as_one() -> None:
    manifest = ship()
    program = manifest.model_copy(update={"model": manifest.model.model_copy(update={"artifact": "model/model.pt2"})})
    assert split(render_card(program))[0]["tags"] == ["pytorch", "lowbit", "int8", "openvino"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_card_has_every_section(name: str) -> None:
    _, body = split(render_card(EXAMPLES[name]()))
    titles = ["What it is", "How it was made", "Evaluation", "Intended use and limits", "Measured on", "How to run", "Lineage (SHA-256)"]
    assert [line[3:] for line in body.splitlines() if line.startswith("## ")] == titles
    assert "nan" not in body.split()


def test_the_numbers_are_the_manifests() -> None:
    _, body = split(render_card(ship()))
    assert "| top-1 | 93.41 % | 93.20 % | −0.21 pp [−0.63, +0.21] |" in body
    assert "Paired with FP32 on 4,000 samples (samples that the search did not use)" in body
    assert "Right to wrong: 40; wrong to right: 32. Worst slice: Shirt, −0.63 pp" in body
    assert "| int8-static-mse@openvino | 5.78 | 37.0 | 3.7× [3.6×, 3.8×] | 117 MB |" in body
    assert f"- `model/model.onnx`: `{'e3' * 32}`" in body
    assert "session.predict(sample)" in body
    assert "session.run(x)" in split(render_card(keep()))[1]
    assert "nothing to compare it with" in split(render_card(single()))[1]


def test_names_cannot_break_the_markdown() -> None:
    evil = "| a | <script> `x` [y](http://evil.test)\n# heading"
    card = render_card(ship(candidates=tuple(replace(c, recipe=evil) for c in CANDIDATES)))
    outside = re.sub(r"`[^`\n]*`", "", split(card)[1])
    assert "<script>" not in outside
    assert "[y](" not in outside
    assert "\n# heading" not in outside


def test_a_safety_critical_use_is_said() -> None:
    assert "A wrong answer can hurt someone" in render_card(ship(policy=replace(POLICY, safety_critical=True)))
