"""A rollout's candidate that refuses what the champion takes: the champion answers, and it counts against the candidate."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgi_case import Answered, call
from decoder_case import need
from fleet_case import Case as Registered
from fleet_case import opened
from language_case import install, language_bundle

from lowbit.errors import UsageError
from lowbit.serving.answer.answered import Caller
from lowbit.serving.fleet.counting import StepCount
from lowbit.serving.fleet.trial import Trial
from lowbit.serving.language.openai_api import OpenAi
from lowbit.serving.protocol.refusals import Refusal
from lowbit.serving.run import deployment
from lowbit.serving.run.deployment import Deployment
from lowbit.serving.service import Service
from lowbit.serving.settings import Settings
from lowbit.serving.watch.observing import Observer
from lowbit.serving.web.rest import Rest

LONG = list(range(5, 105))
"""A prompt of 100 tokens."""


class Refusals(Observer):
    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def refused(self, deployment: Deployment | None, caller: Caller, refusal: Refusal, seconds: float) -> None:  # noqa: ARG002
        self.found.append((deployment.version if deployment else "", refusal.outcome))


class Case:
    """A champion (version 1) and a candidate (version 2) that answers everybody."""

    def __init__(self, champion: Path, candidate: Path) -> None:
        install()
        self.seen = Refusals()
        self.service = Service(Settings(), (self.seen,))
        both = [
            deployment.load(folder, name="tiny", version=number, digest=number * 64)
            for folder, number in ((champion, "1"), (candidate, "2"))
        ]
        self.counts = StepCount("tiny-1", 0)
        self.counts.baseline.reader, self.counts.canary.reader = both[0].reader, both[1].reader
        for each in both:
            self.service.answers.adopt(self.service.answers.studied(each))
        self.service.arrange(both[0], both[1:], Trial(both[0], both[1], 1.0, self.counts))
        self.app = OpenAi(self.service, Rest(self.service))

    async def post(self, path: str, **fields: Any) -> Answered:
        return await call(self.app, "POST", path, json.dumps(fields).encode())

    async def complete(self, prompt: Any, **fields: Any) -> Answered:
        return await self.post("/v1/completions", prompt=prompt, max_tokens=4, ignore_eos=True, **fields)

    @property
    def counted(self) -> dict[str, tuple[int, int]]:
        arms = {"champion": self.counts.baseline.arm(), "candidate": self.counts.canary.arm()}
        return {name: (arm.requests, arm.errors) for name, arm in arms.items()}


def at(champion: Path, candidate: Path, work: Callable[[Case], Awaitable[None]]) -> None:
    async def run() -> None:
        case = Case(champion, candidate)
        try:
            await asyncio.wait_for(work(case), 30)
        finally:
            case.service.close()

    need("tokenizers", "jinja2")
    asyncio.run(run())


def test_a_prompt_that_is_too_long_for_the_candidate_alone(tmp_path: Path) -> None:
    async def work(case: Case) -> None:
        short = await case.complete([5, 6, 7])
        assert (short.status, short.headers["x-lowbit-version"]) == (200, "2")
        for stream in (False, True):
            long = await case.complete(LONG, stream=stream)
            assert (long.status, long.headers["x-lowbit-version"]) == (200, "1")
        assert case.counted == {"champion": (0, 0), "candidate": (3, 2)}, "an answer in its place says nothing of the champion"
        assert case.seen.found == [("2", "malformed")] * 2
        assert not case.counts.stopped, "nothing crashed"

    at(language_bundle(tmp_path / "a" / "tiny", context=128), language_bundle(tmp_path / "b" / "tiny", context=64), work)


def test_a_chat_that_the_candidate_alone_has_no_template_for(tmp_path: Path) -> None:
    async def work(case: Case) -> None:
        found = await case.post("/v1/chat/completions", messages=[{"role": "user", "content": "The"}], max_tokens=3)
        assert (found.status, found.headers["x-lowbit-version"]) == (200, "1")
        assert case.counted["candidate"] == (1, 1)

    at(language_bundle(tmp_path / "a" / "tiny"), language_bundle(tmp_path / "b" / "tiny", chat=False), work)


def test_what_both_refuse_is_the_clients_error(tmp_path: Path) -> None:
    async def work(case: Case) -> None:
        strange = await case.complete([9999])
        assert strange.status == 400
        assert "not in the vocabulary" in strange.json["error"]["message"]
        longer = await case.complete(LONG * 2)
        assert (longer.status, longer.json["error"]["code"]) == (400, "context_length_exceeded")
        assert "128 tokens" in longer.json["error"]["message"], "the champion's limit: less than that would be answered"
        assert case.counted == {"champion": (0, 0), "candidate": (0, 0)}
        assert [outcome for _, outcome in case.seen.found] == ["malformed"] * 2, "each is told once"
        assert case.service.inside == 0

    at(language_bundle(tmp_path / "a" / "tiny", context=128), language_bundle(tmp_path / "b" / "tiny", context=64), work)


def test_many_of_them_are_errors_and_no_crash(tmp_path: Path) -> None:
    async def work(case: Case) -> None:
        for _ in range(30):
            assert (await case.complete(LONG)).status == 200
        assert case.counted["candidate"] == (30, 30)
        assert case.counts.taken().hard == ()

    at(language_bundle(tmp_path / "a" / "tiny", context=128), language_bundle(tmp_path / "b" / "tiny", context=64), work)


# ── plans ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[Registered]:
    need("tokenizers", "jinja2")
    yield from opened(tmp_path / "registry", language_bundle(tmp_path / "first" / "tiny", note="first"))


def test_mode_shadow_is_refused_for_a_language_model(registered: Registered, tmp_path: Path) -> None:
    other = registered.push(language_bundle(tmp_path / "other" / "tiny", note="other"))
    with pytest.raises(UsageError, match=r"tiny@\d is a language model.*mode shadow.*no evidence\. Allowed: canary and ab\.") as told:
        registered.start(other, mode="shadow", steps=[0.0])
    assert "--mode canary" in (told.value.hint or "")
    assert registered.rollouts.running("tiny") is None
    assert "challenger" not in registered.registry.aliases("tiny")
    assert registered.start(other, mode="ab", steps=["50%"]).plan.mode == "ab"
