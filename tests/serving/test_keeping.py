"""What was recorded becomes windows, reviews and alerts; what cannot be written costs nothing but itself."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from serving_case import INPUT, INT8, OUTPUT, tiny_bundle, until

from lowbit.errors import UsageError
from lowbit.monitoring.names import METRICS, MONITORING
from lowbit.monitoring.rules import REVIEWED
from lowbit.monitoring.samples import Redaction
from lowbit.monitoring.sla import Sla
from lowbit.monitoring.store import Monitoring
from lowbit.monitoring.tally import Key
from lowbit.serving.answer.answered import Answered, Caller
from lowbit.serving.keep.keeping import Keeper
from lowbit.serving.keep.kept_metrics import KeptFacts
from lowbit.serving.keep.settings import KeepSettings
from lowbit.serving.keep.spending import Price, Spending
from lowbit.serving.protocol.requests import InferRequest
from lowbit.serving.run import deployment
from lowbit.serving.run.deployment import Deployment
from lowbit.serving.settings import Settings
from lowbit.serving.watch.observing import Observer
from lowbit.serving.watch.recording import Recorder
from lowbit.serving.watch.watching import Watching
from small_models import images


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = deployment.load(tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny"), roles=())
    yield made
    made.close()


def keeper_in(folder: Path | None, settings: KeepSettings = KeepSettings()) -> Keeper:  # noqa: B008 - frozen
    store = None if folder is None else Monitoring(folder, retention=settings.retention)
    return Keeper(Recorder(share=1e9), settings, store=store, spending=Spending(cores=2, gpu=lambda: 0.25))


def answer(keeper: Keeper, model: Deployment, rows: int, confidence: float = 0.9, name: str = "", seconds: float = 0.01) -> None:
    """A request whose rows are answered with class 3, so certain."""
    logits = np.zeros((rows, 10), np.float32)
    logits[:, 3] = np.log(9 * confidence / (1 - confidence))
    found = Answered({OUTPUT: logits}, model.variants["chosen"], batch=rows, ran_s=1.0)
    request = InferRequest({INPUT: np.repeat(images(1), rows, axis=0)})
    for observer in (keeper.recorder, *keeper.keepsakes):
        observer.answered(model, request, Caller(name), found, seconds)


def key_of(model: Deployment) -> Key:
    return Key(model.name, model.version, INT8)


def test_windows_are_what_came_between_and_nothing_is_counted_twice(tmp_path: Path, tiny: Deployment) -> None:
    async def work() -> None:
        async with keeper_in(tmp_path) as keeper:
            answer(keeper, tiny, 3)
            await keeper.window()
            await keeper.window()  # nothing came: no window
            answer(keeper, tiny, 5)
            answer(keeper, tiny, 1)
        # the last one is written when it ends

    asyncio.run(work())
    with Monitoring(tmp_path) as store:
        first, second = store.windows(key_of(tiny))
        assert [(w.tally.requests, w.tally.rows, w.tally.predictions[3]) for w in (first, second)] == [(1, 3, 3), (2, 6, 6)]
        assert first.since < first.until <= second.since < second.until
        assert first.server == second.server != ""


def test_a_restart_goes_on_with_the_baseline_that_a_person_accepted(tmp_path: Path, tiny: Deployment) -> None:
    """And with the review that nobody answered."""

    async def serve_once() -> tuple[list[str], int]:
        async with keeper_in(tmp_path) as keeper:
            keeper.meet(tiny)
            answer(keeper, tiny, 2500, confidence=0.55)
            await keeper.window()
            return [review.kind for review in keeper.books.reviews], len(keeper.books.looks)

    kinds, looks = asyncio.run(serve_once())
    assert "confidence" in kinds
    assert looks == 1
    with Monitoring(tmp_path) as store:
        for review in store.reviews.listed("open"):
            store.accept(review.id, by="Ada")
        accepted = store.baseline(key_of(tiny))
        assert accepted is not None
        assert accepted.source == "accepted"
    assert asyncio.run(serve_once())[0] == []  # the same traffic is normal now, and meeting the bundle again changes nothing


def test_a_shift_is_told_once_however_many_servers_share_the_folder(tmp_path: Path, tiny: Deployment) -> None:
    heard: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = KeepSettings(webhook=f"http://127.0.0.1:{server.server_port}/")

        async def work() -> str:
            async with keeper_in(tmp_path, settings) as one, keeper_in(tmp_path, settings) as other:
                for keeper in (one, other):
                    keeper.meet(tiny)
                    answer(keeper, tiny, 1300, confidence=0.55)  # neither has 2,000 rows alone
                for keeper in (one, other):
                    await keeper.window()
                await one.refresh()
                return exposition(one)

        text = asyncio.run(work())
        until(lambda: heard)
        server.shutdown()
    told = [(each["event"], each["kind"], each["model"]) for each in heard]
    assert ("review opened", "confidence", "tiny") in told
    assert len(told) == len(set(told))
    (line,) = [line for line in text.splitlines() if line.startswith("lowbit_reviews_open{") and 'kind="confidence"' in line]
    assert line.endswith(" 1.0")


def exposition(keeper: Keeper) -> str:
    registry = CollectorRegistry()
    registry.register(KeptFacts(keeper))
    return generate_latest(registry).decode()


def test_names_and_labels_are_those_that_dashboards_use(tmp_path: Path, tiny: Deployment) -> None:
    async def work() -> dict[str, dict[tuple[str, ...], float]]:
        settings = KeepSettings(feedback=True, sample=1.0, price=Price(0.05, "a bill"), sla=Sla(0.1))
        async with keeper_in(tmp_path, settings) as keeper:
            keeper.meet(tiny)
            answer(keeper, tiny, 2500, confidence=0.55, name="r1", seconds=0.5)
            await keeper.label("r1", [3, 3, 4])
            await keeper.window()
            assert "lowbit_drift_ratio{" in exposition(keeper)
            return KeptFacts(keeper).values()

    found = asyncio.run(work())
    assert found.keys() == {metric.name for metric in MONITORING}
    assert found["lowbit_gpu_use"] == {(): 0.25}
    for name, values in found.items():
        assert {len(labels) for labels in values} <= {len(METRICS[name].labels)}, name
    key = key_of(tiny)
    assert found["lowbit_labels_total"] == {(*key, "true"): 2.0, (*key, "false"): 1.0}
    assert found["lowbit_accuracy"][key] == pytest.approx(2 / 3)
    assert found["lowbit_drift_ratio"][*key, "latency"] == pytest.approx(100.0)  # all are slow, one in a hundred may
    assert found["lowbit_drift_ratio"][*key, "confidence"] > 1
    assert found["lowbit_samples_kept"] == {("tiny",): 2000.0}
    assert found["lowbit_reviews_open"].keys() == {(*key, kind) for kind in REVIEWED}  # the closed ones too: an alert must be able to end
    assert found["lowbit_reviews_open"][*key, "confidence"] == 1
    assert found["lowbit_reviews_open"][*key, "accuracy"] == 0
    assert found["lowbit_window_rows"][key] == 2500


def test_a_full_disk_costs_what_was_to_be_written_and_windows_are_made_up_for(tmp_path: Path, tiny: Deployment) -> None:
    async def work() -> None:
        settings = KeepSettings(feedback=True, sample=1.0)
        async with keeper_in(tmp_path, settings) as keeper:
            keeper.meet(tiny)
            answer(keeper, tiny, 4, name="kept")
            await keeper.flush()
            await keeper.window()
            store = keeper.books.store
            assert store is not None
            (pages,) = store._database.rows("pragma page_count")[0]
            store._database.rows(f"pragma max_page_count = {pages}")  # SQLite's own full disk
            answer(keeper, tiny, 700, name="lost")
            await keeper.flush()
            await keeper.window()
            assert keeper.failures["answers"] == 1
            assert keeper.failures["samples"] == 1
            assert keeper.failures["windows"] >= 1
            store._database.rows("pragma max_page_count = 1000000")
            answer(keeper, tiny, 5, name="again")
            await keeper.flush()
            await keeper.window()
            assert [joined.right for joined in await keeper.label("again", 3)] == [True]
            assert await keeper.label("lost", 3) == ()

    asyncio.run(work())
    with Monitoring(tmp_path) as store:
        assert [window.tally.rows for window in store.windows(key_of(tiny))] == [4, 705]


def test_labels_are_told_to_who_watches_once_each(tmp_path: Path, tiny: Deployment) -> None:
    told: list[tuple[Any, ...]] = []

    class Watcher(Observer):
        def labelled(self, model: str, version: str, variant: str, right: bool) -> None:
            told.append((model, version, variant, right))

    class Broken(Observer):
        def labelled(self, *_: object) -> None:
            raise RuntimeError("not my day")

    async def work() -> None:
        async with keeper_in(tmp_path, KeepSettings(feedback=True)) as keeper, keeper_in(tmp_path) as other:
            keeper.observers = other.observers = lambda: (Broken(), Watcher())
            answer(keeper, tiny, 2, name="r1")
            assert [joined.right for joined in await keeper.label("r1", [3, 5])] == [True, False]
            await keeper.label("r1", [3, 3])  # a person who thinks again changes the accuracy, but is no second answer
            assert await keeper.label("nobody", 3) == ()
            answer(keeper, tiny, 1, name="r2")
            await keeper.flush()
            assert [joined.key for joined in await other.label("r2", 3)] == [key_of(tiny)]  # another server's answer

    asyncio.run(work())
    who = tuple(key_of(tiny))
    assert told == [(*who, True), (*who, False), (*who, True)]


def test_inputs_are_redacted_before_they_are_written(tmp_path: Path, tiny: Deployment) -> None:
    async def work(redaction: Redaction) -> Any:
        async with keeper_in(tmp_path, KeepSettings(sample=1.0, redaction=redaction)) as keeper:
            keeper.check([tiny])
            answer(keeper, tiny, 1)
            await keeper.flush()
            assert keeper.books.store is not None
            return keeper.books.store.samples.listed()[-1].inputs

    x = images(1)[0]
    np.testing.assert_array_equal(asyncio.run(work(Redaction()))[INPUT], x)
    blurred = asyncio.run(work(Redaction(blur=frozenset({INPUT}))))[INPUT]
    assert np.ptp(blurred[0]) == 0 < np.ptp(x[0])
    assert blurred[0, 0, 0] == pytest.approx(x[0].mean(), abs=1e-5)
    assert asyncio.run(work(Redaction(drop=frozenset({INPUT})))) == {}
    with pytest.raises(UsageError, match="no input 'imput' to redact"):
        asyncio.run(work(Redaction(drop=frozenset({"imput"}))))
    words = replace(tiny.inputs[0], dtype="int64")

    class Words:
        inputs = (words,)

    with pytest.raises(UsageError, match="only floating-point numbers can be blurred"):
        keeper_in(None, KeepSettings(redaction=Redaction(blur=frozenset({INPUT})))).check([Words()])  # type: ignore[list-item]


def test_a_later_version_with_other_inputs_lets_nothing_through_that_was_to_be_redacted(tmp_path: Path, tiny: Deployment) -> None:
    class Sessions:
        inputs = (replace(tiny.inputs[0], name="renamed"),)

    chosen = replace(tiny.variants["chosen"], sessions=Sessions())  # type: ignore[arg-type]
    later = replace(tiny, version="later", variants={"chosen": chosen})

    async def work() -> list[str]:
        async with keeper_in(tmp_path, KeepSettings(sample=1.0, redaction=Redaction(blur=frozenset({INPUT})))) as keeper:
            for model in (tiny, later, tiny):
                keeper.meet(model)
                found = Answered({}, model.variants["chosen"])
                for observer in keeper.keepsakes:
                    observer.answered(model, InferRequest({model.inputs[0].name: images(1)}), Caller(), found, 0.01)
            await keeper.flush()
            assert keeper.books.store is not None
            return [sample.version for sample in keeper.books.store.samples.listed()]

    assert asyncio.run(work()) == [tiny.version, tiny.version]


def test_wishes_that_need_a_folder_or_a_recorder_are_refused_without(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere to keep feedback"):
        Watching.of(Settings(keep=KeepSettings(feedback=True)))
    with pytest.raises(UsageError, match="nowhere to keep samples of inputs"):
        Watching.of(Settings(keep=KeepSettings(sample=0.1)))
    with pytest.raises(UsageError, match="nothing to keep feedback with"):
        Watching.of(Settings(state=tmp_path, record=False, keep=KeepSettings(feedback=True)))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match="cannot be opened"):
        Watching.of(Settings(state=file))


def test_a_budget_that_burns_is_told_when_it_begins_and_when_it_is_over(tmp_path: Path) -> None:
    from lowbit.monitoring.alerts import Alert
    from lowbit.monitoring.latency import COUNTS, bin_of
    from lowbit.monitoring.tally import Tally
    from lowbit.monitoring.windows import Window
    from lowbit.serving.keep.budget import Budget

    told: list[Alert] = []
    key, begin = Key("net", "1", "int8"), 1_000_000.0

    def window(minute: int, slow: int) -> Window:
        seconds = [0] * COUNTS
        seconds[bin_of(0.01)], seconds[bin_of(5.0)] = 100 - slow, slow
        at = begin + 60 * minute
        return Window(key, at - 60, at, Tally(requests=100, seconds=tuple(seconds)), "s")

    with Monitoring(tmp_path) as store:
        budget = Budget(Sla(0.1), told.append)
        for minute in range(40, 140):
            store.add([window(minute, 50 if 60 <= minute < 120 else 0)])
            budget.look(store, begin + 60 * minute + 10)
    begins = [(alert.severity, alert.facts["hours"], (alert.at - begin) // 60) for alert in told if alert.event == "budget burns"]
    ends = [(alert.facts["hours"], (alert.at - begin) // 60) for alert in told if alert.event == "budget burns no more"]
    assert {(severity, hours) for severity, hours, _ in begins} == {("page", 1.0), ("page", 6.0), ("ticket", 72.0)}
    assert len(begins) == 3  # each once
    first = next(minute for severity, hours, minute in begins if hours == 1.0)
    assert 60 < first < 85  # 50 times the even rate: over 14.4 of the last hour once 17 minutes of it are bad
    over = next(minute for hours, minute in ends if hours == 1.0)
    assert 119 < over < 130  # the short window forgets within minutes
