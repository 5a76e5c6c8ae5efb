"""Text as a model takes it: which columns, the tokenizer, where it is cut and how far it is padded. In YAML:

    kind: text
    text:
      tokenizer: tokenizer.json   # a file beside this one, in the format of Hugging Face's `tokenizers` library
      sha256: 5d1c…               # of that file
      columns: [sentence]         # two of them form a pair; words: one column with a list of words
      form: sentence              # sentence, pair, both (each of two columns is a sample of its own), words or question
      max_length: 128             # tokens; what is longer is cut
      length: 64                  # every sample is padded to this many; auto: the smallest of 16, 32, 64, … that holds them all
      labels: [negative, positive]

The tokenizer itself runs without transformers, so that serving needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowbit.errors import DataError, ModelError, UsageError, unknown
from lowbit.types import Feeds, TensorInfo

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

FILE = "tokenizer.json"
FORMS = ("sentence", "pair", "both", "words", "question")
BUCKETS = (16, 32, 64, 128, 256, 512)
"""Sequence lengths for which a model is worth compiling and timing; beyond the last, multiples of it."""

FEEDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Model input -> what the tokenizer calls it."""

CHUNK = 1024


@dataclass(frozen=True)
class Words:
    """One raw sample: a sentence, a pair of them, or (`split`) a sentence that is cut into words already."""

    parts: tuple[str, ...]
    split: bool = False

    @property
    def content(self) -> bytes:
        """What makes two samples the same."""
        return "\0".join((str(int(self.split)), *self.parts)).encode()


@dataclass(frozen=True)
class Text:
    """See the module's text for the YAML.

    Attributes:
        tokenizer: The content of tokenizer.json.
        columns: Of the data; empty: the usual names.
        form: One of FORMS.
        max_length: Tokens a sample has at most, with the special ones.
        length: Tokens that every sample is padded to.
        pad_id: Token that fills up.
        pad_token: The same as text.
        pad_left: Whether padding comes first.
        labels: Class names by number; empty where the model does not say.
    """

    tokenizer: str = field(repr=False)
    columns: tuple[str, ...] = ()
    form: str = "sentence"
    max_length: int = 512
    length: int | Literal["auto"] = "auto"
    pad_id: int = 0
    pad_token: str = "[PAD]"
    pad_left: bool = False
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise unknown("form of text", self.form, FORMS)
        if self.max_length < 2 or (isinstance(self.length, int) and not 2 <= self.length <= self.max_length):
            raise UsageError(
                f"Text of {self.length} tokens, at most {self.max_length}, is not understood.", "Give 2 <= length <= max_length."
            )

    @property
    def sha256(self) -> str:
        """Digest of the tokenizer's file."""
        return sha256(self.tokenizer.encode()).hexdigest()

    def sample(self, raw: Any) -> Words:
        """A raw sample as `Words`: text, a pair of texts, a list of words, or a row by column.

        Raises:
            DataError: it is none, or lacks a column.
        """
        if isinstance(raw, Words):
            return raw
        if isinstance(raw, Mapping):
            wanted = self.columns or tuple(raw)
            if missing := [name for name in wanted if name not in raw]:
                raise DataError(f"The sample lacks {', '.join(missing)}. It has {', '.join(map(str, raw))}.")
            raw = [raw[name] for name in wanted]
            raw = raw[0] if len(raw) == 1 else raw
        parts = (raw,) if isinstance(raw, str) else tuple(raw) if isinstance(raw, Sequence) else ()
        if self.form == "words":
            parts = tuple(raw.split()) if isinstance(raw, str) else parts
        wants = {"sentence": 1, "both": 1, "pair": 2, "question": 2}.get(self.form)
        if not parts or not all(isinstance(part, str) for part in parts) or wants not in (None, len(parts)):
            what = {None: "a list of words", 1: "a text", 2: "a pair of texts"}[wants]
            raise DataError(f"A sample is {type(raw).__name__} {str(raw)[:60]!r}; this model takes {what}.")
        return Words(parts, self.form == "words")

    def encode(self, samples: Sequence[Words]) -> list[Encoding]:
        """What the tokenizer makes of samples: cut, and padded once `length` is settled.

        Raises:
            DataError: what must not be cut is longer than what is allowed.
        """
        length = None if self.length == "auto" else self.length
        tokenizer = _tokenizer(self.tokenizer, length or self.max_length, length, self.pad_id, self.pad_token, self.pad_left, self.form)
        found: list[Encoding] = []
        for start in range(0, len(samples), CHUNK):
            chunk = samples[start : start + CHUNK]
            inputs = [list(one.parts) if one.split else one.parts[0] if len(one.parts) == 1 else one.parts[:2] for one in chunk]
            try:
                found += tokenizer.encode_batch(inputs, is_pretokenized=bool(chunk[0].split))
            except Exception as error:  # the library raises Exception itself
                raise DataError(
                    f"A sample does not fit in {length or self.max_length} tokens: {error}",
                    "The question alone may be that long: shorten it, or allow more tokens.",
                ) from error
        return found

    def feeds(self, samples: Sequence[Any], inputs: Sequence[TensorInfo]) -> Feeds:
        """Raw samples as the model takes them.

        Args:
            samples: N texts, pairs, lists of words, rows by column, or `Words`.
            inputs: The model's.

        Returns:
            Input name -> integers [N, length].

        Raises:
            DataError: a sample is no text, or the model wants an input that no tokenizer gives.
        """
        if foreign := [info.name for info in inputs if info.name not in FEEDS]:
            raise DataError(f"The model wants {', '.join(foreign)}; a tokenizer gives {', '.join(FEEDS)}.", "Rename the model's inputs.")
        words = [self.sample(raw) for raw in samples]
        found = self.settle(words).encode(words)
        return {info.name: np.array([getattr(one, FEEDS[info.name]) for one in found], np.dtype(info.dtype)) for info in inputs}

    def settle(self, samples: Sequence[Words]) -> Text:
        """With `length` known: the smallest bucket that holds all of these samples."""
        if self.length != "auto":
            return self
        longest = max((len(one.ids) for one in self.encode(samples)), default=2)
        return replace(self, length=min(self.max_length, bucket(longest)))

    def plain(self) -> dict[str, Any]:
        """As YAML has it; the tokenizer is a file of its own."""
        out: dict[str, Any] = {"tokenizer": FILE, "sha256": self.sha256, "form": self.form, "max_length": self.max_length}
        out |= {"length": self.length, "pad_id": self.pad_id, "pad_token": self.pad_token}
        out |= {"pad_left": True} if self.pad_left else {}
        return out | {key: list(value) for key, value in (("columns", self.columns), ("labels", self.labels)) if value}


def bucket(length: int) -> int:
    """The smallest usual sequence length that holds this many tokens.

    >>> bucket(17), bucket(600)
    (32, 1024)
    """
    last = BUCKETS[-1]
    return next((size for size in BUCKETS if size >= length), -(-length // last) * last)


def read_tokenizer(folder: Path | None, name: str, digest: str | None) -> str:
    """The content of a tokenizer's file beside a preprocessing file.

    Raises:
        UsageError: the preprocessing is not read from a file, so there is no "beside", or a path instead of a name.
        ModelError: no such file, or another one than was written.
    """
    if folder is None:
        raise UsageError("Preprocessing of text is read from its file, beside which the tokenizer is.", "Use Preprocess.load(path).")
    if Path(name).name != name:
        raise UsageError(f"`tokenizer: {name}` in the preprocessing is not the name of a file beside it.")
    try:
        content = (folder / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"The tokenizer '{name}' cannot be read: {error}.", "Copy it beside the preprocessing.") from error
    if digest is not None and sha256(content.encode()).hexdigest() != digest:
        raise ModelError(
            f"'{name}' is another tokenizer than the one that was written: its digest differs.", "Copy the whole folder again."
        )
    return content


@lru_cache(maxsize=16)
def _tokenizer(content: str, longest: int, length: int | None, pad_id: int, pad_token: str, left: bool, form: str) -> Tokenizer:
    """A tokenizer set up once: setting it up is not safe while another thread uses it."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError("Text needs the library `tokenizers`.", "pip install 'lowbit[text]'") from error
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"The tokenizer is not in the format of tokenizer.json: {str(error)[:200]}") from error
    tokenizer.enable_truncation(longest, strategy="only_second" if form == "question" else "longest_first")
    if length is None:
        tokenizer.no_padding()
    else:
        tokenizer.enable_padding(direction="left" if left else "right", pad_id=pad_id, pad_token=pad_token, length=length)
    return tokenizer
