"""The neutral parameter table: tensor -> scale, zero point, dtype, axis, read back from an artifact.

It says in one place what was decided, whoever decided it, in a form from which the writers of
other targets can start. `parameters.json` holds the table, `parameters.npz` the arrays.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowbit.types import Array


@dataclass(frozen=True)
class Parameters:
    """How one tensor is quantized.

    Attributes:
        tensor: Name in the prepared graph.
        kind: "weight" or "activation".
        dtype: numpy's name of the integer type.
        axis: Channel axis, None for per-tensor.
        scale: float32, scalar or [channels].
        zero_point: Same shape, of `dtype`.
    """

    tensor: str
    kind: str
    dtype: str
    axis: int | None
    scale: Array
    zero_point: Array


SUFFIXES = ("_quantized", "_QuantizeLinear_Output", "_QuantizeLinear_Input", "_DequantizeLinear_Output")


def read_parameters(artifact: Path) -> list[Parameters]:
    """The table of a QDQ artifact, one row per quantized tensor, sorted by name."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model(artifact)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    rows: dict[str, Parameters] = {}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[1] not in constants:
            continue
        is_weight = node.input[0] in constants
        if node.op_type == "DequantizeLinear" and not is_weight:
            continue  # its QuantizeLinear has said it all
        name = _source_name(node.input[0])
        scale = numpy_helper.to_array(constants[node.input[1]])
        given = len(node.input) > 2 and node.input[2] in constants
        zero = numpy_helper.to_array(constants[node.input[2]]) if given else np.zeros(scale.shape, np.uint8)
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        rows[name] = Parameters(
            name, "weight" if is_weight else "activation", zero.dtype.name, axis if scale.size > 1 else None, scale, zero
        )
    return [rows[name] for name in sorted(rows)]


def save_parameters(rows: list[Parameters], folder: Path) -> None:
    """Writes `parameters.json` and `parameters.npz` into `folder`."""
    arrays: dict[str, Array] = {}
    table = []
    for index, row in enumerate(rows):
        arrays[f"scale_{index}"], arrays[f"zero_point_{index}"] = row.scale, row.zero_point
        table.append({"tensor": row.tensor, "kind": row.kind, "dtype": row.dtype, "axis": row.axis, "arrays": index})
    (folder / "parameters.json").write_text(json.dumps({"schema": 1, "tensors": table}, indent=1) + "\n")
    with (folder / "parameters.npz").open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_parameters(folder: Path) -> list[Parameters]:
    """Reads what `save_parameters` wrote."""
    table = json.loads((folder / "parameters.json").read_text())["tensors"]
    with np.load(folder / "parameters.npz", allow_pickle=False) as arrays:
        return [
            Parameters(
                row["tensor"],
                row["kind"],
                row["dtype"],
                row["axis"],
                arrays[f"scale_{row['arrays']}"],
                arrays[f"zero_point_{row['arrays']}"],
            )
            for row in table
        ]


def _source_name(name: str) -> str:
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name
