"""llama.cpp as an engine: whole scoring, steps and several answers at once say the same, and mistakes are told kindly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from decoder_case import need, random_decoder
from engine_case import greedy
from quantized_case import Rounded

from lowbit.errors import RunError
from lowbit.llm.engines.base import ContinuousBatch, Emitted, EngineTuning, KvPrecision, LanguageSession, Sampling
from lowbit.llm.engines.llamacpp import LlamaCpp
from lowbit.llm.engines.llamacpp_batch import PIECE
from lowbit.llm.engines.llamacpp_context import may_repack
from lowbit.llm.folder import SourceFolder
from lowbit.llm.forward import Reference
from lowbit.llm.linear import Grid
from lowbit.llm.recipe import LanguageRecipe
from lowbit.llm.writers import gguf_file
from lowbit.runtimes.hardware import probe

ONE = EngineTuning(threads=1, prompt_threads=1)
CONTEXT = 256
END = 1


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceFolder:
    need("llama_cpp", "gguf")
    return SourceFolder.open(random_decoder("llama", tmp_path_factory.mktemp("decoder") / "source", head_size=32, positions=CONTEXT))


@pytest.fixture(scope="module")
def file(source: SourceFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_file.write(source, tmp_path_factory.mktemp("f16"))


@pytest.fixture(scope="module")
def small(source: SourceFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_file.write(Rounded(source, LanguageRecipe("x", "rtn", Grid(4, 32))), tmp_path_factory.mktemp("int4"))


@pytest.fixture
def session(file: Path) -> Iterator[LanguageSession]:
    opened = LlamaCpp().open(file, ONE, context=CONTEXT)
    yield opened
    opened.close()


def tokens(count: int, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(2, 320, count).tolist()
    return found


def test_it_is_what_the_contract_says(session: LanguageSession) -> None:
    engine = LlamaCpp()
    assert engine.version()
    assert isinstance(session, LanguageSession)
    assert (session.vocabulary, session.context, session.precision) == (320, CONTEXT, "f16")
    tunings = engine.tunings(probe())
    assert tunings[0] == EngineTuning()
    assert {each.kv for each in tunings} >= {"f16", "int8", "int4"}


def test_logits_are_the_references(source: SourceFolder, session: LanguageSession) -> None:
    text = tokens(100)
    expected = Reference(source).logits(np.array(text)).numpy()
    found = session.logits(text)
    assert found.shape == (100, 320)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 0.01 * expected.std() * 10
    assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.97


@pytest.mark.parametrize("batch", [0, 7, 64])
def test_chunks_of_any_size_say_the_same(batch: int, file: Path, session: LanguageSession) -> None:
    text = tokens(100)
    opened = LlamaCpp().open(file, EngineTuning(threads=1, prompt_threads=1, batch=batch), context=CONTEXT)
    np.testing.assert_allclose(opened.logits(text), session.logits(text), atol=0.03)
    opened.close()


@pytest.mark.parametrize("which", ["file", "small"])
def test_step_by_step_says_what_whole_scoring_says(which: str, request: pytest.FixtureRequest) -> None:
    opened = LlamaCpp().open(request.getfixturevalue(which), ONE, context=CONTEXT)
    text = tokens(40)
    whole = opened.logits(text)
    steps = [opened.start(text[:25])] + [opened.step(token) for token in text[25:]]
    np.testing.assert_allclose(np.stack(steps), whole[24:], atol=0.05 if which == "file" else 0.5)
    opened.close()


def test_a_start_forgets_what_was(session: LanguageSession) -> None:
    first = session.start(tokens(30))
    session.step(5)
    session.logits(tokens(50, seed=1))
    np.testing.assert_array_equal(session.start(tokens(30)), first)


@pytest.mark.parametrize(("kv", "close"), [("f32", 0.02), ("bf16", 0.1), ("int8", 0.2), ("int4", 3.0)])
def test_a_cache_in_fewer_bits_costs_little(kv: KvPrecision, close: float, file: Path, session: LanguageSession) -> None:
    text = tokens(60)
    opened = LlamaCpp().open(file, EngineTuning(threads=1, prompt_threads=1, kv=kv), context=CONTEXT)
    exact, found = session.logits(text), opened.logits(text)
    error = float(np.sqrt(((found - exact) ** 2).mean()))
    assert 0 < error < close
    opened.start(text)
    assert np.isfinite(opened.step(3)).all()
    opened.close()


def answers(batch: ContinuousBatch, prompts: dict[int, list[int]], sampling: Sampling) -> dict[int, list[Emitted]]:
    for request, prompt in prompts.items():
        batch.add(request, prompt, sampling)
    found: dict[int, list[Emitted]] = {request: [] for request in prompts}
    while emitted := batch.step():
        for each in emitted:
            found[each.request].append(each)
    return found


def test_five_prompts_in_two_slots_answer_as_one_by_one(file: Path, session: LanguageSession) -> None:
    prompts = {10 + i: tokens(length, seed=i) for i, length in enumerate((3, 90, 17, 70, 1))}
    batch = LlamaCpp().batch(file, ONE, context=CONTEXT, slots=2)
    assert isinstance(batch, ContinuousBatch)
    assert (batch.slots, batch.vocabulary, batch.context) == (2, 320, CONTEXT)
    found = answers(batch, prompts, Sampling(8))
    for request, prompt in prompts.items():
        assert [each.token for each in found[request]] == greedy(session, prompt, 8)
        assert [each.finished for each in found[request]] == [None] * 7 + ["length"]
        assert all(each.logprob is not None and each.logprob <= 0 for each in found[request])
    assert batch.step() == []
    batch.close()


def test_a_prompt_that_joins_does_not_hold_up_who_is_answered(file: Path) -> None:
    batch = LlamaCpp().batch(file, ONE, context=CONTEXT, slots=2)
    batch.add(1, tokens(5), Sampling(50))
    batch.step()
    batch.add(2, tokens(3 * PIECE - 10, seed=3), Sampling(5))
    told = [[each.request for each in batch.step()] for _ in range(3)]
    assert told == [[1], [1], [1, 2]]  # its prompt takes three pieces; the other gets a token in each step
    batch.close()


def test_an_end_token_ends_an_answer_and_is_no_part_of_it(file: Path, session: LanguageSession) -> None:
    expected = greedy(session, tokens(20), 6)
    end = expected[3]
    batch = LlamaCpp().batch(file, ONE, context=CONTEXT, slots=1)
    found = answers(batch, {7: tokens(20)}, Sampling(6, eos=(end, 999)))[7]
    first = expected.index(end)
    assert [each.token for each in found] == [*expected[:first], None]
    assert found[-1].finished == "stop"
    batch.close()


def test_a_full_context_ends_an_answer(file: Path) -> None:
    batch = LlamaCpp().batch(file, ONE, context=32, slots=1)
    found = answers(batch, {1: tokens(28)}, Sampling(100))[1]
    assert len(found) == 5  # four more are in the cache, and the last one need not be
    assert found[-1].finished == "length"
    batch.close()


def test_dropping_frees_the_slot_for_who_waits(file: Path, session: LanguageSession) -> None:
    batch = LlamaCpp().batch(file, ONE, context=CONTEXT, slots=1)
    batch.add(1, tokens(30), Sampling(100))
    batch.add(2, tokens(12, seed=2), Sampling(4))
    batch.add(3, tokens(9, seed=3), Sampling(4))
    for _ in range(3):
        batch.step()
    batch.drop(1)
    batch.drop(3)
    batch.drop(77)
    rest = []
    while emitted := batch.step():
        rest += emitted
    assert {each.request for each in rest} == {2}
    assert [each.token for each in rest] == greedy(session, tokens(12, seed=2), 4)
    batch.close()


def test_seeded_draws_do_not_depend_on_who_else_is_in(file: Path) -> None:
    sampling = Sampling(6, temperature=1.0, top_k=5, seed=11)
    alone = LlamaCpp().batch(file, ONE, context=CONTEXT, slots=1)
    first = answers(alone, {1: tokens(10)}, sampling)[1]
    alone.close()
    crowd = LlamaCpp().batch(file, ONE, context=CONTEXT, slots=3)
    second = answers(crowd, {1: tokens(10), 2: tokens(20, seed=1), 3: tokens(4, seed=2)}, sampling)[1]
    crowd.close()
    assert [each.token for each in first] == [each.token for each in second]


@pytest.mark.parametrize(("prompt", "words"), [([], "no token"), ([1, 320], "Token 320"), ([-1], "Token -1"), ([2] * 40, "no room")])
def test_a_batch_refuses_what_it_cannot_answer(prompt: list[int], words: str, file: Path) -> None:
    batch = LlamaCpp().batch(file, ONE, context=40, slots=1)
    with pytest.raises(RunError, match=words):
        batch.add(1, prompt, Sampling(4))
    batch.add(1, [2], Sampling(4))
    with pytest.raises(RunError, match="answered already"):
        batch.add(1, [2], Sampling(4))
    with pytest.raises(RunError, match="one token at least"):
        batch.add(2, [2], Sampling(0))
    batch.close()
    batch.close()
    with pytest.raises(RunError, match="closed"):
        batch.step()


def test_a_session_refuses_what_it_cannot_compute(file: Path) -> None:
    opened = LlamaCpp().open(file, ONE, context=16)
    for text, words in (
        ([], "no token"),
        ([320], "Token 320"),
        ([-4], "Token -4"),
        ([5] * 17, "17 tokens are more than the context of 16"),
    ):
        with pytest.raises(RunError, match=words):
            opened.logits(text)
        with pytest.raises(RunError, match=words):
            opened.start(text)
    with pytest.raises(RunError, match="Nothing was started"):
        opened.step(3)
    opened.start([5] * 16)
    with pytest.raises(RunError, match="full"):
        opened.step(3)
    opened.close()
    opened.close()
    for call in (lambda: opened.logits([1]), lambda: opened.start([1]), lambda: opened.step(1)):
        with pytest.raises(RunError, match="closed"):
            call()


def test_no_more_context_than_the_model_was_made_for(file: Path) -> None:
    opened = LlamaCpp().open(file, ONE, context=100_000)
    assert opened.context == CONTEXT
    opened.close()


def test_broken_files_are_told(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "header.gguf").write_bytes(whole[:500])
    for name, words in (("none", "no file"), ("text", "no GGUF file"), ("cut", "not within the file bounds"), ("header", "cannot load")):
        with pytest.raises(RunError, match=words):
            LlamaCpp().open(tmp_path / f"{name}.gguf", ONE)


def test_what_llamacpp_cannot_do_is_told(file: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="activations=64"):
        LlamaCpp().open(file, EngineTuning(activations=64))
    narrow = SourceFolder.open(random_decoder("llama", tmp_path / "source"))  # heads of 16: no block of 32 fits
    artifact = gguf_file.write(narrow, tmp_path / "out")
    with pytest.raises(RunError, match="cache of int8"):
        LlamaCpp().open(artifact, EngineTuning(threads=1, kv="int8"), context=64)


def test_it_prints_nothing(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    opened = LlamaCpp().open(file, ONE, context=32)
    opened.logits([1, 2, 3])
    opened.close()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_weights_are_not_laid_out_for_amx() -> None:
    """There llama.cpp dies in its first product; where its field is missing, setting it would do nothing."""
    need("llama_cpp")
    from llama_cpp import llama_cpp as lib

    assert may_repack(b"CPU : AVX512 = 1 | AMX_INT8 = 0 | REPACK = 1 | ")
    assert not may_repack(b"CPU : AVX512 = 1 | AMX_INT8 = 1 | REPACK = 1 | ")
    assert "use_extra_bufts" in dict(lib.llama_model_params._fields_)
