"""The artifact as every server runs it, and as the bare loop does: OpenVINO, one thread, any number of rows."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

SHAPE = (3, 128, 128)


class Artifact:
    """A compiled model."""

    def __init__(self, path: str) -> None:
        import openvino as ov

        config = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        self._request = ov.Core().compile_model(path, "CPU", config).create_infer_request()

    def __call__(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self._request.infer([rows], share_inputs=True)
        return self._request.get_output_tensor(0).data.copy()


def row(raw: bytes) -> np.ndarray[Any, Any]:
    """One image from a request's body."""
    return np.frombuffer(raw, np.float32).reshape(SHAPE)


def bare_loop(path: str, batch: int, seconds: float) -> dict[str, float]:
    """Calls back to back, nothing else."""
    model = Artifact(path)
    images = [np.random.default_rng(i).standard_normal((batch, *SHAPE), np.float32) for i in range(4)]
    for i in range(8):
        model(images[i % 4])
    times = []
    cpu = time.process_time()
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        model(images[len(times) % 4])
        times.append(time.perf_counter() - start)
    cpu_ms = 1000 * (time.process_time() - cpu) / len(times) / batch
    return {"batch": batch, "cpu_ms": cpu_ms, "p50_ms": 1000 * float(np.median(times)), "rows_per_s": batch * len(times) / sum(times)}


if __name__ == "__main__":
    print(json.dumps(bare_loop(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
