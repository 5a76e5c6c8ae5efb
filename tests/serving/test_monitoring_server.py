"""A server keeps watch: shifts become reviews that people answer, labels become accuracy, and what it all costs is told."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleet_case import Case, opened
from serving_case import INPUT, INT8, OUTPUT, Running, running, tiny_bundle, until

from lowbit.monitoring.store import Monitoring
from small_models import images

KEY = "sesame"
ROWS = 512


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "tiny")


def options(folder: Path, *more: object, keyed: bool = True) -> tuple[object, ...]:
    keys = folder / "keys"
    keys.write_text(KEY)
    return ("--state", folder / "state", "--window-every", "1s", *(("--api-key-file", keys) if keyed else ()), *more)


def call(url: str, body: Any = None, request_id: str = "") -> tuple[int, Any]:
    headers = {"x-api-key": KEY, **({"x-request-id": request_id} if request_id else {})}
    asked = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]


def infer(server: Running, rows: int = 1, request_id: str = "", seed: int = 0) -> Any:
    """Logits of random images, sent as raw bytes: many rows are quick to write, then."""
    x = images(rows, seed)
    tensor = {"name": INPUT, "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": OUTPUT, "parameters": {"binary_data": False}}]}).encode()
    headers = {"x-api-key": KEY, "inference-header-content-length": str(len(head)), **({"x-request-id": request_id} if request_id else {})}
    asked = urllib.request.Request(f"{server.url}/v2/models/tiny/infer", head + x.tobytes(), headers)
    with urllib.request.urlopen(asked, timeout=30) as answer:
        found = json.loads(answer.read())
    return np.array(found["outputs"][0]["data"]).reshape(rows, -1)


def drift(server: Running) -> list[dict[str, Any]]:
    """Asks until there are reviews: what the tiny model answers to noise is far from what its bundle says."""
    found: list[dict[str, Any]] = []

    def reviews() -> bool:
        for seed in range(8):
            infer(server, ROWS, seed=seed)
        status, listed = call(f"{server.url}/v1/reviews?state=open")
        assert status == 200
        found[:] = listed["reviews"]
        return bool(found)

    until(reviews)
    return found


def test_a_shift_opens_a_review_which_outlives_the_server_and_a_person_accepts_it(tmp_path: Path, bundle: Path) -> None:
    with running(bundle, options=options(tmp_path)) as server:
        opened = {review["kind"]: review for review in drift(server)}
        confidence = opened["confidence"]
        assert (confidence["model"], confidence["variant"], confidence["state"]) == ("tiny", INT8, "open")
        assert confidence["evidence"]["n"] >= 2000
        assert sum(confidence["evidence"]["confidence"]) == confidence["evidence"]["n"]
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    with running(bundle, options=options(tmp_path)) as server:
        page = f"{server.url}/v1/reviews/{confidence['id']}"
        assert call(page)[1]["state"] == "open"
        status, why = call(page, {"action": "rollback", "by": "Ada"})
        assert (status, "no registry to roll back in" in why) == (409, True)
        for wrong in ({"action": "accept"}, {"action": "shrug", "by": "Ada"}, {"action": "accept", "by": " "}, {"by": "Ada"}):
            assert call(page, wrong)[0] == 400
        status, done = call(page, {"action": "accept", "by": "Ada", "why": "a new camera"})
        assert (status, done["state"], done["by"], done["why"]) == (200, "accepted", "Ada", "a new camera")
        status, why = call(page, {"action": "recalibrate", "by": "Bob"})
        assert (status, "accepted by Ada" in why) == (409, True)
        infer(server)
        until(lambda: call(f"{server.url}/v1/monitoring/windows")[1]["latest"])
        (latest,) = call(f"{server.url}/v1/monitoring/windows?model=tiny&limit=5")[1]["latest"]
        assert latest["baseline"] == confidence["evidence"]["confidence"]
        assert [finding["kind"] for finding in latest["findings"] if finding["review"] and finding["kind"] == "confidence"] == []
        assert call(f"{server.url}/v1/reviews/nothing")[0] == 404
        assert call(f"{server.url}/v1/reviews?state=lost")[0] == 400
        others = [review["id"] for review in call(f"{server.url}/v1/reviews?state=open")[1]["reviews"]]
        assert confidence["id"] not in others


@pytest.fixture
def case(tmp_path: Path, bundle: Path) -> Iterator[Case]:
    yield from opened(tmp_path / "registry", bundle)


def test_a_review_rolls_the_version_back_that_it_is_about(tmp_path: Path, case: Case) -> None:
    before = case.registry.resolve("tiny@champion")
    new = case.push(tiny_bundle(tmp_path / "new" / "tiny", note="new"))
    case.registry.promote(new, by="Ada", why="better")
    with running("tiny@champion", options=options(tmp_path, "--registry", case.folder)) as server:
        reviews = drift(server)
        assert {review["version"] for review in reviews} == {str(new.number)}
        one, other = reviews[:2]
        status, done = call(f"{server.url}/v1/reviews/{one['id']}", {"action": "rollback", "by": "Eve", "why": "it is worse"})
        assert (status, done["state"], done["rollback"]["after"]) == (200, "rolled_back", before.digest)
        assert case.registry.resolve("tiny@champion").number == before.number
        assert case.registry.history("tiny", "champion")[-1].by == "Eve"
        until(lambda: call(f"{server.url}/v2/models/tiny")[1]["versions"][0] == str(before.number))
        status, done = call(f"{server.url}/v1/reviews/{other['id']}", {"action": "rollback", "by": "Eve"})
        assert (status, done["state"], "does not answer any more" in done["rollback"]["said"]) == (200, "rolled_back", True)
        assert case.registry.resolve("tiny@champion").number == before.number


def test_labels_find_their_answers_on_whichever_server(tmp_path: Path, bundle: Path) -> None:
    both = options(tmp_path, "--feedback", "--price", "0.05")
    with running(bundle, options=both) as one, running(bundle, options=both) as other:
        classes = [int(infer(server, 1, f"r{n}", seed=n).argmax()) for n, server in enumerate((one, other, one, other))]
        labels = [{"request_id": f"r{n}", "label": label} for n, label in enumerate(classes)]
        labels[3]["label"] = (classes[3] + 1) % 10
        until(lambda: call(f"{one.url}/v1/feedback", {"labels": labels, "by": "lab"})[1] == {"joined": 4, "right": 3, "unknown": []})
        assert call(f"{one.url}/v1/feedback", {"request_id": "never", "label": 1})[1] == {"joined": 0, "right": 0, "unknown": ["never"]}
        for wrong in (
            {"request_id": "r0"},
            {"labels": []},
            {"request_id": "r0", "label": "cat"},
            {"request_id": "r0", "label": 1.5},
            {"x": 1},
        ):
            assert call(f"{one.url}/v1/feedback", wrong)[0] == 400, wrong
        found = windows_of(one)
        assert sum(window["requests"] for window in found) == 4
        assert len({window["server"] for window in found}) == 2
        assert all(window["cpu_seconds"] > 0 and window["latency_ms"]["p99"] > 0 for window in found)
        cost = call(f"{one.url}/v1/cost")[1]
        (model,) = cost["models"]
        assert (model["requests"], model["variant"], cost["server"]["requests"]) == (2, INT8, 2)
        each = model["cpu_seconds"] / 2
        assert model["per_million"]["usd"] == pytest.approx(each / cost["server"]["cores"] * 0.05 / 3600 * 1e6)
        assert model["energy"]["low"] < model["energy"]["joules_per_inference"] < model["energy"]["high"]
        text = metrics(one)
        assert f'lowbit_labels_total{{model="tiny",right="true",variant="{INT8}"' in text
        for server in (one, other):
            assert server.stop() == 0


def windows_of(server: Running) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def whole() -> bool:
        found[:] = call(f"{server.url}/v1/monitoring/windows")[1]["windows"]
        return sum(window["requests"] for window in found) >= 4

    until(whole)
    return found


def metrics(server: Running) -> str:
    asked = urllib.request.Request(f"{server.url}/metrics", headers={"x-api-key": KEY})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return str(answer.read().decode())


def test_without_keys_nobody_answers_and_what_is_known_is_written_at_the_end(tmp_path: Path, bundle: Path) -> None:
    more = ("--window-every", "1h", "--feedback", "--sample-inputs", "1")
    with running(bundle, options=options(tmp_path, *more, keyed=False)) as server:
        infer(server, 1, "last")
        assert call(f"{server.url}/v1/reviews")[1] == {"reviews": []}
        assert call(f"{server.url}/v1/reviews/abc", {"action": "accept", "by": "x"})[0] == 405
        assert call(f"{server.url}/v1/feedback", {"request_id": "r", "label": 1})[0] == 404
        assert server.stop() == 0
    with Monitoring(tmp_path / "state", create=False) as store:
        (window,) = store.windows()
        assert window.tally.requests == 1
        assert [joined.key.variant for joined in store.labels.label("last", 1)] == [INT8]
        np.testing.assert_array_equal(store.samples.listed()[0].inputs[INPUT], images(1)[0])


def test_without_a_folder_nothing_is_kept_and_the_pages_say_so(bundle: Path) -> None:
    with running(bundle) as server:
        infer(server)
        status, why = call(f"{server.url}/v1/monitoring/windows")
        assert (status, "--state FOLDER" in why) == (404, True)
        assert call(f"{server.url}/v1/cost")[1]["models"][0]["requests"] == 1
        assert sum(call(f"{server.url}/v1/monitoring")[1]["models"][0]["predictions"]) <= 1
