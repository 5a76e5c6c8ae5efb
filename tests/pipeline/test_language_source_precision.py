"""A source in float32 is called that, wherever one in 16 bit is called so; the rules for both are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from decoder_case import need, random_decoder
from language_evidence import baseline, made, policy, speed

from lowbit.bundle import language_words
from lowbit.cli.llm import command
from lowbit.llm.folder import SourceFolder
from lowbit.pipeline.language.decide import decide
from lowbit.pipeline.language.optimize import _precision, bits_per_weight
from lowbit.pipeline.language.recipes import BASELINE_ENGINE, SOURCE_RECIPE, Plan, catalogue
from lowbit.types import Candidate, Decision

WORDS = {"16 bit": "16-bit", "float32": "float32"}


def judged(precision: str, *more: Any) -> tuple[Decision, Candidate]:
    first, facts = baseline()
    first = replace(first, precision=precision)
    pairs = [(first, facts), *more]
    return decide(first, [c for c, _ in pairs], {c.id: f for c, f in pairs}, policy()), first


@pytest.mark.parametrize("precision", WORDS)
def test_every_verdict_names_the_source_as_it_is(precision: str) -> None:
    other, word = ({*WORDS} - {precision}).pop(), WORDS[precision]
    fast = made("f16@llamacpp", precision, 0.0, speed(900, 200), 400_000_000, half=0.0001)
    good = made("int4-gptq@llamacpp", "int4", 0.03, speed(900, 400), 150_000_000)
    bad = made("int4-gptq@llamacpp", "int4", 0.15, speed(900, 400), 150_000_000)
    ship, first = judged(precision, good)
    assert (ship.verdict, ship.chosen) == ("ship", good[0].id)
    assert f"the {word} model lies beside it" in ship.next_steps[0]
    assert f"as fast as the best {word} version, {first.id}" in " ".join(ship.reasons)
    keep, _ = judged(precision, fast)
    assert (keep.verdict, keep.chosen) == ("keep", fast[0].id), "it is a source, and needs no budget"
    assert keep.reasons[0] == f"{precision} stays, on its fastest engine: f16@llamacpp."
    stays, _ = judged(precision)
    assert stays.reasons[0] == f"The {word} model stays as it is."
    recover, _ = judged(precision, bad)
    assert recover.reasons[-1] == f"Until then {first.id} at {precision} is what to run."
    told = [judgement.reasons[0] for judgement in ship.judgements if judgement.id == first.id]
    assert told == [f"The {word} model: what everything is compared with."]
    every = " ".join((*ship.reasons, *ship.next_steps, *keep.reasons, *stays.reasons, *recover.reasons, *told))
    assert WORDS[other] not in every
    assert other not in every


def test_a_folder_in_float32_is_called_so(tmp_path: Path) -> None:
    need("torch", "transformers", "safetensors")
    for dtype, precision, bits in (("float32", "float32", 32.0), ("bfloat16", "16 bit", 16.0)):
        folder = random_decoder("llama", tmp_path / dtype, dtype=dtype)
        context: Any = SimpleNamespace(request=SimpleNamespace(source=SourceFolder.open(folder)))
        plain = Plan(SOURCE_RECIPE, BASELINE_ENGINE)
        assert _precision(context, plain) == precision
        assert bits_per_weight(context, plain) == bits
        int4 = Plan(catalogue(context.request.source.decoder)["int4"], "llamacpp")
        assert _precision(context, int4) == "int4"
        assert 4 < (bits_per_weight(context, int4) or 0) < 5
        told = CliRunner().invoke(command, ["recipes", str(folder)]).output
        assert f"the model's own weights ({dtype})" in told


def test_every_engine_keeps_float32_as_it_is(tmp_path: Path) -> None:
    """That is why f16 of a float32 folder is no conversion."""
    need("torch", "transformers", "safetensors", "gguf")
    from lowbit.llm import formats

    source = SourceFolder.open(random_decoder("llama", tmp_path / "source", dtype="float32"))
    artifact = formats.write(source, "gguf", tmp_path / "gguf")
    assert artifact.stat().st_size > 4 * source.parameters


def test_sources_are_told_from_what_was_made_of_them() -> None:
    told = [each for each in ("16 bit", "float32", "int8", "Q8_0", "mixed-4.5") if language_words.is_source(each)]
    assert told == ["16 bit", "float32"]
