"""What was seen of the traffic, what people say of it, and what it costs.

GET  /v1/monitoring/windows?model=NAME&limit=50   windows with what the rules say; "latest": what each variant is judged by
GET  /v1/reviews?state=open&model=NAME&limit=50   shifts that a person should look at, or has
GET  /v1/reviews/ID
POST /v1/reviews/ID      {"action": "accept" | "rollback" | "recalibrate", "by": "who", "why": "..."}
POST /v1/feedback        see `feedback_pages`
GET  /v1/cost            CPU seconds, energy and money by variant, each with how it was found

POST is there only where the server asks for API keys: anybody who reaches the port could call a shift normal, or a right answer wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from lowbit.errors import LowbitError, UsageError
from lowbit.monitoring.baseline import Baseline
from lowbit.monitoring.labels import Accuracy
from lowbit.monitoring.looking import Look
from lowbit.monitoring.reviews import Review
from lowbit.monitoring.rules import Rules, evaluate
from lowbit.monitoring.store import Monitoring
from lowbit.monitoring.tally import Key
from lowbit.monitoring.windows import Window
from lowbit.serving.keep.keeping import Keeper
from lowbit.serving.protocol.refusals import Malformed, NotServed, Refusal
from lowbit.serving.service import Service
from lowbit.serving.web import feedback_pages
from lowbit.serving.web.pages import Asked, Page, Pages

Rollback = Callable[[str, str, str, str], Awaitable[Mapping[str, Any]]]
"""(model, version, who, why) -> what was done, for the answer; it takes the version before back, and doing it twice is doing it once.

Raises:
    LowbitError: there is none.
"""
ACTIONS = ("accept", "rollback", "recalibrate")
NO_STATE = "Nothing is kept: the server was started without --state FOLDER."
NO_REGISTRY = (
    "This server has no registry to roll back in: it was started without --registry. Put the bundle of before in the place of this one, "
    "send SIGHUP, and answer the review with accept or recalibrate."
)


class Answered(Refusal):
    """Somebody else answered the review."""

    status, code, outcome = 409, "ALREADY_EXISTS", "answered"


class Refused(Refusal):
    """What is asked for cannot be done here, as things are."""

    status, code, outcome = 409, "FAILED_PRECONDITION", "refused"


def mount(pages: Pages, keeper: Keeper | None, service: Service, *, keyed: bool, rollback: Rollback | None = None) -> None:
    """Adds these pages to a server's.

    Args:
        pages: The server's.
        keeper: Whose windows; None where nothing is recorded.
        service: That is watched.
        keyed: Whether the server asks for API keys.
        rollback: Takes a model's version before back; None where there is no registry.
    """
    if keeper is None:
        return
    _mount_cost(pages, keeper)
    if keeper.books.store is None:
        _mount_nothing(pages, keyed)
        return
    _mount_windows(pages, keeper)
    _mount_reviews(pages, keeper, service, keyed, rollback)
    if keyed:
        feedback_pages.mount(pages, keeper, service)


def _mount_cost(pages: Pages, keeper: Keeper) -> None:
    async def cost(_: Asked) -> Page:
        return Page(await keeper.bills())

    pages.add("GET", "/v1/cost", cost)


def _mount_nothing(pages: Pages, keyed: bool) -> None:
    """The same addresses, saying why there is nothing."""

    async def nothing(_: Asked) -> Page:
        raise NotServed(NO_STATE)

    for path in ("/v1/monitoring/windows", "/v1/reviews", "/v1/reviews/{id}"):
        pages.add("GET", path, nothing)
    if keyed:
        for path in ("/v1/reviews/{id}", "/v1/feedback"):
            pages.add("POST", path, nothing)


# Windows --------------------------------------------------------------------------------------------------------------


def _mount_windows(pages: Pages, keeper: Keeper) -> None:
    rules = Rules(sla=keeper.settings.sla)

    async def windows(asked: Asked) -> Page:
        model, limit = asked.query.get("model"), asked.limit()
        latest = [latest_shown(key, look) for key, look in keeper.books.looks.items() if model in (None, key.model)]
        return Page({"windows": await keeper.ask(lambda store: windows_shown(store, rules, model, limit)), "latest": latest})

    pages.add("GET", "/v1/monitoring/windows", windows)


def windows_shown(store: Monitoring, rules: Rules, model: str | None, limit: int) -> list[dict[str, Any]]:
    """The latest windows, the earliest of them first, each with what the rules say of it alone."""
    found, baselines = [], dict[Key, Baseline | None]()
    for window in store.windows(model=model, limit=limit):
        if window.key not in baselines:
            baselines[window.key] = store.baseline(window.key)
        accuracy = store.labels.accuracy(since=window.since, until=window.until).get(window.key)
        found.append(shown(window, baselines[window.key], evaluate(window, baselines[window.key], rules, accuracy), accuracy))
    return found


def latest_shown(key: Key, look: Look) -> dict[str, Any]:
    """What a variant is judged by: its latest windows together, as many as the rules need."""
    window = look.window or Window(key, 0.0, 0.0)
    return shown(window, look.baseline, look.findings, look.accuracy)


def shown(window: Window, baseline: Baseline | None, findings: Any, accuracy: Accuracy | None) -> dict[str, Any]:
    """A window as JSON has it."""
    tally, times = window.tally, window.latency_ms() or {}
    return {
        **window.key._asdict(),
        "since": window.since,
        "until": window.until,
        "server": window.server,
        "requests": tally.requests,
        "errors": tally.errors,
        "rows": tally.rows,
        "recorded": tally.recorded,
        "latency_ms": {name: times.get(name) for name in ("p50", "p95", "p99")},
        "throughput_per_s": window.throughput_per_s,
        "cpu_seconds": tally.busy_s,
        "joules": tally.joules,
        "confidence": list(tally.confidence) or None,
        "baseline": (list(baseline.tally.confidence) or None) if baseline is not None else None,
        "baseline_text": baseline.text if baseline is not None else None,
        "predictions": list(tally.predictions) or None,
        "inputs": {name: moments.to_json() for name, moments in tally.inputs.items()},
        "findings": [finding.to_json() for finding in findings],
        "accuracy": None if accuracy is None else {"value": accuracy.value, "low": accuracy.low, "high": accuracy.high, "n": accuracy.n},
    }


# Reviews --------------------------------------------------------------------------------------------------------------


def _mount_reviews(pages: Pages, keeper: Keeper, service: Service, keyed: bool, rollback: Rollback | None) -> None:
    turn = asyncio.Lock()

    async def listed(asked: Asked) -> Page:
        state, model, limit = asked.query.get("state") or None, asked.query.get("model"), asked.limit()
        state = None if state == "all" else state
        found = await _asked(keeper, lambda store: store.reviews.listed(state, model=model, limit=limit))
        return Page({"reviews": [review.to_json() for review in found]})

    async def one(asked: Asked) -> Page:
        return Page((await _one(keeper, asked.path["id"])).to_json())

    async def answer(asked: Asked) -> Page:
        action, by, why = answer_of(asked.json())
        async with turn:
            found = await _one(keeper, asked.path["id"])
            if found.state != "open":
                how = found.state.replace("_", " ")
                raise Answered(f"Review '{found.id}' was answered before: {how} by {found.by}. The first answer stands.")
            done = await _answered(keeper, service, found, action, by, why, rollback)
        await keeper.refresh()
        return Page({**(await _one(keeper, found.id)).to_json(), **done})

    pages.add("GET", "/v1/reviews", listed)
    pages.add("GET", "/v1/reviews/{id}", one)
    if keyed:
        pages.add("POST", "/v1/reviews/{id}", answer)


def answer_of(document: Mapping[str, Any]) -> tuple[str, str, str]:
    """Action, who, why.

    Raises:
        Malformed: one of them is missing or of the wrong kind.
    """
    action, by, why = document.get("action"), document.get("by"), document.get("why", "")
    if document.keys() - {"action", "by", "why"} or not isinstance(by, str) or not isinstance(why, str) or not by.strip():
        raise Malformed('A review is answered with {"action": "accept", "by": "who", "why": "..."}; somebody has to say who.')
    if action not in ACTIONS:
        raise Malformed(f"The action must be one of {', '.join(ACTIONS)}.")
    return str(action), by, why


async def _answered(
    keeper: Keeper, service: Service, found: Review, action: str, by: str, why: str, rollback: Rollback | None
) -> dict[str, Any]:
    """Does what a person wants; what is to be done outside this server is said."""
    if action == "accept":
        await _asked(keeper, lambda store: store.accept(found.id, by=by, why=why))
        return {}
    if action == "recalibrate":
        await _asked(keeper, lambda store: store.reviews.close(found.id, "recalibrated", by=by, why=why))
        return {"next": _how_to_recalibrate(keeper, found)}
    if rollback is None:
        raise Refused(NO_REGISTRY)
    if found.key.version in service.answering(found.key.model):
        try:
            done = await rollback(found.key.model, found.key.version, by, why or f"review {found.id}")
        except LowbitError as error:
            raise Refused(" ".join(filter(None, (error.message, error.hint)))) from error
    else:
        done = {"said": f"Version {found.key.version} does not answer any more: nothing was changed."}
    await _asked(keeper, lambda store: store.reviews.close(found.id, "rolled_back", by=by, why=why))
    return {"rollback": dict(done)}


def _how_to_recalibrate(keeper: Keeper, found: Review) -> str:
    kept = keeper.books.samples.get(found.key.model, 0)
    if not kept and keeper.sampler is None:
        return "No inputs are kept: start the server with --sample-inputs SHARE, and call `lowbit recalibrate` once there are some."
    return f"{kept:,} rows are kept. Call `lowbit recalibrate BUNDLE --samples STATE --out OUT`; it makes a challenger of them."


async def _one(keeper: Keeper, name: str) -> Review:
    try:
        return await keeper.ask(lambda store: store.reviews.one(name))
    except UsageError as error:
        raise NotServed(error.message) from None


# What they share ------------------------------------------------------------------------------------------------------


async def _asked(keeper: Keeper, work: Callable[[Monitoring], Any]) -> Any:
    """Has the store do something; a mistake of the caller's is a refusal."""
    try:
        return await keeper.ask(work)
    except UsageError as error:
        raise Malformed(" ".join(filter(None, (error.message, error.hint)))) from None
