"""A quantized model that belongs to no target: the graph in floating point, and the table of what it is rounded to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lowbit.errors import ModelError
from lowbit.export.neutral_candidate import Source, find_source, ranked
from lowbit.export.neutral_pairs import Stripped, strip_pairs
from lowbit.export.neutral_ranges import ranges_of, true_statistics
from lowbit.measure.tasks import main_output, width_of
from lowbit.quant.affine import Affine
from lowbit.types import Feeds, TensorInfo

if TYPE_CHECKING:
    import onnx_ir as ir

    from lowbit.bundle.bundle import Bundle
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
        samples: Input -> real values [N, ...] for targets that measure ranges by themselves; none of them judges. Empty where none were
            asked for, or there are none.
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
    samples: Feeds = field(default_factory=dict)


def read_neutral(bundle: Bundle, candidate: str | None = None) -> Neutral:
    """Reads a static INT8 candidate of a bundle.

    Where its grids and calibration's statistics speak of the same tensor, the grid wins. Outputs of the model that have no grid keep
    their whole range whatever the candidate's method: a clipped logit is a tie.

    Args:
        bundle: What `lowbit optimize` left behind.
        candidate: Its id; None takes what ships where that has a table, else the best candidate that has.

    Raises:
        UsageError: no such candidate, or none with a table whose artifact is there.
        ModelError: an artifact that cannot be read as a table: its tensors are not those of calibration, or its pairs are of another kind.
    """
    tables = [candidate] if candidate is not None else [entry.id for entry in ranked(bundle)]
    refusals: list[ModelError] = []
    for name in tables:
        try:
            return _read(bundle, find_source(bundle, name))
        except ModelError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]
    return _read(bundle, find_source(bundle, None))


def _read(bundle: Bundle, source: Source) -> Neutral:
    from lowbit.graph import ir_files

    model = ir_files.read(source.artifact)
    stripped = strip_pairs(model)
    _check_names(stripped, source)
    stats = true_statistics(source, stripped)
    model_entry = bundle.manifest.model
    outputs = tuple(TensorInfo(entry.name, entry.shape, entry.dtype) for entry in model_entry.outputs)
    return Neutral(
        name=_word(bundle.manifest.source.path),
        model=model,
        weights=stripped.weights,
        activations=stripped.activations,
        ranges=ranges_of(source, stripped, stats),
        stats=stats,
        inputs=tuple(TensorInfo(entry.name, entry.shape, entry.dtype) for entry in model_entry.inputs),
        outputs=outputs,
        preprocess=bundle.preprocess,
        labels=labels_for(bundle.manifest.data.classes, outputs),
        candidate=source.id,
    )


def labels_for(classes: tuple[str, ...] | None, outputs: tuple[TensorInfo, ...]) -> tuple[str, ...]:
    """Names of classes, where there are as many as the model's main output has numbers; else none."""
    return classes if classes and len(classes) == width_of(main_output(outputs)) else ()


def _check_names(stripped: Stripped, source: Source) -> None:
    """A table that speaks of other tensors than calibration cannot be completed from its statistics."""
    strangers = sorted(set(stripped.activations) - set(source.stats.tensors) - stripped.made)
    if not stripped.activations:
        raise ModelError(f"'{source.id}' rounds no activation, so that it has no table of their grids.", source.instead)
    if strangers:
        some = ", ".join(strangers[:3]) + (" ..." if len(strangers) > 3 else "")
        raise ModelError(
            f"'{source.id}' rounds {len(strangers)} tensors that calibration has not seen ({some}): whoever made it has changed the graph.",
            source.instead,
        )


def _word(name: str) -> str:
    """A file's name as a word of letters, digits and "_" that starts with a letter."""
    word = re.sub(r"\W+", "_", re.sub(r"\.\w+$", "", name), flags=re.ASCII).strip("_")
    return word if word[:1].isalpha() else f"model_{word}".rstrip("_")
