"""An artifact in another process: environments whose packages do not go together with ours, and Node.

A worker is a script that prints "ready" once it has loaded its artifact. It then reads one JSON object a line, `{"feeds": {name: array},
"out": folder}`, writes arrays into the folder and prints `{"outputs": {name: array}}`, or `{"error": text}`. An array is a file of
little-endian numbers, with its type and shape: `{"file": path, "dtype": "float32", "shape": [1, 10]}`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from lowbit.errors import RunError
from lowbit.types import Array, Feeds

SECONDS = 600.0
"""After which a worker that does not answer is stopped."""

_NO_NETWORK = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1"}


def python_of(name: str, module: str) -> Path | None:
    """A Python that has what a target needs: `LOWBIT_NAME_PYTHON`, `.venv-name` in the current folder, else this one; None where none does.

    Args:
        name: Of the environment: "optimum".
        module: That it must have, as a folder of its site-packages: "optimum/onnxruntime".
    """
    given = os.environ.get(f"LOWBIT_{name.upper().replace('-', '_')}_PYTHON")
    places = [Path(given)] if given else []
    for python in (*places, Path(f".venv-{name}/bin/python"), Path(sys.executable)):
        root = python.absolute().parents[1]
        if python.is_file() and next(root.glob(f"lib/python3*/site-packages/{module}/__init__.py"), None) is not None:
            return python.absolute()
    return None


class Worker:
    """A running worker. Also a context manager."""

    def __init__(self, command: Sequence[str | Path], what: str, environment: Mapping[str, str] | None = None) -> None:
        """Starts a worker and waits until it is ready.

        Args:
            command: Program and arguments.
            what: For messages: "Optimum".
            environment: Variables beside our own.

        Raises:
            RunError: it does not start, or the artifact does not load.
        """
        self._what = what
        self._folder = tempfile.TemporaryDirectory(prefix="lowbit-worker-")
        self._noise = (Path(self._folder.name) / "stderr").open("w+b")
        variables = {**os.environ, **_NO_NETWORK, **(environment or {})}
        variables.pop("PYTHONPATH", None)
        try:
            self._process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._noise, text=True, env=variables
            )
        except OSError as error:
            self._folder.cleanup()
            raise RunError(f"{what} does not start: {error.strerror or error}.") from error
        try:
            self._line()
        except RunError:
            self.close()
            raise

    def ask(self, feeds: Feeds) -> dict[str, Array]:
        """Answers samples.

        Args:
            feeds: Input name -> array, in the artifact's names.

        Raises:
            RunError: the worker says so, or has stopped.
        """
        if self._process.stdin is None or self._process.poll() is not None:
            raise RunError(f"{self._what} is closed.", "Open it again.")
        with tempfile.TemporaryDirectory(dir=self._folder.name) as place:
            folder = Path(place)
            described = {name: _put(folder / f"in{index}", values) for index, (name, values) in enumerate(feeds.items())}
            with suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps({"feeds": described, "out": place}) + "\n")
                self._process.stdin.flush()
            outputs = json.loads(self._line())["outputs"]
            return {name: _get(entry) for name, entry in outputs.items()}

    def close(self) -> None:
        """Ends it; closing twice is fine."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(OSError):
                self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._noise.close()
            self._folder.cleanup()

    def _line(self) -> str:
        """The next line that is an answer; what libraries print beside it is passed over."""
        assert self._process.stdout is not None
        clock = threading.Timer(SECONDS, self._process.kill)
        clock.start()
        try:
            for line in self._process.stdout:
                if line.strip() == "ready":
                    return line
                if line.startswith('{"outputs"'):
                    return line
                if line.startswith('{"error"'):
                    raise RunError(f"{self._what} failed: {json.loads(line)['error']}")
        finally:
            clock.cancel()
        raise RunError(f"{self._what} stopped: {self._last_words()}")

    def _last_words(self) -> str:
        self._noise.flush()
        lines = [line for line in Path(self._noise.name).read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"exit status {self._process.poll()}"


def _put(path: Path, values: Array) -> dict[str, object]:
    values = np.ascontiguousarray(values)
    values.tofile(path)
    return {"file": str(path), "dtype": values.dtype.name, "shape": list(values.shape)}


def _get(entry: Mapping[str, object]) -> Array:
    shape = entry["shape"]
    assert isinstance(shape, list)
    return np.fromfile(str(entry["file"]), np.dtype(str(entry["dtype"]))).reshape(shape)
