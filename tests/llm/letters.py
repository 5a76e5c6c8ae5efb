"""A tokenizer that is easy to count with: a token is a letter's place among those it knows."""

from __future__ import annotations

from collections.abc import Sequence


class Letters:
    def __init__(self, letters: str) -> None:
        self.letters = letters

    def encode(self, text: str) -> list[int]:
        return [self.letters.index(each) for each in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.letters[token] for token in tokens)


def follows(letters: str, pairs: dict[str, str], sure: float = 0.9) -> list[list[float]]:
    """Probabilities of a model that nearly always writes `pairs[x]` after x, and anything after others."""
    size = len(letters)
    table = []
    for letter in letters:
        row = [1 / size] * size
        if letter in pairs:
            row = [(1 - sure) / (size - 1)] * size
            row[letters.index(pairs[letter])] = sure
        table.append(row)
    return table
