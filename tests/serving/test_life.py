"""A server as a process: it drains, hands over, loads again, and loses nothing silently."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_case import BASELINE, INPUT, INT8, OUTPUT, Clients, Running, running, tiny_bundle, until

from lowbit.bundle.bundle import Bundle
from small_models import images

KEY = "a key of this test"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("life") / "tiny")


@pytest.fixture(scope="module")
def expected(bundle: Path) -> Any:
    """Answers of the chosen variant to `images(64)`."""
    with Bundle.load(bundle).session() as session:
        return session.run(images(64))[OUTPUT]


def body(x: Any) -> bytes:
    tensor = {"name": INPUT, "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


def call(url: str, data: bytes | None = None, **headers: str) -> tuple[int, Any, Any]:
    """Status, document and headers."""
    request = urllib.request.Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            text, status, found = answer.read(), answer.status, answer.headers
    except urllib.error.HTTPError as error:
        text, status, found = error.read(), error.code, error.headers
    return status, json.loads(text) if text.startswith(b"{") else text.decode(), found


def logits(document: Any) -> Any:
    return np.array(document["outputs"][0]["data"], np.float32).reshape(document["outputs"][0]["shape"])


class Crowd(Clients):
    """Clients that ask all the time on connections that they keep, and check every answer."""

    def __init__(self, port: int, expected: Any, clients: int = 4) -> None:
        super().__init__(clients)
        self.port, self.expected = port, expected
        self.versions: set[str] = set()

    def ask(self, number: int) -> None:
        connection = None
        bodies = [body(images(64)[i : i + 1]) for i in range(64)]
        while not self.stopped.is_set():
            number = (number + 7) % 64
            fresh = connection is None
            connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            try:
                connection.request("POST", "/v2/models/tiny/infer", bodies[number])
                answer = connection.getresponse()
                document = json.loads(answer.read())
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError, ConnectionRefusedError) as error:
                connection.close()
                connection = None
                # A kept connection may be closed between two requests: the next one then goes out again, as HTTP says.
                refused = isinstance(error, ConnectionRefusedError)
                self.seen["refused" if refused else "lost" if fresh else "again"] += 1
                if refused:
                    time.sleep(0.02)
                continue
            if answer.status != 200:
                self.seen[str(answer.status)] += 1
            else:
                right = np.array_equal(logits(document)[0], self.expected[number])
                self.seen["right" if right else "wrong"] += 1
                self.versions.add(document["model_version"])
            if answer.getheader("connection") == "close":
                connection.close()
                connection = None


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Running]:
    with running(bundle, options=("--access-log", 1)) as made:
        yield made


def test_it_says_what_it_serves_once_it_is_ready(server: Running, bundle: Path) -> None:
    (model,) = server.ready["models"]
    assert (model["name"], model["variants"]) == ("tiny", {"chosen": INT8, "full": BASELINE})
    assert server.grpc is not None
    assert call(f"{server.url}/v2/health/ready")[:2] == (200, {"ready": True})
    assert bundle.name == "tiny"


def test_metrics_count_what_happened_by_variant_and_outcome(server: Running, expected: Any) -> None:
    x = images(64)
    for i in range(3):
        status, document, _ = call(f"{server.url}/v2/models/tiny/infer", body(x[i : i + 1]))
        assert status == 200
        assert np.array_equal(logits(document)[0], expected[i])
    call(f"{server.url}/v2/models/tiny/infer", body(x[:2]), X_Lowbit_Variant="full")
    assert call(f"{server.url}/v2/models/tiny/infer", b"no json")[0] == 400
    assert call(f"{server.url}/v2/models/other/infer", body(x[:1]))[0] == 404
    _, text, headers = call(f"{server.url}/metrics")
    assert headers["content-type"].startswith("text/plain")
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if not line.startswith("#")}
    version = server.ready["models"][0]["version"]

    def value(name: str, **labels: str) -> float:
        inside = ",".join(f'{label}="{text}"' for label, text in sorted(labels.items()))
        return values[f"{name}{{{inside}}}" if labels else name]

    chosen = {"model": "tiny", "version": version, "variant": INT8}
    assert value("lowbit_requests_total", **chosen, route="default", outcome="ok") >= 3
    assert value("lowbit_request_duration_seconds_count", **chosen, route="default") >= 3
    assert value("lowbit_inferences_total", **{**chosen, "variant": BASELINE}) == 2
    assert value("lowbit_batch_size_sum", **{**chosen, "variant": BASELINE}) == 2
    assert value("lowbit_queue_seconds_count", **chosen) >= 3
    assert value("lowbit_requests_total", model="", version="", variant="", route="", outcome="malformed") == 1
    assert value("lowbit_requests_total", model="", version="", variant="", route="", outcome="unknown") == 1
    assert value("lowbit_model_loaded", **chosen) == 1
    assert (value("lowbit_in_flight"), value("lowbit_draining")) == (0, 0)
    assert "other" not in text  # names that clients make up are no labels


def test_logs_are_json_with_the_request_id(server: Running) -> None:
    call(f"{server.url}/v2/models/tiny/infer", body(images(1)), X_Request_Id="one-of-mine")
    call(f"{server.url}/v2/models/tiny/infer", b"{}", X_Request_Id="a-bad-one")
    lines = [json.loads(line) for line in server.logged().splitlines()]
    (good,) = [line for line in lines if line.get("request_id") == "one-of-mine"]
    assert (good["event"], good["variant"], good["model"], good["batch"]) == ("answered", INT8, "tiny", 1)
    assert 0 <= good["queued_ms"] <= good["ms"]
    (bad,) = [line for line in lines if line.get("request_id") == "a-bad-one"]
    assert (bad["event"], bad["status"], bad["outcome"], bad["level"]) == ("refused", 400, "malformed", "info")


def test_monitoring_shows_confidences_and_inputs(server: Running) -> None:
    for _ in range(3):
        call(f"{server.url}/v2/models/tiny/infer", body(images(8)))
    status, found, _ = call(f"{server.url}/v1/monitoring")
    entry = next(each for each in found["models"] if each["variant"] == INT8)
    assert status == 200
    assert len(entry["confidence"]["counts"]) == 256
    assert sum(entry["confidence"]["counts"]) == entry["rows_recorded"] <= entry["rows_seen"]
    assert entry["inputs"][INPUT]["n"] > 0


def test_reloading_over_http_needs_keys(server: Running) -> None:
    status, document, _ = call(f"{server.url}/v1/admin/reload", b"")
    assert status == 404
    assert "API keys" in document["error"]
    assert call(f"{server.url}/v1/admin/reload")[0] == 405


def test_sigterm_finishes_what_was_accepted(bundle: Path, expected: Any, tmp_path: Path) -> None:
    with running(bundle, options=("--state", tmp_path)) as server:
        with Crowd(server.port, expected) as crowd:
            until(lambda: crowd.seen["right"] > 50)
            assert server.stop() == 0
        assert set(crowd.seen) <= {"right", "503", "refused", "again"}
        events = [json.loads(line)["event"] for line in server.logged().splitlines()]
        assert "draining" in events
        assert "drained" in events
    (kept,) = json.loads((tmp_path / "monitoring.json").read_text())["models"]
    assert kept["rows_seen"] == crowd.seen["right"]


def test_a_lingering_server_is_not_ready_but_answers_and_then_refuses(bundle: Path) -> None:
    with running(bundle, options=("--linger", "8s")) as server:
        server.process.send_signal(signal.SIGTERM)
        until(lambda: call(f"{server.url}/v2/health/ready")[0] == 503, 7)
        status, _, headers = call(f"{server.url}/v2/models/tiny/infer", body(images(1)))
        assert (status, headers["connection"]) == (200, "close")
        assert server.process.wait(60) == 0


def test_what_cannot_end_in_time_gets_a_clean_503(bundle: Path) -> None:
    with running(bundle, options=("--window", "15s", "--drain", "0.5s", "--no-grpc")) as server:
        found: list[Any] = []
        client = threading.Thread(target=lambda: found.append(call(f"{server.url}/v2/models/tiny/infer", body(images(1)))))
        client.start()
        until(lambda: "lowbit_in_flight 1.0" in call(f"{server.url}/metrics")[1])
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < 14  # the window would have ended then
        client.join(10)
        ((status, document, headers),) = found
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        assert "stopping" in document["error"]
        (last,) = [json.loads(line) for line in server.logged().splitlines() if '"drained"' in line]
        assert (last["level"], last["refused"]) == ("warning", 1)


def test_ctrl_c_is_a_polite_end_too(bundle: Path) -> None:
    with running(bundle, options=("--no-grpc",)) as server:
        assert server.grpc is None
        assert server.stop(signal.SIGINT) == 0


def test_a_request_that_hangs_in_its_body_does_not_keep_the_server(bundle: Path) -> None:
    with running(bundle, options=("--drain", "1s")) as server, socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        time.sleep(0.2)
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < 18  # its body has 20 s


def test_a_successor_takes_over_without_a_lost_request(bundle: Path, expected: Any, tmp_path: Path) -> None:
    later = tiny_bundle(tmp_path / "tiny", note="another version")
    with running(bundle, options=("--reuse-port", "--linger", "0.5s")) as first:
        ports = ("--port", first.port, "--reuse-port", "--no-grpc")
        with Crowd(first.port, expected) as crowd:
            until(lambda: crowd.seen["right"] > 20)
            with running(later, options=ports) as second:
                assert first.stop() == 0
                until(lambda: len(crowd.versions) == 2)
                before = crowd.seen["right"]
                until(lambda: crowd.seen["right"] > before + 20)
                crowd.__exit__()
                assert second.process.poll() is None
    assert set(crowd.seen) <= {"right", "again"}
    assert crowd.versions == {each.ready["models"][0]["version"] for each in (first, second)}


def test_a_changed_bundle_takes_over_under_load_and_a_broken_one_does_not(expected: Any, tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "tiny")
    (tmp_path / "keys").write_text(f"# of this test\n{KEY}\n")
    headers = {"Authorization": f"Bearer {KEY}"}
    with running(folder, options=("--api-key-file", tmp_path / "keys")) as server:
        url = f"{server.url}/v1/admin/reload"
        assert call(url, b"")[0] == 401
        (first,) = call(url, b"", **headers)[1]["models"]
        assert first["result"] == "unchanged"
        tiny_bundle(folder, note="a new version")
        (second,) = call(url, b"", **headers)[1]["models"]
        assert (second["result"], second["model"]) == ("swapped", "tiny")
        assert second["version"] != first["version"]

        def served() -> tuple[int, str]:
            status, document, _ = call(f"{server.url}/v2/models/tiny/infer", body(images(64)[:1]), **headers)
            assert np.array_equal(logits(document)[0], expected[0])
            return status, document["model_version"]

        assert served() == (200, second["version"])
        for damage in (_cut, _remove):
            damage(folder)
            status, document, _ = call(url, b"", **headers)
            assert (status, document["models"][0]["result"]) == (500, "failed")
            assert document["models"][0]["version"] == second["version"]
            assert str(tmp_path) not in json.dumps(document)
            assert served() == (200, second["version"])
            assert call(f"{server.url}/v2/health/ready")[0] == 200
            shutil.rmtree(folder)
            tiny_bundle(folder, note="a new version")
        text = call(f"{server.url}/metrics", **headers)[1]
        assert 'lowbit_reloads_total{model="tiny",result="failed"} 2.0' in text
        assert 'lowbit_reloads_total{model="tiny",result="swapped"} 1.0' in text
        assert [json.loads(line)["level"] for line in server.logged().splitlines() if '"failed"' in line] == ["warning"] * 2


def _cut(folder: Path) -> None:
    file = folder / "model" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"?")


def _remove(folder: Path) -> None:
    (folder / "baseline" / "model.onnx").unlink()


def test_sighup_loads_again_under_load(expected: Any, tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "tiny")
    with running(folder) as server, Crowd(server.port, expected) as crowd:
        for number in range(3):
            tiny_bundle(folder, note=f"version {number}")
            server.process.send_signal(signal.SIGHUP)
            until(lambda: len(crowd.versions) == number + 2)  # noqa: B023
        crowd.__exit__()
        assert set(crowd.seen) == {"right"}


def test_several_bundles_at_once(bundle: Path) -> None:
    with running(f"a={bundle}", f"b={bundle}", options=("--variants", "full")) as server:
        assert [model["name"] for model in server.ready["models"]] == ["a", "b"]
        for name in "ab":
            assert call(f"{server.url}/v2/models/{name}/infer", body(images(1)))[0] == 200
