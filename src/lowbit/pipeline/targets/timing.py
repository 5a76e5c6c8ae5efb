"""Latency of exported artifacts beside the bundle's own and the full-precision model: one process each, in turn."""

from __future__ import annotations

from collections.abc import Sequence

from lowbit.bundle.bundle import Bundle
from lowbit.bundle.manifest import candidate_of
from lowbit.bundle.schema import KernelsEntry, LatencyEntry, RatioEntry
from lowbit.export.base import Artifact, Target, Timed
from lowbit.measure import ratios
from lowbit.measure.race import FINAL, Variant, race
from lowbit.pipeline.reporting import Reporter
from lowbit.types import Feeds

BASELINE = "full precision"


def timed(
    bundle: Bundle, target: Target, artifact: Artifact, kernels: Sequence[KernelsEntry], feeds: Feeds, size: int, reporter: Reporter
) -> list[KernelsEntry]:
    """The entries with latency and speedup, where the target says how it is timed.

    Args:
        bundle: Its baseline is the yardstick of speedups.
        target: Whose artifact.
        artifact: What was written.
        kernels: Those that could be run.
        feeds: Some samples; the first `size` of them are asked again and again.
        size: Samples a call: one, or as many as the model is made for.
        reporter: Who is told about progress.
    """
    ways = target.timed(artifact) if isinstance(target, Timed) else {}
    ways = {each.kernels: ways[each.kernels] for each in kernels if each.error is None and each.kernels in ways}
    if not ways:
        return list(kernels)
    base = candidate_of(bundle.manifest.baseline)
    variants = [Variant(BASELINE, base.runtime, bundle.artifact(base.id), base.tuning)]
    variants += [Variant(name, runtime, path) for name, (runtime, path) in ways.items()]
    reporter.stage(f"Timing {target.title}", FINAL["rounds"])
    asked = {name: values[:size] for name, values in feeds.items()}
    found = race(variants, asked, batch=size, progress=lambda done, _: reporter.advance(done))
    yard = found[BASELINE]
    raced = {name: result.rounds for name, result in found.items() if result.usable and name != BASELINE}
    return [_with(each, raced[each.kernels], yard.rounds) if each.kernels in raced else each for each in kernels]


def _with(entry: KernelsEntry, rounds: ratios.Rounds, yard: ratios.Rounds) -> KernelsEntry:
    speedup = ratios.speedup(yard, rounds) if yard else None
    return entry.model_copy(
        update={
            "latency_ms": LatencyEntry.model_validate(ratios.latency(rounds)),
            "speedup": RatioEntry.model_validate(speedup) if speedup else None,
        }
    )
