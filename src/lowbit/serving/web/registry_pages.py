"""What the registry and its rollouts look like from a server, and what may be done to them.

GET  /v1/registry                  models, their versions and aliases, and what of them is loaded and answers here
GET  /v1/registry/audit?limit=50   the newest rows of the audit log, and whether its chain holds
POST /v1/registry/MODEL            {"action": "promote", "ref": "3", "by": ..., "why": ...} or {"action": "rollback", "to": ...}
GET  /v1/rollouts?limit=200        the newest of them
GET  /v1/rollouts/ID?limit=200     one, with the evidence of its step and its last decisions
POST /v1/rollouts                  {"model", "candidate", "plan", "by"}
POST /v1/rollouts/ID               {"action": "pause" | "resume" | "promote" | "abort", "by", "why"}

What changes something is there only with API keys. The registry knows models by its own names, which may not be those in addresses.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lowbit.errors import LowbitError, UsageError
from lowbit.serving.protocol.refusals import Conflicting, Malformed, NotServed, Unavailable
from lowbit.serving.web.pages import Asked, Page, Pages
from lowbit.serving.web.registry_documents import DECISIONS, ROLLOUTS, Shown

if TYPE_CHECKING:
    from lowbit.serving.fleet.follower import Follower

NONE = "This server has no registry: start it with `lowbit serve NAME --registry DIR`."


def mount(pages: Pages, follower: Follower | None, *, keyed: bool) -> None:
    """Adds these pages to a server's.

    Args:
        pages: The server's.
        follower: What follows the registry; None where there is none, which the pages then say.
        keyed: Whether the server asks for API keys.
    """
    if follower is None:
        for path in ("/v1/registry", "/v1/registry/audit", "/v1/rollouts"):
            pages.add("GET", path, _nothing)
        return
    shown = Shown(follower)
    pages.add("GET", "/v1/registry", _in_thread(lambda _: {"models": shown.models()}))
    pages.add("GET", "/v1/registry/audit", _in_thread(lambda asked: shown.audit(asked.limit())))
    pages.add("GET", "/v1/rollouts", _in_thread(lambda asked: {"rollouts": shown.rollouts(asked.limit(ROLLOUTS))}))
    pages.add("GET", "/v1/rollouts/{id}", _in_thread(lambda asked: shown.rollout(asked.path["id"], asked.limit(DECISIONS))))
    if keyed:
        done = Done(follower, shown)
        pages.add("POST", "/v1/registry/{model}", _in_thread(done.move))
        pages.add("POST", "/v1/rollouts", _in_thread(done.start))
        pages.add("POST", "/v1/rollouts/{id}", _in_thread(done.steer))


async def _nothing(_: Asked) -> Page:
    raise NotServed(NONE)


def _in_thread(work: Callable[[Asked], Mapping[str, Any]]) -> Callable[[Asked], Any]:
    """A handler that reads or writes the registry, off the event loop."""

    async def handler(asked: Asked) -> Page:
        return Page(await asyncio.to_thread(_kind, work, asked))

    return handler


def _kind(work: Callable[[Asked], Mapping[str, Any]], asked: Asked) -> Mapping[str, Any]:
    from lowbit.registry.records import Conflict

    try:
        return work(asked)
    except Conflict as error:
        raise Conflicting(str(error)) from error
    except UsageError as error:
        raise Malformed(str(error)) from error
    except LowbitError as error:  # what is there is not what it should be
        raise Conflicting(str(error)) from error
    except (sqlite3.Error, OSError) as error:
        raise Unavailable("The registry cannot be used now.", retry_after_s=5) from error


class Done:
    """What is changed through a server, in the name of whoever the request says."""

    def __init__(self, follower: Follower, shown: Shown) -> None:
        """In the registry that is followed."""
        self._registry, self._rollouts, self._shown = follower.registry, follower.rollouts, shown

    def move(self, asked: Asked) -> dict[str, Any]:
        """Moves a model's champion, or another alias.

        Raises:
            UsageError: no such version, or nothing to go back to.
            Conflict: the alias is not where the caller believed it to be.
        """
        from lowbit.registry.aliases import ANY

        document = _document(asked, {"action", "ref", "to", "alias", "expect", "by", "why"})
        model, action = asked.path["model"], document.get("action")
        alias, by, why = _text(document, "alias", "champion"), _text(document, "by"), _text(document, "why")
        if action == "promote":
            expect = ANY if document.get("expect") is None else self._digest(model, document["expect"])
            event = self._registry.promote(_ref(model, document.get("ref")), alias=alias, expect=expect, by=by, why=why)
        elif action == "rollback":
            to = document.get("to")
            event = self._registry.rollback(model, alias=alias, to=to if to is None else self._back(model, to), by=by, why=why)
        else:
            raise Malformed('The action is "promote" or "rollback".')
        return {"event": asdict(event), "model": self._shown.model(model)}

    def _digest(self, model: str, ref: object) -> str:
        return self._registry.resolve(_ref(model, ref)).digest

    def _back(self, model: str, to: object) -> int | str:
        """Where to go back to: a version, as everywhere, or an event of the alias as {"event": ID}."""
        if isinstance(to, dict) and isinstance(to.get("event"), int) and not isinstance(to["event"], bool):
            return int(to["event"])
        return self._digest(model, to)

    def start(self, asked: Asked) -> dict[str, Any]:
        """Begins a rollout.

        Raises:
            UsageError: no such version, a wrong plan, or one is under way.
        """
        from lowbit.rollout.plan import Plan

        document = _document(asked, {"model", "candidate", "plan", "by"})
        model = _text(document, "model")
        candidate = self._registry.resolve(_ref(model, document.get("candidate")))
        plan = Plan.from_json(document.get("plan") or {})
        return self._shown.rollout(self._rollouts.start(model, candidate, plan, by=_text(document, "by")).id)

    def steer(self, asked: Asked) -> dict[str, Any]:
        """Pauses, resumes, promotes or aborts one.

        Raises:
            NotServed: there is none of this id.
            UsageError: it has ended otherwise.
        """
        document, id = _document(asked, {"action", "by", "why"}), asked.path["id"]
        self._shown.known(id)
        actions = {name: getattr(self._rollouts, name) for name in ("pause", "resume", "promote", "abort")}
        action = document.get("action")
        if action not in actions:
            raise Malformed(f"The action is one of {', '.join(actions)}.")
        actions[action](id, by=_text(document, "by"), why=_text(document, "why"))
        return self._shown.rollout(id)


def _ref(model: str, given: object) -> str:
    """A version of this model: 3, "3", "champion", "sha256:..." or with the name in front."""
    if isinstance(given, int) and not isinstance(given, bool):
        return f"{model}@{given}"
    if not isinstance(given, str) or not given:
        raise Malformed('Name the version, e.g. "3" or "challenger".')
    name, at, rest = given.rpartition("@")
    if at and name != model:
        raise Malformed(f"'{given}' is no version of '{model}'.")
    return f"{model}@{rest}"


def _document(asked: Asked, allowed: set[str]) -> dict[str, Any]:
    document = asked.json()
    if strange := sorted(document.keys() - allowed):
        raise Malformed(f"'{strange[0]}' is not known here. Allowed: {', '.join(sorted(allowed))}.")
    return document


def _text(document: Mapping[str, Any], name: str, usual: str | None = None) -> str:
    value = document.get(name, usual)
    if not isinstance(value, str) or not value.strip():
        raise Malformed(f'Say "{name}" in words.')
    return value
