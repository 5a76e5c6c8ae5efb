"""Answers that replicas share in a real Redis: the same for all, and nothing is lost when it is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis_case import RedisServer, redis_server

from conftest import missing
from lowbit.errors import UsageError
from lowbit.serving.cache import framing, remote
from lowbit.serving.cache.cache import Cache
from lowbit.serving.cache.images import Look
from lowbit.serving.cache.remote import Link, Shared, SharedIndex, _kept
from lowbit.serving.cache.settings import CacheSettings
from lowbit.serving.cache.store import Kept, Local

ABOUT = {"escalated": 2, "escalated_to": "fp32@x", "uncertain": None}
KEPT = Kept({"y": np.arange(6, dtype=np.float32).reshape(2, 3), "s": np.array(["a", "bc"], object)}, ABOUT)
IMAGE = Look(np.array([1, 2, 3, 2**63], np.uint64), np.full((4, 4, 3), 100, np.float32))


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    try:
        import redis  # noqa: F401
    except ImportError:
        missing("redis")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as found:
        yield found


def replica(link: Link, local: Local | None = None, **options: Any) -> Shared:
    return Shared(link, Local(1 << 20, 100) if local is None else local, **options)


async def link(server: RedisServer) -> Link:
    """Connected."""
    made = Link(server.url)
    await made.open()
    assert made.up
    return made


async def arrived(store: Shared, key: bytes) -> Kept:
    """What another replica sees, once it is there."""
    async with asyncio.timeout(5):
        while (found := await store.get(key)) is None:
            await asyncio.sleep(0.01)
    return found


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(work(), 30)  # type: ignore[arg-type]

    asyncio.run(main())


def test_what_one_replica_keeps_another_finds(server: RedisServer) -> None:
    async def work() -> None:
        first, second = replica(await link(server)), replica(await link(server))
        assert await second.get(b"k") is None
        await first.put(b"k", KEPT)
        found = await arrived(second, b"k")
        assert found.about == ABOUT
        np.testing.assert_array_equal(found.outputs["y"], KEPT.outputs["y"])
        assert found.outputs["s"].tolist() == ["a", "bc"]
        assert second.facts()["entries"] == 1  # and has it at hand from now on
        assert await second.get(b"other") is None
        await first.close()
        await second.close()

    run(work)


def test_nothing_outlives_its_time_by_coming_over_redis(server: RedisServer) -> None:
    async def work() -> None:
        now = 1000.0
        first = replica(await link(server), Local(1 << 20, 5), clock=lambda: now)
        await first.put(b"k", KEPT)
        await arrived(replica(await link(server), clock=lambda: now), b"k")
        here = Local(1 << 20, 100, lambda: now)
        late = replica(await link(server), here, clock=lambda: now)
        now = 1004.0
        assert await late.get(b"k") is not None
        now = 1005.5
        assert await late.get(b"k") is None  # neither its own copy nor Redis's
        client = Link(server.url).client
        assert 0 < await client.pttl("lowbit:e:" + b"k".hex()) <= 5000

    run(work)


def test_a_redis_that_is_away_is_a_miss_and_is_found_again(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_S", 0.05)
    monkeypatch.setattr(remote, "LAST_S", 0.1)

    async def work() -> None:
        store, other = replica(await link(server)), replica(await link(server))
        await store.put(b"k", KEPT)
        await arrived(other, b"k")
        server.stop()
        started = time.monotonic()
        for number in range(200):
            assert await store.get(b"none %d" % number) is None
            await store.put(b"own %d" % number, KEPT)
            assert await store.get(b"own %d" % number) is not None  # what is in the process still is
        assert time.monotonic() - started < 2  # not 200 times a timeout
        facts = store.facts()
        assert facts["redis_errors"] >= 1
        assert facts["redis_skipped"] > 100
        server.start()
        await asyncio.sleep(0.3)
        async with asyncio.timeout(10):
            while not store.facts()["redis_up"] or await other.get(b"after") is None:
                await store.get(b"none")
                await store.put(b"after", KEPT)
                await asyncio.sleep(0.02)
        await store.close()
        await other.close()

    run(work)


def test_a_redis_that_hangs_holds_nobody_up(server: RedisServer) -> None:
    async def work() -> None:
        store = replica(await link(server))
        server.stall(3.0)
        started = time.monotonic()
        for _ in range(50):
            assert await store.get(b"none") is None
        assert time.monotonic() - started < 1.5
        assert store.facts()["redis_errors"] >= 1

    run(work)


def test_what_others_wrote_to_redis_is_no_answer(server: RedisServer) -> None:
    async def work() -> None:
        store = replica(await link(server))
        client = Link(server.url).client
        odd = framing.pack({"y": np.zeros(2)}, {"kept": 3, "until": 1e12})
        for value in (b"", b"nonsense", odd, b"lowbit\x01\n\xff\xff\xff\xff", b"lowbit\x01\n\x02\x00\x00\x00[]"):
            await client.set("lowbit:e:" + b"k".hex(), value)
            assert await store.get(b"k") is None
        assert store.facts().get("redis_errors", 0) == 0

    run(work)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_an_answer_or_none(value: bytes) -> None:
    assert _kept(value) is None


def test_similar_images_are_found_across_replicas(server: RedisServer) -> None:
    async def work() -> None:
        first, second = SharedIndex(await link(server), 100), SharedIndex(await link(server), 100)
        await first.put(b"space-of-one", IMAGE, KEPT)
        near = Look(IMAGE.bits ^ np.array([3, 0, 0, 1], np.uint64), IMAGE.thumb + np.float32(2))  # two bands are still the same
        async with asyncio.timeout(5):
            while (found := await second.near(b"space-of-one", near)) is None:
                await asyncio.sleep(0.01)
        assert found.about == ABOUT
        np.testing.assert_array_equal(found.outputs["y"], KEPT.outputs["y"])
        assert set(found.outputs) == {"y", "s"}
        edited = IMAGE.thumb.copy()
        edited[1, 1] += 30
        for bits, thumb, space in (
            (IMAGE.bits, edited, b"space-of-one"),
            (IMAGE.bits, IMAGE.thumb, b"space-of-two"),
            (~IMAGE.bits, IMAGE.thumb, b"space-of-one"),
        ):
            assert await second.near(space, Look(bits, thumb)) is None

    run(work)


def test_redis_that_was_never_there_lets_the_server_start() -> None:
    async def work() -> None:
        cache = Cache.of(CacheSettings(1 << 20, redis="redis://127.0.0.1:1/0", similar=True))
        assert cache is not None
        await cache.store.put(b"k", KEPT)
        assert await cache.store.get(b"k") is not None
        assert await cache.store.get(b"l") is None
        await cache.close()

    run(work)


def test_an_address_that_is_none_of_redis_is_an_error() -> None:
    with pytest.raises(UsageError, match="not understood"):
        Link("http://127.0.0.1")
