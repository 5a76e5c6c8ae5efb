"""The shape in which a server says what it counted since it began, and what came between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from lowbit.monitoring.tally import Key, Tally
from lowbit.monitoring.windows import Window


@dataclass(frozen=True)
class Snapshot:
    """What one server counted since it began.

    Attributes:
        since: When it began, seconds since 1970.
        at: When this was counted.
        server: Which one: another name for each process.
        tallies: By variant.
    """

    since: float
    at: float
    server: str = ""
    tallies: Mapping[Key, Tally] = field(default_factory=dict)

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, at: float, server: str = "") -> Snapshot:
        """What the server's recorder gives: `{"since": ISO time, "models": [{model, version, variant, rows_seen, ...}]}`.

        Args:
            document: The recording; `requests`, `errors`, `seconds`, `predictions`, `columns`, `busy_s` and `joules` are taken where they
                are.
            at: When it was taken, seconds since 1970.
            server: Which server's it is.
        """
        began = document["since"]
        since = datetime.fromisoformat(began).timestamp() if isinstance(began, str) else float(began)
        return cls(since, at, server, {_key(entry): _tally(entry) for entry in document["models"]})


def between(before: Snapshot | None, after: Snapshot) -> tuple[Window, ...]:
    """The windows between two snapshots of one server; variants that saw nothing have none.

    A server that was started again counts from zero: then all it counted is new.

    Args:
        before: The last one that was kept; None for everything since the server began.
        after: Of the same server, later.
    """
    same = before is not None and before.server == after.server and before.since == after.since
    found = []
    for key, tally in after.tallies.items():
        past = before.tallies.get(key) if same and before is not None else None
        anew = past is not None and tally.began_anew(past)
        came = tally if past is None or anew else tally - past
        since = before.at if same and before is not None and not anew else after.since
        if came.requests or came.rows or came.errors:
            found.append(Window(key, since, after.at, came, after.server))
    return tuple(found)


def _key(entry: Mapping[str, Any]) -> Key:
    return Key(entry["model"], entry["version"], entry["variant"])


def _tally(entry: Mapping[str, Any]) -> Tally:
    confidence = entry.get("confidence")
    renamed = {"rows": entry["rows_seen"], "recorded": entry["rows_recorded"], "confidence": confidence["counts"] if confidence else ()}
    return Tally.from_json({**entry, **renamed, "requests": entry.get("requests", entry["rows_seen"])})
