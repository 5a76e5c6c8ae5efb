"""One variant, alone in its process: `python -m lowbit.measure.worker`, started by lowbit.measure.race.

The first line in says what to load, the answer is `ready`; every further line asks for one turn and is answered with its
seconds, or for a profile (the last request then) and is answered with its kernels (lowbit.measure.talk has the rest).
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.measure.talk import Turn, serve

if TYPE_CHECKING:
    from lowbit.runtimes.base import Runtime

WARM_UP_CALLS = 3
WARM_UP_S = 0.2

Call = Callable[[], object]


def main() -> None:
    serve(_serve)


def _serve(spec: dict[str, Any]) -> tuple[Turn, dict[str, Any]]:
    variant, ready = _load(spec)
    return lambda request: variant.profile(spec, request["profile"]) if "profile" in request else variant.turn(**request), ready


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


def _runtime(name: str) -> Runtime:
    """By its name; or "module:class", for one that nobody can ask for by name."""
    from lowbit.runtimes import registry

    module, colon, attribute = name.partition(":")
    if not colon:
        return registry.get(name)
    found: Runtime = getattr(importlib.import_module(module), attribute)()
    return found


def _load(spec: dict[str, Any]) -> tuple[Variant, dict[str, Any]]:
    """Opens the session and warms it up; `ready` says what it took."""
    import numpy as np

    from lowbit.measure.energy import find_meter
    from lowbit.measure.load import cores
    from lowbit.measure.memory import current_bytes, peak_bytes
    from lowbit.types import Tuning

    runtime = _runtime(spec["runtime"])
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


if __name__ == "__main__":
    main()
