"""Splitting by content: samples with equal inputs never end up in two parts.

Everything follows from the content hashes, so the split is the same however the samples are ordered. As
hashes scatter evenly, each part is a random sample, and so is every beginning of a part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowbit.data.dataset import Dataset
from lowbit.data.fit import some
from lowbit.errors import DataError
from lowbit.types import Array

MAX_CALIBRATION = 512
CALIBRATION_SHARE = 0.2


@dataclass(frozen=True)
class Split:
    """Three disjoint parts.

    Attributes:
        calibration: Ranges are taken from these.
        search: The search and tuning may look at these.
        confirm: Only the finalists see these.
        how_selected: How the calibration samples were chosen, in words.
    """

    calibration: Dataset
    search: Dataset
    confirm: Dataset
    how_selected: str


def split(data: Dataset, calibration: Dataset | None = None) -> Split:
    """Splits data into calibration (unless given), search and confirming samples.

    Without `calibration`, the lowest content hashes calibrate: min(512, 20 %) of the samples. The rest is cut in two
    by the next hashes. Groups of equal samples stay together; one too large for a part is passed over.

    Raises:
        DataError: too few different samples, or `calibration` shares samples with `data`.
    """
    if calibration is not None:
        refuse_leak(calibration, data)
        order, counts = _groups(data)
        _check_different(len(counts), 2)
        search, confirm = _take(order, counts, len(data) // 2, leave=1)
        return Split(calibration, data.subset(search), data.subset(confirm), f"given: {calibration.name}, {len(calibration)} samples")
    order, counts = _groups(data)
    _check_different(len(counts), 3)
    target = max(1, min(MAX_CALIBRATION, int(len(data) * CALIBRATION_SHARE)))
    chosen, rest = _take(order, counts, target, leave=2)
    rest_order, rest_counts = _groups(data.subset(rest))
    search, confirm = _take(rest[rest_order], rest_counts, len(rest) // 2, leave=1)
    how = f"lowest content hashes: {len(chosen)} of {len(data)} samples"
    return Split(data.subset(chosen), data.subset(search), data.subset(confirm), how)


def refuse_leak(calibration: Dataset, validation: Dataset) -> None:
    """Refuses calibration samples that are also validation samples.

    Raises:
        DataError: with their number and a few names.
    """
    shared = np.flatnonzero(np.isin(calibration.hashes, validation.hashes))
    if len(shared):
        names = some([calibration.sample_name(position) for position in shared.tolist()])
        raise DataError(
            f"{len(shared)} of {len(calibration)} calibration samples are also validation samples: {names}. "
            "Ranges fitted to the samples that judge them look better than they are.",
            "Leave the calibration data out: then a part of --data is set aside for it.",
        )


def _check_different(groups: int, needed: int) -> None:
    if groups < needed:
        raise DataError(
            f"The data has {groups} different samples; at least {needed} are needed to split it.",
            "Give data that are not copies of one another.",
        )


def _groups(data: Dataset) -> tuple[Array, Array]:
    """Positions in hash order (equal ones by label, so that the order of the source does not matter), and group sizes."""
    keys: list[Array] = []
    if data.labels is not None:
        flat = data.labels.reshape(len(data), -1)
        keys = [flat[:, index] for index in reversed(range(flat.shape[1]))]
    order = np.lexsort((*keys, data.hashes))
    _, counts = np.unique(data.hashes, return_counts=True)
    return order.astype(np.int64), counts


def _take(order: Array, counts: Array, target: int, leave: int) -> tuple[Array, Array]:
    """Fills a part with whole groups in order up to `target` samples; at least one group, leaving at least `leave` groups.

    Returns:
        Positions taken, positions left.
    """
    taken = np.zeros(len(counts), np.bool_)
    room, most = target, len(counts) - leave
    for index, count in enumerate(counts.tolist()):
        if room == 0 or most == 0:
            break
        if count <= room:
            taken[index] = True
            room, most = room - count, most - 1
    if not taken.any():
        taken[int(np.argmin(counts))] = True
    mask = np.repeat(taken, counts)
    return order[mask], order[~mask]
