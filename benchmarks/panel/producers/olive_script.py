"""Runs in Olive's own environment: one quantization pass on one model, by the JSON file that is its argument."""

from __future__ import annotations

import json
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from olive.data.config import DataComponentConfig, DataConfig
from olive.data.registry import Registry
from olive.workflows import run

SPEC: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())


class Samples:
    """Single samples with a batch axis of one, as its loader without batching wants them; the label is not used."""

    def __init__(self) -> None:
        with np.load(SPEC["calibration"]) as arrays:
            self.feeds = {name: arrays[name] for name in arrays.files}

    def __len__(self) -> int:
        return len(next(iter(self.feeds.values())))

    def __getitem__(self, row: int) -> tuple[dict[str, Any], int]:
        return {name: values[row : row + 1] for name, values in self.feeds.items()}, 0


@Registry.register_dataset("panel_samples")
def samples(**_: Any) -> Samples:
    return Samples()


def main() -> None:
    data = DataConfig(
        name="calibration",
        type="DataContainer",
        load_dataset_config=DataComponentConfig(type="panel_samples"),
        pre_process_data_config=DataComponentConfig(type="skip_pre_process"),
        post_process_data_config=DataComponentConfig(type="skip_post_process"),
        dataloader_config=DataComponentConfig(type="no_auto_batch_dataloader"),
    )
    static = SPEC["mode"] == "static"
    one_pass: dict[str, Any] = {"type": "OnnxStaticQuantization" if static else "OnnxDynamicQuantization"}
    if static:
        one_pass["data_config"] = "calibration"
    config = {
        "input_model": {"type": "ONNXModel", "model_path": SPEC["model"]},
        "systems": {"here": {"type": "LocalSystem", "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]}},
        "data_configs": [data.model_dump() if hasattr(data, "model_dump") else data.dict()],
        "passes": {"quantize": one_pass},
        "target": "here",
        "output_dir": SPEC["work"],
        "cache_dir": SPEC["work"] + "/cache",
        "no_artifacts": False,
    }
    start = time.perf_counter()
    run(config)
    seconds = time.perf_counter() - start
    made = sorted(Path(SPEC["work"]).glob("**/*.onnx"), key=lambda path: ("cache" in path.parts, len(path.parts)))
    if not made:
        raise SystemExit("Olive wrote no ONNX file.")
    shutil.copyfile(made[0], SPEC["out"])
    notes = {"olive": metadata.version("olive-ai"), "onnxruntime": metadata.version("onnxruntime"), "seconds": seconds}
    Path(SPEC["out"]).parent.joinpath("olive.made.json").write_text(json.dumps(notes))
    shutil.rmtree(SPEC["work"], ignore_errors=True)


if __name__ == "__main__":
    main()
