"""Which recipes are worth trying on a model, in the order in which they should be tried. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast, get_args

from lowbit.recipe import Dtype, Granularity, QuantSpec, Recipe
from lowbit.types import RangeMethod

FP32 = Recipe("fp32", "none", QuantSpec("fp32"))
FP16 = Recipe("fp16", "cast", QuantSpec("fp16"))
INT8_DYNAMIC = Recipe("int8-dynamic", "dynamic", QuantSpec("int8", "per-channel", symmetric=True))
INT8_NNCF = Recipe("int8-nncf", "nncf", QuantSpec("int8", "per-channel", symmetric=True), QuantSpec("uint8"))
INT8_DEFAULTS = Recipe("int8-onnxruntime-defaults", "onnxruntime-defaults", QuantSpec("int8", symmetric=True), QuantSpec("int8"), "minmax")
"""What `quantize_static` gives without options: signed activations, per-tensor weights, every operator."""
INT8_PT2E = Recipe("int8-pt2e", "pt2e", QuantSpec("int8", "per-channel", symmetric=True), QuantSpec("uint8"))
INT8_TORCH_DYNAMIC = Recipe("int8-torch-dynamic", "torch-dynamic", QuantSpec("int8", "per-channel", symmetric=True))

PROGRAM_METHODS = ("pt2e", "torch-dynamic")
"""What these make are programs (.pt2), for runtimes that open them; what the others make are ONNX files."""

BATCH_SCALED = ("dynamic", "torch-dynamic")
"""Methods by which an answer depends on the samples that are fed with it: their activations share one scale."""

QAT = "int8-qat"
"""What is trained in a search is called this."""

MATRIX_OPERATORS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Traits:
    """What a model is made of, as far as the choice of recipes goes.

    Attributes:
        transformer: It has attention: Softmax between matrix products, with normalisation.
        recurrent: It has LSTM, GRU or RNN layers.
        convolutional: It has convolutions.
        matrix: It has matrix products.
    """

    transformer: bool
    recurrent: bool
    convolutional: bool
    matrix: bool


def traits(operators: Mapping[str, int]) -> Traits:
    """Reads the traits off operator counts (graph/load.operator_counts)."""
    products = operators.get("MatMul", 0) + operators.get("Gemm", 0)
    norms = operators.get("LayerNormalization", 0) + operators.get("ReduceMean", 0) + operators.get("SimplifiedLayerNormalization", 0)
    return Traits(
        transformer=operators.get("Softmax", 0) > 0 and products >= 4 and norms > 1,
        recurrent=any(operators.get(name, 0) for name in ("LSTM", "GRU", "RNN")),
        convolutional=operators.get("Conv", 0) + operators.get("ConvTranspose", 0) > 0,
        matrix=products > 0,
    )


def fitted(ranges: RangeMethod) -> Recipe:
    """Static INT8 for convolutions: channels equalized, weights and biases fitted to the data."""
    return replace(static(ranges), name=f"int8-fitted-{ranges}", transforms=("equalize", "fit"))


def smoothed() -> Recipe:
    """Static INT8 for attention: inputs smoothed, ranges by min-max. Fitting 8-bit weights gained nothing there (docs/lab.md)."""
    return replace(static("minmax"), name="int8-smoothed", transforms=("equalize", "smooth"))


def static(ranges: RangeMethod, *, per_channel: bool = True, operators: tuple[str, ...] = (), suffix: str = "") -> Recipe:
    """A static INT8 recipe: unsigned activations, signed symmetric weights."""
    granularity: Granularity = "per-channel" if per_channel else "per-tensor"
    name = f"int8-static-{ranges}{'' if per_channel else '-tensor'}{suffix}"
    return Recipe(name, "static", QuantSpec("int8", granularity, symmetric=True), QuantSpec("uint8"), ranges, operators)


def trained(base: Recipe, number: int = 1) -> Recipe:
    """A static recipe, trained by distillation from where it ends."""
    return replace(base, name=f"{QAT}{'' if number == 1 else f'-{number}'}", method="qat")


def research(bits: int, word: str) -> Recipe:
    """Weights of fewer bits than 8, trained; kernels for them there are none on CPUs, so they are stored and run as INT8."""
    weights = QuantSpec(cast(Dtype, f"int{bits}"), "per-channel", symmetric=True)
    return Recipe(f"research-{word}", "qat", weights, QuantSpec("uint8"), "mse", transforms=("equalize", "fit"))


PRUNED = replace(fitted("mse"), name="int8-pruned", method="prune")
"""A model with fewer channels, trained, then like any other."""

ON_REQUEST = (PRUNED, research(4, "w4a8"), research(3, "w3a8"), research(2, "ternary"), research(1, "binary"))
"""Never tried unless asked for by name."""


def recipes_for(model: Traits, *, nncf: bool) -> list[Recipe]:
    """Cheap and likely first: what costs nothing to make, then the best INT8 guesses for the kind of model, then the rest.

    Clipped ranges hurt attention, whose outliers carry meaning (docs/lab.md): transformers get min-max ranges alone.
    """
    all_ranges: tuple[RangeMethod, ...] = get_args(RangeMethod)
    found = [FP32, FP16]
    if model.transformer:
        found += [smoothed(), INT8_DYNAMIC]
        found += [INT8_NNCF] if nncf else []
        found += [static("minmax")]
    elif model.recurrent:
        found += [INT8_DYNAMIC, static("minmax", operators=MATRIX_OPERATORS, suffix="-matmul")]
    else:
        found += [fitted("mse"), fitted("minmax")]
        found += [static(ranges) for ranges in ("minmax", "mse", "percentile", "entropy")]
        found += [INT8_NNCF] if nncf else []
        found += [INT8_DYNAMIC] if model.matrix and not model.convolutional else []
        found += [static("minmax", per_channel=False)]
    assert set(all_ranges) >= {recipe.ranges for recipe in found if recipe.ranges}
    return [*found, INT8_DEFAULTS]


def program_recipes_for(model: Traits) -> list[Recipe]:
    """What is tried besides on a runtime that opens programs."""
    if model.recurrent:
        return [INT8_TORCH_DYNAMIC]
    return [INT8_PT2E, INT8_TORCH_DYNAMIC] if model.matrix and (model.transformer or not model.convolutional) else [INT8_PT2E]


def structure(recipe: Recipe) -> str:
    """What determines speed: recipes that differ in their ranges alone are equally fast, and weights
    that are only stored in 16 bit are widened when the model is loaded."""
    if recipe.method in ("none", "cast"):
        return "floating point"
    method = "static" if recipe.method == "qat" else recipe.method  # training changes numbers alone
    return str(replace(recipe, name="", method=method, ranges=None, transforms=tuple(t for t in recipe.transforms if t == "smooth")))
