"""Recipes: which tensors get which precision, by which method. Data, with a YAML round trip.

Naming convention of the built-in recipes:

    fp32                     the source, unchanged
    fp16                     weights stored in 16 bit (arithmetic is the runtime's: see Tuning.precision)
    int8-dynamic             weights ahead of time, activations at run time
    int8-static-RANGE        ranges by RANGE (minmax, percentile, entropy, mse), weights per channel
    int8-static-RANGE-tensor the same, weights per tensor
    int8-nncf                made by NNCF, where it is installed
    int8-pt2e                made by PyTorch's own quantizer, for the torch runtime alone (train/pt2e.py)
    int8-torch-dynamic       the same, activations at run time, linear layers alone
    int8-qat                 the best static one, trained further (train/qat.py)
    int8-pruned              channels taken out and the rest trained first (train/prune.py); never tried unless asked for
    research-...             fewer bits than runtimes have kernels for; never tried unless asked for
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import yaml

from lowbit.errors import UsageError
from lowbit.strict import check_keys, read_recipe, word
from lowbit.types import RangeMethod

Dtype = Literal["int8", "uint8", "int4", "uint4", "int3", "int2", "int1", "int16", "uint16", "fp16", "bf16", "fp32"]
Granularity = Literal["per-tensor", "per-channel", "per-group"]
Transform = Literal["equalize", "smooth", "fit"]
Method = Literal["none", "cast", "dynamic", "static", "qat", "prune", "nncf", "onnxruntime-defaults", "pt2e", "torch-dynamic"]


@dataclass(frozen=True)
class QuantSpec:
    """How one tensor is quantized, e.g. `QuantSpec("int8", "per-channel", symmetric=True)`.

    Attributes:
        dtype: What it is stored as.
        granularity: How much of it shares one scale.
        symmetric: Zero is the middle of the grid.
        block: Consecutive inputs of an output channel that share a scale, where it is "per-group"; None is the writer's own choice.
    """

    dtype: Dtype
    granularity: Granularity = "per-tensor"
    symmetric: bool = False
    block: int | None = None


@dataclass(frozen=True)
class Recipe:
    """One way to make a smaller model.

    Attributes:
        name: Unique within a search; see the naming convention above.
        method: Which writer makes the artifact.
        weights: How weights are stored.
        activations: How activations are; None where they stay floating point.
        ranges: How activation ranges follow from the calibration statistics.
        operators: Operator types to quantize; empty means the writer's own list.
        exclude: Names of nodes to leave in floating point.
        transforms: What is done to the FP32 model first, for static and trained recipes (compress/static.py).
        formats: Group -> format by name ("float", "w8a8", "w4a8", "w8a16"), for groups that differ from the rest.
    """

    name: str
    method: Method
    weights: QuantSpec
    activations: QuantSpec | None = None
    ranges: RangeMethod | None = None
    operators: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    transforms: tuple[Transform, ...] = ()
    formats: Mapping[str, str] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """The short word for tables: "fp32", "fp16" or "int8"."""
        return {"uint8": "int8", "uint4": "int4"}.get(self.weights.dtype, self.weights.dtype)

    def to_yaml(self) -> str:
        return yaml.safe_dump({"schema": 1, **_plain(asdict(self))}, sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """Reads what `to_yaml` wrote.

        Raises:
            UsageError: not YAML, a key or value that is not known, or a key that is missing.
        """
        values = read_recipe(text, (each.name for each in fields(cls)), ("name", "method", "weights"))
        word("method", values["method"], Method)
        for transform in values.get("transforms") or ():
            word("transform", transform, Transform)
        if values.get("ranges") is not None:
            word("range method", values["ranges"], RangeMethod)
        return cls(
            name=str(values["name"]),
            method=values["method"],
            weights=_spec(values["weights"]),
            activations=None if values.get("activations") is None else _spec(values["activations"]),
            ranges=values.get("ranges"),
            operators=tuple(values.get("operators") or ()),
            exclude=tuple(values.get("exclude") or ()),
            transforms=tuple(values.get("transforms") or ()),
            formats=_formats(values.get("formats") or {}),
        )


def widths(name: str) -> tuple[int, int] | None:
    """Bits of weights and activations that a format's name says; None for "float".

    >>> widths("w4a8"), widths("float")
    ((4, 8), None)

    Raises:
        UsageError: not of the form wNaM with N 4 or 8 and M 8 or 16, nor "float".
    """
    if name == "float":
        return None
    match = re.fullmatch(r"w([48])a(8|16)", name)
    if match is None:
        raise UsageError(f"'{name}' is not a format.", "Give float, w8a8, w4a8, w8a16 or w4a16.")
    return int(match[1]), int(match[2])


def _formats(raw: object) -> dict[str, str]:
    if not isinstance(raw, dict):
        raise UsageError(f"'{raw}' is not a mapping from groups to formats.", 'Give e.g. {"conv1": "float"}.')
    for name in raw.values():
        widths(str(name))
    return {str(group): str(name) for group, name in raw.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if not (key == "block" and item is None)}
    return list(value) if isinstance(value, tuple) else value


def _spec(raw: object) -> QuantSpec:
    if not isinstance(raw, dict):
        raise UsageError(f"'{raw}' is not a quantization spec: give dtype, granularity and symmetric.")
    check_keys("quantization key", raw, ("dtype", "granularity", "symmetric", "block"))
    word("dtype", raw.get("dtype"), Dtype)
    word("granularity", raw.get("granularity", "per-tensor"), Granularity)
    granularity, block = raw.get("granularity", "per-tensor"), raw.get("block")
    if block is not None and (granularity != "per-group" or isinstance(block, bool) or not isinstance(block, int) or block < 1):
        raise UsageError(f"Block '{block}' with granularity {granularity}: a block is a positive number, and only per-group has one.")
    return QuantSpec(raw["dtype"], granularity, bool(raw.get("symmetric", False)), block)
