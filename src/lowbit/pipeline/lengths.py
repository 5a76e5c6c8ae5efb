"""Texts are of all lengths: what was chosen is timed against the baseline at every usual sequence length up to the data's own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from lowbit.data.text import BUCKETS
from lowbit.measure.race import FINAL, measurement, race
from lowbit.pipeline.context import BASELINE, Context
from lowbit.pipeline.evaluate import repeated
from lowbit.pipeline.finish import LEAST_S, variant
from lowbit.pipeline.journal import encode
from lowbit.types import Candidate, Dim, Feeds


def race_lengths(context: Context, chosen: str) -> None:
    """Times the baseline and the chosen candidate at every sequence length, and records it.

    Nothing is done for models that take no text, that fix its length, or where the baseline itself was chosen.

    Args:
        context: The run.
        chosen: Id of the candidate.
    """
    lengths, baseline = lengths_of(context), context.state.baseline
    candidate = context.state.candidates.get(chosen)
    if not lengths or baseline is None or candidate is None:
        return
    key = {"id": chosen, "tuning": encode(candidate.tuning), "lengths": list(lengths), "rounds": context.rounds}
    if context.state.lengths == key:
        return  # timed before the interruption
    settings = [(length, batch) for length in lengths for batch in context.policy.batch]
    context.reporter.stage(f"Timing {chosen} at {len(lengths)} sequence lengths", len(settings))
    found: dict[str, list[object]] = {BASELINE: [], chosen: []}
    for index, (length, batch) in enumerate(settings):
        for name, measured in _heat(context, [baseline, candidate], length, batch).items():
            found[name].append(measured)
        context.reporter.advance(index + 1)
    context.record("lengths", raced=key, results=found)


def lengths_of(context: Context) -> tuple[int, ...]:
    """The usual lengths up to the one that the data is padded to; none where the model or its samples have none."""
    text = context.split.search.preprocess.text
    open_axis = all(len(info.shape) == 2 and not _fixed(info.shape[1]) for info in context.model.inputs)
    if text is None or not isinstance(text.length, int) or not open_axis:
        return ()
    return tuple(sorted({*(length for length in BUCKETS if length < text.length), text.length}))


def _fixed(size: Dim) -> bool:
    return isinstance(size, int)


def _heat(context: Context, entries: list[Candidate], length: int, batch: int) -> dict[str, object]:
    deadline = None if context.end is None else max(context.end, time.monotonic() + LEAST_S)
    results = race(
        [variant(context, entry, 1) for entry in entries],
        feeds_of(context, length, batch),
        batch=batch,
        rounds=context.rounds,
        seconds_per_round=FINAL["seconds_per_round"],
        deadline=deadline,
    )
    return {
        name: encode(replace(measurement(result, results[BASELINE]), tokens=length)) for name, result in results.items() if result.usable
    }


def feeds_of(context: Context, length: int, batch: int) -> Feeds:
    """`batch` real samples, as they are fed, cut to this length: what is timed is the length, not the answer."""
    first = next(iter(context.split.search.batches(batch))).feeds
    return {name: repeated(values[:, :length], batch) for name, values in first.items()}


def sentences(candidate: Candidate) -> tuple[str, ...]:
    """What was found, in short; the report has the table.

    E.g. "At 16 to 64 tokens it is 1.61x to 2.31x as fast as the baseline.", and one more for each length where it is not faster.
    """
    timed = [(entry, entry.speedup) for entry in candidate.by_length if entry.speedup is not None]
    if not timed:
        return ()
    lengths, ratios = [entry.tokens or 0 for entry, _ in timed], [ratio.value for _, ratio in timed]
    slower = tuple(
        f"At {entry.tokens} tokens and batch {entry.batch} it is not faster than the baseline: {ratio.value:.2f}x "
        f"[{ratio.ci_low:.2f}, {ratio.ci_high:.2f}]."
        for entry, ratio in timed
        if ratio.ci_low <= 1
    )
    return (f"At {_span(lengths, '{}')} tokens it is {_span(ratios, '{:.2f}x')} as fast as the baseline.", *slower)


def _span(values: Sequence[float], form: str) -> str:
    """ "16 to 64", or one value where all read the same."""
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"
