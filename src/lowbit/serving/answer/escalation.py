"""Uncertain rows are asked again at higher precision, and take their places among the certain ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lowbit.types import Array, Feeds


def rows_of(feeds: Feeds, rows: Array) -> Feeds:
    """Some rows of every input, [len(rows), ...]."""
    return feeds if len(rows) == len(next(iter(feeds.values()))) else {name: array[rows] for name, array in feeds.items()}


def merged(first: Mapping[str, Array], again: Mapping[str, Array], rows: Array) -> dict[str, Array]:
    """The first answer with some rows replaced.

    Args:
        first: By name, [N, ...]; not changed.
        again: The same outputs for the rows alone, [len(rows), ...].
        rows: Positions in the first answer, each once.

    Returns:
        By name, [N, ...], in the first answer's types.
    """
    found: dict[str, Array] = {}
    for name, array in first.items():
        replaced = np.array(array)
        replaced[rows] = again[name]
        found[name] = replaced
    return found


def can_merge(outputs: Mapping[str, Array], n: int) -> bool:
    """Whether every output has a row for each of the n rows that were asked."""
    return all(array.ndim > 0 and len(array) == n for array in outputs.values())
