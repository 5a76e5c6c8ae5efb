"""Answers in a Redis that several replicas share. A Redis that is away costs nothing but its answers.

Keys: `lowbit:e:KEY` an exact answer; `lowbit:s:SPACE:ID` a similar one with its look; `lowbit:b:SPACE:BAND:BITS` the newest ids whose hash
has these 16 bits in this band, by time. Redis without modules has no search by distance; two hashes that differ by few bits share a band.
Others may write there: an answer says which key it was kept under, and is compared with what the model gives.
Everything expires; give Redis a `maxmemory` with `allkeys-lru`, and it stays within that.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np

from lowbit.errors import UsageError
from lowbit.serving.cache.images import Look
from lowbit.serving.cache.similar import CANDIDATES, CLOSE
from lowbit.serving.cache.store import Fits, Kept, Local, anything
from lowbit.serving.protocol import framing
from lowbit.types import Array

PATIENCE_S = 0.01
"""A look-up that takes longer is a miss."""
CONNECT_S = 1.0
"""For connecting and for sending answers, which nobody waits for."""
FIRST_S, LAST_S = 0.1, 5.0
"""After a failure it is tried again after so long, and after twice as long each further time, up to the last."""
PENDING = 64
"""Answers that may be on their way to Redis; more are not kept."""
IN_BAND = 16
"""Ids of one band that are kept and looked at: the newest."""
LONGEST_MS = 10 * 366 * 24 * 3600 * 1000
"""Redis takes no time that is much longer."""
COUNTED = ("redis_errors", "redis_skipped", "redis_unkept")
THUMB = "\0thumb"
Result = TypeVar("Result")
log = logging.getLogger("lowbit.serving")


class Link:
    """A connection that is given up quickly and taken up again by itself, behind the requests' backs.

    Attributes:
        counts: By the words of `COUNTED`: what failed, calls while it was away, answers that could not be sent.
        up: Whether it answered last time.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Connects at the first call.

        Raises:
            UsageError: the `redis` package is missing, or the URL is none of Redis.
        """
        try:
            import redis.asyncio as client
            from redis.backoff import NoBackoff
            from redis.exceptions import MaxConnectionsError
            from redis.retry import Retry
        except ImportError as error:
            raise UsageError("The cache in Redis needs the package redis.", "pip install lowbit[redis]") from error
        try:
            self.client: Any = client.Redis.from_url(url, socket_connect_timeout=1.0, max_connections=64, retry=Retry(NoBackoff(), 0))
        except ValueError as error:
            raise UsageError(f"The address of Redis is not understood: {error}.", "E.g. redis://127.0.0.1:6379/0.") from error
        self.counts = Counter(dict.fromkeys(COUNTED, 0))
        self.up = False
        self._full = MaxConnectionsError
        self._clock = clock
        self._next_try, self._pause = 0.0, FIRST_S
        self._tasks: set[asyncio.Task[Any]] = set()
        self._trying: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connects, if Redis is there; else it is taken up once it is."""
        self._try()
        if self._trying is not None:
            await self._trying

    async def call(self, work: Callable[[], Awaitable[Result]]) -> Result | None:
        """What the work gives; None where Redis is away, slow, or fails. Never waits longer than `PATIENCE_S`, nor for Redis to come."""
        if not self.up:
            self.counts["redis_skipped"] += 1
            self._try()
            return None
        try:
            async with asyncio.timeout(PATIENCE_S):
                found = await work()
            self._pause = FIRST_S
            return found
        except Exception as error:  # redis-py raises errors of its own, of sockets, and of parsing
            self._failed(error)
            return None

    def later(self, work: Callable[[], Awaitable[Any]]) -> None:
        """Does the work without anybody waiting."""
        if len(self._tasks) >= PENDING or not self.up:
            self.counts["redis_unkept"] += 1
            if not self.up:
                self._try()
            return
        task = asyncio.get_running_loop().create_task(self._quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _quietly(self, work: Callable[[], Awaitable[Any]]) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                await work()
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self.counts["redis_errors"] += 1
        if self.up and not isinstance(error, self._full):
            log.warning("Redis is away: %s", type(error).__name__)
            self.up = False
            self._wait()

    def _try(self) -> None:
        """Sees in the background whether it is there; after each failure later."""
        if self._trying is None and self._clock() >= self._next_try:
            self._trying = asyncio.get_running_loop().create_task(self._ping())

    def _wait(self) -> None:
        """The next try is later than the last: one that answers pings and is too slow for the rest is left alone, too."""
        self._next_try = self._clock() + self._pause
        self._pause = min(2 * self._pause, LAST_S)

    async def _ping(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                await self.client.ping()
            self.up = True
            log.info("Redis is there")
        except Exception:
            self.counts["redis_errors"] += 1
            self._wait()
        finally:
            self._trying = None

    async def close(self) -> None:
        """Lets what is on its way arrive, then the connections go."""
        if self._trying is not None:
            self._trying.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CONNECT_S)
        await self.client.aclose()


class Shared:
    """Exact answers: in this process first, then in Redis."""

    def __init__(self, link: Link, local: Local, clock: Callable[[], float] = time.time) -> None:
        """With a local store in front, which decides how long an answer is kept."""
        self._link, self._local, self._clock = link, local, clock

    async def open(self) -> None:
        """See `Store`."""
        await self._link.open()

    async def get(self, key: bytes, fits: Fits = anything) -> Kept | None:
        """See `Store`."""
        if (here := await self._local.get(key)) is not None:
            return here
        value = await self._link.call(lambda: self._link.client.get(_exact(key)))
        found = None if value is None else _kept(value, _exact(key))
        if found is None:
            return None
        kept, about = found
        left = min(about["until"] - self._clock(), self._local.ttl_s)
        if left <= 0 or not fits(kept):
            return None
        await self._local.put(key, kept, left)
        return kept

    async def put(self, key: bytes, kept: Kept) -> None:
        """See `Store`."""
        await self._local.put(key, kept)
        name, until = _exact(key), self._clock() + self._local.ttl_s
        value = framing.pack(kept.outputs, {"key": name, "kept": dict(kept.about), "until": until})
        self._link.later(lambda: self._link.client.set(name, value, px=_milliseconds(self._local.ttl_s)))

    def facts(self) -> dict[str, float]:
        """See `Store`."""
        return {**self._local.facts(), **self._link.counts, "redis_up": float(self._link.up)}

    async def close(self) -> None:
        """See `Store`."""
        await self._local.close()
        await self._link.close()


class SharedIndex:
    """Answers of similar images in Redis; see `similar.Index`."""

    def __init__(self, link: Link, ttl_s: float, *, close: float = CLOSE, clock: Callable[[], float] = time.time) -> None:
        """Over a link."""
        self._link, self._ttl_s, self._close, self._clock = link, ttl_s, close, clock

    async def near(self, space: bytes, look: Look, fits: Fits = anything) -> Kept | None:
        """See `Index`."""
        places = _bands(space, look.bits)
        found = await self._link.call(lambda: self._ids(places))
        ids = [name for name, _ in Counter(name for band in found or () for name in band).most_common(CANDIDATES)]
        if not ids:
            return None
        values = await self._link.call(lambda: self._link.client.mget(ids))
        best, kept = self._close, None
        for name, value in zip(ids, values or (), strict=False):
            entry = None if value is None else _kept(value, name.decode(errors="replace"))
            if entry is None or THUMB not in entry[0].outputs:
                continue
            outputs = dict(entry[0].outputs)
            thumb, answer = outputs.pop(THUMB), Kept(outputs, entry[0].about)
            if thumb.dtype != look.thumb.dtype or not fits(answer):
                continue
            if (distance := look.distance(Look(look.bits, thumb, entry[1]["detail"]))) <= best:
                best, kept = distance, answer
        return kept

    async def _ids(self, places: list[str]) -> list[list[bytes]]:
        async with self._link.client.pipeline(transaction=False) as pipe:
            for place in places:
                pipe.zrevrange(place, 0, IN_BAND - 1)
            found: list[list[bytes]] = await pipe.execute()
            return found

    async def put(self, space: bytes, look: Look, kept: Kept) -> None:
        """See `Index`."""
        name = f"lowbit:s:{space[:12].hex()}:{hashlib.sha256(look.thumb.tobytes()).hexdigest()[:24]}"
        value = framing.pack({**kept.outputs, THUMB: look.thumb}, {"key": name, "kept": dict(kept.about), "detail": look.detail})
        self._link.later(lambda: self._write(_bands(space, look.bits), name, value))

    async def _write(self, places: list[str], name: str, value: bytes) -> None:
        now, milliseconds = self._clock(), _milliseconds(self._ttl_s)
        async with self._link.client.pipeline(transaction=False) as pipe:
            pipe.set(name, value, px=milliseconds)
            for place in places:
                pipe.zadd(place, {name: now})
                pipe.zremrangebyscore(place, "-inf", now - self._ttl_s)
                pipe.zremrangebyrank(place, 0, -IN_BAND - 1)
                pipe.pexpire(place, milliseconds)
            await pipe.execute()


def _exact(key: bytes) -> str:
    return f"lowbit:e:{key.hex()}"


def _milliseconds(seconds: float) -> int:
    return min(max(int(1000 * seconds), 1), LONGEST_MS)


def _bands(space: bytes, bits: Array) -> list[str]:
    """Names of the sets that a hash belongs to: 16 bands of 16 bits."""
    bands = np.ascontiguousarray(bits).view(np.uint16).tolist()
    return [f"lowbit:b:{space[:12].hex()}:{number:x}:{band:04x}" for number, band in enumerate(bands)]


def _kept(value: bytes, key: str) -> tuple[Kept, dict[str, float]] | None:
    """An answer from Redis, and numbers about it; None for anything that is none, or was kept under another key."""
    try:
        outputs, about = framing.unpack(value)
        kept, numbers = about["kept"], {name: float(about.get(name, 0.0)) for name in ("until", "detail")}
        escalated, to, uncertain = kept["escalated"], kept["escalated_to"], kept["uncertain"]
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    counts = type(escalated) is int and (uncertain is None or type(uncertain) is int)
    if about.get("key") != key or not counts or not isinstance(to, str | None) or not all(map(math.isfinite, numbers.values())):
        return None
    return Kept(outputs, {"escalated": escalated, "escalated_to": to, "uncertain": uncertain}), numbers
