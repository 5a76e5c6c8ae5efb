"""A runtime that opens programs, in the suite whose models are ONNX files."""

from __future__ import annotations

from pathlib import Path

from lowbit.errors import ModelError
from lowbit.graph.load import load_model
from lowbit.pipeline.bench import random_feeds
from lowbit.runtimes.base import DEFAULT, Format, Runtime, Session
from lowbit.runtimes.hardware import Hardware
from lowbit.types import Tuning


class Programs:
    """A runtime whose ONNX files are written as programs before they are opened. What is no ONNX file it gets as it is."""

    opens: Format = "pt2"

    def __init__(self, runtime: Runtime) -> None:
        self.name = runtime.name
        self._runtime = runtime

    def version(self) -> str | None:
        return self._runtime.version()

    def describe(self) -> dict[str, str]:
        return self._runtime.describe()

    def tunings(self, hardware: Hardware) -> tuple[Tuning, ...]:
        return self._runtime.tunings(hardware)

    def open(self, path: Path, tuning: Tuning = DEFAULT, batch: int | None = None) -> Session:
        return self._runtime.open(program_of(path), tuning, batch)


def program_of(path: Path) -> Path:
    from lowbit.train.pt2e import write_program

    try:
        model = load_model(path)
    except ModelError:
        return path
    feeds = {name: values % 2 if values.dtype.kind == "i" else values for name, values in random_feeds(model, 2, 5).items()}
    return write_program(path, path.parent / f"{path.stem}.pt2", feeds)
