"""What every stage of a run shares: the request as understood, the folder, and what is known so far."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lowbit.bundle.manifest import without_paths
from lowbit.compress.evidence import Evidence
from lowbit.data.dataset import Dataset
from lowbit.data.splits import Split
from lowbit.measure.metrics import Metric
from lowbit.measure.outcomes import Outcomes
from lowbit.measure.race import FINAL
from lowbit.pipeline.evaluate import Reference, call_batch, repeated
from lowbit.pipeline.journal import State, apply, encode
from lowbit.pipeline.reporting import Reporter
from lowbit.pipeline.store import Store
from lowbit.recipe import Recipe
from lowbit.runtimes.base import Runtime
from lowbit.runtimes.hardware import Hardware
from lowbit.types import Array, Feeds, Model, Policy

When = Literal["auto", "always", "again", "never"]

BASELINE = "fp32@onnxruntime"
"""Id of the baseline: the source in its own precision on onnxruntime's CPU provider with default options."""


@dataclass(frozen=True)
class Training:
    """What a run may do to train.

    Attributes:
        when: "auto": where nothing else holds the budget; "always"; "again": although it was done before; "never".
        minutes: Most time a candidate is trained for.
        data: Samples to learn from; None means those that calibrate.
        labels: Learn from their labels as well as from the FP32 model.
    """

    when: When = "auto"
    minutes: float = 10.0
    data: Dataset | None = None
    labels: bool = False


@dataclass
class Context:
    """One run. Frozen in spirit but for `state` and the caches, which only ever grow.

    Attributes:
        model: The source.
        split: Calibration, search and confirming samples.
        metric: The metric that the budget is about.
        policy: What the user asked for.
        hardware: This machine.
        runtimes: The runtimes to search, onnxruntime first.
        recipes: The recipes to try, in order.
        store: The output folder.
        reporter: Who is watching.
        deadline: `time.monotonic()` at which to stop searching, None for never.
        end: `time.monotonic()` by which everything should be done, None for never.
        prune: Keep only the artifact that ships.
        rounds: Turns of each variant in the final timing.
        training: What may be done to train.
    """

    model: Model
    split: Split
    metric: Metric
    policy: Policy
    hardware: Hardware
    runtimes: Sequence[Runtime]
    recipes: Sequence[Recipe]
    transformer: bool
    store: Store
    reporter: Reporter
    deadline: float | None = None
    end: float | None = None
    prune: bool = False
    rounds: int = FINAL["rounds"]
    training: Training = Training()
    state: State = field(default_factory=State)
    evidence: Evidence | None = None
    references: dict[str, Reference] = field(default_factory=dict)
    outcomes: dict[str, Outcomes] = field(default_factory=dict)
    race_feeds: dict[int, Feeds] = field(default_factory=dict)
    feeds: list[Feeds] = field(default_factory=list)
    cut_short: bool = False

    def record(self, event: str, **fields: Any) -> None:
        """Writes an event in the journal, then lets it take effect: what is acted on is always on disk."""
        plain = without_paths({name: _encoded(value) for name, value in fields.items()})
        self.store.journal.append(event, **plain)
        apply(self.state, {"event": event, **plain})

    def part(self, name: str) -> Dataset:
        """ "search" or "confirm"."""
        dataset: Dataset = getattr(self.split, name)
        return dataset

    def slices(self, name: str) -> Mapping[str, Array]:
        return self.part(name).slices

    def out_of_time(self) -> bool:
        """True from the deadline on; remembers that the run was cut short."""
        over = self.deadline is not None and time.monotonic() >= self.deadline
        self.cut_short = self.cut_short or over
        return over

    def minutes_left(self) -> float:
        """That a candidate may be trained for: what was allowed, or what the time limit leaves."""
        if self.deadline is None:
            return self.training.minutes
        return min(self.training.minutes, (self.deadline - time.monotonic()) / 60)

    @property
    def fixed_batch(self) -> int:
        """The model's own batch size, 0 where any number of samples can be fed."""
        return call_batch(self.model.inputs, 0)

    def sample(self, batch: int) -> Feeds:
        """`batch` real samples for timing, repeated where the data has fewer."""
        if batch not in self.race_feeds:
            first = next(iter(self.split.search.batches(batch))).feeds
            self.race_feeds[batch] = {name: repeated(values, batch) for name, values in first.items()}
        return self.race_feeds[batch]

    def calibration_feeds(self, limit: int = 300) -> list[Feeds]:
        """Calibration batches of one sample (or of the model's fixed batch size), kept for NNCF."""
        if not self.feeds:
            size = call_batch(self.model.inputs, 1)
            for batch in self.split.calibration.batches(size):
                if len(batch.rows) == size:
                    self.feeds.append(batch.feeds)
                if len(self.feeds) == limit:
                    break
        return self.feeds


def _encoded(value: Any) -> Any:
    return value if isinstance(value, str | int | float | dict | list | type(None)) else encode(value)
