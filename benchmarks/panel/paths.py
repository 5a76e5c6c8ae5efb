"""Where things are."""

from __future__ import annotations

from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent
ROOT = BENCHMARKS.parent
SHARED = ROOT.parent / "shared" / "data"
BUILD = ROOT / "build" / "panel"
RESULTS = BENCHMARKS / "results"


def models(subject: str) -> Path:
    return BUILD / "models" / subject


def artifact(subject: str, producer: str, split: int) -> Path:
    """Folder of what one producer made on one split: model.onnx, made.json, log.txt."""
    return BUILD / "artifacts" / subject / producer / str(split)
