"""Has a producer make its artifact in a process of its own, and notes time and peak memory. What is made is kept.

Seconds are of the producer's work without imports; wall seconds are of the whole process. The peak is the most that
the process and its children held together (resident set, looked at every 20 ms), or the process's own high-water
mark where that is higher.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from lowbit.measure.race import save_feeds
from panel import paths
from panel.job import Job
from panel.producers import Producer
from panel.subject import Subject

TIMEOUT_S = 3600.0
LOOK_S = 0.02


def produce(subject: Subject, producer: Producer, split: int, remake: bool = False) -> dict[str, Any]:
    """What is known of the artifact: `error` (None if it was made), seconds, wall_seconds, peak_bytes, notes.

    It is made anew only where what it follows from has changed (model, samples, options, the producer's source, the
    libraries; for our own: all of lowbit), or where asked.
    """
    out = paths.artifact(subject.name, producer.name, split)
    key = _key(subject, producer, split)
    kept = out / "made.json"
    if not remake and kept.exists() and (made := json.loads(kept.read_text()))["key"] == key:
        return dict(made)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    _job(subject, producer, split, out).save()
    made = {"key": key, **(_setup(producer) or _run(out))}
    kept.write_text(json.dumps(made, indent=1))
    return made


def _setup(producer: Producer) -> dict[str, Any] | None:
    """What a producer needs before its time counts (an environment of its own); a failure is its result."""
    module = importlib.import_module(f"panel.producers.{producer.module}")
    try:
        getattr(module, "setup", lambda: None)()
    except (OSError, subprocess.SubprocessError) as error:
        return {"error": f"It cannot be set up: {error}"}
    return None


def _job(subject: Subject, producer: Producer, split: int, out: Path) -> Job:
    samples = _samples(subject, split)
    labels = samples / "labels.npy"
    return Job(
        model=subject.model(),
        calibration=samples / "calibration" / "feeds.npz",
        validation=samples / "validation" / "feeds.npz",
        labels=labels if labels.exists() else None,
        out=out,
        task=subject.task,
        transformer=subject.transformer,
        batch=subject.call,
        options={"module": producer.module, **producer.options},
    )


def _samples(subject: Subject, split: int) -> Path:
    """The folder with what a producer may see of this split."""
    folder = paths.models(subject.name) / "samples" / str(split)
    if not folder.exists():
        pool = subject.pool()
        seen, temporary = pool.splits[split], folder.with_name(f"{split}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        for name, rows in (("calibration", seen.calibration), ("validation", seen.validation)):
            (temporary / name).mkdir(parents=True)
            save_feeds(pool.rows(rows), temporary / name)
        if (labels := pool.labels_of(seen.validation)) is not None:
            np.save(temporary / "labels.npy", labels)
        temporary.rename(folder)
    return folder


def _run(out: Path) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(paths.BENCHMARKS), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    with (out / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "panel.worker", str(out)], stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=out
        )
        watch = Watch(process.pid)
        try:
            code: int | None = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _end(process)
            code = None
    found: dict[str, Any] = {"wall_seconds": time.perf_counter() - start, "peak_bytes": watch.stop(), "load_before": os.getloadavg()[0]}
    answer = out / "worker.json"
    if code == 0 and answer.exists():
        return {"error": None, **found, **json.loads(answer.read_text())}
    lines = [line for line in (out / "log.txt").read_text(errors="replace").splitlines() if line.strip()]
    last = (" | ".join(line.strip() for line in lines if "Error" in line) or (lines[-1] if lines else ""))[:500]
    return {"error": f"took more than {TIMEOUT_S:.0f} s" if code is None else f"exit {code}: {last}", **found}


def _end(process: subprocess.Popen[bytes]) -> None:
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        with suppress(psutil.Error, ProcessLookupError):
            each.kill()
    process.wait()


class Watch:
    """Follows the memory of a process and its children until it is stopped."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Peak in bytes."""
        self._over.set()
        self._thread.join()
        return self._peak

    def _follow(self) -> None:
        while not self._over.wait(LOOK_S):
            with suppress(psutil.Error, OSError, ValueError):
                tree = [self._process, *self._process.children(recursive=True)]
                held = 0
                for each in tree:
                    with suppress(psutil.Error):
                        held += each.memory_info().rss
                self._peak = max(self._peak, held, _high_water(self._process.pid))


def _high_water(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _key(subject: Subject, producer: Producer, split: int) -> str:
    parts = [subject.name, subject.task, str(subject.transformer), str(subject.call), producer.module, json.dumps(dict(producer.options))]
    parts += [digest(subject.model()), digest(_samples(subject, split) / "calibration" / "feeds.npz")]
    parts += [digest(path) for path in sorted((paths.BENCHMARKS / "panel" / "producers").glob(f"{producer.module}*.py"))]
    parts += [f"{name} {version(name)}" for name in producer.libraries]
    if producer.ours:
        parts += [digest(path) for path in sorted((paths.ROOT / "src" / "lowbit").rglob("*.py"))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
