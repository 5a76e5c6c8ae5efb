"""The tokenizer of a model's folder, as answers and tasks need it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.errors import ModelError
from lowbit.llm.families import end_tokens
from lowbit.llm.tokens import open_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Text:
    """A tokenizer, and the tokens that begin and end texts. Fulfils `Codec`.

    Attributes:
        path: The folder.
        bos: Token that starts a text; None where there is none.
        eos: Tokens that end one.
    """

    path: Path
    bos: int | None
    eos: tuple[int, ...]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return open_tokenizer(self.path)

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts `bos` before a text by itself."""
        tokens = self._tokenizer.encode("a", add_special_tokens=True).ids
        return self.bos is not None and tokens[:1] == [self.bos]

    @property
    def start(self) -> int | None:
        """What a prompt begins with: `bos` where the tokenizer adds it."""
        return self.bos if self.adds_bos else None

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


def open_text(folder: Path) -> Text:
    """The tokenizer of a Hugging Face folder.

    Args:
        folder: With tokenizer.json and config.json.

    Raises:
        ModelError: one of them is missing or damaged.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        generation = folder / "generation_config.json"
        ends = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id") if generation.is_file() else None
    except (OSError, ValueError) as error:
        raise ModelError(f"'{folder}' has no readable config.json: {error}.", "Give the folder that the model came from.") from error
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"'{folder}' has no tokenizer.json.", "Give the folder that the model came from.")
    bos = config.get("bos_token_id")
    return Text(folder, bos if isinstance(bos, int) else None, end_tokens(ends) or end_tokens(config.get("eos_token_id")))
