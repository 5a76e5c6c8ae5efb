"""What every stage of a language model's search shares: the request, the folder, and what is known so far."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lowbit.bundle.manifest import without_paths
from lowbit.bundle.schema import LanguageCandidateEntry
from lowbit.llm.candidate import EngineCandidate
from lowbit.llm.engines.base import EngineTuning
from lowbit.pipeline.journal import encode
from lowbit.pipeline.language.recipes import BASELINE_ENGINE, SOURCE_RECIPE, Plan
from lowbit.pipeline.language.request import LanguageRequest
from lowbit.pipeline.language.state import State, apply
from lowbit.pipeline.reporting import Reporter
from lowbit.pipeline.store import Store
from lowbit.types import Candidate

BASELINE = Plan(SOURCE_RECIPE, BASELINE_ENGINE).id
"""Id of the baseline: the source's weights in exact arithmetic on PyTorch."""


@dataclass
class LanguageContext:
    """One run. `state` only ever grows.

    Attributes:
        request: As understood.
        store: The folder.
        reporter: Who is told.
        end: When to start nothing new (`time.monotonic()`), None without a limit.
        state: What the journal says.
    """

    request: LanguageRequest
    store: Store
    reporter: Reporter
    end: float | None
    state: State = field(default_factory=State)

    @property
    def late(self) -> bool:
        return self.end is not None and time.monotonic() > self.end

    @property
    def reference(self) -> Path:
        """Where the 16-bit log-probabilities of the search's text lie while the search goes on."""
        return self.store.work / "reference"

    def table(self, recipe: str) -> Path:
        """Where a recipe's quantized weights are made."""
        return self.store.work / "tables" / recipe

    def record(self, event: str, **fields: Any) -> None:
        """Writes an event to the journal and takes it into the state, so that both always agree. No path gets in."""
        plain = {key: without_paths(encode(value) if hasattr(value, "__dataclass_fields__") else value) for key, value in fields.items()}
        self.store.journal.append(event, **plain)
        apply(self.state, {"event": event, **plain})

    def candidate(self, candidate: Candidate, facts: LanguageCandidateEntry) -> None:
        """Records a finished candidate and tells whoever watches."""
        self.record("candidate", candidate=candidate, facts=facts.model_dump(mode="json"))
        self.reporter.candidate(candidate)

    def runnable(self, ident: str, tuning: EngineTuning | None = None) -> EngineCandidate:
        """A candidate as the measuring rooms take it.

        Args:
            ident: Of a candidate that has an artifact.
            tuning: Another than the best found so far.
        """
        facts = self.state.facts[ident]
        assert facts.artifact is not None, f"{ident} has no artifact"
        own = EngineTuning(**facts.tuning.model_dump()) if tuning is None else tuning
        return EngineCandidate(ident, facts.engine, self.store.out / facts.artifact, own)

    def renamed(self, ident: str, suffix: str, tuning: EngineTuning) -> EngineCandidate:
        """The same artifact with another tuning, under a name of its own."""
        return replace(self.runnable(ident, tuning), id=f"{ident}+{suffix}")
