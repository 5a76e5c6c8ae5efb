"""From tokens to the text that may be sent: no broken characters, nothing of a stop string. Pure.

A token is not a piece of text: a character may lie over several, and what a token looks like may depend on the one before. So text is
worked out from a window of tokens, and only what the next token cannot change is given away. Then stop strings are looked for: what may
yet become one is held back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"
"""What a decoder gives for bytes that are no character, or none yet."""
LONGEST = 64
"""Tokens that are looked at again with the next one. A character has four bytes: what is none by then, or no text, stays so. (A model may
say end tokens or broken characters for as long as it may speak, and each costs a look at all of these.)"""

Decode = Callable[[Sequence[int]], str]
"""Text of some tokens, without special ones."""


class Detokenizer:
    """Text of one answer, piece by piece: the pieces together are what decoding all tokens at once gives.

    (Where a tokenizer falls back to bytes and the answer ends within a character, the whole may show that character differently; so may
    a character that ends behind `LONGEST` tokens of which none was one.)
    """

    def __init__(self, decode: Decode) -> None:
        """Of no token yet."""
        self._decode = decode
        self._context: list[int] = []  # tokens whose text has gone out, for how the next ones look
        self._window: list[int] = []  # these, and those whose text has not gone out whole
        self._context_text = ""
        self._sent = ""  # of the window's text

    def push(self, token: int) -> str:
        """What is certain now and was not before; "" where nothing is."""
        self._window.append(token)
        text = self._decode(self._window)
        settled = text.rstrip(BROKEN)
        if settled != text and len(self._window) - len(self._context) < LONGEST:
            if not settled.startswith(self._sent):
                return ""
            piece, self._sent = settled[len(self._sent) :], settled
            return piece
        piece = self._rest(text)
        self._sent = text
        self._advance()
        return piece

    def flush(self) -> str:
        """The rest; with a broken character where the model ended within one."""
        return self._rest(self._decode(self._window))

    def _rest(self, text: str) -> str:
        """What of the window's text has not gone out."""
        if text.startswith(self._sent):
            return text[len(self._sent) :]
        # Bytes that looked like characters turn out to be none together with those behind them: what went out stays as it was.
        fresh, mine = self._decode(self._window[len(self._context) :]), self._sent[len(self._context_text) :]
        return fresh.removeprefix(mine)

    def _advance(self) -> None:
        """Begins a new window behind what has gone out, with what came last as its context."""
        fresh = self._window[len(self._context) :]
        text = self._decode(fresh)
        if text and (len(fresh) >= LONGEST or not text.endswith(BROKEN)):
            self._context, self._window = fresh, list(fresh)
            self._context_text = self._sent = text
        elif len(fresh) >= LONGEST:  # special tokens: nothing looks different behind them
            self._window, self._sent = list(self._context), self._context_text


class Stops:
    """Looks for stop strings in a text that comes in pieces. How it is cut into pieces makes no difference.

    Attributes:
        met: The one that was found; None as long as none was.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Of these, none of them empty."""
        self._stops = tuple(stops)
        self._held = ""
        self.met: str | None = None

    def push(self, text: str) -> str:
        """What may be sent now. Once a stop string was met, nothing."""
        if self.met is not None:
            return ""
        if not self._stops:
            return text
        held = self._held + text
        found = [(place + len(stop), place, stop) for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:  # the one that was complete first
            _, place, self.met = min(found)
            self._held = ""
            return held[:place]
        keep = max(_overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What was held back, because nothing more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that a stop string begins with; less than all of it."""
    longest = min(len(stop) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


class Writer:
    """One answer as it is written.

    Attributes:
        text: What was given out so far.
        tokens: How many were pushed.
        certain: Characters that are certain, whether or not they were given out.
        given: Characters that were given out.
    """

    def __init__(self, decode: Decode, stops: Sequence[str] = ()) -> None:
        """Nothing yet."""
        self._detokenizer, self._stops = Detokenizer(decode), Stops(stops)
        self._parts: list[str] = []
        self.tokens = self.certain = self.given = 0

    @property
    def text(self) -> str:
        """All that was given out."""
        return "".join(self._parts)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met: nothing more is wanted."""
        return self._stops.met is not None

    def push(self, token: int) -> str:
        """What may be sent behind one more token."""
        self.tokens += 1
        return self._given(self._detokenizer.push(token))

    def flush(self) -> str:
        """What is left where nothing more comes."""
        if self.stopped:
            return ""
        piece = self._given(self._detokenizer.flush())
        return piece if self.stopped else piece + self._kept(self._stops.flush())

    def _given(self, certain: str) -> str:
        self.certain += len(certain)
        return self._kept(self._stops.push(certain))

    def _kept(self, piece: str) -> str:
        if piece:
            self._parts.append(piece)
            self.given += len(piece)
        return piece
