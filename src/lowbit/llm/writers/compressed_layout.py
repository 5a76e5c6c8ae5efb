"""compressed-tensors' layout of quantized weights (github.com/vllm-project/compressed-tensors), there and back: the same numbers.

    pack-quantized   NAME_packed int32 [O, ceil(K * bits / 32)], levels one after the other, the first in the lowest bits;
                     NAME_scale [O, groups]; NAME_shape int64 [2];
                     NAME_zero_point int32 [ceil(O * bits / 32), groups], packed along the rows
    int-quantized    NAME int8 [O, K], levels minus the middle one; NAME_scale [O, 1]

NAME ends in "weight".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit.llm.levels import pack_levels, packed_width, unpack_levels
from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.types import Array

PACKED, INTEGER = "pack-quantized", "int-quantized"


def parts(name: str, quantized: QuantizedLinear, activations: bool, dtype: Any) -> dict[str, Array]:
    """The tensors of one layer.

    Args:
        name: Ends in "weight".
        quantized: Its weights.
        activations: Whether its inputs are rounded as well.
        dtype: Of the scales: the model's floating point, which must hold float16.
    """
    scale = quantized.scale.astype(dtype)
    if activations:
        return {name: (quantized.levels.astype(np.int16) - quantized.grid.zero).astype(np.int8), f"{name}_scale": scale}
    bits = quantized.grid.bits
    found = {
        f"{name}_packed": _words(quantized.levels, bits),
        f"{name}_scale": scale,
        f"{name}_shape": np.asarray(quantized.shape, np.int64),
    }
    if quantized.zero is not None:
        found[f"{name}_zero_point"] = np.ascontiguousarray(_words(np.ascontiguousarray(quantized.zero.T), bits).T)
    return found


def joined(read: Mapping[str, Array], name: str, grid: Grid, activations: bool) -> QuantizedLinear:
    """A layer from its tensors: what `parts` was given, scales in float16."""
    scale = read[f"{name}_scale"].astype(np.float16)
    if activations:
        return QuantizedLinear((read[name].astype(np.int16) + grid.zero).astype(np.uint8), scale, None, grid)
    rows, columns = (int(each) for each in read[f"{name}_shape"])
    zero = None
    if not grid.symmetric:
        zero = np.ascontiguousarray(_levels(np.ascontiguousarray(read[f"{name}_zero_point"].T), rows, grid.bits).T)
    return QuantizedLinear(_levels(read[f"{name}_packed"], columns, grid.bits), scale, zero, grid)


def scheme(grid: Grid, activations: bool) -> dict[str, Any]:
    """A group of quantization_config."""
    weights = {"num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric, "dynamic": False, "observer": "minmax"}
    weights |= {"strategy": "channel" if grid.group is None else "group", "group_size": grid.group}
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True, "observer": None}
    return {
        "weights": weights,
        "input_activations": inputs if activations else None,
        "output_activations": None,
        "format": INTEGER if activations else PACKED,
    }


def grid_of(group: Mapping[str, Any]) -> Grid:
    """What `scheme` was given.

    Raises:
        KeyError: a key is missing.
        ValueError: something that no Grid is.
    """
    weights = group["weights"]
    if weights["type"] != "int" or weights["strategy"] not in ("channel", "group") or weights["num_bits"] not in (4, 8):
        raise ValueError(f"{weights['num_bits']} bits of kind {weights['type']} by {weights['strategy']}")
    return Grid(int(weights["num_bits"]), weights["group_size"] if weights["strategy"] == "group" else None, bool(weights["symmetric"]))


def _words(levels: Array, bits: int) -> Array:
    """uint8 [R, C] -> int32 [R, ceil(C * bits / 32)]."""
    packed = pack_levels(levels, bits)
    width = -(-levels.shape[1] * bits // 32) * 4
    padded = np.zeros((len(packed), width), np.uint8)
    padded[:, : min(width, packed.shape[1])] = packed[:, :width]
    return padded.view("<i4")


def _levels(words: Array, columns: int, bits: int) -> Array:
    stored = np.ascontiguousarray(words).view(np.uint8)
    width = packed_width(columns, bits)
    padded = np.zeros((len(stored), max(width, stored.shape[1])), np.uint8)
    padded[:, : stored.shape[1]] = stored
    return unpack_levels(np.ascontiguousarray(padded[:, :width]), columns, bits)
