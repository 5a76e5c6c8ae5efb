"""Smooth the inputs of matrix products that no layer before can scale: behind normalisations, GELU and attention.

X W = (X / s)(s W), with a factor a channel of X whose strength is searched per tensor (quant/smoothquant.py). The weights take their
part here; the writer puts a Mul in front of the rounding of the activations, for the readers that compute with integers alone
(graph/qdq.py). Runtimes fuse it with the normalisation before it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from lowbit.compress.capture import Captured
from lowbit.compress.products import Constants, Product
from lowbit.quant import smoothquant
from lowbit.recipe import QuantSpec
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir


def smooth(
    model: ir.Model, found: dict[str, Product], captured: Captured, entries: Collection[str], weights: QuantSpec, activations: QuantSpec
) -> dict[str, Array]:
    """Smooths a model in place.

    Args:
        model: A prepared model.
        found: Its products.
        captured: Rows and channel ranges of what they read.
        entries: Tensors that are rounded for products alone; all others read them as they are.
        weights: How weights will be quantized.
        activations: How activations will be.

    Returns:
        Tensor -> factor a channel [C] by which it is to be divided before it is rounded.
    """
    constants = Constants(model)
    readers: dict[str, list[Product]] = {}
    for product in found.values():
        readers.setdefault(product.site.tensor, []).append(product)
    factors: dict[str, Array] = {}
    for tensor, products in readers.items():
        if tensor not in entries or any(product.layout == "conv" for product in products):
            continue
        matrices = [product.matrices(constants[product.weight])[0].T for product in products]
        chosen = smoothquant.search(
            captured.rows[products[0].group.name][:, 0],
            matrices,
            low=captured.low[tensor],
            high=captured.high[tensor],
            activation=activations.dtype,
            weight=weights.dtype,
        )
        if chosen.choice == smoothquant.NONE:
            continue
        factors[tensor] = chosen.factors
        for product in products:
            values = constants[product.weight]
            constants[product.weight] = product.back(product.matrices(values) * product.by_channel(chosen.factors), values.shape)
    return factors
