"""Choose calibration samples from a pool: open, look at every sample once, choose, say what the choice covers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowbit.compress.coverage import Coverage, cover
from lowbit.compress.features import Features, Space, extract
from lowbit.data import Dataset, Preprocess, open_data
from lowbit.data.guess import guess_inputs
from lowbit.data.selection import METHODS, Method, choose, strata_of
from lowbit.data.splits import in_content_order
from lowbit.errors import UsageError, unknown
from lowbit.graph.load import load_model
from lowbit.pipeline.reporting import Reporter
from lowbit.pipeline.request import Data, read_preprocess
from lowbit.types import Array


@dataclass(frozen=True)
class Selection:
    """Chosen samples.

    Attributes:
        chosen: They, as a data set to calibrate on.
        of: Different samples in the pool.
        copies: Samples of the pool that equal another one, and were passed over.
        stratified: Whether labels or slices got their shares.
        coverage: What they cover.
    """

    chosen: Dataset
    of: int
    copies: int
    stratified: bool
    coverage: Coverage


def select(
    pool: Data,
    n: int,
    *,
    model: str | Path | None = None,
    method: Method = "mixed",
    seed: int = 0,
    stratify: bool = True,
    production: Data | None = None,
    preprocess: str | Path | Preprocess | None = None,
    target: str | None = None,
    slices: tuple[str, ...] = (),
    limit: int | None = None,
    reporter: Reporter | None = None,
) -> Selection:
    """Chooses n samples of a pool that stand for all of it. The answer does not depend on the order of the pool.

    Args:
        pool: Data as `open_data` takes it; not what validates.
        n: How many.
        model: Whose activations tell samples apart; None compares the inputs themselves, which says less (docs/guides/calibration.md).
        method: See `lowbit.data.selection.choose`.
        seed: Of everything random.
        stratify: Give labels and slices their shares, where the pool has any.
        production: Samples to hold against the choice.
        preprocess: As for `optimize`.
        target: The label's column.
        slices: Slice columns.
        limit: Use at most this many samples of the pool.
        reporter: Told about progress.

    Raises:
        UsageError, ModelError, DataError: what the user can mend.
    """
    reporter = reporter or Reporter()
    if method not in METHODS:  # before every sample of the pool is read
        raise unknown("selection method", method, METHODS)
    source = None if model is None else load_model(model)
    if source is None:
        reporter.note("Without a model the inputs are compared, which chose worse than chance where it was measured: give --model.")
    inputs = guess_inputs(pool, target, slices) if source is None else source.inputs
    found = open_data(pool, inputs, read_preprocess(preprocess), target=target, slices=slices, limit=limit)
    data, copies = without_copies(found)
    if n > len(data):
        raise UsageError(f"{n} samples were asked for; '{data.name}' has {len(data)} different ones.", f"Give 1 to {len(data)}.")
    others = None if production is None else open_data(production, inputs, data.preprocess, target=None)
    path = None if source is None else source.path
    features = _features(data, path, "the pool", reporter)
    space = Space.fit(features)
    columns: dict[str, Array] = dict(data.slices) | ({} if data.labels is None else {"label": data.labels})
    strata = strata_of(list(columns.values())) if stratify else None
    rows = choose(space.transform(features), n, method, strata=strata, seed=seed)
    reporter.stage("Comparing the choice with the pool")
    compared = None if others is None else (_features(others, path, "production samples", reporter), others.sample_name)
    named = {name: values for name, values in columns.items() if values.ndim == 1 and values.dtype.kind not in "fO"}
    coverage = cover(features, space, rows, named, production=compared, seed=seed)
    return Selection(data.subset(rows), len(data), copies, strata is not None, coverage)


def without_copies(data: Dataset) -> tuple[Dataset, int]:
    """Every different sample once, in an order that follows from the content; and how many copies were left out."""
    ordered = in_content_order(data)
    first = np.unique(ordered.hashes, return_index=True)[1]
    return ordered.subset(first), len(ordered) - len(first)


def _features(data: Dataset, model: Path | None, what: str, reporter: Reporter) -> Features:
    reporter.stage(f"Looking at {len(data):,} samples of {what}" if what == "the pool" else f"Looking at {len(data):,} {what}", len(data))
    return extract(data, model, progress=reporter.advance)
