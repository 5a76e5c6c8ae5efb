"""Where exact answers are kept: the interface of stores, and the one in this process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lowbit.types import Array

OVERHEAD = 512
"""Bytes that an entry takes beside its numbers: key, names, places in the order."""


@dataclass(frozen=True)
class Kept:
    """An answer that is kept.

    Attributes:
        outputs: By name; read-only.
        about: What else is to be said of it, e.g. how many rows were asked again.
    """

    outputs: Mapping[str, Array]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return OVERHEAD + sum(_nbytes(array) for array in self.outputs.values())

    def own(self) -> Kept:
        """With arrays of its own: a view would hold the whole batch it was cut from, and somebody may write to what was handed out."""
        outputs = {name: array.copy() for name, array in self.outputs.items()}
        for array in outputs.values():
            array.flags.writeable = False
        return Kept(outputs, self.about)


Fits = Callable[[Kept], bool]


def anything(_: Kept) -> bool:
    """Fits always."""
    return True


class Store(Protocol):
    """Keeps answers by key. Neither call ever raises: what cannot be kept or found is a miss."""

    async def open(self) -> None: ...

    async def get(self, key: bytes, fits: Fits = anything) -> Kept | None:
        """The answer; `fits` is asked where it comes from another process."""
        ...

    async def put(self, key: bytes, kept: Kept) -> None: ...

    def facts(self) -> dict[str, float]:
        """Numbers for metrics, by name."""
        ...

    async def close(self) -> None: ...


class Local:
    """The least recently used go first once the bytes are used up; nothing is older than its time to live."""

    def __init__(self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Keeps nothing yet.

        Args:
            max_bytes: Of all entries together.
            ttl_s: Seconds for which an answer is kept.
            clock: Seconds.
        """
        self.max_bytes, self.ttl_s = max_bytes, ttl_s
        self.nbytes = 0
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, int, Kept]] = OrderedDict()

    def __len__(self) -> int:
        """Entries."""
        return len(self._entries)

    async def open(self) -> None:
        """Is always."""

    async def get(self, key: bytes, fits: Fits = anything) -> Kept | None:  # noqa: ARG002  (it was put here by this process)
        """The answer, if it is here and young enough."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        until, _, kept = entry
        if self._clock() >= until:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return kept

    async def put(self, key: bytes, kept: Kept, ttl_s: float | None = None) -> None:
        """Keeps an answer; one that is larger than all the room is not kept. `ttl_s` is less where it is not new."""
        size = kept.nbytes
        if key in self._entries:
            self._drop(key)
        if size > self.max_bytes:
            return
        self._entries[key] = (self._clock() + (self.ttl_s if ttl_s is None else ttl_s), size, kept.own())
        self.nbytes += size
        while self.nbytes > self.max_bytes:
            self._drop(next(iter(self._entries)))

    def facts(self) -> dict[str, float]:
        """Entries and bytes."""
        return {"entries": len(self._entries), "bytes": self.nbytes}

    async def close(self) -> None:
        """Forgets everything."""
        self._entries.clear()
        self.nbytes = 0

    def _drop(self, key: bytes) -> None:
        _, size, _ = self._entries.pop(key)
        self.nbytes -= size


def _nbytes(array: Array) -> int:
    return sum(len(value) + 40 for value in array.ravel()) if array.dtype == object else int(array.nbytes)
