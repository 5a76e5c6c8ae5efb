"""Answers of images that are nearly the same: found by hash, verified block by block."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lowbit.serving.cache.images import Look
from lowbit.serving.cache.store import OVERHEAD, Fits, Kept, anything
from lowbit.types import Array

CLOSE = 6.0
"""Grey levels by which blocks may differ; chosen by benchmarks/similarity.py."""
NEAR = 40
"""Bits of 256 by which hashes may differ: candidates alone, so generous."""
MARGIN = 0.8
"""Answers with a smaller margin are not kept for others: a small change of the image may change them."""
CANDIDATES = 8
MOST = 4096
"""Entries: each look-up compares with all of them."""


class Index(Protocol):
    """Keeps answers by what their images look like. Neither call ever raises."""

    async def near(self, space: bytes, look: Look, fits: Fits = anything) -> Kept | None:
        """The answer of the closest image within the namespace, if one is close enough; `fits` is asked as by a `Store`."""
        ...

    async def put(self, space: bytes, look: Look, kept: Kept) -> None: ...


@dataclass(frozen=True)
class _Entry:
    space: bytes
    look: Look
    kept: Kept
    until: float

    @property
    def nbytes(self) -> int:
        return self.kept.nbytes + int(self.look.thumb.nbytes) + OVERHEAD


class LocalIndex:
    """In this process: a ring of the newest entries, all of whose hashes are compared with.

    Attributes:
        nbytes: Memory that it takes.
    """

    def __init__(
        self, max_bytes: int, ttl_s: float, *, close: float = CLOSE, most: int = MOST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Keeps nothing yet."""
        self.max_bytes, self.ttl_s, self.close = max_bytes, ttl_s, close
        self.nbytes = 0
        self._clock = clock
        self._bits = np.zeros((most, 4), np.uint64)
        self._entries: list[_Entry | None] = [None] * most
        self._order: deque[int] = deque()  # places, the oldest first
        self._free = list(range(most))

    def __len__(self) -> int:
        """Entries."""
        return len(self._order)

    async def near(self, space: bytes, look: Look, fits: Fits = anything) -> Kept | None:  # noqa: ARG002
        """See `Index`."""
        found = self.nearest(space, look)
        return found[1] if found is not None and found[0] <= self.close else None

    def nearest(self, space: bytes, look: Look) -> tuple[float, Kept] | None:
        """The closest entry among those with a near hash, and its distance in grey levels."""
        now, found = self._clock(), None
        while self._order and (oldest := self._entries[self._order[0]]) is not None and oldest.until <= now:
            self._drop()
        if not self._order:
            return None
        for place in near_places(differing(self._bits, look.bits)):
            entry = self._entries[place]
            if entry is not None and entry.space == space:
                distance = look.distance(entry.look)
                if found is None or distance < found[0]:
                    found = distance, entry.kept
        return found

    async def put(self, space: bytes, look: Look, kept: Kept) -> None:
        """See `Index`."""
        entry = _Entry(space, look, kept.own(), self._clock() + self.ttl_s)
        if entry.nbytes > self.max_bytes:
            return
        while not self._free or self.nbytes + entry.nbytes > self.max_bytes:
            self._drop()
        place = self._free.pop()
        self._bits[place], self._entries[place] = look.bits, entry
        self._order.append(place)
        self.nbytes += entry.nbytes

    def _drop(self) -> None:
        place = self._order.popleft()
        entry = self._entries[place]
        assert entry is not None, "what is in the order is there"
        self._entries[place] = None
        self.nbytes -= entry.nbytes
        self._free.append(place)


def differing(bits: Array, one: Array) -> Array:
    """Bits by which hashes uint64 [n, 4] differ from one [4]; int [n]."""
    return np.asarray(_count(bits ^ one).sum(axis=1, dtype=np.intp))


def near_places(far: Array) -> Array:
    """Places of the nearest hashes, the nearest first; only those within `NEAR`."""
    places = np.flatnonzero(far <= NEAR)
    return places[np.argsort(far[places], kind="stable")][: 4 * CANDIDATES]


_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


def _count(values: Array) -> Array:
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.bitwise_count(values)
    return _ONES[np.ascontiguousarray(values).view(np.uint8)]
