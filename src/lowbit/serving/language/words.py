"""A bundle's tokenizer as serving needs it: texts and chats to tokens, tokens to text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.errors import ModelError, UsageError
from lowbit.llm.chat import ChatTemplate
from lowbit.serving.protocol.refusals import Malformed

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NO_TEMPLATE = "Model '{}' has no chat template: it continues texts, and was not made for chats. Use /v1/completions with a prompt."
MOST_RENDERED = 16 << 20
"""Characters that a template may make of a chat."""
COPY = "Copy the whole folder again."


@dataclass(frozen=True)
class Words:
    """Of one bundle; safe to use from several threads.

    Attributes:
        vocabulary: Tokens that it knows.
        eos: Those that end an answer.
        template: For chats; None where there is none.
        longest: Bytes of its longest token, at least.
    """

    vocabulary: int
    eos: tuple[int, ...]
    template: ChatTemplate | None
    longest: int
    _tokenizer: Tokenizer = field(repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path) -> Words:
        """Reads tokenizer.json, tokenizer_config.json, and what lies beside them: chat_template.jinja, generation_config.json, config.json.

        Raises:
            ModelError: the tokenizer is missing or damaged, or the template is no template.
            UsageError: the library for it is not installed.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise UsageError("Language models need the tokenizers library.", "pip install 'lowbit[language]'") from None
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ModelError("The bundle has no tokenizer.json.", COPY)
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain ones
            raise ModelError(f"tokenizer.json cannot be read: {error}", COPY) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        known = tokenizer.get_vocab(with_added_tokens=True)
        longest = max((len(piece.encode()) for piece in known), default=1)  # a byte-level piece has a letter a byte, of 1 or 2 bytes
        return cls(tokenizer.get_vocab_size(with_added_tokens=True), _ends(folder, tokenizer), _template(folder), longest, tokenizer)

    def encode(self, text: str) -> list[int]:
        """With the special tokens that the tokenizer puts around a text.

        Raises:
            Malformed: it is no text: half a surrogate pair.
        """
        return self._encoded(text, True)

    def chat(self, messages: Sequence[Mapping[str, Any]], name: str, most: int = MOST_RENDERED) -> list[int]:
        """A chat, up to where the answer begins.

        Args:
            messages: With "role" and "content".
            name: Of the model, for what is said.
            most: Characters that the template may make of it.

        Raises:
            Malformed: the model has no template, or its template does not take this chat.
        """
        if self.template is None:
            raise Malformed(NO_TEMPLATE.format(name))
        try:
            text = self.template.render(messages, tools=None, documents=None)
        except UsageError as error:
            raise Malformed(error.message[:500]) from None
        if len(text) > (most := min(most, MOST_RENDERED)):
            raise Malformed(f"The chat is {len(text):,} characters long; {most:,} are allowed.")
        return self._encoded(text, False)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text without special tokens."""
        found: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return found

    def shown(self, token: int) -> str:
        """One token as text, a special one by its name."""
        found: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return found

    def _encoded(self, text: str, special: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Malformed("The text holds half a surrogate pair, which is no character.") from None
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return ids


def _template(folder: Path) -> ChatTemplate | None:
    """Tried once, so that a broken one is said when the bundle is loaded."""
    found = ChatTemplate.open(folder)
    if found is not None:
        try:
            found.render([{"role": "user", "content": ""}], tools=None, documents=None)
        except UsageError:  # it takes other chats
            pass
        except ImportError:
            raise UsageError("The model's chat template needs the package Jinja2.", "pip install 'lowbit[language]'") from None
    return found


def _ends(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end an answer, from wherever they are named."""
    named = _read(folder / "tokenizer_config.json").get("eos_token")
    text = named.get("content") if isinstance(named, dict) else named
    own = tokenizer.token_to_id(text) if isinstance(text, str) else None
    found: list[int] = [] if own is None else [own]
    for name in ("generation_config.json", "config.json"):
        given = _read(folder / name).get("eos_token_id")
        found += [each for each in (given if isinstance(given, list) else [given]) if isinstance(each, int) and not isinstance(each, bool)]
    return tuple(dict.fromkeys(found))


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{file.name} cannot be read: {error}", COPY) from error
    return found if isinstance(found, dict) else {}
