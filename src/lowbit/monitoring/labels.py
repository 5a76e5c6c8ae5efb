"""Labels that come later: joined to answers by the request's id, whichever of the two was written first."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowbit.errors import UsageError
from lowbit.measure.intervals import wilson
from lowbit.monitoring.database import Database
from lowbit.monitoring.tally import Key

MAX_LABEL = 1024
"""Bytes of a label, as JSON."""
MAX_ID = 256
SELECT = (
    "select p.model, p.version, p.variant, count(*) as n, sum(p.predicted = l.label) as hits from predictions p"
    " join labels l using (request_id, part) where p.at >= ? and p.at < ?"
)


@dataclass(frozen=True)
class Prediction:
    """What was answered to one row of a request.

    Attributes:
        request_id: Of the request.
        key: Who answered.
        at: Seconds since 1970.
        predicted: The class, or whatever a label is to be compared with.
        confidence: Of it; None where the answer has none.
        part: The row within the request.
    """

    request_id: str
    key: Key
    at: float
    predicted: Any
    confidence: float | None = None
    part: int = 0


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers among those that have a label.

    Attributes:
        value: The share.
        low: Lower end of the 95 % interval.
        high: Upper end.
        n: Labelled answers.
    """

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, right: int, n: int, alpha: float = 0.05) -> Accuracy | None:
        """Of so many right ones; None without any label. Wilson's interval."""
        return cls(right / n, *wilson(right, n, alpha), n) if n else None


@dataclass(frozen=True)
class Joined:
    """A label that met its answer.

    Attributes:
        key: Who had answered.
        right: Whether the answer was what the label says.
        first: Whether it is the first label of that answer.
    """

    key: Key
    right: bool
    first: bool


class Labels:
    """Answers and labels of one state folder."""

    def __init__(self, database: Database) -> None:
        """In an open database."""
        self._database = database

    def predicted(self, predictions: Iterable[Prediction]) -> None:
        """Keeps answers; to be called with many at once, away from the requests. An id that comes again keeps its first answer.

        Raises:
            sqlite3.Error: the disk is full.
        """
        rows = [(p.request_id, p.part, p.at, *p.key, written(p.predicted), p.confidence) for p in predictions]
        if rows:
            with self._database.writing() as connection:
                connection.executemany("insert or ignore into predictions values (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def label(self, request_id: str, label: Any, *, by: str = "", now: float | None = None) -> tuple[Joined, ...]:
        """Somebody says what would have been right. A later label of the same answer takes the place of the earlier one.

        Args:
            request_id: Of the request.
            label: Of its row; a list of them for a request of several rows.
            by: Who says so.
            now: Seconds since 1970.

        Returns:
            One for each row whose answer is known; answers that are still on their way to the disk are joined when they come.

        Raises:
            UsageError: it is no label.
        """
        labels = label if isinstance(label, list) else [label]
        if not request_id or len(request_id) > MAX_ID or not labels:
            raise UsageError("A label needs the id of its request.", f"Give up to {MAX_ID} characters, as the answer had it.")
        texts = [written(each) for each in labels]
        at, found = time.time() if now is None else now, []
        with self._database.writing() as connection:
            for part, text in enumerate(texts):
                place = (request_id, part)
                first = connection.execute("select 1 from labels where (request_id, part) = (?, ?)", place).fetchone() is None
                connection.execute("insert or replace into labels values (?, ?, ?, ?, ?)", (*place, at, text, by))
                row = connection.execute(
                    "select model, version, variant, predicted from predictions where (request_id, part) = (?, ?)", place
                ).fetchone()
                if row is not None:
                    found.append(Joined(Key(row["model"], row["version"], row["variant"]), row["predicted"] == text, first))
        return tuple(found)

    def accuracy(self, *, since: float = 0.0, until: float = math.inf) -> dict[Key, Accuracy]:
        """Of each variant whose answers of that time have labels.

        Args:
            since: Of the answers, seconds since 1970.
            until: Likewise; excluded.
        """
        rows = self._database.rows(f"{SELECT} group by p.model, p.version, p.variant", since, until)
        found = {Key(row["model"], row["version"], row["variant"]): Accuracy.of(row["hits"], row["n"]) for row in rows}
        return {key: accuracy for key, accuracy in found.items() if accuracy is not None}

    def of(self, request_ids: Sequence[str]) -> Mapping[str, Any]:
        """The labels of requests of one row, by id; those without one are left out."""
        found = {}
        for request_id in request_ids:
            rows = self._database.rows("select label from labels where (request_id, part) = (?, 0)", request_id)
            if rows:
                found[request_id] = json.loads(rows[0]["label"])
        return found


def written(value: Any) -> str:
    """A class or label as text that is equal where the values are: 3, 3.0 and numpy's 3 are one.

    Raises:
        UsageError: it is not one number, string, boolean.
    """
    plain = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
    if isinstance(plain, float) and plain.is_integer():
        plain = int(plain)
    if not isinstance(plain, str | int | float | bool) or (isinstance(plain, float) and not math.isfinite(plain)):
        raise UsageError("A label is one number, string or boolean for each row.", "Give a class's index as the model numbers it.")
    text = json.dumps(plain)
    if len(text) > MAX_LABEL:
        raise UsageError(f"A label may have {MAX_LABEL:,} bytes, not {len(text):,}.")
    return text
