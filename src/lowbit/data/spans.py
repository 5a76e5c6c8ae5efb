"""Labels of single tokens: a class for every word, or where an answer begins and ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lowbit.data.fit import some
from lowbit.data.text import Text, Words
from lowbit.errors import DataError
from lowbit.types import Array

IGNORED = -100
"""Label of a token that does not count: padding, special tokens, all tokens of a word but the first."""

NOWHERE = 0
"""Position of an answer that was cut off, or that there is none: the first token, as these models are trained."""


def word_labels(given: Sequence[Any], samples: Sequence[Words], text: Text) -> Array:
    """Words' labels at their first tokens.

    Args:
        given: Per sample a list of numbers or class names (or text of them, separated by spaces), one a word.
        samples: The words.
        text: Settled.

    Returns:
        int64 [N, length], `IGNORED` everywhere else.

    Raises:
        DataError: another number of labels than words, or a name that is not the model's.
    """
    assert isinstance(text.length, int), "the length is settled first"
    ids = {name.lower(): number for number, name in enumerate(text.labels)}
    labels = np.full((len(samples), text.length), IGNORED, np.int64)
    for row, (values, words, encoding) in enumerate(zip(given, samples, text.encode(samples), strict=True)):
        tags = values.split() if isinstance(values, str) else list(values) if isinstance(values, Iterable) else []
        if len(tags) != len(words.parts):
            raise DataError(f"Sample {row + 1} has {len(words.parts)} words and {len(tags)} labels.", "Give one label a word.")
        previous = None
        for position, word in enumerate(encoding.word_ids):
            if word is not None and word != previous:
                labels[row, position] = _class_of(tags[word], ids, row)
            previous = word
    return labels


def _class_of(tag: Any, ids: Mapping[str, int], row: int) -> int:
    if isinstance(tag, str) and tag.lower() in ids:
        return ids[tag.lower()]
    try:
        return int(tag)
    except (TypeError, ValueError):
        raise DataError(f"Sample {row + 1} has the label '{tag}'; the model knows {some(list(ids))}.", "Use the model's names.") from None


def answer_spans(rows: Sequence[Mapping[str, Any]], samples: Sequence[Words], text: Text) -> Array | None:
    """Tokens at which answers begin and end.

    Args:
        rows: With `answers` as {"text": [...], "answer_start": [...]} (SQuAD's), or `answer` and perhaps `answer_start`.
        samples: Question and context.
        text: Settled.

    Returns:
        int64 [N, 2], (0, 0) for an answer that was cut off or that is none; None where no row has an answer.

    Raises:
        DataError: an answer is not in its context.
    """
    if not any("answers" in row or "answer" in row for row in rows):
        return None
    spans = np.full((len(rows), 2), NOWHERE, np.int64)
    for number, (row, sample, encoding) in enumerate(zip(rows, samples, text.encode(samples), strict=True)):
        start, end = _characters(row, sample.parts[1], number)
        inside = [
            position
            for position, (sequence, (first, last)) in enumerate(zip(encoding.sequence_ids, encoding.offsets, strict=True))
            if sequence == 1 and first < end and last > start
        ]
        if inside and encoding.offsets[inside[-1]][1] >= end:
            spans[number] = inside[0], inside[-1]
    return spans


def _characters(row: Mapping[str, Any], context: str, number: int) -> tuple[int, int]:
    """Where an answer's characters are; (0, 0) where the row says that there is none."""
    answers: Any = row.get("answers", row.get("answer"))
    texts: list[Any]
    starts: list[Any]
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text") or [], answers.get("answer_start") or []
        texts, starts = ([texts], [starts]) if isinstance(texts, str) else (texts, starts)
    else:
        texts = answers if isinstance(answers, list) else [answers] if answers else []
        starts = [row["answer_start"]] if row.get("answer_start") is not None else []
    if not texts:
        return 0, 0
    texts = [str(each) for each in texts]
    try:
        start = int(starts[0]) if starts else context.find(texts[0])
    except (TypeError, ValueError):
        start = -1
    if start < 0 or context[start : start + len(texts[0])] != texts[0]:
        raise DataError(
            f"Sample {number + 1}: the answer '{str(texts[0])[:40]}' is not in its context.", "Give `answer_start` in characters."
        )
    return start, start + len(texts[0])
