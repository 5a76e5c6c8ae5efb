"""OpenVINO as an engine: a session, and answers to several prompts at once, on the same small models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_case import need, random_decoder
from engine_case import reference, run
from numpy.typing import NDArray

from lowbit.errors import RunError
from lowbit.llm.engines.base import ContinuousBatch, Emitted, Engine, EngineTuning, LanguageSession, Sampling
from lowbit.llm.engines.openvino_cpu import OpenVino
from lowbit.llm.folder import SourceFolder
from lowbit.llm.writers import openvino_ir
from lowbit.runtimes.hardware import probe

Array = NDArray[Any]

ENGINE = OpenVino()
EXACT = EngineTuning(kv="f32", activations=0)
PROMPTS = [np.random.default_rng(i).integers(2, 320, length).tolist() for i, length in enumerate((3, 20, 7, 40, 1))]


@pytest.fixture(scope="module", autouse=True)
def openvino_is_here() -> None:
    need("openvino")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceFolder:
    return SourceFolder.open(random_decoder("llama", tmp_path_factory.mktemp("source")))


@pytest.fixture(scope="module")
def artifact(source: SourceFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return openvino_ir.write(source, tmp_path_factory.mktemp("ir"))


@pytest.fixture(scope="module")
def session(artifact: Path) -> LanguageSession:
    return ENGINE.open(artifact, EXACT)


def greedy(session: LanguageSession, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """The likeliest tokens, and their log probabilities."""
    answer, logprobs = [], []
    logits = session.start(prompt)
    for _ in range(count):
        token = int(logits.argmax())
        answer.append(token)
        logprobs.append(_logprob(logits, token))
        if len(answer) < count:
            logits = session.step(token)
    return answer, logprobs


def _logprob(logits: Array, token: int) -> float:
    shifted = logits.astype(np.float64) - logits.max()
    return float(shifted[token] - np.log(np.exp(shifted).sum()))


def tokens_of(told: list[Emitted]) -> list[int | None]:
    return [each.token for each in told]


def test_it_fulfils_the_protocols(session: LanguageSession) -> None:
    assert isinstance(ENGINE, Engine)
    assert isinstance(session, LanguageSession)
    assert (ENGINE.name, ENGINE.opens, ENGINE.extra) == ("openvino", "openvino", "openvino-genai")
    assert (ENGINE.version() or "")[:2] == "20"
    assert (session.vocabulary, session.context, session.precision) == (320, 128, "f32")  # the model's own 128 of the 2048 asked for


def test_tunings_begin_with_the_default_and_have_a_small_cache() -> None:
    plain = replace(probe(), isa=("AVX2",), cores=2)
    found = ENGINE.tunings(plain)
    assert found[0] == EngineTuning()
    assert EngineTuning(kv="int8") in found
    assert {each.precision for each in found} == {"f32"}
    assert {each.precision for each in ENGINE.tunings(replace(plain, isa=("AVX512-BF16",)))} == {"f32", "bf16"}
    assert {each.threads for each in ENGINE.tunings(replace(plain, cores=8))} == {0, 4}


def test_logits_are_the_references(session: LanguageSession, source: SourceFolder) -> None:
    tokens = PROMPTS[3]
    expected = reference(source, tokens)
    found = session.logits(tokens)
    assert found.shape == (40, 320)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_prompt_and_steps_are_the_whole_text(session: LanguageSession) -> None:
    tokens = PROMPTS[3]
    whole = session.logits(tokens)
    steps = [session.start(tokens[:25]), *(session.step(token) for token in tokens[25:])]
    np.testing.assert_allclose(steps, whole[24:], atol=1e-4)
    np.testing.assert_array_equal(session.logits(tokens), whole)  # scoring starts anew


def test_a_prompt_in_pieces_is_the_whole_prompt(session: LanguageSession, artifact: Path) -> None:
    pieces = ENGINE.open(artifact, EngineTuning(kv="f32", activations=0, batch=7))
    np.testing.assert_allclose(pieces.logits(PROMPTS[3]), session.logits(PROMPTS[3]), atol=1e-4)
    np.testing.assert_allclose(pieces.start(PROMPTS[3]), session.start(PROMPTS[3]), atol=1e-4)


@pytest.mark.parametrize(("kv", "near"), [("f16", 0.02), ("int8", 0.2), ("int4", 2.0)])
def test_caches_of_fewer_bits_are_near(kv: Any, near: float, session: LanguageSession, artifact: Path) -> None:
    small = ENGINE.open(artifact, EngineTuning(kv=kv, activations=0))
    tokens = PROMPTS[3]
    small.start(tokens[:30])
    last = [small.step(token) for token in tokens[30:]][-1]
    error = np.abs(last - session.logits(tokens)[-1]).max()
    assert near / 1000 < error < near


def test_a_cache_that_would_be_another_is_refused(artifact: Path) -> None:
    with pytest.raises(RunError, match="no cache of bf16 beside f32"):
        ENGINE.open(artifact, EngineTuning(kv="bf16"))


def test_arithmetic_that_the_cpu_lacks_is_refused(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    for call in (ENGINE.open, ENGINE.batch):
        with pytest.raises(RunError, match="no bf16 arithmetic on this CPU"):
            call(artifact, EngineTuning(precision="bf16"))


def test_who_asks_for_nonsense_is_told(session: LanguageSession, artifact: Path) -> None:
    for call in (session.logits, session.start):
        with pytest.raises(RunError, match="no token"):
            call([])
        with pytest.raises(RunError, match="Token 320 is not in the vocabulary of 320"):
            call([1, 320])
        with pytest.raises(RunError, match="Token -1"):
            call([-1])
        with pytest.raises(RunError, match="129 tokens are more than the context of 128"):
            call([5] * 129)
    small = ENGINE.open(artifact, EXACT, context=4)
    with pytest.raises(RunError, match="Nothing was started"):
        small.step(5)
    small.start([5, 6, 7])
    small.step(8)
    with pytest.raises(RunError, match="context of 4 tokens is full"):
        small.step(9)
    small.close()
    small.close()
    with pytest.raises(RunError, match="closed"):
        small.start([5])


def test_what_is_no_artifact_is_refused(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"'model.gguf' is not an OpenVINO model"):
        ENGINE.open(tmp_path / "model.gguf")
    with pytest.raises(RunError, match=r"'openvino_model.xml' is missing"):
        ENGINE.open(tmp_path / "openvino_model.xml")
    broken = tmp_path / "openvino_model.xml"
    broken.write_bytes(artifact.read_bytes())
    with pytest.raises(RunError, match=r"'openvino_model.bin' is missing"):
        ENGINE.open(broken)
    broken.with_suffix(".bin").write_bytes(artifact.with_suffix(".bin").read_bytes()[:5000])
    with pytest.raises(RunError, match="cannot load"):
        ENGINE.open(broken)


def test_another_model_is_no_decoder(tmp_path: Path) -> None:
    import openvino
    from openvino import opset13 as ops

    given = ops.parameter([1, 2], np.float32, name="x")
    openvino.save_model(openvino.Model([ops.relu(given)], [given], "relu"), str(tmp_path / "relu.xml"))
    with pytest.raises(RunError, match=r"'relu.xml' is not a decoder with a cache"):
        ENGINE.open(tmp_path / "relu.xml")


@pytest.mark.parametrize("slots", [2, 4])
def test_five_prompts_in_few_slots_are_answered_as_one_by_one(slots: int, session: LanguageSession, artifact: Path) -> None:
    need("openvino_genai")
    batch = ENGINE.batch(artifact, EXACT, slots=slots)
    assert isinstance(batch, ContinuousBatch)
    assert (batch.slots, batch.vocabulary, batch.context) == (slots, 320, 128)
    assert batch.step() == []
    for request, prompt in enumerate(PROMPTS):
        batch.add(request, prompt, Sampling(10 + request))
    assert {each.request for each in batch.step()} <= set(range(slots))
    told = run(batch)
    for request, prompt in enumerate(PROMPTS):
        answer, logprobs = greedy(session, prompt, 10 + request)
        first = [] if request >= slots else [answer[0]]
        assert first + tokens_of(told[request]) == answer
        assert [each.finished for each in told[request]] == [None] * (len(answer) - len(first) - 1) + ["length"]
        np.testing.assert_allclose([each.logprob for each in told[request]], logprobs[len(first) :], atol=1e-3)
    batch.close()


def test_an_answer_ends_at_an_end_token_which_is_not_told(session: LanguageSession, artifact: Path) -> None:
    need("openvino_genai")
    answer, _ = greedy(session, PROMPTS[1], 8)
    end = next(token for token in answer if answer.index(token) > 2)
    batch = ENGINE.batch(artifact, EXACT)
    batch.add(7, PROMPTS[1], Sampling(8, eos=(end,)))
    told = run(batch)[7]
    assert tokens_of(told) == [*answer[: answer.index(end)], None]
    assert told[-1] == Emitted(7, None, finished="stop")
    batch.add(7, PROMPTS[1], Sampling(200))  # the number may come again; the context ends the answer
    told = run(batch)[7]
    assert len(told) == 128 - 20
    assert told[-1].finished == "length"
    batch.close()


def test_draws_are_the_same_with_the_same_seed(session: LanguageSession, artifact: Path) -> None:
    need("openvino_genai")
    batch = ENGINE.batch(artifact, EXACT, slots=2)

    def drawn(**sampling: Any) -> list[Emitted]:
        batch.add(1, PROMPTS[0], Sampling(12, **sampling))
        return run(batch)[1]

    first = drawn(temperature=1.5, seed=3)
    assert drawn(temperature=1.5, seed=3) == first
    assert drawn(temperature=1.5, seed=4) != first
    assert drawn(temperature=1.5) != drawn(temperature=1.5)
    cut = drawn(temperature=1.5, seed=3, top_k=4, top_p=0.9)
    logits = session.start(PROMPTS[0])
    for each in cut:
        assert each.token is not None
        assert each.token in np.argsort(-logits)[:4]
        assert each.logprob is not None  # of all tokens, at temperature 1
        assert math.isclose(each.logprob, _logprob(logits, each.token), abs_tol=1e-3)
        logits = session.step(each.token)
    batch.close()


def test_who_is_dropped_makes_room(session: LanguageSession, artifact: Path) -> None:
    need("openvino_genai")
    batch = ENGINE.batch(artifact, EXACT, slots=1)
    batch.add(1, PROMPTS[1], Sampling(50))
    batch.add(2, PROMPTS[2], Sampling(5))
    batch.add(3, PROMPTS[0], Sampling(5))
    batch.step()
    batch.drop(1)
    batch.drop(3)
    batch.drop(99)
    told = run(batch)
    assert list(told) == [2]
    assert tokens_of(told[2]) == greedy(session, PROMPTS[2], 5)[0]
    batch.close()
    batch.close()
    with pytest.raises(RunError, match="closed"):
        batch.step()


class Broken:
    """A pipeline that fails in a step."""

    def __init__(self, whole: Any) -> None:
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def step(self) -> None:
        raise RuntimeError("somewhere in its source\nno memory")


def test_a_step_that_fails_is_told_as_the_batchs_failure(artifact: Path) -> None:
    """Who was inside is still inside the library: only another batch answers anybody."""
    need("openvino_genai")
    batch: Any = ENGINE.batch(artifact, EXACT, slots=1)
    batch.add(1, PROMPTS[0], Sampling(5))
    batch._pipeline = Broken(batch._pipeline)
    with pytest.raises(RunError, match="openvino-genai failed: no memory"):
        batch.step()
    batch.close()


def test_a_sampling_that_the_library_refuses_fails_alone(session: LanguageSession, artifact: Path) -> None:
    need("openvino_genai")
    batch = ENGINE.batch(artifact, EXACT, slots=1, context=64)
    batch.add(1, PROMPTS[0], Sampling(5, temperature=1.0, top_p=7.0))
    batch.add(2, PROMPTS[1], Sampling(100))
    told = run(batch)
    assert [(each.finished, each.token) for each in told[1]] == [("failed", None)]
    assert "top_p" in (told[1][0].reason or "")
    assert tokens_of(told[2]) == greedy(session, PROMPTS[1], 44)[0]  # 64 tokens in all: the cache holds a whole context
    batch.close()


def test_a_batch_refuses_what_it_cannot_answer(artifact: Path) -> None:
    need("openvino_genai")
    batch = ENGINE.batch(artifact, EXACT, context=16)
    batch.add(1, [5], Sampling(3))
    for tokens, words in (([], "no token"), ([320], "Token 320"), ([5] * 16, "leaves no room")):
        with pytest.raises(RunError, match=words):
            batch.add(2, tokens, Sampling(3))
    with pytest.raises(RunError, match="one token at least"):
        batch.add(2, [5], Sampling(0))
    with pytest.raises(RunError, match="Request 1 is being answered"):
        batch.add(1, [5], Sampling(3))
    batch.close()


@pytest.mark.parametrize(
    ("family", "config"),
    [("mistral", {"sliding_window": 16}), ("gpt2", {}), ("phi", {}), ("qwen3", {"kv_heads": 1})],
    ids=["window", "learned-positions", "parallel", "one-kv-head"],
)
def test_many_at_once_are_the_same_for_every_kind_of_attention(family: str, config: dict[str, Any], tmp_path: Path) -> None:
    """Paged attention is made of the graph by rewriting; a window, or positions, may get lost there."""
    need("openvino_genai")
    source = SourceFolder.open(random_decoder(family, tmp_path / "source", **config))
    artifact = openvino_ir.write(source, tmp_path / "ir")
    session, batch = ENGINE.open(artifact, EXACT), ENGINE.batch(artifact, EXACT, slots=2)
    for request in (1, 3):
        batch.add(request, PROMPTS[request], Sampling(30))
    told = run(batch)
    for request in (1, 3):
        assert tokens_of(told[request]) == greedy(session, PROMPTS[request], 30)[0]
    batch.close()


def test_many_at_once_end_where_longrope_would_turn_at_another_speed(tmp_path: Path) -> None:
    need("openvino_genai")
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 32}
    rope = {"rope_theta": 10000.0, **scaling}
    folder = random_decoder("phi3", tmp_path / "source", rope_parameters=rope, original_max_position_embeddings=32)
    artifact = openvino_ir.write(SourceFolder.open(folder), tmp_path / "ir")
    assert ENGINE.open(artifact, EXACT).context == 128
    batch = ENGINE.batch(artifact, EXACT)
    assert batch.context == 32
    batch.close()


def test_a_pipeline_of_openvino_genai_answers_alike(session: LanguageSession, artifact: Path) -> None:
    need("openvino_genai", "openvino_tokenizers", "transformers")
    import openvino
    import openvino_genai
    from tokenizers import Tokenizer

    assert openvino_ir.write_tokenizer(artifact.parent)
    properties = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "ATTENTION_BACKEND": "SDPA"}
    pipeline = openvino_genai.LLMPipeline(str(artifact.parent), "CPU", **properties)
    text = "The river was higher than"
    tokens = Tokenizer.from_file(str(artifact.parent / "tokenizer.json")).encode(text).ids
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos = 10, True
    answer, _ = greedy(session, tokens, 10)
    assert pipeline.generate(openvino.Tensor(np.array([tokens])), config).tokens[0] == answer
    assert pipeline.generate([text], config).texts[0] == Tokenizer.from_file(str(artifact.parent / "tokenizer.json")).decode(answer)
