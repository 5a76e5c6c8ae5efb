"""Question answering: SQuAD's counting, prompts, greedy answers, and files that people write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bigram_engine import BigramSession
from letters import Letters, follows

from lowbit.errors import DataError, UsageError
from lowbit.llm.evaluate.answers import Question, answer_texts, exact_match, f1, normalize, prompt_of, read_questions, score
from lowbit.llm.evaluate.generate import after_words, at, generate

LETTERS = "abcdefgh.\n?"
CODEC = Letters(LETTERS)
MODEL = BigramSession(follows(LETTERS, {"a": "b", "b": "c", "c": ".", ".": "\n", "d": "d"}), context=12)


@pytest.mark.parametrize(
    ("found", "right", "exact", "overlap"),
    [
        ("The Tower.", "tower", 1, 1),
        ("an  apple, a day", "Apple day!", 1, 1),
        ("in the Tower of London", "Tower of London", 0, 2 * 3 / (4 + 3)),
        ("red red blue", "red", 0, 2 * 1 / (3 + 1)),
        ("no", "yes", 0, 0),
        ("", "", 1, 1),
        ("the", "", 1, 1),
        ("", "yes", 0, 0),
        ("O'Brien", "obrien", 1, 1),
    ],
)
def test_words_are_counted_as_squad_does(found: str, right: str, exact: float, overlap: float) -> None:
    assert exact_match(found, right) == exact
    assert f1(found, right) == pytest.approx(overlap)
    assert f1(right, found) == pytest.approx(overlap)


def test_normalizing_keeps_words_that_only_contain_an_article() -> None:
    assert normalize("Another theory, a than") == ["another", "theory", "than"]


def test_the_best_of_several_answers_counts() -> None:
    found = score([Question("q", ("blue", "dark blue")), Question("q", ("red",))], ["dark blue", "red wine"])
    assert found.exact == (1.0, 0.0)
    assert found.f1_each == (1.0, pytest.approx(2 / 3))
    assert found.exact_match == 0.5
    assert found.f1 == pytest.approx(5 / 6)


def test_greedy_answers_stop_where_they_should() -> None:
    assert generate(MODEL, CODEC, CODEC.encode("a"), tokens=8, ended=at(("\n",))) == "bc."
    assert generate(MODEL, CODEC, CODEC.encode("a"), tokens=2, ended=at(("\n",))) == "bc"
    assert generate(MODEL, CODEC, CODEC.encode("a"), tokens=8, eos=(LETTERS.index("."),)) == "bc"
    assert generate(MODEL, CODEC, CODEC.encode("a"), tokens=8, ended=at(("c.", "\n"))) == "b"
    assert generate(MODEL, CODEC, CODEC.encode("d"), tokens=5) == "ddddd"


def test_an_answer_of_so_many_words_ends_with_them() -> None:
    one, two = after_words(1), after_words(2)
    assert [one(text) for text in ("", " ", " bird", "\n bird,", " bird of", " bird\n")] == [None, None, None, None, "bird", "bird"]
    assert [two(text) for text in (" a bird", " a bird ", " a bird of")] == [None, "a bird", "a bird"]
    question = Question("", ("bc.",), "a", words=1)
    assert prompt_of(question) == "a"
    assert list(answer_texts(MODEL, CODEC, [question], tokens=8)) == ["bc."]


def test_a_long_prompt_loses_its_oldest_tokens() -> None:
    assert generate(MODEL, CODEC, CODEC.encode("eeeeeeeeeeeeeeeeeea"), tokens=8, ended=at(("\n",))) == "bc."
    with pytest.raises(DataError, match="12 tokens does not fit in a context of 12"):
        generate(MODEL, CODEC, [0], tokens=12)
    with pytest.raises(DataError, match="no token"):
        generate(MODEL, CODEC, [], tokens=1)


def test_questions_are_asked_and_scored() -> None:
    questions = [Question("a", ("bc",)), Question("d", ("bc",)), Question("b", ("c",))]
    texts = list(answer_texts(MODEL, CODEC, questions, template="{question}", tokens=4))
    assert texts == ["bc.", "dddd", "c."]
    assert score(questions, texts).exact == (1.0, 0.0, 1.0)


def test_braces_in_a_text_stay_and_a_missing_context_leaves_no_empty_line() -> None:
    assert prompt_of(Question("{context} x", ("y",), "C {question}")) == "C {question}\nQuestion: {context} x\nAnswer:"
    assert prompt_of(Question("who", ("y",))) == "Question: who\nAnswer:"


def test_a_template_without_a_place_is_refused() -> None:
    with pytest.raises(UsageError, match="no place for a question"):
        list(answer_texts(MODEL, CODEC, [Question("a", ("b",))], template="Answer:"))


def test_files_are_read(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    lines = [{"id": 7, "question": "Who?", "answers": ["A", "B"], "context": "C"}, {"question": "What?", "answer": "D"}]
    file.write_text("\n\n".join(json.dumps(each) for each in lines) + "\n")
    assert read_questions(file) == [Question("Who?", ("A", "B"), "C"), Question("What?", ("D",))]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "no questions"),
        ('{"question": "x", "answers": []}', "line 1, has no answers"),
        ('{"question": "x", "answers": [3]}', "line 1, has no answers"),
        ('{"answers": ["x"]}', "line 1, has no question"),
        ('\n{"question": "x", "anwsers": ["y"]}', r"line 2.*Unknown key 'anwsers'"),
        ('{"question": "x", "answers": ["y"], "words": 0}', "words is 0"),
        ("[1]", "line 1, is no JSON object"),
        ("{", "line 1, is no JSON:"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(tmp_path: Path, text: str, found: str) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=found):
        read_questions(file)


def test_a_file_that_is_no_text_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"q\.jsonl cannot be read"):
        read_questions(tmp_path / "q.jsonl")
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read"):
        read_questions(tmp_path / "none.jsonl")
