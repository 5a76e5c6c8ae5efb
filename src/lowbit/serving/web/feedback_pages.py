"""Labels that come later: what a request should have been answered with, said by whoever found out.

POST /v1/feedback        {"request_id": "...", "label": 3, "by": "who"}, or {"labels": [{"request_id": "...", "label": 3}, ...]}

A label is the number of a class as the model counts them, or its name where the bundle has names; a list for a request of several rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowbit.errors import UsageError
from lowbit.monitoring.labels import Joined
from lowbit.serving.keep.keeping import Keeper
from lowbit.serving.protocol.refusals import Malformed, NotServed
from lowbit.serving.service import Service
from lowbit.serving.web.pages import Asked, Page, Pages

MOST_LABELS = 1_000
NO_FEEDBACK = "Answers are not kept: the server was started without --feedback."


def mount(pages: Pages, keeper: Keeper, service: Service) -> None:
    """Adds the page to those of a server that asks for API keys.

    Args:
        pages: The server's.
        keeper: With a store.
        service: For the names of classes.
    """

    async def feedback(asked: Asked) -> Page:
        if keeper.predictions is None:
            raise NotServed(NO_FEEDBACK)
        given, by = labels_of(asked.json())
        names = _names(service)
        labels = [(request_id, class_of(label, names)) for request_id, label in given]  # all of them, before any is written
        joined: list[Joined] = []
        unknown: list[str] = []
        for request_id, label in labels:
            try:
                found = await keeper.label(request_id, label, by)
            except UsageError as error:
                raise Malformed(f"Request '{request_id}': {' '.join(filter(None, (error.message, error.hint)))}") from error
            joined.extend(found)
            if not found:
                unknown.append(request_id)
        return Page({"joined": len(joined), "right": sum(each.right for each in joined), "unknown": unknown})

    pages.add("POST", "/v1/feedback", feedback)


def labels_of(document: Mapping[str, Any]) -> tuple[list[tuple[str, Any]], str]:
    """(request id, label) of each, and who says so.

    Raises:
        Malformed: not of that form.
    """
    by = document.get("by", "")
    entries = document["labels"] if "labels" in document else [{name: document[name] for name in document if name != "by"}]
    allowed = {"labels", "by"} if "labels" in document else {"request_id", "label", "by"}
    good = isinstance(by, str) and isinstance(entries, list) and not document.keys() - allowed
    if not (good and all(map(_is_label, entries))):
        raise Malformed('Feedback is {"request_id": "...", "label": 3}, or {"labels": [{"request_id": "...", "label": 3}, ...]}.')
    if not 0 < len(entries) <= MOST_LABELS:
        raise Malformed(f"From 1 to {MOST_LABELS:,} labels may come at once, not {len(entries):,}.")
    return [(each["request_id"], each["label"]) for each in entries], by


def _is_label(entry: object) -> bool:
    return isinstance(entry, dict) and entry.keys() == {"request_id", "label"} and isinstance(entry["request_id"], str)


def class_of(label: Any, names: Mapping[str, set[int]]) -> Any:
    """A label as answers are kept: the number of its class; a list for a request of several rows.

    Args:
        label: A whole number, true or false for yes and no, or the name of a class.
        names: Numbers of the classes that are called so in some model.

    Raises:
        Malformed: it is none.
    """
    if isinstance(label, list) and label and not any(isinstance(each, list) for each in label):
        return [class_of(each, names) for each in label]
    if isinstance(label, bool):
        return int(label)
    if isinstance(label, int) and label >= 0:
        return label
    if isinstance(label, str) and len(places := names.get(label, set())) == 1:
        return next(iter(places))
    raise Malformed(
        f"{str(label)[:80]!r} is no class. Give its number, as the model counts them from 0, or its name if the bundle has names."
    )


def _names(service: Service) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for deployment in service.loaded:
        steps = deployment.preprocess
        for place, name in enumerate(steps.text.labels if steps is not None and steps.text is not None else ()):
            found.setdefault(name, set()).add(place)
    return found
