"""Answers that replicas share in a real Redis: the same for all, and nothing is lost when it is away."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis_case import RedisServer, redis_server
from serving_case import BASELINE, INPUT, OUTPUT, tiny_bundle

from conftest import missing
from lowbit.errors import UsageError
from lowbit.serving.answer.answered import Answered, Plan
from lowbit.serving.cache import remote
from lowbit.serving.cache.cache import Cache, fits
from lowbit.serving.cache.images import Look
from lowbit.serving.cache.remote import Link, Shared, SharedIndex, _kept
from lowbit.serving.cache.settings import CacheSettings
from lowbit.serving.cache.store import Kept, Local
from lowbit.serving.protocol import framing
from lowbit.serving.run import deployment
from small_models import images

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
        name = "lowbit:e:" + b"k".hex()
        odd = framing.pack({"y": np.zeros(2)}, {"key": name, "kept": 3, "until": 1e12})
        wrong = [packed(name, until=until) for until in (10**400, float("nan"), float("inf"), -1.0)]
        wrong += [packed("lowbit:e:00"), packed(name, uncertain=True), packed(name, escalated="2")]
        for value in (b"", b"nonsense", odd, b"lowbit\x01\n\xff\xff\xff\xff", b"lowbit\x01\n\x02\x00\x00\x00[]", *wrong):
            await client.set(name, value)
            assert await store.get(b"k") is None
        await client.set(name, packed(name))
        assert await store.get(b"k", lambda kept: kept.outputs["y"].shape == (2, 4)) is None
        assert store.facts()["entries"] == 0  # what does not fit is not taken into the process either
        assert await store.get(b"k", lambda kept: kept.outputs["y"].shape == (2, 3)) is not None
        assert store.facts().get("redis_errors", 0) == 0

    run(work)


def packed(name: str, until: float = 1e12, **about: Any) -> bytes:
    """As it lies in Redis."""
    return framing.pack(KEPT.outputs, {"key": name, "kept": {**ABOUT, **about}, "until": until})


NUMBERS = st.integers(-(10**400), 10**400) | st.floats() | st.booleans() | st.none() | st.text(max_size=3)
ANYTHING = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_answer_is_an_answer_or_none(data: st.DataObject) -> None:
    """Bytes of a real one are changed, and what its head says."""
    assert _kept(packed("name"), "name") is not None
    value = bytearray(packed("name"))
    for _ in range(data.draw(st.integers(1, 3))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    for damaged in (bytes(value), with_head(data)):
        found = _kept(damaged, "name")
        if found is not None:
            kept, numbers = found
            assert all(isinstance(array, np.ndarray) for array in kept.outputs.values())
            assert type(kept.about["escalated"]) is int
            assert all(np.isfinite(number) for number in numbers.values())


def with_head(data: st.DataObject) -> bytes:
    """A real answer with something else somewhere in its head."""
    value, start = packed("name"), len(framing.MAGIC) + 4
    length = int.from_bytes(value[start - 4 : start], "little")
    head = json.loads(value[start : start + length])
    places = [(head, "tensors"), (head, "about"), *((head["about"], name) for name in head["about"])]
    places += [(head["about"]["kept"], name) for name in ABOUT] + [(tensor, at) for tensor in head["tensors"] for at in range(4)]
    where, what = data.draw(st.sampled_from(places))
    where[what] = data.draw(ANYTHING)
    raw = json.dumps(head).encode()
    return framing.MAGIC + len(raw).to_bytes(4, "little") + raw + value[start + length :]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_an_answer_or_none(value: bytes) -> None:
    assert _kept(value, "name") is None


def test_only_what_the_model_could_have_said_fits(tmp_path: Path) -> None:
    made = deployment.load(tiny_bundle(tmp_path / "tiny"))
    try:
        plan = Plan(made.variants["chosen"], made.variants["full"], None, "margin", 0.5, b"space")
        asked, about = {INPUT: images(3)}, {"escalated": 2, "escalated_to": BASELINE, "uncertain": 3}
        y = np.zeros((3, 10), np.float32)
        assert fits(Kept({OUTPUT: y}, about), plan, asked)
        for outputs in (
            {},
            {"other": y},
            {OUTPUT: y, "more": y},
            {OUTPUT: y[:2]},
            {OUTPUT: y[:, :9]},
            {OUTPUT: y[:, 0]},
            {OUTPUT: y.astype(int)},
        ):
            assert not fits(Kept(outputs, about), plan, asked)
        for wrong in ({"escalated": 4}, {"escalated": -1}, {"uncertain": 4}, {"escalated_to": "int3"}):
            assert not fits(Kept({OUTPUT: y}, about | wrong), plan, asked)
    finally:
        made.close()


def test_another_models_answer_in_redis_is_worked_out_again(server: RedisServer, tmp_path: Path) -> None:
    made = deployment.load(tiny_bundle(tmp_path / "tiny"))
    plan = Plan(made.variants["chosen"], None, None, "margin", 0.0, b"space")
    asked, right = {INPUT: images(2)}, np.ones((2, 10), np.float32)

    async def ran() -> Answered:
        return Answered({OUTPUT: right}, plan.variant)

    async def work() -> None:
        cache = Cache.of(CacheSettings(1 << 20, redis=server.url))
        assert cache is not None
        await cache.open()
        name = f"lowbit:e:{framing.digest(b'space', asked).hex()}"
        await Link(server.url).client.set(name, packed(name, escalated=0, escalated_to=None))
        found = await cache.answered(plan, asked, False, ran, asyncio.get_running_loop().time() + 5)
        assert found.cache == "miss"
        np.testing.assert_array_equal(found.outputs[OUTPUT], right)
        await cache.close()

    try:
        run(work)
    finally:
        made.close()


def test_a_band_holds_the_newest_images_and_no_more(server: RedisServer) -> None:
    async def work() -> None:
        now = 1000.0
        link_, client = await link(server), Link(server.url).client
        index = SharedIndex(link_, 100, clock=lambda: now)
        for number in range(remote.IN_BAND + 9):
            now += 1
            await index.put(b"space", Look(IMAGE.bits, IMAGE.thumb + np.float32(20 * number)), KEPT)
            await asyncio.gather(*link_._tasks)
        bands = [name async for name in client.scan_iter("lowbit:b:*")]
        assert [await client.zcard(name) for name in bands] == [remote.IN_BAND] * 16
        assert await index.near(b"space", Look(IMAGE.bits, IMAGE.thumb + np.float32(20 * (remote.IN_BAND + 8)))) is not None
        assert await index.near(b"space", IMAGE) is None  # the oldest went
        now += 101
        await index.put(b"space", IMAGE, KEPT)
        await asyncio.gather(*link_._tasks)
        assert [await client.zcard(name) for name in bands] == [1] * 16  # and all that were older than their time
        (one,) = await client.zrange(bands[0], 0, -1)
        stolen = framing.pack({**KEPT.outputs, remote.THUMB: IMAGE.thumb}, {"key": "lowbit:s:another", "kept": ABOUT, "detail": 0.0})
        assert await index.near(b"space", IMAGE) is not None
        await client.set(one, stolen)
        assert await index.near(b"space", IMAGE) is None

    run(work)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_answers_are_kept_for_some_time(seconds: float) -> None:
    with pytest.raises(UsageError, match="--cache-ttl"):
        Cache.of(CacheSettings(1 << 20, seconds))


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
