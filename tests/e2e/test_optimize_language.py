"""`lowbit optimize FOLDER` on a language model: from a folder and text to a bundle, on a small random decoder with real engines."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from cli_runner import Shell, lowbit
from decoder_case import need, random_decoder, texts

from lowbit import optimize
from lowbit.bundle.bundle import Bundle
from lowbit.bundle.source import source_manifest
from lowbit.errors import UsageError
from lowbit.llm.folder import SourceFolder
from lowbit.pipeline.language.context import LanguageContext
from lowbit.pipeline.language.make import copy_source, size_of
from lowbit.pipeline.language.request import LanguageOptions, read_request
from lowbit.pipeline.language.state import replay
from lowbit.pipeline.reporting import Reporter
from lowbit.pipeline.store import Store

WORKLOAD = "prompt=16,output=4,concurrency=1"
BASELINE = "f16@torch"


def model_and_text(folder: Path) -> tuple[Path, Path]:
    model = random_decoder("llama", folder / "model", positions=64)
    written = folder / "texts"
    written.mkdir()
    for number, text in enumerate(texts(count=3, sentences=60)):
        (written / f"{number}.txt").write_text(text, encoding="utf-8")
    return model, written


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished bundle."""
    need("llama_cpp", "gguf")
    folder = tmp_path_factory.mktemp("language")
    model, written = model_and_text(folder)
    optimize(model, written, out=folder / "out", workload=WORKLOAD, engines=("llamacpp",), recipes=("int8", "int4"), rounds=3)
    return folder / "out"


@pytest.fixture
def shell(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Shell]:
    return lambda *args: lowbit(capfd, monkeypatch, *args)


@pytest.mark.slow
def test_a_folder_and_text_become_a_bundle_with_a_decision(found: Path) -> None:
    bundle = Bundle.load(found)
    manifest = bundle.manifest
    language = manifest.language
    assert language is not None
    assert {entry.id for entry in manifest.candidates} == {"f16@llamacpp", "int8@llamacpp", "int4@llamacpp"}
    assert manifest.baseline.id == BASELINE
    assert set(language.candidates) == {BASELINE, "f16@llamacpp", "int8@llamacpp", "int4@llamacpp"}
    assert (found / language.chosen.artifact).is_file()
    assert (found / language.tokenizer / "tokenizer.json").is_file()
    assert language.baseline is not None
    assert (found / language.baseline.artifact).is_file()
    assert not (found / ".work").exists()
    assert "Perplexity against size" in (found / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_number_is_about_the_same_text(found: Path) -> None:
    language = Bundle.load(found).manifest.language
    assert language is not None
    plain, int8, int4 = (language.candidates[f"{name}@llamacpp"] for name in ("f16", "int8", "int4"))
    base = language.candidates[BASELINE].perplexity
    assert base is not None
    assert plain.perplexity == pytest.approx(base, rel=0.01)  # the same weights on another engine
    assert int8.perplexity == pytest.approx(base, rel=0.05)
    assert int4.divergence is not None
    assert int8.divergence is not None
    assert 0 <= int8.divergence.kl_mean < int4.divergence.kl_mean
    assert (plain.bits_per_weight, int8.bits_per_weight, int4.bits_per_weight) == (16.0, 8.5, 4.5)
    sizes = {entry.id: entry.size_bytes or 0 for entry in Bundle.load(found).manifest.candidates}
    assert sizes["int4@llamacpp"] < sizes["int8@llamacpp"] < sizes["f16@llamacpp"]


@pytest.mark.slow
def test_the_decision_follows_from_the_journal(found: Path) -> None:
    manifest = Bundle.load(found).manifest
    again = replay(found / "journal.jsonl", BASELINE)
    assert (again.verdict, again.chosen, again.reasons) == (
        manifest.decision.verdict,
        manifest.decision.chosen,
        manifest.decision.reasons,
    )


@pytest.mark.slow
def test_nothing_in_the_bundle_says_where_it_was_made(found: Path) -> None:
    for name in ("bundle.json", "journal.jsonl", "report.html"):
        assert str(found.parent) not in (found / name).read_text(encoding="utf-8"), name


@pytest.mark.slow
def test_a_bundle_opens_on_its_engine_and_as_its_source(found: Path) -> None:
    bundle = Bundle.load(found)
    assert bundle.manifest.language is not None
    session, baseline = bundle.language("int8@llamacpp"), bundle.language(BASELINE)
    tokens = [5, 9, 200, 31]
    assert session.logits(tokens).shape == (4, 320)
    assert np.argmax(session.logits(tokens)[-1]) == np.argmax(baseline.logits(tokens)[-1])
    session.close()
    baseline.close()
    with pytest.raises(UsageError, match="of a language model"):
        bundle.session()
    source = source_manifest(bundle.manifest)
    assert source.language is not None
    assert source.language.chosen == bundle.manifest.language.baseline
    assert source_manifest(source) == source


# ── what cannot work is refused before anything is written ──────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return model_and_text(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--preprocess", "imagenet"], 2, "--preprocess means nothing for a language model"),
        (["--workload", "prompt=16"], 2, "lacks output"),
        (["--workload", "prompt=60,output=60"], 2, "requests have up to 120 tokens; the context is 64"),
        (["--window", "65"], 2, "A window of 65 tokens does not fit"),
        (["--recipe", "int5"], 2, "'int5'"),
        (["--runtime", "nothing"], 2, "'nothing'"),
        (["--context", "65"], 2, "A context of 65 tokens is more than the model's 64"),
        (["--task-drop", "2%"], 2, "told in points"),
        (["--max-drop", "1pp"], 2, "Perplexity has no scale of points"),
        (["--qa", "nowhere.jsonl"], 3, "nowhere.jsonl"),
    ],
)
def test_an_option_that_cannot_be_kept_is_refused(
    whole: tuple[Path, Path], shell: Callable[..., Shell], tmp_path: Path, options: list[str], code: int, words: str
) -> None:
    model, written = whole
    done = shell("optimize", model, "--data", written, "--out", tmp_path / "out", *options)
    assert done.code == code, done.err
    assert words in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_another_log_of_the_same_name_is_another_search(whole: tuple[Path, Path], tmp_path: Path) -> None:
    model, written = whole
    log, keys = tmp_path / "requests.jsonl", []
    for output in (4, 8):
        log.write_text(f'{{"prompt": 16, "output": {output}}}\n')
        keys.append(read_request(model, written, LanguageOptions(workload=str(log), engines=("torch",))).key)
    assert keys[0] != keys[1]


def test_the_baseline_is_a_copy_of_the_models_own_files(whole: tuple[Path, Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(whole[0], model)
    shutil.copyfile(model / "model.safetensors", model / "consolidated.safetensors")  # the same weights, saved another way
    (tmp_path / "out").mkdir()
    request = SimpleNamespace(source=SourceFolder.open(model))
    found = copy_source(LanguageContext(cast("Any", request), Store(tmp_path / "out"), Reporter(), None))
    assert found == tmp_path / "out" / "baseline" / "model.safetensors"
    assert not (found.parent / "consolidated.safetensors").exists()
    assert not found.samefile(model / "model.safetensors")  # training on in the same folder changes no rollback
    assert (found.parent / "tokenizer.json").is_file()
    assert size_of(found) == request.source.size_bytes


def test_text_that_cannot_judge_is_refused(whole: tuple[Path, Path], shell: Callable[..., Shell], tmp_path: Path) -> None:
    model, written = whole
    (tmp_path / "empty.txt").write_text("  \n")
    (tmp_path / "short.txt").write_text("The house stood on a hill.")
    for name, words in (("empty.txt", "has no text"), ("short.txt", "window"), ("nowhere.txt", "is not there")):
        done = shell("optimize", model, "--data", tmp_path / name, "--out", tmp_path / "out")
        assert (done.code, words in done.err) == (3, True), done.err
    done = shell("optimize", model, "--data", written, "--calibration", written, "--out", tmp_path / "out")
    assert done.code == 3
    assert "also in the text that judges" in done.err
    assert not (tmp_path / "out").exists()


def test_options_for_language_models_are_refused_elsewhere(shell: Callable[..., Shell], tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    done = shell("optimize", tmp_path / "m.onnx", "--data", tmp_path, "--workload", WORKLOAD)
    assert (done.code, "--workload is for language models" in done.err) == (2, True), done.err
