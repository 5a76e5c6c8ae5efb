"""The state folder: what is kept comes back, one review of a kind, the first answer stands, several processes, a full disk, retention."""

from __future__ import annotations

import json
import multiprocessing
import resource
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from traffic import KEY, counts, lower, normal, tally

from lowbit.errors import UsageError
from lowbit.monitoring.baseline import Baseline
from lowbit.monitoring.database import FILE
from lowbit.monitoring.drift import confidence, shift
from lowbit.monitoring.findings import Finding
from lowbit.monitoring.labels import Prediction
from lowbit.monitoring.looking import look, rows_for
from lowbit.monitoring.rules import Rules
from lowbit.monitoring.store import DAY_S, Monitoring, Retention
from lowbit.monitoring.tally import Key, Tally
from lowbit.monitoring.windows import Window

NOW = 1_800_000_000.0
OTHER = Key("demo", "v2", KEY.variant)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Monitoring]:
    with Monitoring(tmp_path) as opened:
        yield opened


def window(n: int = 3_000, *, seed: int = 1, until: float = NOW, key: Key = KEY, bad: bool = False) -> Window:
    return Window(key, until - 60, until, tally(np.random.default_rng(seed), n, lower if bad else normal), "a")


def usual(seed: int = 99, n: int = 20_000) -> Baseline:
    return Baseline(Tally(recorded=n, confidence=counts(normal(np.random.default_rng(seed), n))), accuracy=0.94, accuracy_n=n)


def shifted(bad: Window) -> Finding:
    found = shift(bad.tally.confidence, usual().tally.confidence)
    assert found is not None
    return confidence(found)


def test_windows_come_back_as_they_were(state: Monitoring, tmp_path: Path) -> None:
    mine = [window(seed=i, until=NOW + 60 * i) for i in range(5)]
    other = window(until=NOW + 1, key=OTHER)
    state.add([*mine, other])
    assert state.windows(KEY) == mine
    assert state.windows(KEY, limit=2) == mine[-2:]
    assert state.windows(KEY, since=NOW + 60) == mine[2:]
    assert state.windows(model="demo") == sorted([*mine, other], key=lambda each: each.until)
    assert state.windows(model="another") == []
    assert state.keys() == [KEY, OTHER]
    with Monitoring(tmp_path, create=False) as again:
        assert again.windows(KEY) == mine


def test_a_folder_without_windows_is_refused_where_it_should_have_some(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no server has kept windows"):
        Monitoring(tmp_path, create=False)
    assert not (tmp_path / FILE).exists()
    (tmp_path / FILE).write_bytes(b"no database" * 200)
    with pytest.raises(UsageError, match="cannot be opened"):
        Monitoring(tmp_path)


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    Monitoring(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("pragma user_version=9")
    with pytest.raises(UsageError, match="has version 9"):
        Monitoring(tmp_path)


def test_a_server_that_starts_does_not_undo_what_was_accepted(state: Monitoring) -> None:
    first = usual()
    assert state.set_baseline(KEY, first, replace=False) == first
    accepted = replace(first, source="accepted", by="ann")
    state.set_baseline(KEY, accepted)
    assert state.set_baseline(KEY, first, replace=False) == accepted
    assert state.baseline(OTHER) is None


def test_one_review_of_a_kind_and_its_evidence(state: Monitoring) -> None:
    bad = window(bad=True)
    review = state.reviews.open(shifted(bad), bad, usual(), now=NOW)
    assert review is not None
    assert state.reviews.open(shifted(bad), bad, usual(), now=NOW + 60) is None
    (listed,) = state.reviews.listed("open")
    assert (listed.id, listed.seen, listed.last, listed.opened) == (review.id, 2, NOW + 60, NOW)
    assert listed.window == bad
    evidence = listed.to_json()["evidence"]
    assert evidence["n"] == 3_000
    assert evidence["finding"]["numbers"]["ks"] > 0.15
    assert evidence["confidence"] == list(bad.tally.confidence)
    assert evidence["baseline_confidence"] == list(usual().tally.confidence)
    json.dumps(listed.to_json(), allow_nan=False)
    another = replace(shifted(bad), kind="low_tail")
    assert state.reviews.open(another, bad, usual(), now=NOW) is not None
    assert state.reviews.open(shifted(bad), replace(bad, key=OTHER), usual(), now=NOW) is not None
    assert len(state.reviews.listed("open")) == 3
    assert state.reviews.listed("open", model="another") == []


def test_an_accepted_window_is_the_new_baseline(state: Monitoring) -> None:
    state.set_baseline(KEY, usual())
    state.add([window(bad=True)])
    review = look(state, KEY, now=NOW).opened[0]
    assert review.id in [each.id for each in state.reviews.holding("demo")]
    state.accept(review.id, by="ann", why="a new camera")
    held = state.baseline(KEY)
    assert held is not None
    assert (held.source, held.by, held.tally.confidence, held.accuracy) == ("accepted", "ann", window(bad=True).tally.confidence, 0.94)
    state.add([window(seed=2, until=NOW + 60, bad=True)])
    after = look(state, KEY, now=NOW + 60)
    assert not after.opened
    assert not after.findings[0].review
    assert "a window that a person accepted" in after.findings[0].text
    assert [each.kind for each in state.reviews.holding("demo")] == ["low_tail"]


def test_an_accepted_accuracy_is_not_asked_about_again(state: Monitoring) -> None:
    state.set_baseline(KEY, usual())
    state.add([window()])
    state.labels.predicted([Prediction(f"r{i}", KEY, NOW - 30, 1) for i in range(1_000)])
    for i in range(1_000):
        state.labels.label(f"r{i}", 1 if i < 800 else 2)
    (review,) = look(state, KEY, now=NOW).opened
    assert review.kind == "accuracy"
    state.accept(review.id, by="ann")
    held = state.baseline(KEY)
    assert held is not None
    assert (held.accuracy, held.accuracy_n) == (0.8, 1_000)
    assert not look(state, KEY, now=NOW + 1).opened


def test_a_review_shows_what_came_after_it_was_opened(state: Monitoring) -> None:
    """The first window has more of the old traffic than of the new: accepted as it is, it would ask for another review at once."""
    state.set_baseline(KEY, usual())
    mixed = replace(window(seed=1) + window(seed=2, bad=True), server="")
    assert look(state, KEY, now=NOW).window is None
    state.add([mixed])
    opened = {each.kind: each for each in look(state, KEY, now=NOW).opened}["confidence"]
    assert opened.window == mixed
    pure = window(seed=3, until=NOW + 120, bad=True)
    later = window(seed=4, until=NOW + 180, bad=True)
    for each in (pure, later):
        state.add([each])
        look(state, KEY, now=each.until)
    assert state.reviews.one(opened.id).window == pure, "the first that is wholly of later; then it stays"
    state.accept(opened.id, by="ann")
    assert not [each for each in look(state, KEY, now=NOW + 190).findings if each.kind == "confidence" and each.review]


def test_what_came_before_an_accepted_window_is_not_held_against_it(state: Monitoring) -> None:
    """Few rows of the new traffic, thousands of the old ones in the same week: only the new ones are compared with what was accepted."""
    state.set_baseline(KEY, Baseline(window(bad=True).tally, source="accepted", since=NOW))
    state.add([window(until=NOW - 10), window(500, until=NOW + 60, bad=True)])
    seen = look(state, KEY, now=NOW + 60).window
    assert seen is not None
    assert seen.tally.recorded == 500


def test_windows_of_a_wrong_clock_do_not_hide_those_of_now(state: Monitoring) -> None:
    """A server once believed that it was next year: its windows are not the latest ones for a year."""
    state.set_baseline(KEY, usual())
    state.add([window(seed=1, until=NOW + 365 * DAY_S), window(seed=2, bad=True)])
    seen = look(state, KEY, now=NOW)
    assert seen.window is not None
    assert seen.window.until == NOW
    assert "confidence" in [each.kind for each in seen.opened]


def test_what_is_learned_does_not_undo_what_was_accepted_meanwhile(state: Monitoring) -> None:
    accepted = replace(usual(), source="accepted", by="ann")
    state.set_baseline(KEY, accepted)
    assert state.learn(KEY, window(6_000)) == accepted


def test_the_first_answer_stands(state: Monitoring) -> None:
    bad = window(bad=True)
    review = state.reviews.open(shifted(bad), bad, usual())
    assert review is not None
    with pytest.raises(UsageError, match="by somebody"):
        state.accept(review.id, by=" ")
    state.reviews.close(review.id, "rolled_back", by="ann")
    with pytest.raises(UsageError, match="answered before: rolled back by ann"):
        state.accept(review.id, by="ben")
    assert state.baseline(KEY) is None, "what was refused must not have changed anything"
    with pytest.raises(UsageError, match="no review 'x'"):
        state.accept("x", by="ben")
    with pytest.raises(UsageError, match="state of a review"):
        state.reviews.listed("closed")


def test_after_a_rollback_nobody_is_asked_again_at_once(state: Monitoring) -> None:
    bad = window(bad=True)
    review = state.reviews.open(shifted(bad), bad, usual(), now=NOW)
    assert review is not None
    state.reviews.close(review.id, "rolled_back", by="ann", now=NOW)
    assert state.reviews.open(shifted(bad), bad, usual(), now=NOW + DAY_S / 2) is None
    again = state.reviews.open(shifted(bad), bad, usual(), now=NOW + 1.1 * DAY_S)
    assert again is not None
    state.reviews.close(again.id, "recalibrated", by="ann", now=NOW)
    assert state.reviews.open(shifted(bad), bad, usual(), now=NOW + 50 * DAY_S) is None, "the wish is known"


def test_a_policy_that_only_tells_holds_nothing(state: Monitoring) -> None:
    state.set_baseline(KEY, usual())
    state.add([window(bad=True)])
    review = look(state, KEY, Rules(policy="tell"), now=NOW).opened[0]
    assert review.to_json()["policy"] == {"name": "tell", "text": "Nothing waits for the answer."}
    assert state.reviews.holding("demo") == ()


def test_looking_alone_changes_nothing(state: Monitoring) -> None:
    state.set_baseline(KEY, usual())
    state.add([window(bad=True)])
    seen = look(state, KEY, now=NOW, opens=False)
    assert seen.findings[0].review
    assert state.reviews.listed() == []
    assert look(state, OTHER, now=NOW).window is None


def test_the_first_full_window_stands_in_for_a_bundle_without_statistics(state: Monitoring) -> None:
    state.set_baseline(KEY, Baseline(accuracy=0.9))
    state.add([window(2_500, seed=1)])
    assert look(state, KEY, now=NOW).baseline == Baseline(accuracy=0.9), "2,500 rows are too few to compare later ones with"
    state.add([window(2_600, seed=2)])
    learned = look(state, KEY, now=NOW).baseline
    assert learned is not None
    assert (learned.source, learned.tally.recorded, learned.accuracy) == ("deployment", 5_100, 0.9)
    state.add([window(3_000, seed=3, until=NOW + 60, bad=True)])
    assert "confidence" in [review.kind for review in look(state, KEY, now=NOW + 60).opened]
    assert state.baseline(KEY) == learned, "what it learned stays"


def test_small_baselines_get_longer_windows() -> None:
    rules = Rules()
    assert rows_for(usual(n=20_000), rules) == 2_000
    assert rows_for(usual(n=4_488), rules) == 2_254
    assert rows_for(usual(n=2_000), rules) == 6_000
    assert rows_for(usual(n=1_501), rules) == 20_000
    assert rows_for(usual(n=800), rules) == rows_for(None, rules) == 2_000


def test_labels_meet_their_answers_in_either_order(state: Monitoring) -> None:
    answers = [Prediction(f"r{i}", KEY, NOW + i, i % 3, 0.9) for i in range(100)]
    assert state.labels.label("r0", 0, now=NOW) == (), "the answer is still on its way to the disk"
    state.labels.predicted(answers)
    joined = [state.labels.label(f"r{i}", 0 if i < 90 else "other")[0] for i in range(1, 100)]
    assert all(each.key == KEY and each.first for each in joined)
    assert sum(each.right for each in joined) == 29
    accuracy = state.labels.accuracy()[KEY]
    assert (accuracy.n, accuracy.value) == (100, 0.30)
    assert (accuracy.low, accuracy.high) == pytest.approx((0.2189, 0.3958), abs=1e-4)
    assert state.labels.accuracy(since=NOW + 90)[KEY].value == 0
    assert state.labels.accuracy(since=NOW + 1_000) == {}


def test_a_later_label_takes_the_place_of_the_earlier(state: Monitoring) -> None:
    state.labels.predicted([Prediction("a", KEY, NOW, 3)])
    state.labels.predicted([Prediction("a", KEY, NOW, 4)])
    (first,), (second,) = state.labels.label("a", 5), state.labels.label("a", 3.0)
    assert (first.right, first.first, second.right, second.first) == (False, True, True, False)
    assert state.labels.accuracy()[KEY].n == 1
    assert state.labels.of(["a", "b"]) == {"a": 3}


def test_rows_of_a_request_have_labels_of_their_own(state: Monitoring) -> None:
    state.labels.predicted([Prediction("a", KEY, NOW, np.int64(i), part=i) for i in range(3)])
    assert [each.right for each in state.labels.label("a", [0, 0, 2])] == [True, False, True]


@pytest.mark.parametrize("label", [None, {"a": 1}, [[1]], float("nan"), "x" * 2_000, []])
def test_what_is_no_label_is_refused(state: Monitoring, label: object) -> None:
    with pytest.raises(UsageError):
        state.labels.label("a", label)
    with pytest.raises(UsageError):
        state.labels.label("", 1)


def test_retention(tmp_path: Path) -> None:
    kept = Retention(windows_s=100, predictions_s=100, reviews_s=100, predictions=50)
    with Monitoring(tmp_path, retention=kept) as state:
        state.add([window(until=NOW - 200), window(until=NOW)])
        state.labels.predicted([Prediction(f"r{i}", KEY, NOW - 150 + i, 1) for i in range(200)])
        bad = window(bad=True)
        for kind, answer in (("confidence", None), ("low_tail", "rolled_back")):
            review = state.reviews.open(replace(shifted(bad), kind=kind), bad, None, now=NOW - 300)  # type: ignore[arg-type]
            assert review is not None
            if answer:
                state.reviews.close(review.id, "rolled_back", by="ann", now=NOW - 200)
        state.labels.label("r199", 1, now=NOW)
        for i in range(80):
            state.labels.label(f"nobody's {i}", 1, now=NOW - 1 - i / 100)
        state.prune(NOW)
        assert [each.until for each in state.windows()] == [NOW]
        assert [each.kind for each in state.reviews.listed()] == ["confidence"], "what is open stays, however old"
        with sqlite3.connect(tmp_path / FILE) as connection:
            assert connection.execute("select count(*) from predictions").fetchone() == (50,)
            assert connection.execute("select count(*) from labels").fetchone() == (50,), "labels that nobody's answer waits for, too"


def open_many(folder: Path, go: object, results: object) -> None:
    bad = window(bad=True)
    with Monitoring(folder) as state:
        go.wait()  # type: ignore[attr-defined]
        opened = 0
        for _ in range(20):
            state.add([bad])
            opened += state.reviews.open(shifted(bad), bad, usual()) is not None
        results.put(opened)  # type: ignore[attr-defined]


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    """Real ones, at once: every window is there, and one review is open, opened by one of them."""
    context = multiprocessing.get_context("spawn")
    go, results = context.Event(), context.Queue()
    workers = [context.Process(target=open_many, args=(tmp_path, go, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    go.set()
    assert sum(results.get(timeout=60) for _ in workers) == 1
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    with Monitoring(tmp_path) as state:
        assert len(state.windows()) == 60
        (review,) = state.reviews.listed()
        assert review.seen == 60


def test_threads_share_an_opened_one(state: Monitoring) -> None:
    def work(start: int) -> None:
        for i in range(20):
            state.labels.predicted([Prediction(f"{start}-{i}", KEY, NOW, 1)])
            state.labels.label(f"{start}-{i}", 1)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state.labels.accuracy()[KEY].n == 80


def fill(folder: Path) -> None:
    """In a process of its own: no file may grow beyond 300 kB, as on a full disk."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    state = Monitoring(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    failed = 0
    for i in range(400):
        try:
            state.add([window(until=NOW + i)] * 2)
        except sqlite3.Error:
            failed += 1
    (folder / "failed").write_text(f"{failed} {len(state.windows())}")


def test_a_full_disk_loses_whole_windows_and_nothing_else(tmp_path: Path) -> None:
    worker = multiprocessing.get_context("spawn").Process(target=fill, args=(tmp_path,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    failed, kept = map(int, (tmp_path / "failed").read_text().split())
    assert failed > 0
    assert kept == 2 * (400 - failed)
    with Monitoring(tmp_path) as state:
        assert len(state.windows()) == kept
        state.add([window()])
        assert len(state.windows()) == kept + 1
    with sqlite3.connect(tmp_path / FILE) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
