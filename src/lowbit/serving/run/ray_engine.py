"""Variants as deployments of Ray Serve: several replicas, on any machine of a cluster, behind our own front.

The front stays the door: protocol, admission, batches, routing, cache and drain are its own. What goes through Ray is one finished batch at
a time. So every answer is found the same way as on one machine, and Ray's HTTP proxies are never started.

A replica opens the bundle from the path that the front has; it must be there on every machine. It refuses to start where the bundle is
another version, so that a replica that is started again later never answers for what was deployed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from lowbit.bundle.bundle import Bundle
from lowbit.bundle.manifest import FILE_NAME, candidate_of
from lowbit.errors import LowbitError, ModelError, RunError, UsageError
from lowbit.serving.protocol.refusals import Refusal, Unavailable
from lowbit.serving.run.sessions import Sessions, open_sessions
from lowbit.serving.watch import logs
from lowbit.types import Array, Candidate, Feeds, TensorInfo

Opener = Callable[[Bundle, str], Sessions]
"""Opens a candidate of a bundle."""

LOOPBACK = "127.0.0.1"
ONGOING = 2
"""Batches that a replica may hold: one that runs, one on its way."""
TRIES, PAUSE_S = 2, 0.05
POLL_S = 0.1
LEAST_S, SLOWER = 10.0, 50.0
"""A replica that has not answered after so long, or so many times what was measured, counts as dead."""
HEALTH_S, UNHEALTHY_S = 1.0, 5.0


@dataclass(frozen=True)
class RaySettings:
    """Of the engine.

    Attributes:
        replicas: Of each variant; with more than `least` their number follows the load.
        least: Of each variant.
        address: Of a running cluster, "host:port"; None starts one on this machine, which ends with the server.
        start_s: Replicas must be ready by then.
    """

    replicas: int = 1
    least: int = 1
    address: str | None = None
    start_s: float = 120.0


@contextlib.asynccontextmanager
async def opener_for(settings: RaySettings | None) -> AsyncIterator[Opener]:
    """How variants are opened: in this process, or on Ray where there are settings for it. On the way out Ray is left.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at the address.
    """
    if settings is None:
        yield open_sessions
        return
    engine = RayEngine(settings)
    await asyncio.to_thread(engine.start)
    take_back_sigterm()
    try:
        yield engine.open
    finally:
        await asyncio.to_thread(engine.stop)


def take_back_sigterm() -> None:
    """Gives SIGTERM back to whoever had it before Ray: Ray's handler prints a stack and aborts the process three seconds later.

    Draining takes longer than that, and so does leaving a cluster on a busy machine. From the main thread, which alone may; elsewhere
    nothing is changed.
    """
    before = signal.getsignal(signal.SIGTERM)
    if before is None or threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, before)
    signal.siginterrupt(signal.SIGTERM, False)  # as the event loop had it: calls go on


class RayEngine:
    """Ray Serve, as a place to open variants on."""

    def __init__(self, settings: RaySettings) -> None:
        """Not started yet."""
        self._settings = settings
        self._opened: list[RayRuns] = []

    def start(self) -> None:
        """Joins the cluster, or starts one on this machine.

        Raises:
            UsageError: Ray is not installed, or there is no cluster at the address.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
            from ray import serve
        except ImportError as error:
            raise UsageError("Ray is not installed.", "pip install 'lowbit[ray]'.") from error
        address = self._settings.address
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            if address is None:
                ray.init("local", include_dashboard=False, _node_ip_address=LOOPBACK, log_to_driver=False, configure_logging=False)
            else:
                ray.init(address, log_to_driver=False, configure_logging=False, namespace="lowbit")
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = f"There is no Ray cluster at {address}" if address else "Ray does not start here"
            hint = "Give the address that `ray start` said; this machine must be part of that cluster."
            raise UsageError(f"{where}: {_line(error)}.", hint) from error
        serve.start(proxy_location="Disabled")
        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # set up anew by the start

    def stop(self) -> None:
        """Takes what is still deployed away, and leaves the cluster."""
        import ray

        for runs in self._opened:
            with contextlib.suppress(Exception):  # it may be gone with its cluster
                runs.close()
        with contextlib.suppress(Exception):
            ray.shutdown()

    def open(self, bundle: Bundle, candidate: str) -> Sessions:
        """Deploys a candidate, waits for its replicas, and gives what looks like its sessions.

        Raises:
            UsageError: no such candidate, or the cluster has no room.
            ModelError: it does not run there.
        """
        runs = _deploy(bundle, candidate_of(bundle.manifest.entry(candidate)), self._settings)
        self._opened = [each for each in self._opened if not each.closed] + [runs]
        try:
            facts = runs.facts()
        except BaseException:
            runs.close()
            raise
        runs.inputs, runs.outputs = facts.inputs, facts.outputs
        return Sessions({}, {}, runs, facts.batch, ONGOING * self._settings.replicas)


@dataclass(frozen=True)
class Facts:
    """What a replica knows of its sessions."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    batch: int


class Replica:
    """Runs in a process of Ray's."""

    def __init__(self, folder: str, candidate: str, version: str) -> None:
        """Opens the bundle.

        Raises:
            ModelError: another version lies there now.
        """
        from lowbit.serving.run.deployment import version_of

        if not (Path(folder) / FILE_NAME).is_file():
            raise UsageError("The bundle is not on this machine.", "Put it under the same path on every machine.")
        if version_of(Path(folder)) != version:
            raise ModelError(f"The bundle is another version than {version}.", "Load it again: kill -HUP, or /v1/admin/reload.")
        self._sessions = open_sessions(Bundle.load(folder), candidate)
        self._turn = asyncio.Semaphore(self._sessions.workers)

    async def facts(self) -> Facts:
        """Of the sessions."""
        return Facts(self._sessions.inputs, self._sessions.outputs, self._sessions.batch)

    async def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """Runs a batch; in a thread, so that the replica still answers whether it is well."""
        async with self._turn:
            return await asyncio.to_thread(self._sessions.run, feeds)


def _deploy(bundle: Bundle, candidate: Candidate, settings: RaySettings) -> RayRuns:
    from ray import serve

    from lowbit.serving.run.deployment import version_of

    folder = bundle.folder.resolve()
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"lowbit-{folder.name}-{candidate.id}-{uuid4().hex[:8]}")
    options: dict[str, Any] = {
        "max_ongoing_requests": ONGOING,
        "ray_actor_options": {"num_cpus": candidate.tuning.threads or bundle.manifest.environment.cores},
        "health_check_period_s": HEALTH_S,
        "health_check_timeout_s": UNHEALTHY_S,
        "graceful_shutdown_timeout_s": 5.0,
    }
    if settings.least < settings.replicas:
        scaling = {"min_replicas": settings.least, "max_replicas": settings.replicas, "target_ongoing_requests": 1}
        options["autoscaling_config"] = scaling
    else:
        options["num_replicas"] = settings.replicas
    deployment: Any = serve.deployment(Replica)  # Ray's own types call it a function
    app = deployment.options(name="model", **options).bind(str(folder), candidate.id, version_of(folder))
    try:
        return RayRuns(name, _ready(name, app, settings), _patience(candidate))
    except BaseException:
        serve.delete(name, _blocking=False)
        raise


def _ready(name: str, app: Any, settings: RaySettings) -> Any:
    """The handle of an application whose replicas are there. (Ray itself would wait for room for ever.)

    Raises:
        ModelError: they cannot start.
        UsageError: the cluster has no room for them.
    """
    from ray import serve

    target = serve.RunTarget(app, name=name, route_prefix=None)
    (handle,) = serve.run_many([target], wait_for_applications_running=False)
    end = time.monotonic() + settings.start_s
    while time.monotonic() < end:
        found = serve.status().applications.get(name)
        if found is not None and found.status == "RUNNING":
            return handle
        if found is not None and found.status == "DEPLOY_FAILED":
            messages = "\n".join([found.message, *(each.message for each in found.deployments.values())])
            raise ModelError(f"A replica does not start: {_cause(messages)}", "Ray's logs on its machine say more.")
        time.sleep(POLL_S)
    raise UsageError(
        f"Ray has not started {settings.least} replicas within {settings.start_s:g} s.",
        "Ask for fewer --replicas, load fewer --variants, or add machines with free CPUs.",
    )


def _cause(text: str) -> str:
    """The last error of a traceback, without paths."""
    lines = [line.strip() for line in text.splitlines() if re.match(r"\s*[\w.]*(Error|Exception)\b", line)]
    return (lines[-1] if lines else text.strip().splitlines()[-1] if text.strip() else "no reason was given").rstrip(".") + "."


def _patience(candidate: Candidate) -> float:
    slowest = max((each.latency_ms.p50 for each in candidate.measurements), default=0.0)
    return max(LEAST_S, SLOWER * slowest / 1000)


class RayRuns:
    """Looks like a session, and runs on whichever replica has room. See `lowbit.serving.run.sessions.Runs`."""

    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()

    def __init__(self, name: str, handle: Any, patience_s: float) -> None:
        """Of an application that is deployed."""
        self.closed = False
        self._name, self._handle, self._patience_s = name, handle, patience_s

    def facts(self) -> Facts:
        """What the replicas run."""
        found: Facts = self._asked(self._handle.facts)
        return found

    def run(self, x: Feeds) -> dict[str, Array]:
        """Runs a batch on a replica; where that one dies, once more on another: a run changes nothing, so it may be repeated.

        Raises:
            RunError: the runtime refuses the feeds.
            Unavailable: no replica answered.
        """
        found: dict[str, Array] = self._asked(self._handle, x)
        return found

    def close(self) -> None:
        """Takes the application away, behind what it still runs. Closing twice is fine."""
        if self.closed:
            return
        self.closed = True
        from ray import serve

        serve.delete(self._name, _blocking=False)

    def _asked(self, method: Any, *arguments: Any) -> Any:
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import RayServeException

        for left in reversed(range(TRIES)):
            answer = method.remote(*arguments)
            try:
                return answer.result(timeout_s=self._patience_s)
            except RayTaskError as error:  # the model's own
                raise _own(error.cause) from error
            except (RayError, RayServeException, TimeoutError) as error:  # the replica's
                logs.warn("a replica did not answer", application=self._name, why=type(error).__name__, tries_left=left)
                answer.cancel()
                time.sleep(PAUSE_S)
        raise Unavailable("No replica answered.", retry_after_s=1)


def _own(cause: BaseException) -> Exception:
    if isinstance(cause, LowbitError | Refusal):
        return cause
    return RunError(f"The replica failed: {type(cause).__name__}.")


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
