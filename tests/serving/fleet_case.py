"""A registry with versions of a small model, and clients that ask all the time: what the tests of serving from a registry share."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from serving_case import INPUT, Clients, Running, running, tiny_bundle, until
from test_life import call

from lowbit.registry.records import ModelVersion
from lowbit.registry.registry import Registry
from lowbit.rollout.plan import Plan
from lowbit.rollout.records import Rollout
from lowbit.rollout.store import Rollouts
from small_models import images

ROWS = 8
BY = "a test"
GUARDED = {"guardrails": [{"kind": "errors", "margin": "20%"}]}
"""A healthy candidate passes this soon."""


def body(number: int = 0, rows: int = ROWS) -> bytes:
    """A request over REST with some rows of `images(64)`."""
    x = images(64)[number : number + rows]
    tensor = {"name": INPUT, "datatype": "FP32", "shape": list(x.shape), "data": [round(float(value), 4) for value in x.ravel()]}
    return json.dumps({"inputs": [tensor]}).encode()


@dataclass
class Asking(Clients):
    """Clients on kept connections, each with sessions of its own; every answer must come.

    Attributes:
        versions: Of each answer, with when it was asked for and came.
    """

    ports: tuple[int, ...]
    number: int = 3
    pause_s: float = 0.004
    versions: list[tuple[float, float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.number)
        self._bodies = [body(8 * each) for each in range(8)]
        self._lock = threading.Lock()

    def ask(self, number: int) -> None:
        """Asks until it is told to stop."""
        connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=30) for port in self.ports]
        count = number
        while not self.stopped.is_set():
            count += self.number
            connection, start = connections[count % len(connections)], time.time()
            try:
                connection.request("POST", "/v2/models/tiny/infer", self._bodies[count % 8], {"X-Lowbit-Session": f"{count}"})
                answer = connection.getresponse()
                document = json.loads(answer.read())
            except (OSError, http.client.HTTPException):
                self.seen["lost"] += 1
                connection.close()
                time.sleep(0.05)
                continue
            found = document["model_version"] if answer.status == 200 else str(answer.status)
            with self._lock:
                self.seen[found if answer.status == 200 else f"status {found}"] += 1
                self.versions.append((start, time.time(), found))
            time.sleep(self.pause_s)

    def first(self, version: str, since: float) -> float:
        """When the first answer of a version came that was asked for after that; waits for it."""

        def found() -> list[float]:
            with self._lock:
                return [end for start, end, each in self.versions if each == version and start >= since]

        until(found, 30)
        return min(found())

    def last(self, version: str) -> float:
        """When the last request was sent that a version answered."""
        with self._lock:
            return max((start for start, _, each in self.versions if each == version), default=0.0)


@dataclass(frozen=True)
class Case:
    """A registry with a champion.

    Attributes:
        folder: Of the registry.
        registry: Open.
        rollouts: Of it.
    """

    folder: Path
    registry: Registry
    rollouts: Rollouts

    def push(self, bundle: Path) -> ModelVersion:
        """A version of "tiny"."""
        return self.registry.push(bundle, "tiny", by=BY).version

    def start(self, candidate: ModelVersion, **plan: Any) -> Rollout:
        """A rollout that moves quickly."""
        document = {"steps": ["50%", "100%"], "step_s": 1, "min_requests": 50, "look_s": 0.5, "deadline_s": 600, "shadow": "50%", **plan}
        return self.rollouts.start("tiny", candidate, Plan.from_json(document), by=BY)

    def ended(self, rollout: Rollout, seconds: float = 60.0) -> Rollout:
        """The rollout once it has ended."""
        until(lambda: not self.rollouts.get(rollout.id).open, seconds)
        return self.rollouts.get(rollout.id)


def opened(folder: Path, champion: Path) -> Iterator[Case]:
    """A registry with one bundle, its champion; for fixtures."""
    with Registry.open(folder, create=True) as registry:
        case = Case(folder, registry, Rollouts(registry))
        registry.promote(case.push(champion), by=BY, why="the first")
        yield case


# Fixtures, by their names: a module imports what its tests ask for.


@pytest.fixture(scope="module", name="case")
def a_case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """A registry whose champion is the first bundle."""
    root = tmp_path_factory.mktemp("fleet")
    yield from opened(root / "registry", tiny_bundle(root / "first" / "tiny", note="first"))


@pytest.fixture(scope="module", name="other")
def another(case: Case, tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    """A version as good as the champion."""
    return case.push(tiny_bundle(tmp_path_factory.mktemp("other") / "tiny", note="other"))


@pytest.fixture(scope="module", name="champion")
def the_champion(case: Case) -> ModelVersion:
    """As the registry has it when it is first asked for."""
    return case.registry.resolve("tiny@champion")


@pytest.fixture(scope="module", name="server")
def a_server(case: Case) -> Iterator[Running]:
    """Of the champion."""
    with running("tiny@champion", options=("--registry", case.folder)) as made:
        yield made


def versions(server: Running, **headers: str) -> list[str]:
    """Of "tiny", that a server says it has."""
    return list(call(f"{server.url}/v2/models/tiny", **headers)[1]["versions"])
