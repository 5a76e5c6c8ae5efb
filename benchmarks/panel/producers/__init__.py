"""Who quantizes: the FP32 baseline, the peers, and ourselves. One module each; several rows may share a module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Producer:
    """One row of the panel.

    Attributes:
        name: As the table shows it.
        module: In this package; see `panel.job` for what it must have.
        options: For the module.
        libraries: Distributions whose version decides whether a kept artifact is still good.
        speed_as: Another producer whose artifacts differ in the values of their ranges alone, so that timing one
            times both.
        ours: lowbit's own.
        peer: Counts as "the best peer" or "the fastest peer".
    """

    name: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    libraries: tuple[str, ...] = ("onnxruntime", "onnx", "numpy")
    speed_as: str | None = None
    ours: bool = False
    peer: bool = True


GOOD = {"activations": "uint8", "per_channel": True, "fitting": True}
"""What its documents and issues advise for x86: unsigned activations, weights per channel, the operators that pay."""

OURS = ("onnx", "onnx-ir", "onnxruntime", "numpy")
NNCF = ("nncf", "onnx", "openvino", "numpy")

_ROWS = (
    Producer("fp32", "fp32", peer=False),
    Producer("ort-minmax", "ort_static", {"method": "MinMax"}),
    Producer("ort-percentile", "ort_static", {"method": "Percentile"}, speed_as="ort-minmax"),
    Producer("ort-entropy", "ort_static", {"method": "Entropy"}, speed_as="ort-minmax"),
    Producer("ort-good", "ort_static", {"method": "MinMax", **GOOD}),
    Producer("ort-good-percentile", "ort_static", {"method": "Percentile", **GOOD}, speed_as="ort-good"),
    Producer("ort-dynamic", "ort_dynamic"),
    Producer("ort-dynamic-good", "ort_dynamic", {"per_channel": True}),
    Producer("nncf", "nncf_default", libraries=NNCF),
    Producer("nncf-accuracy", "nncf_accuracy", libraries=NNCF),
    Producer("olive", "olive"),
    Producer("lowbit-ort", "lowbit_core", {"target": "onnxruntime-cpu"}, libraries=OURS, ours=True, peer=False),
    Producer("lowbit-ov", "lowbit_core", {"target": "openvino-cpu"}, libraries=OURS, ours=True, peer=False),
)
ALL: dict[str, Producer] = {row.name: row for row in _ROWS}
