"""What the journal of a language model's search says happened so far: what makes it resumable and replayable.

Events: start, candidate, measured, tuned, finalists, confirmed, decided, interrupted. Later events about a candidate replace earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lowbit.bundle.schema import DivergenceEntry, EngineTuningEntry, LanguageCandidateEntry, SpeedEntry, TaskEntry
from lowbit.pipeline.journal import Journal, decode
from lowbit.pipeline.language.decide import decide
from lowbit.types import Budget, Candidate, Comparison, Decision, Measurement, Policy


@dataclass
class State:
    """A search so far.

    Attributes:
        start: The first event.
        candidates: By id, the baseline among them.
        facts: What only language models have, by id.
        tuned: Ids whose tuning has been searched.
        finalists: Ids to be confirmed and raced; empty until then.
        cut: The time was over when they were chosen: some may be untimed or untuned, so that they are chosen again once there is time.
        raced: Ids that were raced together, and how many rounds.
        decision: The last one written.
        complete: It was not cut short.
    """

    start: dict[str, Any] = field(default_factory=dict)
    candidates: dict[str, Candidate] = field(default_factory=dict)
    facts: dict[str, LanguageCandidateEntry] = field(default_factory=dict)
    tuned: set[str] = field(default_factory=set)
    finalists: tuple[str, ...] = ()
    cut: bool = False
    raced: dict[str, Any] = field(default_factory=dict)
    decision: Decision | None = None
    complete: bool = False


def read_state(journal: Journal) -> State:
    """Folds the events into a state."""
    state = State()
    for event in journal.events():
        apply(state, event)
    return state


def apply(state: State, event: dict[str, Any]) -> None:
    """One event's effect on the state."""
    kind, ident = event["event"], event.get("id", "")
    if kind == "start":
        state.start = event
    elif kind == "candidate":
        candidate: Candidate = decode(Candidate, event["candidate"])
        state.candidates[candidate.id] = candidate
        state.facts[candidate.id] = decode(LanguageCandidateEntry, event["facts"])
        state.finalists = ()  # a new candidate reopens the question
    elif kind == "tuned":
        _tuned(state, ident, event)
    elif kind == "finalists":
        state.finalists, state.cut = tuple(event["ids"]), event.get("cut", False)
    elif kind == "confirmed":
        state.candidates[ident] = replace(state.candidates[ident], confirm=decode(Comparison, event["comparison"]))
        _change(state, ident, tasks=decode(tuple[TaskEntry, ...], event["tasks"]))
    elif kind == "measured":
        state.raced = {**state.raced, **event["raced"]}
        for name, result in event["results"].items():
            _measured(state, name, result)
    elif kind == "decided":
        state.decision = decode(Decision, event["decision"])
        state.complete = event["complete"]


def _tuned(state: State, ident: str, event: dict[str, Any]) -> None:
    """Another tuning: what was found on unseen text, and in a race, was of the one before."""
    state.tuned.add(ident)
    tuning = decode(EngineTuningEntry, event["tuning"])
    if tuning != state.facts[ident].tuning:
        state.candidates[ident] = replace(state.candidates[ident], confirm=None)
        state.raced = {name: rounds for name, rounds in state.raced.items() if name != ident}
        _change(state, ident, tasks=())
    _change(state, ident, tuning=tuning)
    if event.get("speed") is not None:
        _change(state, ident, speed=decode(SpeedEntry, event["speed"]))
    if event.get("comparison") is not None:
        state.candidates[ident] = replace(state.candidates[ident], search=decode(Comparison, event["comparison"]))
    if told := event.get("facts"):
        found = {"perplexity": told["perplexity"], "bits_per_byte": told.get("bits_per_byte")}
        _change(state, ident, **found, divergence=decode(DivergenceEntry | None, told["divergence"]))


def _measured(state: State, ident: str, result: dict[str, Any]) -> None:
    """Speed of one candidate, or why it could not be timed: then an earlier speed does not count either."""
    candidate = state.candidates[ident]
    if result["speed"] is None:
        reasons = tuple(dict.fromkeys([*candidate.reasons, result["error"]]))
        state.candidates[ident] = replace(candidate, reasons=reasons, measurements=())
        _change(state, ident, speed=None)
        return
    _change(state, ident, speed=decode(SpeedEntry, result["speed"]))
    measurements = decode(tuple[Measurement, ...], result["measurements"])
    state.candidates[ident] = replace(candidate, measurements=measurements, peak_memory_bytes=result["speed"]["peak_memory_bytes"])


def _change(state: State, ident: str, **changes: Any) -> None:
    state.facts[ident] = state.facts[ident].model_copy(update=changes)


def decided(state: State, baseline: str) -> Decision:
    """The decision that the evidence so far supports; from the journal alone, so that it can be made again."""
    start = state.start
    budget = decode(Budget | None, start["budget"])
    policy: Policy = decode(Policy, start["policy"])
    return decide(state.candidates[baseline], list(state.candidates.values()), state.facts, policy, budget, start["task_drop"])


def replay(path: Path, baseline: str) -> Decision:
    """Decides again from the evidence in a journal."""
    return decided(read_state(Journal(path)), baseline)
