"""A thread for calls that may wait for a disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
LAST_S = 5.0
"""What still runs at the end has so long."""


class Thread:
    """One call after the other, off the event loop."""

    def __init__(self, name: str) -> None:
        """Starts with the first call."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, call: Callable[[], T]) -> T:
        """What the call returns or raises."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def close(self) -> None:
        """Waits a little for the last call; a disk that hangs must not keep a server from ending."""
        end = asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)
        try:
            async with asyncio.timeout(LAST_S):
                await end
        except TimeoutError:
            self._pool.shutdown(wait=False, cancel_futures=True)
