"""Everything that is kept of a server's traffic, in its state folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from lowbit.monitoring.baseline import Baseline
from lowbit.monitoring.database import Database
from lowbit.monitoring.labels import Labels
from lowbit.monitoring.reviews import Review, Reviews
from lowbit.monitoring.samples import Samples
from lowbit.monitoring.tally import Key
from lowbit.monitoring.windows import Window

DAY_S = 86_400.0
_LATEST = "delete from {0} where at <= (select at from {0} order by at desc limit 1 offset ?)"


@dataclass(frozen=True)
class Retention:
    """How long things are kept; inputs of clients for the shortest.

    Attributes:
        windows_s: Windows.
        predictions_s: Answers that may still get a label.
        reviews_s: Reviews that were answered; open ones stay.
        samples_s: Inputs of clients.
        predictions: At most so many answers, the latest; and so many labels.
        samples: At most so many inputs of each model.
    """

    windows_s: float = 90 * DAY_S
    predictions_s: float = 30 * DAY_S
    reviews_s: float = 365 * DAY_S
    samples_s: float = 7 * DAY_S
    predictions: int = 1_000_000
    samples: int = 2_000


class Monitoring:
    """The state folder's windows, baselines, labels, reviews and samples. Calls may come from any thread and from several processes.

    Attributes:
        folder: Of the state.
        retention: How long things are kept.
        labels: Answers by request, and what people say is right.
        reviews: Shifts that a person should look at.
        samples: Inputs that were kept, where the operator asked for that.
    """

    def __init__(self, folder: Path, *, create: bool = True, retention: Retention = Retention()) -> None:
        """Opens it.

        Raises:
            UsageError: the folder cannot be written to, or has none and `create` is False.
        """
        self.folder, self.retention = folder, retention
        self._database = Database(folder, create=create)
        self.labels = Labels(self._database)
        self.reviews = Reviews(self._database)
        self.samples = Samples(self._database, most=retention.samples)

    def add(self, windows: Iterable[Window]) -> None:
        """Keeps windows; all of them or none.

        Raises:
            sqlite3.Error: the disk is full.
        """
        rows = [
            (window.server, *window.key, window.since, window.until, window.tally.recorded, json.dumps(window.tally.to_json()))
            for window in windows
        ]
        if not rows:
            return
        insert = "insert into windows (server, model, version, variant, since, until, recorded, body) values (?, ?, ?, ?, ?, ?, ?, ?)"
        with self._database.writing() as connection:
            connection.executemany(insert, rows)

    def windows(
        self, key: Key | None = None, *, model: str | None = None, since: float = 0.0, until: float = math.inf, limit: int | None = None
    ) -> list[Window]:
        """The latest windows, the earliest of them first.

        Args:
            key: Of one variant alone.
            model: Of one model alone.
            since: That ended after this, seconds since 1970.
            until: And not after that.
            limit: At most so many.
        """
        wanted = {"model": key.model, "version": key.version, "variant": key.variant} if key is not None else {"model": model}
        given = {name: value for name, value in wanted.items() if value is not None}
        where = "".join(f" and {name} = ?" for name in given)
        found = self._database.rows(
            f"select * from windows where until > ? and until <= ?{where} order by until desc, id desc limit ?",
            *(since, until, *given.values(), limit or -1),
        )
        return [
            Window.from_json({**{name: row[name] for name in row.keys()}, "tally": json.loads(row["body"])})  # noqa: SIM118
            for row in reversed(found)
        ]

    def keys(self, *, since: float = 0.0) -> list[Key]:
        """The variants that windows are kept of."""
        statement = "select distinct model, version, variant from windows where until > ? order by model, version, variant"
        return [Key(*row) for row in self._database.rows(statement, since)]

    def baseline(self, key: Key) -> Baseline | None:
        """What a variant is compared with; None before it was set."""
        found = self._database.rows("select body from baselines where (model, version, variant) = (?, ?, ?)", *key)
        return Baseline.from_json(json.loads(found[0]["body"])) if found else None

    def set_baseline(self, key: Key, baseline: Baseline, *, now: float | None = None, replace: bool = True) -> Baseline:
        """Keeps what a variant is compared with.

        Args:
            key: Whose.
            baseline: From now on.
            now: Seconds since 1970.
            replace: False leaves the one that is there: servers that start must not undo what a person accepted.

        Returns:
            The one that holds now.
        """
        with self._database.writing() as connection:
            kind = "replace" if replace else "ignore"
            values = (*key, time.time() if now is None else now, json.dumps(baseline.to_json()))
            connection.execute(f"insert or {kind} into baselines (model, version, variant, since, body) values (?, ?, ?, ?, ?)", values)
        held = self.baseline(key)
        assert held is not None, key
        return held

    def accept(self, review: str, *, by: str, why: str = "") -> Review:
        """A person says that what a review shows is normal: its window becomes the baseline, and the review is closed.

        Of a review of accuracy the share of right answers that was found is normal, too.

        Raises:
            UsageError: there is no such review, or somebody answered it before.
        """
        with self._database.writing():
            found = self.reviews.close(review, "accepted", by=by, why=why)
            baseline = Baseline.accepted(found.window, self.baseline(found.key), by)
            if found.kind == "accuracy":
                finding = found.evidence["finding"]
                baseline = replace(baseline, accuracy=finding["numbers"]["value"], accuracy_n=finding["n"])
            self.set_baseline(found.key, baseline)
        return found

    def learn(self, key: Key, window: Window) -> Baseline:
        """Takes what the baseline lacks from a window; what somebody accepted a moment ago stays."""
        with self._database.writing():
            known = self.baseline(key) or Baseline()
            full = known.with_learned(window)
            return known if full is known else self.set_baseline(key, full)

    def prune(self, now: float | None = None) -> int:
        """Deletes what is older than the retention allows; how many rows went."""
        at, kept, gone = time.time() if now is None else now, self.retention, 0
        with self._database.writing() as connection:
            for statement, values in (
                ("delete from windows where until < ?", (at - kept.windows_s,)),
                ("delete from predictions where at < ?", (at - kept.predictions_s,)),
                ("delete from labels where at < ?", (at - kept.predictions_s,)),
                ("delete from reviews where state != 'open' and closed < ?", (at - kept.reviews_s,)),
                *((_LATEST.format(table), (kept.predictions,)) for table in ("predictions", "labels")),
            ):
                gone += connection.execute(statement, values).rowcount
            gone += self.samples.prune(at - kept.samples_s)
        self._database.settle()  # samples that gave way to others are in the log, too
        return gone

    def close(self) -> None:
        """Lets the file go."""
        self._database.close()

    def __enter__(self) -> Monitoring:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
