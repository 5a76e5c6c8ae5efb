"""One look at a variant: its latest window against its baseline, and a review where a person should see it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from lowbit.monitoring import drift
from lowbit.monitoring.baseline import Baseline
from lowbit.monitoring.findings import Finding
from lowbit.monitoring.labels import Accuracy
from lowbit.monitoring.reviews import Review
from lowbit.monitoring.rules import REVIEWED, RULES, Rules, evaluate
from lowbit.monitoring.store import DAY_S, Monitoring
from lowbit.monitoring.tally import Key
from lowbit.monitoring.windows import Window, latest, merged

SPAN_S = 7 * DAY_S
"""Windows older than that are not looked at: a slow model's thousands of answers may take days to come."""
AHEAD_S = 300.0
"""Clocks of servers may differ by that much. What claims to be of later was written by a clock that was wrong: it is not the latest."""
LEARN = 5_000
"""Rows of the first full window, where it has to stand in for the bundle's confidences: with fewer, distances to it are noise."""
FIRST = 16
"""Windows that are read at first; four times as many, then, until they hold enough."""
MOST = 10
"""A small baseline asks for longer windows, up to so many times the usual."""


@dataclass(frozen=True)
class Look:
    """What was seen.

    Attributes:
        window: The latest one; None where nothing came.
        baseline: It was compared with; None where there is none yet.
        findings: What the rules say.
        opened: Reviews that are new.
        accuracy: Of the window's labelled answers; None without labels.
    """

    window: Window | None
    baseline: Baseline | None
    findings: tuple[Finding, ...] = ()
    opened: tuple[Review, ...] = ()
    accuracy: Accuracy | None = None


def look(
    monitoring: Monitoring, key: Key, rules: Rules = RULES, *, now: float | None = None, span_s: float = SPAN_S, opens: bool = True
) -> Look:
    """Looks at one variant. Several servers may look at once: a review is opened by one of them.

    Args:
        monitoring: The state folder's.
        key: Of the variant.
        rules: What counts as a shift.
        now: Seconds since 1970.
        span_s: How far back a window may reach.
        opens: False only looks: nothing is learned, and no review is opened.

    Raises:
        sqlite3.Error: the disk is full.
    """
    at = time.time() if now is None else now
    baseline = monitoring.baseline(key)
    since = max(at - span_s, baseline.since if baseline is not None else 0.0)
    windows = recent(monitoring, key, since, at + AHEAD_S, max(rows_for(baseline, rules), 0 if _known(baseline) else LEARN))
    if not windows:
        return Look(None, baseline)
    if opens:
        baseline = learned(monitoring, key, baseline, windows, rules)
    window = latest(windows, rows=rows_for(baseline, rules))
    assert window is not None, "there are windows"
    accuracy = monitoring.labels.accuracy(since=window.since).get(key)
    findings = evaluate(window, baseline, rules, accuracy)
    wanted = [finding for finding in findings if finding.review and finding.kind in REVIEWED] if opens else []
    opened = [monitoring.reviews.open(finding, window, baseline, policy=rules.policy, now=at) for finding in wanted]
    return Look(window, baseline, findings, tuple(review for review in opened if review is not None), accuracy)


def recent(monitoring: Monitoring, key: Key, since: float, until: float, rows: int) -> list[Window]:
    """The latest windows that hold so many recorded rows, or all there are; a week of windows is a second of reading."""
    most = FIRST
    while True:
        found = monitoring.windows(key, since=since, until=until, limit=most)
        if len(found) < most or sum(window.tally.recorded for window in found) >= rows:
            return found
        most *= 4


def _known(baseline: Baseline | None) -> bool:
    """Whether there are confidences to compare with."""
    return baseline is not None and bool(sum(baseline.tally.confidence))


def rows_for(baseline: Baseline | None, rules: Rules) -> int:
    """Rows that a window needs for every rule to speak: more where the baseline has few samples."""
    n = sum(baseline.tally.confidence) if baseline is not None else 0
    if n <= drift.ENOUGH:
        return rules.least
    needed = math.ceil(drift.ENOUGH * n / (n - drift.ENOUGH))
    return max(rules.least, min(needed, MOST * rules.least))


def learned(monitoring: Monitoring, key: Key, baseline: Baseline | None, windows: list[Window], rules: Rules) -> Baseline | None:
    """The baseline with what it lacks taken from the first full window, and kept; as it is until there is one."""
    first = merged(windows)[key]
    known = baseline or Baseline()
    lacks = not sum(known.tally.confidence) and bool(sum(first.tally.confidence))
    if first.tally.recorded < (max(LEARN, rules.least) if lacks else rules.least):
        return baseline
    return baseline if known.with_learned(first) is known else monitoring.learn(key, first)
