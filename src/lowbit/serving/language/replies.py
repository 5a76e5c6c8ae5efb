"""OpenAI's documents: answers, pieces of streams, models and errors. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowbit.serving.language.asking import BadField
from lowbit.serving.language.measures import Finish
from lowbit.serving.language.speaking import Piece, Spelled
from lowbit.serving.protocol.refusals import NotServed, Refusal, TooLate, Unauthorized, Unavailable

DONE = b"data: [DONE]\n\n"
UNTOLD = -9999.0
"""OpenAI's number where there is none; JSON has no word for what is no number."""


@dataclass(frozen=True)
class Reply:
    """What all documents of one answer have in common.

    Attributes:
        id: Of the answer.
        chat: Whether it is a chat's.
        model: As the client named it.
        created: Seconds since 1970.
        fingerprint: Version and variant that answered.
    """

    id: str
    chat: bool
    model: str
    created: int
    fingerprint: str

    def whole(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int]) -> dict[str, Any]:
        """The answer to a request that is no stream."""
        return {**self._head(""), "choices": list(choices), "usage": dict(usage)}

    def chunk(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int] | None, *, counted: bool) -> bytes:
        """One event of a stream; `counted`: streams with usage have the field in every event."""
        document = {**self._head(".chunk"), "choices": list(choices)}
        if counted:
            document["usage"] = None if usage is None else dict(usage)
        return event(document)

    def _head(self, kind: str) -> dict[str, Any]:
        thing = f"chat.completion{kind}" if self.chat else "text_completion"
        return {"id": self.id, "object": thing, "created": self.created, "model": self.model, "system_fingerprint": self.fingerprint}

    def choice(self, index: int, text: str, tokens: Sequence[Spelled] | None, finish: Finish | None) -> dict[str, Any]:
        """A whole answer; `tokens` is None where nobody asked for probabilities."""
        told = None if tokens is None else (_chat_logprobs(tokens) if self.chat else _logprobs(tokens))
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        return {"index": index, **said, "logprobs": told, "finish_reason": finish}

    def begun(self, index: int) -> dict[str, Any]:
        """The first event of a chat's answer."""
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def delta(self, piece: Piece, *, logprobs: bool) -> dict[str, Any]:
        """More of an answer."""
        told = None if not logprobs or not piece.tokens else _chat_logprobs(piece.tokens) if self.chat else _logprobs(piece.tokens)
        said: dict[str, Any] = {"text": piece.text}
        if self.chat:
            said = {"delta": {"content": piece.text} if piece.text or piece.finish is None else {}}
        return {"index": piece.index, **said, "logprobs": told, "finish_reason": piece.finish}


def usage_of(prompt: int, answer: int) -> dict[str, int]:
    """Tokens, counted."""
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def event(document: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


def error(refusal: Refusal) -> dict[str, Any]:
    """A refusal in OpenAI's shape."""
    kind, code = "server_error", refusal.outcome
    param: str | None = None
    if isinstance(refusal, BadField):
        kind, param, code = "invalid_request_error", refusal.param, refusal.reason or ""
    elif isinstance(refusal, Unauthorized):
        kind, code = "invalid_request_error", "invalid_api_key"
    elif isinstance(refusal, NotServed):
        kind, param, code = "invalid_request_error", "model", "model_not_found"
    elif isinstance(refusal, TooLate):
        kind, code = "timeout_error", "timeout"
    elif isinstance(refusal, Unavailable):
        kind, code = ("rate_limit_error", "rate_limit_exceeded") if refusal.status == 429 else ("server_error", "unavailable")
    elif refusal.status < 500:
        kind, code = "invalid_request_error", ""
    return {"error": {"message": refusal.message, "type": kind, "param": param, "code": code or None}}


def model(name: str, created: int, owner: str = "lowbit") -> dict[str, Any]:
    """One entry of the list of models."""
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


def _logprobs(tokens: Sequence[Spelled]) -> dict[str, Any]:
    return {
        "tokens": [each.text for each in tokens],
        "token_logprobs": [None if each.logprob is None or not math.isfinite(each.logprob) else each.logprob for each in tokens],
        "top_logprobs": None,
        "text_offset": [each.start for each in tokens],
    }


def _chat_logprobs(tokens: Sequence[Spelled]) -> dict[str, Any]:
    content = [
        {
            "token": each.text,
            "logprob": UNTOLD if each.logprob is None or math.isnan(each.logprob) else max(each.logprob, UNTOLD),
            "bytes": list(each.text.encode()) if "\ufffd" not in each.text else None,
            "top_logprobs": [],
        }
        for each in tokens
    ]
    return {"content": content, "refusal": None}
