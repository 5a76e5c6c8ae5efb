"""Policies, flags, questions and the cache through the doors of a real server."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from redis_case import redis_server
from serving_case import BASELINE, INPUT, INT8, Running, running, tiny_bundle, until

from small_models import images

POLICY = """
rules:
  - {name: critical, when: {critical: true}, use: full}
  - {name: trial, when: {flag: trial}, use: full}
escalate: {below: 1}
review: critical
flags: {trial: false}
"""


def http(method: str, url: str, document: Any = None, **headers: str) -> tuple[int, Any]:
    body = None if document is None else json.dumps(document).encode()
    asked = urllib.request.Request(url, body, {"x-api-key": "secret", **headers}, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def infer(server: Running, x: int | np.ndarray = 1, **parameters: Any) -> dict[str, Any]:
    """What a client is told beside the outputs, of so many images or of these."""
    x = images(x) if isinstance(x, int) else x
    tensor = {"name": INPUT, "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    status, found = http("POST", f"{server.url}/v2/models/tiny/infer", {"inputs": [tensor], "parameters": parameters})
    assert status == 200, found
    told: dict[str, Any] = found["parameters"]
    return told


def test_flags_policies_and_questions_of_a_running_server(tmp_path: Path) -> None:
    bundle, policy, keys, state = tiny_bundle(tmp_path / "tiny"), tmp_path / "policy.yaml", tmp_path / "keys.txt", tmp_path / "state"
    policy.write_text(POLICY)
    keys.write_text("secret\n")
    options = ("--policy", policy, "--api-key-file", keys, "--state", state)
    with running(bundle, options=options) as server:
        told = infer(server, 3)
        assert (told["variant"], told["route"], told["escalated"], told["escalated_to"]) == (INT8, "default", 3, BASELINE)
        told = infer(server, critical=True)
        assert (told["variant"], told["route"]) == (BASELINE, "critical")
        review = told["review"]

        assert http("PUT", f"{server.url}/v1/admin/flags", {"trial": True}) == (200, {"flags": {"trial": 1.0}})
        assert infer(server)["route"] == "trial"

        policy.write_text("default: full\nreview: never\n")
        until(lambda: infer(server)["variant"] == BASELINE and infer(server)["route"] == "default", seconds=10)
        policy.write_text("default: int3")  # not loaded: the policy before stays
        until(lambda: "is not taken" in server.logged(), seconds=10)
        assert infer(server)["variant"] == BASELINE
        assert server.stop() == 0
    policy.write_text(POLICY)
    with running(bundle, options=options) as server:
        status, found = http("GET", f"{server.url}/v1/questions")
        assert status == 200
        assert [each["id"] for each in found["questions"]] == [review]
        status, found = http("POST", f"{server.url}/v1/questions/{review}", {"answer": 7, "by": "ada"})
        assert (status, found["answer"]) == (200, 7)
        assert http("POST", f"{server.url}/v1/questions/{review}", {"answer": 8})[0] == 409
        assert infer(server)["route"] == "trial"  # the flag that was turned still is


def test_replicas_share_answers_over_redis_and_serve_on_without_it(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    with redis_server() as redis:
        options = ("--cache", 16, "--redis", redis.url)
        with running(bundle, options=options) as first, running(bundle, options=options) as second:
            assert infer(first, 3)["cache"] == "miss"
            until(lambda: b"lowbit:e:" in _keys(redis.port), seconds=10)
            until(lambda: found_by(second, first, redis.port), seconds=10)
            redis.stop()
            assert infer(first, 4)["cache"] == "miss"
            assert infer(first, 4)["cache"] == "exact"  # its own
            assert infer(second, 4)["cache"] == "miss"


def found_by(second: Running, first: Running, port: int) -> bool:
    """Whether one replica answers from what the other kept; anew each time, since Redis has 10 ms and the machine may be busy."""
    x = np.random.default_rng(time.monotonic_ns()).random((1, 3, 8, 8), np.float32)
    before = _keys(port).count(b"lowbit:e:")
    assert infer(first, x)["cache"] == "miss"
    until(lambda: _keys(port).count(b"lowbit:e:") > before, seconds=10)
    return bool(infer(second, x)["cache"] == "exact")


def _keys(port: int) -> bytes:
    import socket

    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(b"KEYS *\r\n")
        time.sleep(0.05)
        return connection.recv(65536)
