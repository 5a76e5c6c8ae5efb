"""A rollout waits while a person is asked about one of its versions, and goes on once there is an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fleet_case import BY, Case, opened
from serving_case import tiny_bundle

from lowbit.monitoring.reviews import Review
from lowbit.monitoring.tally import Key
from lowbit.rollout.desired import desired
from lowbit.serving.fleet import holding as room
from lowbit.serving.fleet.holding import Holding


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    yield from opened(tmp_path / "registry", tiny_bundle(tmp_path / "first" / "tiny"))


@dataclass
class Followed:
    """What a follower knows of a model."""

    want: Any


def review(name: str, version: int, policy: str = "hold") -> Review:
    return Review(name, 0.0, Key("served", str(version), "int8"), "confidence", {}, policy=policy)  # type: ignore[arg-type]


def test_a_rollout_waits_for_the_answer_and_for_nothing_else(case: Case, tmp_path: Path) -> None:
    candidate = case.push(tiny_bundle(tmp_path / "new" / "tiny", note="new"))
    rollout = case.start(candidate)
    want = desired(case.registry, case.rollouts, "tiny")
    reviews: list[Review] = []
    holding = Holding(case.rollouts, {"served": Followed(want)}, lambda: reviews)  # type: ignore[dict-item]

    def state() -> str:
        holding.beat()
        return case.rollouts.get(rollout.id).state

    assert state() == "running"
    reviews[:] = [
        review("a", 99),
        review("b", candidate.number, policy="tell"),
        replace(review("c", candidate.number), key=Key("x", "1", "v")),
    ]
    assert state() == "running"  # another version's, one that holds nothing, another model's
    reviews.append(review("d", candidate.number))
    assert state() == "paused"
    assert "confidence (d)" in case.rollouts.get(rollout.id).why
    reviews.append(review("e", want.champion.number))
    assert state() == "paused"
    del reviews[-2:]
    assert state() == "running"
    reviews.append(review("f", want.champion.number))
    assert state() == "paused"
    case.rollouts.resume(rollout.id, by=BY)
    assert state() == "running"  # that person knew
    case.rollouts.pause(rollout.id, by=BY)
    reviews.clear()
    assert state() == "paused"  # a person's pause ends when a person says so
    case.rollouts.abort(rollout.id, by=BY)
    reviews.append(review("g", candidate.number))
    assert state() == "aborted"


def test_a_server_that_has_not_read_the_review_yet_lets_nothing_go_on(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = case.start(case.push(tiny_bundle(tmp_path / "new" / "tiny", note="new")))
    want = desired(case.registry, case.rollouts, "tiny")
    mine, others = [review("a", want.champion.number)], list[Review]()
    knows, late = (Holding(case.rollouts, {"served": Followed(want)}, reviews) for reviews in (lambda: mine, lambda: others))  # type: ignore[dict-item]
    for each in (knows, late, knows, late):
        each.beat()
        assert case.rollouts.get(rollout.id).state == "paused"
    others[:] = mine
    late.beat()
    others.clear()
    late.beat()  # it has seen that there was one, and that there is none any more
    assert case.rollouts.get(rollout.id).state == "running"

    mine.append(review("b", want.champion.number))
    knows.beat()
    late.beat()
    assert case.rollouts.get(rollout.id).state == "paused"
    monkeypatch.setattr(room, "READ_S", 0.0)  # the one that knew has ended, and the review was answered meanwhile
    late.beat()
    assert case.rollouts.get(rollout.id).state == "running"
