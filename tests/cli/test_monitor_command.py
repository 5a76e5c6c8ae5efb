"""`lowbit monitor` and `lowbit reviews` on a real state folder: what they print, what they change, and what they refuse."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from cli_runner import Shell, lowbit

from lowbit.monitoring import latency
from lowbit.monitoring.baseline import Baseline
from lowbit.monitoring.findings import Finding
from lowbit.monitoring.looking import look
from lowbit.monitoring.moments import Moments
from lowbit.monitoring.rules import Rules
from lowbit.monitoring.samples import Sample
from lowbit.monitoring.store import Monitoring
from lowbit.monitoring.tally import Key, Tally
from lowbit.monitoring.windows import Window

KEY = Key("demo", "0123456789ab", "int8@onnxruntime")
Runner = tuple[pytest.CaptureFixture[str], pytest.MonkeyPatch]


@pytest.fixture
def shell(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    return capfd, monkeypatch


def run(shell: Runner, *words: object, code: int = 0) -> Shell:
    found = lowbit(*shell, *words)
    assert found.code == code, found.err
    return found


def counts(rng: np.random.Generator, n: int, scale: float = 1.0) -> tuple[int, ...]:
    return tuple(np.histogram(scale * rng.beta(6, 1.2, n), 256, (0, 1))[0].tolist())


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Of a server whose confidences fell by a tenth, ten minutes ago."""
    rng, now = np.random.default_rng(1), time.time()
    seconds = [0] * latency.COUNTS
    seconds[latency.bin_of(0.02)] = 3_000
    tally = Tally(3_000, 3, 3_000, 3_000, counts(rng, 3_000, 0.9), tuple(seconds), (1_500, 1_500), {"x": Moments(3_000, 0, 3_000)}, {}, 6.0)
    with Monitoring(tmp_path / "state") as opened:
        usual = Tally(confidence=counts(rng, 20_000), predictions=(10_000, 10_000), inputs={"x": Moments(512, 0, 512)})
        opened.set_baseline(KEY, Baseline(usual, accuracy=0.94, accuracy_n=4_000))
        opened.add([Window(KEY, now - 600, now - 1, tally, "a")])
        look(opened, KEY, Rules(), now=now)
        opened.samples.offer([Sample("demo", KEY.version, "r", now, {"x": np.zeros(3)})])
    return tmp_path / "state"


def first(shell: Runner, state: Path) -> str:
    (found, *_) = json.loads(run(shell, "reviews", "list", state, "--output", "json").out)["reviews"]
    return str(found["id"])


def test_show_says_what_came_and_what_the_rules_think(shell: Runner, state: Path) -> None:
    out = run(shell, "monitor", "show", state, "--price", "0.2", "--cores", "2", "--history", "1h").out
    for words in (
        "3,000 requests (3 failed), 5.0 a second, p50 20.2, p95 20.4, p99 20.4 ms",
        "baseline: the bundle's own samples",
        "! confidence  Mean confidence 0.748 against 0.834 (-10.3%)",
        "0.0% of the answers went to other classes",
        "mJ (",
        "a million inferences",
        "2 reviews wait for a person: lowbit reviews list",
    ):
        assert words in out, out


def test_show_as_json(shell: Runner, state: Path) -> None:
    document = json.loads(run(shell, "monitor", "show", state, "--price", "0.2", "--cores", "2", "--output", "json").out)
    (window,) = document["windows"]
    assert (window["model"], window["requests"], window["errors"], sum(window["confidence"])) == ("demo", 3_000, 3, 3_000)
    assert sum(window["baseline"]) == 20_000
    assert window["cost"]["per_million_usd"] == pytest.approx(1e6 * 0.002 / 3600 * 0.1)
    assert window["energy"]["cpu_seconds_per_inference"] == pytest.approx(0.002)
    assert window["energy"]["method"].startswith("modelled")
    assert [each["kind"] for each in window["findings"] if each["review"]] == ["confidence", "low_tail"]
    assert len(document["reviews_open"]) == 2


def test_looking_changes_nothing(shell: Runner, state: Path) -> None:
    before = (state / "monitoring.sqlite").read_bytes()
    run(shell, "monitor", "show", state)
    run(shell, "reviews", "list", state)
    assert (state / "monitoring.sqlite").read_bytes() == before


def test_a_review_is_shown_and_accepted(shell: Runner, state: Path) -> None:
    review = first(shell, state)
    out = run(shell, "reviews", "show", state, review).out
    assert "confidence, baseline  0 " in out
    assert "A running rollout of this model stays at its step" in out
    done = json.loads(run(shell, "reviews", "accept", state, review, "--by", "ann", "--why", "new cameras", "--output", "json").out)
    assert (done["state"], done["by"], done["why"]) == ("accepted", "ann", "new cameras")
    assert "Accepted by ann" in run(shell, "reviews", "show", state, review).out
    again = run(shell, "reviews", "recalibrate", state, review, "--by", "ben", code=2)
    assert "answered before: accepted by ann" in again.err
    assert "! " not in run(shell, "monitor", "show", state).out.split("errors")[0].replace("low_tail", "")
    listed = run(shell, "reviews", "list", state, "--state", "all").out
    assert "accepted by ann" in listed


def test_recalibration_is_asked_for(shell: Runner, state: Path) -> None:
    out = run(shell, "reviews", "recalibrate", state, first(shell, state), "--by", "ann").out
    assert "recalibrated by ann. 1 recent inputs are kept. Next: lowbit recalibrate BUNDLE --samples" in out


def test_a_rollback_without_a_registry_says_so(shell: Runner, state: Path) -> None:
    out = run(shell, "reviews", "rollback", state, first(shell, state), "--by", "ann").out
    assert "Nothing was rolled back, because no registry was given" in out


def test_a_registry_stands_for_the_state_in_it(shell: Runner, state: Path, tmp_path: Path) -> None:
    """As a server of it leaves it; a rollback is the registry's then, and one that it cannot make answers nothing."""
    from lowbit.registry.registry import Registry

    with Registry.open(tmp_path, create=True):
        pass
    review = first(shell, tmp_path)
    assert run(shell, "monitor", "show", tmp_path).out == run(shell, "monitor", "show", state).out
    assert "The registry is empty" in run(shell, "reviews", "rollback", tmp_path, review, "--by", "ann", code=2).err
    assert review in run(shell, "reviews", "list", state).out


def test_a_rollback_that_fails_leaves_the_review_open(shell: Runner, state: Path, tmp_path: Path) -> None:
    """A registry without the model: nothing was rolled back, so nobody must think that the review is answered."""
    from lowbit.registry.registry import Registry

    with Registry.open(tmp_path / "registry", create=True):
        pass
    review = first(shell, state)
    assert run(shell, "reviews", "rollback", state, review, "--registry", tmp_path / "registry", "--by", "ann", code=2).err
    assert review in run(shell, "reviews", "list", state).out


@pytest.mark.parametrize("served_from", ["registry", "folder"])
def test_a_rollback_moves_the_champion_that_is_meant(shell: Runner, state: Path, tmp_path: Path, served_from: str) -> None:
    """Real bundles in a real registry: the reviewed version is rolled back, another one that serves by now is not."""
    import hashlib

    from serving_case import tiny_bundle

    from lowbit.registry.registry import Registry

    one, two = tiny_bundle(tmp_path / "one" / "demo"), tiny_bundle(tmp_path / "two" / "demo", note="two")
    with Registry.open(tmp_path / "registry", create=True) as registry:
        for bundle in (one, two):
            pushed = registry.push(bundle, "demo", by="ann").quantized
            assert pushed is not None
            registry.promote(pushed.ref, by="ann", why="it is better")
        served, before = pushed.ref, registry.aliases("demo")["fallback"].ref
    version = str(pushed.number) if served_from == "registry" else hashlib.sha256((two / "bundle.json").read_bytes()).hexdigest()[:12]
    bad = Window(Key("demo", version, KEY.variant), 0, 1, Tally(recorded=3_000))
    finding = Finding("confidence", 0.2, 0.05, True, "Moved.", 3_000)
    with Monitoring(state) as opened:
        review = opened.reviews.open(finding, bad, None)
    assert review is not None
    done = run(shell, "reviews", "rollback", state, review.id, "--registry", tmp_path / "registry", "--by", "ann")
    assert f"demo@champion is {before} again" in done.out
    with Registry.open(tmp_path / "registry") as registry:
        assert registry.aliases("demo")["champion"].ref == before != served
    with Monitoring(state) as opened:
        late = opened.reviews.open(Finding("low_tail", 0.2, 0.05, True, "Moved.", 3_000), bad, None)
    assert late is not None
    refused = run(shell, "reviews", "rollback", state, late.id, "--registry", tmp_path / "registry", "--by", "ben", code=2)
    assert "nothing was rolled back" in refused.err
    with Registry.open(tmp_path / "registry") as registry:
        assert registry.aliases("demo")["champion"].ref == before


@pytest.mark.parametrize("verb", [("monitor", "show"), ("reviews", "list")])
def test_a_folder_without_windows_is_refused(shell: Runner, tmp_path: Path, verb: tuple[str, ...]) -> None:
    assert "no server has kept windows there" in run(shell, *verb, tmp_path / "none", code=2).err
    assert not (tmp_path / "none").exists()


def test_what_is_not_known_is_said(shell: Runner, state: Path) -> None:
    assert "no review 'x'" in run(shell, "reviews", "show", state, "x", code=2).err
    assert "state of a review" in run(shell, "reviews", "list", state, "--state", "closed", code=2).err
    assert "is not a promise" in run(shell, "monitor", "rules", "--sla", "fast", code=2).err
    assert "Allowed: demo" in run(shell, "monitor", "show", state, "--model", "other", code=2).err
    assert "No window of that time" in run(shell, "monitor", "show", state, "--span", "1ms").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--history", "0s"), "--history of 0 s is no span"),
        (("--span", "-3h"), "--span of -10800 s is no span"),
        (("--price", "nan"), "does not cost nan"),
        (("--price", "inf", "--output", "json"), "does not cost inf"),
        (("--sla", "nanms"), "cannot be kept"),
        (("--sla", "infms"), "cannot be kept"),
    ],
)
def test_numbers_that_are_none_are_refused(shell: Runner, state: Path, words: tuple[str, ...], said: str) -> None:
    assert said in run(shell, "monitor", "show", state, *words, code=2).err


def test_rules_and_dashboard_are_written(shell: Runner, tmp_path: Path) -> None:
    out = tmp_path / "rules.yml"
    assert str(out) in run(shell, "monitor", "rules", "--out", out, "--sla", "50ms").out
    assert 'le="0.05"' in out.read_text()
    board = json.loads(run(shell, "monitor", "dashboard").out)
    assert board["title"] == "lowbit"
    assert "no folder" in run(shell, "monitor", "dashboard", "--out", tmp_path / "no" / "x.json", code=2).err
