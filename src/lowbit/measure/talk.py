"""A worker's end of a lane: JSON, a line each way, on standard input and output (lowbit.measure.lane is the parent's end).

The first line in says what to load, the answer is `ready`; every further line asks for one turn. Between turns the worker
waits for input, so that nothing of it runs. Standard output carries these lines and nothing else: what libraries print goes
to standard error. At the end of its input, which is also what it sees when the parent is killed, it ends at once.
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

REST_S = 0.01
LONGEST_REST_S = 1.0
"""After a turn the worker waits until its thread pools sleep, before it says that it is done and another's turn begins.
onnxruntime's go on spinning for some 50 ms, by processor 3 to 500."""

TASKS = Path("/proc/self/task")

Turn = Callable[[dict[str, Any]], dict[str, Any]]
"""A request -> its answer."""


def serve(load: Callable[[dict[str, Any]], tuple[Turn, dict[str, Any]]], *, resting: bool = True) -> None:
    """Loads what the first line asks for, then answers request by request; an error is the last answer.

    Args:
        load: The first line -> what answers the others, and the first answer.
        resting: Whether an answer waits until this process has come to rest, because others are timed.
    """
    protocol = _take_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it closes our input
    requests = _requests()
    try:
        turn, ready = load(requests.get())
        if resting:
            rest()
        _send(protocol, ready)
        gc.disable()
        while True:
            answer = turn(requests.get())
            gc.collect()
            if resting:
                rest()
            _send(protocol, answer)
    except Exception as error:
        from lowbit.errors import LowbitError

        text = error.message if isinstance(error, LowbitError) else f"{type(error).__name__}: {error}"
        _send(protocol, {"error": text})
        sys.exit(1)


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
