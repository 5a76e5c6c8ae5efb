"""The neutral parameter table: tensor -> scale, zero point, dtype, axis, read back from an artifact.

It says in one place what was decided, whoever decided it, in a form from which the writers of
other targets can start. `parameters.json` holds the table, `parameters.npz` the arrays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.types import Array

_CONTAINERS = {"int4": np.int8, "uint4": np.uint8}
"""Types that numpy does not have -> what holds them in the table."""


@dataclass(frozen=True)
class Parameters:
    """How one tensor is quantized.

    Attributes:
        tensor: Name in the prepared graph.
        kind: "weight" or "activation".
        dtype: Name of the integer type: "uint8", "int4", ...
        axis: Channel axis, or the one that is cut into blocks; None for per-tensor.
        scale: float32, scalar, [channels], or blocked.
        zero_point: Same shape, of `dtype` (4-bit ones in bytes).
        block: Elements of a block, None where nothing is blocked.
    """

    tensor: str
    kind: str
    dtype: str
    axis: int | None
    scale: Array
    zero_point: Array
    block: int | None = None


_SUFFIX = re.compile(r"(_quantized|_QuantizeLinear_(Out|In)put|_DequantizeLinear_Output|_unrounded)(_\d+)?$")
"""What writers append to a tensor's name, and the number that keeps it apart from names the model had."""


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
        scale, zero = numpy_helper.to_array(constants[node.input[1]]), _zero_point(node, constants)
        dtype = zero.dtype.name
        if dtype in _CONTAINERS:
            zero = zero.astype(_CONTAINERS[dtype])
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        axis = attributes.get("axis", 1) if scale.size > 1 else None
        if name in rows and rows[name].dtype != dtype:
            name = f"{name}@{dtype}"
        block = attributes.get("block_size") or None
        rows[name] = Parameters(name, "weight" if is_weight else "activation", dtype, axis, scale, zero, block)
    return [rows[name] for name in sorted(rows)]


def _zero_point(node: Any, constants: Mapping[str, Any]) -> Array:
    from onnx import numpy_helper

    given = len(node.input) > 2 and node.input[2] in constants
    return numpy_helper.to_array(constants[node.input[2]]) if given else np.zeros((), np.uint8)


def save_parameters(rows: list[Parameters], folder: Path) -> None:
    """Writes `parameters.json` and `parameters.npz` into `folder`."""
    arrays: dict[str, Array] = {}
    table = []
    for index, row in enumerate(rows):
        arrays[f"scale_{index}"], arrays[f"zero_point_{index}"] = row.scale, row.zero_point
        table.append({"tensor": row.tensor, "kind": row.kind, "dtype": row.dtype, "axis": row.axis, "block": row.block, "arrays": index})
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
                row.get("block"),
            )
            for row in table
        ]


def _source_name(name: str) -> str:
    return _SUFFIX.sub("", name)
