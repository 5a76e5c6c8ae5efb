"""Requests that run together come back apart, each with its own rows."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from lowbit.serving.protocol.refusals import Refusal, TooLate, Unavailable
from lowbit.serving.run.batcher import Answer, Batcher, Batching
from lowbit.types import Array, Feeds


def feeds(*values: float, width: int = 2) -> Feeds:
    return {"x": np.repeat(np.array(values, np.float32)[:, None], width, axis=1)}


class Doubler:
    """A runtime that doubles, notes what it was given, and waits at a gate."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.begun = 0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, given: Feeds) -> dict[str, Array]:
        self.begun += 1
        self.gate.wait(30)
        self.batches.append(given["x"][:, 0].tolist())
        if np.isnan(given["x"]).any():
            raise ValueError("no numbers")
        return {"y": given["x"] * 2}


def run(work: Callable[[Batcher, Doubler], Awaitable[Any]], **settings: Any) -> Any:
    async def main() -> Any:
        runtime = Doubler()
        batcher = Batcher(runtime, Batching(**settings))
        try:
            return await asyncio.wait_for(work(batcher, runtime), 60)
        finally:
            runtime.gate.set()
            batcher.close()

    return asyncio.run(main())


async def under_way(runtime: Doubler, batcher: Batcher, request: Feeds) -> asyncio.Future[Answer]:
    """A request that a worker has begun with."""
    before, found = runtime.begun, asyncio.ensure_future(batcher.submit(request))
    while runtime.begun == before:
        await asyncio.sleep(0)
    return found


async def behind(runtime: Doubler, batcher: Batcher, *requests: Feeds, **options: Any) -> list[Any]:
    """Submits while the only worker is busy with a request of value 0."""
    runtime.gate.clear()
    first = await under_way(runtime, batcher, feeds(0))
    rest = [asyncio.ensure_future(batcher.submit(each, **options)) for each in requests]
    await asyncio.sleep(0)  # each has begun, and waits
    runtime.gate.set()
    await first
    return list(await asyncio.gather(*rest, return_exceptions=True))


def test_an_idle_server_answers_at_once() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> Answer:  # noqa: ARG001
        return await batcher.submit(feeds(1, 2))

    answer = run(work)
    assert answer.outputs["y"].tolist() == [[2, 2], [4, 4]]
    assert (answer.batch, answer.queued_s < 5) == (2, True)


def test_what_waits_runs_together_and_each_gets_its_own_rows() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        answers = await behind(runtime, batcher, feeds(1), feeds(2, 3), feeds(4))
        assert runtime.batches == [[0], [1, 2, 3, 4]]
        assert [answer.outputs["y"][:, 0].tolist() for answer in answers] == [[2], [4, 6], [8]]
        assert {answer.batch for answer in answers} == {4}

    run(work)


def test_a_batch_is_never_larger_than_allowed_unless_one_request_is() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        await behind(runtime, batcher, feeds(1), feeds(2, 3), feeds(4), feeds(5, 6, 7, 8, 9))
        assert runtime.batches == [[0], [1, 2, 3], [4], [5, 6, 7, 8, 9]]

    run(work, max_batch=3)


def test_other_shapes_never_share_a_batch_and_the_oldest_goes_first() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        answers = await behind(runtime, batcher, feeds(1, width=3), feeds(2), feeds(3, width=3))
        assert runtime.batches == [[0], [1, 3], [2]]
        assert [answer.outputs["y"].shape for answer in answers] == [(1, 3), (1, 2), (1, 3)]

    run(work)


def test_a_bad_request_fails_alone() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        good, bad, other = await behind(runtime, batcher, feeds(1), feeds(np.nan), feeds(3))
        assert good.outputs["y"].tolist() == [[2, 2]]
        assert other.outputs["y"].tolist() == [[6, 6]]
        assert isinstance(bad, Refusal)
        assert bad.status == 500
        assert "no numbers" in bad.message

    run(work)


def test_a_full_queue_refuses_and_an_empty_one_takes_any_request() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        answers = await behind(runtime, batcher, feeds(1, 2, 3, 4), feeds(5))
        assert answers[0].outputs["y"][:, 0].tolist() == [2, 4, 6, 8]
        assert isinstance(answers[1], Unavailable)
        assert answers[1].retry_after_s == 1

    run(work, max_queue=2)


def test_a_deadline_in_the_queue_frees_its_place() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        runtime.gate.clear()
        first = await under_way(runtime, batcher, feeds(0))
        with pytest.raises(TooLate, match="in the queue"):
            await batcher.submit(feeds(1), deadline=asyncio.get_running_loop().time() + 0.05)
        assert batcher.waiting == 0
        runtime.gate.set()
        await first
        await batcher.drained()
        assert runtime.batches == [[0]]

    run(work)


def test_a_deadline_that_passes_while_it_runs_is_said() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        runtime.gate.clear()
        with pytest.raises(TooLate, match="while it ran"):
            await batcher.submit(feeds(1), deadline=asyncio.get_running_loop().time() + 0.05)
        runtime.gate.set()
        assert (await batcher.submit(feeds(2))).outputs["y"].tolist() == [[4, 4]]

    run(work)


def test_a_client_that_goes_leaves_the_batch() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        runtime.gate.clear()
        first = await under_way(runtime, batcher, feeds(0))
        gone, stays = (asyncio.ensure_future(batcher.submit(feeds(value))) for value in (1, 2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        assert batcher.waiting == 1
        runtime.gate.set()
        await asyncio.gather(first, stays)
        assert runtime.batches == [[0], [2]]

    run(work)


def test_a_window_waits_for_company_but_not_for_a_full_batch() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        start = time.perf_counter()
        await asyncio.gather(*(batcher.submit(feeds(value)) for value in (1, 2, 3)))
        assert runtime.batches == [[1, 2, 3]]
        assert time.perf_counter() - start < 20
        await batcher.submit(feeds(4))
        assert runtime.batches[1:] == [[4]]
        assert time.perf_counter() - start > 0.2

    run(work, max_batch=3, window_s=0.2)


def test_closing_refuses_what_waits_and_what_runs() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        runtime.gate.clear()
        both = [await under_way(runtime, batcher, feeds(0)), asyncio.ensure_future(batcher.submit(feeds(1)))]
        await asyncio.sleep(0)
        batcher.close()
        for each in both:
            with pytest.raises(Unavailable, match="stopping") as refused:
                await asyncio.wait_for(each, 5)
            assert refused.value.retry_after_s == 1

    run(work)


def test_nothing_is_lost_or_swapped_among_many() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        async def one(value: int) -> None:
            await asyncio.sleep(value % 7 / 1000)
            answer = await batcher.submit(feeds(*([value] * (1 + value % 3)), width=1 + value % 2))
            assert answer.outputs["y"].tolist() == [[2 * value] * (1 + value % 2)] * (1 + value % 3)

        await asyncio.gather(*(one(value) for value in range(400)))
        assert sum(len(batch) for batch in runtime.batches) == sum(1 + value % 3 for value in range(400))
        assert len(runtime.batches) < 400

    run(work, workers=2, max_queue=10_000)


def test_a_full_batch_does_not_wait_behind_the_window_of_another_shape() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        lonely = asyncio.ensure_future(batcher.submit(feeds(1, width=3)))
        await asyncio.sleep(0)
        await asyncio.gather(*(batcher.submit(feeds(value)) for value in (2, 3)))
        assert runtime.batches == [[2, 3]]
        assert not lonely.done()
        await lonely
        assert runtime.batches[1:] == [[1]]

    run(work, max_batch=2, window_s=2.0)


def test_no_shape_starves_while_another_is_asked_for_all_the_time() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        stop = asyncio.Event()

        async def crowd() -> None:
            while not stop.is_set():
                await batcher.submit(feeds(1))

        clients = [asyncio.ensure_future(crowd()) for _ in range(8)]
        while len(runtime.batches) < 10:
            await asyncio.sleep(0.001)
        before = len(runtime.batches)
        await asyncio.wait_for(batcher.submit(feeds(2, width=3)), 30)
        assert runtime.batches.index([2]) - before <= 8
        stop.set()
        await asyncio.gather(*clients)

    run(work, max_batch=2)


def test_a_client_that_goes_while_its_batch_runs_leaves_the_others_their_answers() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        runtime.gate.clear()
        first = await under_way(runtime, batcher, feeds(0))
        gone, stays = (asyncio.ensure_future(batcher.submit(feeds(value))) for value in (1, 2))
        await asyncio.sleep(0)
        runtime.gate.set()
        await first
        runtime.gate.clear()
        await asyncio.sleep(0)
        gone.cancel()
        runtime.gate.set()
        assert (await stays).outputs["y"].tolist() == [[4, 4]]
        with pytest.raises(asyncio.CancelledError):
            await gone
        await batcher.drained()
        assert (batcher.waiting, batcher.running) == (0, 0)

    run(work)


def test_many_clients_that_come_and_go_leave_nothing_behind() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:  # noqa: ARG001
        rng = np.random.default_rng(0)

        async def one(value: int) -> str:
            patience, rows = float(rng.exponential(0.004)), 1 + value % 3
            try:
                async with asyncio.timeout(patience if value % 2 else None):
                    deadline = asyncio.get_running_loop().time() + (patience if value % 5 == 0 else 10)
                    answer = await batcher.submit(feeds(*[value] * rows, width=1 + value % 2), deadline=deadline)
            except (TimeoutError, TooLate, Unavailable) as error:
                return type(error).__name__
            assert answer.outputs["y"].tolist() == [[2 * value] * (1 + value % 2)] * rows
            return "right"

        found: list[str] = []
        for start in range(0, 1200, 100):  # a queue of 60 rows refuses most of a hundred that come at once
            found += await asyncio.gather(*(one(value) for value in range(start, start + 100)))
        await asyncio.wait_for(batcher.drained(), 30)
        assert (batcher.waiting, batcher.running, batcher._inside) == (0, 0, 0)
        assert found.count("right") > 100
        assert len(set(found)) > 1

    run(work, workers=2, max_queue=60)


def test_an_observer_that_fails_costs_nobody_an_answer() -> None:
    async def main() -> None:
        def broken(rows: int) -> None:
            raise RuntimeError(f"{rows}")

        batcher = Batcher(Doubler(), Batching(), on_batch=broken)
        errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
        try:
            for value in (1, 2):
                answer = await asyncio.wait_for(batcher.submit(feeds(value)), 30)
                assert answer.outputs["y"].tolist() == [[2 * value] * 2]
        finally:
            batcher.close()

    asyncio.run(main())


def test_what_could_only_wait_in_vain_is_refused_at_once() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        clock = asyncio.get_running_loop().time
        batcher._row_s = 10.0  # as the last batches had it
        runtime.gate.clear()
        waiting = [asyncio.ensure_future(batcher.submit(feeds(value))) for value in (1, 2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="ms are left") as refused:
            await batcher.submit(feeds(4), deadline=clock() + 15)
        assert refused.value.retry_after_s
        patient = asyncio.ensure_future(batcher.submit(feeds(5), deadline=clock() + 1000))
        await asyncio.sleep(0)
        runtime.gate.set()
        assert (await patient).outputs["y"].tolist() == [[10, 10]]
        await asyncio.gather(*waiting)

    run(work, max_batch=1)


def test_what_a_row_takes_is_learnt() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        runtime.gate.clear()
        slow = await under_way(runtime, batcher, feeds(0))
        await asyncio.sleep(0.2)
        runtime.gate.set()
        await slow
        assert batcher._row_s >= 0.2

    run(work)


def test_a_closed_batcher_says_that_it_is_stopping_and_closes_twice() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:  # noqa: ARG001
        batcher.close()
        batcher.close()
        with pytest.raises(Unavailable, match="stopping"):
            await batcher.submit(feeds(1))
        await asyncio.wait_for(batcher.drained(), 10)

    run(work)


def test_drained_waits_for_what_runs_even_when_closed() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        runtime.gate.clear()
        first = await under_way(runtime, batcher, feeds(1))
        batcher.close()
        waiting = asyncio.ensure_future(batcher.drained())
        with pytest.raises(Unavailable):
            await first
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        runtime.gate.set()
        await asyncio.wait_for(waiting, 10)
        assert runtime.batches == [[1]]

    run(work)


def test_what_would_come_too_late_is_not_run_while_others_wait() -> None:
    """It is told while its client can still go elsewhere; the deadline has not passed, and nobody says so."""

    async def work(batcher: Batcher, runtime: Doubler) -> None:
        clock = asyncio.get_running_loop().time
        runtime.gate.clear()
        busy = await under_way(runtime, batcher, feeds(1))
        late = asyncio.ensure_future(batcher.submit(feeds(2), deadline=clock() + 100))
        patient = asyncio.ensure_future(batcher.submit(feeds(3)))
        await asyncio.sleep(0)
        batcher._row_s = 1000.0  # rows have become slow meanwhile
        runtime.gate.set()
        with pytest.raises(Unavailable, match="ms are left") as refused:
            await late
        assert refused.value.retry_after_s == 1
        await asyncio.gather(busy, patient)
        assert runtime.batches == [[1], [3]]
        batcher._row_s = 1000.0
        hopeful = await batcher.submit(feeds(4), deadline=clock() + 100)  # alone it is tried, whatever is expected
        assert hopeful.outputs["y"].tolist() == [[8, 8]]

    run(work)


@pytest.mark.parametrize("whole", [lambda x: np.float32(x.sum()), lambda x: x.sum(axis=0)[:1], lambda x: x.T])
def test_outputs_without_rows_are_never_handed_out_by_position(whole: Callable[[Array], Array]) -> None:
    async def main() -> None:
        gate = threading.Event()
        ran: list[int] = []

        def model(given: Feeds) -> dict[str, Array]:
            gate.wait(30)
            ran.append(len(given["x"]))
            return {"y": given["x"] * 2, "all": np.asarray(whole(given["x"]))}

        batcher = Batcher(model, Batching())
        try:
            asked = [asyncio.ensure_future(batcher.submit(feeds(value))) for value in (0, 1, 2, 3)]
            await asyncio.sleep(0)
            gate.set()
            for value, answer in enumerate(await asyncio.gather(*asked)):
                assert answer.outputs["y"].tolist() == [[2 * value] * 2]
                assert np.array_equal(answer.outputs["all"], whole(feeds(value)["x"]))
            assert ran == [1, 3, 1, 1, 1]
        finally:
            gate.set()
            batcher.close()

    asyncio.run(main())


def test_closing_frees_the_model_behind_the_last_run() -> None:
    async def work(batcher: Batcher, runtime: Doubler) -> None:
        runtime.gate.clear()
        first = await under_way(runtime, batcher, feeds(1))
        ended, ran = threading.Event(), []
        batcher.close(lambda: (ran.extend(runtime.batches), ended.set())[1])
        with pytest.raises(Unavailable, match="stopping"):
            await asyncio.wait_for(first, 5)  # at once, not when the run ends
        assert not ended.is_set()
        runtime.gate.set()
        assert await asyncio.to_thread(ended.wait, 30)
        assert ran == [[1]]
        await asyncio.wait_for(batcher.drained(), 10)

    run(work)
