"""Question answering, by exact match and F1 as SQuAD counts them (Rajpurkar et al. 2016, arXiv 1606.05250).

Questions are a .jsonl file, one a line: {"question": ..., "answers": [...], "context": ...}; question or context may be missing.
The model continues a prompt greedily; the answer ends with the line, or after so many words where the question says
{"words": 1}. A question without a question is its context alone, to be continued.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.errors import DataError, UsageError
from lowbit.llm.engines.base import LanguageSession
from lowbit.llm.evaluate.generate import Codec, after_words, at, generate
from lowbit.strict import check_keys

TEMPLATE = "{context}\nQuestion: {question}\nAnswer:"
STOP = ("\n",)
PLACES = re.compile(r"\{(context|question)\}")


@dataclass(frozen=True)
class Question:
    """One question, and all answers that count as right.

    Attributes:
        question: Empty where the context is to be continued.
        answers: Each is right.
        context: What the question is about.
        words: Of an answer; None: it ends with the line.
    """

    question: str
    answers: tuple[str, ...]
    context: str = ""
    words: int | None = None


@dataclass(frozen=True)
class Answers:
    """What a model answered.

    Attributes:
        exact_match: Mean of `exact`.
        f1: Mean of `f1_each`.
        exact: 1 or 0 for each question, the best over its answers; for paired comparison.
        f1_each: Overlap of words for each question, 0-1.
        texts: The answers themselves.
    """

    exact_match: float
    f1: float
    exact: tuple[float, ...]
    f1_each: tuple[float, ...]
    texts: tuple[str, ...]


def read_questions(file: Path) -> list[Question]:
    """Reads a .jsonl.

    Raises:
        DataError: it cannot be read, a line is no question, or there is none.
    """
    questions = [_question(values, f"{file.name}, line {number}") for number, values in read_lines(file)]
    if not questions:
        raise DataError(f"{file.name} has no questions.", 'Each line is one: {"question": ..., "answers": [...]}.')
    return questions


def read_lines(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a .jsonl; empty lines are left out.

    Raises:
        DataError: it cannot be read, or a line is no JSON object.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise DataError(f"{file.name} cannot be read: {error}.", "Give a .jsonl file in UTF-8.") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file.name}, line {number}, is no JSON: {error}.", "Give one JSON object a line.") from error
        if not isinstance(values, dict):
            raise DataError(f"{file.name}, line {number}, is no JSON object.", "Give one a line.")
        found.append((number, values))
    return found


def check_template(template: str) -> str:
    """The template, if it can be filled.

    Raises:
        UsageError: it has no place for the question.
    """
    if "{question}" not in template and "{context}" not in template:
        raise UsageError(f"The template {template!r} has no place for a question.", "Write {question} where it goes, and {context}.")
    return template


def prompt_of(question: Question, template: str = TEMPLATE) -> str:
    """The template with a question in it, the context alone where there is none; braces within texts stay as they are."""
    if not question.question:
        return question.context
    return PLACES.sub(lambda match: str(getattr(question, match[1])), template).lstrip("\n")


def answer_texts(
    session: LanguageSession,
    codec: Codec,
    questions: Sequence[Question],
    *,
    template: str = TEMPLATE,
    tokens: int = 32,
    bos: int | None = None,
    eos: Sequence[int] = (),
    stop: Sequence[str] = STOP,
) -> Iterator[str]:
    """Asks one question after the other.

    Args:
        session: Whom.
        codec: Its tokenizer.
        questions: What.
        template: The prompt, with {context} and {question}.
        tokens: Most that an answer may have.
        bos: Token before each prompt; None: none.
        eos: Tokens that end an answer.
        stop: Texts that do.

    Yields:
        Answers, without the space around them.

    Raises:
        UsageError: the template has no place for a question.
    """
    check_template(template)
    for question in questions:
        prompt = [*([] if bos is None else [bos]), *codec.encode(prompt_of(question, template))]
        ended = at(stop) if question.words is None else after_words(question.words)
        yield generate(session, codec, prompt, tokens=tokens, eos=eos, ended=ended).strip()


def score(questions: Sequence[Question], texts: Sequence[str]) -> Answers:
    """Compares answers with those that are right; the best counts where there are several."""
    exact = tuple(max(exact_match(text, right) for right in each.answers) for each, text in zip(questions, texts, strict=True))
    overlap = tuple(max(f1(text, right) for right in each.answers) for each, text in zip(questions, texts, strict=True))
    return Answers(sum(exact) / len(exact), sum(overlap) / len(overlap), exact, overlap, tuple(texts))


def normalize(text: str) -> list[str]:
    """Words without case, punctuation and articles.

    >>> normalize("The  Tower, of London!")
    ['tower', 'of', 'london']
    """
    bare = "".join(each for each in text.lower() if each not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def exact_match(found: str, right: str) -> float:
    """1 where the words are the same."""
    return float(normalize(found) == normalize(right))


def f1(found: str, right: str) -> float:
    """Harmonic mean of the share of found words that are right and of right words that were found.

    >>> f1("in the Tower", "the Tower of London")
    0.4
    """
    ours, theirs = normalize(found), normalize(right)
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def _question(values: Mapping[str, Any], where: str) -> Question:
    known = {key: value for key, value in values.items() if key != "id"}
    try:
        check_keys("key", known, ("question", "answers", "answer", "context", "words"))
    except UsageError as error:
        raise DataError(f"{where}: {error.message}", error.hint) from error
    answers = known.get("answers", known.get("answer"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(each, str) and each.strip() for each in answers):
        raise DataError(f"{where}, has no answers.", 'Give "answers": a list of texts.')
    question, context = known.get("question", ""), known.get("context", "")
    if not isinstance(question, str) or not isinstance(context, str) or not (question or context):
        raise DataError(f"{where}, has no question.", 'Give "question": a text.')
    words = known.get("words")
    if words is not None and (not isinstance(words, int) or isinstance(words, bool) or words < 1):
        raise DataError(f"{where}: words is {words!r}.", "Say how many words an answer has, or leave it out.")
    return Question(question, tuple(answers), context, words)
