"""Candidates judged in processes of their own: the same figures as here, whatever happens there."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from bigram_engine import BigramSession, draw, table, write
from decoder_case import need, write_tokenizer

from lowbit.errors import DataError, UsageError
from lowbit.llm.candidate import EngineCandidate
from lowbit.llm.evaluate.judge import evaluate_artifact, judge_answers, judge_task, spool_reference
from lowbit.llm.evaluate.paired_text import compare
from lowbit.llm.evaluate.perplexity import evaluate
from lowbit.llm.evaluate.windows import Windows
from lowbit.llm.evaluate.worker import load_documents, save_documents

REFERENCE = table(30, seed=1, sharpness=2)
WORSE = 0.8 * REFERENCE + 0.2 * table(30, seed=2)
TEXTS = [("a", draw(REFERENCE, 400, 1)), ("b", draw(REFERENCE, 203, 2))]
WINDOWS = Windows(20)


@pytest.fixture(autouse=True)
def find_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def test_documents_reach_the_worker_as_they_are(tmp_path: Path) -> None:
    save_documents([*TEXTS, ("empty", np.zeros(0, np.int32))], tmp_path / "d.npz")
    names, tokens = zip(*load_documents(tmp_path / "d.npz"), strict=True)
    assert names == ("a", "b", "empty")
    assert [each.tolist() for each in tokens] == [TEXTS[0][1].tolist(), TEXTS[1][1].tolist(), []]


def test_a_worker_finds_what_this_process_finds(tmp_path: Path) -> None:
    ours, theirs = write(tmp_path / "ours.json", REFERENCE), write(tmp_path / "theirs.json", WORSE)
    seen: list[tuple[int, int]] = []
    first = spool_reference(ours, TEXTS, WINDOWS, tmp_path / "reference", tokens=200, sizes={"a": 900, "b": 500})
    second = evaluate_artifact(theirs, TEXTS, WINDOWS, reference=tmp_path / "reference", progress=lambda done, of: seen.append((done, of)))
    assert first.error is None
    assert second.error is None
    assert first.perplexity == evaluate(BigramSession(REFERENCE), TEXTS, WINDOWS, sizes={"a": 900, "b": 500})
    assert second.perplexity == evaluate(BigramSession(WORSE), TEXTS, WINDOWS)
    assert first.divergence is None
    assert second.divergence is not None
    kl = (REFERENCE * np.log(REFERENCE / WORSE)).sum(axis=1)
    assert kl.min() < second.divergence.kl_mean < kl.max()
    assert second.divergence.tokens == 190  # 10 windows of 19
    assert seen[-1] == (30, 30)
    assert (second.peak_memory_bytes or 0) > 1e7
    assert second.precision == "f32"
    assert compare(first.perplexity, second.perplexity).value > 0.01
    json.dumps(asdict(second), allow_nan=False)


def test_the_reference_does_not_diverge_from_itself(tmp_path: Path) -> None:
    ours = write(tmp_path / "ours.json", REFERENCE)
    spool_reference(ours, TEXTS, WINDOWS, tmp_path / "reference")
    found = evaluate_artifact(ours, TEXTS, WINDOWS, reference=tmp_path / "reference")
    assert found.divergence is not None
    assert found.perplexity is not None
    assert found.divergence.tokens == found.perplexity.tokens
    assert found.divergence.top1 == 1
    assert found.divergence.kl_mean < 1e-7


@pytest.mark.parametrize(
    ("fail", "found"),
    [("crash in logits", "It crashed .signal 11, SIGSEGV."), ("hang in logits", "did not answer within")],
)
def test_a_crash_and_a_hang_are_told(tmp_path: Path, fail: str, found: str) -> None:
    scored = evaluate_artifact(write(tmp_path / "bad.json", REFERENCE, fail=fail), TEXTS, WINDOWS, timeout_s=4.0)
    assert scored.perplexity is None
    assert found in str(scored.error).replace("(", ".").replace(")", ".")


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    artifact = write(tmp_path / "ours.json", REFERENCE).artifact
    none = evaluate_artifact(EngineCandidate("x", "bigram_engine:BigramEngine", tmp_path / "none.json"), TEXTS, WINDOWS)
    assert none.error == "none.json is missing."
    other = evaluate_artifact(EngineCandidate("x", "bigram_engine:Nothing", artifact), TEXTS, WINDOWS)
    assert "'bigram_engine:Nothing' cannot be loaded" in str(other.error)


def test_a_model_that_gives_no_numbers_has_no_perplexity(tmp_path: Path) -> None:
    broken = REFERENCE.copy()
    broken[5] = np.nan
    scored = evaluate_artifact(write(tmp_path / "nan.json", broken), TEXTS, WINDOWS)
    assert "no numbers (NaN or infinity)" in str(scored.error)
    assert (scored.perplexity, scored.divergence) == (None, None)


def test_a_reference_without_numbers_is_not_spooled(tmp_path: Path) -> None:
    broken = REFERENCE.copy()
    broken[:] = np.nan
    scored = spool_reference(write(tmp_path / "nan.json", broken), TEXTS, WINDOWS, tmp_path / "reference")
    assert "nothing can be compared with it" in str(scored.error)
    assert [path.name for path in tmp_path.iterdir()] == ["nan.json"]


def test_a_reference_of_other_text_is_told(tmp_path: Path) -> None:
    ours = write(tmp_path / "ours.json", REFERENCE)
    spool_reference(ours, TEXTS, WINDOWS, tmp_path / "reference")
    scored = evaluate_artifact(ours, TEXTS[:1], WINDOWS, reference=tmp_path / "reference")
    assert "other documents or windows" in str(scored.error)


def test_no_text_is_an_error_here(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text to score"):
        evaluate_artifact(write(tmp_path / "ours.json", REFERENCE), [], WINDOWS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer, and a config.json that says where texts begin and end."""
    need("tokenizers")
    write_tokenizer(tmp_path / "model", 300)
    (tmp_path / "model" / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1}))
    return tmp_path / "model"


def words(folder: Path, text: str, sure: float = 0.99) -> np.ndarray:
    """A model that writes this text's tokens one after the other."""
    from lowbit.llm.evaluate.text import open_text

    tokens = open_text(folder).encode(text)
    assert len(set(tokens)) == len(tokens), "each token has one that follows"
    probabilities = np.full((300, 300), (1 - sure) / 299)
    for token, following in pairwise(tokens):
        probabilities[token, following] = sure
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def test_questions_are_answered_by_a_worker(tmp_path: Path, folder: Path) -> None:
    candidate = write(tmp_path / "ours.json", words(folder, "key: bird\n"))
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "key:", "answers": ["Bird."]}\n{"question": "key:", "answers": ["fish"]}\n')
    found = judge_answers(candidate, questions, folder, template="{question}", context=64)
    assert found.error is None
    assert found.answers is not None
    assert found.answers.texts == ("bird", "bird")
    assert found.answers.exact == (1.0, 0.0)
    with pytest.raises(UsageError, match="no place"):
        judge_answers(candidate, questions, folder, template="x")


def test_a_task_is_scored_by_a_worker(tmp_path: Path, folder: Path) -> None:
    need("lm_eval")
    candidate = write(tmp_path / "ours.json", words(folder, "key: bird\n"))
    task = tmp_path / "birds.jsonl"
    rows = [{"context": "key:", "choices": ["fish", "bird"], "answer": 1}, {"context": "key:", "choices": ["fish", "bird"], "answer": 0}]
    task.write_text("\n".join(json.dumps(row) for row in rows))
    found = judge_task(candidate, task, folder, context=64)
    assert found.error is None
    assert found.task is not None
    assert (found.task.name, found.task.value, found.task.paired) == ("birds", 0.5, (1.0, 0.0))
    lost = judge_task(EngineCandidate("x", candidate.engine, tmp_path / "none.json"), task, folder)
    assert lost.error == "none.json is missing."
