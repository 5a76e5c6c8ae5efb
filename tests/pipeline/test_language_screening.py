"""Tunings are raced by successive halving: luck in two rounds decides nothing, and little is spent on what is slow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowbit.llm.candidate import EngineCandidate
from lowbit.llm.engines.base import EngineTuning
from lowbit.llm.workload.rank import cost_of
from lowbit.llm.workload.speed import Round, Speed, summed_up
from lowbit.llm.workload.tune import fastest, name
from lowbit.llm.workload.workload import Workload
from lowbit.pipeline.language import screening
from lowbit.pipeline.language.screening import AGAIN, FIRST, clearly_faster, decided, halved, leading, merged

WORK = Workload.parse("prompt=20,output=6")
TUNINGS = tuple(EngineTuning(threads=threads) for threads in range(1, 9))
DEFAULT, FAST = TUNINGS[0], TUNINGS[4]
CORES = 2


def turn(seconds: float) -> Round:
    return Round(seconds / 2, 40 / seconds, seconds / 2, seconds, 1 / seconds, 6 / seconds, seconds)


def speed(tuning: EngineTuning, *seconds: float) -> Speed:
    return summed_up(name(tuning), [turn(each) for each in seconds], WORK, cores=CORES)


class Machine:
    """Tunings that take what they take, times what the machine does to each round (5 % for all, 5 % for each, now and then a third)."""

    def __init__(self, seconds: Mapping[EngineTuning, float], seed: int, noise: float = 0.05) -> None:
        self.seconds, self.draw, self.noise = seconds, np.random.default_rng(seed), noise
        self.turns = dict.fromkeys(seconds, 0)

    def __call__(self, chosen: Sequence[EngineTuning], rounds: int, told: Any = None) -> dict[str, Speed]:
        found: dict[EngineTuning, list[float]] = {each: [] for each in chosen}
        for done in range(rounds):
            shared = math.exp(self.draw.normal(0, 0.05))
            for each in chosen:
                spike = 1.3 if self.draw.random() < 0.05 else 1.0
                found[each].append(self.seconds[each] * shared * spike * math.exp(self.draw.normal(0, self.noise)))
                self.turns[each] += 1
            if told is not None:
                told(done + 1, rounds)
        return {name(each): speed(each, *values) for each, values in found.items()}


def chosen(seconds: Mapping[EngineTuning, float], searches: int) -> tuple[list[EngineTuning], list[EngineTuning]]:
    """What is taken, search by search; and what two rounds alone would take."""
    ours, before = [], []
    for seed in range(searches):
        ours.append(halved(Machine(seconds, seed), TUNINGS, WORK, objective="latency", cores=CORES).best)
        two = Machine(seconds, seed)(TUNINGS, 2)
        before.append(fastest([(each, two[name(each)]) for each in TUNINGS], "latency", DEFAULT))
    return ours, before


def test_a_lucky_tuning_rarely_wins() -> None:
    slower = {each: 1.0 if each == DEFAULT else 1.03 for each in TUNINGS}
    ours, before = chosen(slower, 60)
    assert sum(each != DEFAULT for each in ours) <= 12
    assert sum(each != DEFAULT for each in before) >= 15, "two rounds are luck"


def test_a_faster_one_is_found() -> None:
    ours, _ = chosen({each: 0.9 if each == FAST else 1.0 for each in TUNINGS}, 60)
    assert sum(each == FAST for each in ours) >= 40
    ours, _ = chosen({each: 0.7 if each == FAST else 1.0 for each in TUNINGS}, 30)
    assert sum(each == FAST for each in ours) >= 29


def test_what_is_slow_runs_twice_and_what_leads_five_times() -> None:
    machine = Machine({each: 1.0 + 0.5 * (each not in (DEFAULT, FAST)) for each in TUNINGS}, 0)
    found = halved(machine, TUNINGS, WORK, objective="latency", cores=CORES)
    assert FIRST + AGAIN == 5
    assert machine.turns[DEFAULT] == machine.turns[FAST] == 5
    assert sorted(machine.turns.values()) == [2] * 5 + [5] * 3, "the best third of eight, the default among them"
    assert [len(each.rounds) for _, each in found.speeds] == [machine.turns[each] for each, _ in found.speeds]
    assert [each for each, _ in found.speeds] == list(TUNINGS)


def test_who_runs_on() -> None:
    few = EngineTuning(kv="int8")
    speeds = [(DEFAULT, speed(DEFAULT, 9, 9)), *((each, speed(each, index, index)) for index, each in enumerate(TUNINGS[1:], 3))]
    assert leading(speeds, "latency", DEFAULT) == TUNINGS[:4], "three of eight, and the default that they are compared with"
    assert leading([*speeds[:2], (few, speed(few, 1, 1))], "latency", DEFAULT) == (*TUNINGS[:2], few)
    lossy = [(DEFAULT, speed(DEFAULT, 9, 9)), *((EngineTuning(kv=kv), speed(EngineTuning(kv=kv), 1, 1)) for kv in ("int8", "int4"))]
    assert len(leading(lossy, "latency", DEFAULT)) == 3  # the default is the best of those that leave the numbers as they are
    failed = [(DEFAULT, speed(DEFAULT, 1, 1)), *((each, Speed(name(each), error="killed")) for each in TUNINGS[1:])]
    assert leading(failed, "latency", DEFAULT) == ()
    best = halved(lambda *_: {name(each): told for each, told in failed}, TUNINGS, WORK, objective="latency", cores=CORES)
    assert (best.best, best.best_exact) == (DEFAULT, DEFAULT)


def test_the_median_over_all_rounds_decides() -> None:
    first = {name(DEFAULT): speed(DEFAULT, 1.0, 1.0), name(FAST): speed(FAST, 0.5, 0.5)}
    again = {name(DEFAULT): speed(DEFAULT, 1.0, 1.0, 1.0), name(FAST): speed(FAST, 1.1, 1.2, 1.3)}
    told = iter((first, again))
    found = halved(lambda *_: next(told), (DEFAULT, FAST), WORK, objective="latency", cores=CORES)
    assert found.best == DEFAULT
    assert fastest([(DEFAULT, first[name(DEFAULT)]), (FAST, first[name(FAST)])], "latency", DEFAULT) == FAST


def test_clearly_faster_is_more_than_a_tie_in_most_rounds() -> None:
    standard = speed(DEFAULT, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert clearly_faster(speed(FAST, 0.9, 0.9, 0.9, 0.9, 1.5), standard, "latency")
    assert not clearly_faster(speed(FAST, 0.9, 0.9, 0.9, 1.5, 1.5), standard, "latency")
    assert not clearly_faster(speed(FAST, *[0.98] * 5), standard, "latency")
    assert clearly_faster(speed(FAST, *[0.9] * 5), standard, "throughput")


def test_rounds_of_both_are_one_measurement() -> None:
    one, two = speed(FAST, 1.0, 5.0), speed(FAST, 2.0, 3.0, 4.0)
    found = merged(one, two, WORK, cores=CORES)
    whole = speed(FAST, 1.0, 5.0, 2.0, 3.0, 4.0)
    assert (found.total_s, found.rounds, found.decode_tokens_per_s) == (whole.total_s, whole.rounds, whole.decode_tokens_per_s)
    assert cost_of(found, "latency") == 3.0
    killed = Speed(one.id, error="killed")
    assert merged(one, killed, WORK, cores=CORES).error == "killed"
    assert merged(killed, two, WORK, cores=CORES).error == "killed"


def test_one_that_fails_later_is_not_taken() -> None:
    first = {name(each): speed(each, each.threads, each.threads) for each in reversed(TUNINGS)}
    again = {name(each): Speed(name(each), error="killed") for each in TUNINGS}
    again[name(TUNINGS[1])] = speed(TUNINGS[1], 2, 2, 2)
    told = iter((first, again))
    found = halved(lambda *_: next(told), TUNINGS, WORK, objective="latency", cores=CORES)
    assert found.best == TUNINGS[1]
    assert decided([], (), "latency", DEFAULT).best == DEFAULT


def test_progress_counts_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, seen = Machine(dict.fromkeys(TUNINGS, 1.0), 0), list[tuple[int, int]]()
    asked = list[tuple[str, ...]]()

    def measure(runs: Sequence[EngineCandidate], _: Workload, *, rounds: int, progress: Any) -> dict[str, Speed]:
        asked.append(tuple(each.id for each in runs))
        assert all(each.artifact == Path("model.gguf") for each in runs)
        return machine([each.tuning for each in runs], rounds, progress)

    monkeypatch.setattr(screening, "measure", measure)
    own = EngineCandidate("x", "llamacpp", Path("model.gguf"))
    screening.screened(own, TUNINGS, WORK, objective="latency", cores=CORES, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert len(asked[0]) == 8
    assert len(asked[1]) <= 4
