"""Candidates timed in processes of their own, with engines whose times are known because they sleep."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from bigram_engine import BigramBatch, table, write

from lowbit.errors import UsageError
from lowbit.llm.candidate import EngineCandidate
from lowbit.llm.engines.base import EngineTuning
from lowbit.llm.workload.measure import artifact_bytes, measure
from lowbit.llm.workload.rank import rank
from lowbit.llm.workload.stages import plan
from lowbit.llm.workload.tune import tune
from lowbit.llm.workload.worker import Clock, Several, Watch
from lowbit.llm.workload.workload import Shape, Workload

TABLE = table(20)


@pytest.fixture(autouse=True)
def find_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def test_a_reader_and_a_writer_are_told_apart(tmp_path: Path) -> None:
    reader = write(tmp_path / "reader.json", TABLE, start_s=0.0001, step_s=0.02)
    writer = write(tmp_path / "writer.json", TABLE, start_s=0.002, step_s=0.002)
    broken = EngineCandidate("broken", reader.engine, tmp_path / "none.json")
    crashing = write(tmp_path / "crashing.json", TABLE, fail="crash in start")
    seen: list[tuple[int, int]] = []
    found = measure(
        [reader, broken, writer, crashing],
        Workload.parse("prompt=100,output=12"),
        rounds=3,
        price_per_hour=1.0,
        progress=lambda done, of: seen.append((done, of)),
    )
    assert list(found) == ["reader", "broken", "writer", "crashing"]
    assert found["broken"].error == "none.json is missing."
    assert "SIGSEGV" in str(found["crashing"].error)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for id_, start, step in (("reader", 0.01, 0.02), ("writer", 0.2, 0.002)):
        speed = found[id_]
        assert speed.usable
        assert len(speed.rounds) == 3
        assert not speed.sampled
        assert all(each.ttft_s >= start and each.decode_s >= 11 * step for each in speed.rounds)  # a sleep is never shorter
        assert all(each.total_s == pytest.approx(each.ttft_s + each.decode_s) for each in speed.rounds)
        assert (speed.peak_memory_bytes or 0) > (speed.peak_anonymous_bytes or 0) > 1e6
        json.dumps(asdict(speed), allow_nan=False)
    assert rank(found, "ttft")[0].id == "reader"
    assert rank(found, "latency")[1].id != rank(found, "ttft")[1].id


def test_long_answers_are_sampled_and_their_whole_time_is_told(tmp_path: Path) -> None:
    candidate = write(tmp_path / "a.json", TABLE, step_s=0.002)
    found = measure([candidate], Workload.parse("prompt=10,output=1002"), rounds=1, steps=5)["a"]
    assert found.sampled
    assert found.rounds[0].decode_s >= 1001 * 0.002
    assert found.total_s is not None
    assert found.total_s.value >= 2.0


def test_several_requests_at_once_share_the_machine(tmp_path: Path) -> None:
    candidate = write(tmp_path / "a.json", TABLE, start_s=0.0002, step_s=0.005)
    found = measure([candidate], Workload.parse("prompt=100,output=10,concurrency=3"), rounds=1)["a"]
    assert found.error is None
    (only,) = found.rounds
    # Three prompts of 20 ms; two steps pass while they are read, seven more after (the first request has 3 tokens by then).
    assert only.total_s >= 0.06 + 9 * 0.005
    assert only.requests_per_s == pytest.approx(3 / only.total_s)
    assert 0.02 <= only.ttft_s <= only.total_s


def test_a_wave_counts_every_token_once() -> None:
    batch = BigramBatch({"probabilities": TABLE.tolist()}, 64, 3)
    found = Several(batch, 3, Clock(None)).run(plan(Shape(5, 10)), np.random.default_rng(0))
    assert found["emitted"] + found["near_emitted"] == 30
    assert found["emitted"] == 3 + 2 + 1
    assert found["ahead"] == 3


def test_a_hang_ends_one_candidate_and_not_the_others(tmp_path: Path) -> None:
    good = write(tmp_path / "good.json", TABLE)
    found = measure(
        [write(tmp_path / "bad.json", TABLE, fail="hang in start"), good], Workload.parse("prompt=5,output=3"), rounds=1, load_timeout_s=4
    )
    assert "did not answer within 4 s" in str(found["bad"].error)
    assert found["good"].usable


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    candidate = write(tmp_path / "a.json", TABLE)
    with pytest.raises(UsageError, match="the same id"):
        measure([candidate, candidate], Workload.parse("prompt=5,output=3"))


def test_no_round_begins_after_the_deadline(tmp_path: Path) -> None:
    found = measure([write(tmp_path / "a.json", TABLE)], Workload.parse("prompt=5,output=3"), deadline=0.0)
    assert found["a"].error == "There was no time for a round."


def test_tunings_are_screened(tmp_path: Path) -> None:
    default, fast, exact = EngineTuning(), EngineTuning(kv="int8"), EngineTuning(threads=2)
    factors = {"kv_factor": {"int8": 0.1}, "threads_factor": {"2": 0.4}}
    candidate = write(tmp_path / "a.json", TABLE, start_s=0.001, step_s=0.02, **factors)
    found = tune(candidate, [default, fast, exact, EngineTuning(threads=3)], Workload.parse("prompt=20,output=6"))
    assert found.best == fast
    assert found.best_exact == exact
    assert found.needs_evaluation
    assert [tuning for tuning, _ in found.speeds] == [default, fast, exact, EngineTuning(threads=3)]
    broken = tune(replace(candidate, artifact=tmp_path / "none.json"), [default, fast], Workload.parse("prompt=20,output=6"))
    assert broken.best == default
    assert not broken.needs_evaluation


def test_an_artifact_is_its_file_or_the_folder_it_is_the_name_of(tmp_path: Path) -> None:
    for name, size in (("openvino_model.xml", 10), ("openvino_model.bin", 1000), ("other.gguf", 500)):
        (tmp_path / name).write_bytes(bytes(size))
    assert artifact_bytes(tmp_path / "openvino_model.xml") == 1510
    assert artifact_bytes(tmp_path / "other.gguf") == 500
    assert artifact_bytes(tmp_path / "none.gguf") == 0


def test_a_peak_between_two_looks_is_the_most_that_was_seen() -> None:
    values = iter([5, 7, 3])
    with Watch(lambda: next(values, 3)) as watch:
        pass
    assert watch.most == 7
