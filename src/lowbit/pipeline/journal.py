"""The append-only journal of a search: what makes it anytime, resumable and replayable.

One JSON object a line, flushed to disk before the search goes on, so that `kill -9` loses only the
step that was running. A torn last line (the machine died while writing) is ignored. Later events
about a candidate replace earlier ones, so an interrupted and resumed journal reads like a whole one.

Events: start, baseline, candidate, tuned, finalists, confirmed, measured, decided, interrupted.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lowbit.errors import Interrupted, UsageError
from lowbit.pipeline.decide import decide
from lowbit.types import Candidate, Comparison, Decision, Energy, Measurement, Policy, Tuning

SCHEMA = 1
"""Part of every request's key: a journal in another form belongs to another run."""


def encode(value: object) -> Any:
    """A shared record (types.py) as plain JSON values; NaN and infinity become strings."""
    return _strict(_adapter(type(value)).dump_python(value, mode="json"))


def decode(kind: Any, raw: Any) -> Any:
    """The inverse of `encode`.

    Raises:
        pydantic.ValidationError: `raw` is not of that kind.
    """
    return _adapter(kind).validate_python(raw)


def _strict(value: Any) -> Any:
    """JSON has no NaN: such numbers become strings, which `decode` reads as numbers again."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


_ADAPTERS: dict[Any, Any] = {}


def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


class Journal:
    """Appends events to `journal.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **fields: Any) -> None:
        """Writes one event and waits until it is on disk.

        Raises:
            Interrupted: the disk is full; nothing half-written stays.
        """
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"event": event, "at": stamp, **fields}, default=_plain, allow_nan=False).encode() + b"\n"
        with self.path.open("ab") as file:
            end = file.tell()
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                os.truncate(self.path, end)
                raise Interrupted(
                    f"The journal cannot be written ({error.strerror}).", "Free some space; the same command resumes."
                ) from error

    def events(self) -> Iterator[dict[str, Any]]:
        """All whole events, oldest first."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return  # torn by a crash: never acknowledged, so never happened
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise UsageError(f"'{self.path}' is damaged: {error}.", "Give another --out, or --force to start anew.") from error

    def mend(self) -> None:
        """Cuts off a torn last line, so that the next event starts on a line of its own."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.truncate(self.path, whole)


def _plain(value: object) -> Any:
    encoded = encode(value)
    assert encoded is not value, f"cannot write {type(value).__name__} in the journal"
    return encoded


@dataclass
class State:
    """What a journal says happened so far.

    Attributes:
        start: The first event: key, policy and everything else about the request.
        advice: Reasons to hesitate before quantizing at all.
        baseline: The baseline candidate, once measured.
        candidates: By id, in the order they were first finished.
        tuned: Ids whose tuning has been searched.
        finalists: Ids chosen to be confirmed; empty until then.
        raced: Who was timed together in the final race, with which tuning and how many rounds.
        lengths: What was timed at several sequence lengths.
        decision: The last decision written.
        complete: It was not cut short by a time limit.
    """

    start: dict[str, Any] = field(default_factory=dict)
    advice: tuple[str, ...] = ()
    baseline: Candidate | None = None
    candidates: dict[str, Candidate] = field(default_factory=dict)
    tuned: dict[str, Tuning] = field(default_factory=dict)
    finalists: tuple[str, ...] = ()
    raced: list[dict[str, Any]] = field(default_factory=list)
    lengths: dict[str, Any] = field(default_factory=dict)
    decision: Decision | None = None
    complete: bool = False

    @property
    def policy(self) -> Policy:
        policy: Policy = decode(Policy, self.start["policy"])
        return policy


def read_state(journal: Journal) -> State:
    """Folds the events into a state."""
    state = State()
    for event in journal.events():
        apply(state, event)
    return state


def apply(state: State, event: dict[str, Any]) -> None:
    """One event's effect on the state; later evidence about the same thing replaces earlier evidence."""
    kind = event["event"]
    if kind == "start":
        state.start = event
    elif kind == "baseline":
        state.baseline = decode(Candidate, event["candidate"])
        state.advice = tuple(event["advice"])
    elif kind == "candidate":
        candidate = decode(Candidate, event["candidate"])
        state.candidates[candidate.id] = candidate
        state.finalists = ()  # a new candidate reopens the question
    elif kind == "tuned":
        tuning = decode(Tuning, event["tuning"])
        state.tuned[event["id"]] = tuning
        _change(state, event["id"], tuning=tuning)
    elif kind == "finalists":
        state.finalists = tuple(event["ids"])
    elif kind == "confirmed":
        _change(state, event["id"], confirm=decode(Comparison, event["comparison"]))
    elif kind == "measured":
        state.raced = event["raced"]
        for result in event["results"]:
            _change(
                state,
                result["id"],
                measurements=decode(tuple[Measurement, ...], result["measurements"]),
                peak_memory_bytes=result["peak_memory_bytes"],
                energy=decode(Energy | None, result["energy"]),
                reasons=tuple(dict.fromkeys([*_reasons(state, result["id"]), *result["errors"]])),
            )
    elif kind == "lengths":
        state.lengths = event["raced"]
        for name, measured in event["results"].items():
            _change(state, name, by_length=decode(tuple[Measurement, ...], measured))
    elif kind == "decided":
        state.decision = decode(Decision, event["decision"])
        state.complete = event["complete"]


def _reasons(state: State, candidate_id: str) -> tuple[str, ...]:
    """What was said of a candidate before; timing adds to it."""
    known = state.candidates.get(candidate_id)
    return known.reasons if known is not None else ()


def _change(state: State, candidate_id: str, **changes: Any) -> None:
    if state.baseline is not None and candidate_id == state.baseline.id:
        state.baseline = replace(state.baseline, **changes)
    else:
        state.candidates[candidate_id] = replace(state.candidates[candidate_id], **changes)


def replay(path: Path) -> Decision:
    """Decides again from the evidence in a journal: the same journal always gives the same decision.

    Raises:
        ValueError: the journal ends before the baseline was measured.
    """
    state = read_state(Journal(path))
    if state.baseline is None:
        raise ValueError(f"{path.name} ends before the baseline was measured")
    return decide(state.baseline, list(state.candidates.values()), state.policy, state.advice)
