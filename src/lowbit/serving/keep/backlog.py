"""What waits to be written to disk, off the hot path: bounded, and honest about what found no room."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Backlog(Generic[Item]):
    """Filled on the event loop, emptied by one writer. Where nothing is written for long, what comes is dropped and counted: the disk must
    never cost a request its answer, nor the server its memory.

    Attributes:
        dropped: That found no room.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        """Holds at most so many things of so many bytes together."""
        self.dropped = 0
        self._most, self._most_bytes = most, most_bytes
        self._waiting: deque[tuple[Item, int]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: Item, size: int) -> None:
        """One more, of so many bytes."""
        if len(self._waiting) >= self._most or self._bytes + size > self._most_bytes:
            self.dropped += 1
            return
        self._waiting.append((item, size))
        self._bytes += size

    def take(self, most: int | None = None) -> list[Item]:
        """The oldest so many, all if None; they are no longer here."""
        number = len(self._waiting) if most is None else min(most, len(self._waiting))
        taken = [self._waiting.popleft() for _ in range(number)]
        self._bytes -= sum(size for _, size in taken)
        return [item for item, _ in taken]
