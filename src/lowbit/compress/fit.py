"""Fit the rounding of weights and the biases of every product to the rows that it reads.

Three ways are tried a product: weights to their nearest levels, the same with the mean of the error taken back by the bias, and
weights rounded with error feedback on top. Each is fitted on one half of the sampled rows and judged on the other, so that a way wins
only where it helps on rows it has not seen; with few rows for many inputs, feedback overfits and loses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lowbit.compress.capture import Captured
from lowbit.compress.equalize import outputs
from lowbit.compress.products import Constants, Product, parts_of
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
        rows = captured.rows[name]  # a copy of its own, see `Captured`
        if product.site.tensor in factors:
            rows /= np.swapaxes(product.by_channel(factors[product.site.tensor]), 0, 1)
        problem = _Problem(
            product.matrices(constants[product.weight]),
            product.grid_of_rows(table[product.weight], constants[product.weight]),
            rows,
            table[keys.get(name, product.site.tensor)],
            product.bias is not None,
        )
        way = ways[name] = problem.best()
        quantized, shift = problem.solve(way.feedback, way.corrected)
        constants[product.weight] = product.back(quantized, constants[product.weight].shape)
        if product.bias is not None and way.corrected:
            constants[product.bias] = constants[product.bias] + shift.reshape(constants[product.bias].shape)
    return ways


@dataclass(frozen=True)
class _Problem:
    """One product: exact weights [g, O/g, K] and their grid, rows [R, g, K] as the float model has them, and the grid they are read on."""

    exact: Array
    grid: Affine
    rows: Array
    seen: Affine
    has_bias: bool

    def best(self) -> Way:
        """The way with the least error on rows it was not fitted to."""
        half = len(self.rows) // 2
        trials = [(False, False)]
        if half:
            trials += [(False, True)] if self.has_bias else []
            trials += [(True, self.has_bias)] if half >= ENOUGH * self.exact.shape[-1] else []
        wrong, exact = dict.fromkeys(trials, 0.0), 0.0
        for part in self._parts():
            exact += part.power(slice(half, None))
            for trial in trials:
                wrong[trial] += part.error(*part.solve(*trial, slice(half)), slice(half, None))
        errors = {trial: value / max(exact, 1e-30) for trial, value in wrong.items()}
        plain = errors[False, False]
        best = min(errors, key=errors.__getitem__)
        if errors[best] > GAIN * plain:
            best = (False, False)
        return Way(*best, errors[best], plain)

    def solve(self, feedback: bool, corrected: bool) -> tuple[Array, Array]:
        """Weights on their grid [g, O/g, K] and what to add to the bias [g, O/g], from all rows."""
        found = [part.solve(feedback, corrected, slice(None)) for part in self._parts()]
        return np.concatenate([weights for weights, _ in found]), np.concatenate([shift for _, shift in found])

    def _parts(self) -> Iterator[_Part]:
        """Some groups at a time: with their moments, all of them at once would take many times the memory of the rows."""
        for part in parts_of(self.rows):
            grid = replace(self.grid, scale=self.grid.scale[part], zero_point=self.grid.zero_point[part])
            rows = self.rows[:, part]
            yield _Part(self.exact[part], grid, rows, round_trip(rows, self.seen))


@dataclass(frozen=True)
class _Part:
    """Some groups of a product, and its rows as the float and as the quantized model has them."""

    exact: Array
    grid: Affine
    rows: Array
    seen: Array

    @cached_property
    def nearest(self) -> Array:
        """The weights rounded to their nearest levels."""
        return to_nearest(self.exact, self.grid)

    def solve(self, feedback: bool, corrected: bool, which: slice) -> tuple[Array, Array]:
        """Weights on their grid and what to add to the bias, from some of the rows."""
        rows, seen = self.rows[which], self.seen[which]
        quantized = self.nearest
        if feedback:
            moments = Moments.of(rows, seen)
            quantized = with_feedback(self.exact, self.grid, moments.centred() if corrected else moments, sweeps=SWEEPS)
        if not corrected:
            return quantized, np.zeros(self.exact.shape[:2])
        return quantized, correction(self.exact, quantized, *(each.mean(axis=0, dtype=np.float64) for each in (rows, seen)))

    def error(self, quantized: Array, shift: Array, which: slice) -> float:
        """Squared error of the output, on some of the rows."""
        judged = _judged(self.seen[which])
        wrong = outputs(judged, quantized) + shift - self._wanted(which)
        return float(np.sum(wrong**2))

    def power(self, which: slice) -> float:
        """Square of the output on the same rows."""
        return float(np.sum(self._wanted(which) ** 2))

    def _wanted(self, which: slice) -> Array:
        return outputs(_judged(self.rows[which]), self.exact)


def _judged(rows: Array) -> Array:
    return rows[:: max(1, len(rows) // JUDGED)]
