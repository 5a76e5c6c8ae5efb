"""Load for language models: streams of random tokens, with the time to the first token and between tokens of each."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from lowbit.serving.load.http_client import Connection, Failed, Unsent, request
from lowbit.types import Array

PATH = "/v1/completions"
LOW, HIGH = 32, 256
"""Tokens of prompts: every vocabulary has them, and no two prompts begin alike, so that no cache of prefixes helps."""
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Heard:
    """One stream that ended well.

    Attributes:
        start: When it was asked for, on the performance counter.
        first: When its first event came.
        last: And the last one: tokens, usage and end come together there.
        prompt: Tokens of the prompt, as the server counts them.
        answer: Tokens of the answer.
    """

    start: float
    first: float
    last: float
    prompt: int
    answer: int

    @property
    def first_s(self) -> float:
        """To the first token."""
        return self.first - self.start

    @property
    def token_s(self) -> float:
        """Mean time of a token behind the first one; NaN where there is none."""
        return (self.last - self.first) / (self.answer - 1) if self.answer > 1 else math.nan


class Listening(Connection):
    """A connection that knows when pieces came."""

    def _begin(self) -> None:
        super()._begin()
        self.came: list[float] = []

    def on_body(self, body: bytes) -> None:
        self.came.append(time.perf_counter())
        super().on_body(body)


class LanguageTarget:
    """Sends completions of so many tokens as streams, each on a connection of its own.

    Attributes:
        heard: Streams that ended well, since `taken` was called last.
    """

    def __init__(self, url: str, model: str, prompt: int, answer: int, headers: Mapping[str, str], seed: int = 0) -> None:
        """Asks a model.

        Args:
            url: Of the server.
            model: Its name.
            prompt: Tokens of each prompt.
            answer: Of each answer; end tokens are passed over.
            headers: E.g. a key.
            seed: Of the prompts.
        """
        parts = urlsplit(url)
        self._secure, self._host, self._name = parts.scheme == "https", parts.hostname or "", parts.netloc
        self._port = parts.port or (443 if self._secure else 80)
        self._model, self._prompt, self._answer, self._seed = model, prompt, answer, seed
        self._headers = {"Content-Type": "application/json", "Connection": "close", **headers}
        self.heard: list[Heard] = []

    async def __call__(self, number: int) -> int:
        """Sends one; gives its status, and 0 for a stream that broke."""
        tokens = np.random.default_rng((self._seed, number)).integers(LOW, HIGH, self._prompt)
        document: dict[str, Any] = {
            "model": self._model,
            "prompt": tokens.tolist(),
            "max_tokens": self._answer,
            "temperature": 1.0,
            "seed": number,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        whole = request("POST", PATH, self._name, self._headers, json.dumps(document).encode())
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self._one(whole)
        except (Failed, TimeoutError):
            return 0

    async def _one(self, whole: bytes) -> int:
        start = time.perf_counter()
        try:
            _, made = await asyncio.get_running_loop().create_connection(Listening, self._host, self._port, ssl=self._secure or None)
        except OSError:
            raise Unsent("no connection") from None
        try:
            found = await made.ask(whole)
        finally:
            made.close()
        if found.status != 200:
            return found.status
        events = [line for line in found.body.split(b"\n") if line.startswith(b"data: ")]
        if len(events) < 3 or events[-1] != b"data: [DONE]":
            return 0
        usage = json.loads(events[-2][6:])["usage"]
        self.heard.append(Heard(start, made.came[0], made.came[-1], usage["prompt_tokens"], usage["completion_tokens"]))
        return 200

    def taken(self) -> list[Heard]:
        """What was heard since the last time."""
        found, self.heard = self.heard, []
        return found

    async def close(self) -> None:
        """Nothing stays open."""


def told(heard: list[Heard]) -> dict[str, float | None]:
    """Numbers of one step, of the streams that ended well; tokens a second from the first request to the last token."""
    seconds = max((each.last for each in heard), default=1.0) - min((each.start for each in heard), default=0.0)
    first, gaps = _sorted([each.first_s for each in heard]), _sorted([each.token_s for each in heard])
    found: dict[str, float | None] = {}
    for name, values in (("first_token", first), ("token", gaps)):
        for share in (50, 95, 99):
            place = max(0, math.ceil(share / 100 * len(values)) - 1)
            found[f"{name}_p{share}_ms"] = round(1000 * float(values[place]), 3) if len(values) else None
    found["answer_tokens_per_s"] = round(sum(each.answer for each in heard) / seconds, 2)
    found["prompt_tokens_per_s"] = round(sum(each.prompt for each in heard) / seconds, 2)
    return found


def sentence(numbers: Mapping[str, float | None]) -> str:
    """The same for people."""
    if numbers["first_token_p50_ms"] is None:
        return "no stream ended well"
    parts = [f"first token p50 {numbers['first_token_p50_ms']:,.0f} ms, p95 {numbers['first_token_p95_ms']:,.0f} ms"]
    if numbers["token_p50_ms"] is not None:
        parts.append(f"then {numbers['token_p50_ms']:,.1f} ms a token (p95 {numbers['token_p95_ms']:,.1f})")
    return f"{'; '.join(parts)}; {numbers['answer_tokens_per_s']:,.1f} tokens/s of answers"


def _sorted(values: list[float]) -> Array:
    found = np.sort(np.array(values, np.float64))
    return found[~np.isnan(found)]
