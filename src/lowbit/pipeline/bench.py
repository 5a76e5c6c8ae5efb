"""Time model files on runtimes, without data: random feeds of the right names, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lowbit.errors import UsageError
from lowbit.measure.race import Variant, measurement, race
from lowbit.pipeline.artifacts import format_of, load_artifact, need_opens
from lowbit.pipeline.evaluate import call_batch
from lowbit.pipeline.reporting import Reporter
from lowbit.runtimes import registry
from lowbit.runtimes.base import opens
from lowbit.types import Feeds, Measurement, Model, Tuning

IDS_BELOW = 400
"""Random integer inputs stay below this: small enough for any vocabulary or table."""

NOTHING = "It did not finish a round."


@dataclass(frozen=True)
class Row:
    """One line of the table: a measurement, or why there is none."""

    id: str
    measurement: Measurement | None
    error: str | None


def bench(
    models: Sequence[Path],
    runtimes: Sequence[str],
    batches: Sequence[int],
    *,
    threads: int = 0,
    streams: int = 1,
    precision: Literal["f32", "bf16", "f16"] = "f32",
    rounds: int = 15,
    seconds: float = 0.3,
    length: int = 64,
    reporter: Reporter | None = None,
) -> list[Row]:
    """Races every model on every runtime that opens it, at every batch size; speedups are over the first.

    Raises:
        UsageError: an unknown runtime, one that does not open a model, a file named twice.
        ModelError: a model that cannot be read, or that takes other inputs.
    """
    reporter = reporter or Reporter()
    sources = [load_artifact(path) for path in models]
    if len(set(models)) != len(models):
        raise UsageError("A model is named twice.", "Name each file once.")
    pairs = [
        (label, source, name) for label, source in zip(short_names(models), sources, strict=True) for name in runs_on(source, runtimes)
    ]
    if any(_signature(source) != _signature(sources[0]) for source in sources):
        raise UsageError("The models take different inputs, so one feed cannot time them all.", "Bench them one by one.")
    if not batches or min(batches) < 1:
        raise UsageError(f"Batch sizes {list(batches)} are not all 1 or more.", "Give e.g. --batch 1,8.")
    rows = []
    for batch in dict.fromkeys(call_batch(sources[0].inputs, size) for size in batches):
        variants = [
            Variant(f"{label}@{name}", name, source.path, Tuning(threads=threads, streams=streams, precision=precision))
            for label, source, name in pairs
        ]
        reporter.stage(f"Batch {batch}: {len(variants)} variants, {rounds} rounds", rounds)
        results = race(
            variants,
            random_feeds(sources[0], batch, length),
            batch=batch,
            rounds=rounds,
            seconds_per_round=seconds,
            streams=streams,
            progress=lambda done, _: reporter.advance(done),
        )
        first = results[variants[0].id]
        for variant in variants:
            result = results[variant.id]
            rows.append(
                Row(variant.id, measurement(result, first) if result.usable else None, None if result.usable else result.error or NOTHING)
            )
    return rows


def runs_on(model: Model, asked: Sequence[str]) -> list[str]:
    """The runtimes that open a model: of those asked for, else of those that are here.

    Raises:
        UsageError: none does.
    """
    chosen = [registry.get(name) for name in asked] if asked else [*registry.available(), *registry.on_request()]
    able = [runtime.name for runtime in chosen if opens(runtime) == format_of(model.path)]
    if not able:
        need_opens(chosen[0], model.path)
    return able


def random_feeds(model: Model, batch: int, length: int, seed: int = 0) -> Feeds:
    """Standard normal floats and small non-negative integers; inputs named like masks are ones.

    Args:
        model: Whose inputs to make.
        batch: Size of the first axis.
        length: Size of every other dynamic axis.
        seed: Same seed, same feeds.
    """
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for info in model.inputs:
        shape = [dim if isinstance(dim, int) else (batch if axis == 0 else length) for axis, dim in enumerate(info.shape)]
        if info.dtype.startswith("float"):
            feeds[info.name] = rng.standard_normal(shape).astype(info.dtype)
        elif "mask" in info.name or info.dtype == "bool":
            feeds[info.name] = np.ones(shape, info.dtype)
        else:
            top = 2 if "type" in info.name else min(IDS_BELOW, 100 if info.dtype in ("int8", "uint8") else IDS_BELOW)
            feeds[info.name] = rng.integers(0, top, shape).astype(info.dtype)
    return feeds


def short_names(paths: Sequence[Path]) -> list[str]:
    """File names without suffix; with their folder where two are alike."""
    stems = [path.stem for path in paths]
    return [path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}/{path.stem}" for path in paths]


def _signature(model: Model) -> list[tuple[str, str]]:
    return [(info.name, info.dtype) for info in model.inputs]
