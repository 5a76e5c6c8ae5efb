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
        scale: float64 [..., O, K].
        zero: int32, same shape.
        bottom: Lowest level.
        top: Highest level.
    """

    scale: Array
    zero: Array
    bottom: int
    top: int

    @classmethod
    def of(cls, grid: Affine, shape: tuple[int, ...]) -> Levels:
        """Of the parameters of an array of `shape`."""
        scale, zero = (np.broadcast_to(part, shape) for part in aligned(grid, shape))
        return cls(scale.astype(np.float64), zero, *levels(grid.dtype, grid.symmetric))

    def nearest(self, values: Array, columns: slice = slice(None)) -> Array:
        """Real values of some columns -> the nearest values on the grid."""
        scale, zero = self.scale[..., columns], self.zero[..., columns]
        return (np.clip(np.rint(values / scale) + zero, self.bottom, self.top) - zero) * scale

    def ordered(self, order: Array) -> Levels:
        """With columns in another order [..., 1, K]."""
        scale, zero = (np.take_along_axis(part, order, axis=-1) for part in (self.scale, self.zero))
        return Levels(scale, zero, self.bottom, self.top)


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
    result = _feed_back(target, hessian, table, _order(hessian, by_activation))
    for _ in range(sweeps):
        if not _descend(result, target, hessian, table):
            break
    return result.astype(np.float32)


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
    cross = moments.cross.astype(np.float64)
    np.einsum("...kk->...k", cross)[...] += strength
    return np.swapaxes(np.linalg.solve(hessian, np.swapaxes(exact @ cross, -1, -2)), -1, -2), hessian


def loss(quantized: Array, target: Array, hessian: Array) -> Array:
    """tr(E H E^T) of each matrix in a stack, E = target - quantized; float64 [...]."""
    error = target - quantized
    return np.einsum("...ok,...ok->...", error @ hessian, error)


def _feed_back(target: Array, hessian: Array, table: Levels, order: Array) -> Array:
    """Rounds columns in `order` [..., K], each with the errors of those before it; float64 like `target`."""
    across = np.expand_dims(order, -2)
    down = np.expand_dims(order, -1)
    wanted = np.take_along_axis(target, across, axis=-1)
    feedback = _feedback(np.take_along_axis(np.take_along_axis(hessian, down, axis=-2), across, axis=-1))
    ordered = table.ordered(across)
    result, count = np.empty_like(wanted), wanted.shape[-1]
    for start in range(0, count, BLOCK):
        block = slice(start, min(start + BLOCK, count))
        goal = wanted[..., block] + (wanted[..., :start] - result[..., :start]) @ feedback[..., :start, block]
        for k in range(block.start, block.stop):
            inner = wanted[..., start:k] - result[..., start:k]
            shifted = goal[..., k - start : k - start + 1] + inner @ feedback[..., start:k, k : k + 1]
            result[..., k : k + 1] = ordered.nearest(shifted, slice(k, k + 1))
    back = np.empty_like(result)
    np.put_along_axis(back, across, result, axis=-1)
    return back


def _feedback(hessian: Array) -> Array:
    """R_jk / R_kk of H = R R^T, R upper triangular: the lower Cholesky factor of H turned by half a circle."""
    factor = np.linalg.cholesky(hessian[..., ::-1, ::-1])[..., ::-1, ::-1]
    return factor / np.einsum("...kk->...k", factor)[..., None, :]


def _descend(result: Array, target: Array, hessian: Array, table: Levels) -> bool:
    """One pass over all columns, each set to its best level given the others; in place. Whether anything changed."""
    pull, diagonal = (target - result) @ hessian, np.einsum("...kk->...k", hessian)
    changed, count = False, target.shape[-1]
    for start in range(0, count, BLOCK):
        block = slice(start, min(start + BLOCK, count))
        before, near, local = result[..., block].copy(), pull[..., block].copy(), hessian[..., block, block]
        for k in range(block.start, block.stop):
            i = k - start
            old = result[..., k : k + 1]
            best = table.nearest(old + near[..., i : i + 1] / diagonal[..., None, k : k + 1], slice(k, k + 1))
            near -= (best - old) * local[..., i : i + 1, :]
            result[..., k : k + 1] = best
        moved = result[..., block] - before
        if np.any(moved):
            pull -= moved @ hessian[..., block, :]
            changed = True
    return changed


def _order(hessian: Array, by_activation: bool) -> Array:
    """Columns in the order of rounding, int64 [..., K]."""
    diagonal = np.einsum("...kk->...k", hessian)
    return np.argsort(-diagonal if by_activation else np.zeros_like(diagonal), axis=-1, kind="stable")
