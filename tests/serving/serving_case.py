"""A small real bundle, and `lowbit serve` as a process of its own: what the tests of the server share."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Self

from bundle_examples import ENVIRONMENT, comparison

from lowbit.bundle.manifest import build_manifest, file_entries, write_manifest
from lowbit.bundle.schema import CalibrationEntry, DataEntry, ValidationEntry
from lowbit.graph.load import load_model
from lowbit.types import Budget, Candidate, Decision, Judgement, Latency, Measurement, Policy, Tuning
from small_models import cnn, cnn_qdq

INPUT, OUTPUT = "input.1", "logits"
"""Names of the tiny model's input float32 [N, 3, 8, 8] and output float32 [N, 10]; `small_models.images` makes inputs."""
BASELINE, INT8 = "fp32@onnxruntime", "int8-static@onnxruntime"
"""Ids of its two variants: `full` and `chosen`."""
PREPROCESS = "schema: 1\nkind: image\nresize: 8\ncrop: [8, 8]\nchannels: rgb\nscale: 1/255\nlayout: nchw\ndtype: float32\n"
STARTS_S, ENDS_S = 60.0, 40.0
ONE = Tuning(threads=1)


def tiny_bundle(folder: Path, *, batch: int = 8, note: str = "") -> Path:
    """Writes a bundle through the real writer: a CNN in FP32 (`full`) and in INT8 (`chosen`), both on onnxruntime.

    Args:
        folder: To make; its name is the model's.
        batch: The measured batch size with the best throughput.
        note: Goes into the manifest: another note is another version.

    Returns:
        The folder. Times and scores in it are test data: nothing was measured.
    """
    for part in ("baseline", "model", "candidates"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    model = load_model(cnn(folder / "baseline" / "model.onnx"))
    cnn_qdq(folder / "model" / "model.onnx")
    (folder / "candidates" / INT8).mkdir(exist_ok=True)
    shutil.copy(folder / "model" / "model.onnx", folder / "candidates" / INT8 / "model.onnx")
    (folder / "preprocess.yaml").write_text(PREPROCESS)
    baseline = _candidate(BASELINE, "fp32", 0.0, 0.2, "baseline/model.onnx", batch)
    chosen = _candidate(INT8, "int8", 0.002, 0.1, f"candidates/{INT8}/model.onnx", batch)
    judgements = (Judgement(BASELINE, "keep", ("The baseline.",)), Judgement(INT8, "ship", ("Within the budget.",)))
    manifest = build_manifest(
        model=model,
        policy=Policy("classification", "top1", Budget.parse("1pp")),
        data=DataEntry(
            source="images.npz",
            calibration=CalibrationEntry(sha256="c1" * 32, n=64, how_selected="the 64 lowest content hashes"),
            validation=ValidationEntry(sha256="d2" * 32, n=400),
        ),
        environment=ENVIRONMENT,
        baseline=baseline,
        candidates=(chosen,),
        decision=Decision("ship", INT8, ("It is the fastest within the budget.",), (), judgements),
        command="lowbit optimize cnn.onnx --data images.npz",
        artifact="model/model.onnx",
        files=file_entries(folder, ("model", "baseline/model.onnx", "preprocess.yaml")),
        preprocess="preprocess.yaml",
        notes=(note,) if note else (),
        created=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
    )
    write_manifest(manifest, folder)
    return folder


def _candidate(id: str, precision: str, drop: float, ms: float, artifact: str, batch: int) -> Candidate:
    found = tuple(
        Measurement(size, 1, Latency(time, time, time, time, time), 1000 * size / time, None, None, 9, False, ONE)
        for size, time in {1: ms, batch: ms * batch / 2}.items()
    )
    recipe, runtime = id.split("@")
    return Candidate(id, recipe, runtime, precision, ONE, search=comparison(drop), measurements=found, artifact=artifact)


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        url: Of REST, without a slash at the end.
        grpc: "host:port" of gRPC; None without it.
        process: To signal and to wait for.
        ready: The line that the server printed once it was ready.
        log: File with its stderr.
    """

    url: str
    grpc: str | None
    process: subprocess.Popen[str]
    ready: Mapping[str, Any]
    log: Path = field(repr=False)

    @property
    def port(self) -> int:
        """Of REST."""
        return int(self.url.rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Asks it to end, and waits.

        Returns:
            Its exit code.
        """
        self.process.send_signal(number)
        return self.process.wait(ENDS_S)

    def logged(self) -> str:
        """What it wrote to stderr so far."""
        return self.log.read_text()


@contextlib.contextmanager
def running(
    *bundles: Path | str,
    options: tuple[object, ...] = (),
    environment: Mapping[str, str] | None = None,
    program: tuple[object, ...] = ("-m", "lowbit"),
) -> Iterator[Running]:
    """`lowbit serve BUNDLES` on free loopback ports, ready; ended on the way out if it still runs.

    Args:
        bundles: Folders, or "name=folder".
        options: More of the command line; the last one wins, so "--port" can be given.
        environment: All of its environment; this process's where None.
        program: What Python runs.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "stderr.txt"
        command = [sys.executable, *program, "serve", *bundles, "--port", 0, "--grpc-port", 0, "--output", "json", *options]
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=None if environment is None else {**environment},
            )
        try:
            ready = _first_line(process, log)
            yield Running(ready["url"], ready["grpc"], process, ready, log)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(ENDS_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _first_line(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """The line that says the server is ready; a server that ends or hangs instead fails the test with what it said."""
    lines: Queue[str] = Queue()
    assert process.stdout is not None
    stdout = process.stdout
    threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
    try:
        line = lines.get(timeout=STARTS_S)
    except Empty:
        line = ""
    if not line:
        raise AssertionError(f"the server did not get ready (exit code {process.poll()}): {log.read_text()[-2000:]}")
    found: dict[str, Any] = json.loads(line)
    return found


def until(holds: Callable[[], Any], seconds: float = 60.0) -> None:
    """Waits for something that other threads or processes do."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


class Clients(ABC):
    """Threads that ask until they are told to stop; as a context manager.

    Attributes:
        seen: Outcomes, counted.
        stopped: Whether they were told.
    """

    def __init__(self, number: int) -> None:
        self.seen: Counter[str] = Counter()
        self.stopped = threading.Event()
        self._threads = [threading.Thread(target=self.ask, args=(each,)) for each in range(number)]

    @abstractmethod
    def ask(self, number: int) -> None:
        """One of them: asks, and counts, until `stopped`."""

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        for thread in self._threads:
            thread.join(60)
