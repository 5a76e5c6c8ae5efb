"""Per-sample columns of an artifact on a lane, each artifact in a process of its own.

    python -m panel.scoring SUBJECT PRODUCER [--quick]      scores all splits on all lanes

Columns are kept in build/panel/scores, by the artifact's digest; what crashes is an error on that lane, not the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import LowbitError
from lowbit.pipeline.evaluate import run_padded
from lowbit.runtimes import registry
from panel import lanes, paths
from panel.pool import Pool
from panel.produce import digest
from panel.subject import Subject, part
from panel.tasks import VERSION, Columns

Array = np.ndarray[Any, Any]


def scores(subject: Subject, producer: str, quick: bool) -> dict[str, Columns | str]:
    """Lane -> columns pooled over the splits, or why there are none."""
    files = [_file(subject, producer, split, lane, quick) for split in splits(subject, quick) for lane in lanes.ALL]
    for file in files:
        file.with_suffix(".begun").unlink(missing_ok=True)  # of a run that was interrupted
    command = [sys.executable, "-m", "panel.scoring", subject.name, producer, *(["--quick"] if quick else [])]
    environment = os.environ | {"PYTHONPATH": str(paths.BENCHMARKS)}
    for _ in files:  # a lane that crashes the process is marked, and passed over when it is started again
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
    found: dict[str, Columns | str] = {}
    for lane in lanes.ALL:
        parts = [_kept(subject, producer, split, lane, quick) for split in splits(subject, quick)]
        failed = [part for part in parts if isinstance(part, str)]
        crash = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        found[lane] = (failed[0] or crash[0]) if failed else pooled([part for part in parts if not isinstance(part, str)])
    return found


def splits(subject: Subject, quick: bool) -> range:
    """All splits; in a quick run the first two."""
    count = len(subject.pool().splits)
    return range(min(count, 2) if quick else count)


def test_rows(subject: Subject, pool: Pool, split: int, quick: bool) -> Array:
    rows = pool.splits[split].test
    return rows[part(len(rows), min(len(rows), subject.quick))] if quick else rows


def pooled(parts: list[Columns]) -> Columns:
    """Columns over all splits. A sample that several splits scored counts once, with its mean: its scores depend on each other."""
    rows = np.concatenate([columns["row"] for columns in parts])
    unique, inverse, counts = np.unique(rows, return_inverse=True, return_counts=True)
    names = [name for name in parts[0] if name != "row"]
    joined = {name: np.concatenate([columns[name] for columns in parts]).astype(np.float64) for name in names}
    return {"row": unique} | {name: np.bincount(inverse, values) / counts for name, values in joined.items()}


# In the process of its own ---------------------------------------------------------------------------------------------


def main() -> None:
    from panel.subjects import ALL

    parser = argparse.ArgumentParser()
    parser.add_argument("subject", choices=list(ALL))
    parser.add_argument("producer")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    subject = ALL[args.subject]
    pool = subject.pool()
    for split in splits(subject, args.quick):
        if (paths.artifact(subject.name, args.producer, split) / "model.onnx").exists():
            for lane in lanes.ALL.values():
                _score(subject, pool, args.producer, split, lane, args.quick)


def _score(subject: Subject, pool: Pool, producer: str, split: int, lane: lanes.Lane, quick: bool) -> None:
    if _kept(subject, producer, split, lane.name, quick) != "":
        return
    out = _file(subject, producer, split, lane.name, quick)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = test_rows(subject, pool, split, quick)
    out.with_suffix(".begun").touch()
    try:
        outputs = run(paths.artifact(subject.name, producer, split) / "model.onnx", lane, pool, rows, subject.call)
    except LowbitError as error:
        out.with_suffix(".json").write_text(json.dumps({"error": error.message}))
        out.with_suffix(".begun").unlink()
        return
    columns = subject.judge.columns(outputs, reference(subject, pool, rows), pool.labels_of(rows))
    np.savez(out, row=rows, **columns)
    out.with_suffix(".begun").unlink()


def run(artifact: Path, lane: lanes.Lane, pool: Pool, rows: Array, size: int) -> dict[str, Array]:
    """Outputs [n, ...] of an artifact on rows of the pool; NaN and infinity become zero."""
    session = registry.get(lane.runtime).open(artifact, lane.dynamic)
    parts = [run_padded(session, pool.rows(rows[start : start + size]), size) for start in range(0, len(rows), size)]
    session.close()
    return {name: np.nan_to_num(np.concatenate([part[name] for part in parts]), posinf=0, neginf=0) for name in parts[0]}


def reference(subject: Subject, pool: Pool, rows: Array) -> dict[str, Array]:
    """The FP32 model's outputs on onnxruntime; kept on disk for all samples that were ever asked for."""
    folder = paths.BUILD / "reference" / subject.name
    file = folder / f"{digest_rows(rows)}-{digest(subject.model())[:16]}.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        outputs = run(subject.model(), lanes.ALL["onnxruntime"], pool, rows, subject.call)
        temporary = file.with_name(f"{os.getpid()}.npz")
        np.savez(temporary, **{f"output {name}": values for name, values in outputs.items()})
        temporary.rename(file)
    with np.load(file) as arrays:
        return {name.removeprefix("output "): arrays[name] for name in arrays.files}


def digest_rows(rows: Array) -> str:
    return hashlib.sha256(np.asarray(rows, np.int64).tobytes()).hexdigest()[:16]


def _file(subject: Subject, producer: str, split: int, lane: str, quick: bool) -> Path:
    artifact = paths.artifact(subject.name, producer, split) / "model.onnx"
    word = digest(artifact)[:16] if artifact.exists() else "none"
    return paths.BUILD / "scores" / str(VERSION) / subject.name / f"{producer}-{split}-{lane}-{word}{'-quick' if quick else ''}.npz"


def _kept(subject: Subject, producer: str, split: int, lane: str, quick: bool) -> Columns | str:
    """What is on disk: columns, an error, or "" for nothing."""
    file = _file(subject, producer, split, lane, quick)
    if file.with_suffix(".json").exists():
        return str(json.loads(file.with_suffix(".json").read_text())["error"])
    if file.with_suffix(".begun").exists():
        return "The process ended while it was scored."
    if not file.exists():
        return ""
    with np.load(file) as arrays:
        return {name: arrays[name] for name in arrays.files}


if __name__ == "__main__":
    main()
