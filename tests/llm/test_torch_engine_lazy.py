"""torch on models larger than memory: a text goes through block by block, and the numbers are the same."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_case import FAMILIES, need, random_decoder
from quantized_case import recipe

from lowbit.errors import RunError
from lowbit.llm.engines import torch_cpu
from lowbit.llm.engines.base import EngineTuning
from lowbit.llm.engines.torch_cpu import TorchCpu
from lowbit.llm.folder import SourceFolder
from lowbit.llm.linear import Grid

ONE = EngineTuning(threads=1)
TEXT = [int(token) for token in np.random.default_rng(5).integers(2, 300, 30)]
NOTHING, PLENTY = 1, 1 << 40
"""Bytes of free memory."""


@pytest.fixture(autouse=True, scope="module")
def _packages() -> None:
    need("torch", "transformers", "safetensors")


def with_memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(torch_cpu, "free_bytes", lambda: free)


def scores(monkeypatch: pytest.MonkeyPatch, artifact: Path, free: int, piece: int = 0) -> Any:
    with_memory(monkeypatch, free)
    session = TorchCpu().open(artifact, EngineTuning(threads=1, batch=piece))
    assert session._model is not None
    assert session._model.kept == (free == PLENTY)
    found = [session.logits(TEXT), session.logits(TEXT[:9])]
    session.close()
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("piece", [0, 7])
def test_block_by_block_gives_the_same_bits(family: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = random_decoder(family, tmp_path) / "model.safetensors"
    kept, lazy = (scores(monkeypatch, artifact, free, piece) for free in (PLENTY, NOTHING))
    for ours, theirs in zip(lazy, kept, strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_so_do_tables_and_windows_of_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.llm.walk import quantize_folder

    folder = random_decoder("mistral", tmp_path / "source", sliding_window=6)
    quantize_folder(SourceFolder.open(folder), recipe(Grid(8), activations="int8-token"), None, tmp_path / "table")
    for artifact in (folder / "model.safetensors", tmp_path / "table" / "table.json"):
        kept, lazy = (scores(monkeypatch, artifact, free, 7) for free in (PLENTY, NOTHING))
        assert [each.tobytes() for each in lazy] == [each.tobytes() for each in kept]


def test_one_block_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.llm.engines.torch_model import Model

    folder = random_decoder("llama", tmp_path, num_hidden_layers=6)
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    seen, read = list[tuple[int, int]](), Model._read

    def counted(model: Model, index: int) -> Any:
        gc.collect()
        before = len(alive)
        block = read(model, index)
        for tensor in block.weights.values():
            alive.add(tensor)
        seen.append((index, before))
        return block

    monkeypatch.setattr(Model, "_read", counted)
    with_memory(monkeypatch, NOTHING)
    session = TorchCpu().open(folder / "model.safetensors", EngineTuning(threads=1, batch=7))
    assert not seen, "nothing is read before it is needed"
    session.logits(TEXT)
    roles = len(SourceFolder.open(folder).decoder.roles)
    assert [index for index, _ in seen] == list(range(6)), "once a text, not once a piece of it"
    assert max(before for _, before in seen) <= roles, "at most one other block is there when one is read"
    gc.collect()
    assert not alive


def test_answers_need_all_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from lowbit.llm.forward import weights_bytes

    source = SourceFolder.open(random_decoder("llama", tmp_path))
    artifact, decoder = tmp_path / "model.safetensors", source.decoder
    needed = weights_bytes(decoder, torch.float32)
    assert 0.98 * 4 * source.parameters < needed <= 4 * source.parameters
    with_memory(monkeypatch, needed - 1)
    session = TorchCpu().open(artifact, ONE)
    with pytest.raises(RunError, match=r"needs all weights in 32 bit, .* GB of memory is free") as told:
        session.start(TEXT)
    assert "another engine" in (told.value.hint or "")
    with pytest.raises(RunError, match="needs all weights"):
        TorchCpu().batch(artifact, ONE)
    assert session.logits(TEXT).shape == (30, decoder.vocabulary), "a text is scored all the same"

    with_memory(monkeypatch, needed + 1)  # more than half of it: lazily for texts, and whole for answers
    again = TorchCpu().open(artifact, ONE)
    assert again._model is not None
    assert not again._model.kept
    first = again.start(TEXT[:12])
    assert again._model.kept
    assert np.abs(first - session.logits(TEXT[:12])[-1]).max() < 5e-5
    assert np.abs(again.step(TEXT[12]) - session.logits(TEXT[:13])[-1]).max() < 5e-5


def test_what_a_judge_sees_of_a_model_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.llm.evaluate.perplexity import evaluate
    from lowbit.llm.evaluate.windows import Windows

    artifact = random_decoder("qwen3", tmp_path) / "model.safetensors"
    documents = [("a", np.asarray(TEXT * 3, np.int32))]
    found = []
    for free in (PLENTY, NOTHING):
        with_memory(monkeypatch, free)
        session = TorchCpu().open(artifact, ONE, context=16)
        found.append(evaluate(session, documents, Windows(16)))
        session.close()
    assert found[0] == found[1]


def test_free_memory_is_a_number() -> None:
    assert 1 << 20 < torch_cpu.free_bytes() < 1 << 50
