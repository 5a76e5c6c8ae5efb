"""One producer at work on one job: `python -m panel.worker FOLDER`. Writes FOLDER/worker.json with seconds and notes."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path

from panel.job import Job


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def main() -> None:
    folder = Path(sys.argv[1])
    job = Job.load(folder)
    from lowbit.quiet import no_telemetry

    no_telemetry()
    producer = importlib.import_module(f"panel.producers.{job.options['module']}")
    for module in getattr(producer, "PRELOAD", ()):
        importlib.import_module(module)
    start, cpu = time.perf_counter(), cpu_seconds()
    notes = producer.produce(job)
    seconds = time.perf_counter() - start
    # One that works in a process of its own says itself how long it took without imports.
    result = {"seconds": notes.pop("seconds", seconds), "cpu_seconds": cpu_seconds() - cpu, "notes": notes}
    if not job.artifact.exists():
        raise SystemExit("The producer wrote no model.onnx.")
    (folder / "worker.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
