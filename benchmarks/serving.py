"""Servers against the bare runtime: what answering over a network costs, and what happens when too many ask.

    python benchmarks/serving.py                     about five minutes, after peers have been installed once
    python benchmarks/serving.py --only bare,rest    some of it; results are kept beside the others

One model (shaped like ResNet-50, images of 128 x 128, INT8 by NNCF, random weights: speed does not depend on them), one runtime (OpenVINO,
one thread), batches of at most 8, requests of one image. Bare loop and servers are pinned to core 0, the client to core 1. Each peer gets
the cheapest way in that it has: raw bytes over HTTP, over gRPC, or base64 in JSON. Peers live in environments of their own under
build/serving-peers.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from lowbit.serving.load import http_client
from lowbit.serving.load.load_targets import GrpcTarget, Model, RestTarget, describe
from lowbit.serving.load.loadtest import Objective, closed_loop, open_loop, until_it_breaks

HERE = Path(__file__).resolve().parent
PEERS = HERE / "serving_peers"
WORK = HERE.parent / "build" / "serving-bench"
ENVIRONMENTS = HERE.parent / "build" / "serving-peers"
RESULTS = HERE / "results" / "serving.json"
MAX_BATCH, WINDOW_S, CLIENTS = 8, 0.002, 16
SERVER_CORE, CLIENT_CORE = 0, 1
DEADLINE_S = 0.5
SIZE = 128
OBJECTIVE = Objective(0.2)
REQUIREMENTS = {"litserve": ["litserve==0.2.19"], "mlserver": ["mlserver==1.7.1"], "ray": ["ray[serve]==2.60.0"]}
INT8, FP32 = "int8-nncf@openvino", "fp32@openvino"
NAMES = ("bare", "rest", "grpc", "litserve", "mlserver", "ray", "saturation", "precisions", "recording")
Send = Callable[[int], Awaitable[int]]


# The artifact ---------------------------------------------------------------------------------------------------------


def bundle() -> Path:
    """A bundle with the model in FP32 and INT8; made once."""
    folder = WORK / "net"
    if (folder / "bundle.json").exists():
        return folder
    import calibration

    from lowbit.compress.quantize import quantize
    from lowbit.graph.load import load_model
    from lowbit.graph.prepare import prepare
    from lowbit.pipeline.recipes import INT8_NNCF

    for name in ("baseline", "model"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    source = folder / "baseline" / "model.onnx"
    calibration.SIZE = SIZE
    calibration.ResNet50().save(source)
    prepared = prepare(load_model(source), folder / "prepared.onnx")
    images = [{"x": np.random.default_rng(i).standard_normal((1, 3, SIZE, SIZE), np.float32)} for i in range(16)]
    quantize(source, prepared, INT8_NNCF, folder / "model" / "model.onnx", feeds=images)
    for left in folder.glob("prepared*"):
        left.unlink()
    write(folder, source)
    return folder


def write(folder: Path, source: Path) -> None:
    """The manifest, through the real writer; what was not measured is left out."""
    from lowbit.bundle.manifest import build_manifest, file_entries, write_manifest
    from lowbit.bundle.schema import CalibrationEntry, DataEntry, EnvironmentEntry, ValidationEntry
    from lowbit.graph.load import load_model
    from lowbit.types import Budget, Candidate, Decision, Latency, Measurement, Policy, Tuning

    tuning = Tuning(threads=1)

    def candidate(id: str, precision: str, artifact: str) -> Candidate:
        found = []
        for batch in (1, MAX_BATCH):
            p50 = bare(folder / artifact, batch, 1.0)["p50_ms"]
            found.append(Measurement(batch, 1, Latency(p50, p50, p50, p50, p50), 1000 * batch / p50, None, None, 3, False, tuning))
        return Candidate(id, *id.split("@"), precision, tuning, measurements=tuple(found), artifact=artifact)

    manifest = build_manifest(
        model=load_model(source),
        policy=Policy("classification", "top1", Budget.parse("1pp")),
        data=DataEntry(
            calibration=CalibrationEntry(sha256=None, n=16, how_selected="noise"), validation=ValidationEntry(sha256="0" * 64, n=0)
        ),
        environment=EnvironmentEntry(cpu=platform.processor() or "unknown", cores=2, isa=(), memory_bytes=0),
        baseline=candidate(FP32, "fp32", "baseline/model.onnx"),
        candidates=(candidate(INT8, "int8", "model/model.onnx"),),
        decision=Decision("ship", INT8, ("For this benchmark.",), (), ()),
        command="python benchmarks/serving.py",
        artifact="model/model.onnx",
        files=file_entries(folder, ("model", "baseline")),
    )
    write_manifest(manifest, folder)


def bare(artifact: Path, batch: int, seconds: float) -> dict[str, float]:
    """The runtime alone, in a process of its own on the servers' core."""
    command = [*pinned(), sys.executable, str(PEERS / "artifact.py"), str(artifact), str(batch), str(seconds)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def pinned() -> list[str]:
    return ["taskset", "-c", str(SERVER_CORE)]


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port: int = made.getsockname()[1]
        return port


# Servers --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(command: list[str], *, folder: Path = PEERS, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A server on its core, ended with all its children."""
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115
    made = subprocess.Popen(
        [*pinned(), *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
        env={**os.environ, **(environment or {})},
    )
    try:
        yield made
    except BaseException:
        log.seek(0)
        sys.stderr.write(log.read()[-3000:])
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            made.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            made.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(made.pid, signal.SIGKILL)


@contextlib.contextmanager
def lowbit(*options: str, serving: tuple[str, ...] = ()) -> Iterator[tuple[str, str, int]]:
    """`lowbit serve`: URL, address of gRPC, process id."""
    served = serving or (f"net={bundle()}",)
    command = [sys.executable, "-m", "lowbit", "serve", *served, "--port", "0", "--grpc-port", "0", "--output", "json", *options]
    with process(command, folder=HERE) as made:
        assert made.stdout is not None
        ready = json.loads(made.stdout.readline())
        yield ready["url"], ready["grpc"], made.pid


def images(count: int = 8) -> list[dict[str, Any]]:
    return [{"x": np.random.default_rng(i).standard_normal((1, 3, SIZE, SIZE), np.float32)} for i in range(count)]


async def rest(url: str, **headers: str) -> RestTarget:
    """The client of our REST."""
    return RestTarget(url, await describe(url, "net", {}), images(), headers)


class Plain:
    """A client that posts ready bodies to one address."""

    def __init__(self, port: int, target: str, kind: str, bodies: list[bytes]) -> None:
        self._port = port
        self._idle: list[http_client.Connection] = []
        self._requests = [http_client.request("POST", target, f"127.0.0.1:{port}", {"Content-Type": kind}, body) for body in bodies]

    async def __call__(self, number: int) -> int:
        request = self._requests[number % len(self._requests)]
        try:
            while self._idle:
                connection = self._idle.pop()
                if connection.open:
                    break
            else:
                connection = await http_client.connect("127.0.0.1", self._port)
            found = await connection.ask(request)
        except http_client.Failed:
            return 0
        if connection.open:
            self._idle.append(connection)
        return found.status


async def until_answered(send: Send, seconds: float = 90) -> None:
    """Waits for a server's first answer."""
    end = time.monotonic() + seconds
    while await send(0) != 200:
        if time.monotonic() > end:
            raise TimeoutError("the server does not answer")
        await asyncio.sleep(0.2)


async def both(send: Send, seconds: float, pid: int) -> dict[str, Any]:
    """Throughput and CPU time with many clients, and latency with one."""
    await until_answered(send)
    await closed_loop(send, CLIENTS, min(2.0, seconds))
    before = cpu_seconds(pid)
    many = await closed_loop(send, CLIENTS, seconds)
    cpu_ms = 1000 * (cpu_seconds(pid) - before) / max(many.ok, 1)
    one = await closed_loop(send, 1, seconds / 2)
    documents = {"many": many.document(), "one": one.document()}
    return {"throughput": many.throughput, "cpu_ms": cpu_ms, "p50_ms": documents["one"]["p50_ms"], **documents}


def run_rest(seconds: float) -> dict[str, Any]:
    async def work(url: str, pid: int) -> dict[str, Any]:
        return await both(await rest(url), seconds, pid)

    with lowbit() as (url, _, pid):
        return asyncio.run(work(url, pid))


def run_grpc(seconds: float) -> dict[str, Any]:
    async def work(url: str, address: str, pid: int) -> dict[str, Any]:
        target = GrpcTarget(address, await describe(url, "net", {}), images(), {})
        try:
            return await both(target, seconds, pid)
        finally:
            await target.close()

    with lowbit() as (url, address, pid):
        return asyncio.run(work(url, address, pid))


def peer(name: str) -> str:
    """The Python of a peer's environment; installed where it is missing."""
    python = ENVIRONMENTS / name / "bin" / "python"
    if not (ENVIRONMENTS / name / ".installed").exists():
        subprocess.run([shutil.which("python3.11") or sys.executable, "-m", "venv", str(ENVIRONMENTS / name)], check=True)
        from importlib.metadata import version

        with_ours = [f"openvino=={version('openvino')}", *REQUIREMENTS[name]]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *with_ours], check=True)
        (ENVIRONMENTS / name / ".installed").touch()
    return str(python)


def run_litserve(seconds: float) -> dict[str, Any]:
    port = free_port()
    bodies = [json.dumps({"x": base64.b64encode(each["x"].tobytes()).decode()}).encode() for each in images()]
    with process([peer("litserve"), "litserve_app.py", str(artifact()), str(port), str(MAX_BATCH), str(WINDOW_S)]) as made:
        return asyncio.run(both(Plain(port, "/predict", "application/json", bodies), seconds, made.pid))


def run_ray(seconds: float) -> dict[str, Any]:
    """Its own processes listen on all addresses: it runs where there is no network but loopback, and so does its client."""
    if "LOWBIT_ALONE" not in os.environ:
        inside = f"ip link set lo up && exec {sys.executable} {__file__} --only ray --seconds {seconds} --print"
        command = ["unshare", "--net", "sh", "-c", inside]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LOWBIT_ALONE": "1"}, check=False)
        if done.returncode:
            raise RuntimeError(f"ray: {done.stderr[-600:]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    port = free_port()
    bodies = [each["x"].tobytes() for each in images()]
    environment = {"RAY_USAGE_STATS_ENABLED": "0"}
    command = [peer("ray"), "ray_app.py", str(artifact()), str(port), str(MAX_BATCH), str(WINDOW_S)]
    with process(command, environment=environment) as made:
        assert made.stdout is not None
        if "ready" not in made.stdout.readline():
            raise RuntimeError("ray did not start")
        return asyncio.run(both(Plain(port, "/", "application/octet-stream", bodies), seconds, made.pid))


def run_mlserver(seconds: float) -> dict[str, Any]:
    async def work(port: int, pid: int) -> dict[str, Any]:
        target = GrpcTarget(f"127.0.0.1:{port}", Model("net", "", ()), images(), {})
        try:
            return await both(target, seconds, pid)
        finally:
            await target.close()

    ports = {name: free_port() for name in ("http_port", "grpc_port", "metrics_port")}
    with tempfile.TemporaryDirectory() as folder:
        settings = {"host": "127.0.0.1", **ports, "parallel_workers": 0, "debug": False, "use_structured_logging": False}
        (Path(folder) / "settings.json").write_text(json.dumps(settings))
        model = {
            "name": "net",
            "implementation": "mlserver_model.Model",
            "max_batch_size": MAX_BATCH,
            "max_batch_time": WINDOW_S,
            "parameters": {"uri": str(artifact())},
        }
        (Path(folder) / "model-settings.json").write_text(json.dumps(model))
        command = [str(Path(peer("mlserver")).with_name("mlserver")), "start", folder]
        with process(command, folder=Path(folder), environment={"PYTHONPATH": str(PEERS)}) as made:
            return asyncio.run(work(ports["grpc_port"], made.pid))


def artifact() -> Path:
    return bundle() / "model" / "model.onnx"


# Under pressure -------------------------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """Of a server with all its processes."""
    found = 0.0
    for each in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = each.cpu_times()
            found += times.user + times.system
    return found


def run_saturation(seconds: float) -> dict[str, Any]:
    """Twice as many requests as can be answered."""

    async def work(url: str, pid: int) -> dict[str, Any]:
        target = await rest(url, **{"X-Request-Timeout-Ms": str(int(1000 * DEADLINE_S))})
        await closed_loop(target, CLIENTS, 2)
        most = (await closed_loop(target, CLIENTS, seconds)).throughput
        memory: list[tuple[float, float]] = []

        async def watch() -> None:
            while True:
                memory.append((time.monotonic(), psutil.Process(pid).memory_info().rss / 1e6))
                await asyncio.sleep(0.25)

        watcher = asyncio.create_task(watch())
        step = await open_loop(target, 2 * most, 4 * seconds, 1)
        watcher.cancel()
        late = memory[2 * len(memory) // 3 :]  # before that buffers fill
        slope = float(np.polyfit(*map(np.array, zip(*late, strict=True)), 1)[0]) if len(late) > 2 else None
        after = await closed_loop(target, CLIENTS, seconds / 2)
        return {
            "capacity": most,
            "deadline_ms": 1000 * DEADLINE_S,
            **step.document(),
            "rss_mb": [memory[0][1], memory[-1][1]],
            "rss_slope_mb_per_s": slope,
            "throughput_after": after.throughput,
        }

    with lowbit() as (url, _, pid):
        return asyncio.run(work(url, pid))


def run_precisions(seconds: float) -> dict[str, Any]:
    """Requests a second at the same p99, in INT8 and in FP32."""

    async def work(url: str, variant: str) -> dict[str, Any]:
        target = await rest(url, **{"X-Lowbit-Variant": variant})
        most = (await closed_loop(target, CLIENTS, seconds / 2)).throughput
        found, best = await until_it_breaks(target, OBJECTIVE, seconds, first=0.6 * most, growth=1.2, halvings=2)
        return {"closed_loop": most, "best": best.document() if best else None, "steps": [step.document() for step in found]}

    with lowbit() as (url, _, _):
        report = {role: asyncio.run(work(url, role)) for role in ("chosen", "full")}
    best = [report[role]["best"] for role in ("chosen", "full")]
    return {"p99_ms": 1000 * OBJECTIVE.p99_s, **report, "ratio": best[0]["rate"] / best[1]["rate"] if all(best) else None}


def run_recording(seconds: float) -> dict[str, Any]:
    """CPU seconds of a request without being watched, with recording, and with recording and a rollout, in turns."""

    async def work(url: str, pid: int) -> float:
        target = await rest(url)
        await closed_loop(target, CLIENTS, 1)
        before = cpu_seconds(pid)
        step = await closed_loop(target, CLIENTS, seconds)
        return (cpu_seconds(pid) - before) / step.ok

    costs: dict[str, list[float]] = {"off": [], "recording": [], "rollout": []}
    for _ in range(3):
        for name, found in costs.items():
            with tempfile.TemporaryDirectory() as folder:
                serving = in_a_rollout(Path(folder) / "registry") if name == "rollout" else (f"net={bundle()}",)
                with lowbit("--no-record" if name == "off" else "--record", serving=serving) as (url, _, pid):
                    if name == "rollout":
                        until_both_are_loaded(url)
                    found.append(asyncio.run(work(url, pid)))
    extra = {
        name: float(np.median([on / off - 1 for on, off in zip(costs[name], costs["off"], strict=True)]))
        for name in ("recording", "rollout")
    }
    direct = watching_alone()
    share = sum(direct.values()) / 1e6 / float(np.median(costs["off"]))
    return {
        "cpu_ms": {name: [1000 * c for c in found] for name, found in costs.items()},
        "extra": extra,
        "microseconds": direct,
        "share": share,
    }


def in_a_rollout(folder: Path) -> tuple[str, ...]:
    """What to serve so that a rollout runs that never ends, and sends 1 % to the same model: what it costs is the watching."""
    from lowbit.registry.registry import Registry
    from lowbit.rollout.plan import Plan
    from lowbit.rollout.store import Rollouts

    other = folder.with_name("other")
    shutil.copytree(bundle(), other)
    document = json.loads((other / "bundle.json").read_text())
    (other / "bundle.json").write_text(json.dumps({**document, "notes": [*document["notes"], "The same once more."]}))
    with Registry.open(folder, create=True) as registry:
        registry.promote(registry.push(bundle(), "net", by="benchmark").version, by="benchmark", why="the first")
        plan = Plan.from_json({"steps": ["1%", "2%"], "step_s": 1e6, "deadline_s": 1e7, "min_requests": 1000, "look_s": 1, "shadow": 0})
        Rollouts(registry).start("net", registry.push(other, "net", by="benchmark").version, plan, by="benchmark")
    return "net", "--registry", str(folder)


def until_both_are_loaded(url: str) -> None:
    """Waits for the candidate: before that nobody is compared with it."""
    while True:
        with urllib.request.urlopen(f"{url}/v1/registry") as answer:
            (model,) = json.load(answer)["models"]
        if sum(version["loaded"] for version in model["versions"]) == 2:
            return
        time.sleep(0.2)


def watching_alone() -> dict[str, float]:
    """Microseconds that each part of watching one request of the champion takes; recording may take fewer requests than all."""
    from lowbit.serving.answer.answered import Answered, Caller
    from lowbit.serving.fleet.counting import StepCount
    from lowbit.serving.fleet.trial import Trial
    from lowbit.serving.protocol.requests import InferRequest
    from lowbit.serving.run import deployment
    from lowbit.serving.watch.metrics import Metrics
    from lowbit.serving.watch.recording import Recorder

    loaded = deployment.load(bundle(), roles=())
    try:
        answer = {"y": np.random.default_rng(0).standard_normal((1, 1000), np.float32)}
        found = Answered(answer, loaded.variants["chosen"], batch=1, queued_s=0.001, ran_s=0.006)
        request, caller = InferRequest(images(1)[0]), Caller("r")
        counts = StepCount("net-1", 0)
        counts.baseline.reader = loaded.reader
        trial = Trial(loaded, None, 0.0, counts)
        observers = {"metrics": Metrics(), "recording": Recorder(share=1.0)}

        def rollout(number: int) -> None:
            trial.side(f"session {number}")
            counts.baseline.answered(found, 0.008, 1)

        parts: dict[str, Callable[[int], None]] = {
            name: lambda _, observer=observer: observer.answered(loaded, request, caller, found, 0.008)  # type: ignore[misc]
            for name, observer in observers.items()
        }
        return {name: _microseconds(call) for name, call in {**parts, "rollout": rollout}.items()}
    finally:
        loaded.close()


def _microseconds(call: Callable[[int], None], times: int = 2000) -> float:
    for number in range(100):
        call(number)
    start = time.thread_time()
    for number in range(times):
        call(number)
    return 1e6 * (time.thread_time() - start) / times


def run_bare(seconds: float) -> dict[str, Any]:
    paths = {"int8": bundle() / "model" / "model.onnx", "fp32": bundle() / "baseline" / "model.onnx"}
    return {name: {str(batch): bare(path, batch, seconds) for batch in (1, MAX_BATCH)} for name, path in paths.items()}


# Report ---------------------------------------------------------------------------------------------------------------


def verdicts(report: dict[str, Any]) -> dict[str, Any]:
    """What was to be shown, with its numbers."""
    found: dict[str, Any] = {}
    loop = report.get("bare", {}).get("int8")
    servers = {name: report[name]["throughput"] for name in NAMES if "throughput" in report.get(name, {}) and name != "saturation"}
    if loop and "rest" in servers:
        found["rest_of_bare"] = servers["rest"] / loop[str(MAX_BATCH)]["rows_per_s"]
        found["added_p50_ms"] = report["rest"]["p50_ms"] - loop["1"]["p50_ms"]
        found["best_of_servers"] = max(servers, key=lambda name: servers[name])
    if loop and "grpc" in servers:
        found["grpc_of_bare"] = servers["grpc"] / loop[str(MAX_BATCH)]["rows_per_s"]
    if loop:  # less disturbed by other load on the machine than throughput is
        found["cpu_of_bare"] = {
            name: report[name]["cpu_ms"] / loop[str(MAX_BATCH)]["cpu_ms"] for name in servers if "cpu_ms" in report[name]
        }
    return found


def table(report: dict[str, Any]) -> str:
    loop = report.get("bare", {}).get("int8", {})
    lines = ["| server | images/s | of the bare loop | p50 alone | CPU an image |", "|---|---|---|---|---|"]
    if loop:
        best, p50 = loop[str(MAX_BATCH)], loop["1"]["p50_ms"]
        lines.append(f"| bare loop, batch {MAX_BATCH} | {best['rows_per_s']:.1f} | 100 % | {p50:.2f} ms | {best['cpu_ms']:.2f} ms |")
    for name in ("rest", "grpc", "litserve", "mlserver", "ray"):
        found = report.get(name)
        if not found:
            continue
        label = {"rest": "lowbit, REST", "grpc": "lowbit, gRPC"}.get(name, name)
        if "error" in found:
            lines.append(f"| {label} | not run: {found['error'][:80]} | | | |")
            continue
        share = f"{found['throughput'] / loop[str(MAX_BATCH)]['rows_per_s']:.0%}" if loop else ""
        lines.append(f"| {label} | {found['throughput']:.1f} | {share} | {found['p50_ms']:.2f} ms | {found['cpu_ms']:.2f} ms |")
    return "\n".join([*lines, *sentences(report)])


def sentences(report: dict[str, Any]) -> list[str]:
    """What happened under pressure, and what INT8 is worth."""
    found = []
    if "capacity" in (step := report.get("saturation", {})):
        refused = sum(step["statuses"].get(status, 0) for status in ("503", "504")) / step["sent"]
        first, last = step["rss_mb"]
        times = f"p99 {step['p99_ms']:.0f} ms with a deadline of {step['deadline_ms']:.0f} ms"
        rates = f"{step['rate']:.0f} requests a second, twice what can be answered: {step['throughput']:.0f} answered a second"
        found += ["", f"At {rates}, {times}, {refused:.0%} refused with 503 or 504, resident memory {first:.0f} to {last:.0f} MB."]
    if (precisions := report.get("precisions", {})).get("ratio"):
        best = [precisions[role]["best"]["rate"] for role in ("chosen", "full")]
        found += ["", f"With p99 within {precisions['p99_ms']:.0f} ms: INT8 {best[0]:.0f} requests a second, FP32 {best[1]:.0f}."]
    if isinstance(parts := (recording := report.get("recording", {})).get("microseconds"), dict):
        told = ", ".join(f"{name} {value:.1f}" for name, value in parts.items())
        extra, share = recording["extra"], recording["share"]
        found += [
            "",
            f"Watching one request takes {sum(parts.values()):.0f} microseconds ({told}), {share:.2%} of its CPU time, where a "
            f"rollout runs. Measured from outside: recording {extra['recording']:+.2%}, with a rollout {extra['rollout']:+.2%}.",
        ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(NAMES), help=f"some of {','.join(NAMES)}")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--print", action="store_true", help="print one result, keep nothing")
    args = parser.parse_args()
    bundle()
    os.sched_setaffinity(0, {CLIENT_CORE})
    work: dict[str, Callable[[float], dict[str, Any]]] = {name: globals()[f"run_{name}"] for name in NAMES}
    names = [name for name in NAMES if name in args.only.split(",")]
    if args.print:
        print(json.dumps(work[names[0]](args.seconds)))
        return 0
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names:
        print(f"• {name}", file=sys.stderr, flush=True)
        try:
            report[name] = work[name](args.seconds)
        except Exception as error:
            report[name] = {"error": f"{type(error).__name__}: {error}"[:400]}
        report["when"] = datetime.now(UTC).isoformat(timespec="seconds")
        report["verdicts"] = verdicts(report)
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(table(report) + "\n")
    print(table(report))
    print(json.dumps(report["verdicts"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
