"""Fit the rounding of weights and the biases of every product to the rows that it reads.

Three ways are tried a product: weights to their nearest levels, the same with the mean of the error taken back by the bias, and
weights rounded with error feedback on top. Each is fitted on one half of the sampled rows and judged on the other, so that a way wins
only where it helps on rows it has not seen; with few rows for many inputs, feedback overfits and loses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lowbit.compress.capture import Captured
from lowbit.compress.equalize import outputs
from lowbit.compress.products import Constants, Product
from lowbit.graph.parameterize import Table
from lowbit.quant.affine import Affine, round_trip
from lowbit.quant.bias import correction
from lowbit.quant.moments import Moments
from lowbit.quant.rounding import to_nearest, with_feedback
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

ENOUGH = 2
"""Rows an input that feedback needs at least: below, it cannot but overfit."""

SWEEPS = 1
"""Of descent after rounding with feedback; more change little and take longer than the rounding itself."""

JUDGED = 256
"""Rows on which ways are compared, about."""

GAIN = 0.98
"""A way must bring the error on unseen rows to this share of what plain rounding leaves."""


@dataclass(frozen=True)
class Way:
    """How one product is fitted, and what that does.

    Attributes:
        feedback: Weights are rounded with feedback, not to the nearest level.
        corrected: The bias takes back the mean of the error.
        error: Relative squared error of the output on rows it was not fitted to.
        plain: The same for plain rounding.
    """

    feedback: bool
    corrected: bool
    error: float
    plain: float


def fit(
    model: ir.Model, found: dict[str, Product], captured: Captured, table: Table, factors: dict[str, Array], keys: Mapping[str, str]
) -> dict[str, Way]:
    """Fits a model in place: weights end up on their grids, biases corrected.

    Args:
        model: The transformed model.
        found: The products that will compute with integers.
        captured: Rows of the model before it was transformed.
        table: Grids of weights and of what the products read.
        factors: Tensor -> factor a channel by which transforms have divided it since.
        keys: Product -> the key in the table of what it reads, where that is not the tensor's name.

    Returns:
        Product -> the way that was best.
    """
    constants = Constants(model)
    ways = {}
    for name, product in found.items():
        rows = captured.rows[name]
        if product.site.tensor in factors:
            rows = rows / np.swapaxes(product.by_channel(factors[product.site.tensor]), 0, 1)
        exact = product.matrices(constants[product.weight])
        grid = product.grid_of_rows(table[product.weight], constants[product.weight])
        seen = round_trip(rows, table[keys.get(name, product.site.tensor)])
        problem = _Problem(exact, grid, rows, seen, product.bias is not None)
        way = problem.best()
        ways[name] = way
        quantized, shift = problem.solve(way.feedback, way.corrected, slice(None))
        constants[product.weight] = product.back(quantized, constants[product.weight].shape)
        if product.bias is not None and way.corrected:
            constants[product.bias] = constants[product.bias] + shift.reshape(constants[product.bias].shape)
    return ways


@dataclass(frozen=True)
class _Problem:
    """One product: exact weights [g, O/g, K], their grid, rows [R, g, K] as the float and as the quantized model has them."""

    exact: Array
    grid: Affine
    rows: Array
    seen: Array
    has_bias: bool

    @cached_property
    def nearest(self) -> Array:
        """The weights rounded to their nearest levels."""
        return to_nearest(self.exact, self.grid)

    def best(self) -> Way:
        """The way with the least error on rows it was not fitted to."""
        half = len(self.rows) // 2
        parts = (slice(half), slice(half, None))
        trials = [(False, False)]
        if half:
            trials += [(False, True)] if self.has_bias else []
            trials += [(True, self.has_bias)] if half >= ENOUGH * self.exact.shape[-1] else []
        errors = {trial: self._error(*self.solve(*trial, parts[0]), parts[1]) for trial in trials}
        plain = errors[False, False]
        best = min(errors, key=errors.__getitem__)
        if errors[best] > GAIN * plain:
            best = (False, False)
        return Way(*best, errors[best], plain)

    def solve(self, feedback: bool, corrected: bool, part: slice) -> tuple[Array, Array]:
        """Weights on their grid and what to add to the bias, from some of the rows."""
        rows, seen = self.rows[part], self.seen[part]
        quantized = self.nearest
        if feedback:
            moments = Moments.of(rows, seen)
            quantized = with_feedback(self.exact, self.grid, moments.centred() if corrected else moments, sweeps=SWEEPS)
        if not corrected:
            return quantized, np.zeros(self.exact.shape[:2])
        return quantized, correction(self.exact, quantized, *(part.mean(axis=0, dtype=np.float64) for part in (rows, seen)))

    def _error(self, quantized: Array, shift: Array, part: slice) -> float:
        step = max(1, len(self.rows[part]) // JUDGED)
        exact = outputs(self.rows[part][::step], self.exact)
        wrong = outputs(self.seen[part][::step], quantized) + shift - exact
        return float(np.sum(wrong**2) / max(float(np.sum(exact**2)), 1e-30))
