"""One candidate timed alone in its process: `python -m lowbit.llm.workload.worker`, started by lowbit.llm.workload.measure.

A turn runs every shape of the workload once and gives its raw counters (lowbit.llm.workload.stages says what they are, and what
follows from them). Prompts are drawn anew each turn, the same for all candidates, so that no cache of an earlier one can help.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lowbit.errors import RunError
from lowbit.llm.candidate import opened
from lowbit.llm.engines.base import ContinuousBatch, LanguageSession, Sampling
from lowbit.llm.workload.stages import MARGIN, Plan, plan
from lowbit.llm.workload.workload import Shape
from lowbit.measure.talk import Turn, serve

SAMPLE_S = 0.02
"""Between two looks at the memory while the artifact is loaded."""

Counters = list[float]
"""Wall seconds, CPU seconds, joules (NaN without a meter)."""


def main() -> None:
    serve(_load)


def _load(spec: dict[str, Any]) -> tuple[Turn, dict[str, Any]]:
    """Opens the artifact and runs a turn to warm it up."""
    from lowbit.measure.energy import find_meter
    from lowbit.measure.load import busy_seconds, cores
    from lowbit.measure.memory import anonymous_bytes, peak_bytes

    shapes = [Shape(**each) for each in spec["shapes"]]
    concurrency = spec["concurrency"]
    context = max(shape.prompt + shape.output for shape in shapes) + MARGIN
    meter = find_meter("cpu")
    clock = Clock(meter.read if meter else None)
    engine, artifact, tuning = opened(spec)
    with Watch(anonymous_bytes) as memory:
        start = time.perf_counter()
        runner: Single | Several
        if concurrency == 1:
            runner = Single(engine.open(artifact, tuning, context=context), clock)
        else:
            runner = Several(engine.batch(artifact, tuning, context=context, slots=concurrency), concurrency, clock)
        load = time.perf_counter() - start
        begin = time.perf_counter()
        for shape in shapes:
            runner.run(plan(shape, spec["steps"]), np.random.default_rng(0))
        turn_s = time.perf_counter() - begin

    def turn(request: dict[str, Any]) -> dict[str, Any]:
        draw = np.random.default_rng(request["seed"])
        busy, wall, cpu = busy_seconds(), time.perf_counter(), time.process_time()
        found = [runner.run(plan(shape, spec["steps"]), draw) for shape in shapes]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        counted = {"wall": wall, "cpu": cpu, "busy": busy_seconds() - busy}
        return {"shapes": found, **counted, "peak": peak_bytes(), "anonymous": anonymous_bytes()}

    ready = {
        "load_seconds": load,
        "turn_seconds": turn_s,
        "precision": runner.precision,
        "peak": peak_bytes(),
        "anonymous": memory.most,
        "cores": cores(),
        "energy_method": meter.method if meter else None,
    }
    return turn, ready


class Single:
    """One request at a time."""

    def __init__(self, session: LanguageSession, clock: Clock) -> None:
        self._session, self._clock = session, clock
        self.precision: str | None = session.precision

    def run(self, request: Plan, draw: np.random.Generator) -> dict[str, Any]:
        """The counters of the stages of a request."""
        session = self._session
        tokens = _prompt(draw, request.prompt, session.vocabulary)
        logits, start = self._clock.time(lambda: session.start(tokens))
        found: dict[str, Any] = {"start": start}
        if request.first:
            logits, found["first"] = self._clock.time(lambda: session.step(int(logits.argmax())))
        if request.near:
            _, found["near"] = self._clock.time(lambda: self._steps(logits, request.near))
        if request.far:
            far = session.start(_prompt(draw, request.far_prompt, session.vocabulary))
            far = session.step(int(far.argmax()))
            _, found["far"] = self._clock.time(lambda: self._steps(far, request.far))
        return found

    def _steps(self, logits: Any, steps: int) -> None:
        """Greedy, as an answer is: each step gets the likeliest token of the one before."""
        for _ in range(steps):
            logits = self._session.step(int(logits.argmax()))


class Several:
    """Requests that arrive together and are answered together."""

    def __init__(self, batch: ContinuousBatch, slots: int, clock: Clock) -> None:
        self._batch, self._slots, self._clock, self._next = batch, slots, clock, 0
        self.precision: str | None = getattr(batch, "precision", None)

    def run(self, request: Plan, draw: np.random.Generator) -> dict[str, Any]:
        """The counters of the stages of a wave of requests."""
        if not request.far:
            return self._wave(draw, request.prompt, request.output, None)
        found = self._wave(draw, request.prompt, request.output, request.near)
        # While the last prompts are read, the first answers go on; so they begin as much earlier to be at the end together.
        ahead = 2 * found["ahead"]
        prompt = max(request.prompt, request.far_prompt - ahead)
        far = self._wave(draw, prompt, min(request.output, 1 + request.far + ahead), request.far)
        return {**found, "far": far["near"], "far_emitted": far["near_emitted"]}

    def _wave(self, draw: np.random.Generator, prompt: int, output: int, steps: int | None) -> dict[str, Any]:
        """Until all have their first token, and then so many steps more; None: until all are answered."""
        wave = Wave(self._batch, self._next, [_prompt(draw, prompt, self._batch.vocabulary) for _ in range(self._slots)], output)
        self._next += self._slots
        early, start = self._clock.time(wave.read)
        ahead = max(wave.counts.values())
        late, near = self._clock.time(lambda: wave.write(steps))
        wave.drop()
        if steps and not late:
            raise RunError("The first answers end before the last prompts are read: longer answers or fewer requests at once are needed.")
        ttft = sum(wave.began.values()) / len(wave.began)
        return {"start": start, "emitted": early, "ahead": ahead, "ttft": ttft, "near": near, "near_emitted": late}


class Wave:
    """Requests that are asked at once.

    Attributes:
        began: Request -> seconds to its first token.
        counts: Request -> tokens it got.
    """

    def __init__(self, batch: ContinuousBatch, first: int, prompts: Sequence[Sequence[int]], output: int) -> None:
        self._batch, self._output, self._start = batch, output, time.perf_counter()
        self._prompts = dict(enumerate(prompts, first))
        self._left = set(self._prompts)
        self.began: dict[int, float] = {}
        self.counts = dict.fromkeys(self._prompts, 0)

    def read(self) -> int:
        """Until all have begun; how many tokens came."""
        self._start = time.perf_counter()
        for request, prompt in self._prompts.items():
            self._batch.add(request, prompt, Sampling(self._output))
        while len(self.began) < len(self._prompts):
            self._step()
        return sum(self.counts.values())

    def write(self, steps: int | None) -> int:
        """So many steps, or until all are answered; how many tokens came."""
        before, done = sum(self.counts.values()), 0
        while self._left and (steps is None or done < steps):
            self._step()
            done += 1
        return sum(self.counts.values()) - before

    def drop(self) -> None:
        """Ends what is not answered yet."""
        for request in self._left:
            self._batch.drop(request)
        while self._batch.step():  # an engine may need a step to notice
            pass

    def _step(self) -> None:
        for each in self._batch.step():
            if each.finished == "failed":
                raise RunError(each.reason or "A request failed.")
            if each.request not in self.counts:
                continue  # of a wave before
            self.counts[each.request] += each.token is not None
            self.began.setdefault(each.request, time.perf_counter() - self._start)
            if each.finished is not None:
                self._left.discard(each.request)


class Clock:
    """Counts what a call takes."""

    def __init__(self, joules: Callable[[], float] | None) -> None:
        self._joules = joules

    def time(self, call: Callable[[], Any]) -> tuple[Any, Counters]:
        """What the call gives, and its counters."""
        before = self._now()
        result = call()
        return result, [after - early for after, early in zip(self._now(), before, strict=True)]

    def _now(self) -> Counters:
        return [time.perf_counter(), time.process_time(), self._joules() if self._joules else float("nan")]


class Watch:
    """Looks at a figure again and again; `most` is the largest that was seen, None where there is none."""

    def __init__(self, figure: Callable[[], int | None]) -> None:
        self._figure, self._end = figure, threading.Event()
        self.most: int | None = figure()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._take()

    def _look(self) -> None:
        while not self._end.wait(SAMPLE_S):
            self._take()

    def _take(self) -> None:
        if self.most is not None and (now := self._figure()) is not None:
            self.most = max(self.most, now)


def _prompt(draw: np.random.Generator, length: int, vocabulary: int) -> list[int]:
    return [int(token) for token in draw.integers(0, vocabulary, length)]


if __name__ == "__main__":
    main()
