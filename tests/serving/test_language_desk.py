"""One thread in front of an engine: who joins and leaves, what an engine may do, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from language_case import Bigrams, chain, table

from lowbit.errors import RunError
from lowbit.llm.engines.base import Emitted, Sampling
from lowbit.serving.language.desk import Crowded, Desk, EngineFailed, Ticket
from lowbit.serving.protocol.refusals import Malformed, Refusal, Unavailable


class Case:
    """A desk, and what came of each ticket."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.came: dict[int, list[Emitted | Refusal]] = {}

    def ask(self, count: int = 1, tokens: int = 5, prompt: Sequence[int] = (5,)) -> tuple[Ticket, ...]:
        return self.desk.ask([(prompt, Sampling(tokens)) for _ in range(count)], self.sink)

    def sink(self, ticket: Ticket, what: Emitted | Refusal) -> None:
        self.came.setdefault(ticket.number, []).append(what)

    async def ended(self, *tickets: Ticket) -> list[list[Emitted | Refusal]]:
        async with asyncio.timeout(10):
            while not all(each.ended for each in tickets):
                await asyncio.sleep(0.001)
        return [self.came.get(each.number, []) for each in tickets]


def at(work: Callable[[Case], Awaitable[Any]], *, slots: int = 2, queue: int = 4, step_s: float = 0.001, opens: int = 9) -> list[Bigrams]:
    """Runs `work` with a desk; gives the engines that were opened."""
    opened: list[Bigrams] = []

    def open_batch() -> Bigrams:
        if len(opened) == opens:
            raise RunError("The file is gone.")
        opened.append(Bigrams(table(1), 64, slots, step_s))
        return opened[-1]

    async def run() -> None:
        desk = Desk(open_batch, max_queue=queue)
        try:
            await asyncio.wait_for(work(Case(desk)), 20)
        finally:
            closed = asyncio.Event()
            loop = asyncio.get_running_loop()
            desk.close(lambda: loop.call_soon_threadsafe(closed.set))
            desk.close()
            await asyncio.wait_for(closed.wait(), 10)

    asyncio.run(run())
    assert opened[-1].closed or opens < 9, "the engine is freed"
    return opened


def test_answers_come_token_by_token() -> None:
    async def work(case: Case) -> None:
        (found,) = await case.ended(*case.ask(tokens=7))
        assert [each.token is not None for each in found] == [True] * 7
        assert [each.finished for each in found] == [None] * 6 + ["length"]
        await case.desk.drained()

    at(work)


def test_as_many_as_there_are_slots_run_and_the_rest_wait_their_turn() -> None:
    order: list[int] = []

    async def work(case: Case) -> None:
        def sink(ticket: Ticket, what: Emitted | Refusal) -> None:
            if not isinstance(what, Refusal) and what.finished:
                order.append(ticket.number)

        tickets = case.desk.ask([((5,), Sampling(4)) for _ in range(6)], sink)
        assert case.desk.waiting >= 4
        await case.desk.drained()
        assert sorted(order) == order == [each.number for each in tickets], "first come, first served"
        assert all(each.company == 2 for each in tickets)

    (engine,) = at(work)
    assert engine.most == 2


def test_alone_is_alone() -> None:
    async def work(case: Case) -> None:
        (ticket,) = case.ask()
        await case.ended(ticket)
        assert (ticket.company, ticket.ran_s > 0, ticket.queued_s >= 0) == (1, True, True)

    at(work)


def test_there_is_room_for_all_or_none() -> None:
    async def work(case: Case) -> None:
        tickets = case.ask(5, tokens=50)
        with pytest.raises(Crowded) as refused:
            case.ask(2)
        assert (refused.value.status, refused.value.retry_after_s is not None and refused.value.retry_after_s >= 1) == (429, True)
        one = case.ask(1)
        with pytest.raises(Malformed, match="7 answers are asked for at once; 6 are allowed"):
            case.ask(7)
        await case.ended(*tickets, *one)
        await case.ended(*case.ask(6))

    at(work)


def test_who_goes_makes_room() -> None:
    async def work(case: Case) -> None:
        running, waiting = case.ask(2, tokens=60), case.ask(2, tokens=60)
        while case.desk.running < 2:
            await asyncio.sleep(0.001)
        case.desk.drop(running[0])
        case.desk.drop(waiting[1])
        case.desk.drop(waiting[1])
        while waiting[0].number not in case.came:
            await asyncio.sleep(0.001)
        assert not running[1].ended, "it did not wait for the place of somebody else"
        first, second = await case.ended(running[1], waiting[0])
        assert (len(first), len(second)) == (60, 60)
        before = len(case.came.get(running[0].number, []))
        await case.desk.drained()
        await asyncio.sleep(0.02)
        assert len(case.came.get(running[0].number, [])) == before < 60, "nothing comes any more"
        assert waiting[1].number not in case.came

    (engine,) = at(work)
    assert not engine.running


def test_everybody_goes() -> None:
    async def work(case: Case) -> None:
        for ticket in case.ask(4, tokens=60):
            case.desk.drop(ticket)
        await case.desk.drained()
        assert (case.desk.running, case.desk.waiting) == (0, 0)

    at(work)


def test_an_engine_that_fails_is_opened_again() -> None:
    async def work(case: Case) -> None:
        first = case.ask(2, tokens=60)
        while case.desk.running < 2:
            await asyncio.sleep(0.001)
        waiting = case.ask(1, tokens=3)
        batch: Any = case.desk._batch
        batch.fails = RunError("It went out of memory.")
        lost = await case.ended(*first)
        assert all(isinstance(each[-1], EngineFailed) for each in lost)
        assert "It went out of memory." in str(lost[0][-1])
        (after,) = await case.ended(*waiting)
        assert len(after) == 3, "who waited is answered by the next one"

    one, other = at(work)
    assert (one.closed, other.closed) == (True, True)


def test_an_engine_that_is_gone_refuses() -> None:
    async def work(case: Case) -> None:
        batch: Any = case.desk._batch
        batch.fails = ValueError("/a/path/that/nobody/should/see")
        tickets = case.ask(3, tokens=60)
        lost = await case.ended(*tickets)
        assert all(isinstance(each[-1], Refusal) for each in lost)
        assert "path" not in str(lost[0][-1])
        with pytest.raises(Unavailable):
            case.ask()
        assert not case.desk.alive
        await case.desk.drained()

    at(work, opens=1)


def test_an_engine_that_cannot_forget_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_request: int) -> None:
        raise RuntimeError("/a/path/that/nobody/should/see")

    async def work(case: Case) -> None:
        (gone, inside), waiting = case.ask(2, tokens=60), case.ask(1, tokens=3)
        while case.desk.running < 2:
            await asyncio.sleep(0.001)
        batch: Any = case.desk._batch
        monkeypatch.setattr(batch, "drop", broken)
        case.desk.drop(gone)
        lost, after = await case.ended(inside, *waiting)
        assert isinstance(lost[-1], EngineFailed)
        assert "path" not in str(lost[-1])
        assert len(after) in (1, 3), "it was waiting, or had just joined"
        while not case.desk.alive:  # opening takes a moment, in which a request is a 503
            await asyncio.sleep(0.001)
        (found,) = await case.ended(*case.ask(1, tokens=3))
        assert len(found) == 3
        await case.desk.drained()

    one, other = at(work)
    assert (one.closed, other.closed) == (True, True)


def test_who_waits_for_a_desk_that_closes_waits_no_longer() -> None:
    async def work(case: Case) -> None:
        case.ask(2, tokens=60)
        while case.desk.running < 2:
            await asyncio.sleep(0.001)
        waiting = asyncio.ensure_future(case.desk.drained())
        await asyncio.sleep(0)
        case.desk.close()
        done, _ = await asyncio.wait([waiting], timeout=5)
        assert done == {waiting}
        assert waiting.exception() is None

    async def run() -> None:
        await work(Case(Desk(lambda: Bigrams(table(1), 64, 2, 0.001))))

    asyncio.run(run())


def test_an_engine_that_is_gone_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowbit.serving.language.desk.AGAIN_S", 0.01)
    opened: list[Bigrams] = []
    tried = 0

    def open_batch() -> Bigrams:
        nonlocal tried
        tried += 1
        if 1 < tried < 5:
            raise RunError("No memory now.")
        opened.append(Bigrams(table(1), 64, 2, 0.001))
        return opened[-1]

    async def run() -> None:
        case = Case(Desk(open_batch))
        opened[0].fails = RunError("It went out of memory.")
        await case.ended(*case.ask(3, tokens=60))
        async with asyncio.timeout(10):
            while not case.desk.alive:
                await asyncio.sleep(0.005)
        (found,) = await case.ended(*case.ask(tokens=3))
        assert len(found) == 3
        case.desk.close()

    asyncio.run(run())


def test_what_an_engine_does_not_take_is_that_answers_alone() -> None:
    async def work(case: Case) -> None:
        (good,), (bad,) = case.ask(tokens=9), case.ask(prompt=[5] * 64)
        fine, refused = await case.ended(good, bad)
        assert len(fine) == 9
        assert isinstance(refused[0], EngineFailed)

    at(work)


def test_an_answer_that_fails_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Bigrams.step

    def broken(batch: Bigrams) -> list[Emitted]:
        found = step(batch)
        lost = [each.request for each in found if each.request == 1 and each.finished is None]
        for request in lost:
            batch.drop(request)
        return [Emitted(1, None, finished="failed", reason="No numbers.") if each.request in lost else each for each in found]

    async def work(case: Case) -> None:
        monkeypatch.setattr(Bigrams, "step", broken)
        bad, good = case.ask(2)
        refused, fine = await case.ended(bad, good)
        assert [str(each) for each in refused] == ["No numbers."]
        assert len(fine) == 5

    at(work)


def test_closing_refuses_what_is_left() -> None:
    async def work(case: Case) -> None:
        tickets = case.ask(4, tokens=60)
        while case.desk.running < 2:
            await asyncio.sleep(0.001)
        case.desk.close()
        lost = await case.ended(*tickets)
        assert all(isinstance(each[-1], Unavailable) for each in lost)
        with pytest.raises(Unavailable):
            case.ask()

    opened: list[Bigrams] = []

    async def run() -> None:
        def open_batch() -> Bigrams:
            opened.append(Bigrams(table(1), 64, 2, 0.001))
            return opened[-1]

        await work(Case(Desk(open_batch)))

    asyncio.run(run())


def test_an_engine_that_fails_at_once_is_not_served() -> None:
    broken = Bigrams(chain([5, 6]), 64, 2)
    broken.fails = RunError("An operator is missing.")
    with pytest.raises(RunError, match="An operator is missing"):
        Desk(lambda: broken)
    assert broken.closed


def test_arrays_are_refused() -> None:
    async def work(case: Case) -> None:
        with pytest.raises(Malformed, match="over /v1/chat/completions"):
            await case.desk.submit({})

    at(work)
