"""Runs in ExecuTorch's own environment, not in lowbit's: `python answer.py write PT2 PTE`, or `python answer.py run PTE NAMES`.

`run` speaks what lowbit.export.worker describes; NAMES is {"inputs": [...], "outputs": [...], "size": 1}: in the program's order,
and samples a call.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np


def write(program: str, out: str) -> None:
    """Lowers a program to XNNPACK, as far as that takes it, and says how far that was."""
    import importlib

    import torch

    for name in ("torch.ao.quantization.fx._decomposed", "executorch.kernels.quantized"):  # they register the program's operators
        importlib.import_module(name)
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    exported = torch.export.load(program)
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    module = edge.exported_program().graph_module
    calls = [re.sub(r"<EdgeOpOverload: ([^>]*)>.*", r"\1", str(node.target)) for node in module.graph.nodes if node.op == "call_function"]
    delegated = sum("executorch_call_delegate" in name for name in calls)
    left = sorted({name for name in calls if "delegate" not in name and "getitem" not in name})
    with Path(out).open("wb") as file:
        edge.to_executorch().write_to_file(file)
    try:
        Runtime.get().load_program(Path(out)).load_method("forward").execute(list(exported.example_inputs[0]))
    except RuntimeError as error:
        sys.exit(f"its own runtime does not run what it lowered ({error}); left to portable kernels: {', '.join(left)}")
    print(json.dumps({"outputs": {}, "delegates": delegated, "left": left}), flush=True)


def run(path: str, names: dict[str, Any]) -> None:
    """Loads a .pte and answers until the input ends."""
    import importlib

    import torch
    from executorch.runtime import Runtime

    importlib.import_module("executorch.kernels.quantized")  # what XNNPACK leaves of the roundings
    torch.set_num_threads(1)
    method = Runtime.get().load_program(Path(path)).load_method("forward")
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer: dict[str, Any] = {"outputs": answered(method, names, request)}
        except Exception as error:  # whatever it is, the one who asked is told
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def answered(method: Any, names: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Runs as many samples a call as the program takes, and writes what comes out."""
    import torch

    feeds = request["feeds"]
    arrays = [np.fromfile(feeds[name]["file"], feeds[name]["dtype"]).reshape(feeds[name]["shape"]) for name in names["inputs"]]
    rows = []
    for index in range(0, len(arrays[0]), names["size"]):
        given = [torch.from_numpy(np.ascontiguousarray(array[index : index + names["size"]])) for array in arrays]
        rows.append([value.numpy().copy() for value in method.execute(given)])
    found = {}
    for place, name in enumerate(names["outputs"]):
        array = np.ascontiguousarray(np.concatenate([row[place] for row in rows]))
        path = Path(request["out"]) / f"out{place}"
        array.tofile(path)
        found[name] = {"file": str(path), "dtype": array.dtype.name, "shape": list(array.shape)}
    return found


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(*sys.argv[2:4])
    else:
        run(sys.argv[2], json.loads(sys.argv[3]))
