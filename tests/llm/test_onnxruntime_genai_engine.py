"""onnxruntime-genai as an engine: which graph a tuning asks for, prompts in pieces, several sequences in one cache.

What every engine must do is in tests/conformance/test_engines.py.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from decoder_case import need, random_decoder
from quantized_case import Rounded, recipe

from lowbit.errors import RunError
from lowbit.llm.engines import genai_batch
from lowbit.llm.engines.base import EngineTuning, Sampling
from lowbit.llm.engines.genai_files import WHOLE_ROW, read_files
from lowbit.llm.engines.onnxruntime_genai import OnnxRuntimeGenai
from lowbit.llm.folder import SourceFolder
from lowbit.llm.linear import Grid
from lowbit.llm.writers import genai_onnx
from lowbit.runtimes.hardware import probe

ONE = EngineTuning(threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("torch", "transformers", "onnx_ir", "onnxruntime", "onnxruntime_genai")
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    return genai_onnx.write(SourceFolder.open(random_decoder("llama", folder / "llama")), folder / "plain")


@pytest.fixture(scope="module")
def rows(folder: Path) -> Path:
    return genai_onnx.write(Rounded(SourceFolder.open(random_decoder("llama", folder / "llama")), recipe(Grid(8))), folder / "rows")


@pytest.fixture(scope="module")
def learned(folder: Path) -> Path:
    """Learned positions, which the graph is told."""
    return genai_onnx.write(SourceFolder.open(random_decoder("gpt2", folder / "gpt2")), folder / "learned")


def test_each_tuning_has_its_graph(plain: Path, rows: Path) -> None:
    asked = {activations: EngineTuning(activations=activations) for activations in (None, 0, 32, WHOLE_ROW)}
    assert {key: read_files(rows, tuning, 64).graph.name for key, tuning in asked.items()} == {
        None: "model.onnx",
        0: "model.float.onnx",
        32: "model.onnx",
        WHOLE_ROW: "model.token.onnx",
    }
    assert read_files(plain, asked[0], 64).graph.name == "model.onnx"
    for activations in (32, WHOLE_ROW):
        with pytest.raises(RunError, match=f"groups of {activations}"):
            read_files(plain, asked[activations], 64)
    with pytest.raises(RunError, match="groups of 512"):
        read_files(rows, EngineTuning(activations=512), 64)


def test_activations_differ_as_asked(rows: Path) -> None:
    found = []
    for activations in (0, None, WHOLE_ROW):
        session = OnnxRuntimeGenai().open(rows, EngineTuning(threads=1, activations=activations))
        found.append(np.concatenate([session.start([5, 6, 7]), session.logits([5, 6, 7])[-1]]))
        session.close()
    exact, blocks, tokens = found
    for start_and_score in found:  # the generator and the scorer compute the same graph
        assert np.allclose(start_and_score[:320], start_and_score[320:], atol=0.05 * exact.std())
    assert 1e-3 < np.abs(blocks - exact).max() < 0.3 * exact.std()
    assert 1e-3 < np.abs(tokens - exact).max() < 0.3 * exact.std()
    assert np.abs(tokens - blocks).max() > 1e-3


def test_tunings_are_what_the_engine_has(rows: Path) -> None:
    engine = OnnxRuntimeGenai()
    for tuning in engine.tunings(probe()):
        session = engine.open(rows, tuning)
        assert session.start([5]).shape == (320,)
        session.close()


@pytest.mark.parametrize("kv", ["int8", "int4", "bf16"])
def test_other_caches_are_refused(plain: Path, kv: str) -> None:
    with pytest.raises(RunError, match=f"kv={kv}"):
        OnnxRuntimeGenai().open(plain, EngineTuning(kv=kv))  # type: ignore[arg-type]


@pytest.mark.parametrize("artifact", ["plain", "learned"])
def test_a_prompt_in_pieces_is_the_same_prompt(artifact: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(artifact)
    prompt = list(range(10, 40))
    whole = OnnxRuntimeGenai().open(path, ONE).start(prompt)
    for piece in (1, 7, 29, 100):
        found = OnnxRuntimeGenai().open(path, dataclasses.replace(ONE, batch=piece)).start(prompt)
        assert np.abs(found - whole).max() < 1e-4


@pytest.mark.parametrize("artifact", ["plain", "rows", "learned"])
def test_prompts_read_between_others_tokens_are_answered_as_alone(
    artifact: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    path: Path = request.getfixturevalue(artifact)
    monkeypatch.setattr(genai_batch, "PIECE", 4)
    random = np.random.default_rng(1)
    prompts = [[int(token) for token in random.integers(2, 300, length)] for length in (3, 30, 17, 5, 22)]
    session = OnnxRuntimeGenai().open(path, ONE, context=64)
    batch = OnnxRuntimeGenai().batch(path, ONE, context=64, slots=3)
    found: dict[int, list[int | None]] = {}
    for number, prompt in enumerate(prompts):  # each joins while the others speak
        batch.add(number, prompt, Sampling(14))
        for _ in range(2):
            for each in batch.step():
                found.setdefault(each.request, []).append(each.token)
    while emitted := batch.step():
        for each in emitted:
            found.setdefault(each.request, []).append(each.token)
    for number, prompt in enumerate(prompts):
        logits, answer = session.start(prompt), []
        for _ in range(14):
            answer.append(int(logits.argmax()))
            logits = session.step(answer[-1])
        assert found[number] == answer


class Uniform:
    """A decoder that says token 5 to everything."""

    files = SimpleNamespace(vocabulary=8, context=64)

    def read(self, _place: int, _tokens: Any, _before: int = 0) -> np.ndarray:
        return np.eye(8, dtype=np.float32)[5]

    def advance(self, tokens: np.ndarray, _before: np.ndarray) -> np.ndarray:
        return np.tile(np.eye(8, dtype=np.float32)[5], (len(tokens), 1))


def test_who_came_first_is_read_first_whichever_place_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai_batch, "PIECE", 4)
    batch = genai_batch.Batch(cast(Any, Uniform()), 3)
    for number, count in ((1, 4), (2, 1), (3, 60)):
        batch.add(number, [1], Sampling(count))
    batch.step()  # 2 is answered; 1 and 3 speak
    batch.add(4, [1] * 40, Sampling(2))  # in the second place
    began: list[int] = []
    for turn in range(40):
        if turn == 4:
            batch.add(5, [1] * 8, Sampling(2))  # in the first place, which is free by now
        began += [each.request for each in batch.step() if each.request in (4, 5) and each.request not in began]
    assert began == [4, 5]


def test_files_that_are_missing_or_damaged_are_named(plain: Path, tmp_path: Path) -> None:
    engine = OnnxRuntimeGenai()
    with pytest.raises(RunError, match="no file"):
        engine.open(tmp_path / "model.onnx")
    copy = tmp_path / "copy"
    shutil.copytree(plain.parent, copy)
    (copy / "genai_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"genai_config\.json"):
        engine.open(copy / "model.onnx")
    (copy / "genai_config.json").write_text(json.dumps({"model": {"vocab_size": 3}}), encoding="utf-8")
    with pytest.raises(RunError, match="context_length"):
        engine.open(copy / "model.onnx")
    (copy / "genai_config.json").unlink()
    with pytest.raises(RunError, match=r"no genai_config\.json"):
        engine.open(copy / "model.onnx")
    shutil.copyfile(plain.parent / "genai_config.json", copy / "genai_config.json")
    (copy / "model.onnx.data").unlink()
    for opening in (engine.open, engine.batch):
        with pytest.raises(RunError, match="cannot load"):
            opening(copy / "model.onnx")


def test_listing_it_imports_nothing() -> None:
    import subprocess
    import sys

    need("onnxruntime_genai")
    code = (
        "import sys; from lowbit.llm.engines import registry; found = registry.get('onnxruntime-genai'); "
        "assert found.version(); print([m for m in ('onnxruntime', 'onnxruntime_genai', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
