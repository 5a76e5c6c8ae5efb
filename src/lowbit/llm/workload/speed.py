"""What was measured of one candidate, and what follows from it: medians of rounds with intervals, tokens a second, cost. Pure.

A round's figures are means over the workload's shapes, by their weights. Intervals are bootstrap intervals of the median of
rounds (lowbit.measure.ratios); two candidates are compared within rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit.cost.bill import JOULES_PER_KWH, MILLION, SECONDS_PER_HOUR, at_rate
from lowbit.llm.workload.workload import Workload
from lowbit.measure.energy import energy
from lowbit.measure.ratios import BUSY, FEWEST_ROUNDS, NOISE, interval, ratio
from lowbit.types import Array, Ratio


@dataclass(frozen=True)
class Median:
    """Of the rounds, with its 95 % bootstrap interval."""

    value: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Round:
    """One turn; every figure is of the mean request of the workload.

    Attributes:
        ttft_s: Seconds from the request to its first token.
        prefill_tokens_per_s: Prompt tokens that are read, all requests together, until each has its first token.
        decode_s: Seconds for the tokens after it.
        total_s: From the request to its last token.
        requests_per_s: That are finished when `concurrency` of them are always in flight.
        output_tokens_per_s: That are written then, all requests together.
        cpu_s: CPU seconds of all threads, a request.
        joules: That a meter counted, a request; None without one.
    """

    ttft_s: float
    prefill_tokens_per_s: float
    decode_s: float
    total_s: float
    requests_per_s: float
    output_tokens_per_s: float
    cpu_s: float
    joules: float | None = None


@dataclass(frozen=True)
class PerMillion:
    """What a million tokens take on a machine that does nothing but this workload; prompt and output tokens count alike.

    Attributes:
        hours: Of the machine.
        dollars: Hours times its price; None where no price was given.
        dollars_output: The whole bill over output tokens alone, as services quote it.
        kilowatt_hours: None where unavailable.
        kilowatt_hours_low: Lower end where it is modelled.
        kilowatt_hours_high: Upper end.
        cpu_hours: Of all threads.
        method: How energy was found.
    """

    hours: float
    dollars: float | None
    dollars_output: float | None
    kilowatt_hours: float | None
    kilowatt_hours_low: float | None
    kilowatt_hours_high: float | None
    cpu_hours: float
    method: str


@dataclass(frozen=True)
class Speed:
    """One candidate on a workload. `dataclasses.asdict` of it is JSON.

    Attributes:
        id: The candidate's.
        ttft_ms: Milliseconds to the first token.
        prefill_tokens_per_s: Prompt tokens that are read, all requests in flight together.
        decode_tokens_per_s: Of one request, after its first token; None where answers have one token.
        total_s: End to end of the mean request.
        output_tokens_per_s: Of all requests in flight together.
        requests_per_s: Likewise.
        peak_memory_bytes: Most that the process has held, mapped weights included.
        peak_anonymous_bytes: Most seen that no file backs; None where the system does not tell.
        load_seconds: To open the artifact.
        per_million_tokens: Hours, dollars, energy.
        rounds: Raw, so that any statement can be made again from it; those of one measurement belong together by position.
        precision: Arithmetic that the engine really used for what is floating point.
        sampled: Whether answers were longer than the steps that were run, and decoding was measured at both of their ends.
        other_load: Share of the cores' time that other processes took during its turns, 0-1.
        noisy: Rounds disagree too much, or others worked too much, to call.
        heat: Candidates that ran side by side have the same.
        error: Why there is nothing; all else is empty then.
    """

    id: str
    ttft_ms: Median | None = None
    prefill_tokens_per_s: Median | None = None
    decode_tokens_per_s: Median | None = None
    total_s: Median | None = None
    output_tokens_per_s: Median | None = None
    requests_per_s: Median | None = None
    peak_memory_bytes: int | None = None
    peak_anonymous_bytes: int | None = None
    load_seconds: float | None = None
    per_million_tokens: PerMillion | None = None
    rounds: tuple[Round, ...] = ()
    precision: str | None = None
    sampled: bool = False
    other_load: float | None = None
    noisy: bool = False
    heat: int = 0
    error: str | None = None

    @property
    def usable(self) -> bool:
        return self.error is None and bool(self.rounds)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Speed:
        """Reads what `dataclasses.asdict` gave, JSON in between or not."""
        medians = ("ttft_ms", "prefill_tokens_per_s", "decode_tokens_per_s", "total_s", "output_tokens_per_s", "requests_per_s")
        read = {name: Median(**values[name]) if values.get(name) else None for name in medians}
        million = values.get("per_million_tokens")
        rounds = tuple(Round(**each) for each in values.get("rounds", ()))
        return cls(**{**values, **read, "rounds": rounds, "per_million_tokens": PerMillion(**million) if million else None})


def summed_up(
    id_: str, rounds: Sequence[Round], workload: Workload, *, cores: int, price_per_hour: float | None = None, method: str | None = None
) -> Speed:
    """The medians of a candidate's rounds.

    Args:
        id_: The candidate's.
        rounds: One or more.
        workload: That was measured.
        cores: Of the machine.
        price_per_hour: Dollars for the machine; None: no cost.
        method: Of the energy meter; None without one.
    """
    steps = workload.output - 1
    decode = _median(rounds, lambda each: steps / each.decode_s) if steps > 0 else None
    total = _median(rounds, lambda each: each.total_s)
    ttft = _median(rounds, lambda each: each.ttft_s * 1e3)
    return Speed(
        id_,
        ttft_ms=ttft,
        prefill_tokens_per_s=_median(rounds, lambda each: each.prefill_tokens_per_s),
        decode_tokens_per_s=decode,
        total_s=total,
        output_tokens_per_s=_median(rounds, lambda each: each.output_tokens_per_s),
        requests_per_s=_median(rounds, lambda each: each.requests_per_s),
        per_million_tokens=per_million(rounds, workload, cores=cores, price_per_hour=price_per_hour, method=method),
        rounds=tuple(rounds),
        noisy=noisy(total, rounds=len(rounds)),
    )


def per_million(
    rounds: Sequence[Round], workload: Workload, *, cores: int, price_per_hour: float | None = None, method: str | None = None
) -> PerMillion:
    """Cost and energy of a million tokens, from the medians over rounds of a request's seconds, CPU seconds and joules."""
    wall, cpu = (float(np.median(values)) for values in ([1 / each.requests_per_s for each in rounds], [each.cpu_s for each in rounds]))
    joules = [each.joules for each in rounds if each.joules is not None]
    used = energy(wall_s=wall, cpu_s=cpu, cores=cores, joules=float(np.median(joules)) if joules else None, method=method)
    tokens = workload.prompt + workload.output

    def kilowatt_hours(joules: float | None) -> float | None:
        return None if joules is None else joules / tokens * MILLION / JOULES_PER_KWH

    return PerMillion(
        hours=wall / tokens * MILLION / SECONDS_PER_HOUR,
        dollars=None if price_per_hour is None else at_rate(price_per_hour, tokens / wall),
        dollars_output=None if price_per_hour is None else at_rate(price_per_hour, workload.output / wall),
        kilowatt_hours=kilowatt_hours(used.joules_per_inference),
        kilowatt_hours_low=kilowatt_hours(used.low),
        kilowatt_hours_high=kilowatt_hours(used.high),
        cpu_hours=cpu / tokens * MILLION / SECONDS_PER_HOUR,
        method=used.method,
    )


def faster(speed: Speed, other: Speed, figure: Callable[[Round], float]) -> Ratio | None:
    """How many times less of a figure one takes than the other: median of the ratios within rounds; None without common rounds."""
    n = min(len(speed.rounds), len(other.rounds))
    return ratio([figure(each) for each in other.rounds[:n]], [figure(each) for each in speed.rounds[:n]])


def noisy(total: Median, *, rounds: int, other_load: float = 0.0) -> bool:
    """As lowbit.measure.ratios has it."""
    wide = max(total.ci_high - total.value, total.value - total.ci_low) > NOISE * total.value
    return rounds < FEWEST_ROUNDS or other_load > BUSY or wide


def _median(rounds: Sequence[Round], figure: Callable[[Round], float]) -> Median:
    values: Array = np.array([figure(each) for each in rounds])
    low, high = interval(values)
    return Median(float(np.median(values)), float(low), float(high))
