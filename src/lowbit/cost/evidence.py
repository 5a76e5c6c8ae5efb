"""What was measured, as far as a bill asks for it, and how it takes the place of what was stated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from lowbit.cost.figures import Figure, assumed, derived
from lowbit.cost.workload import Deployment, Workload

Times = Literal["replace", "ratio"]
"""How a bundle's times are used: in the place of stated ones, or their ratio on the time that is stated for today."""
WHOLE = assumed(1.0, "share", "the model is all of a request; state inference_share where it is not")


@dataclass(frozen=True)
class Variant:
    """One version of the model, as a bundle has it.

    Attributes:
        id: In the bundle.
        precision: "fp32", "int8", ...
        verdict: On it: "ship", "provisional", ...
        call_ms: Batch size -> milliseconds a call.
        speedup: Over the baseline at batch 1, of the same run.
        size_mb: Of the artifact.
        quality: Change of the metric with its interval, in words.
        cpu_seconds: Of one inference.
        kwh_per_million: Energy of a million inferences, its method in the note.
    """

    id: str
    precision: str
    verdict: str
    call_ms: Mapping[int, Figure]
    speedup: Figure | None = None
    size_mb: Figure | None = None
    quality: str = ""
    cpu_seconds: Figure | None = None
    kwh_per_million: Figure | None = None


@dataclass(frozen=True)
class Evidence:
    """A bundle.

    Attributes:
        name: Of the model.
        verdict: The bundle's.
        baseline: The source model.
        chosen: What the bundle decided to run.
        others: Of other precisions, the best of each.
        accelerator: That it was measured on; empty for a CPU.
        parameters: Of the model.
        machine: That it was measured on, in words.
    """

    name: str
    verdict: str
    baseline: Variant
    chosen: Variant
    others: tuple[Variant, ...] = ()
    accelerator: str = ""
    parameters: Figure | None = None
    machine: str = "the machine"

    def of(self, precision: str) -> Variant | None:
        """What the bundle chose if it has that precision, else the best that has."""
        return next((each for each in (self.chosen, *self.others, self.baseline) if each.precision == precision), None)


@dataclass(frozen=True)
class Replaced:
    """A stated figure whose place a measured one took; `before` is None where a load test said what nobody had stated."""

    deployment: str
    what: str
    before: Figure | None
    after: Figure


def apply(
    workload: Workload, evidence: Evidence, times: Times, comparable: Callable[[Deployment], bool]
) -> tuple[Workload, tuple[Replaced, ...], Mapping[str, Variant]]:
    """The workload with measured figures where there are some.

    Candidates of the file are ways to run a precision; the bundle says how fast, how large and how good that precision is.
    Where none of them has a precision that the bundle chose, what it chose is added, alone and in its largest batch.

    Args:
        workload: As stated.
        evidence: As measured.
        times: See `Times`.
        comparable: Whether a deployment's machine is of the kind that was measured on; elsewhere neither times nor ratios hold.

    Returns:
        The workload; what was replaced; deployment's name -> the variant it runs.
    """
    share = workload.inference_share or WHOLE
    stated = workload.today.latency_ms
    rest = derived(lambda ms, part: ms * (1 - part), stated, share, unit="ms", note="latency × (1 − inference share)") if stated else None
    candidates = workload.candidates
    if not any(each.precision == evidence.chosen.precision for each in candidates) and evidence.chosen.id != evidence.baseline.id:
        candidates += _own(workload.today, evidence)
    variants: dict[str, Variant] = {workload.today.name: evidence.baseline}
    variants |= {each.name: found for each in candidates if each.precision and (found := evidence.of(each.precision))}
    log: list[Replaced] = []

    def put(deployment: Deployment) -> Deployment:
        variant = variants.get(deployment.name)
        if variant is None:
            return deployment
        now = _measured(deployment, variant, rest, times if comparable(deployment) else None, deployment is workload.today)
        for what in ("latency_ms", "speedup", "batch_latency_ms", "size_mb"):
            before, after = getattr(deployment, what), getattr(now, what)
            if before is not None and after is not None and after is not before:
                log.append(Replaced(deployment.name, what, before, after))
        return now

    changed = replace(
        workload,
        today=put(workload.today),
        candidates=tuple(map(put, candidates)),
        parameters=evidence.parameters or workload.parameters,
    )
    return changed, tuple(log), variants


def _own(today: Deployment, evidence: Evidence) -> tuple[Deployment, ...]:
    """The bundle's choice on today's machines, one request a call and in its largest batch."""
    chosen = evidence.chosen
    plain = replace(
        today,
        name=chosen.id,
        precision=chosen.precision,
        instances=None,
        latency_ms=None,
        batch=1,
        batch_latency_ms=None,
        capacity_per_s=None,
        bill_per_month=None,
        size_mb=None,
        quality="",
    )
    largest = max(chosen.call_ms, default=1)
    return (plain, replace(plain, name=f"{chosen.id}, batches of {largest}", batch=largest)) if largest > 1 else (plain,)


def _measured(deployment: Deployment, variant: Variant, rest: Figure | None, times: Times | None, today: bool) -> Deployment:
    known: dict[str, Any] = {"size_mb": variant.size_mb or deployment.size_mb}
    if not today:
        known["quality"] = variant.quality or deployment.quality
    if times == "ratio" and not today and variant.speedup is not None:
        known |= {"speedup": variant.speedup, "latency_ms": None, "batch_latency_ms": None, "capacity_per_s": None}
    if times == "replace":
        known["latency_ms"] = _with(variant.call_ms.get(1), rest) or deployment.latency_ms
        known["batch_latency_ms"] = _with(variant.call_ms.get(deployment.batch), rest) if deployment.batch > 1 else None
        known["capacity_per_s"] = None  # a load test of what was stated says nothing of these times
    return replace(deployment, **known)


def _with(model: Figure | None, rest: Figure | None) -> Figure | None:
    """The model's time and that of the rest of a request."""
    if model is None or rest is None or not rest.value:
        return model
    return derived(lambda a, b: a + b, model, rest, unit="ms", note=f"model ({model.note}) + the rest of a request, which stays")
