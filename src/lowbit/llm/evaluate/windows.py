"""Where a text is cut for a model whose context is shorter. Two ways that published figures use; they give different numbers.

rows            [0, L) [L, 2L) ...: no overlap, and the first token of a row is not scored, since nothing comes before it.
                A last row shorter than L is left out (as GPTQ's and later papers do), unless the text has no other.
strided         [0, L) [S, S + L) ...: each window scores what the one before did not reach, so that all but the first
                window's tokens have at least L - S before them. The last window ends with the text, is shorter where
                it must be, and is scored (as transformers' documentation does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowbit.errors import DataError, UsageError
from lowbit.types import Array

Documents = Sequence[tuple[str, Array]]
"""Name and tokens, int32 [T]."""


@dataclass(frozen=True)
class Windows:
    """How long, and how far apart.

    Attributes:
        size: Tokens of a window, L.
        stride: From one to the next, S; None: rows.
    """

    size: int
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.size < 2:
            raise UsageError(f"A window has 2 tokens or more: one is read, the next is scored; found {self.size}.")
        if self.stride is not None and not 1 <= self.stride <= self.size:
            raise UsageError(f"The stride is 1 to the window's {self.size} tokens; found {self.stride}.")


@dataclass(frozen=True)
class Window:
    """Tokens [begin, end) of a document, of which [first, end) are scored."""

    document: int
    begin: int
    end: int
    first: int

    @property
    def scored(self) -> int:
        return self.end - self.first


def cut(documents: Documents, windows: Windows) -> list[Window]:
    """All windows, document by document.

    Raises:
        DataError: there is nothing to score.
    """
    lengths = [len(tokens) for _, tokens in documents]
    found = [window for index, length in enumerate(lengths) for window in _cut_one(index, length, windows)]
    if not found:
        longest = max(lengths, default=0)
        raise DataError(
            f"There is no text to score: the longest of {len(lengths)} has {longest} tokens.", "Give texts of 2 tokens or more."
        )
    return found


def _cut_one(index: int, length: int, windows: Windows) -> list[Window]:
    if length < 2:
        return []
    if windows.stride is None:
        begins = range(0, max(length - windows.size, 0) + 1, windows.size)
        return [Window(index, begin, min(begin + windows.size, length), begin + 1) for begin in begins]
    found, reached = [], 0
    for begin in range(0, length, windows.stride):
        end = min(begin + windows.size, length)
        if end > (first := max(reached, begin + 1)):
            found.append(Window(index, begin, end, first))
        reached = end
        if end == length:
            break
    return found


def spread(windows: Sequence[Window], tokens: int) -> list[int]:
    """Positions of windows, evenly over all of them, that score about so many tokens together; at least one."""
    mean = sum(window.scored for window in windows) / len(windows)
    wanted = min(len(windows), max(1, int(tokens / mean)))
    return sorted({int(i) for i in np.linspace(0, len(windows) - 1, wanted).round()})
