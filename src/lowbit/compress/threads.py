"""How many threads numpy's linear algebra may use while a model is fitted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra on one thread; onnxruntime keeps its own.

    Fitting solves thousands of small problems, one after the other. Threads that wait for each other at every one of them bring little
    on an idle machine; on a busy one they took four times as long (docs/lab.md).
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield
