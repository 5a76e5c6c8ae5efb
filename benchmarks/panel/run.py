"""One subject through the whole panel: produce, score, time; the result is one JSON document."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panel import lanes, paths, statements, timing
from panel.produce import produce, version
from panel.producers import ALL as PRODUCERS
from panel.producers import Producer
from panel.scoring import scores, splits
from panel.subject import Subject
from panel.tasks import Columns

LIBRARIES = ("numpy", "onnx", "onnxruntime", "openvino", "nncf", "torch")


@dataclass(frozen=True)
class Effort:
    """What to do: few samples and rounds, which artifacts to make anew, whether to time at all."""

    quick: bool = False
    remake: Sequence[str] = ()
    timing: bool = True


def run(subject: Subject, producers: Sequence[str], effort: Effort) -> dict[str, Any]:
    """The result of one subject; a producer that fails is in it with its error."""
    rows = [PRODUCERS[name] for name in producers]
    made = {row.name: _made(subject, row, effort) for row in rows}
    alive = [row for row in rows if made[row.name]["error"] is None]
    columns, quality = _quality(subject, alive, effort.quick)
    timed = [row.name for row in alive if row.speed_as not in [other.name for other in alive]]
    ours = [row.name for row in rows if row.ours]
    if effort.timing:
        say(f"{subject.name}: timing {', '.join(timed)}")
    return {
        "subject": subject.name,
        "task": subject.task,
        "quick": effort.quick,
        "environment": environment(),
        "speed_as": {row.name: row.speed_as for row in alive if row.speed_as and row.name not in timed},
        "production": made,
        "quality": quality,
        "best_peer": _best_peer(subject, rows, quality, columns),
        "latency": timing.times(subject, timed, ours, statements.sound(quality), effort.quick) if effort.timing else {},
    }


def _made(subject: Subject, producer: Producer, effort: Effort) -> dict[str, Any]:
    """Production on every split: medians of time, largest peak; an error if one failed."""
    remake = producer.name in effort.remake or "all" in effort.remake
    runs = []
    for split in splits(subject, effort.quick):
        say(f"{subject.name}: {producer.name}, split {split}")
        runs.append(produce(subject, producer, split, remake))
        if runs[-1]["error"]:
            say(f"  failed: {runs[-1]['error']}")
            return {"error": runs[-1]["error"], "peak_bytes": runs[-1].get("peak_bytes")}
    first = paths.artifact(subject.name, producer.name, 0) / "model.onnx"

    def median(name: str) -> float:
        return float(sorted(run[name] for run in runs)[len(runs) // 2])

    return {
        "error": None,
        **{name: median(name) for name in ("seconds", "wall_seconds", "cpu_seconds")},
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "load_before": max(run["load_before"] for run in runs),
        "size_bytes": first.stat().st_size,
        "notes": [run["notes"] for run in runs],
    }


def _quality(subject: Subject, rows: Sequence[Producer], quick: bool) -> tuple[dict[str, Columns], dict[str, Any]]:
    """Columns and statements by variant."""
    columns: dict[str, Columns] = {}
    found: dict[str, Any] = {}
    for row in rows:
        say(f"{subject.name}: scoring {row.name}")
        for lane, result in scores(subject, row.name, quick).items():
            word = lanes.variant(row.name, lane)
            if isinstance(result, str):
                found[word] = {"error": result}
            else:
                columns[word] = result
    fp32 = columns.get(lanes.BASELINE)
    if fp32 is not None:
        found |= {word: statements.quality(subject.judge, each, fp32) for word, each in columns.items()}
    return columns, found


def _best_peer(subject: Subject, rows: Sequence[Producer], quality: dict[str, Any], columns: dict[str, Columns]) -> dict[str, Any]:
    """Per lane and over all: the peer with the highest fidelity, and how far ours are above it."""
    found: dict[str, Any] = {}
    for lane in ("any", *lanes.ALL):
        wanted = [name for name in lanes.ALL if lane in ("any", name)]
        words = {row.name: [lanes.variant(row.name, name) for name in wanted] for row in rows}
        peers = {word: quality[word] for row in rows if row.peer for word in words[row.name] if word in columns}
        if (rival := statements.best(peers)) is None:
            continue
        mine = [word for row in rows if row.ours for word in words[row.name] if word in columns]
        above = {word: statements.against(subject.judge, columns[word], columns[rival]) for word in mine}
        found[lane] = {"peer": rival, "fidelity": quality[rival]["fidelity"]["value"], "ours_above": above}
    return found


def environment() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
