"""/ui as an ASGI application: static files of the package, and what the page must know before it may ask for data.

The files hold no data, so they need no key. What they show comes from the server's other pages, which do. A browser is told that the page
may load from and send to its own origin only, and that no string may become markup or a script (Content-Security-Policy, Trusted Types).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING

from lowbit import __version__
from lowbit.serving.protocol.refusals import NotServed, WrongMethod
from lowbit.serving.web.asgi import CLOSE, JSON, Header, Incoming, answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowbit.serving.settings import Settings
    from lowbit.serving.web.asgi import App, Receive, Scope, Send

HOME = "/ui"
FACTS = "server.json"
GET = ("GET", "HEAD")
KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
SEALED: tuple[Header, ...] = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
FRESH: Header = (b"cache-control", b"no-cache")
"""A browser keeps the files, but asks whether they changed: after an update nobody runs half of the old page."""
NEVER: Header = (b"cache-control", b"no-store")


@dataclass(frozen=True)
class File:
    """One of the page's files.

    Attributes:
        content: Whole.
        kind: For Content-Type.
        tag: For ETag: a digest of the content, in quotes.
    """

    content: bytes
    kind: str
    tag: str


class Ui:
    """The page as an ASGI application within `rest.Rest`; other paths go to `others`."""

    def __init__(self, settings: Settings, others: App | None = None) -> None:
        """For a server with these settings."""
        self._facts = json.dumps(facts(settings)).encode()
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request.

        Raises:
            Refusal: of the kind that fits.
        """
        path, method = scope["path"], scope["method"]
        if path != HOME and not path.startswith(f"{HOME}/"):
            if self._others is None:
                raise NotServed(f"There is nothing at '{path}'.")
            await self._others(scope, receive, send)
            return
        name = path.removeprefix(HOME).removeprefix("/") or "index.html"
        found = static().get(name)
        if found is None and name != FACTS:
            raise NotServed(f"There is nothing at '{path}'.")
        if method not in GET:
            raise WrongMethod(method, path, GET)
        incoming = Incoming.of(scope, receive)
        await incoming.discard()
        end = (CLOSE,) if incoming.unread else ()
        if path == HOME:  # relative, so that it holds behind a proxy's prefix, too
            await answer(send, 308, [b""], [(b"location", b"ui/"), NEVER, *end])
        elif found is None:
            await answer(send, 200, [self._facts], [JSON, NEVER, *SEALED, *end])
        else:
            await _file(send, found, incoming.headers, end)


def facts(settings: Settings) -> dict[str, object]:
    """What the page must know before it asks for anything: whether to ask for a key, and which of the server's pages there are."""
    return {
        "version": __version__,
        "keys": bool(settings.api_keys),
        "registry": settings.registry is not None,
        "record": settings.record,
        "state": settings.record and settings.state is not None,
    }


async def _file(send: Send, found: File, asked: Mapping[str, str], end: tuple[Header, ...]) -> None:
    known = {tag.strip().removeprefix("W/") for tag in asked.get("if-none-match", "").split(",")}
    headers = [(b"etag", found.tag.encode()), FRESH, *SEALED, *end]
    if found.tag in known or "*" in known:
        await send({"type": "http.response.start", "status": 304, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
    else:
        await answer(send, 200, [found.content], [(b"content-type", found.kind.encode()), *headers])


@cache
def static() -> Mapping[str, File]:
    """The page's files by their path below /ui/; read once."""
    return dict(_below(files("lowbit.serving.ui") / "static", ""))


def _below(folder: Traversable, prefix: str) -> list[tuple[str, File]]:
    found = []
    for each in sorted(folder.iterdir(), key=lambda each: each.name):
        if each.is_dir():
            found += _below(each, f"{prefix}{each.name}/")
        elif kind := KINDS.get(each.name.rpartition(".")[2]):
            content = each.read_bytes()
            found.append((prefix + each.name, File(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')))
    return found
