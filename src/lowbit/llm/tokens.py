"""Texts into tokens: documents to judge by, and windows to calibrate with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.errors import DataError, ModelError, UsageError
from lowbit.llm.decoder import Weights
from lowbit.types import Array

if TYPE_CHECKING:
    import tokenizers

FIELD = "text"
"""Of a line of .jsonl, unless another is named."""

RUN = 32
"""Tokens in a row that are the same by more than chance."""

SHARED_LIMIT = 0.01
"""Share of calibration that may also be in the text that judges: licences and headings recur, whole passages do not."""


@dataclass(frozen=True)
class TextTokens:
    """Texts as tokens.

    Attributes:
        documents: Name and tokens int32 [T] of each; none is empty.
    """

    documents: tuple[tuple[str, Array], ...]

    @property
    def tokens(self) -> int:
        """Of all documents together."""
        return sum(len(tokens) for _, tokens in self.documents)

    @cached_property
    def sha256(self) -> str:
        """Of the tokens, document by document; names do not count."""
        digest = hashlib.sha256()
        for _, tokens in self.documents:
            digest.update(len(tokens).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(tokens, "<i4").tobytes())
        return digest.hexdigest()

    def windows(self, count: int, length: int) -> Array:
        """Windows for calibration, spread evenly over all the text, none over the border of two documents.

        Args:
            count: How many; fewer where the text has not so many that do not overlap.
            length: Tokens of each.

        Returns:
            int32 [N, T]; the same text always gives the same.

        Raises:
            UsageError: less than one window, or than two tokens.
            DataError: every document is shorter than a window.
        """
        if count < 1 or length < 2:
            raise UsageError(f"Calibration takes 1 window or more of 2 tokens or more; found {count} of {length}.")
        places = [(index, start) for index, (_, t) in enumerate(self.documents) for start in range(0, len(t) - length + 1, length)]
        if not places:
            longest = max(len(tokens) for _, tokens in self.documents)
            raise DataError(
                f"The longest of {len(self.documents)} texts has {longest:,} tokens, and a window {length:,}.",
                "Give longer texts, or a shorter window.",
            )
        chosen = np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int))
        return np.stack([self.documents[d][1][s : s + length] for d, s in (places[i] for i in chosen)]).astype(np.int32)


class Tokenizer:
    """A model's own tokenizer.

    Attributes:
        bos: Token that starts a text; None where there is none.
        eos: Tokens that end one.
    """

    def __init__(self, inner: tokenizers.Tokenizer, weights: Weights) -> None:
        self._inner = inner
        self.bos, self.eos = weights.decoder.bos, weights.decoder.eos

    @classmethod
    def open(cls, weights: Weights) -> Tokenizer:
        """Reads tokenizer.json of a model's folder.

        Raises:
            UsageError: the tokenizers library is not installed.
            ModelError: the file is missing or damaged, or has tokens that the model has no embedding for.
        """
        inner = open_tokenizer(weights.path)
        largest = max(inner.get_vocab(with_added_tokens=True).values(), default=-1)
        if largest >= weights.decoder.vocabulary:
            raise ModelError(
                f"The tokenizer has tokens up to {largest:,}; the model's vocabulary is {weights.decoder.vocabulary:,}.",
                "The tokenizer belongs to another model: take both from one place.",
            )
        return cls(inner, weights)

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Tokens of a text; special tokens only where the text itself spells them, and `bos` before it where asked for."""
        ids = self._inner.encode(text, add_special_tokens=False).ids
        return [self.bos, *ids] if bos and self.bos is not None else list(ids)

    def decode(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text of tokens, with special ones spelled where asked for."""
        return str(self._inner.decode([int(each) for each in tokens], skip_special_tokens=not special))

    def token(self, text: str) -> int | None:
        """The token of exactly that text, e.g. "<|im_end|>"; None where there is none."""
        found: int | None = self._inner.token_to_id(text)
        return found

    @property
    def size(self) -> int:
        """Tokens it knows; a model may have more, which nothing spells."""
        return int(self._inner.get_vocab_size(with_added_tokens=True))


def open_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """A folder's tokenizer.json, as texts need it: it cuts nothing off and fills nothing up.

    Raises:
        UsageError: the tokenizers library is not installed.
        ModelError: the file is missing or damaged.
    """
    try:
        from tokenizers import Tokenizer as Inner
    except ImportError as error:
        raise UsageError("Language models need the tokenizers library.", "pip install 'lowbit[language]'") from error
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"'{folder}' has no tokenizer (tokenizer.json).")
    try:
        found = Inner.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"'{path}' cannot be read: {error}.", "Copy it again from where the model comes from.") from error
    found.no_truncation()
    found.no_padding()
    return found


def read_texts(weights: Weights, data: str | Path | Sequence[str], *, field: str | None = None, bos: bool = False) -> TextTokens:
    """Texts of any kind as a model's tokens.

    Args:
        weights: Whose tokenizer.
        data: A .txt file (a document), a folder of such, a .jsonl file (a document a line), or the texts themselves.
        field: Of a .jsonl line that has the text; None: "text", or the only one that is text.
        bos: Each document starts with the model's first token. Published perplexities are without.

    Returns:
        Documents in the order of names or lines; those without any text are left out.

    Raises:
        DataError: the file is missing, no UTF-8, of another kind, or there is no text in it.
        ModelError: the tokenizer cannot be used.
    """
    tokenizer = Tokenizer.open(weights)
    documents, count = [], 0
    for name, text in _texts(data, field):
        count += 1
        if text.strip():
            documents.append((name, np.asarray(tokenizer.encode(text, bos=bos), np.int32)))
    if not documents:
        where = "The list" if not isinstance(data, (str, Path)) else f"'{data}'"
        raise DataError(f"{where} has no text: {count} documents, all empty.", "Give plain text that is like what the model will read.")
    return TextTokens(tuple(documents))


def _texts(data: str | Path | Sequence[str], field: str | None) -> Iterable[tuple[str, str]]:
    if not isinstance(data, (str, Path)):
        if wrong := [each for each in data if not isinstance(each, str)]:
            raise DataError(f"Texts are strings; found {type(wrong[0]).__name__}.")
        return ((f"text {number}", text) for number, text in enumerate(data, 1))
    path = Path(data)
    if path.is_dir():
        if not (files := sorted(path.glob("*.txt"))):
            raise DataError(f"'{path}' has no .txt file.", "Give a .txt or .jsonl file, or a folder of .txt files.")
        return ((file.name, _read(file)) for file in files)
    if not path.is_file():
        raise DataError(f"'{path}' is not there.", "Give a .txt or .jsonl file, or a folder of .txt files.")
    if path.suffix in (".jsonl", ".ndjson"):
        return _lines(path, field)
    if path.suffix != ".txt":
        raise DataError(f"'{path.name}' is no text that is known; allowed: .txt, .jsonl, and folders of .txt.")
    return [(path.name, _read(path))]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8: byte {error.start:,} cannot be read.", "Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}.") from error


def _lines(path: Path, field: str | None) -> Iterable[tuple[str, str]]:
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"'{path.name}', line {number} is not JSON: {error}.") from error
        yield f"{path.name}:{number}", _field(row, field, f"'{path.name}', line {number}")


def _field(row: Any, field: str | None, where: str) -> str:
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise DataError(f"{where} is neither an object nor a text.")
    texts = [key for key, value in row.items() if isinstance(value, str)]
    key = field or (FIELD if FIELD in texts else texts[0] if len(texts) == 1 else None)
    if key is None or key not in texts:
        wanted = f"no text '{field}'" if field else f"no text '{FIELD}'"
        raise DataError(f"{where} has {wanted}; its texts are: {', '.join(texts) or 'none'}.", "Say which one is the text.")
    return str(row[key])


def shared_share(calibration: Sequence[Array], judging: Sequence[Array]) -> float:
    """Share of calibration that is also in the text that judges: of its runs of tokens, those that occur there at any place.

    Args:
        calibration: Tokens int [T] of documents or windows.
        judging: The same.
    """
    runs = [hashed[::RUN] for tokens in calibration if len(hashed := _run_hashes(tokens))]
    there = [hashed for tokens in judging if len(hashed := _run_hashes(tokens))]
    if not runs or not there:
        whole = {np.asarray(tokens).astype("<i4").tobytes() for tokens in judging}
        return float(np.mean([np.asarray(tokens).astype("<i4").tobytes() in whole for tokens in calibration])) if len(calibration) else 0.0
    return float(np.isin(np.concatenate(runs), np.concatenate(there)).mean())


def _run_hashes(tokens: Array) -> Array:
    """A number for each run of RUN tokens, uint64 [T - RUN + 1]: a polynomial in an odd base, modulo 2^64 (Karp and Rabin 1987)."""
    ids = np.asarray(tokens).astype(np.uint64) + np.uint64(1)
    count = max(0, len(ids) - RUN + 1)
    total = np.zeros(count, np.uint64)
    for offset in range(RUN):
        total = total * np.uint64(0x9E3779B97F4A7C15) + ids[offset : offset + count]
    return total


def refuse_overlap(calibration: Sequence[Array], judging: Sequence[Array]) -> None:
    """Refuses text that is calibrated with and also judges.

    Raises:
        DataError: more of it than headings and licences that recur.
    """
    share = shared_share(calibration, judging)
    if share > SHARED_LIMIT:
        raise DataError(
            f"{share:.0%} of the calibration text is also in the text that judges. "
            "What is fitted to the text that judges it looks better than it is.",
            "Leave the calibration text out: then a part of the data is set aside for it.",
        )
