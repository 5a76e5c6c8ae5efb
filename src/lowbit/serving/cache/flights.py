"""Requests for the same thing at the same time run once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from lowbit.serving.protocol.refusals import TooLate

Found = TypeVar("Found")


class Flights(Generic[Found]):
    """What is being worked out, by key.

    The first to ask does the work; who comes later waits for it, until its own deadline. Where the first gives up (its client went away,
    its deadline passed, its place in the queue was refused), the next one does the work: nobody fails for another's reasons. Where its
    result is worth nothing to others, each of them does own work.
    """

    def __init__(self) -> None:
        """Nothing is under way."""
        self._flying: dict[bytes, asyncio.Future[list[Found] | None]] = {}

    def __len__(self) -> int:
        """Keys under way."""
        return len(self._flying)

    async def once(
        self, key: bytes, work: Callable[[], Awaitable[Found]], deadline: float, worth: Callable[[Found], bool] = lambda _: True
    ) -> tuple[Found, bool]:
        """The result, and whether another's work gave it.

        Args:
            key: Of the thing.
            work: Makes it.
            deadline: On the event loop's clock; how long to wait for another's. `work` sees to its own.
            worth: Whether a result may be handed to others.

        Raises:
            TooLate: the deadline passed while another worked.
            Exception: what `work` raised here.
        """
        while (other := self._flying.get(key)) is not None:
            found = await _until(other, deadline)
            if found is not None:
                return (found[0], True) if found else (await work(), False)
        mine: asyncio.Future[list[Found] | None] = asyncio.get_running_loop().create_future()
        self._flying[key] = mine
        try:
            result = await work()
            mine.set_result([result] if worth(result) else [])
            return result, False
        finally:
            del self._flying[key]
            if not mine.done():
                mine.set_result(None)


async def _until(future: asyncio.Future[list[Found] | None], deadline: float) -> list[Found] | None:
    """Waits without ending the other's work when this one is given up."""
    try:
        async with asyncio.timeout_at(None if deadline == float("inf") else deadline):
            return await asyncio.shield(future)
    except TimeoutError:
        raise TooLate("The deadline passed while the same request of another client ran.") from None
