"""Any LanguageSession as a model of lm-evaluation-harness: log-likelihoods of continuations, of whole texts, and greedy answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lowbit.llm.engines.base import LanguageSession
from lowbit.llm.evaluate.generate import Codec, at, generate
from lowbit.llm.evaluate.perplexity import token_nll
from lowbit.types import Array

ANSWER_TOKENS = 256
"""Of an answer, where the task does not say."""


def harness_model(
    session: LanguageSession, codec: Codec, *, bos: int | None = None, eos: Sequence[int] = (), adds_bos: bool = False
) -> Any:
    """A model that the harness can evaluate.

    Args:
        session: Whose answers count.
        codec: Its tokenizer.
        bos: Token that starts a text; None where there is none.
        eos: Tokens that end one.
        adds_bos: Whether the model's tokenizer puts `bos` before a text by itself, as the harness would have it do.

    Returns:
        A `lm_eval.api.model.TemplateLM`.
    """
    from lm_eval.api.model import TemplateLM

    class Model(SessionModel, TemplateLM):  # type: ignore[misc]  # the library has no types
        """The harness's own way to cut pairs and empty contexts, with our way to score tokens."""

    return Model(session, codec, bos, tuple(eos), adds_bos)


class SessionModel:
    """What `TemplateLM` leaves open."""

    def __init__(self, session: LanguageSession, codec: Codec, bos: int | None, eos: tuple[int, ...], adds_bos: bool) -> None:
        super().__init__()
        self._session, self._codec, self._bos, self._eos, self._adds_bos = session, codec, bos, eos, adds_bos
        self._last: tuple[tuple[int, ...], Array] | None = None

    @property
    def eot_token_id(self) -> int:
        return self._eos[0] if self._eos else self.prefix_token_id

    @property
    def prefix_token_id(self) -> int:
        """Stands before a text of which every token is to be scored."""
        return next((token for token in (self._bos, *self._eos) if token is not None), 0)

    @property
    def tokenizer_name(self) -> str:
        return "lowbit"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        tokens = self._codec.encode(string)
        if not self._adds_bos or self._bos is None or add_special_tokens is False or tokens[:1] == [self._bos]:
            return tokens
        return [self._bos, *tokens]

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[tuple[float, bool]]:
        return [self._continuation(context, continuation) for _, context, continuation in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        found = []
        for (text,) in (request.args for request in requests):
            pieces = get_rolling_token_windows(
                token_list=self._codec.encode(text), prefix_token=self.prefix_token_id, max_seq_len=self._session.context, context_len=1
            )
            found.append(sum(self._continuation(*make_disjoint_window(each))[0] for each in pieces))
        return found

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        return [self._answer(*request.args) for request in requests]

    def _answer(self, context: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        tokens = min(int(options.get("max_gen_toks", ANSWER_TOKENS)), self._session.context - 1)
        stop = [until] if isinstance(until, str) else list(until)
        prompt = self.tok_encode(context) or [self.prefix_token_id]
        return generate(self._session, self._codec, prompt, tokens=tokens, eos=self._eos, ended=at(stop))

    def _continuation(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Log-likelihood of a continuation, and whether it is the greedy one. A context that is too long loses its oldest tokens."""
        if not continuation:
            return 0.0, True
        tokens = (context + continuation)[-(self._session.context + 1) :]
        targets = np.array(continuation[-(len(tokens) - 1) :])
        logits = self._logits(tuple(tokens[:-1]))[-len(targets) :]
        return -float(token_nll(logits, targets).sum()), bool((logits.argmax(axis=1) == targets).all())

    def _logits(self, tokens: tuple[int, ...]) -> Array:
        """Kept for the next request: choices of one token are read off the same logits."""
        if self._last is None or self._last[0] != tokens:
            self._last = tokens, self._session.logits(tokens)
        return self._last[1]
