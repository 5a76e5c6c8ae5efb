"""The parent's end of one worker: starts it, asks it with a time limit, and knows why it ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import lowbit

PYTHON = (sys.executable, "-P", "-m")
"""-P: a file in the current folder that is called like a module (`onnx.py`) is not imported instead of it."""

WORKER = "lowbit.measure.worker"

GOODBYE_S = 2.0


class Lane:
    """One worker process. After a failure `error` says why, and it is not asked again.

    Args:
        worker: The module to run, which speaks as lowbit.measure.talk does.

    Attributes:
        ready: The worker's answer to being loaded; empty until then.
        error: None while all is well.
    """

    def __init__(self, worker: str = WORKER) -> None:
        self.ready: dict[str, Any] = {}
        self.error: str | None = None
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed in __exit__
        self._process = subprocess.Popen(
            (*PYTHON, worker), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True, env=_environment()
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests: IO[str] = self._process.stdin
        self._lines: IO[str] = self._process.stdout
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes the worker's input, at which it ends; kills it if it does not."""
        with contextlib.suppress(OSError):  # it was gone already
            self._requests.close()
        self._wait()
        self._stderr.close()

    def load(self, spec: dict[str, Any], timeout_s: float) -> None:
        """Has the worker load its variant, and waits until that is warm."""
        self.ready = self.ask(spec, timeout_s) or {}

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """Sends a request and waits for its answer; None where none came, `error` then says why."""
        try:
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
            line = self._answers.get(timeout=timeout_s)
        except BrokenPipeError:
            line = None
        except queue.Empty:
            self._process.kill()
            self.error = f"It did not answer within {timeout_s:.3g} s and was ended."
            return None
        if line is None:
            self.error = self._why_ended()
            return None
        answer: dict[str, Any] = json.loads(line)
        self.error = answer.get("error")
        return answer if self.error is None else None

    def _read(self) -> None:
        """Moves lines to the queue, so that `ask` can wait with a time limit. None = the worker has ended."""
        with self._lines:
            for line in self._lines:
                self._answers.put(line)
        self._answers.put(None)

    def _wait(self) -> int:
        try:
            return self._process.wait(GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _why_ended(self) -> str:
        return describe_end(self._wait(), self._last_words())

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""


def describe_end(code: int, last_words: str) -> str:
    """A sentence about a process that ended without an answer, from its exit code (negative: a signal)."""
    if code == -9:
        reason = "It was killed (signal 9), most often for want of memory"
    elif code < 0:
        reason = f"It crashed (signal {-code}, {_signal_name(-code)})"
    else:
        reason = f"It ended with exit code {code}"
    return f"{reason}: {last_words}" if last_words else f"{reason}."


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _environment() -> dict[str, str]:
    """The worker runs this very lowbit, installed or not."""
    own = str(Path(lowbit.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (own, os.environ.get("PYTHONPATH"))))}
