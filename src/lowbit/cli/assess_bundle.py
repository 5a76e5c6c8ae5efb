"""A bundle as evidence for `lowbit assess`: which measurements a bill needs, each with the machine it was taken on."""

from __future__ import annotations

from lowbit.bundle import words
from lowbit.bundle.schema import CandidateEntry, Manifest
from lowbit.cost.bill import kilowatt_hours_per_million
from lowbit.cost.evidence import Evidence, Variant
from lowbit.cost.figures import Figure, Origin, measured
from lowbit.types import Energy

ACCEPTED = ("ship", "provisional", "keep")


def evidence_of(manifest: Manifest) -> Evidence:
    """The baseline, what was chosen, and of every other precision the fastest that held the budget."""
    machine = f"{manifest.environment.cpu}, {manifest.environment.cores} cores"
    chosen = manifest.chosen
    others: dict[str, CandidateEntry] = {}
    for entry in sorted(manifest.candidates, key=_milliseconds):
        if entry.verdict in ACCEPTED and entry.precision != chosen.precision and entry.measurements:
            others.setdefault(entry.precision, entry)
    return Evidence(
        manifest.source.path,
        manifest.decision.verdict,
        _variant(manifest.baseline, machine),
        _variant(chosen, machine),
        tuple(_variant(entry, machine) for entry in others.values()),
        manifest.environment.accelerator or "" if _on_accelerator(chosen) else "",
        _parameters(manifest),
        machine,
    )


def _parameters(manifest: Manifest) -> Figure | None:
    count = manifest.source.parameters
    return measured(float(count), "parameters", f"counted in {manifest.source.path}") if count else None


def _on_accelerator(entry: CandidateEntry) -> bool:
    """A GPU in the machine does not make a measurement on its CPU one of the GPU."""
    return any(word in entry.runtime for word in ("cuda", "tensorrt", "gpu"))


def _milliseconds(entry: CandidateEntry) -> float:
    found = words.at(entry, 1)
    return found.latency_ms.p50 if found else float("inf")


def _variant(entry: CandidateEntry, machine: str) -> Variant:
    alone = [each for each in entry.measurements if each.streams == 1 and each.tokens is None]
    calls = {
        each.batch: measured(
            each.latency_ms.p50,
            "ms",
            f"{entry.id}, batch {each.batch}, median of {each.rounds} rounds on {machine}{', noisy' if each.noisy else ''}",
            _around(each.latency_ms.p50, each.latency_ms.ci_low, each.latency_ms.ci_high),
        )
        for each in alone
    }
    ratio = next((each.speedup for each in alone if each.batch == 1), None)
    note = f"{entry.id} over the baseline, paired rounds on {machine}"
    speedup = measured(ratio.value, "×", note, _around(ratio.value, ratio.ci_low, ratio.ci_high)) if ratio else None
    size = measured(entry.size_bytes / 1e6, "MB", f"the file of {entry.id}") if entry.size_bytes else None
    return Variant(
        entry.id, entry.precision, entry.verdict or "", calls, speedup, size, _quality(entry), _cpu(entry, machine), _energy(entry, machine)
    )


def _around(value: float, low: float, high: float) -> tuple[float, float]:
    return min(value, low), max(value, high)


def _quality(entry: CandidateEntry) -> str:
    if entry.delta is None or entry.metric is None or words.change(entry.delta) == words.NONE:
        return ""
    return f"{words.metric_name(entry.metric.name)} {words.change(entry.delta)} {words.interval(entry.delta)}, n = {entry.delta.n:,}"


def _cpu(entry: CandidateEntry, machine: str) -> Figure | None:
    seconds = entry.energy.cpu_seconds_per_inference if entry.energy else None
    return measured(seconds, "CPU s", f"{entry.id}, of all threads, on {machine}") if seconds is not None else None


def _energy(entry: CandidateEntry, machine: str) -> Figure | None:
    if entry.energy is None:
        return None
    energy = Energy(entry.energy.joules_per_inference, entry.energy.method, entry.energy.low, entry.energy.high)
    found = kilowatt_hours_per_million(energy)
    if found is None:
        return None
    origin: Origin = "assumed" if energy.method.startswith("modelled") else "measured"
    value, low, high = found
    return Figure(value, "kWh/million", origin, f"{energy.method}, on {machine}", *((low, high) if low < high else (None, None)))
