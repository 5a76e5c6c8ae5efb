"""`lowbit llm ...` on a small random decoder: each stage by itself, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runner import Shell, lowbit
from decoder_case import need, random_decoder, texts

Run = Callable[..., Shell]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_decoder("llama", tmp_path_factory.mktemp("model") / "tiny", positions=64)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(texts(count=1, sentences=30)[0], encoding="utf-8")
    return file


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda *args: lowbit(capfd, monkeypatch, "llm", *args)


def test_recipes_are_those_that_the_sizes_allow(run: Run, model: Path) -> None:
    names = json.loads(run("recipes", model, "--output", "json").out)
    assert names["int4"]["grid"] == {"bits": 4, "group": 32, "symmetric": True}
    assert "int4-gptq-g128" not in names  # the MLP is 96 wide
    told = run("recipes", model).out
    assert "int4-gptq            4 bit, groups of 32, gptq  (tried by default)" in told


@pytest.mark.slow
def test_quantize_write_and_judge(run: Run, model: Path, text: Path, tmp_path: Path) -> None:
    need("llama_cpp", "gguf")
    done = run("quantize", model, "--recipe", "int8", "--out", tmp_path / "table", "--output", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["recipe"] == "int8"
    written = run("write", tmp_path / "table", "--to", "gguf", "--out", tmp_path / "gguf")
    assert (written.code, written.out.strip()) == (0, str(tmp_path / "gguf" / "model.gguf"))
    judged = [
        ("perplexity", where, "--data", text, "--model", model, "--window", "32")
        for where in (model, tmp_path / "table", tmp_path / "gguf")
    ]
    (tmp_path / "gguf" / "config.json").write_bytes((model / "config.json").read_bytes())
    (tmp_path / "gguf" / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    judged.append(("perplexity", tmp_path / "gguf", "--data", text, "--window", "32"))  # its own tokenizer, without weights beside it
    values = [json.loads(run(*arguments, "--output", "json").out) for arguments in judged]
    assert len({value["tokens"] for value in values}) == 1
    assert values[1]["value"] == pytest.approx(values[0]["value"], rel=0.05)  # 8 bits
    assert values[2]["value"] == pytest.approx(values[1]["value"], rel=0.02)  # the same weights on another engine
    assert "tokens" in run(*judged[0]).out


@pytest.mark.slow
def test_artifacts_are_timed_beside_each_other(run: Run, model: Path, tmp_path: Path) -> None:
    need("llama_cpp", "gguf")
    assert run("write", model, "--to", "gguf", "--out", tmp_path / "gguf").code == 0
    asked = ("bench", tmp_path / "gguf", model, "--workload", "prompt=8,output=4", "--rounds", "2", "--price-per-hour", "1")
    found = json.loads(run(*asked, "--output", "json").out)
    assert set(found) == {"gguf@llamacpp", "tiny@torch"}
    for speed in found.values():
        assert speed["error"] is None
        request = speed["total_s"]["value"]
        assert speed["per_million_tokens"]["dollars"] == pytest.approx(request / 12 * 1e6 / 3600, rel=0.5)  # 12 tokens a request
    assert "first token" in run(*asked).out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("quantize", "{model}", "--recipe", "int4-gptq", "--out", "{out}"), 2, "calibrates"),
        (("quantize", "{model}", "--recipe", "f16", "--out", "{out}"), 2, "has no table: the weights stay"),
        (("quantize", "{model}", "--recipe", "int9", "--out", "{out}"), 2, "'int9'"),
        (("quantize", "{model}", "--recipe", "absent.yaml", "--out", "{out}"), 2, "absent.yaml cannot be read"),
        (("quantize", "{model}", "--recipe", "int8", "--out", "{model}"), 2, "has the weights of a model already"),
        (("write", "{model}", "--to", "docx", "--out", "{out}"), 2, "'docx'"),
        (("write", "{model}", "--to", "safetensors", "--out", "{model}"), 2, "has the weights of a model already"),
        (("write", "{model}", "--to", "gguf", "--out", "{text}"), 2, "is a file; a folder is needed"),
        (("perplexity", "{text}", "--data", "{text}"), 3, "is no artifact of a language model"),
        (("perplexity", "{model}", "--data", "{text}", "--engine", "llamacpp"), 2, "opens gguf"),
        (("bench", "{out}"), 3, "is no artifact of a language model"),
        (("bench", "{model}", "--workload", "prompt=0,output=1"), 2, "whole number from 1 on"),
    ],
)
def test_what_cannot_work_is_refused(
    run: Run, model: Path, text: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    out = tmp_path / "out"
    done = run(*(each.format(model=model, text=text, out=out) for each in arguments))
    assert done.code == code, done.err
    assert words in done.err
    assert "Traceback" not in done.err
    assert not out.exists()
