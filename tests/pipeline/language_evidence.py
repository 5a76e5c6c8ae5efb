"""Evidence about language models by hand: candidates with a rise of perplexity and a speed, as the search would have found them."""

from __future__ import annotations

from lowbit.bundle.schema import DeltaEntry, EngineTuningEntry, LanguageCandidateEntry, RatioEntry, SpeedEntry, TaskEntry
from lowbit.types import Budget, Candidate, Comparison, Delta, Latency, Measurement, MetricValue, Objective, Policy, Ratio, Tuning

POLICY = Policy("language-model", "perplexity", Budget(0.08, relative=True), batch=(1,))


def policy(objective: Objective = "latency") -> Policy:
    return Policy("language-model", "perplexity", Budget(0.08, relative=True), batch=(1,), objective=objective)


def around(value: float, width: float = 0.02) -> RatioEntry:
    return RatioEntry(value=value, ci_low=value * (1 - width), ci_high=value * (1 + width))


def speed(prefill: float, decode: float, prompt: int = 512, output: int = 128) -> SpeedEntry:
    """Of a request that reads `prompt` tokens and writes `output`."""
    ttft, total = prompt / prefill, prompt / prefill + (output - 1) / decode
    return SpeedEntry(
        ttft_ms=around(1000 * ttft),
        prefill_tokens_per_s=around(prefill),
        decode_tokens_per_s=around(decode),
        total_s=around(total),
        throughput_tokens_per_s=around(output / total),
        peak_memory_bytes=10**8,
    )


def rise(value: float, half: float = 0.002, n: int = 300) -> Comparison:
    delta = Delta(value, value - half, value + half, 0.95, n, "paired-bootstrap", relative=True)
    return Comparison(MetricValue("perplexity", 50 * (1 + value), 50_000), MetricValue("perplexity", 50.0, 50_000), delta, 0.95)


def made(
    ident: str,
    precision: str,
    rises: float,
    found: SpeedEntry | None,
    size: int,
    *,
    half: float = 0.002,
    confirmed: bool = True,
    over_baseline: float = 2.0,
    tasks: tuple[TaskEntry, ...] = (),
) -> tuple[Candidate, LanguageCandidateEntry]:
    """A candidate with its facts."""
    recipe, _, engine = ident.partition("@")
    timed: tuple[Measurement, ...] = ()
    if found is not None:
        ms = found.total_s.value * 1000
        ratio = Ratio(over_baseline, over_baseline * 0.99, over_baseline * 1.01)
        timed = (Measurement(1, 1, Latency(ms, ms, ms, ms, ms), 1 / found.total_s.value, ratio, ratio, 7, False, Tuning()),)
    evidence = rise(rises, half)
    candidate = Candidate(
        ident, recipe, engine, precision, size_bytes=size, search=evidence, confirm=evidence if confirmed else None, measurements=timed
    )
    facts = LanguageCandidateEntry(
        engine=engine,
        format="gguf",
        artifact="model/model.gguf",
        tuning=EngineTuningEntry(),
        perplexity=50 * (1 + rises),
        speed=found,
        tasks=tasks,
    )
    return candidate, facts


def baseline() -> tuple[Candidate, LanguageCandidateEntry]:
    return made("f16@torch", "16 bit", 0.0, speed(300, 20), 500_000_000, half=0.0, confirmed=False, over_baseline=1.0)


def task(drop: float, half: float = 0.005) -> TaskEntry:
    delta = DeltaEntry(
        value=drop, ci_low=drop - half, ci_high=drop + half, confidence=0.95, n=400, method="tango-score", relative=False, worse=9, better=1
    )
    return TaskEntry(name="qa", metric="exact_match", value=0.6 - drop, baseline=0.6, delta=delta)
