"""Runs in litert-torch's own environment, not in lowbit's: `python convert.py JOB`.

JOB is a JSON file: {"program": a saved torch.export program, "images": numbers of inputs that lie channels first, "image_outputs":
likewise, "recipe": of ai-edge-quantizer, "samples": an .npz file of what calibrates or null, "size": samples a call,
"float_input", "float_output", "out": the .tflite file to write}. What became of it is written beside that file, as NAME.json.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

SIGNATURE = "serving_default"


def main(job: dict[str, Any]) -> None:
    """Converts, quantizes and writes."""
    out = Path(job["out"])
    content = converted(job)
    out.write_bytes(quantized(content, job))
    versions = {name: metadata.version(name) for name in ("litert-torch", "ai-edge-quantizer")}
    out.with_suffix(".json").write_text(json.dumps({"versions": versions, "float_bytes": len(content)}), encoding="utf-8")


def converted(job: dict[str, Any]) -> bytes:
    """The program as a .tflite file in floating point, images channels last."""
    import litert_torch
    import torch

    torch.set_num_threads(1)
    program = torch.export.load(job["program"])
    module, samples = without_detaching(program.module()), list(program.example_inputs[0])
    if job["images"] or job["image_outputs"]:
        module = litert_torch.to_channel_last_io(module, args=job["images"], outputs=job["image_outputs"])
    for number in job["images"]:
        samples[number] = samples[number].permute(0, 2, 3, 1).contiguous()
    found = litert_torch.convert(module, tuple(samples))
    place = Path(job["out"]).with_suffix(".float")
    found.export(str(place))
    return place.read_bytes()


def without_detaching(module: Any) -> Any:
    """A program's module without the steps that keep gradients away: the converter's own export stumbles over them."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and str(node.target).startswith("aten.detach"):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()
    return module


def quantized(content: bytes, job: dict[str, Any]) -> bytes:
    """The file in INT8, by one of ai-edge-quantizer's recipes."""
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe, recipe_manager

    made = quantizer.Quantizer(content, getattr(recipe, job["recipe"])())
    static = job["samples"] is not None
    for end, stays in ((qtyping.TFLOperationName.INPUT, job["float_input"]), (qtyping.TFLOperationName.OUTPUT, job["float_output"])):
        if static and stays:
            made.update_quantization_recipe(".*", end, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE)
    if not static:
        return bytes(made.quantize().quantized_model)
    settled = recipe_manager.RecipeManager()
    settled.load_quantization_recipe(made.get_quantization_recipe())
    return bytes(made.quantize(ranges_of(content, settled, samples_of(job["samples"], job["size"]))).quantized_model)


def ranges_of(content: bytes, settled: Any, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Minima and maxima over all samples.

    What the quantizer measures by itself is a moving average of each sample's (0.95 of what was, 0.05 of what comes): too narrow.
    """
    from ai_edge_quantizer import calibrator
    from ai_edge_quantizer.utils import qsv_utils

    made = calibrator.Calibrator(content, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    made.calibrate({SIGNATURE: samples}, settled)
    found: dict[str, Any] = made.get_model_qsvs()
    return found


def samples_of(path: str, size: int) -> list[dict[str, Any]]:
    """As many a call as the program takes, by the converter's names of inputs."""
    with np.load(path) as arrays:
        values = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(values.values())))
    return [{name: array[row : row + size] for name, array in values.items()} for row in range(0, count - size + 1, size)]


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
