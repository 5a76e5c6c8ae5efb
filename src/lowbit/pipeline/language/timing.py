"""Times candidates on the workload: quickly, to see who is worth confirming, and under several tunings of their engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from lowbit.bundle.language_words import is_source
from lowbit.bundle.schema import RatioEntry, SpeedEntry
from lowbit.llm.engines import registry
from lowbit.llm.engines.base import EngineTuning
from lowbit.llm.workload.measure import measure
from lowbit.llm.workload.rank import LanguageObjective, cost_of, over
from lowbit.llm.workload.speed import Median, Speed
from lowbit.llm.workload.tune import Tuned
from lowbit.pipeline.judge import FAR
from lowbit.pipeline.language.budgets import budget_of
from lowbit.pipeline.language.context import BASELINE, LanguageContext
from lowbit.pipeline.language.score import as_judged, comparison, divergence_entry, forget, kept, scored, spool
from lowbit.pipeline.language.screening import AGAIN, FIRST, screened
from lowbit.pipeline.reporting import Reporter
from lowbit.types import Candidate, Comparison, Latency, Measurement, Tuning

QUICK_ROUNDS = 2
"""Of every candidate, to see who is worth more: what is near the front is timed again, tuned and raced."""


def screen(context: LanguageContext) -> None:
    """Times whatever is not far over its budget and was not timed yet, the baseline among them."""
    state = context.state
    waiting = [
        c for c in state.candidates.values() if _hopeful(context, c) and state.facts[c.id].speed is None and not _tried(context, c.id)
    ]
    if not waiting or context.late:
        return
    ids = list(dict.fromkeys([BASELINE, *(c.id for c in waiting)]))
    time_together(context, ids, QUICK_ROUNDS, "Timing the workload")


def time_together(context: LanguageContext, ids: Sequence[str], rounds: int, title: str) -> None:
    """Races candidates on the workload and records their speeds."""
    context.reporter.stage(title, rounds)
    found = measure(
        [context.runnable(ident) for ident in ids],
        context.request.workload,
        rounds=rounds,
        price_per_hour=context.request.options.price_per_hour,
        progress=progress_of(context.reporter),
    )
    best = _fastest_source(context, found)
    results = {ident: _result(context, ident, found, best) for ident in ids}
    context.record("measured", raced=dict.fromkeys(ids, rounds), results=results)
    for ident in ids:
        context.reporter.candidate(context.state.candidates[ident])


def tune(context: LanguageContext, candidates: Iterable[Candidate]) -> None:
    """Tries each candidate's engine with other tunings: threads, precision of the cache, groups of activations.

    A tuning that changes what the model says is judged on the search's text again, and taken only where it holds the budget.
    """
    for candidate in list(candidates):
        own = context.runnable(candidate.id)
        tunings = registry.get(own.engine).tunings(context.request.hardware)
        if candidate.id in context.state.tuned or context.late or len(tunings) < 2:
            continue
        context.reporter.stage(f"Tuning {candidate.id}", FIRST + AGAIN)
        objective: LanguageObjective = "throughput" if context.request.policy.objective == "throughput" else "latency"
        cores, progress = context.request.hardware.cores, progress_of(context.reporter)
        found = screened(own, tunings, context.request.workload, objective=objective, cores=cores, progress=progress)
        tuning, evidence, facts = _still_right(context, candidate, found)
        if tuning != own.tuning:
            forget(context, candidate.id)
        speed = next((speed for tried, speed in found.speeds if tried == tuning and speed.usable), None)
        told = speed_entry(speed).model_dump(mode="json") if speed else None
        context.record("tuned", id=candidate.id, tuning=tuning, comparison=evidence, facts=facts, speed=told)


def _still_right(context: LanguageContext, candidate: Candidate, found: Tuned) -> tuple[EngineTuning, Comparison | None, dict[str, Any]]:
    """The fastest tuning that holds the budget, with its evidence where it changes what the model says."""
    if not found.needs_evaluation:
        return found.best_exact, None, {}
    spool(context)
    variant = as_judged(context.renamed(candidate.id, "tuned", found.best))
    evidence, baseline = scored(context, variant, "search"), kept(context, BASELINE, "search")
    if evidence.perplexity is None or baseline is None:
        return found.best_exact, None, {}
    divergence = divergence_entry(evidence)
    checked = comparison(baseline, evidence.perplexity, divergence, context.request.policy.confidence)
    if checked.delta.value > budget_of(candidate.precision, context.request.budget).value:
        context.reporter.note(f"{candidate.id} is faster with another tuning, and over its budget.")
        return found.best_exact, None, {}
    facts = {
        "perplexity": evidence.perplexity.value,
        "bits_per_byte": evidence.perplexity.bits_per_byte,
        "divergence": divergence.model_dump(mode="json") if divergence else None,
    }
    return found.best, checked, facts


def progress_of(reporter: Reporter) -> Callable[[int, int], None]:
    """Tells rounds done to whoever watches."""
    return lambda done, _: reporter.advance(done)


def _hopeful(context: LanguageContext, candidate: Candidate) -> bool:
    if candidate.status != "done" or candidate.search is None:
        return False
    return candidate.search.delta.value <= FAR * budget_of(candidate.precision, context.request.budget).value


def _tried(context: LanguageContext, ident: str) -> bool:
    return ident in context.state.raced


def _fastest_source(context: LanguageContext, found: Mapping[str, Speed]) -> str | None:
    """The fastest 16-bit version of those timed together."""
    sources = [i for i, s in found.items() if s.usable and is_source(context.state.candidates[i].precision)]
    return min(sources, key=lambda ident: cost_of(found[ident], "latency"), default=None)


def _result(context: LanguageContext, ident: str, found: Mapping[str, Speed], best: str | None) -> dict[str, Any]:
    speed = found[ident]
    if not speed.usable:
        return {"speed": None, "error": f"It could not be timed: {speed.error}"}
    measurement = _measurement(context, speed, found.get(BASELINE), found.get(best) if best else None)
    return {"speed": speed_entry(speed).model_dump(mode="json"), "measurements": [asdict(measurement)]}


def _measurement(context: LanguageContext, speed: Speed, baseline: Speed | None, best: Speed | None) -> Measurement:
    """A request as the other rooms know a call: milliseconds from end to end, and how many times faster than 16 bit."""
    assert speed.total_s is not None, "only what was timed is recorded"
    requests = np.array([each.total_s for each in speed.rounds]) * 1000
    p50, p95, p99 = (float(value) for value in np.percentile(requests, (50, 95, 99)))
    return Measurement(
        batch=context.request.workload.concurrency,
        streams=1,
        latency_ms=Latency(p50, p95, p99, 1000 * speed.total_s.ci_low, 1000 * speed.total_s.ci_high),
        throughput_per_s=speed.requests_per_s.value if speed.requests_per_s else 0.0,
        speedup=over(speed, baseline, "latency") if baseline is not None and baseline.usable else None,
        speedup_over_best_fp32=over(speed, best, "latency") if best is not None and best.usable else None,
        rounds=len(speed.rounds),
        noisy=speed.noisy,
        tuning=Tuning(),
    )


def speed_entry(speed: Speed) -> SpeedEntry:
    """As the manifest has it."""
    million = speed.per_million_tokens
    nothing = Median(0.0, 0.0, 0.0)  # answers of one token are not decoded
    return SpeedEntry(
        ttft_ms=_ratio(speed.ttft_ms or nothing),
        prefill_tokens_per_s=_ratio(speed.prefill_tokens_per_s or nothing),
        decode_tokens_per_s=_ratio(speed.decode_tokens_per_s or nothing),
        total_s=_ratio(speed.total_s or nothing),
        throughput_tokens_per_s=_ratio(speed.output_tokens_per_s or nothing),
        peak_memory_bytes=speed.peak_memory_bytes or 0,
        anonymous_memory_bytes=speed.peak_anonymous_bytes,
        usd_per_million_tokens=million.dollars if million else None,
    )


def _ratio(value: Median) -> RatioEntry:
    return RatioEntry(value=value.value, ci_low=value.ci_low, ci_high=value.ci_high)
