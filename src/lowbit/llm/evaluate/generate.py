"""Greedy answers from a session, for questions and tasks: the likeliest token each time, until a stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from lowbit.errors import DataError
from lowbit.llm.engines.base import LanguageSession

Ended = Callable[[str], str | None]
"""The text so far -> the answer, None where it goes on."""


class Codec(Protocol):
    """Text to tokens and back."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, special ones only where the text spells them out."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        ...


def generate(
    session: LanguageSession, codec: Codec, prompt: Sequence[int], *, tokens: int, eos: Sequence[int] = (), ended: Ended | None = None
) -> str:
    """The greedy continuation, up to its end.

    Args:
        session: Whose.
        codec: The model's tokenizer.
        prompt: Tokens; the oldest are left out where prompt and answer exceed the context.
        tokens: Most that the answer may have.
        eos: Tokens that end it.
        ended: Looks at the text so far; the answer where it is at its end, None where more is wanted.

    Raises:
        DataError: the prompt is empty, or the context has no room for the answer.
        RunError: as the session does.
    """
    room = session.context - tokens
    if room < 1 or not len(prompt):
        what = (
            "A prompt has no token" if not len(prompt) else f"An answer of {tokens} tokens does not fit in a context of {session.context}"
        )
        raise DataError(f"{what}.", "Give a prompt, and ask for fewer tokens.")
    logits = session.start([int(token) for token in prompt[-room:]])
    answer: list[int] = []
    while True:
        token = int(logits.argmax())
        if token in eos:
            return codec.decode(answer)
        answer.append(token)
        text = codec.decode(answer)
        if ended is not None and (final := ended(text)) is not None:
            return final
        if len(answer) == tokens:
            return text
        logits = session.step(token)


def at(stops: Sequence[str]) -> Ended:
    """Ends an answer before the earliest of some texts."""

    def ended(text: str) -> str | None:
        found = [place for place in (text.find(each) for each in stops if each) if place >= 0]
        return text[: min(found)] if found else None

    return ended


def after_words(count: int) -> Ended:
    """Ends an answer after so many words, on whatever line; a word has ended where space follows it."""

    def ended(text: str) -> str | None:
        words = text.split()
        whole = len(words) > count or (len(words) == count and text[-1].isspace())
        return " ".join(words[:count]) if whole else None

    return ended
