"""A quantized model that belongs to no target: the graph in floating point, and the table of what it is rounded to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.quant.affine import Affine
from lowbit.types import TensorInfo

if TYPE_CHECKING:
    import onnx_ir as ir

    from lowbit.data.preprocess import Preprocess
    from lowbit.quant.observers import TensorStats


@dataclass(frozen=True)
class Neutral:
    """What every target's writer starts from. Writers copy `model` before they change it.

    Attributes:
        name: Of the model: letters, digits and "_".
        model: Prepared graph without QuantizeLinear and DequantizeLinear; weights are exactly on their grids, biases as they were stored.
        weights: Initializer -> its grid, of those that were quantized (int8, symmetric, per channel or per tensor; int4; int32 biases).
        activations: Computed tensor or input -> its grid as the candidate has it (unsigned and asymmetric, as a rule).
        ranges: Every tensor that calibration saw -> (low, high) in real units, by the candidate's own range method.
        stats: The same tensors' statistics, for targets that calibrate by themselves (symmetric grids, 16 bit).
        inputs: As the model is fed.
        outputs: As it answers.
        preprocess: What is done to samples before; None where nothing is.
        labels: Names of the classes, where known.
        candidate: Id of the candidate it came from.
    """

    name: str
    model: ir.Model
    weights: Mapping[str, Affine]
    activations: Mapping[str, Affine]
    ranges: Mapping[str, tuple[float, float]]
    stats: Mapping[str, TensorStats]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    preprocess: Preprocess | None
    labels: tuple[str, ...]
    candidate: str
