from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

import small_models
from lowbit.errors import UsageError
from lowbit.measure.energy import MODELLED
from lowbit.measure.lane import describe_end
from lowbit.measure.race import QUICK, RaceResult, Variant, energy_of, fastest, measurement, race, save_feeds
from lowbit.measure.talk import LONGEST_REST_S, rest
from lowbit.types import Tuning

SHORT = {"rounds": 3, "seconds_per_round": 0.02}

ODD_RUNTIME = """
import ctypes, os, signal, time
import numpy as np

class Session:
    inputs = outputs = ()
    precision = "f32"
    def __init__(self, kind): self.kind, self.calls = kind, 0
    def prepare(self, feeds): return self.call
    def call(self):
        self.calls += 1
        with open(os.environ["ODD_LOG"], "a") as log: log.write(self.kind + "\\n")
        time.sleep(0.004)
        if self.kind == "chatty":
            print("I print"); os.write(1, b"from C, too\\n")
        if self.calls < 90: return
        if self.kind == "segfault": ctypes.string_at(0)
        if self.kind == "killed": os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "raises": raise ValueError("negative zeal")
        if self.kind == "hangs": time.sleep(3600)

class Odd:
    name = "odd"
    def version(self): return "1"
    def describe(self): return {}
    def open(self, path, tuning, batch):
        if path.name == "unloadable":
            os.write(2, b"missing libodd.so\\n"); os._exit(7)
        if path.name == "hungry": self.kept = np.ones(12_500_000)
        return Session(path.name)
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime with bad habits, as another package would bring it; returns its log of calls."""
    (tmp_path / "odd_runtime.py").write_text(ODD_RUNTIME)
    info = tmp_path / "odd-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[lowbit.runtimes]\nodd = odd_runtime:Odd\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("ODD_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def odd_variant(kind: str) -> Variant:
    return Variant(kind, "odd", Path(kind))


X = {"x": np.zeros((2, 4), np.float32)}


def test_real_models_in_turn(tmp_path: Path) -> None:
    path = small_models.cnn(tmp_path / "m.onnx")
    variants = [Variant("a", "onnxruntime", path), Variant("b", "onnxruntime", path, Tuning(threads=1))]
    seen: list[tuple[int, int]] = []
    found = race(variants, {"input.1": small_models.images(8)}, batch=8, **SHORT, progress=lambda *at: seen.append(at))
    assert list(found) == ["a", "b"]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for id_, result in found.items():
        assert result.error is None
        assert result.precision == "f32"
        assert (result.batch, result.streams, len(result.rounds)) == (8, 1, 3)
        assert len({len(calls) for calls in result.rounds}) == 1
        assert all(second > 0 for calls in result.rounds for second in calls)
        assert all(wall >= sum(calls) for wall, calls in zip(result.walls, result.rounds, strict=True))
        assert result.memory_before_bytes is not None
        assert result.peak_memory_bytes is not None
        assert 10 << 20 < result.memory_before_bytes <= result.peak_memory_bytes < 1 << 30
        assert 0 < (result.cpu_seconds_per_inference or 0) < 1
        assert 0 <= (result.other_load or 0) <= 1
        assert result.tuning == variants[0 if id_ == "a" else 1].tuning
    figures = measurement(found["b"], found["a"], found[fastest(found) or ""])
    assert figures.speedup is not None
    assert figures.latency_ms.p50 == pytest.approx(1e3 * np.median(np.concatenate(found["b"].rounds)))
    assert energy_of(found["a"], cores=2).method in (MODELLED, "rapl (whole processor package)")


def test_turns_alternate_and_nobody_else_runs_meanwhile(odd: Path) -> None:
    found = race([odd_variant("a"), odd_variant("b")], X, batch=2, **SHORT)
    assert [result.error for result in found.values()] == [None, None]
    log = odd.read_text().split()
    switches = [log[0]] + [now for before, now in itertools.pairwise(log) if now != before]
    assert switches == ["a", "b"] * 4  # warming up, then three rounds
    calls = len(found["a"].rounds[0])
    assert log[-calls - 2 :] == ["b"] * (calls + 2)  # two warm-up calls before each turn are not timed
    assert calls == pytest.approx(0.02 / 0.004, abs=1)


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("segfault", "It crashed (signal 11, SIGSEGV)"),
        ("killed", "It was killed (signal 9), most often for want of memory"),
        ("raises", "ValueError: negative zeal"),
        ("hangs", "It did not answer within 1 s and was ended."),
        ("unloadable", "It ended with exit code 7: missing libodd.so"),
    ],
)
def test_the_others_go_on(kind: str, says: str) -> None:
    variants = [odd_variant("a"), odd_variant(kind), odd_variant("b")]
    found = race(variants, X, batch=2, rounds=12, seconds_per_round=0.04, turn_timeout_s=0.6)
    assert found[kind].error is not None
    assert found[kind].error.startswith(says)
    assert not found[kind].usable
    for id_ in ("a", "b"):
        assert found[id_].error is None
        assert len(found[id_].rounds) == 12
    assert fastest(found) in ("a", "b")
    assert measurement(found["a"], baseline=found[kind]).speedup is None


@pytest.mark.usefixtures("odd")
def test_load_that_hangs() -> None:
    found = race([odd_variant("slow"), odd_variant("a")], X, batch=2, **SHORT, load_timeout_s=0.01)
    assert found["slow"].error == "It did not answer within 0.01 s and was ended."
    assert not any(result.rounds for result in found.values())


@pytest.mark.usefixtures("odd")
def test_prints_do_not_reach_the_protocol(capfd: pytest.CaptureFixture[str]) -> None:
    assert race([odd_variant("chatty")], X, batch=2, **SHORT)["chatty"].error is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("odd")
def test_peak_memory_is_the_variants_own() -> None:
    ballast = np.ones(40_000_000)  # of this process, not of the worker
    found = race([odd_variant("hungry"), odd_variant("a")], X, batch=2, **SHORT)
    grown = {id_: (r.peak_memory_bytes or 0) - (r.memory_before_bytes or 0) for id_, r in found.items()}
    assert 90 << 20 < grown["hungry"] < 120 << 20
    assert grown["a"] < 20 << 20
    assert (found["a"].peak_memory_bytes or 0) < ballast.nbytes


@pytest.mark.usefixtures("odd")
def test_several_streams_are_in_flight_together() -> None:
    found = race([odd_variant("a")], X, batch=2, streams=4, rounds=3, seconds_per_round=0.2)["a"]
    assert found.error is None
    # Four calls at a time, each asleep most of the while: their seconds add up to much more than the wall's.
    assert sum(found.rounds[0]) > 2 * found.walls[0]
    counted = [2 * len(calls) / wall for calls, wall in zip(found.rounds, found.walls, strict=True)]
    assert measurement(found).throughput_per_s == pytest.approx(np.median(counted))


@pytest.mark.usefixtures("odd")
def test_deadline_keeps_the_rounds_that_were_done(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr("lowbit.measure.race.time", SimpleNamespace(monotonic=lambda: next(clock)))
    found = race([odd_variant("a"), odd_variant("b")], X, batch=2, rounds=10_000, seconds_per_round=0.02, deadline=2.0)
    assert len(found["a"].rounds) == len(found["b"].rounds) == 2
    assert found["a"].usable
    never = race([odd_variant("a")], X, batch=2, rounds=10_000, seconds_per_round=0.02, deadline=0.0)["a"]
    assert (never.error, never.usable, never.precision) == (None, False, "f32")


def test_wrong_feeds_are_named(tmp_path: Path) -> None:
    path = small_models.cnn(tmp_path / "m.onnx")
    found = race([Variant("a", "onnxruntime", path)], {"image": small_models.images(1)}, batch=1, **SHORT)
    assert found["a"].error == "The model has no input 'image'. Its inputs: input.1."


def test_misuse_is_refused_before_anything_starts() -> None:
    with pytest.raises(UsageError, match="do not hold a batch of 8 samples: 'x' has 2"):
        race([odd_variant("a")], X, batch=8)
    with pytest.raises(UsageError, match="same id"):
        race([odd_variant("a"), odd_variant("a")], X, batch=2)


def test_feeds_with_awkward_names_survive(tmp_path: Path) -> None:
    feeds = {"file": np.arange(3), "allow_pickle": np.ones((2, 2), np.float16), "a/b:0": np.zeros(1), "input.1": np.array([True])}
    with np.load(save_feeds(feeds, tmp_path)) as found:
        assert set(found.files) == set(feeds)
        for name, array in feeds.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


def test_fastest_by_objective() -> None:
    quick = RaceResult(rounds=((0.01,), (0.01,)), walls=(0.1, 0.1))
    many = RaceResult(rounds=((0.02,) * 5, (0.02,) * 5), walls=(0.1, 0.1))
    assert fastest({"quick": quick, "many": many}) == "quick"
    several = {id_: RaceResult(r.rounds, r.walls, streams=4) for id_, r in {"quick": quick, "many": many}.items()}
    assert fastest(several) == "many"
    assert fastest({"broken": RaceResult(error="no")}) is None


def test_ends_in_words() -> None:
    assert describe_end(-9, "") == "It was killed (signal 9), most often for want of memory."
    assert describe_end(-6, "terminate called") == "It crashed (signal 6, SIGABRT): terminate called"
    assert describe_end(3, "") == "It ended with exit code 3."


PARENT = """
import sys
from pathlib import Path
import numpy as np
from lowbit.measure.race import Variant, race
race([Variant(kind, "odd", Path(kind)) for kind in sys.argv[1:]], {"x": np.zeros((2, 4), np.float32)},
     batch=2, rounds=100000, seconds_per_round=0.05, progress=lambda *_: print("round", flush=True))
"""


@pytest.mark.usefixtures("odd")
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
@pytest.mark.parametrize("kinds", [("a", "b"), ("a", "hangs")])
def test_workers_end_with_their_parent(kinds: tuple[str, ...]) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *kinds], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "round\n"
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) == 2
    if "hangs" in kinds:
        time.sleep(1.5)  # into the call that never returns
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(workers, timeout=10)
    for worker in alive:  # leave nothing behind, even when the test fails
        worker.kill()
    assert alive == []


def test_presets_differ_in_cost() -> None:
    assert QUICK["rounds"] >= 3


def test_rest_waits_for_threads_that_go_on() -> None:
    begin = time.perf_counter()
    pool = threading.Thread(target=lambda: all(time.perf_counter() - begin < 0.3 for _ in iter(int, 1)))
    pool.start()
    assert rest() >= 0.25
    assert not pool.is_alive()
    assert rest() < 0.25


def test_rest_gives_up_in_the_end() -> None:
    begin = time.perf_counter()
    pool = threading.Thread(target=lambda: all(time.perf_counter() - begin < 1.5 for _ in iter(int, 1)))
    pool.start()
    assert LONGEST_REST_S <= rest() < 1.4
    pool.join()
