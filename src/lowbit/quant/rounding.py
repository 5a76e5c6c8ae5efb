"""Rounding a weight matrix with knowledge of its inputs, in closed form.

Rounding each weight to its nearest level minimises the error of the weights; what matters is the error of the output,
tr(E H E^T) with E = W - W_q and H = X^T X. Here columns are rounded one by one, and each takes up what the ones before
it left behind (GPTQ: Frantar et al. 2022, arXiv 2210.17323). The feedback is written as the LDL form of the same
method (Chee et al. 2023, arXiv 2307.13304, theorem 6): H = R R^T with R upper triangular, so that

    tr(E H E^T) = sum over k of R_kk^2 |E_k + sum over j < k of E_j R_jk / R_kk|^2,

and rounding W_k + (that sum) to the nearest level is the best choice for term k. One Cholesky factor, no inverse.
Descent over single columns then leaves no weight that another level would serve better (Behdin et al. 2023,
arXiv 2309.01885).

All functions take stacks: weights [..., O, K] with moments [..., K, K], one small problem per group of a convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowbit.errors import UsageError
from lowbit.quant.affine import Affine, aligned, levels
from lowbit.quant.moments import Moments
from lowbit.types import Array

DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean: keeps directions that calibration hardly saw from absorbing any error."""

BLOCK = 64
"""Columns whose feedback is applied at once, as one matrix product."""

SWEEPS = 4
"""Passes of the descent over all columns; later ones change next to nothing."""


@dataclass(frozen=True)
class Levels:
    """A grid laid out over a matrix.

    Attributes:
        scale: float64, in a shape that broadcasts with it; likewise the ends.
        low: Lowest level, counted from the one that stands for zero.
        high: Highest, likewise.
    """

    scale: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, grid: Affine, shape: tuple[int, ...]) -> Levels:
        """Of the parameters of an array of `shape`."""
        scale, zero = (part.astype(np.float64) for part in aligned(grid, shape))
        bottom, top = levels(grid.dtype, grid.symmetric)
        return cls(scale, bottom - zero, top - zero)

    def nearest(self, values: Array) -> Array:
        """Real values -> the nearest values on the grid, float64."""
        result: Array = values / self.scale
        np.rint(result, out=result)
        np.maximum(result, self.low, out=result)
        np.minimum(result, self.high, out=result)
        result *= self.scale
        return result

    def of_column(self, column: int) -> Levels:
        """Of one column [g, O], laid out by `_by_column`."""
        return Levels(*(part[column if len(part) > 1 else 0] for part in (self.scale, self.low, self.high)))


def to_nearest(weights: Array, grid: Affine) -> Array:
    """The plain choice: each weight to its nearest level; float32, the shape of `weights`."""
    scale, zero = aligned(grid, weights.shape)
    steps = np.rint(weights / scale.astype(np.float64))
    steps += zero
    np.clip(steps, *levels(grid.dtype, grid.symmetric), out=steps)
    steps -= zero
    steps *= scale
    return steps.astype(np.float32)


def with_feedback(
    weights: Array, grid: Affine, moments: Moments, *, damping: float = DAMPING, by_activation: bool = True, sweeps: int = SWEEPS
) -> Array:
    """Rounds to the given grid so that the layer's output changes least.

    Args:
        weights: Float [..., O, K].
        grid: Scales and zero points of the weights, per tensor, per row or in blocks along K, 2 to 16 bits; it is not changed.
        moments: Of the layer's inputs. Where they know the quantized model's inputs x^ too, the target is what the float
            layer gives for x, and the weights are fitted to give it for x^ first.
        damping: See `DAMPING`.
        by_activation: Round the columns with the strongest inputs first (GPTQ's act-order).
        sweeps: Passes of coordinate descent after the rounding, 0 for none.

    Returns:
        float32, the shape of `weights`; every value is on the grid, so that quantizing it again changes nothing.

    Raises:
        UsageError: moments for another number of inputs, NaN or infinity among weights or moments.
    """
    target, hessian = problem(weights, moments, damping)
    table = Levels.of(grid, weights.shape)
    table = Levels(*(_by_column(part, weights.shape) for part in (table.scale, table.low, table.high)))
    target, hessian = _by_column(target, weights.shape), hessian.reshape(-1, *hessian.shape[-2:])
    result = _feed_back(target, hessian, table, _order(hessian, by_activation))
    for _ in range(sweeps):
        if not _descend(result, target, hessian, table):
            break
    return np.moveaxis(result, 0, -1).reshape(weights.shape).astype(np.float32)


def problem(weights: Array, moments: Moments, damping: float = DAMPING) -> tuple[Array, Array]:
    """The least squares problem behind a layer: target weights T and damped H; the loss of W_q is tr((T - W_q) H (T - W_q)^T).

    With both inputs known, T = (W C + d W)(H + d)^-1 with C = sum of x x^T: the least squares solution for
    |W x - T x^|^2 + d |T - W|^2. The damping pulls towards W, not towards zero.

    Returns:
        float64 [..., O, K] and float64 [..., K, K], positive definite.

    Raises:
        UsageError: see `with_feedback`.
    """
    if moments.gram.shape[-1] != weights.shape[-1] or moments.gram.shape[:-2] != weights.shape[:-2]:
        raise UsageError(
            f"Weights {weights.shape} need moments {(*weights.shape[:-2], weights.shape[-1])}; found {moments.gram.shape[:-1]}."
        )
    if not (np.isfinite(weights).all() and np.isfinite(moments.gram).all()):
        raise UsageError("Weights and the moments of their inputs must be finite.")
    exact, hessian = np.asarray(weights, np.float64), moments.gram.astype(np.float64)
    diagonal = np.einsum("...kk->...k", hessian)  # a view: writing to it changes the matrix
    strength = damping * diagonal.mean(axis=-1, keepdims=True)
    strength[strength <= 0] = 1.0
    diagonal += strength
    if moments.cross is None:
        return exact, hessian
    # As a correction of W, which is small, so that float32 is exact enough: T = W + W (C - H) (H + d)^-1.
    shift, short, single = moments.cross - moments.gram, np.asarray(weights, np.float32), hessian.astype(np.float32)
    if weights.shape[-2] < weights.shape[-1]:  # the solver is slow: give it the fewer columns
        return exact + np.swapaxes(np.linalg.solve(single, np.swapaxes(short @ shift, -1, -2)), -1, -2), hessian
    return exact + short @ np.swapaxes(np.linalg.solve(single, np.swapaxes(shift, -1, -2)), -1, -2), hessian


def loss(quantized: Array, target: Array, hessian: Array) -> Array:
    """tr(E H E^T) of each matrix in a stack, E = target - quantized; float64 [...]."""
    error = target - quantized
    return np.einsum("...ok,...ok->...", error @ hessian, error)


def _by_column(values: Array, shape: tuple[int, ...]) -> Array:
    """What broadcasts with a stack [..., O, K] as [K, g, O], or [1, g, O] where all columns are alike.

    Columns are rounded one after the other: each lies in one piece.
    """
    columns = values.shape[-1] if values.ndim else 1
    spread = np.broadcast_to(values, (*shape[:-1], columns)).reshape(-1, shape[-2], columns)
    return np.ascontiguousarray(np.moveaxis(spread, -1, 0))


def _feed_back(target: Array, hessian: Array, table: Levels, order: Array) -> Array:
    """Rounds the columns of [K, g, O] in `order` [g, K], each with the errors of those before it; float64 like `target`."""
    across = order.T[:, :, None]
    wanted = np.take_along_axis(target, across, axis=0)
    turned = np.take_along_axis(np.take_along_axis(hessian, order[:, :, None], axis=1), order[:, None, :], axis=2)
    feedback = np.ascontiguousarray(_feedback(turned).T)  # [k, j, g]
    ordered = Levels(*(np.take_along_axis(p, across, axis=0) if len(p) > 1 else p for p in (table.scale, table.low, table.high)))
    result, errors = np.empty_like(wanted), np.empty_like(wanted)
    for start in range(0, len(wanted), BLOCK):
        stop = min(start + BLOCK, len(wanted))
        goal = wanted[start:stop] + _mixed(feedback[start:stop, :start], errors[:start])
        for k in range(start, stop):
            shifted = goal[k - start] + _weighted(feedback[k, start:k], errors[start:k])
            result[k] = ordered.of_column(k).nearest(shifted)
            np.subtract(wanted[k], result[k], out=errors[k])
    back = np.empty_like(result)
    np.put_along_axis(back, across, result, axis=0)
    return back


def _weighted(weights: Array, columns: Array) -> Array:
    """Sum of columns [j, g, O] with weights [j, g] each; [g, O]."""
    if weights.shape[1] == 1:
        return (weights[:, 0] @ columns[:, 0])[None]
    total: Array = np.einsum("jg,jgo->go", weights, columns)
    return total


def _mixed(weights: Array, columns: Array) -> Array:
    """Sums of columns [j, g, O] with weights [b, j, g] each; [b, g, O]."""
    return np.swapaxes(np.moveaxis(weights, -1, 0) @ np.swapaxes(columns, 0, 1), 0, 1)


def _feedback(hessian: Array) -> Array:
    """R_jk / R_kk of H = R R^T, R upper triangular: the lower Cholesky factor of H turned by half a circle."""
    factor = np.linalg.cholesky(hessian[..., ::-1, ::-1])[..., ::-1, ::-1]
    return factor / np.einsum("...kk->...k", factor)[..., None, :]


def _descend(result: Array, target: Array, hessian: Array, table: Levels) -> bool:
    """One pass over all columns of [K, g, O], each set to its best level given the others; in place. Whether anything changed."""
    coupling = np.ascontiguousarray(hessian.T)  # [k, j, g]: symmetric
    diagonal = np.einsum("kkg->kg", coupling)[:, :, None]
    pull, changed = np.array(_mixed(coupling, target - result)), False
    for start in range(0, len(target), BLOCK):
        stop = min(start + BLOCK, len(target))
        moves = np.empty_like(result[start:stop])
        for k in range(start, stop):
            i = k - start
            near = pull[k] - _weighted(coupling[k, start:k], moves[:i])
            best = table.of_column(k).nearest(result[k] + near / diagonal[k])
            np.subtract(best, result[k], out=moves[i])
            result[k] = best
        if np.any(moves):
            pull[stop:] -= _mixed(coupling[stop:, start:stop], moves)
            changed = True
    return changed


def _order(hessian: Array, by_activation: bool) -> Array:
    """Columns in the order of rounding, int64 [..., K]."""
    diagonal = np.einsum("...kk->...k", hessian)
    return np.argsort(-diagonal if by_activation else np.zeros_like(diagonal), axis=-1, kind="stable")
