"""A real MLflow server on SQLite: an environment of its own, `.venv-mlflow`, because it brings much that we have no use for."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from conftest import missing

PYTHON = Path(__file__).parents[2] / ".venv-mlflow" / "bin" / "python"
STARTS_S = 300.0


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Its address; ended on the way out. Skips where `make mlflow` has not been run."""
    if not PYTHON.exists():
        missing(".venv-mlflow (`make mlflow`)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", folder / "artifacts", "--host", "127.0.0.1", "--port", port, "--workers", 1]
    with (folder / "mlflow.log").open("w") as log:
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen(
            [str(part) for part in command], stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True
        )
    try:
        _answers(process, f"http://127.0.0.1:{port}/health", folder / "mlflow.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)  # with its workers
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def _answers(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + STARTS_S
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(url, timeout=2).close()
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])
