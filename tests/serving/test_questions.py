"""Questions to people are kept, answered once, and outlive the server."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowbit.errors import UsageError
from lowbit.serving.answer.answering import Answers
from lowbit.serving.answer.live_policy import LivePolicy
from lowbit.serving.answer.questions import FILE, MAX_ANSWER, AlreadyAnswered, Question, Questions
from lowbit.serving.answer.routing import RoutingPolicy
from lowbit.serving.protocol.refusals import Malformed, NotServed, Refusal
from lowbit.serving.settings import Settings
from lowbit.serving.web.admin import mount
from lowbit.serving.web.asgi import refuse
from lowbit.serving.web.pages import Pages

X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.arange(8, dtype=np.float32).reshape(4, 2)


def with_queue(folder: Path, work: Callable[[Questions], Awaitable[Any]], **options: Any) -> Any:
    async def main() -> Any:
        questions = Questions(folder, **options)
        try:
            return await work(questions)
        finally:
            await questions.close()

    return asyncio.run(main())


async def put(questions: Questions, request: str = "r", model: str = "demo") -> str | None:
    rows = np.array([1, 3])
    return await questions.ask(Question(model, "v1", "int8@x", "critical", request, rows.tolist()), {"x": X}, {"y": Y}, rows)


def test_a_question_outlives_the_server(tmp_path: Path) -> None:
    name = with_queue(tmp_path, put)

    async def read(questions: Questions) -> None:
        (listed,) = await questions.listed()
        assert listed["id"] == name
        one = await questions.one(name)
        assert one["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [2.0, 3.0, 6.0, 7.0]}]
        assert "inputs" not in one
        assert (one["rows"], one["reason"], one["model"], one["version"]) == ([1, 3], "critical", "demo", "v1")
        assert questions.facts() == {"open": 1.0, "refused": 0.0}

    with_queue(tmp_path, read)


def test_it_is_on_disk_before_the_client_is_told(tmp_path: Path) -> None:
    async def work(questions: Questions) -> None:
        name = await put(questions)
        other = sqlite3.connect(tmp_path / FILE)  # another process's view
        assert other.execute("select id from questions").fetchall() == [(name,)]
        other.close()

    with_queue(tmp_path, work)


def test_inputs_are_kept_only_where_asked(tmp_path: Path) -> None:
    async def work(questions: Questions) -> list[float]:
        return (await questions.one(await put(questions) or ""))["inputs"][0]["data"]  # type: ignore[no-any-return]

    assert with_queue(tmp_path, work, keep_inputs=True) == X[[1, 3]].ravel().tolist()


def test_the_first_answer_stands(tmp_path: Path) -> None:
    async def work(questions: Questions) -> None:
        name = await put(questions) or ""
        found = await questions.answer(name, {"class": 4}, "ada")
        assert (found["answer"], found["by"]) == ({"class": 4}, "ada")
        with pytest.raises(AlreadyAnswered):
            await questions.answer(name, 5)
        with pytest.raises(NotServed):
            await questions.answer("none", 5)
        assert (await questions.one(name))["answer"] == {"class": 4}
        assert await questions.listed() == []
        assert len(await questions.listed(state="answered")) == len(await questions.listed(state="all")) == 1
        assert questions.facts()["open"] == 0

    with_queue(tmp_path, work)


def test_lists_are_oldest_first_and_of_one_model(tmp_path: Path) -> None:
    async def work(questions: Questions) -> None:
        for number in range(4):
            await put(questions, f"r{number}", "demo" if number % 2 else "other")
        assert [each["request_id"] for each in await questions.listed(limit=3)] == ["r0", "r1", "r2"]
        assert [each["request_id"] for each in await questions.listed(model="demo")] == ["r1", "r3"]
        for wrong in ({"state": "lost"}, {"limit": 0}, {"limit": 1001}):
            with pytest.raises(Malformed):
                await questions.listed(**wrong)  # type: ignore[arg-type]

    with_queue(tmp_path, work)


def test_a_full_queue_takes_no_more_and_drops_none(tmp_path: Path) -> None:
    async def work(questions: Questions) -> None:
        names = [await put(questions) for _ in range(3)]
        assert names[2] is None
        assert questions.facts() == {"open": 2.0, "refused": 1.0}
        await questions.answer(names[0] or "", 1)
        assert await put(questions) is not None

    with_queue(tmp_path, work, max_open=2)


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"this is no database at all" * 100)
    with pytest.raises(UsageError, match="cannot be opened"):
        Questions(tmp_path)


def test_clients_that_go_away_leave_the_count_right(tmp_path: Path) -> None:
    async def work(questions: Questions) -> None:
        block = threading.Event()
        questions._thread.submit(block.wait)
        asking = [asyncio.create_task(put(questions, f"r{number}")) for number in range(5)]
        await asyncio.sleep(0)
        for task in asking[:3]:
            task.cancel()
        block.set()
        found = await asyncio.gather(*asking, return_exceptions=True)
        listed = await questions.listed()
        assert len(listed) == questions.facts()["open"] == 2  # the others found the queue full, whoever still waits for them
        assert questions.facts()["refused"] == 2
        assert found[3:] == [None, None]
        block.clear()
        questions._thread.submit(block.wait)
        answering = asyncio.create_task(questions.answer(listed[0]["id"], 1))
        await asyncio.sleep(0)
        answering.cancel()
        block.set()
        assert len(await questions.listed()) == questions.facts()["open"] == 1
        assert await put(questions) is not None

    with_queue(tmp_path, work, max_open=2)


def test_of_answered_questions_the_newest_are_kept(tmp_path: Path) -> None:
    async def work(questions: Questions) -> None:
        names = [await put(questions, f"r{number}") or "" for number in range(4)]
        for name in (names[2], names[0], names[3]):
            assert (await questions.answer(name, 1))["id"] == name
        assert {each["id"] for each in await questions.listed(state="answered")} == {names[0], names[3]}
        assert [each["id"] for each in await questions.listed()] == [names[1]]

    with_queue(tmp_path, work, max_answered=2)
    with_queue(tmp_path, lambda questions: answer_first(questions), max_answered=2)


async def answer_first(questions: Questions) -> None:
    """What was answered before a restart counts."""
    await questions.answer((await questions.listed())[0]["id"], 1)
    assert len(await questions.listed(state="answered")) == 2


@pytest.mark.parametrize("answer", [float("nan"), [float("inf")], "\ud800", "x" * MAX_ANSWER, {1, 2}])
def test_an_answer_is_json_and_not_too_long(tmp_path: Path, answer: Any) -> None:
    async def work(questions: Questions) -> None:
        name = await put(questions) or ""
        with pytest.raises(Malformed):
            await questions.answer(name, answer)
        with pytest.raises(Malformed):
            await questions.answer(name, 1, "\ud800")
        assert questions.facts()["open"] == 1
        assert (await questions.answer(name, "x" * (MAX_ANSWER - 2)))["answer"][0] == "x"

    with_queue(tmp_path, work)


# Over HTTP ---------------------------------------------------------------------------------------------------------------------


def http(folder: Path, *calls: tuple[str, str, Any], keys: tuple[str, ...] = ("secret",), **options: Any) -> list[tuple[int, Any]]:
    """Calls one after the other: (method, path, document)."""

    async def work(questions: Questions) -> list[tuple[int, Any]]:
        policy = LivePolicy(RoutingPolicy(flags={"trial": 0.1}))
        pages = Pages(Settings(api_keys=keys))
        mount(pages, Answers(policy, questions=questions), keyed=bool(keys))
        await put(questions)
        name = (await questions.listed())[0]["id"]
        return [await call(pages, method, path.replace("ID", name), document) for method, path, document in calls]

    return with_queue(folder, work, **options)  # type: ignore[no-any-return]


async def call(pages: Pages, method: str, path: str, document: Any) -> tuple[int, Any]:
    body = b"" if document is None else json.dumps(document).encode()
    path, _, query = path.partition("?")
    headers = [(b"x-api-key", b"secret"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": headers}
    sent: list[Any] = []

    async def receive() -> Any:
        if not sent and not given:
            given.append(True)
            return {"type": "http.request", "body": body, "more_body": False}
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    given: list[bool] = []
    try:
        await pages(scope, receive, send)
    except Refusal as refusal:
        await refuse(send, refusal)
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_questions_are_answered_over_http(tmp_path: Path) -> None:
    found = http(
        tmp_path,
        ("GET", "/v1/questions?state=open&limit=5", None),
        ("GET", "/v1/questions/ID", None),
        ("POST", "/v1/questions/ID", {"answer": 3, "by": "ada"}),
        ("POST", "/v1/questions/ID", {"answer": 4}),
        ("POST", "/v1/questions/ID", {"reply": 4}),
        ("GET", "/v1/questions/none", None),
        ("GET", "/v1/questions?limit=many", None),
    )
    assert [status for status, _ in found] == [200, 200, 200, 409, 400, 404, 400]
    assert found[0][1]["questions"][0]["id"] == found[1][1]["id"]
    assert found[2][1]["answer"] == 3


def test_flags_are_turned_over_http(tmp_path: Path) -> None:
    found = http(
        tmp_path,
        ("GET", "/v1/admin/flags", None),
        ("PUT", "/v1/admin/flags", {"trial": "50%"}),
        ("GET", "/v1/admin/flags", None),
        ("PUT", "/v1/admin/flags", {"trail": True}),
        ("PUT", "/v1/admin/flags", [1]),
        ("GET", "/v1/admin/policy", None),
    )
    assert [status for status, _ in found] == [200, 200, 200, 400, 400, 200]
    assert found[2][1] == {"flags": {"trial": 0.5}}
    assert "Did you mean 'trial'" in found[3][1]["error"]
    assert RoutingPolicy.from_yaml(found[5][1]["policy"]).flags == {"trial": 0.5}


def test_without_keys_nobody_turns_flags_answers_or_sees_what_others_sent(tmp_path: Path) -> None:
    calls = ("GET", "/v1/questions", None), ("GET", "/v1/questions/ID", None), ("POST", "/v1/questions/ID", {"answer": 1})
    found = http(tmp_path / "open", ("PUT", "/v1/admin/flags", {"trial": True}), *calls, keys=(), keep_inputs=True)
    assert [status for status, _ in found] == [404, 200, 200, 405]
    assert "inputs" not in found[2][1]
    assert found[2][1]["outputs"]
    found = http(tmp_path / "keyed", *calls, keep_inputs=True)
    assert [status for status, _ in found] == [200, 200, 200]
    assert found[1][1]["inputs"][0]["data"] == X[[1, 3]].ravel().tolist()


def test_nonsense_as_an_answer_is_the_clients_mistake(tmp_path: Path) -> None:
    path = "/v1/questions/ID"
    found = http(tmp_path, *(("POST", path, answer) for answer in ({"answer": float("nan")}, {"answer": 1, "by": "\ud800"})))
    assert [status for status, _ in found] == [400, 400]
