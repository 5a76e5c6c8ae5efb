"""Tasks through lm-evaluation-harness, with a model whose every log-likelihood is known: its figures against those by hand."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
from bigram_engine import BigramSession
from letters import Letters, follows

from conftest import missing
from lowbit.errors import DataError, UsageError
from lowbit.llm.evaluate.harness_model import harness_model
from lowbit.llm.evaluate.paired_text import compare_scores
from lowbit.llm.evaluate.tasks import TaskScore, read_task, score_task

LETTERS = "^abcdefgh .\n"
CODEC = Letters(LETTERS)
TABLE = follows(LETTERS, {"a": " ", " ": "b", "b": "b", "c": "d", "d": "e", "^": "a"}, sure=0.5)
BOS = 0


@pytest.fixture(autouse=True)
def harness() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        missing("lm-eval (extra 'evaluate')")


def log_likelihood(text: str, after: str) -> float:
    tokens = CODEC.encode(after + text)
    return sum(math.log(TABLE[tokens[i - 1]][tokens[i]]) for i in range(len(after), len(tokens)))


def model(context: int = 32, table: Any = TABLE) -> Any:
    return harness_model(BigramSession(table, context), CODEC, bos=BOS, eos=(LETTERS.index("."),))


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


CHOICES = [
    {"context": "a", "choices": ["b", "cd"], "answer": 0},
    {"context": "a", "choices": ["bb", "h"], "answer": "B"},
    {"question": "c", "choices": ["d", "bbbb"], "answer": "d"},
    {"context": "ee", "choices": ["cde", "g", "bb"], "answer": 2},
    {"context": "ee", "choices": ["cde", "g", "f"], "answer": 2},
    {"context": "a", "choices": ["b", "bb"], "answer": 1},
]


def test_choices_are_scored_as_by_hand(tmp_path: Path) -> None:
    found = score_task(model(), read_task(write(tmp_path / "letters.jsonl", CHOICES)))
    answers, acc, acc_norm = [0, 1, 0, 2, 2, 1], [], []
    for row, answer in zip(CHOICES, answers, strict=True):
        context = str(row.get("context", row.get("question")))
        sums = [log_likelihood(f" {choice}", context) for choice in row["choices"]]
        norms = [total / len(choice) for total, choice in zip(sums, row["choices"], strict=True)]
        acc.append(float(max(range(len(sums)), key=sums.__getitem__) == answer))
        acc_norm.append(float(max(range(len(norms)), key=norms.__getitem__) == answer))
    assert found.samples["acc"] == tuple(acc)
    assert found.samples["acc_norm"] == tuple(acc_norm)
    assert found.metrics["acc"] == sum(acc) / 6
    assert (found.name, found.metric, found.value, found.n) == ("letters", "acc_norm", sum(acc_norm) / 6, 6)
    assert found.higher_is_better
    assert 0 < sum(acc) < 6, "a task that says nothing tests nothing"
    assert acc != acc_norm, "both ways of counting are looked at"


def test_log_likelihoods_are_exact_and_say_whether_they_are_greedy() -> None:
    scorer = model()
    (value, greedy), (other, not_greedy) = scorer._loglikelihood_tokens(
        [(None, CODEC.encode("a"), CODEC.encode(" bb")), (None, CODEC.encode("a"), CODEC.encode(" bc"))]
    )
    assert value == pytest.approx(3 * math.log(0.5), rel=1e-6)
    assert other == pytest.approx(2 * math.log(0.5) + math.log(0.5 / 11), rel=1e-6)
    assert (greedy, not_greedy) == (True, False)


def test_a_context_that_is_too_long_loses_its_oldest_tokens() -> None:
    ((value, greedy),) = model(context=3)._loglikelihood_tokens([(None, CODEC.encode("hhhhhhha"), CODEC.encode(" b"))])
    assert value == pytest.approx(2 * math.log(0.5), rel=1e-6)
    assert greedy


def test_texts_are_scored_whole_from_the_first_token_on(tmp_path: Path) -> None:
    texts = ["a bb", "cde", "a" + " b" * 40]  # the last is longer than the context
    found = score_task(model(), read_task(write(tmp_path / "texts.jsonl", [{"text": text} for text in texts])))
    total = sum(log_likelihood(text, "^") for text in texts)
    size = sum(len(text) for text in texts)
    assert found.metrics["bits_per_byte"] == pytest.approx(-total / size / math.log(2), rel=1e-6)
    assert found.metrics["byte_perplexity"] == pytest.approx(math.exp(-total / size), rel=1e-6)
    assert (found.metric, found.higher_is_better, found.n) == ("bits_per_byte", False, 3)
    assert found.paired == ()


YAML = """
task: after_letters
dataset_path: json
dataset_kwargs:
  data_files:
    test: rows.jsonl
test_split: test
output_type: generate_until
doc_to_text: "{{start}}"
doc_to_target: "{{end}}"
generation_kwargs:
  until: ["."]
  max_gen_toks: 3
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def test_a_harness_task_in_yaml_runs_on_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "rows.jsonl", [{"start": "a", "end": " bb"}, {"start": "c", "end": "de"}])
    (tmp_path / "own.yaml").write_text(YAML)
    found = score_task(model(), read_task(tmp_path / "own.yaml"))
    assert (found.name, found.metric, found.n) == ("after_letters", "exact_match", 2)
    assert found.paired == (1.0, 0.0)  # "de" is followed by any letter, the first of them
    assert found.value == 0.5


def test_a_task_that_needs_the_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(YAML.replace("dataset_path: json", "dataset_path: squad"))
    with pytest.raises(UsageError, match="'squad', which may need the network"):
        read_task(tmp_path / "own.yaml")
    (tmp_path / "own.yaml").write_text(YAML.replace("rows.jsonl", "https://example.org/rows.jsonl"))
    with pytest.raises(UsageError, match="needs the network"):
        read_task(tmp_path / "own.yaml")


def test_two_models_are_compared_sample_by_sample(tmp_path: Path) -> None:
    task = read_task(write(tmp_path / "letters.jsonl", CHOICES))
    ours, theirs = (score_task(model(table=table), task) for table in (TABLE, follows(LETTERS, {})))
    delta = compare_scores(ours.paired, theirs.paired)
    assert delta.value == pytest.approx(ours.value - theirs.value)
    assert delta.n == 6


def test_only_some_samples_are_scored_where_asked_for(tmp_path: Path) -> None:
    found: TaskScore = score_task(model(), read_task(write(tmp_path / "letters.jsonl", CHOICES)), limit=2)
    assert found.n == len(found.paired) == 2


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([], "no samples"),
        ([{"a": 1}], "neither choices nor a text"),
        ([{"context": "x", "choices": ["a"], "answer": 0}], "line 1, needs two choices"),
        ([{"context": "x", "choices": ["a", "b"], "answer": 2}], "the answer is 2; it is one of 2"),
        ([{"context": "x", "choices": ["a", "b"], "answer": True}], "the answer is True"),
        ([{"context": "x", "choices": ["a", "b"], "answer": "c"}], "the answer is 'c'"),
        ([{"choices": ["a", "b"], "answer": 0}], "neither a context nor a question"),
        ([{"context": "x", "choices": ["a", "b"], "anwser": 0}], "Unknown key 'anwser'"),
    ],
)
def test_what_is_wrong_in_a_task_is_said(tmp_path: Path, rows: list[dict[str, Any]], found: str) -> None:
    with pytest.raises(DataError, match=found):
        read_task(write(tmp_path / "task.jsonl", rows))
