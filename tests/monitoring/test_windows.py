"""What was counted: sums, differences, windows over servers and restarts, percentiles. Exact where it is about counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic import KEY, tally

from lowbit.monitoring import latency
from lowbit.monitoring.moments import Moments
from lowbit.monitoring.snapshots import Snapshot, between
from lowbit.monitoring.tally import Key, Tally
from lowbit.monitoring.windows import Window, buckets, latest, merged

NUMBERS = st.lists(st.floats(-1e6, 1e6), max_size=40)


def same(one: Moments, other: Moments, scale: float = 10.0) -> None:
    """Equal up to what rounding does to numbers of that size."""
    assert (one.n, one.not_finite) == (other.n, other.not_finite)
    assert one.mean == pytest.approx(other.mean, abs=1e-9 * scale)
    assert one.std == pytest.approx(other.std, abs=1e-6 * scale)


@settings(deadline=None)
@given(NUMBERS, NUMBERS)
def test_moments_add_up_and_come_apart(first: list[float], second: list[float]) -> None:
    ours, theirs, both = Moments.of(np.array(first)), Moments.of(np.array(second)), Moments.of(np.array(first + second))
    scale = max(1.0, *map(abs, first + second), 1.0)
    same(ours + theirs, both, scale)
    same(both - ours, theirs, scale)
    if second:
        assert (ours + theirs).low == min(first + second)
        assert (ours + theirs).high == max(first + second)


def test_extremes_of_a_difference_are_known_where_the_later_part_moved_them() -> None:
    before = Moments.of(np.array([0.0, 1.0]))
    after = before + Moments.of(np.array([0.5, 2.0]))
    assert ((after - before).low, (after - before).high) == (None, 2.0)


def test_moments_leave_out_what_is_no_number() -> None:
    found = Moments.of(np.array([1.0, math.nan, 3.0, math.inf]))
    assert (found.n, found.mean, found.not_finite) == (2, 2.0, 2)
    assert Moments.from_json(found.to_json()) == found
    assert Moments.from_json(Moments.of(np.array([math.nan])).to_json()) == Moments(not_finite=1)


def some(seed: int, classes: int = 3) -> Tally:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 400))
    seconds = np.bincount([latency.bin_of(t) for t in rng.gamma(4, 0.01, n)], minlength=latency.COUNTS)
    return Tally(
        **{
            **tally(rng, n).__dict__,
            "errors": int(rng.integers(0, 3)),
            "seconds": tuple(seconds.tolist()),
            "predictions": tuple(np.bincount(rng.integers(0, classes, n), minlength=classes).tolist()),
            "inputs": {"image": Moments.of(rng.normal(size=n))},
            "columns": {"row": tuple(Moments.of(rng.normal(size=n)) for _ in range(2))},
            "busy_s": float(rng.random()),
        }
    )


def close(one: Tally, other: Tally) -> None:
    for name in ("requests", "errors", "rows", "recorded", "confidence", "seconds"):
        assert getattr(one, name) == getattr(other, name), name
    longest = max(len(one.predictions), len(other.predictions))
    assert one.predictions + (0,) * (longest - len(one.predictions)) == other.predictions + (0,) * (longest - len(other.predictions))
    assert one.busy_s == pytest.approx(other.busy_s)
    same(one.inputs["image"], other.inputs["image"])
    for ours, theirs in zip(one.columns["row"], other.columns["row"], strict=True):
        same(ours, theirs)


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(0, 500))
def test_tallies_add_up_and_come_apart(first: int, second: int) -> None:
    ours, theirs = some(first), some(second, classes=5)
    close(ours + theirs, theirs + ours)
    close(ours + theirs - ours, theirs)
    assert Tally.from_json((ours + theirs).to_json()).confidence == (ours + theirs).confidence
    close(Tally.from_json(ours.to_json()), ours)


def recording(*tallies: Tally, began: str = "2026-01-01T00:00:00+00:00") -> dict[str, object]:
    """As a server's recorder says it, with the counts that it adds for windows."""
    models = []
    for index, each in enumerate(tallies):
        entry = {"model": "demo", "version": f"v{index + 1}", "variant": KEY.variant, **each.to_json()}
        entry |= {"rows_seen": each.rows, "rows_recorded": each.recorded}
        entry |= {"confidence": {"low": 0.0, "high": 1.0, "counts": list(each.confidence)} if each.confidence else None}
        models.append(entry)
    return {"since": began, "models": models}


BEGAN = 1767225600.0


def test_a_window_is_what_came_between_two_recordings() -> None:
    first, second = some(1), some(2)
    before = Snapshot.from_json(recording(first), at=BEGAN + 60, server="a")
    after = Snapshot.from_json(recording(first + second), at=BEGAN + 120, server="a")
    (window,) = between(before, after)
    assert (window.key, window.since, window.until, window.server) == (KEY, BEGAN + 60, BEGAN + 120, "a")
    close(window.tally, second)
    (all_of_it,) = between(None, before)
    assert (all_of_it.since, all_of_it.until) == (BEGAN, BEGAN + 60)
    close(all_of_it.tally, first)
    assert between(after, after) == ()


def test_a_server_that_began_anew_counts_from_zero() -> None:
    first, second = some(1), some(2)
    before = Snapshot.from_json(recording(first), at=BEGAN + 60, server="a")
    again = recording(second, began="2026-01-01T00:01:10+00:00")
    (window,) = between(before, Snapshot.from_json(again, at=BEGAN + 120, server="a"))
    assert window.since == BEGAN + 70
    close(window.tally, second)
    # The same start, to the second, but fewer counts than before: it cannot be the same count.
    few = Tally(requests=1, rows=1, recorded=1, confidence=(0,) * 255 + (1,))
    (window,) = between(before, Snapshot.from_json(recording(few), at=BEGAN + 120, server="a"))
    assert (window.tally.requests, window.tally.confidence[255]) == (1, 1)


def test_another_server_has_nothing_to_do_with_it() -> None:
    before = Snapshot.from_json(recording(some(1)), at=BEGAN + 60, server="a")
    (window,) = between(before, Snapshot.from_json(recording(some(1) + some(2)), at=BEGAN + 90, server="b"))
    close(window.tally, some(1) + some(2))
    assert window.since == BEGAN


def test_the_recorder_of_the_server_fits() -> None:
    """The real recording, which says no more than rows, confidences and moments."""
    plain = {
        "since": "2026-01-01T00:00:00+00:00",
        "models": [
            {
                "model": "demo",
                "version": "v1",
                "variant": "x",
                "rows_seen": 5,
                "rows_recorded": 4,
                "confidence": {"low": 0.0, "high": 1.0, "counts": [0] * 255 + [4]},
                "inputs": {"image": {"n": 2, "mean": 0.5, "std": 0.5, "min": 0.0, "max": 1.0, "not_finite": 0}},
            }
        ],
    }
    (window,) = between(None, Snapshot.from_json(plain, at=BEGAN + 60))
    assert (window.tally.requests, window.tally.rows, window.tally.recorded, window.tally.confidence[255]) == (5, 5, 4, 4)
    assert window.tally.inputs["image"] == Moments(2, 0.5, 0.5, 0.0, 1.0)


def windows(n: int, *, rows: int = 100, server: str = "a") -> list[Window]:
    return [Window(KEY, 60.0 * i, 60.0 * (i + 1), Tally(requests=rows, rows=rows, recorded=rows), server) for i in range(n)]


def test_the_latest_rows_make_a_window() -> None:
    found = latest(windows(10), rows=250)
    assert found is not None
    assert (found.since, found.until, found.tally.recorded) == (420.0, 600.0, 300)
    found = latest(windows(10), rows=10_000)
    assert found is not None
    assert found.tally.recorded == 1_000
    found = latest(windows(10), rows=10_000, since=480.0)
    assert found is not None
    assert found.since == 420.0
    assert latest([], rows=1) is None


def test_servers_and_versions() -> None:
    other = Window(Key("demo", "v2", "x"), 0, 60, Tally(requests=1))
    found = merged([*windows(3), *windows(3, server="b"), other])
    assert found[KEY].tally.requests == 600
    assert found[KEY].server == ""
    assert found[other.key] == other
    spans = buckets([*windows(4), *windows(4, server="b")], 120.0)
    assert [(span.since, span.until, span.tally.requests) for span in spans] == [(0, 60, 200), (60, 180, 400), (180, 240, 200)]


@pytest.mark.parametrize("scale", [0.0003, 0.004, 0.2, 3.0])
def test_percentiles_are_right_to_the_width_of_a_bin(scale: float) -> None:
    times = np.random.default_rng(3).gamma(4, scale / 4, 20_000)
    counts = np.bincount([latency.bin_of(t) for t in times], minlength=latency.COUNTS).tolist()
    for share in (0.5, 0.95, 0.99):
        assert latency.quantile(counts, share) == pytest.approx(np.quantile(times, share), rel=0.022)
        limit = float(np.quantile(times, share))
        assert latency.share_over(counts, limit) == pytest.approx(1 - share, abs=0.003)


def test_times_beyond_the_bins() -> None:
    counts = [0] * latency.COUNTS
    counts[latency.bin_of(1e9)] += 1
    counts[latency.bin_of(0.0)] += 1
    assert (counts[0], counts[-1]) == (1, 1)
    assert latency.quantile(counts, 1.0) == pytest.approx(latency.HIGHEST_S)
    assert latency.quantile(counts, 0.1) <= latency.LOWEST_S
    assert latency.share_over(counts, 100.0) == 0.5
    assert latency.quantile([0] * latency.COUNTS, 0.5) is None


def test_what_a_window_says() -> None:
    one = Window(KEY, 0, 10, Tally(requests=200, errors=3))
    assert (one.error_rate, one.throughput_per_s, one.latency_ms()) == (0.015, 20.0, None)
    assert Window(KEY, 5, 5).throughput_per_s == 0
    assert Window.from_json(one.to_json()) == one
