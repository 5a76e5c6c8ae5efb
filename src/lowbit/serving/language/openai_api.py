"""OpenAI's protocol in front of the rest of the server, for language models.

GET  /v1/models, /v1/models/NAME
POST /v1/completions
POST /v1/chat/completions       streams are server-sent events
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from lowbit.serving.answer.answered import Caller
from lowbit.serving.answer.answering import SESSION
from lowbit.serving.language import asking, replies
from lowbit.serving.language.asking import Reader
from lowbit.serving.language.speaking import Spelled, Talk
from lowbit.serving.protocol import aside, callers
from lowbit.serving.protocol.refusals import Gone, NotServed, Refusal, WrongMethod
from lowbit.serving.protocol.rest_codec import read_json
from lowbit.serving.service import Service
from lowbit.serving.web.asgi import CLOSE, JSON, App, ClientGone, Header, Incoming, Receive, Scope, Send, answer

MOST_BODY = 8 << 20
"""Bytes of a request: the longest contexts are a tenth of it as text, and half of it as token ids."""
ASKED: dict[str, Reader] = {"/v1/completions": asking.completion, "/v1/chat/completions": asking.chat}
MODELS = "/v1/models"
EVENTS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
_log = logging.getLogger("lowbit.serving")


class OpenAi:
    """The protocol as an ASGI application; other paths go to `others`, untouched."""

    def __init__(self, service: Service, others: App) -> None:
        """Speaks for a service's language models."""
        self.service = service
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        path = scope["path"].rstrip("/")
        if path not in ASKED and path != MODELS and not self._names_a_model(path):
            await self._others(scope, receive, send)
            return
        incoming = Incoming.of(scope, receive)
        request_id = callers.request_id(incoming.headers)
        mark: list[Header] = [(b"x-request-id", request_id.encode())]
        try:
            if path in ASKED:
                await self._asked(incoming, send, ASKED[path], request_id, mark)
            else:
                await self._models(incoming, send, path, mark)
        except ClientGone:
            return
        except Refusal as refusal:
            await self._refuse(send, refusal, incoming, request_id, mark)
        except Exception:
            _log.exception("a request failed")
            await self._refuse(send, Refusal("The server failed on this request."), incoming, request_id, mark)

    @staticmethod
    def _names_a_model(path: str) -> bool:
        """/v1/models/NAME alone; what is below it is another protocol's."""
        head, _, name = path.rpartition("/")
        return head == MODELS and bool(name)

    async def _models(self, incoming: Incoming, send: Send, path: str, mark: list[Header]) -> None:
        if incoming.method not in ("GET", "HEAD"):
            raise WrongMethod(incoming.method, incoming.path, ("GET",))
        callers.admit(self.service.settings.api_keys, incoming.headers)
        found = {each.name: each for each in self.service.models.values() if each.language is not None}
        listed = [replies.model(name, _seconds(each.bundle.manifest.created)) for name, each in found.items()]
        document: dict[str, Any] = {"object": "list", "data": listed}
        if path != MODELS:
            name = path.rpartition("/")[2]
            one = [each for each in listed if each["id"] == name]
            if not one:
                raise NotServed(f"The model '{name[:100]}' is not served. Served: {', '.join(found) or 'none'}.")
            document = one[0]
        await incoming.discard()
        await answer(send, 200, [json.dumps(document).encode()], [JSON, *mark, *self._end(incoming)])

    async def _asked(self, incoming: Incoming, send: Send, read: Reader, request_id: str, mark: list[Header]) -> None:
        if incoming.method != "POST":
            raise WrongMethod(incoming.method, incoming.path, ("POST",))
        settings = self.service.settings
        callers.admit(settings.api_keys, incoming.headers)
        most = min(MOST_BODY, settings.max_body_bytes)
        with self.service.holding(incoming.size(most)):
            body = await incoming.body(most, settings.body_timeout_s)
            ask = await aside.by_size(len(body), lambda: read(read_json(memoryview(body))))
        headers = {SESSION: ask.session, **incoming.headers} if ask.session else incoming.headers
        talk = Talk(self.service, ask, Caller(request_id, headers, callers.waits_s(incoming.headers, {})))
        try:
            await incoming.unless_gone(self._talked(talk, incoming, send, mark))
        finally:
            talk.close()

    async def _talked(self, talk: Talk, incoming: Incoming, send: Send, mark: list[Header]) -> None:
        await talk.begin()
        deployment, ask = talk.deployment, talk.ask
        told: list[Header] = [
            (b"x-lowbit-version", deployment.version.encode()),
            (b"x-lowbit-variant", talk.variant.id.encode()),
            (b"x-lowbit-route", talk.reason.encode()),
        ]
        reply = replies.Reply(
            ("chatcmpl-" if ask.chat else "cmpl-") + secrets.token_hex(12),
            ask.chat,
            ask.model or deployment.name,
            int(time.time()),
            f"{deployment.version}-{talk.variant.id}",
        )
        if ask.stream:
            await _streamed(talk, reply, send, [*EVENTS, *mark, *told, *self._end(incoming)])
        else:
            document = await _whole(talk, reply)
            await answer(
                send, 200, [json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")], [JSON, *mark, *told, *self._end(incoming)]
            )

    async def _refuse(self, send: Send, refusal: Refusal, incoming: Incoming, request_id: str, mark: list[Header]) -> None:
        self.service.refused(refusal, Caller(request_id, incoming.headers))
        own = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
        if refusal.retry_after_s is not None:
            own.append((b"retry-after", f"{max(1, round(refusal.retry_after_s))}".encode()))
        with contextlib.suppress(ClientGone):
            await incoming.discard()
            body = json.dumps(replies.error(refusal)).encode()
            await answer(send, refusal.status, [body], [JSON, *own, *mark, *self._end(incoming)])

    def _end(self, incoming: Incoming) -> Iterable[Header]:
        """Closes a connection on which a body is stuck, and every connection of a server that stops."""
        return (CLOSE,) if incoming.unread or self.service.leaving else ()


async def _whole(talk: Talk, reply: replies.Reply) -> dict[str, Any]:
    """The answers once all of them have ended."""
    spelled: list[list[Spelled]] = [[] for _ in talk.answers]
    async for piece in talk.pieces():
        spelled[piece.index] += piece.tokens
    choices = [
        reply.choice(each.index, each.writer.text, tokens if talk.ask.logprobs else None, each.finish)
        for each, tokens in zip(talk.answers, spelled, strict=True)
    ]
    return reply.whole(choices, replies.usage_of(talk.prompt_tokens, talk.answer_tokens))


async def _streamed(talk: Talk, reply: replies.Reply, send: Send, headers: list[Header]) -> None:
    """Events as tokens come. What fails behind the first one is an event, too: the status has gone out."""
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    counted = talk.ask.usage

    async def say(body: bytes) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": True})

    try:
        if talk.ask.chat:
            for each in talk.answers:
                await say(reply.chunk([reply.begun(each.index)], None, counted=counted))
        async for piece in talk.pieces():
            await say(reply.chunk([reply.delta(piece, logprobs=talk.ask.logprobs)], None, counted=counted))
        if counted:
            await say(reply.chunk([], replies.usage_of(talk.prompt_tokens, talk.answer_tokens), counted=True))
        await say(replies.DONE)
    except Gone:
        raise
    except Refusal as refusal:
        await say(replies.event(replies.error(refusal)))
    except Exception:
        _log.exception("a stream failed")
        await say(replies.event(replies.error(Refusal("The server failed on this request."))))
    await send({"type": "http.response.body", "body": b""})


def _seconds(created: str) -> int:
    return int(datetime.fromisoformat(created).timestamp())
