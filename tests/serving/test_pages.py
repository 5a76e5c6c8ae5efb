"""Pages beside inference: what is sent to them has limits of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgi_case import Answered, call

from lowbit.serving.service import Service
from lowbit.serving.settings import Settings
from lowbit.serving.web.pages import MOST_BODY, Asked, Page, Pages
from lowbit.serving.web.rest import Rest


def posted(body: bytes, **settings: Any) -> Answered:
    async def back(asked: Asked) -> Page:
        return Page({"keys": sorted(asked.json()), "query": dict(asked.query), "name": asked.path["name"]})

    async def work() -> Answered:
        pages = Pages(Settings(**settings))
        pages.add("POST", "/v1/things/{name}", back)
        return await call(Rest(Service(Settings(**settings)), pages), "POST", "/v1/things/a", body, query="q=1")

    return asyncio.run(work())


def test_a_page_is_told_its_path_query_and_body() -> None:
    found = posted(b'{"b": 1, "a": [2]}')
    assert (found.status, found.json) == (200, {"keys": ["a", "b"], "query": {"q": "1"}, "name": "a"})


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'"' + b"x" * MOST_BODY + b'"', 413, "1,048,576 are allowed"),
        (b"[1]", 400, "must be a JSON object"),
        (b'{"a": NaN}', 400, "NaN, which JSON has not"),
        (b'{"a": ', 400, "is not JSON"),
        (b"[" * 100_000, 400, "is not JSON"),
    ],
)
def test_bodies_that_are_refused(body: bytes, status: int, words: str) -> None:
    found = posted(body)
    assert (found.status, words in found.error) == (status, True), found.body


def test_a_server_may_allow_less() -> None:
    assert posted(b'{"a": "' + b"x" * 1000 + b'"}', max_body_bytes=500).status == 413
