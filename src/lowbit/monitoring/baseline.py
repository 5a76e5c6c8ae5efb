"""What a window is compared with: what the bundle measured of the variant, or a window that a person accepted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowbit.errors import DataError
from lowbit.monitoring.moments import Moments
from lowbit.monitoring.tally import Tally

if TYPE_CHECKING:
    from lowbit.bundle.bundle import Bundle
    from lowbit.measure.outcomes import Outcomes
    from lowbit.monitoring.windows import Window

Source = Literal["bundle", "deployment", "accepted"]
SAID: Mapping[str, str] = {
    "bundle": "the bundle's own samples",
    "deployment": "the first full window after deployment, because the bundle has no statistics of its own",
    "accepted": "a window that a person accepted",
}


@dataclass(frozen=True)
class Baseline:
    """What is normal for one variant.

    Attributes:
        tally: Its confidences, predictions and inputs; each may be missing.
        source: Where it is from.
        learned: What came from the first full window because the bundle lacks it: "confidence", "predictions", "inputs", "columns".
        accuracy: Share of right answers on the bundle's samples; None where the metric is another.
        accuracy_n: Samples that this rests on.
        latency_ms: p50, p95 and p99 of one sample on the machine where the bundle was made; None where it was not timed.
        by: Who accepted it.
        since: What came before, seconds since 1970, is not compared with it: another thing was normal then.
    """

    tally: Tally = field(default_factory=Tally)
    source: Source = "bundle"
    learned: tuple[str, ...] = ()
    accuracy: float | None = None
    accuracy_n: int = 0
    latency_ms: Mapping[str, float] | None = None
    by: str = ""
    since: float = 0.0

    @classmethod
    def of(cls, bundle: Bundle, candidate: str) -> Baseline:
        """What a bundle knows of one of its candidates.

        Confidences and predictions are those of all validation samples where their outcomes are in the folder, else of the comparison that
        the manifest has. Inputs are those that calibrated.

        Args:
            bundle: Loaded.
            candidate: Id of the variant.

        Raises:
            KeyError: the bundle has no such candidate.
        """
        entry = bundle.manifest.entry(candidate)
        parts = _outcomes(bundle, candidate)
        confidence, predictions = _confidence(parts), _predictions(parts)
        if not confidence and entry.comparison is not None:
            confidence = entry.comparison.histogram
        value, n = None, 0
        if entry.metric is not None and entry.metric.name in ("top1", "accuracy"):
            value, n = float(entry.metric.value), entry.metric.n
        one = next((each for each in entry.measurements if each.batch == 1 and each.streams == 1), None)
        times = {name: float(getattr(one.latency_ms, name)) for name in ("p50", "p95", "p99")} if one is not None else None
        tally = Tally(recorded=sum(confidence), confidence=tuple(confidence), predictions=predictions, inputs=_inputs(bundle))
        return cls(tally, "bundle", (), value, n, times)

    @classmethod
    def accepted(cls, window: Window, before: Baseline | None, by: str) -> Baseline:
        """A window becomes normal; what it has nothing of stays as it was."""
        kept = before or cls()
        return replace(kept, tally=_over(window.tally, kept.tally), source="accepted", learned=(), by=by, since=window.since)

    def with_learned(self, window: Window) -> Baseline:
        """The same with what the bundle lacks taken from a window; the same object where it lacks nothing that the window has."""
        lacking = tuple(name for name in ("confidence", "predictions", "inputs", "columns") if _lacks(self.tally, window.tally, name))
        if not lacking:
            return self
        kept = replace(self.tally, **{name: getattr(window.tally, name) for name in lacking})
        source: Source = "deployment" if "confidence" in lacking else self.source
        return replace(
            self, tally=replace(kept, recorded=max(kept.recorded, sum(kept.confidence))), source=source, learned=(*self.learned, *lacking)
        )

    @property
    def text(self) -> str:
        """Where it is from, in words."""
        if self.source == "bundle" and self.learned:
            return f"{SAID['bundle']}; {' and '.join(self.learned)}: the first full window after deployment"
        return SAID[self.source]

    def to_json(self) -> dict[str, Any]:
        """Everything, exactly."""
        plain = {name: getattr(self, name) for name in ("source", "accuracy", "accuracy_n", "by", "since")}
        times = dict(self.latency_ms) if self.latency_ms else None
        return {**plain, "learned": list(self.learned), "latency_ms": times, "tally": self.tally.to_json()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Baseline:
        """What `to_json` gave."""
        return cls(**{**document, "tally": Tally.from_json(document["tally"]), "learned": tuple(document["learned"])})


def _over(new: Tally, old: Tally) -> Tally:
    filled = {name: getattr(new, name) or getattr(old, name) for name in ("confidence", "predictions", "inputs", "columns")}
    return Tally(recorded=new.recorded, **filled)


def _lacks(ours: Tally, theirs: Tally, name: str) -> bool:
    """A histogram of nothing is nothing, too."""
    values: Any = getattr(theirs, name)
    has = bool(values) and (name in ("inputs", "columns") or any(values))
    return has and not getattr(ours, name)


def _outcomes(bundle: Bundle, candidate: str) -> list[Outcomes]:
    from lowbit.measure.outcomes import Outcomes

    home = "baseline" if candidate == bundle.manifest.baseline.id else f"candidates/{candidate}"
    found = []
    for part in ("search", "confirm"):
        try:
            found.append(Outcomes.load(bundle.folder / home / f"outcomes-{part}.npz"))
        except DataError:
            continue
    return found


def _confidence(parts: list[Outcomes]) -> tuple[int, ...]:
    from lowbit.measure.compare import BINS

    values = [part.columns["confidence"] for part in parts if "confidence" in part.columns]
    if not values:
        return ()
    counts, _ = np.histogram(np.clip(np.concatenate(values), 0, 1), bins=BINS, range=(0, 1))
    return tuple(int(count) for count in counts)


def _predictions(parts: list[Outcomes]) -> tuple[int, ...]:
    values = [part.columns["predicted"] for part in parts if "predicted" in part.columns]
    if not values or any(column.ndim != 1 or column.dtype.kind not in "iu" for column in values):
        return ()
    return tuple(int(count) for count in np.bincount(np.concatenate(values)))


def _inputs(bundle: Bundle) -> dict[str, Moments]:
    """Moments of each input from the histograms of calibration; none where the folder has no statistics any more."""
    from lowbit.compress.calibrate import CalibrationStats

    try:
        stats = CalibrationStats.load(bundle.folder / "calibration" / "stats.npz")
    except DataError:
        return {}
    found = {}
    for info in bundle.manifest.model.inputs:
        tensor = stats.tensors.get(info.name)
        if tensor is None or not tensor.histogram.count:
            continue
        counts, edges = tensor.histogram.counts, tensor.histogram.edges
        middles, n = (edges[:-1] + edges[1:]) / 2, int(counts.sum())
        mean = float(counts @ middles) / n
        found[info.name] = Moments(n, mean, float(counts @ (middles - mean) ** 2), tensor.low, tensor.high)
    return found
