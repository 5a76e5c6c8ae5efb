"""Runs in an environment of Optimum's, not in lowbit's: `python answer.py MODULE CLASS FOLDER KEYWORDS`, the keywords of `from_pretrained`
as JSON. See lowbit.export.worker for what it speaks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

KEPT_OUT = ("openvino_telemetry", "torchvision")
"""Without the first, openvino and nncf do not report that they were used. The second prepares pictures, which come prepared here, and
where it was built for another torch, transformers does not load beside it."""


def main() -> None:
    """Loads the folder as its users do, then answers until its input ends."""
    for name in KEPT_OUT:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None blocks an import (language reference 5.3.1)
    import importlib

    import torch

    torch.set_num_threads(1)
    module, name, folder, keywords = sys.argv[1:]
    given: dict[str, Any] = json.loads(keywords)
    if module == "optimum.onnxruntime":
        from onnxruntime import SessionOptions

        given["session_options"] = SessionOptions()
        given["session_options"].intra_op_num_threads = 1
    model = getattr(importlib.import_module(module), name).from_pretrained(folder, **given)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer: dict[str, Any] = {"outputs": answered(model, request)}
        except Exception as error:  # whatever it is, the one who asked is told
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def answered(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Runs the model on one request and writes what it gives."""
    import torch

    arrays = {name: np.fromfile(entry["file"], entry["dtype"]).reshape(entry["shape"]) for name, entry in request["feeds"].items()}
    outputs = model(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    found = {}
    for index, (name, value) in enumerate(outputs.items()):
        array = np.ascontiguousarray(value.detach().numpy() if isinstance(value, torch.Tensor) else value)
        path = Path(request["out"]) / f"out{index}"
        array.tofile(path)
        found[name] = {"file": str(path), "dtype": array.dtype.name, "shape": list(array.shape)}
    return found


if __name__ == "__main__":
    main()
