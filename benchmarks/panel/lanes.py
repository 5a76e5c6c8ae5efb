"""On what artifacts run: runtime and precision of what is left in floating point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lowbit.runtimes.base import DEFAULT
from lowbit.types import Tuning


@dataclass(frozen=True)
class Lane:
    """A runtime with a tuning; `fixed` lanes are timed with every input shape fixed."""

    name: str
    runtime: str
    tuning: Tuning = DEFAULT
    fixed: bool = False

    @property
    def dynamic(self) -> Tuning:
        return replace(self.tuning, fixed_shape=False)


BASELINE = "fp32@onnxruntime"

ALL: Mapping[str, Lane] = {
    "onnxruntime": Lane("onnxruntime", "onnxruntime"),
    "openvino": Lane("openvino", "openvino", fixed=True),
    "openvino-bf16": Lane("openvino-bf16", "openvino", Tuning(precision="bf16"), fixed=True),
}


def variant(producer: str, lane: str) -> str:
    """The word for one artifact on one lane, as everywhere in the results."""
    return f"{producer}@{lane}"
