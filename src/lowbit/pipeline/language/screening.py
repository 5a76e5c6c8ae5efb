"""Screens an engine's tunings by successive halving: all of them briefly, the best third again, and the decision over all rounds.

Two rounds tell apart what differs a lot, and a lucky tuning from none. So whatever leads after them runs on, side by side with the
engine's default, until it has five (Jamieson and Talwalkar 2016, arXiv 1502.07943, with one halving): a third of the tunings cost
three rounds more, and luck has to hold for five.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lowbit.llm.candidate import EngineCandidate
from lowbit.llm.engines.base import EngineTuning
from lowbit.llm.workload.measure import Progress, measure
from lowbit.llm.workload.rank import FIGURES, LanguageObjective, cost_of
from lowbit.llm.workload.speed import Speed, noisy, summed_up
from lowbit.llm.workload.tune import Tuned, is_exact, name
from lowbit.llm.workload.workload import Workload
from lowbit.pipeline.objective import TIE

FIRST, AGAIN = 2, 3
"""Rounds of every tuning, and how many more those have that lead after them."""
LEADING = 3
"""One in so many runs on, and two at least."""
MOSTLY = 0.8
"""Share of the rounds in which a tuning has to be faster than the default, besides its median by `TIE`.

Simulated with 8 tunings and 5 % of noise: of tunings that are all 3 % slower than the default one is taken in 10 % of the searches (two
rounds alone: 35 %), one that is 10 % faster is found in 81 % (two rounds: 79 %). Five rounds that must all agree find it in 43 %.
"""

Pairs = Sequence[tuple[EngineTuning, Speed]]
Measure = Callable[[Sequence[EngineTuning], int, Progress | None], Mapping[str, Speed]]
"""Tunings, rounds of each and who is told -> id (`name` of the tuning) -> speed."""


def leading(speeds: Pairs, objective: LanguageObjective, default: EngineTuning) -> tuple[EngineTuning, ...]:
    """Who runs on: the best third, two at least, the best of those that leave the numbers as they are, and the default, which all are
    compared with.

    Args:
        speeds: Tuning, and what was measured of it.
        objective: What "best" means.
        default: The engine's own.

    Returns:
        In the order of `speeds`; nobody where there is no choice to be made.
    """
    ranked = sorted((pair for pair in speeds if pair[1].usable), key=lambda pair: cost_of(pair[1], objective))
    order = [tuning for tuning, _ in ranked]
    exact = [tuning for tuning in order if is_exact(tuning, default)]
    chosen = [*order[: max(2, math.ceil(len(order) / LEADING))], *exact[:1], *(each for each in order if each == default)]
    if len(order) < 2:
        return ()
    return tuple(tuning for tuning, _ in speeds if tuning in chosen)


def merged(first: Speed, again: Speed, workload: Workload, *, cores: int) -> Speed:
    """Two measurements of one tuning as one: medians over the rounds of both.

    An error in either counts: what ended once may end again.
    """
    if not first.usable or not again.usable:
        return first if not first.usable else again
    rounds = (*first.rounds, *again.rounds)
    method = first.per_million_tokens.method if first.per_million_tokens else None
    told = summed_up(first.id, rounds, workload, cores=cores, method=method)
    assert told.total_s is not None
    load = max((each for each in (first.other_load, again.other_load) if each is not None), default=None)
    return replace(
        first,
        **{key: getattr(told, key) for key in MEDIANS},
        rounds=rounds,
        peak_memory_bytes=max(first.peak_memory_bytes or 0, again.peak_memory_bytes or 0),
        peak_anonymous_bytes=max(
            (each for each in (first.peak_anonymous_bytes, again.peak_anonymous_bytes) if each is not None), default=None
        ),
        other_load=load,
        noisy=noisy(told.total_s, rounds=len(rounds), other_load=load or 0.0),
        heat=again.heat,
    )


MEDIANS = (
    "ttft_ms",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "total_s",
    "output_tokens_per_s",
    "requests_per_s",
    "per_million_tokens",
)


def decided(speeds: Pairs, finalists: Sequence[EngineTuning], objective: LanguageObjective, default: EngineTuning) -> Tuned:
    """The fastest by the median over all rounds, of those that ran them all; the default where no other is clearly faster."""
    last = [pair for pair in speeds if pair[0] in finalists]
    exact = [pair for pair in last if is_exact(pair[0], default)]
    return Tuned(best=_fastest(last, objective, default), best_exact=_fastest(exact, objective, default), speeds=tuple(speeds))


def _fastest(speeds: Pairs, objective: LanguageObjective, default: EngineTuning) -> EngineTuning:
    usable = {tuning: speed for tuning, speed in speeds if speed.usable}
    if not usable:
        return default
    best = min(usable, key=lambda tuning: cost_of(usable[tuning], objective))
    return best if default not in usable or clearly_faster(usable[best], usable[default], objective) else default


def clearly_faster(speed: Speed, standard: Speed, objective: LanguageObjective) -> bool:
    """Whether one is faster than another by more than a tie, and in most rounds; both ran side by side."""
    figure = FIGURES[objective]
    ratios = [figure(theirs) / figure(ours) for ours, theirs in zip(speed.rounds, standard.rounds, strict=False)]
    return statistics.median(ratios) > 1 + TIE and sum(each > 1 for each in ratios) >= MOSTLY * len(ratios)


def halved(
    measured: Measure,
    tunings: Sequence[EngineTuning],
    workload: Workload,
    *,
    objective: LanguageObjective,
    cores: int,
    progress: Progress | None = None,
) -> Tuned:
    """Races tunings, those that lead twice.

    Args:
        measured: Times them.
        tunings: To try, the default first.
        workload: What is asked.
        objective: What "fastest" means: seconds or tokens, not memory.
        cores: Of the machine.
        progress: Called after each round with rounds done and in all.
    """
    tried, default = {name(tuning): tuning for tuning in tunings}, tunings[0]
    told = measured(tuple(tried.values()), FIRST, _of(progress, 0))
    speeds = {id_: told[id_] for id_ in tried}
    finalists = leading([(tried[id_], speed) for id_, speed in speeds.items()], objective, default)
    if finalists:
        again = measured(finalists, AGAIN, _of(progress, FIRST))
        speeds |= {name(each): merged(speeds[name(each)], again[name(each)], workload, cores=cores) for each in finalists}
    return decided([(tried[id_], speed) for id_, speed in speeds.items()], finalists, objective, default)


def screened(
    candidate: EngineCandidate,
    tunings: Sequence[EngineTuning],
    workload: Workload,
    *,
    objective: LanguageObjective,
    cores: int,
    progress: Progress | None = None,
) -> Tuned:
    """Races the tunings of one artifact, as `halved` has it; its own tuning counts only where it is among them."""

    def timed(chosen: Sequence[EngineTuning], rounds: int, told: Progress | None) -> Mapping[str, Speed]:
        runs = [replace(candidate, id=name(each), tuning=each) for each in chosen]
        return measure(runs, workload, rounds=rounds, progress=told)

    return halved(timed, tunings, workload, objective=objective, cores=cores, progress=progress)


def _of(progress: Progress | None, before: int) -> Progress | None:
    return None if progress is None else lambda done, _: progress(before + done, FIRST + AGAIN)
