"""Quick timing of a candidate beside the baseline, to drop what is plainly too slow before it is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowbit.errors import RunError
from lowbit.measure.race import QUICK, RaceResult, Variant, measurement, race
from lowbit.pipeline.context import BASELINE, Context
from lowbit.pipeline.plan import Plan
from lowbit.types import Measurement, Tuning

Key = tuple[str, str, Tuning]

SLOW = 0.8
"""A candidate whose speedup is below this with its whole interval, at an asked batch size, is not worth evaluating."""


class QuickTimes:
    """Quick measurements, shared by candidates that are equally fast by construction."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.known: dict[Key, tuple[Measurement, ...]] = {}
        self.opened: dict[Key, float] = {}

    def of(self, entry: Plan, structure: str, artifact: Path) -> tuple[Measurement, ...]:
        """One measurement per asked batch size.

        Raises:
            RunError: the candidate cannot be loaded or run.
        """
        key = (structure, entry.runtime, entry.tuning)
        if key not in self.known:
            results = self.measure(Variant(entry.id, entry.runtime, artifact, entry.tuning))
            self.known[key] = tuple(measurement(own, baseline) for own, baseline in results)
            self.opened[key] = max((own.load_seconds or 0.0 for own, _ in results), default=0.0)
        return self.known[key]

    def opening(self, entry: Plan, structure: str) -> float:
        """Seconds that opening took, in a process of its own; the most of all batch sizes, once `of` has measured them."""
        return self.opened[structure, entry.runtime, entry.tuning]

    def measure(self, variant: Variant) -> list[tuple[RaceResult, RaceResult]]:
        """Races a variant against the baseline at every asked batch size; their results."""
        context = self.context
        source = context.store.out / "baseline" / "model.onnx"
        found = []
        for batch in context.policy.batch:
            context.reporter.note(f"Timing {variant.id} at batch {batch}")
            results = race([Variant(BASELINE, "onnxruntime", source), variant], context.sample(batch), batch=batch, **QUICK)
            result = results[variant.id]
            if not result.usable:
                raise RunError(result.error or f"{variant.id} did not finish a round.")
            found.append((result, results[BASELINE]))
        return found


def plainly_slow(times: Sequence[Measurement]) -> str | None:
    """Why these times rule a candidate out, or None. Pure."""
    for entry in times:
        if entry.speedup is not None and not entry.noisy and entry.speedup.ci_high < SLOW:
            return (
                f"Plainly too slow: {entry.speedup.value:.2f}x the baseline's speed at batch {entry.batch} "
                f"[{entry.speedup.ci_low:.2f}, {entry.speedup.ci_high:.2f}]."
            )
    return None
