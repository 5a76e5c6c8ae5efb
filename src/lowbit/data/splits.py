"""Splitting by content: samples with equal inputs never end up in two parts.

Everything follows from the content hashes, so the split is the same however the samples are ordered. As
hashes scatter evenly, each part is a random sample, and so is every beginning of a part.

Where samples come in pairs (sentences and how similar they are), partners stay in one part and next to each other. Pairs
that share a sample stay together too; such a family goes by the smallest hash in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

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

    @cached_property
    def validation(self) -> Dataset:
        """All samples that validate: the search's and the confirming ones together.

        Its fingerprint does not depend on where the cut is: it is that of the same samples opened by themselves.
        """
        parts = (self.search, self.confirm)
        rows, hashes = (np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "hashes"))
        return replace(self.search, rows=rows, hashes=hashes)


def split(data: Dataset, calibration: Dataset | None = None, groups: Array | None = None) -> Split:
    """Splits data into calibration (unless given), search and confirming samples.

    Without `calibration`, the lowest content hashes calibrate: min(512, 20 %) of the samples. The rest is cut in two
    by the next hashes. Equal samples stay together, and so do groups; a family too large for a part is passed over.

    Args:
        data: What is split.
        calibration: Calibration samples, where they are given separately.
        groups: The number of each sample's group [n] where samples belong together, e.g. the two of a pair
            (`lowbit.measure.metrics.Metric.groups`); None where every sample stands for itself.

    Raises:
        DataError: too few different samples, or `calibration` shares samples with `data`.
    """
    if calibration is not None:
        refuse_leak(calibration, data)
    order, counts = _families(data, groups)
    _check_different(len(counts), 3 if calibration is None else 2, groups is not None)
    if calibration is not None:
        search, confirm = _take(order, counts, len(data) // 2, leave=1)
        return Split(calibration, data.subset(search), data.subset(confirm), f"given: {calibration.name}, {len(calibration)} samples")
    target = max(1, min(MAX_CALIBRATION, int(len(data) * CALIBRATION_SHARE)))
    chosen, rest = _take(order, counts, target, leave=2)
    rest_order, rest_counts = _families(data.subset(rest), None if groups is None else groups[rest])
    search, confirm = _take(rest[rest_order], rest_counts, len(rest) // 2, leave=1)
    how = f"lowest content hashes: {len(chosen)} of {len(data)} samples"
    return Split(data.subset(chosen), data.subset(search), data.subset(confirm), how)


def in_content_order(data: Dataset, groups: Array | None = None) -> Dataset:
    """All samples in the order in which `split` fills its parts: data with one fingerprint has one order, whatever its source's.

    Args:
        data: Samples in any order.
        groups: As `split` takes them.
    """
    return data.subset(_families(data, groups)[0])


def refuse_leak(samples: Dataset, validation: Dataset, role: str = "calibration") -> None:
    """Refuses samples that are learned from and also validate.

    Args:
        samples: What is learned from.
        validation: What judges.
        role: What the samples are for, in a word.

    Raises:
        DataError: with their number and a few names.
    """
    shared = np.flatnonzero(np.isin(samples.hashes, validation.hashes))
    if len(shared):
        names = some([samples.sample_name(position) for position in shared.tolist()])
        raise DataError(
            f"{len(shared)} of {len(samples)} {role} samples are also validation samples: {names}. "
            "What is fitted to the samples that judge it looks better than it is.",
            f"Leave the {role} data out: then a part of --data is set aside for it.",
        )


def _check_different(families: int, needed: int, grouped: bool) -> None:
    if families >= needed:
        return
    if grouped:
        raise DataError(
            f"The pairs fall into {families} families that share no sample; at least {needed} are needed to split the data.",
            "Give pairs that do not all hang together through common samples.",
        )
    raise DataError(
        f"The data has {families} different samples; at least {needed} are needed to split it.",
        "Give data that are not copies of one another.",
    )


def _families(data: Dataset, groups: Array | None) -> tuple[Array, Array]:
    """Positions in hash order, and the sizes of what must stay together in that order.

    Equal samples go by label, so that the order of the source does not matter. Groups stay whole, in the order of
    their family, then of their own lowest and highest hash, then of their label.
    """
    flat = None if data.labels is None else data.labels.reshape(len(data), -1)
    if groups is None:
        family = data.hashes
        order = np.lexsort((*([] if flat is None else reversed(flat.T)), family))
    else:
        group = np.unique(groups, return_inverse=True)[1]
        family = _lowest(data.hashes, _connected(data.hashes, group))
        low, high = _lowest(data.hashes, group), ~_lowest(~data.hashes, group)
        label = [] if flat is None else [_lowest(flat[:, -1], group)]
        order = np.lexsort((data.hashes, group, *label, high, low, family))
    return order.astype(np.int64), np.unique(family, return_counts=True)[1]


def _lowest(values: Array, group: Array) -> Array:
    """The lowest value of each sample's group [n]; groups are numbered 0, 1, …."""
    order = np.lexsort((values, group))
    first = np.unique(group[order], return_index=True)[1]
    return np.asarray(values[order[first]][group])


def _connected(hashes: Array, group: Array) -> Array:
    """The number of each sample's family [n]: samples are of one where they are equal or of one group, by however many steps."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, content = np.unique(hashes, return_inverse=True)
    nodes = len(names) + int(group.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(hashes), np.int8), (content, len(names) + group)), shape=(nodes, nodes))
    return np.asarray(connected_components(edges, directed=False)[1])[content]


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
