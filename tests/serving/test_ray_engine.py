"""Variants on Ray: the same answers, a machine that dies under load, and what is said where Ray cannot do it."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from cli_runner import lowbit
from ray_case import NODE, need_ray, two_machines
from serving_case import BASELINE, INPUT, INT8, OUTPUT, Clients, Running, running, tiny_bundle

from lowbit.bundle.bundle import Bundle
from lowbit.errors import ModelError, RunError, UsageError
from lowbit.serving.protocol.refusals import Unavailable
from lowbit.serving.run.batcher import Batcher, Batching
from lowbit.serving.run.ray_engine import RayEngine, RayRuns, RaySettings
from small_models import images

POOL, CLIENTS = 16, 4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("ray") / "tiny")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    need_ray()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])  # machines hand it to their workers
        with two_machines() as found:
            yield found


def environment() -> dict[str, str]:
    """Replicas import lowbit from where this process does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class Load(Clients):
    """Clients that ask without a pause, and check each answer against its own request."""

    def __init__(self, server: Running, expected: np.ndarray[Any, Any], x: np.ndarray[Any, Any]) -> None:
        super().__init__(CLIENTS)
        self.others: list[str] = []
        self._server, self._expected, self._x = server, expected, x

    def ask(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=30)
        while not self.stopped.is_set():
            number = (number + 7) % POOL
            try:
                self.seen[self._outcome(connection, number)] += 1
            except OSError as error:
                self.seen["lost"] += 1
                self.others.append(repr(error))
                return

    def _outcome(self, connection: http.client.HTTPConnection, number: int) -> str:
        status, found = ask(connection, self._x[number : number + 1])
        if status == 200:
            close = np.allclose(found["outputs"][0]["data"], self._expected[number], atol=1e-4)
            return "right" if close else "wrong"
        if status != 503:
            self.others.append(f"{status} {found}")
        return str(status)


def ask(connection: http.client.HTTPConnection, x: np.ndarray[Any, Any], **parameters: Any) -> tuple[int, Any]:
    data = {"name": INPUT, "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}
    connection.request("POST", "/v2/models/tiny/infer", json.dumps({"inputs": [data], "parameters": parameters}))
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def expected(bundle: Path, candidate: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with Bundle.load(bundle).session(candidate=candidate) as session:
        return np.concatenate([session.run(x[row : row + 1])[OUTPUT] for row in range(len(x))])


@pytest.mark.slow
def test_a_machine_that_dies_under_load_costs_no_answer(bundle: Path, cluster: Any) -> None:
    machines, second = cluster
    x = images(POOL, 5)
    options = ("--engine", "ray", "--replicas", 2, "--ray-address", machines.address, "--variants", "chosen", "--deadline", "20s")
    with running(bundle, options=options, environment=environment()) as server:
        with Load(server, expected(bundle, INT8, x), x) as load:
            await_answers(load, 200)
            assert replicas_on(second) == 1
            machines.remove_node(second, allow_graceful=False)
            await_answers(load, load.seen["right"] + 400)
            third = machines.add_node(**NODE)
            await_replica(third)
            await_answers(load, load.seen["right"] + 200)
            machines.remove_node(third, allow_graceful=False)
            await_answers(load, load.seen["right"] + 400)
        assert (load.seen["wrong"], load.seen["lost"], load.others) == (0, 0, [])
        assert set(load.seen) <= {"right", "503"}
        assert load.seen["503"] <= 0.02 * load.seen["right"], load.seen
        assert server.stop() == 0
        print(f"{load.seen['right']} right, {load.seen['503']} refused; tried again: {server.logged().count('a replica did not answer')}")


def replicas_on(machine: Any) -> int:
    """Processes that serve a model there."""
    (raylet,) = machine.all_processes["raylet"]
    children = psutil.Process(raylet.process.pid).children(recursive=True)
    return sum(any("ServeReplica" in part for part in child.cmdline()) for child in children)


def await_replica(machine: Any, within_s: float = 60) -> None:
    end = time.monotonic() + within_s
    while not replicas_on(machine):
        assert time.monotonic() < end, "no replica came to the new machine"
        time.sleep(0.1)


def await_answers(load: Load, count: int, within_s: float = 60) -> None:
    end = time.monotonic() + within_s
    while load.seen["right"] < count:
        assert time.monotonic() < end, f"too few answers: {load.seen} {load.others[:3]}"
        time.sleep(0.02)


@pytest.mark.slow
def test_answers_are_those_of_one_machine(bundle: Path) -> None:
    """A cluster of its own, which ends with the server; both variants, chosen by the front."""
    need_ray()
    x = images(6, 9)
    with running(bundle, options=("--engine", "ray"), environment=environment()) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        for name, candidate in (("chosen", INT8), ("full", BASELINE)):
            status, found = ask(connection, x, variant=name)
            assert (status, found["parameters"]["variant"]) == (200, candidate)
            np.testing.assert_allclose(np.reshape(found["outputs"][0]["data"], (6, 10)), expected(bundle, candidate, x), atol=1e-4)
        assert server.stop() == 0, server.logged()[-4000:]
        assert "SIGTERM received" not in server.logged(), "Ray's own handler aborts three seconds later"


@pytest.mark.slow
def test_what_ray_cannot_do_is_said(bundle: Path, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room, a bundle that changes under its replicas, feeds that the runtime refuses."""
    engine = RayEngine(RaySettings(address=cluster[0].address))
    try:
        engine.start()
        sessions = engine.open(Bundle.load(bundle), INT8)
        assert (sessions.batch, sessions.workers, sessions.inputs[0].name) == (8, 2, INPUT)
        with pytest.raises(RunError, match="has no input 'y'"):
            sessions.run({"y": images(1, 0)})
        no_room = RayEngine(RaySettings(replicas=3, least=3, start_s=3))
        with pytest.raises(UsageError, match="has not started 3 replicas within 3 s"):
            no_room.open(Bundle.load(bundle), BASELINE)
        sessions.close()
        other = tiny_bundle(tmp_path / "other")
        loaded = Bundle.load(other)
        monkeypatch.setattr("lowbit.serving.run.deployment.version_of", lambda _: "0" * 12)
        with pytest.raises(ModelError, match="another version"):
            engine.open(loaded, INT8)
    finally:
        engine.stop()


class Dying:
    """Stands for a handle whose first so many replicas do not answer: which of them a real one asks cannot be told beforehand."""

    def __init__(self, dead: int) -> None:
        self.dead, self.asked, self.cancelled = dead, 0, 0

    def remote(self, x: Any) -> Dying:
        self.asked += 1
        self._x = x
        return self

    def result(self, timeout_s: float) -> Any:
        if self.asked <= self.dead:
            raise TimeoutError(f"nothing within {timeout_s} s")
        return {"y": 2 * self._x["x"]}

    def cancel(self) -> None:
        self.cancelled += 1


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_a_batch_is_tried_twice_and_no_more(dead: int) -> None:
    need_ray()
    handle = Dying(dead)
    runs = RayRuns("app", handle, 0.1)
    if dead < 2:
        assert runs.run({"x": np.ones(2)})["y"].tolist() == [2, 2]
    else:
        with pytest.raises(Unavailable) as caught:
            runs.run({"x": np.ones(2)})
        assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
    assert (handle.asked, handle.cancelled) == (min(dead + 1, 2), dead)


# Without Ray -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--replicas", "2"), "Several replicas need Ray"),
        (("--engine", "ray", "--replicas", "x"), "neither a number nor a range"),
        (("--engine", "ray", "--replicas", "4:"), "neither a number nor a range"),
        (("--engine", "ray", "--replicas", "4:2"), "is no range"),
        (("--engine", "ray", "--replicas", "0"), "is no range"),
    ],
)
def test_replicas_are_read(
    options: tuple[str, ...], words: str, bundle: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = lowbit(capfd, monkeypatch, "serve", bundle, "--port", 0, "--no-grpc", *options)
    assert (done.code, words in done.err) == (2, True), done.err


def test_a_batch_that_nobody_answers_is_refused_once() -> None:
    """Each of its requests would find the same, one after the other."""
    calls = []

    def nobody(feeds: Any) -> Any:
        calls.append(len(feeds["x"]))
        time.sleep(0.05)
        raise Unavailable("No replica answered.", retry_after_s=1)

    async def ask_all() -> list[Any]:
        batcher = Batcher(nobody, Batching(max_batch=4))
        found = await asyncio.gather(*(batcher.submit({"x": np.ones((1, 1))}) for _ in range(4)), return_exceptions=True)
        batcher.close()
        return found

    found = asyncio.run(ask_all())
    assert [type(each) for each in found] == [Unavailable] * 4
    assert len({id(each) for each in found}) == 4  # each is told, and counted, by itself
    assert calls == [1, 3]


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="not installed") as caught:
        RayEngine(RaySettings()).start()
    assert "lowbit[ray]" in str(caught.value.hint)
