"""What every engine for language models must do. Third parties: register an entry point and run this file; it picks yours up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_case import greedy, reference, run

from conftest import missing
from lowbit.errors import RunError, UsageError
from lowbit.llm import formats
from lowbit.llm.engines import registry
from lowbit.llm.engines.base import ContinuousBatch, Emitted, Engine, EngineTuning, LanguageSession, Sampling
from lowbit.llm.linear import Grid
from lowbit.runtimes.hardware import probe

CONTEXT = 96
KINDS: dict[str, Grid | None] = {"16 bit": None, "int8": Grid(8), "int4": Grid(4, 32), "int4, zero points": Grid(4, 32, False)}

TOLERANCE = {
    # Root mean square of the difference to the reference's logits, over the logits' own spread.
    ("torch", "16 bit"): 1e-5,  # float32 on the same numbers: only the order of additions differs
    ("torch", "int8"): 1e-5,
    ("torch", "int4"): 1e-5,
    ("torch", "int4, zero points"): 1e-5,
    ("onnxruntime-genai", "16 bit"): 1e-5,  # 16-bit weights are widened to float32
    ("llamacpp", "16 bit"): 5e-3,  # inputs of 16-bit layers are rounded to 16 bit, and so is the cache
    ("openvino", "16 bit"): 5e-3,  # the cache is in 16 bit
}
ROUNDED = 0.06
"""Of quantized layers elsewhere: inputs are rounded to 8 bit in blocks. A step is 1/127 of a block's largest input: each product is off by
about 0.5 %, and this random network adds up those of fourteen layers. Wrong scales or zero points are off by more than 0.5."""

CACHED = 0.02
"""Between a text scored at once and token by token: the cache is in 16 bit, and other kernels add up in other orders."""


@pytest.fixture(params=registry.names(), scope="module")
def engine(request: pytest.FixtureRequest) -> Engine:
    try:
        return registry.get(request.param)
    except UsageError:
        missing(request.param)
        raise


@dataclass
class Case:
    """One artifact, the texts it is tried with, and the reference's logits of them."""

    engine: Engine
    kind: str
    path: Path
    text: list[int]
    expected: np.ndarray

    def open(self, tuning: EngineTuning | None = None, context: int = CONTEXT) -> LanguageSession:
        return self.engine.open(self.path, tuning or plain(), context=context)


def plain() -> EngineTuning:
    return EngineTuning(threads=1, prompt_threads=1)


@pytest.fixture(params=list(KINDS), scope="module")
def case(request: pytest.FixtureRequest, engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _case(engine, request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def int8(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """For what does not depend on the weights."""
    return _case(engine, "int8", tmp_path_factory)


_MADE: dict[tuple[str, str], Case] = {}


def _case(engine: Engine, kind: str, tmp: pytest.TempPathFactory) -> Case:
    from decoder_case import need, random_decoder
    from quantized_case import Rounded, recipe

    need("torch", "transformers", "safetensors", "tokenizers")
    from lowbit.llm.folder import SourceFolder

    if (engine.name, kind) not in _MADE:
        folder = tmp.mktemp("decoder")
        source = SourceFolder.open(random_decoder("llama", folder / "source", width=64, inner=96, layers=2, positions=128))
        grid = KINDS[kind]
        weights: Any = source if grid is None else Rounded(source, recipe(grid))
        text = [int(token) for token in np.random.default_rng(3).integers(2, 320, 40)]
        expected = reference(weights, text)
        try:
            path = formats.write(weights, engine.opens, folder / "artifact")
        except UsageError as error:
            if kind in ("16 bit", "int8", "int4"):  # the default recipes: every format holds them
                raise
            pytest.skip(error.message)
        _MADE[engine.name, kind] = Case(engine, kind, path, text, expected)
    return _MADE[engine.name, kind]


def off(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference over the expected logits' spread."""
    return float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())


@pytest.fixture
def session(int8: Case) -> Iterator[LanguageSession]:
    opened = int8.open()
    yield opened
    opened.close()


def test_describes_itself(engine: Engine, session: LanguageSession) -> None:
    assert isinstance(engine, Engine)
    assert isinstance(session, LanguageSession)
    assert engine.opens in formats.WRITERS
    assert engine.version()
    tunings = engine.tunings(probe())
    assert tunings
    assert len(set(tunings)) == len(tunings)
    assert (session.vocabulary, session.context) == (320, CONTEXT)
    assert session.precision in ("f32", "f16", "bf16")


def test_logits_are_the_references(case: Case) -> None:
    session = case.open()
    found = session.logits(case.text)
    session.close()
    assert found.dtype == np.float32
    assert found.shape == (len(case.text), 320)
    assert off(found, case.expected) <= TOLERANCE.get((case.engine.name, case.kind), ROUNDED)


def test_a_token_is_scored_by_what_is_before_it_only(int8: Case, session: LanguageSession) -> None:
    whole, part = session.logits(int8.text), session.logits(int8.text[:7])
    assert off(part, whole[:7]) <= CACHED


def test_token_by_token_equals_the_whole_text(case: Case) -> None:
    session = case.open()
    whole = session.logits(case.text)
    found = [session.start(case.text[:10])] + [session.step(token) for token in case.text[10:]]
    session.close()
    assert all(row.shape == (320,) and row.dtype == np.float32 for row in found)
    assert off(np.stack(found), whole[9:]) <= CACHED


def test_start_forgets_what_was(int8: Case, session: LanguageSession) -> None:
    first = session.start(int8.text[:5])
    session.step(7)
    session.logits(int8.text)
    assert np.allclose(session.start(int8.text[:5]), first, atol=1e-3)


def test_answers_are_the_same_each_time(int8: Case, session: LanguageSession) -> None:
    assert greedy(session, int8.text[:6], 12) == greedy(session, int8.text[:6], 12)


@pytest.mark.parametrize("tokens", [[], [320], [-1], [1, 2, 999_999], [5] * (CONTEXT + 1)])
def test_refuses_texts_that_it_cannot_read(session: LanguageSession, tokens: list[int]) -> None:
    for call in (session.logits, session.start):
        with pytest.raises(RunError):
            call(tokens)
    assert session.start([5, 6]).shape == (320,)  # and goes on


def test_a_step_needs_a_start(int8: Case) -> None:
    session = int8.open()
    with pytest.raises(RunError):
        session.step(5)
    session.logits([5, 6])
    with pytest.raises(RunError):
        session.step(5)
    session.start([5, 6])
    with pytest.raises(RunError):
        session.step(320)
    session.close()


def test_the_context_ends(int8: Case) -> None:
    session = int8.open(context=12)
    assert session.context == 12
    session.start([5] * 10)
    session.step(6)
    session.step(7)
    with pytest.raises(RunError, match="12"):
        session.step(8)
    session.close()


def test_the_context_is_the_models_at_most(int8: Case) -> None:
    session = int8.open(context=100_000)
    assert session.context <= 128
    session.close()


def test_closing_twice_is_fine_and_using_is_not(int8: Case) -> None:
    session = int8.open()
    session.start([5])
    session.close()
    session.close()
    for call in (lambda: session.start([5]), lambda: session.logits([5]), lambda: session.step(5)):
        with pytest.raises(RunError):
            call()


def test_two_sessions_do_not_disturb_each_other(int8: Case) -> None:
    first, second = int8.open(), int8.open()
    alone = greedy(first, int8.text[:6], 6)
    logits = first.start(int8.text[:6])
    second.start(int8.text[6:12])
    answer = []
    for _ in range(6):
        answer.append(int(logits.argmax()))
        second.step(9)
        logits = first.step(answer[-1])
    first.close()
    second.close()
    assert answer == alone


def test_what_is_no_artifact_is_refused(engine: Engine, tmp_path: Path) -> None:
    names = {"gguf": "model.gguf", "openvino": "openvino_model.xml", "onnx": "model.onnx", "safetensors": "model.safetensors"}
    path = tmp_path / names[engine.opens]
    for opening in (engine.open, engine.batch):
        with pytest.raises(RunError):
            opening(path)
    path.write_bytes(b"not a model")
    (tmp_path / "wrong.txt").write_text("nor this")
    for each in (path, tmp_path / "wrong.txt"):
        with pytest.raises(RunError):
            engine.open(each)


# Several prompts at once

PROMPTS = [[5, 6, 7, 8], [9] * 9, [11, 3, 17], [200, 100, 50, 25, 12, 6, 3], [33, 44]]


@pytest.fixture
def batch(int8: Case) -> Iterator[ContinuousBatch]:
    opened = int8.engine.batch(int8.path, plain(), context=CONTEXT, slots=2)
    yield opened
    opened.close()


def tokens(answer: list[Emitted]) -> list[int]:
    return [each.token for each in answer if each.token is not None]


def test_a_batch_describes_itself(batch: ContinuousBatch) -> None:
    assert isinstance(batch, ContinuousBatch)
    assert batch.vocabulary == 320
    assert batch.context <= CONTEXT
    assert batch.slots >= 1
    assert batch.step() == []


def test_five_prompts_in_two_slots_are_answered_as_one_by_one(batch: ContinuousBatch, session: LanguageSession) -> None:
    lengths = [9, 5, 12, 7, 10]
    for number, (prompt, length) in enumerate(zip(PROMPTS, lengths, strict=True)):
        batch.add(number, prompt, Sampling(length))
    found = run(batch)
    assert {number: tokens(answer) for number, answer in found.items()} == {
        number: greedy(session, prompt, length) for number, (prompt, length) in enumerate(zip(PROMPTS, lengths, strict=True))
    }
    assert all([each.finished for each in answer] == [None] * (len(answer) - 1) + ["length"] for answer in found.values())


def test_end_tokens_end_an_answer_and_are_no_part_of_it(batch: ContinuousBatch, session: LanguageSession) -> None:
    whole = greedy(session, PROMPTS[0], 12)
    end = whole[5]
    at = whole.index(end)
    batch.add(1, PROMPTS[0], Sampling(12, eos=(end,)))
    batch.add(2, PROMPTS[0], Sampling(12))
    found = run(batch)
    assert tokens(found[1]) == whole[:at]
    assert found[1][-1].finished == "stop"
    assert tokens(found[2]) == whole


def test_an_answer_ends_where_the_context_does(batch: ContinuousBatch) -> None:
    batch.add(1, [5] * (batch.context - 4), Sampling(50))
    found = run(batch)[1]
    assert found[-1].finished == "length"
    assert len(tokens(found)) in (4, 5)  # the last token need not be in the cache


def test_dropped_requests_leave_room(batch: ContinuousBatch, session: LanguageSession) -> None:
    for number in range(4):
        batch.add(number, PROMPTS[number], Sampling(60))
    for _ in range(3):
        batch.step()
    for number in (0, 3, 3, 77):
        batch.drop(number)
    assert 0 < getattr(batch, "kv_use", 0.5) < 1
    late = [each.request for each in batch.step()]
    assert 0 not in late
    assert 3 not in late
    batch.drop(1)
    batch.drop(2)
    batch.add(9, PROMPTS[4], Sampling(8))
    found = run(batch)
    assert tokens(found[9]) == greedy(session, PROMPTS[4], 8)
    assert getattr(batch, "kv_use", 0.0) == 0


def test_seeds_repeat_whoever_else_is_in(int8: Case, batch: ContinuousBatch) -> None:
    drawn = Sampling(12, temperature=1.0, top_p=0.95, seed=11)
    batch.add(1, PROMPTS[3], drawn)
    alone = tokens(run(batch)[1])
    again = int8.engine.batch(int8.path, plain(), context=CONTEXT, slots=2)
    again.add(2, PROMPTS[3], drawn)
    again.add(3, PROMPTS[1], Sampling(9, temperature=1.5, seed=4))
    found = run(again)
    again.close()
    assert tokens(found[2]) == alone
    assert len(alone) == 12


def test_probabilities_are_those_before_temperature(batch: ContinuousBatch, session: LanguageSession) -> None:
    batch.add(1, PROMPTS[0], Sampling(1))
    found = run(batch)[1][0]
    logits = session.start(PROMPTS[0]).astype(np.float64)
    expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    if found.logprob is not None:
        assert found.token is not None
        assert abs(found.logprob - expected[found.token]) < 0.05


@pytest.mark.parametrize("prompt", [[], [320], [-3], [5] * CONTEXT])
def test_a_batch_refuses_prompts_that_it_cannot_answer(batch: ContinuousBatch, prompt: list[int]) -> None:
    with pytest.raises(RunError):
        batch.add(1, prompt, Sampling(4))
    batch.add(1, [5, 6], Sampling(2))
    assert len(tokens(run(batch)[1])) == 2


def test_a_closed_batch_takes_nothing_in(int8: Case) -> None:
    batch = int8.engine.batch(int8.path, plain(), context=CONTEXT, slots=2)
    batch.close()
    batch.close()
    with pytest.raises(RunError):
        batch.add(1, [5], Sampling(2))
