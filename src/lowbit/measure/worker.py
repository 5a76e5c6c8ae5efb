"""One variant, alone in its process: `python -m lowbit.measure.worker`, started by lowbit.measure.race.

It speaks JSON, a line each way. The first line in says what to load, the answer is `ready`; every further line asks for
one turn and is answered with its seconds, or for a profile (the last request then) and is answered with its kernels.
Between turns it waits for input, so that nothing of it runs. Standard output carries these lines and nothing else: what
libraries print goes to standard error. At the end of its input, which is also what it sees when the parent is killed, it
ends at once.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

WARM_UP_CALLS = 3
WARM_UP_S = 0.2
REST_S = 0.01
LONGEST_REST_S = 1.0
"""After a turn the worker waits until its thread pools sleep, before it says that it is done and another's turn begins.
onnxruntime's go on spinning for some 50 ms, by processor 3 to 500."""

TASKS = Path("/proc/self/task")

Call = Callable[[], object]


def main() -> None:
    protocol = _take_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it closes our input
    requests = _requests()
    try:
        spec = requests.get()
        variant, ready = _load(spec)
        rest()
        _send(protocol, ready)
        gc.disable()
        while True:
            request = requests.get()
            answer = variant.profile(spec, request["profile"]) if "profile" in request else variant.turn(**request)
            gc.collect()
            rest()
            _send(protocol, answer)
    except Exception as error:
        from lowbit.errors import LowbitError

        text = error.message if isinstance(error, LowbitError) else f"{type(error).__name__}: {error}"
        _send(protocol, {"error": text})
        sys.exit(1)


class Variant:
    """A prepared call for each stream, and the counters around a turn."""

    def __init__(self, calls: list[Call], joules: Callable[[], float] | None) -> None:
        self._calls = calls
        self._joules = joules

    def turn(self, iterations: int, seconds: float, warm_up: int) -> dict[str, Any]:
        """Warm-up calls, then the timed ones: `iterations` of them on one stream, or `seconds` long on several."""
        from lowbit.measure.load import busy_seconds
        from lowbit.measure.memory import peak_bytes

        for call in self._calls:
            for _ in range(warm_up):
                call()
        joules = self._joules() if self._joules else None
        busy, cpu, wall = busy_seconds(), time.process_time(), time.perf_counter()
        calls = timed(self._calls[0], iterations) if len(self._calls) == 1 else concurrently(self._calls, seconds)
        wall = time.perf_counter() - wall
        cpu = time.process_time() - cpu
        busy = busy_seconds() - busy
        return {
            "seconds": calls,
            "wall": wall,
            "cpu": cpu,
            "busy": busy,
            "joules": None if self._joules is None or joules is None else self._joules() - joules,
            "peak": peak_bytes(),
        }

    def profile(self, spec: dict[str, Any], repeats: int) -> dict[str, Any]:
        """The kernels of a call (runtimes/base.py), from a session of its own; this one is given up."""
        import numpy as np

        from lowbit.errors import RunError
        from lowbit.runtimes import registry
        from lowbit.runtimes.base import Profiler
        from lowbit.types import Tuning

        self._calls = []
        runtime = registry.get(spec["runtime"])
        if not isinstance(runtime, Profiler):
            raise RunError(f"{runtime.name} cannot tell what the steps of a run take.", "Profile on a runtime that can, e.g. onnxruntime.")
        with np.load(spec["feeds"]) as arrays:
            feeds = {name: arrays[name] for name in arrays.files}
        kernels = runtime.profile(Path(spec["model"]), feeds, tuning=Tuning(**spec["tuning"]), batch=spec["batch"], repeats=repeats)
        return {"kernels": [vars(kernel) for kernel in kernels]}


def timed(call: Call, iterations: int) -> list[float]:
    """Seconds of each of `iterations` calls, one after the other."""
    clock, found = time.perf_counter, []
    for _ in range(iterations):
        start = clock()
        call()
        found.append(clock() - start)
    return found


def concurrently(calls: list[Call], seconds: float) -> list[float]:
    """Seconds of each call that was started within `seconds`, with every stream's call in flight all the time."""
    clock = time.perf_counter
    begin = threading.Barrier(len(calls))
    found: list[list[float]] = [[] for _ in calls]
    failures: list[BaseException] = []

    def stream(call: Call, mine: list[float]) -> None:
        try:
            begin.wait()
            end = clock() + seconds
            while (start := clock()) < end:
                call()
                mine.append(clock() - start)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=stream, args=pair) for pair in zip(calls, found, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [second for mine in found for second in mine]


def rest() -> float:
    """Sleeps until this process has come to rest, or for `LONGEST_REST_S`; returns the seconds it took."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < LONGEST_REST_S:
        used = time.process_time()
        time.sleep(REST_S)
        if time.process_time() - used < REST_S / 10 and not _others_runnable():
            break
    return time.perf_counter() - begin


def _others_runnable() -> bool:
    """Whether another thread wants to run; on a busy machine one may, and yet use no time. Linux only, elsewhere False."""
    mine = str(threading.get_native_id())
    for task in TASKS.glob("*"):
        try:
            # "1234 (name with spaces) R ...": the state follows the last bracket.
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # ended in between
            continue
        if state == "R" and task.name != mine:
            return True
    return False


def _load(spec: dict[str, Any]) -> tuple[Variant, dict[str, Any]]:
    """Opens the session and warms it up; `ready` says what it took."""
    import numpy as np

    from lowbit.measure.energy import find_meter
    from lowbit.measure.load import cores
    from lowbit.measure.memory import current_bytes, peak_bytes
    from lowbit.runtimes import registry
    from lowbit.types import Tuning

    runtime = registry.get(spec["runtime"])
    runtime.describe()  # imports the library, so that its own size is in `before`
    with np.load(spec["feeds"]) as arrays:
        feeds = {name: arrays[name] for name in arrays.files}
    before = current_bytes()
    start = time.perf_counter()
    session = runtime.open(Path(spec["model"]), Tuning(**spec["tuning"]), spec["batch"])
    load = time.perf_counter() - start
    calls = [session.prepare(feeds) for _ in range(spec["streams"])]
    meter = find_meter("cpu")
    ready = {
        "ready": True,
        "load_seconds": load,
        "precision": session.precision,
        "before": before,
        "per_call": _warm_up(calls[0]),
        "peak": peak_bytes(),
        "cores": cores(),
        "energy_method": meter.method if meter else None,
    }
    return Variant(calls, meter.read if meter else None), ready


def _warm_up(call: Call) -> float:
    """Calls until caches, pools and clocks have settled; the median of the last half, in seconds."""
    found: list[float] = []
    while len(found) < WARM_UP_CALLS or sum(found) < WARM_UP_S:
        found += timed(call, 1)
    tail = sorted(found[len(found) // 2 :])
    return tail[len(tail) // 2]


def _take_stdout() -> IO[str]:
    """Keeps standard output for the protocol; whatever else writes there, C++ included, writes to standard error."""
    protocol = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return protocol


def _requests() -> queue.SimpleQueue[dict[str, Any]]:
    """Lines of standard input, read by a thread of their own, so that their end ends even a call that hangs."""
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            requests.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return requests


def _send(protocol: IO[str], message: dict[str, Any]) -> None:
    try:
        protocol.write(json.dumps(message) + "\n")
        protocol.flush()
    except BrokenPipeError:  # the parent is gone
        os._exit(0)


if __name__ == "__main__":
    main()
