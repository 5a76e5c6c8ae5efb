"""Mixed load for as long as one likes, with everything that may happen to a server meanwhile; each answer is checked against its request.

    python benchmarks/soak.py --minutes 30        what `make soak` runs

REST, gRPC and predictions of samples come from several clients at once. In turn, the bundle changes and is loaded again, Redis is killed
and started again, and a successor takes over the ports before the server is told to stop. At the end: no wrong answer, no lost request,
clean exits, and memory that does not grow.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "bundle"), str(TESTS / "serving")]

from redis_case import RedisServer, redis_server  # noqa: E402
from serving_case import BASELINE, INT8, OUTPUT, Running, running, tiny_bundle  # noqa: E402

from lowbit.bundle.bundle import Bundle  # noqa: E402
from lowbit.serving.load import http_client  # noqa: E402
from lowbit.serving.load.load_targets import GrpcTarget, Model, RestTarget, parse_answer  # noqa: E402
from small_models import images  # noqa: E402

POOL = 64
CLIENTS = {"rest": 3, "grpc": 2, "predict": 1}
PAUSE_S = 0.002
"""Between a client's requests: the soak looks for leaks and mistakes, and leaves the machine some room."""
MODEL = Model("tiny", "", (("input.1", "FP32", (-1, 3, 8, 8)),))
SLOPE_MB_PER_MIN = 1.0
LIVED_S = 120.0
"""Of shorter lives a slope is only the last allocation before the end."""
AGAIN = ("UNAVAILABLE", "CANCELLED")
"""What a server that leaves says over gRPC to what comes in its last moment; the client asks again, and gets its answer."""


@dataclass
class Soak:
    """What was seen so far.

    Attributes:
        seen: Outcome -> requests.
        wrong: The first few answers that were not those to their requests.
        memory: Process id -> (seconds, resident MB).
        events: What was done to the server.
    """

    expected: dict[str, Any]
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    versions: set[str] = field(default_factory=set)

    def check(self, way: str, rows: Any, variant: str, got: Any) -> None:
        """Counts an answer as right or wrong."""
        right = got.shape == (len(rows), 10) and np.array_equal(got, self.expected[variant][rows])
        self.seen[f"{way} {'right' if right else 'wrong'}"] += 1
        if not right and len(self.wrong) < 10:
            self.wrong.append(f"{way}: rows {rows} by {variant}")

    def slope(self) -> float:
        """Largest growth of any one process in MB a minute, from the second half of its life; 0 where it lived less than two minutes."""
        found = [0.0]
        for points in self.memory.values():
            later = points[len(points) // 2 :]
            if len(later) > 4 and points[-1][0] - points[0][0] > LIVED_S:
                times, sizes = map(np.array, zip(*later, strict=True))
                found.append(60 * float(np.polyfit(times, sizes, 1)[0]))
        return max(found)


def requests() -> list[tuple[list[int], dict[str, Any]]]:
    """Rows of the pool, one to three in a request, and the feeds."""
    rng, pool = np.random.default_rng(0), images(POOL)
    rows = [rng.choice(POOL, 1 + number % 3, replace=False).tolist() for number in range(48)]
    return [(each, {"input.1": pool[each]}) for each in rows]


async def rest_client(soak: Soak, port: int, first: int, stop: asyncio.Event) -> None:
    """Asks over REST, in turn of both variants."""
    known = requests()
    targets = {
        variant: RestTarget(f"http://127.0.0.1:{port}", MODEL, [feeds for _, feeds in known], {"x-lowbit-variant": role})
        for variant, role in ((INT8, "chosen"), (BASELINE, "full"))
    }
    number = first
    while not stop.is_set():
        variant = (INT8, BASELINE)[number % 2]
        try:
            response = await targets[variant].ask(number)
        except http_client.Failed as error:
            soak.seen[f"rest lost: {error}"] += 1
            continue
        if response.status == 200:
            answer = parse_answer(response)
            soak.versions.add(answer.version)
            soak.check("rest", known[number % len(known)][0], str(answer.parameters["variant"]), answer.outputs[OUTPUT])
        else:
            soak.seen[f"rest {response.status}"] += 1
        number += 5
        await asyncio.sleep(PAUSE_S)
    for target in targets.values():
        await target.close()


async def grpc_client(soak: Soak, port: int, first: int, stop: asyncio.Event) -> None:
    """Asks over gRPC; see `AGAIN`."""
    import grpc

    known = requests()
    target = GrpcTarget(f"127.0.0.1:{port}", MODEL, [feeds for _, feeds in known], {}, channels=1)
    number = first
    while not stop.is_set():
        try:
            found = await target.ask(number)
        except grpc.aio.AioRpcError as error:
            soak.seen[f"grpc {error.code().name}"] += 1
            await asyncio.sleep(0.02)
            continue
        rows = known[number % len(known)][0]
        got = np.frombuffer(found.raw_output_contents[0], np.float32).reshape(-1, 10)
        soak.check("grpc", rows, found.parameters["variant"].string_param, got)
        number += 7
        await asyncio.sleep(PAUSE_S)
    await target.close()


async def predict_client(soak: Soak, port: int, first: int, stop: asyncio.Event) -> None:
    """Sends arrays through the model's own preprocessing; the right answer is what the bundle itself predicts."""
    rng = np.random.default_rng(1)
    samples = rng.integers(0, 255, (16, 8, 8, 3), dtype=np.uint8)
    host = f"127.0.0.1:{port}"
    number = first
    connection: http_client.Connection | None = None
    bodies = [png(sample) for sample in samples]
    while not stop.is_set():
        one = number % len(samples)
        whole = http_client.request("POST", "/v1/models/tiny/predict", host, {"Content-Type": "image/png"}, bodies[one])
        try:
            if connection is None or not connection.open:
                connection = await http_client.connect("127.0.0.1", port)
                response = await connection.ask(whole)
            else:
                response = await connection.ask(whole)
        except http_client.Unsent:
            connection = None  # it was closed between two requests
            continue
        except http_client.Failed as error:
            soak.seen[f"predict lost: {error}"] += 1
            continue
        if response.status == 200:
            text = json.loads(response.body)
            soak.seen["predict right" if close(text, soak.expected["predict"][one]) else "predict wrong"] += 1
        else:
            soak.seen[f"predict {response.status}"] += 1
        number += 3
        await asyncio.sleep(5 * PAUSE_S)


def png(sample: Any) -> bytes:
    """An image file."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(sample).save(buffer, "PNG")
    return buffer.getvalue()


def close(document: Any, expected: Any) -> bool:
    """Whether a prediction holds the expected logits, wherever the document has them."""
    outputs = {each["name"]: each["data"] for each in document.get("outputs", [])}
    return OUTPUT in outputs and np.allclose(np.array(outputs[OUTPUT], np.float32).ravel(), expected, atol=1e-5)


@contextlib.asynccontextmanager
async def clients(soak: Soak, rest_port: int, grpc_port: int) -> AsyncIterator[None]:
    """All of them, until the end."""
    stop = asyncio.Event()
    makers = {"rest": (rest_client, rest_port), "grpc": (grpc_client, grpc_port), "predict": (predict_client, rest_port)}
    tasks = [
        asyncio.create_task(maker(soak, port, number, stop)) for way, (maker, port) in makers.items() for number in range(CLIENTS[way])
    ]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def live(soak: Soak, folder: Path, redis: RedisServer, seconds: float, note: Any) -> None:
    """Servers one after the other, with all that may happen."""
    end = time.monotonic() + seconds
    beat = max(2.0, seconds / 12)  # the longer the soak, the longer each server lives: what leaks slowly shows
    common = ("--reuse-port", "--linger", "1s", "--cache", 8, "--redis", redis.url, "--cache-ttl", "2s")
    servers = contextlib.ExitStack()
    with servers:
        server = servers.enter_context(running(folder, options=common))
        ports = ("--port", server.port, "--grpc-port", (server.grpc or "").rpartition(":")[2])
        async with clients(soak, server.port, int(ports[3])):
            turn = 0
            while time.monotonic() < end:
                await watch(soak, server, beat)
                happens = ("reload", "redis", "successor")[turn % 3]
                soak.events[happens] += 1
                turn += 1
                note(f"{happens}: {dict(soak.seen)}")
                if happens == "reload":
                    tiny_bundle(folder, note=f"turn {turn}")
                    server.process.send_signal(1)  # SIGHUP
                elif happens == "redis":
                    redis.stop()
                    await watch(soak, server, min(2.0, beat))
                    redis.start()
                else:
                    next_one = servers.enter_context(await asyncio.to_thread(lambda: entered(running(folder, options=(*common, *ports)))))
                    code = await asyncio.to_thread(server.stop)
                    soak.events[f"exit {code}"] += 1
                    server = next_one
            await watch(soak, server, min(2.0, beat))
        soak.events[f"exit {await asyncio.to_thread(server.stop)}"] += 1


class entered:
    """A context that was entered elsewhere, in a thread."""

    def __init__(self, context: Any) -> None:
        self._context, self._value = context, context.__enter__()

    def __enter__(self) -> Running:
        found: Running = self._value
        return found

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


async def watch(soak: Soak, server: Running, seconds: float) -> None:
    """Looks at the memory for a while."""
    process = psutil.Process(server.process.pid)
    for _ in range(max(1, int(seconds / 0.5))):
        with contextlib.suppress(psutil.Error):
            soak.memory.setdefault(process.pid, []).append((time.monotonic(), process.memory_info().rss / 1e6))
        await asyncio.sleep(0.5)


def soak(seconds: float, folder: Path, note: Any = str) -> tuple[Soak, dict[str, Any]]:
    """Soaks a server.

    Returns:
        What was seen, and the report.
    """
    bundle = tiny_bundle(folder / "tiny")
    found = Soak(answers(bundle))
    with redis_server() as redis:
        asyncio.run(live(found, bundle, redis, seconds, note))
    memory = {str(pid): [round(points[0][1], 1), round(points[-1][1], 1)] for pid, points in found.memory.items()}
    report = {
        "seconds": seconds,
        "seen": dict(found.seen),
        "events": dict(found.events),
        "versions": len(found.versions),
        "rss_mb": memory,
        "rss_slope_mb_per_min": round(found.slope(), 3),
        "problems": problems(found),
    }
    return found, report


def problems(found: Soak) -> list[str]:
    """What must not be."""
    bad = [f"{count} x {what}" for what, count in found.seen.items() if "wrong" in what or "lost" in what]
    bad += [f"{count} x {what}" for what, count in found.seen.items() if what.split()[1] not in ("right", "wrong", "lost:", *AGAIN)]
    bad += [f"{what}" for what in found.events if what.startswith("exit") and what != "exit 0"]
    bad += [f"nothing came of {way}" for way in CLIENTS if not found.seen[f"{way} right"]]
    return bad


def answers(bundle: Path) -> dict[str, Any]:
    """What is right: each variant's answers to the pool, and the bundle's own predictions."""
    opened = Bundle.load(bundle)
    found: dict[str, Any] = {}
    for variant in (INT8, BASELINE):
        with opened.session(candidate=variant) as session:
            found[variant] = session.run(images(POOL))[OUTPUT]
    samples = np.random.default_rng(1).integers(0, 255, (16, 8, 8, 3), dtype=np.uint8)
    with opened.session() as session:
        found["predict"] = session.predict(list(samples))[OUTPUT]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found, report = soak(60 * args.minutes, Path(folder), lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(report, indent=1))
    grows = found.slope() > SLOPE_MB_PER_MIN and args.minutes >= 5
    return 1 if report["problems"] or grows else 0


if __name__ == "__main__":
    sys.exit(main())
