"""Numbers and sentences that the report and the card share, so that both say the same in the same form.

Sign: what people read is the change in quality, so negative = worse (a `delta` is positive = worse).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowbit.bundle.schema import CandidateEntry, DeltaEntry, Manifest, MeasurementEntry
from lowbit.types import Budget

NONE = "–"
_PERCENT = {"top1", "top5", "accuracy", "balancedaccuracy", "macrof1", "f1", "agreement", "falsepositiverate", "fpr", "precision", "recall"}
_PERCENT |= {"tokenf1", "tokenaccuracy", "exactmatch", "spanf1"}
_PERCENT |= {"map", "ap50", "boxf1", "boxiou"}
_NAMES = {"top1": "top-1", "top5": "top-5", "macrof1": "macro-F1", "rmse": "RMSE", "mae": "MAE", "r2": "R²", "kl": "KL"}
_NAMES |= {"tokenf1": "token F1", "spanf1": "span F1", "exactmatch": "exact match"}
_NAMES |= {"fpr": "false-positive rate", "map": "mAP", "ap50": "AP50", "boxf1": "box F1", "boxiou": "box IoU"}


def _key(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


def metric_name(name: str) -> str:
    """ "top1" -> "top-1"; a name that is not known stays as it is."""
    return _NAMES.get(_key(name), name.replace("_", " "))


def metric_value(name: str, value: float | None) -> str:
    """A share as a percentage, anything else with four digits."""
    if value is None or not math.isfinite(value):
        return NONE
    if _key(name) in _PERCENT:
        return f"{value * 100:.2f} %"
    return minus(f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}")


def minus(text: str) -> str:
    """A real minus sign, as wide as a plus."""
    return text.replace("-", "−")


def digits(value: float) -> str:
    """Three significant digits without an exponent, thousands separated."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else NONE
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return minus(f"{value:,.{min(places, 6)}f}")


def milliseconds(value: float | None) -> str:
    return NONE if value is None else f"{digits(value)} ms"


def size(value: float | None) -> str:
    """Bytes in kB, MB or GB (powers of ten)."""
    if value is None:
        return NONE
    for limit, unit in ((1e6, "kB"), (1e9, "MB")):
        if value < limit:
            return f"{digits(value / limit * 1e3)} {unit}"
    return f"{digits(value / 1e9)} GB"


def times(value: float | None) -> str:
    """A ratio: 0.97×, 3.7×, 12×."""
    if value is None:
        return NONE
    return f"{value:.2f}×" if value < 2 else f"{value:.1f}×" if value < 10 else f"{value:.0f}×"


def count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def share(value: float | None) -> str:
    return NONE if value is None or not math.isfinite(value) else f"{value * 100:.1f} %"


def joules(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{digits(value)} J" if value >= 1 else f"{digits(value * 1e3)} mJ"


def unit(delta: DeltaEntry) -> str:
    return "%" if delta.relative else "pp"


def signed(value: float) -> str:
    """A change, 1 = a whole: "+0.21", "−0.63", "0.00"; in hundredths."""
    if not math.isfinite(value):
        return NONE
    text = f"{value * 100:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else minus(text)


def change(delta: DeltaEntry | None) -> str:
    """The change in quality with its unit: "−0.21 pp"."""
    return NONE if delta is None or not math.isfinite(delta.value) else f"{signed(-delta.value)} {unit(delta)}"


def interval(delta: DeltaEntry) -> str:
    """The interval of the change in quality: "[−0.63, +0.21]"."""
    return f"[{signed(-delta.ci_high)}, {signed(-delta.ci_low)}]"


def limit(max_drop: str) -> str:
    """ "1pp" -> "1 pp"."""
    return max_drop.replace("pp", " pp").replace("%", " %")


def confidence(value: float) -> str:
    return f"{value * 100:.4g} %"


def at(entry: CandidateEntry, batch: int, streams: int = 1) -> MeasurementEntry | None:
    """The measurement at a batch size with so many calls in flight."""
    return next((m for m in entry.measurements if (m.batch, m.streams) == (batch, streams)), None)


def rough(measurement: MeasurementEntry, manifest: Manifest) -> str:
    """The mark of a time not to be quoted: noisy, or from the search's quick timing instead of the final one."""
    final = max((m.rounds for m in manifest.baseline.measurements), default=0)
    return "~ " if measurement.noisy or measurement.rounds < final else ""


def main_batch(manifest: Manifest) -> int:
    """The batch size the headline speaks of: the smallest that was asked for."""
    return min(manifest.policy.batch, default=1)


def smaller(manifest: Manifest, entry: CandidateEntry) -> float | None:
    """How many times smaller than the source."""
    base = manifest.baseline.size_bytes or manifest.source.size_bytes
    return base / entry.size_bytes if entry.size_bytes else None


def budget(manifest: Manifest) -> float:
    """The budget as a fraction."""
    return Budget.parse(manifest.policy.max_drop).value


@dataclass(frozen=True)
class Headline:
    """The page's first words: what to do, and the sentence with the numbers that matter."""

    action: str
    sentence: str


_ACTIONS = {
    "ship": "Ship it",
    "provisional": "Ship it behind a canary",
    "recover": "Not yet: recover accuracy first",
    "keep": "Keep the source precision",
}


def headline(manifest: Manifest) -> Headline:
    """One sentence with the three numbers that matter, as far as they are known."""
    chosen, baseline = manifest.chosen, manifest.baseline
    parts = []
    name = f"{chosen.recipe} on {chosen.runtime}" + (f" in {chosen.precision}" if chosen.precision not in chosen.recipe else "")
    measured = at(chosen, main_batch(manifest))
    if chosen.id == baseline.id:
        parts.append("runs as it did before")
    elif measured and measured.speedup:
        parts.append(f"is {_speed(measured.speedup.value)}")
    ratio = smaller(manifest, chosen)
    if ratio and abs(ratio - 1) > 0.02:
        parts.append(f"{times(ratio)} smaller" if ratio > 1 else f"{times(1 / ratio)} larger")
    text = f"{name} {' and '.join(parts) or 'is what to run'}"
    delta = chosen.delta
    if delta and math.isfinite(delta.value) and chosen.metric and chosen.id != baseline.id:
        text += f"; {metric_name(chosen.metric.name)} changes by {change(delta)} {interval(delta)}"
    if manifest.decision.verdict == "recover":
        text = f"Until then, {text}"
    return Headline(_ACTIONS[manifest.decision.verdict], text + ".")


def _speed(value: float) -> str:
    if 0.98 <= value <= 1.02:
        return "as fast as the baseline"
    return f"{times(value)} faster" if value > 1 else f"{times(1 / value)} slower"
