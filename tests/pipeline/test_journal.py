"""The journal: nothing acknowledged is lost, nothing torn is believed, and it always decides the same."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.pipeline.journal import Journal, State, apply, decode, encode, read_state, replay
from lowbit.types import Budget, Candidate, Comparison, Delta, Latency, Measurement, MetricValue, Policy, Ratio, Tuning

POLICY = Policy(task="classification", metric="top1", max_drop=Budget(0.01, relative=False))


def comparison(drop: float, width: float, n: int = 2000) -> Comparison:
    delta = Delta(drop, drop - width, drop + width, 0.95, n, "tango-score", worse=10, better=4)
    return Comparison(MetricValue("top1", 0.9 - drop, n), MetricValue("top1", 0.9, n), delta, agreement=0.99)


def measured(batch: int, speedup: float) -> Measurement:
    ratio = Ratio(speedup, speedup * 0.97, speedup * 1.03)
    return Measurement(batch, 1, Latency(2 / speedup, 2.2, 2.4, 1.9, 2.1), 500.0, ratio, ratio, 15, False, Tuning())


def candidate(name: str, drop: float, speedup: float) -> Candidate:
    times = tuple(measured(batch, speedup) for batch in (1, 8))
    return Candidate(
        id=f"{name}@openvino",
        recipe=name,
        runtime="openvino",
        precision="int8",
        size_bytes=250,
        search=comparison(drop, 0.004),
        measurements=times,
        artifact=f"candidates/{name}/model.onnx",
    )


BASELINE = Candidate(
    id="fp32@onnxruntime",
    recipe="fp32",
    runtime="onnxruntime",
    precision="fp32",
    size_bytes=1000,
    search=comparison(0.0, 0.0),
    confirm=comparison(0.0, 0.0),
    measurements=tuple(measured(batch, 1.0) for batch in (1, 8)),
    artifact="baseline/model.onnx",
)


def whole_run(path: Path) -> Journal:
    """A run from start to finish, as its events."""
    journal = Journal(path)
    journal.append("start", key="k", policy=POLICY, source={"path": "m.onnx"})
    journal.append("baseline", candidate=BASELINE, advice=["Small."])
    for name, drop, speedup in (("a", 0.001, 3.0), ("b", 0.05, 4.0), ("c", 0.002, 2.0)):
        journal.append("candidate", candidate=candidate(name, drop, speedup))
    journal.append("tuned", id="a@openvino", tuning=Tuning(fixed_shape=True))
    journal.append("finalists", ids=["a@openvino", "c@openvino"])
    journal.append("confirmed", id="a@openvino", comparison=comparison(0.001, 0.004))
    journal.append("confirmed", id="c@openvino", comparison=comparison(0.002, 0.004))
    speedups = {"a@openvino": 3.1, "c@openvino": 2.1}
    results = [
        {
            "id": name,
            "measurements": [encode(measured(batch, value)) for batch in (1, 8)],
            "peak_memory_bytes": 1,
            "energy": None,
            "errors": [],
        }
        for name, value in speedups.items()
    ]
    journal.append("measured", raced=[{"id": name} for name in speedups], results=results)
    return journal


@pytest.mark.parametrize("value", [BASELINE, candidate("x", math.nan, 2.0), POLICY, replace(POLICY, max_drop=Budget(0.02, relative=True))])
def test_records_survive_the_journal(value: object) -> None:
    again = decode(type(value), json.loads(json.dumps(encode(value))))
    assert repr(again) == repr(value)  # repr, as NaN equals nothing


def test_the_state_is_what_the_events_say(tmp_path: Path) -> None:
    state = read_state(whole_run(tmp_path / "journal.jsonl"))
    assert list(state.candidates) == ["a@openvino", "b@openvino", "c@openvino"]
    assert state.policy == POLICY
    assert state.advice == ("Small.",)
    assert state.finalists == ("a@openvino", "c@openvino")
    assert state.candidates["a@openvino"].tuning == Tuning(fixed_shape=True)
    assert state.candidates["a@openvino"].confirm == comparison(0.001, 0.004)
    assert state.candidates["a@openvino"].measurements[0].speedup == Ratio(3.1, 3.1 * 0.97, 3.1 * 1.03)
    assert state.candidates["b@openvino"].confirm is None


def test_the_decision_follows_from_the_journal_alone(tmp_path: Path) -> None:
    decision = replay(whole_run(tmp_path / "journal.jsonl").path)
    assert (decision.verdict, decision.chosen) == ("ship", "a@openvino")
    assert {judgement.id: judgement.verdict for judgement in decision.judgements}["b@openvino"] == "refuse"


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 20_000), more=st.integers(0, 12))
def test_an_interrupted_journal_decides_like_a_whole_one(tmp_path_factory: pytest.TempPathFactory, cut: int, more: int) -> None:
    """Killed after `cut` bytes, resumed: what was finished is kept, the rest is run again, some of it twice."""
    folder = tmp_path_factory.mktemp("journal")
    whole = whole_run(folder / "whole.jsonl")
    events = list(whole.events())
    data = whole.path.read_bytes()
    resumed = Journal(folder / "resumed.jsonl")
    resumed.path.write_bytes(data[: cut % (len(data) + 1)])
    resumed.mend()
    kept = len(list(resumed.events()))
    assert list(resumed.events()) == events[:kept]
    if 0 < kept < len(events):
        resumed.append("interrupted")
    for event in events[max(0, min(kept, len(events) - more)) :] if kept else events:
        fields = {name: value for name, value in event.items() if name not in ("event", "at")}
        resumed.append(event["event"], **fields)
    assert replay(resumed.path) == replay(whole.path)


def test_a_torn_line_never_happened(tmp_path: Path) -> None:
    journal = whole_run(tmp_path / "journal.jsonl")
    count = len(list(journal.events()))
    with journal.path.open("ab") as file:
        file.write(b'{"event": "candidate", "candida')
    assert len(list(journal.events())) == count
    journal.mend()
    journal.append("interrupted")
    assert [event["event"] for event in journal.events()][-1] == "interrupted"
    assert len(list(journal.events())) == count + 1


def test_without_a_baseline_there_is_nothing_to_decide(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("start", key="k", policy=POLICY)
    with pytest.raises(ValueError, match="before the baseline"):
        replay(journal.path)


def test_later_evidence_replaces_earlier() -> None:
    state = State()
    apply(state, {"event": "candidate", "candidate": encode(candidate("a", 0.5, 1.0))})
    apply(state, {"event": "candidate", "candidate": encode(candidate("a", 0.001, 3.0))})
    assert state.candidates["a@openvino"].search == comparison(0.001, 0.004)


def test_a_finalist_that_fails_in_the_final_timing_does_not_ship(tmp_path: Path) -> None:
    """Its quick times from the search are no evidence any more."""
    journal = whole_run(tmp_path / "journal.jsonl")
    failed = {"id": "a@openvino", "measurements": [], "peak_memory_bytes": None, "energy": None, "errors": ["Failed: killed."]}
    times = [encode(measured(batch, 2.1)) for batch in (1, 8)]
    fine = {"id": "c@openvino", "measurements": times, "peak_memory_bytes": 1, "energy": None, "errors": []}
    journal.append("measured", raced=[], results=[failed, fine])
    decision = replay(journal.path)
    assert (decision.verdict, decision.chosen) == ("ship", "c@openvino")


def test_a_new_candidate_reopens_the_choice_of_finalists(tmp_path: Path) -> None:
    journal = whole_run(tmp_path / "journal.jsonl")
    journal.append("candidate", candidate=candidate("d", 0.0, 5.0))
    assert read_state(journal).finalists == ()
