"""The text of a search: read, cut in windows, and dealt to what calibrates, what the search may look at and what only confirms."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit.errors import DataError, UsageError
from lowbit.llm.evaluate.windows import Documents, Window, Windows, cut
from lowbit.types import Array

if TYPE_CHECKING:
    from lowbit.llm.folder import SourceFolder
    from lowbit.llm.tokens import TextTokens

LONGEST_WINDOW = 1024
FEWEST_WINDOWS = 40
"""Fewer windows than this have no interval worth the name: shorter ones are taken."""
CALIBRATION_WINDOWS = 128


@dataclass(frozen=True)
class DealtText:
    """The text of a search, in parts that share no window.

    Attributes:
        windows: How perplexity is counted; none overlaps another.
        calibration: Tokens [N, T].
        how: How the calibration windows were found.
        search: Windows that the search may look at, each a document of its own.
        confirm: The same, unseen by the search.
    """

    windows: Windows
    calibration: Array
    how: str
    search: Documents
    confirm: Documents


def read_text(source: SourceFolder, data: str | Path, *, calibration: str | Path | None, window: int | None, most_tokens: int) -> DealtText:
    """Reads the text and deals it.

    Args:
        source: Whose tokens, and how many at once.
        data: What judges.
        calibration: Text to calibrate on; None: a part of the data is set aside.
        window: Tokens of a window; None: see `window_size`.
        most_tokens: That judge.

    Raises:
        UsageError: the window does not fit the model. DataError: the text cannot be read, or is too short to judge by.
    """
    from lowbit.llm.tokens import read_texts

    texts = read_texts(source, data)
    size = window_size(source.decoder.positions, [len(tokens) for _, tokens in texts.documents], window)
    most = most_tokens // size
    dealt = _set_aside(texts, size, most) if calibration is None else _apart(texts, read_texts(source, calibration), size, most)
    if not dealt.search or not dealt.confirm:
        raise DataError(
            f"The text has fewer than two windows of {size} tokens: one half is searched on, the other confirms.",
            "Give more text, or a smaller --window.",
        )
    return dealt


def _apart(texts: TextTokens, given: TextTokens, size: int, most: int) -> DealtText:
    """Calibration on text of its own; all of the data judges.

    Raises:
        DataError: a part of the one text is in the other.
    """
    from lowbit.llm.tokens import refuse_overlap

    refuse_overlap([tokens for _, tokens in given.documents], [tokens for _, tokens in texts.documents])
    _, search, confirm = deal(texts.documents, size, calibrate=0, most=most)
    how = f"windows of {size} tokens, spread over the text that was given"
    return DealtText(Windows(size), given.windows(CALIBRATION_WINDOWS, size), how, search, confirm)


def _set_aside(texts: TextTokens, size: int, most: int) -> DealtText:
    """Calibration on a part of the data, which then does not judge.

    Raises:
        DataError: the text is shorter than a window.
    """
    share = max(1, min(CALIBRATION_WINDOWS, len(cut(texts.documents, Windows(size))) // 5))
    aside, search, confirm = deal(texts.documents, size, calibrate=share, most=most)
    whole = [tokens for _, tokens in aside if len(tokens) == size]
    if not whole:
        raise DataError(f"The text is shorter than a window of {size} tokens.", "Give more text, or a smaller --window.")
    how = f"the {len(whole)} windows of {size} tokens with the lowest content hashes"
    return DealtText(Windows(size), np.stack(whole).astype(np.int32), how, search, confirm)


def window_size(positions: int, lengths: Sequence[int], asked: int | None) -> int:
    """Tokens of a window: what was asked for, else the longest power of two that the model takes and that leaves enough windows.

    Raises:
        UsageError: more than the model takes.
    """
    if asked is not None:
        if not 2 <= asked <= positions:
            raise UsageError(f"A window of {asked} tokens does not fit: the model takes 2 to {positions:,}.", "Give another --window.")
        return asked
    size = 1 << (min(positions, LONGEST_WINDOW).bit_length() - 1)
    while size > 64 and sum(length // size for length in lengths) < FEWEST_WINDOWS:
        size //= 2
    return size


def deal(documents: Documents, size: int, *, calibrate: int, most: int) -> tuple[Documents, Documents, Documents]:
    """The text in three parts that share no window: what calibrates, what the search may look at, and what only confirms.

    Windows are dealt by the hash of their tokens, so that the same text is always dealt the same way, and a window that
    occurs twice lies on one side.

    Args:
        documents: Names and tokens.
        size: Tokens of a window.
        calibrate: Windows to calibrate on; 0 where that text is given by itself.
        most: Windows that judge, at most.
    """
    pieces = cut(documents, Windows(size))
    keyed = sorted(((_key(documents, piece), piece) for piece in pieces), key=lambda pair: pair[0])
    first, rest = _split(keyed, calibrate)
    rest = rest[: max(2, most)]
    second, third = _split(rest, len(rest) // 2)
    named = (sorted((piece for _, piece in part), key=lambda p: (p.document, p.begin)) for part in (first, second, third))
    calibration, search, confirm = ([(f"{documents[p.document][0]}:{p.begin}", _tokens(documents, p)) for p in part] for part in named)
    return calibration, search, confirm


Keyed = list[tuple[str, Window]]


def _split(keyed: Keyed, count: int) -> tuple[Keyed, Keyed]:
    """The first so many, and the rest; equal keys stay together."""
    if not 0 < count < len(keyed):
        return keyed[:count], keyed[count:]
    edge = keyed[count][0]
    return [pair for pair in keyed if pair[0] < edge], [pair for pair in keyed if pair[0] >= edge]


def _key(documents: Documents, piece: Window) -> str:
    return hashlib.sha256(_tokens(documents, piece).astype("<i4").tobytes()).hexdigest()


def _tokens(documents: Documents, piece: Window) -> Array:
    return documents[piece.document][1][piece.begin : piece.end]


def fingerprint(documents: Documents) -> str:
    """Of names and tokens."""
    digest = hashlib.sha256()
    for name, tokens in documents:
        digest.update(f"{name}\x1f{len(tokens)}\x1f".encode())
        digest.update(tokens.astype("<i4").tobytes())
    return digest.hexdigest()
