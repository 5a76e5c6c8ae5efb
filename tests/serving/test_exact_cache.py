"""Keys, framing, the store in the process, and one run for all who ask the same."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from serving_case import BASELINE, INT8, tiny_bundle

from lowbit.bundle.bundle import Bundle
from lowbit.serving.cache import keys
from lowbit.serving.cache.flights import Flights
from lowbit.serving.cache.store import OVERHEAD, Kept, Local
from lowbit.serving.protocol import framing
from lowbit.serving.protocol.refusals import TooLate, Unavailable

ARRAYS = st.sampled_from([np.float32, np.int8, np.int64, np.bool_]).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(max_dims=3, max_side=4, min_side=0))
)
FEEDS = st.dictionaries(st.sampled_from(["a", "b", "ab"]), ARRAYS, min_size=1)


# Keys --------------------------------------------------------------------------------------------------------------------


@given(FEEDS, FEEDS)
def test_only_the_same_tensors_share_a_key(first: dict[str, Any], second: dict[str, Any]) -> None:
    same = first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and first[name].tobytes() == second[name].tobytes()
        for name in first
    )
    assert (framing.digest(b"n", first) == framing.digest(b"n", second)) is same
    assert framing.digest(b"n", first) != framing.digest(b"m", first)
    assert framing.digest(b"n", first) == framing.digest(b"n", dict(reversed(first.items())))


def test_views_and_strings_have_keys() -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert framing.digest(b"", {"x": x[:, ::2]}) == framing.digest(b"", {"x": x[:, ::2].copy()})
    assert framing.digest(b"", {"x": x}) != framing.digest(b"", {"x": x.reshape(6, 4)})
    assert framing.digest(b"", {"x": x}) != framing.digest(b"", {"x": x.view(np.int32)})
    first, second = np.array([b"ab", b"c"], object), np.array([b"a", b"bc"], object)
    assert framing.digest(b"", {"x": first}) != framing.digest(b"", {"x": second})


def test_namespaces_differ_by_model_preprocessing_variant_and_what_is_done(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "tiny")
    manifest = Bundle.load(folder).manifest
    loaded = {entry.path: entry.sha256 for entry in manifest.files}

    def space(candidate: str = INT8, how: str = "", **digests: str) -> bytes:
        return keys.namespace(manifest, candidate, loaded | digests, how)

    found = {space(), space(BASELINE), space(how="asked again")}
    assert len(found) == 3
    assert space(**{"model/weights.bin": "0"}) not in found
    assert space(**{"model/outcomes.npz": "0", "baseline/weights.bin": "0"}) == space()
    for path in ("preprocess.yaml", "model/model.onnx"):
        assert path in loaded
        assert space(**{path: "0"}) not in found


def test_artifacts_that_the_manifest_does_not_list_have_digests_too(tmp_path: Path) -> None:
    bundle = Bundle.load(tiny_bundle(tmp_path / "tiny"))
    assert keys.unlisted(bundle, (INT8, BASELINE)) == {}
    chosen = bundle.manifest.decision.model_copy(update={"chosen": BASELINE})
    other = Bundle(bundle.folder, bundle.manifest.model_copy(update={"decision": chosen}))
    path = f"candidates/{INT8}/model.onnx"
    assert keys.unlisted(other, (INT8, BASELINE)) == {path: hashlib.sha256((bundle.folder / path).read_bytes()).hexdigest()}


# Framing -----------------------------------------------------------------------------------------------------------------


@given(FEEDS, st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(max_size=3)))
def test_framing_gives_back_what_it_was_given(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    found, said = framing.unpack(framing.pack(tensors, about))
    assert said == about
    assert list(found) == list(tensors)
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda tail: framing.MAGIC + tail))
def test_bytes_that_are_no_answer_are_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"no kept answer|Expecting|codec"):
        framing.unpack(value)


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_answer_is_refused_or_read_but_nothing_else(data: st.DataObject) -> None:
    value = bytearray(framing.pack({"y": np.arange(6, dtype=np.float32).reshape(2, 3), "s": np.array([b"a", b"bc"], object)}, {"n": 1}))
    place = data.draw(st.integers(0, len(value) - 1))
    value[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(value)))
    try:
        found, _ = framing.unpack(bytes(value[:cut]))
    except ValueError:
        return
    assert all(isinstance(array, np.ndarray) for array in found.values())


def test_a_head_that_claims_a_huge_tensor_allocates_nothing() -> None:
    head = json.dumps({"tensors": [["s", "BYTES", [1 << 40], 0]], "about": {}}).encode()
    with pytest.raises(ValueError, match="cannot be"):
        framing.unpack(framing.MAGIC + len(head).to_bytes(4, "little") + head)


# The store -----------------------------------------------------------------------------------------------------------------


def kept(number: int, numbers: int = 10) -> Kept:
    return Kept({"y": np.full(numbers, number, np.float32)}, {"escalated": number})


SIZE = kept(0).nbytes


@given(st.lists(st.tuples(st.sampled_from("gp"), st.integers(0, 9), st.integers(0, 60)), max_size=60), st.integers(0, 6))
def test_the_least_recently_used_go_first_and_the_bytes_are_never_more(steps: list[tuple[str, int, int]], room: int) -> None:
    async def main() -> None:
        store, model = Local(room * SIZE, 1e9), {}
        for what, number, numbers in steps:
            key = b"%d" % number
            if what == "p":
                entry = kept(number, numbers)
                await store.put(key, entry)
                model.pop(key, None)
                if entry.nbytes <= room * SIZE:
                    model[key] = entry.nbytes
                while sum(model.values()) > room * SIZE:
                    del model[next(iter(model))]
            else:
                found = await store.get(key)
                assert (found is not None) == (key in model)
                if found is not None:
                    assert (found.outputs["y"] == number).all()
                    model[key] = model.pop(key)
            assert store.nbytes == sum(model.values()) <= room * SIZE
            assert len(store) == len(model)

    asyncio.run(main())


def test_nothing_is_older_than_its_time_to_live() -> None:
    async def main() -> None:
        now = 0.0
        store = Local(1 << 20, 10.0, clock=lambda: now)
        await store.put(b"a", kept(1))
        await store.put(b"b", kept(2), 3.0)
        now = 2.9
        assert await store.get(b"b") is not None
        now = 3.0
        assert await store.get(b"b") is None
        now = 9.9
        assert await store.get(b"a") is not None  # looking does not make it younger
        now = 10.0
        assert await store.get(b"a") is None
        assert (len(store), store.nbytes) == (0, 0)

    asyncio.run(main())


def test_what_is_kept_is_nobodys_to_change_and_holds_no_batch() -> None:
    async def main() -> None:
        store, batch = Local(1 << 20, 10), np.zeros((100, 4), np.float32)
        await store.put(b"a", Kept({"y": batch[:2]}))
        batch[:] = 7
        found = await store.get(b"a")
        assert found is not None
        assert (found.outputs["y"] == 0).all()
        assert found.outputs["y"].base is None
        with pytest.raises(ValueError, match="read-only"):
            found.outputs["y"][0] = 1
        assert store.nbytes == OVERHEAD + 32

    asyncio.run(main())


# One run for all -------------------------------------------------------------------------------------------------------------


def counted() -> Callable[[], Coroutine[Any, Any, int]]:
    """Work that takes a moment, and whose result is how often it was begun."""
    runs = itertools.count(1)

    async def work() -> int:
        mine = next(runs)
        await asyncio.sleep(0.01)
        return mine

    return work


def far() -> float:
    return asyncio.get_running_loop().time() + 5


def test_all_who_ask_the_same_at_once_share_one_run() -> None:
    async def main() -> None:
        flights: Flights[int] = Flights()
        work = counted()
        found = await asyncio.gather(*(flights.once(b"a", work, far()) for _ in range(4)), flights.once(b"b", work, far()))
        assert sorted(found) == [(1, False), (1, True), (1, True), (1, True), (2, False)]
        assert len(flights) == 0
        assert await flights.once(b"a", work, far()) == (3, False)

    asyncio.run(main())


def test_when_the_first_gives_up_the_next_does_the_work() -> None:
    async def main() -> None:
        flights: Flights[int] = Flights()
        calls: list[int] = []

        async def work(number: int) -> int:
            calls.append(number)
            await asyncio.sleep(0.02)
            if number == 1:
                raise Unavailable("The queue is full.")
            return number

        tasks = [asyncio.create_task(flights.once(b"a", lambda n=number: work(n), far())) for number in range(4)]  # type: ignore[misc]
        await asyncio.sleep(0.005)
        tasks[0].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert isinstance(found[1], Unavailable)  # its own refusal, and nobody else's
        assert found[2:] == [(2, False), (2, True)]
        assert calls == [0, 1, 2]
        assert len(flights) == 0

    asyncio.run(main())


def test_results_that_are_worth_nothing_to_others_are_not_handed_out() -> None:
    async def main() -> None:
        flights: Flights[int] = Flights()
        work = counted()
        found = await asyncio.gather(*(flights.once(b"a", work, far(), lambda result: result > 1) for _ in range(3)))
        assert found == [(1, False), (2, False), (3, False)]
        assert len(flights) == 0

    asyncio.run(main())


def test_who_waits_for_another_keeps_an_own_deadline() -> None:
    async def main() -> None:
        flights: Flights[int] = Flights()

        async def work() -> int:
            await asyncio.sleep(0.1)
            return 1

        first = asyncio.create_task(flights.once(b"a", work, far()))
        await asyncio.sleep(0)
        with pytest.raises(TooLate):
            await flights.once(b"a", work, asyncio.get_running_loop().time() + 0.01)
        assert await first == (1, False)

    asyncio.run(main())
