"""Put what a twin has learned into the QDQ file that it was made from: integers, scales, biases; nodes and names stay.

A value that training has not touched keeps its integers to the last bit. Biases are rounded last, on the product of the scales that
the input and the weight have by then.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from lowbit.errors import ModelError, UsageError
from lowbit.graph import ir_files
from lowbit.graph.parameters import Parameters, read_parameters, save_parameters
from lowbit.train.parts import Bias
from lowbit.train.twin import Twin
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

_INT32_SHARE = 2.0**30 * (1 + 1e-6)
"""Largest bias in units of its grid: half of int32, the other half is for the sum of products (graph/parameterize.py)."""


def write_back(twin: Twin, source: Path, out: Path) -> list[Parameters]:
    """Writes a twin's weights, scales and biases.

    Args:
        twin: Trained, or not.
        source: The QDQ file that the twin was made from; not changed.
        out: The artifact, another file. A parameter table that lies beside it (`parameters.json`) is written anew.

    Returns:
        The table of the artifact.

    Raises:
        ModelError: weights or scales are not finite: training has diverged.
        UsageError: `source` is not the file that the twin was made from, or `out` is.
    """
    model = ir_files.read(source)
    if out.exists() and out.samefile(source):
        raise UsageError(f"'{out}' is the file that the twin was made from.", "Give another path.")
    file = {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value is not None}
    for name, array in _learned(twin, file).items():
        _replace(model, name, array)
    ir_files.write(model, out)
    rows = read_parameters(out)
    if (out.parent / "parameters.json").exists():
        save_parameters(rows, out.parent)
    return rows


def _learned(twin: Twin, file: dict[str, Array]) -> dict[str, Array]:
    """Every constant of the file that the twin has its own version of, by name."""
    _check_source(twin, file)
    scales, found = _scales(twin), {}
    for key, grid in twin.plan.grids.items():
        found[grid.scale] = scales[key].reshape(file[grid.scale].shape)
        if grid.zero_point is not None:
            found[grid.zero_point] = _array(twin.quantizer(key).zero_point).reshape(file[grid.zero_point].shape)
        if key in twin.plan.stored:
            weight = twin.weight(grid.tensor)
            found[key] = _array(twin.quantizer(key).integers(weight, torch.from_numpy(scales[key]).to(weight.device)))
    for name, bias in twin.plan.biases.items():
        found[name], found[bias.scale] = _bias(twin, bias, scales, file)
    plain = set(twin.plan.trained) - set(twin.plan.stored) - set(twin.plan.biases)
    return found | {name: _array(twin.weight(name)) for name in plain}


def _scales(twin: Twin) -> dict[str, Array]:
    """The scale of each grid; those of weights are coarse enough that biases fit into int32 on the product with the input's."""
    grids = twin.plan.grids
    found = {grid.leader: _array(twin.quantizer(grid.leader).positive_scale()) for grid in grids.values()}
    for bias in twin.plan.biases.values():
        if bias.activation is None or bias.weight is None:
            continue
        weight, activation = grids[bias.weight].leader, found[grids[bias.activation].leader].item()
        least = np.abs(_array(twin.weight(bias.stored)).reshape(-1).astype(np.float64)) / (_INT32_SHARE * activation)
        room = least.reshape(found[weight].shape) if least.size == found[weight].size else least.max()
        found[weight] = np.asarray(np.maximum(found[weight], room), np.float32)
    return {key: found[grid.leader] for key, grid in grids.items()}


def _check_source(twin: Twin, file: dict[str, Array]) -> None:
    wrong = [name for name, array in twin.plan.trained.items() if name not in file or file[name].shape != array.shape]
    wrong += [grid.scale for grid in twin.plan.grids.values() if grid.scale not in file]
    if wrong:
        raise UsageError(
            f"The file is not the one that the twin was made from: constant '{wrong[0]}' differs.", f"Give the path of '{twin.path.name}'."
        )
    broken = [name for name, parameter in twin.named_parameters() if not bool(torch.isfinite(parameter).all())]
    if broken:
        raise ModelError(f"Training has diverged: '{broken[0]}' holds NaN or infinity.", "Train again with a lower learning rate.")


def _array(tensor: torch.Tensor) -> Array:
    found: Array = tensor.detach().cpu().numpy()
    return found


def _bias(twin: Twin, bias: Bias, scales: dict[str, Array], file: dict[str, Array]) -> tuple[Array, Array]:
    """Integers and scale of a bias; where neither its value nor the grids below it have moved, both stay."""
    scale, moved = file[bias.scale], np.zeros((), bool)
    if bias.activation is not None and bias.weight is not None:
        activation, weight = (twin.plan.grids[key] for key in (bias.activation, bias.weight))
        moved = (scales[activation.key] != file[activation.scale]) | (scales[weight.key] != file[weight.scale])
        moved = np.broadcast_to(moved.reshape(-1), (scale.size,)).reshape(scale.shape)
        scale = np.where(moved, (scales[activation.key] * scales[weight.key]).reshape(scale.shape), scale)
    value = _array(twin.weight(bias.stored))
    limits = np.iinfo(np.int32)
    rounded = np.clip(np.rint(value.astype(np.float64) / scale), limits.min, limits.max).astype(np.int32)
    untouched = (value == twin.plan.trained[bias.stored]) & ~moved
    return np.where(untouched, file[bias.stored], rounded), scale


def _replace(model: ir.Model, name: str, array: Array) -> None:
    """Another value for a constant, of the same type."""
    import onnx_ir

    value = model.graph.initializers[name]
    assert value.const_value is not None
    kind = value.const_value.dtype
    held = array.astype(np.int8 if kind.name == "INT4" else np.uint8 if kind.name == "UINT4" else kind.numpy())
    small = kind if kind.name in ("INT4", "UINT4") else None
    value.const_value = onnx_ir.tensor(np.array(held, order="C"), dtype=small, name=name)
