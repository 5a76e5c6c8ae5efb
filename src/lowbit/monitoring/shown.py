"""A window as the server's pages and the command line show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lowbit.cost.bill import cost_per_million
from lowbit.measure.energy import MODELLED, energy
from lowbit.monitoring.baseline import Baseline
from lowbit.monitoring.findings import Finding
from lowbit.monitoring.labels import Accuracy
from lowbit.monitoring.looking import Look
from lowbit.monitoring.windows import Window
from lowbit.types import Energy


def window_document(
    window: Window,
    baseline: Baseline | None = None,
    findings: Sequence[Finding] = (),
    accuracy: Accuracy | None = None,
    *,
    cores: int = 1,
    price_per_hour: float | None = None,
    meter: str | None = None,
) -> dict[str, Any]:
    """Everything about a window, as JSON has it.

    Args:
        window: What came.
        baseline: It is compared with.
        findings: What the rules said of it.
        accuracy: Of its labelled answers.
        cores: That the server may use.
        price_per_hour: Of the machine, in dollars; None where nobody said.
        meter: Name of the meter that counted the window's joules.
    """
    tally = window.tally
    found = energy_of(window, meter)
    document: dict[str, Any] = {
        **window.key._asdict(),
        "since": window.since,
        "until": window.until,
        "requests": tally.requests,
        "errors": tally.errors,
        "error_rate": window.error_rate,
        "rows": tally.rows,
        "rows_recorded": tally.recorded,
        "throughput_per_s": window.throughput_per_s,
        "latency_ms": window.latency_ms(),
        "confidence": list(tally.confidence) or None,
        "baseline": (list(baseline.tally.confidence) or None) if baseline is not None else None,
        "baseline_from": baseline.text if baseline is not None else None,
        "predictions": list(tally.predictions) or None,
        "inputs": {name: moments.to_json() for name, moments in tally.inputs.items()},
        "findings": [finding.to_json() for finding in findings],
        "accuracy": asdict(accuracy) if accuracy is not None else None,
        "cpu_seconds": tally.busy_s,
        "energy": None if found is None else asdict(found),
        "cost": None,
    }
    if price_per_hour is not None and tally.rows and tally.busy_s:
        usd = cost_per_million(tally.busy_s / tally.rows, cores, price_per_hour)
        document["cost"] = {
            "per_million_usd": usd,
            "method": "core seconds an inference times the price of a core",
            "price_per_hour": price_per_hour,
            "cores": cores,
        }
    return document


def energy_of(window: Window, meter: str | None = None) -> Energy | None:
    """Of one inference: what a meter counted, else modelled from core seconds; None where nothing ran.

    Idle cores are not charged to an inference here: a server that waits takes that power whether or not it is asked.
    """
    tally = window.tally
    if not tally.rows or not tally.busy_s:
        return None
    each = tally.busy_s / tally.rows
    joules = tally.joules / tally.rows if tally.joules is not None and meter is not None else None
    found = energy(wall_s=each, cpu_s=each, cores=1, joules=joules, method=meter)
    return (
        found
        if found.method != MODELLED
        else Energy(found.joules_per_inference, f"{found.method}; busy cores alone", found.low, found.high, each)
    )


def look_document(look: Look, **more: Any) -> dict[str, Any] | None:
    """The same of a look; None where nothing came."""
    if look.window is None:
        return None
    return window_document(look.window, look.baseline, look.findings, look.accuracy, **more)
