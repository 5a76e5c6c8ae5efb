"""Language models from a registry: a healthy candidate is promoted, a broken one is rolled back, and nobody loses an answer by it."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_case import need
from fleet_case import GUARDED, Case, opened
from language_case import SIZE, Client, language_bundle, running_language, table
from serving_case import Clients, Running, until

from lowbit.measure.compare import BINS
from lowbit.rollout.evidence import latency_bin
from lowbit.serving.answer.answered import Answered
from lowbit.serving.answer.certainty import ClassReader
from lowbit.serving.fleet.counting import NOT_A_NUMBER, StepCount
from lowbit.serving.fleet.trial import Trial
from lowbit.serving.language.desk import Crowded
from lowbit.serving.language.measures import OUTCOME, Spoken, outputs_of
from lowbit.serving.language.sides import Sided
from lowbit.serving.protocol.refusals import Malformed, NotServed, Refusal, TooLate

BROKEN = np.full((SIZE, SIZE), np.nan, np.float32)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    need("tokenizers", "jinja2")
    root = tmp_path_factory.mktemp("language-fleet")
    yield from opened(root / "registry", language_bundle(root / "first" / "tiny", note="first"))


@pytest.fixture(scope="module")
def server(case: Case) -> Iterator[Running]:
    with running_language("tiny@champion", options=("--registry", case.folder, "--variants", "chosen")) as made:
        yield made


@dataclass
class Talking(Clients):
    """Clients of many users; every answer must come, whole or in pieces."""

    port: int
    number: int = 3

    def __post_init__(self) -> None:
        super().__init__(self.number)

    def ask(self, number: int) -> None:
        connection, count = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30), number
        while not self.stopped.is_set():
            count += self.number
            body = {"prompt": "The house", "max_tokens": 6, "user": f"{count}", "stream": count % 2 == 0, "ignore_eos": True}
            try:
                connection.request("POST", "/v1/completions", json.dumps(body))
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException):
                self.seen["lost"] += 1
                connection.close()
                continue
            whole = answer.status == 200 and (not body["stream"] or text.endswith(b"data: [DONE]\n\n"))
            self.seen[answer.headers["x-lowbit-version"] if whole else f"{answer.status} {text[-200:]!r}"] += 1
            time.sleep(0.002)


def test_a_healthy_candidate_is_promoted(server: Running, case: Case, tmp_path: Path) -> None:
    champion = case.registry.resolve("tiny@champion")
    other = case.push(language_bundle(tmp_path / "tiny", note="as good"))
    rollout = case.start(other, **GUARDED)
    with Talking(server.port) as clients:
        ended = case.ended(rollout)
        until(lambda: Client(server).post("/v1/completions", prompt="x", max_tokens=1).headers["x-lowbit-version"] == str(other.number), 10)
    assert ended.state == "promoted", ended.why
    assert set(clients.seen) == {str(champion.number), str(other.number)}
    arms = case.rollouts.evidence(rollout.id, 0)
    assert arms.canary.requests >= 50
    assert sum(arms.canary.seconds) == arms.canary.requests
    assert sum(arms.canary.confidence) == arms.canary.requests, "each answer has a confidence"
    assert case.rollouts.replay(rollout.id) == []


def test_a_candidate_without_numbers_goes_and_nobody_notices(server: Running, case: Case, tmp_path: Path) -> None:
    champion = case.registry.resolve("tiny@champion")
    values = table(1)
    values[:, :] = np.where(np.arange(SIZE)[:, None] % 2, values, np.nan)  # half of all tokens break it; the first ones do not
    values[5] = table(1)[5]
    bad = case.push(language_bundle(tmp_path / "tiny", chosen=values, note="broken"))
    rollout = case.start(bad, **GUARDED)
    with Talking(server.port) as clients:
        ended = case.ended(rollout)
    assert ended.state == "rolled_back", ended.why
    assert case.registry.resolve("tiny@champion") == champion
    lost = {name: count for name, count in clients.seen.items() if not name.isdigit()}
    assert not any(name.startswith(("5", "lost")) for name in lost), lost
    assert sum(lost.values()) < clients.seen[str(champion.number)] / 10, "streams that had begun may end with an error, until it goes"


def test_a_candidate_that_cannot_be_loaded_goes(server: Running, case: Case, tmp_path: Path) -> None:
    champion = case.registry.resolve("tiny@champion")
    bad = case.push(language_bundle(tmp_path / "tiny", chosen=BROKEN, note="nothing but NaN"))
    rollout = case.start(bad, **GUARDED)
    with Talking(server.port) as clients:
        ended = case.ended(rollout)
    assert ended.state == "rolled_back", ended.why
    assert set(clients.seen) == {str(champion.number)}


# ── what is counted ─────────────────────────────────────────────────────────────────────────────────────────────────


def sided(canary: bool = True) -> tuple[Sided, StepCount, Any]:
    champion, candidate = object(), object()
    counts = StepCount("r", 0)
    counts.baseline.reader = counts.canary.reader = ClassReader(OUTCOME, True)
    trial = Trial(champion, candidate, 0.5, counts)  # type: ignore[arg-type]
    return Sided(trial, candidate if canary else champion), counts, champion  # type: ignore[arg-type]


def spoken(tokens: int = 10, logprob: float | None = -0.5, refused: bool = False) -> Spoken:
    return Spoken(5, tokens, "stop", logprob, refused, 0.1)


def answered(*answers: Spoken, ran_s: float = 1.0) -> Answered:
    return Answered(outputs_of(answers), None, batch=len(answers), ran_s=ran_s)  # type: ignore[arg-type]


def test_times_and_costs_count_per_token() -> None:
    side, counts, _ = sided()
    answers = (spoken(20, -0.5),)
    side.answered(answered(*answers, ran_s=2.0), answers, 4.0)
    arm = counts.canary.arm()
    assert (arm.requests, arm.errors, arm.busy_n, arm.busy_s) == (1, 0, 1, pytest.approx(0.1))
    assert arm.seconds[latency_bin(0.2)] == 1
    assert arm.confidence[int(np.exp(-0.5) * BINS)] == 1
    assert counts.baseline.arm().requests == 0


def test_several_answers_have_several_confidences() -> None:
    side, counts, _ = sided(canary=False)
    answers = (spoken(20, -0.5), spoken(5, -2.0))
    side.answered(answered(*answers), answers, 4.0)
    arm = counts.baseline.arm()
    assert (arm.requests, sum(arm.confidence), arm.seconds[latency_bin(0.2)]) == (1, 2, 1)


def test_no_number_ends_it_at_once() -> None:
    side, counts, _ = sided()
    answers = (spoken(5, float("nan")),)
    side.answered(answered(*answers), answers, 1.0)
    assert counts.taken().hard == (NOT_A_NUMBER,)


def test_whose_fault_it_is() -> None:
    side, counts, champion = sided()
    assert not side.covers(Malformed("A prompt is a text."))
    assert side.covers(NotServed("no such variant"))
    assert counts.canary.arm().errors == 0
    assert side.covers(TooLate("late"))
    assert side.covers(Crowded("full"))
    assert counts.canary.arm().errors == 2
    assert side.turn() is champion
    side.blames(Refusal("the champion's"))
    side.answered(answered(spoken()), (spoken(),), 1.0)
    side.left((), 1.0)
    assert counts.baseline.arm().requests == 0, "an answer in the candidate's place says nothing of the champion"
    side, counts, _ = sided(canary=False)
    side.blames(Malformed("x"))
    side.blames(Refusal("x"))
    assert (counts.baseline.arm().requests, counts.baseline.arm().errors) == (1, 1)


def test_who_left() -> None:
    side, counts, _ = sided()
    side.left((), 3.0)
    side.left((spoken(10),), 3.0)
    arm = counts.canary.arm()
    assert (arm.requests, arm.seconds[latency_bin(3.0)], arm.seconds[latency_bin(0.3)]) == (2, 1, 1)
