"""torch as an engine: the reference's numbers with a cache, for folders, tables and sequences in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_case import FAMILIES, need, random_decoder
from engine_case import reference
from quantized_case import recipe

from lowbit.errors import RunError
from lowbit.llm.engines.base import Emitted, EngineTuning, Sampling
from lowbit.llm.engines.one_at_a_time import OneAtATime
from lowbit.llm.engines.torch_cpu import Session, TorchCpu
from lowbit.llm.folder import SourceFolder
from lowbit.llm.linear import Grid
from lowbit.runtimes.hardware import probe

ONE = EngineTuning(threads=1)
TEXT = [int(token) for token in np.random.default_rng(5).integers(2, 300, 30)]


@pytest.fixture(autouse=True, scope="module")
def _packages() -> None:
    need("torch", "transformers", "safetensors")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_decoder("llama", tmp_path_factory.mktemp("llama"))


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "mistral with a window": ("mistral", {"sliding_window": 6}),
    "llama, yarn": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cache_changes_nothing(case: str, tmp_path: Path) -> None:
    family, changes = CASES[case]
    folder = random_decoder(family, tmp_path, **changes)
    expected = reference(SourceFolder.open(folder), TEXT)
    for piece in (0, 7):
        session = TorchCpu().open(folder / "model.safetensors", EngineTuning(threads=1, batch=piece))
        assert np.abs(session.logits(TEXT) - expected).max() < 5e-5
        stepped = [session.start(TEXT[:12]), *(session.step(token) for token in TEXT[12:])]
        assert np.abs(np.stack(stepped) - expected[11:]).max() < 5e-5
        session.close()


@pytest.mark.parametrize("activations", ["float", "int8-token"])
def test_tables_are_opened_as_they_are(activations: str, llama: Path, tmp_path: Path) -> None:
    from lowbit.llm.walk import quantize_folder

    asked = recipe(Grid(8) if activations == "int8-token" else Grid(4, 32), activations=activations)
    table = quantize_folder(SourceFolder.open(llama), asked, None, tmp_path / "table")
    session = TorchCpu().open(tmp_path / "table" / "table.json", ONE)
    assert np.abs(session.logits(TEXT) - reference(table, TEXT)).max() < 5e-5
    assert np.abs(session.logits(TEXT) - reference(SourceFolder.open(llama), TEXT)).max() > 1e-2


def test_shards_are_opened_by_their_index(tmp_path: Path) -> None:
    folder = random_decoder("llama", tmp_path, shards=2)
    session = TorchCpu().open(folder / "model.safetensors.index.json", ONE)
    assert np.abs(session.logits(TEXT) - reference(SourceFolder.open(folder), TEXT)).max() < 5e-5


def test_bfloat16_is_near_and_said(llama: Path) -> None:
    session = TorchCpu().open(llama / "model.safetensors", EngineTuning(threads=1, precision="bf16"))
    expected = reference(SourceFolder.open(llama), TEXT)
    found = session.logits(TEXT)
    assert session.precision == "bf16"
    assert found.dtype == np.float32
    # 8 bits of mantissa: each value is off by up to 0.4 %, two blocks add that up.
    assert 1e-4 < np.sqrt(np.mean((found - expected) ** 2)) / expected.std() < 0.03


def test_tunings_open(llama: Path) -> None:
    for tuning in TorchCpu().tunings(probe()):
        assert TorchCpu().open(llama / "model.safetensors", tuning).start([5]).shape == (320,)


@pytest.mark.parametrize(
    ("tuning", "word"),
    [(EngineTuning(precision="f16"), "f16"), (EngineTuning(kv="int8"), "int8"), (EngineTuning(activations=32), "activations=32")],
)
def test_what_it_does_not_do_is_refused(tuning: EngineTuning, word: str, llama: Path) -> None:
    with pytest.raises(RunError, match=word):
        TorchCpu().open(llama / "model.safetensors", tuning)


def test_broken_folders_are_refused(llama: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (copy / name).write_bytes((llama / name).read_bytes())
    (copy / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(RunError, match=r"model\.safetensors"):
        TorchCpu().open(copy / "model.safetensors")
    (copy / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match="architecture"):
        TorchCpu().open(copy / "model.safetensors")
    with pytest.raises(RunError, match="no safetensors file"):
        TorchCpu().open(copy / "tokenizer.json")


# Sequences in turn


def test_sessions_take_turns(llama: Path) -> None:
    batch = TorchCpu().batch(llama / "model.safetensors", ONE, context=64, slots=2)
    for number in range(3):
        batch.add(number, [5 + number, 9], Sampling(3))
    order = [[each.request for each in batch.step()] for _ in range(7)]
    assert order == [[0, 1], [0, 1], [0, 1], [2], [2], [2], []]


def test_one_answer_that_fails_leaves_the_others(llama: Path) -> None:
    engine = TorchCpu()
    good, broken = (engine.open(llama / "model.safetensors", ONE, context=64) for _ in range(2))
    batch = OneAtATime(good, broken)
    batch.add(1, [5, 6], Sampling(4))
    batch.add(2, [5, 6], Sampling(4))
    batch.step()
    broken.close()
    found = [each for _ in range(3) for each in batch.step()]
    assert [each for each in found if each.request == 2] == [Emitted(2, None, None, "failed", "This session of torch is closed.")]
    assert [each.finished for each in found if each.request == 1] == [None, None, "length"]


@pytest.mark.parametrize(("sampling", "word"), [(Sampling(0), "one token"), (Sampling(3), "already")])
def test_requests_are_checked(sampling: Sampling, word: str, llama: Path) -> None:
    batch = OneAtATime(TorchCpu().open(llama / "model.safetensors", ONE))
    batch.add(1, [5], Sampling(3))
    with pytest.raises(RunError, match=word):
        batch.add(1, [5], sampling)


def test_the_weights_are_shared_by_sequences(llama: Path) -> None:
    batch = TorchCpu().batch(llama / "model.safetensors", ONE, slots=3)
    models = {id(session._model) for session in batch._sessions if isinstance(session, Session)}
    assert len(models) == 1
