"""Answers scored once more by the 16-bit model: the same text, both perplexities, and nobody waits for it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asgi_case import call, served
from decoder_case import need
from language_case import BASELINE, CHOSEN, BigramSession, install, language_bundle, table

from lowbit.serving.language import rescoring
from lowbit.serving.language.openai_api import OpenAi
from lowbit.serving.language.rescoring import ROOM, Rescorer, Scored, score
from lowbit.serving.language.settings import LanguageSettings
from lowbit.serving.watch.metrics import Metrics
from lowbit.serving.watch.observing import Observer
from lowbit.serving.web.rest import Rest


def by_hand(prompt: list[int], answer: list[int]) -> Scored:
    values, nats, agreed = table(2).astype(np.float64), 0.0, 0
    for last, token in zip([prompt[-1], *answer], answer, strict=False):
        row = values[last]
        nats -= row[token] - np.log(np.exp(row - row.max()).sum()) - row.max()
        agreed += int(row.argmax()) == token
    return Scored(len(answer), float(nats), agreed)


@pytest.mark.parametrize("at_once", [64 << 20, 0])
def test_the_scores_are_those_of_the_text(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescoring, "AT_ONCE_BYTES", at_once)
    prompt, answer = [5, 9, 20], [7, 30, int(table(2)[30].argmax()), 3]
    found, wanted = score(BigramSession(table(2), 64), prompt, answer), by_hand(prompt, answer)
    assert (found.tokens, found.agreed) == (4, wanted.agreed)
    assert wanted.agreed >= 1
    assert found.nats == pytest.approx(wanted.nats, rel=1e-5)


def test_it_waits_for_its_moment_and_drops_what_finds_no_room() -> None:
    async def run() -> None:
        waiting, opened, told = [True], [], []

        def opens() -> Any:
            opened.append(BigramSession(table(2), 64))
            return opened[-1]

        found = Rescorer(1.0, opens, lambda: (waiting[0], False))
        for _ in range(ROOM + 4):
            found.offer([5], [6, 7], told.append)
        found.offer([5], [], told.append)
        await asyncio.sleep(0.1)
        assert (told, opened) == ([], []), "somebody waits"
        waiting[0] = False
        await asyncio.wait_for(found.idle(), 10)
        assert len(told) + found.dropped == ROOM + 4
        assert len(told) >= ROOM
        assert len(opened) == 1
        found.close()
        found.offer([5], [6], told.append)
        await asyncio.sleep(0.05)
        assert opened[0].closed

    asyncio.run(run())


def test_a_model_that_cannot_be_opened_costs_no_answer() -> None:
    async def run() -> None:
        def opens() -> Any:
            raise ValueError("gone")

        found = Rescorer(1.0, opens, lambda: (False, False))
        found.offer([5], [6], lambda _: None)
        await asyncio.wait_for(found.idle(), 10)
        assert found.failed == 1
        found.close()

    asyncio.run(run())


class Seen(Observer):
    def __init__(self) -> None:
        self.found: list[tuple[str, int, float, float]] = []

    def rescored(self, deployment: Any, variant: str, tokens: int, own: float, full: float) -> None:  # noqa: ARG002
        self.found.append((variant, tokens, own, full))


def test_a_servers_answers_are_scored(tmp_path: Path) -> None:
    need("tokenizers", "jinja2")
    install()
    folder = language_bundle(tmp_path / "tiny")

    async def run() -> tuple[Seen, str, Any]:
        seen, metrics = Seen(), Metrics()
        with served(folder, language=LanguageSettings(shadow=1.0)) as service:
            service.observers = (seen, metrics, metrics.spoken)
            app = OpenAi(service, Rest(service))
            fields = {"prompt": [5, 9], "max_tokens": 6, "temperature": 0, "ignore_eos": True, "logprobs": 0}
            answer = (await call(app, "POST", "/v1/completions", json.dumps(fields).encode())).json
            await call(app, "POST", "/v1/completions", json.dumps({**fields, "variant": "full"}).encode())
            speech: Any = service.models["tiny"].language
            await asyncio.wait_for(speech.rescorer.idle(), 10)
            return seen, metrics.text().decode(), answer

    seen, text, answer = asyncio.run(run())
    tokens, last = [], 9
    for _ in range(6):
        last = int(table(1)[last].argmax())
        tokens.append(last)
    ((variant, count, own, full),) = seen.found
    assert (variant, count) == (CHOSEN, 6), f"{BASELINE} need not be compared with itself"
    assert own == pytest.approx(-sum(answer["choices"][0]["logprobs"]["token_logprobs"]), rel=1e-5)
    assert full == pytest.approx(by_hand([5, 9], tokens).nats, rel=1e-5)
    assert full > own, "what the one says is likelier under the one"
    assert f'lowbit_shadow_tokens_total{{model="tiny",variant="{CHOSEN}"' in text


def test_without_the_option_nothing_is_opened(tmp_path: Path) -> None:
    need("tokenizers", "jinja2")
    install()
    with served(language_bundle(tmp_path / "tiny")) as service:
        speech: Any = service.models["tiny"].language
        assert speech.rescorer is None
