"""An ordered, bounded parallel map: reads ahead a little, never the whole data set."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def workers() -> int:
    """Threads that decode: one a usable core, 16 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 16)


def ordered_map(function: Callable[[T], R], items: Iterable[T], threads: int, ahead: int) -> Iterator[R]:
    """`map` on threads: results in order, at most `ahead` items in work or waiting; an exception is raised at its place.

    Threads are enough: decoding and numpy release the interpreter lock.
    """
    source = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="lowbit-data")
    try:
        pending: deque[Future[R]] = deque(pool.submit(function, item) for item in islice(source, ahead))
        while pending:
            result = pending.popleft().result()
            for item in islice(source, 1):
                pending.append(pool.submit(function, item))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
