"""Make small tasks for a language model out of books that it was not trained on. Nothing in them is made up.

    python examples/language/make_tasks.py ../shared/data/small-llama/eval_*.txt --out build/llm
    lowbit optimize ../shared/data/small-llama --data ../shared/data/small-llama/eval_darwin.txt --questions build/llm/words.jsonl

order.jsonl   a passage, and the sentence after it in four orders of words: as it was written, and with two neighbours exchanged
              at three places. Which one is right? Chance is 25 %.
cloze.jsonl   a passage, and which of four sentences comes next: the one that does, or one of three of like length from elsewhere
              in the same book (as SWAG and HellaSwag ask). Chance is 25 %, and a small model is not far above it.
words.jsonl   a passage and the word that comes next ("natural ... selection"), where the book mostly has the same one after that word.

Passages are short enough for a context of 256 tokens of a small vocabulary. order.jsonl and words.jsonl in this folder were made
by `--count 25` from the four public-domain books of the small Llama; of twice as many its 16-bit weights get 82 % and 23 % right.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CONTEXT = (120, 360)
"""Characters of a passage."""
SENTENCE = (40, 200)
"""Characters of a sentence that is asked for."""
CHOICES = 4
LIKE = 12
"""The other sentences are drawn from so many that are nearest in length."""
PASSAGE = 400
"""Characters before a word that is asked for."""
PAIR = re.compile(r"\b([A-Za-z]+\.?)\s+(?=([A-Za-z]+)\b)")
LETTERS, OFTEN, MOSTLY = 4, 3, 0.6
"""A word is asked for that is so long, and follows the one before it so often, in so large a share of all places."""
END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+(?=[A-Z\"'“‘(])")


@dataclass(frozen=True)
class Book:
    """Text, and where its sentences begin and end."""

    text: str
    sentences: tuple[tuple[int, int], ...]

    @classmethod
    def read(cls, path: Path) -> Book:
        text = path.read_text(encoding="utf-8")
        ends = [match.end() for match in END.finditer(text)]
        pairs = zip([0, *ends], [*ends, len(text)], strict=True)
        # The first and last sentence of an excerpt are torn.
        return cls(text, tuple(pairs)[1:-1])

    def sentence(self, index: int) -> str:
        begin, end = self.sentences[index]
        return self.text[begin:end].strip()

    def before(self, index: int) -> str | None:
        """Whole sentences before one; None where they are too short or too long."""
        end = self.sentences[index][0]
        first = index
        while first > 0 and end - self.sentences[first - 1][0] <= CONTEXT[1]:
            first -= 1
        passage = self.text[self.sentences[first][0] : end]
        return passage.rstrip() if len(passage) >= CONTEXT[0] else None


def cloze(book: Book, count: int, draw: random.Random) -> list[dict[str, object]]:
    """Which sentence comes next."""
    fit = [i for i in range(len(book.sentences)) if SENTENCE[0] <= len(book.sentence(i)) <= SENTENCE[1] and "\n\n" not in book.sentence(i)]
    asked = [i for i in fit if book.before(i) is not None]
    rows: list[dict[str, object]] = []
    for i in sorted(draw.sample(asked, min(count, len(asked)))):
        right = book.sentence(i)
        context = book.before(i)
        far = [j for j in fit if abs(j - i) > 20 and book.sentence(j) != right]
        near = sorted(far, key=lambda j: abs(len(book.sentence(j)) - len(right)))[:LIKE]
        choices = [right, *(book.sentence(j) for j in draw.sample(near, CHOICES - 1))]
        draw.shuffle(choices)
        rows.append({"context": context, "choices": choices, "answer": choices.index(right)})
    return rows


def order(book: Book, count: int, draw: random.Random) -> list[dict[str, object]]:
    """Which order of words was written."""
    rows: list[dict[str, object]] = []
    for i in draw.sample(range(len(book.sentences)), len(book.sentences)):
        right, context = book.sentence(i), book.before(i)
        pieces = right.split()
        # Not the first word, which its capital would give away.
        places = [k for k in range(1, len(pieces) - 1) if pieces[k].isalpha() and pieces[k + 1].isalpha() and pieces[k] != pieces[k + 1]]
        if context is None or not SENTENCE[0] <= len(right) <= SENTENCE[1] or len(places) < CHOICES - 1:
            continue
        choices = [" ".join(pieces), *(" ".join(exchanged(pieces, k)) for k in draw.sample(places, CHOICES - 1))]
        if len(set(choices)) == CHOICES:
            first = choices[0]
            draw.shuffle(choices)
            rows.append({"context": context, "choices": choices, "answer": choices.index(first)})
        if len(rows) == count:
            break
    return rows


def exchanged(pieces: Sequence[str], place: int) -> list[str]:
    """Words with two neighbours exchanged.

    >>> exchanged(["a", "b", "c"], 1)
    ['a', 'c', 'b']
    """
    return [*pieces[:place], pieces[place + 1], pieces[place], *pieces[place + 2 :]]


def words(book: Book, count: int, draw: random.Random) -> list[dict[str, object]]:
    """Which word comes next, where the book itself mostly has the same one there."""
    after: dict[str, Counter[str]] = defaultdict(Counter)
    for match in PAIR.finditer(book.text):
        after[match[1]][match[2].lower()] += 1
    rows: list[dict[str, object]] = []
    for match in PAIR.finditer(book.text, PASSAGE):
        word, times = after[match[1]].most_common(1)[0]
        if word == match[2].lower() and len(word) >= LETTERS and times >= OFTEN and times >= MOSTLY * after[match[1]].total():
            passage = book.text[match.start() - PASSAGE : match.start(2)]
            # The first word may be torn.
            rows.append({"context": passage[passage.index(" ") :].strip(), "answers": [match[2]], "words": 1})
    return [rows[k] for k in sorted(draw.sample(range(len(rows)), min(count, len(rows))))]


def write(path: Path, rows: Sequence[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows)} samples")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("books", nargs="+", type=Path, help="plain text, UTF-8")
    parser.add_argument("--out", type=Path, default=Path("build/llm"))
    parser.add_argument("--count", type=int, default=50, help="samples of each kind and book")
    given = parser.parse_args()
    draw = random.Random(0)
    books = [Book.read(path) for path in given.books]
    given.out.mkdir(parents=True, exist_ok=True)
    write(given.out / "cloze.jsonl", [row for book in books for row in cloze(book, given.count, draw)])
    write(given.out / "order.jsonl", [row for book in books for row in order(book, given.count, draw)])
    write(given.out / "words.jsonl", [row for book in books for row in words(book, given.count, draw)])


if __name__ == "__main__":
    main()
