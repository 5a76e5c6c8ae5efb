"""Sequences of different lengths in one batch: filled up to the longest among them, and cut back behind the run.

Only for models of which it was seen that this changes nothing: at loading, a sequence is run alone and filled up beside a longer one, and
the answers are compared. Lengths that are far apart stay apart (buckets), so that a short request never pays for a long one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import numpy as np

from lowbit.serving.protocol.refusals import Refusal
from lowbit.types import Array, Feeds, TensorInfo

BUCKETS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""A request shares batches with those between the same two numbers; beyond the last, with those of its own length."""
SEQUENCES = ("input_ids", "token_type_ids", "attention_mask")
"""Inputs whose padding is known: token, segment and mask."""
MASK = "attention_mask"
PROBE = (5, 8)
"""Tokens of the short and of the long sequence that are compared."""
NOISE = 2e-3
"""Of an output's largest magnitude: what another order of sums may change. A value that padding leaks into differs by far more."""


@dataclass(frozen=True)
class Ragged:
    """How a model's sequences are filled up.

    Attributes:
        pads: Input -> the value that fills it.
        axes: Output -> its axis of tokens; outputs without one are left out.
    """

    pads: Mapping[str, int]
    axes: Mapping[str, int]

    def key(self, feeds: Feeds) -> Hashable:
        """Requests with the same key may run together; None where the inputs' lengths disagree."""
        lengths = {array.shape[1] for array in feeds.values()}
        if len(lengths) != 1:
            return None
        (length,) = lengths
        return next((bucket for bucket in BUCKETS if length <= bucket), length)

    def length(self, feeds: Feeds) -> int:
        """Tokens of a request."""
        return int(next(iter(feeds.values())).shape[1])

    def fill(self, feeds: Feeds, length: int) -> Feeds:
        """The same, with so many tokens."""
        missing = length - self.length(feeds)
        if not missing:
            return feeds
        return {name: np.pad(array, ((0, 0), (0, missing)), constant_values=self.pads[name]) for name, array in feeds.items()}

    def trim(self, outputs: Mapping[str, Array], length: int) -> Mapping[str, Array]:
        """Outputs with so many tokens."""
        return {name: self._cut(array, self.axes.get(name), length) for name, array in outputs.items()}

    @staticmethod
    def _cut(array: Array, axis: int | None, length: int) -> Array:
        return array if axis is None or array.shape[axis] == length else array[(slice(None),) * axis + (slice(length),)]


def ragged_for(run: Callable[[Feeds], Mapping[str, Array]], inputs: tuple[TensorInfo, ...], pad_id: int = 0) -> Ragged | None:
    """How this model's sequences may be filled up; None where its inputs are no such sequences, or filling them up changes answers.

    Args:
        run: The variant's.
        inputs: It takes.
        pad_id: Token that fills up.
    """
    names = {info.name for info in inputs}
    fits = all(len(info.shape) == 2 and not isinstance(info.shape[1], int) and np.dtype(info.dtype).kind in "iu" for info in inputs)
    if not fits or MASK not in names or not names <= set(SEQUENCES):
        return None
    pads = {name: pad_id if name == "input_ids" else 0 for name in names}
    try:
        axes = _axes(run, inputs, Ragged(pads, {}))
    except (Refusal, ValueError, RuntimeError):
        return None
    found = None if axes is None else Ragged(pads, axes)
    return found if found is not None and _same(run, inputs, found) else None


def _axes(run: Callable[[Feeds], Mapping[str, Array]], inputs: tuple[TensorInfo, ...], plain: Ragged) -> dict[str, int] | None:
    """Axes that grow with the tokens; None where more than one of an output does."""
    short, long = PROBE
    one, other = run(_probe(inputs, short)), run(plain.fill(_probe(inputs, short), long))
    found: dict[str, int] = {}
    for name, array in one.items():
        grown = [axis for axis, (a, b) in enumerate(zip(array.shape, other[name].shape, strict=True)) if a != b]
        if len(grown) > 1 or any((array.shape[axis], other[name].shape[axis]) != PROBE for axis in grown):
            return None
        if grown:
            found[name] = grown[0]
    return found


def _same(run: Callable[[Feeds], Mapping[str, Array]], inputs: tuple[TensorInfo, ...], ragged: Ragged) -> bool:
    """Whether a sequence has the same answer alone as filled up beside a longer one."""
    short, long = PROBE
    alone, company = _probe(inputs, short), _probe(inputs, long, seed=1)
    together = {name: np.concatenate([filled, company[name]]) for name, filled in ragged.fill(alone, long).items()}
    one, both = run(alone), run(together)
    first = ragged.trim({name: array[:1] for name, array in both.items()}, short)
    return all(_close(one[name], first[name]) for name in one)


def _close(one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    room = NOISE * max(float(np.abs(one).max(initial=0.0)), 1e-6)
    return bool(np.abs(one.astype(np.float64) - other).max(initial=0.0) <= room)


def _probe(inputs: tuple[TensorInfo, ...], length: int, seed: int = 0) -> Feeds:
    """One sequence of small token numbers, all of it looked at."""
    rng = np.random.default_rng(seed)
    found: Feeds = {}
    for info in inputs:
        ids = rng.integers(1, 30, (1, length)) if info.name == "input_ids" else np.full((1, length), int(info.name == MASK))
        found[info.name] = ids.astype(info.dtype)
    return found
