"""What a server offers beside inference, off the hot path: metrics, what was recorded, reloading, what operators and people ask."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from lowbit.serving.protocol.callers import REQUEST_ID, admit, request_id
from lowbit.serving.protocol.refusals import Malformed, NotServed, WrongMethod
from lowbit.serving.protocol.rest_codec import read_json
from lowbit.serving.watch.metrics import CONTENT_TYPE
from lowbit.serving.web.asgi import CLOSE, Incoming, answer

if TYPE_CHECKING:
    from lowbit.serving.reloading import Reloader
    from lowbit.serving.settings import Settings
    from lowbit.serving.watch.metrics import Metrics
    from lowbit.serving.watch.recording import Recorder
    from lowbit.serving.web.asgi import App, Receive, Scope, Send

MOST_BODY = 1 << 20
"""Bytes that a page is sent: flags, answers of people."""
MOST = 1000
"""Things that a page lists."""


@dataclass(frozen=True)
class Asked:
    """A request to a page.

    Attributes:
        path: Named parts of the path.
        query: Behind the question mark; the last one of a name counts.
        body: Whole.
    """

    path: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as an object.

        Raises:
            Malformed: it is none.
        """
        document = read_json(memoryview(self.body))
        if not isinstance(document, dict):
            raise Malformed("The body must be a JSON object.")
        return document

    def limit(self, usual: int = 50) -> int:
        """How many are asked for.

        Raises:
            Malformed: no number from 1 to 1000.
        """
        text = self.query.get("limit", str(usual))
        if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MOST):
            raise Malformed(f"The limit must be from 1 to {MOST}.")
        return int(text)


@dataclass(frozen=True)
class Page:
    """What is given back: bytes of a kind, or anything that JSON can say."""

    content: Any
    status: int = 200
    kind: str = "application/json"

    def body(self) -> bytes:
        """As bytes."""
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


Handler = Callable[[Asked], Awaitable[Page]]


class Pages:
    """An ASGI application out of handlers, within `rest.Rest`. All of them need an API key where the server has any."""

    def __init__(self, settings: Settings, others: App | None = None) -> None:
        """No pages yet: see `add`. Paths that it does not know go to `others`."""
        self._settings, self._others = settings, others
        self._handlers: list[tuple[str, re.Pattern[str], Handler]] = []

    def add(self, method: str, path: str, handler: Handler) -> None:
        """Offers a page.

        Args:
            method: "GET", "POST", ...
            path: With named parts: "/v1/reviews/{id}".
            handler: Gives the page.
        """
        pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path) + "/?")
        self._handlers.append((method, pattern, handler))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request.

        Raises:
            Refusal: of the kind that fits; `rest.Rest` answers it.
            ClientGone: the client went.
        """
        incoming = Incoming.of(scope, receive)
        found = self._find(incoming)
        if found is None and self._others is not None:
            await self._others(scope, receive, send)
            return
        page = await self._page(incoming, found)
        mark = (REQUEST_ID.encode(), request_id(incoming.headers).encode())
        end = (CLOSE,) if incoming.unread else ()
        await answer(send, page.status, [page.body()], [(b"content-type", page.kind.encode()), mark, *end])

    async def _page(self, incoming: Incoming, found: tuple[Handler, Mapping[str, str]] | None) -> Page:
        if found is None:
            raise NotServed(f"There is nothing at '{incoming.path}'.")
        handler, parts = found
        admit(self._settings.api_keys, incoming.headers)
        body = bytes(await incoming.body(min(MOST_BODY, self._settings.max_body_bytes), self._settings.body_timeout_s))
        return await handler(Asked(parts, dict(parse_qsl(incoming.query.decode("latin-1"))), body))

    def _find(self, incoming: Incoming) -> tuple[Handler, Mapping[str, str]] | None:
        method, path = incoming.method, incoming.path
        allowed = []
        for each, pattern, handler in self._handlers:
            if match := pattern.fullmatch(path):
                if each == method or (each, method) == ("GET", "HEAD"):
                    return handler, match.groupdict()
                allowed.append(each)
        if allowed:
            raise WrongMethod(method, path, sorted(set(allowed)))
        return None


def server_pages(settings: Settings, metrics: Metrics, recorder: Recorder | None, reloader: Reloader, others: App | None = None) -> Pages:
    """Metrics, what was recorded, and reloading.

    GET  /metrics           Prometheus's exposition
    GET  /v1/monitoring     histograms of confidences and statistics of inputs
    POST /v1/admin/reload   loads bundles that changed; only where API keys are set
    """
    pages = Pages(settings, others)

    async def exposition(asked: Asked) -> Page:  # noqa: ARG001
        return Page(metrics.text(), kind=CONTENT_TYPE)

    async def monitoring(asked: Asked) -> Page:  # noqa: ARG001
        if recorder is None:
            raise NotServed("Nothing is recorded: the server was started with --no-record.")
        return Page(recorder.snapshot())

    async def reload(asked: Asked) -> Page:  # noqa: ARG001
        if not settings.api_keys:
            raise NotServed("Reloading over HTTP needs API keys; without them send SIGHUP.")
        found = await reloader.reload()
        return Page({"models": [vars(each) for each in found]}, status=500 if any(each.result == "failed" for each in found) else 200)

    pages.add("GET", "/metrics", exposition)
    pages.add("GET", "/v1/monitoring", monitoring)
    pages.add("POST", "/v1/admin/reload", reload)
    return pages
