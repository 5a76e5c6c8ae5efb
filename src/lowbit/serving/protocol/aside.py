"""Threads for what takes long before and behind a model: reading large bodies, decoding images, writing large answers.

What is small is done at once: handing it over would take longer than it does.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

SMALL = 256 << 10
"""Bytes that are read on the event loop: up to about 5 ms of decimal numbers."""
THREADS = min(4, os.cpu_count() or 1)
_POOL = ThreadPoolExecutor(THREADS, thread_name_prefix="lowbit-prepare")  # starts its threads once they are needed
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


async def in_thread(work: Callable[_Given, _Result], *given: _Given.args, **named: _Given.kwargs) -> _Result:
    """What `work` gives; the event loop goes on meanwhile."""
    assert not named, "executors take positions"
    return await asyncio.get_running_loop().run_in_executor(_POOL, work, *given)


async def by_size(size: int, work: Callable[_Given, _Result], *given: _Given.args, **named: _Given.kwargs) -> _Result:
    """What `work` gives: here where `size` is small, else in a thread."""
    return work(*given, **named) if size <= SMALL else await in_thread(work, *given, **named)
