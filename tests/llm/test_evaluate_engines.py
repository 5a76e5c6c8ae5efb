"""One small decoder on the real engines: judged and timed in processes of their own, all find the same language model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from decoder_case import need, random_decoder, texts
from reference_session import ReferenceSession

from lowbit.llm.candidate import EngineCandidate
from lowbit.llm.engines.base import EngineTuning
from lowbit.llm.evaluate.judge import evaluate_artifact, spool_reference
from lowbit.llm.evaluate.perplexity import evaluate
from lowbit.llm.evaluate.text import open_text
from lowbit.llm.evaluate.windows import Documents, Windows
from lowbit.llm.workload.measure import measure
from lowbit.llm.workload.workload import Workload

ONE = EngineTuning(threads=1, prompt_threads=1)
WINDOWS = Windows(48, 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_decoder("llama", tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def gguf(folder: Path) -> EngineCandidate:
    need("llama_cpp", "gguf")
    from lowbit.llm.folder import SourceFolder
    from lowbit.llm.writers import gguf_file

    return EngineCandidate("gguf", "llamacpp", gguf_file.write(SourceFolder.open(folder), folder.parent / "gguf"), ONE)


@pytest.fixture(scope="module")
def ir(folder: Path) -> EngineCandidate:
    need("openvino")
    from lowbit.llm.folder import SourceFolder
    from lowbit.llm.writers import openvino_ir

    return EngineCandidate("ir", "openvino", openvino_ir.write(SourceFolder.open(folder), folder.parent / "ir"), ONE)


@pytest.fixture(scope="module")
def documents(folder: Path) -> Documents:
    codec = open_text(folder)
    return [(f"text {i}", np.array(codec.encode(text), np.int32)) for i, text in enumerate(texts(2, 8))]


def test_engines_and_the_reference_find_the_same_perplexity(
    folder: Path, gguf: EngineCandidate, ir: EngineCandidate, documents: Documents
) -> None:
    expected = evaluate(ReferenceSession(folder), documents, WINDOWS)
    first = spool_reference(gguf, documents, WINDOWS, folder.parent / "spool", tokens=10**6)
    second = evaluate_artifact(ir, documents, WINDOWS, reference=folder.parent / "spool")
    assert (first.error, second.error) == (None, None)
    for found in (first, second):
        assert found.perplexity is not None
        assert found.perplexity.tokens == expected.tokens
        assert found.perplexity.nll_mean == pytest.approx(expected.nll_mean, abs=2e-3)
    assert second.divergence is not None
    assert second.divergence.tokens == expected.tokens
    assert second.divergence.kl_mean < 1e-4
    assert second.divergence.top1 > 0.98


@pytest.mark.parametrize("concurrency", [1, 2])
def test_engines_are_timed(gguf: EngineCandidate, ir: EngineCandidate, concurrency: int) -> None:
    if concurrency > 1:
        need("openvino_genai")
    found = measure([gguf, ir], Workload.parse(f"prompt=20,output=6,concurrency={concurrency}"), rounds=1)
    for speed in found.values():
        assert speed.error is None
        assert speed.total_s is not None
        assert speed.ttft_ms is not None
        assert 0 < speed.ttft_ms.value < speed.total_s.value * 1e3
        assert (speed.peak_memory_bytes or 0) > (speed.peak_anonymous_bytes or 0) > 0


def test_a_file_of_another_format_is_told(ir: EngineCandidate, gguf: EngineCandidate, documents: Documents) -> None:
    wrong = EngineCandidate("wrong", "llamacpp", ir.artifact, ONE)
    assert evaluate_artifact(wrong, documents, WINDOWS).error
    assert measure([wrong], Workload.parse("prompt=5,output=2"), rounds=1)["wrong"].error
    assert evaluate_artifact(EngineCandidate("wrong", "openvino", gguf.artifact, ONE), documents, WINDOWS).error
