"""GPTQ: rounding a weight matrix with knowledge of its inputs (Frantar et al. 2022, arXiv 2210.17323).

The loss of a linear layer is tr(E H E^T) with E = W - W_q and H = X^T X. The feedback is the LDL form of the method, as in
`lowbit.quant.rounding` (which is for the small matrices of vision models): H = R R^T with R upper triangular; column k is rounded
after sum over j < k of E_j R_jk / R_kk was added to it. Strong inputs go first. Scales are chosen before, for all groups, so the
order of columns is free and the groups of the stored layer stay consecutive. Then columns and scales
descend in turn: each level to its best value
given all others (Behdin et al. 2023, arXiv 2309.01885), each group's scale to its least squares value given its levels.
Everything is done column by column over all rows at once, [K, O], with the bulk in matrix products.
"""

from __future__ import annotations

import torch

from lowbit.errors import DataError
from lowbit.llm.linear import Grid
from lowbit.llm.methods.base import BlockProblem, QuantizedBlock
from lowbit.llm.methods.grids import Scales, searched, storable
from lowbit.llm.methods.inputs import Inputs
from lowbit.llm.methods.layerwise import Site, in_turn, layerwise

DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean: keeps directions that calibration hardly saw from absorbing any error."""

BLOCK = 128
"""Columns whose feedback is applied at once, as one matrix product."""

SWEEPS = 4
"""Passes of the descent over all columns and scales; one where the model is so large that minutes count (see `layerwise.SMALL`)."""


@torch.no_grad()
def quantize(problem: BlockProblem) -> QuantizedBlock:
    """Quantizes a block. Options: "damping", "sweeps", "refit" (0: scales stay as they were searched), "cross" (0: targets are the
    weights themselves)."""
    options = problem.recipe.options
    damping, sweeps = options.get("damping", DAMPING), int(options.get("sweeps", SWEEPS if in_turn(problem) else 1))
    refit = bool(options.get("refit", 1.0))

    def choose(site: Site) -> tuple[torch.Tensor, Scales]:
        assert site.inputs is not None
        wanted = target(site.weights, site.inputs, damping)
        return rounded(wanted, site.inputs.gram, site.grid, damping=damping, sweeps=sweeps, refit=refit)

    return layerwise(problem, choose, calibrated=True, cross=bool(options.get("cross", float(in_turn(problem)))))


def target(weights: torch.Tensor, inputs: Inputs, damping: float = DAMPING) -> torch.Tensor:
    """The weights that give for the quantized model's inputs what the float layer gives for its own, as well as linear ones can.

    T = W + W (C - G) H^-1 with C = Y^T X, G = X^T X and H = G damped: the least squares solution for |W y - T x|^2 + d |T - W|^2
    (as in `lowbit.quant.rounding.problem`).
    """
    if inputs.cross is None:
        return weights
    hessian = damped(inputs.gram, weights.shape[1], damping)
    shift = weights @ (inputs.cross - inputs.gram)
    return weights + torch.cholesky_solve(shift.T.contiguous(), torch.linalg.cholesky(hessian)).T


def rounded(
    weights: torch.Tensor,
    gram: torch.Tensor,
    grid: Grid,
    *,
    damping: float = DAMPING,
    sweeps: int = SWEEPS,
    refit: bool = True,
    scales: Scales | None = None,
) -> tuple[torch.Tensor, Scales]:
    """Levels and scales that change a layer's output least.

    Args:
        weights: float32 [O, K].
        gram: Of the layer's inputs, X^T X / count, float32 [K, K].
        grid: Bits, group, symmetry.
        damping: See `DAMPING`.
        sweeps: Passes of coordinate descent after the rounding; 0: none.
        refit: The descent adapts scales too.
        scales: To start from; None: searched with the inputs' power as weight.

    Returns:
        Levels as whole float32 numbers [O, K], and the scales they belong to.

    Raises:
        DataError: the Gram matrix does not fit, or is not finite.
    """
    hessian = damped(gram, weights.shape[1], damping)
    scales = scales or searched(weights, grid, hessian.diagonal())
    table = _Columns(weights, scales)
    table.feed_back(hessian)
    for _ in range(sweeps):
        if not table.descend(hessian, refit):
            break
    return table.finished()


def damped(gram: torch.Tensor, columns: int, damping: float = DAMPING) -> torch.Tensor:
    """H: a copy of the Gram matrix, its diagonal raised.

    Raises:
        DataError: see `rounded`.
    """
    if gram.shape != (columns, columns) or not torch.isfinite(gram).all():
        raise DataError(f"A layer with {columns} inputs needs a finite Gram matrix of that size; found {tuple(gram.shape)}.")
    hessian = gram.float().clone()
    strength = damping * hessian.diagonal().mean()
    hessian.diagonal().add_(strength if strength > 0 else 1.0)
    return hessian


def loss(error: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr(E H E^T) of an error [O, K]."""
    return float(((error @ hessian) * error).sum(dtype=torch.float64))


class _Columns:
    """The state of the rounding, transposed: a column of the layer lies in one piece."""

    def __init__(self, weights: torch.Tensor, scales: Scales) -> None:
        self.grid, self.top = scales.grid, 2**scales.grid.bits - 1
        self.target = weights.float().T.contiguous()
        self.group = self.grid.group or len(self.target)
        self.scale, self.zero = scales.scale.T.contiguous(), scales.zero.T.contiguous()  # [G, O]
        self.levels = torch.empty_like(self.target)

    def round(self, column: int, wanted: torch.Tensor) -> torch.Tensor:
        """Sets a column's levels to the nearest of what is wanted [O]; the values they stand for."""
        scale, zero = self.scale[column // self.group], self.zero[column // self.group]
        levels = self.levels[column]
        torch.div(wanted, scale, out=levels).add_(zero).round_().clamp_(0, self.top)
        return (levels - zero).mul_(scale)

    def values(self) -> torch.Tensor:
        """[K, O]."""
        index = torch.arange(len(self.target), device=self.target.device) // self.group
        return (self.levels - self.zero[index]) * self.scale[index]

    def feed_back(self, hessian: torch.Tensor) -> None:
        """Rounds all columns, strongest input first, each with the errors of those before it."""
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
        feedback = _feedback(hessian[order][:, order])
        target, places = self.target[order], order.tolist()
        errors = torch.empty_like(target)
        for start in range(0, len(target), BLOCK):
            stop = min(start + BLOCK, len(target))
            wanted = target[start:stop] + feedback[:start, start:stop].T @ errors[:start]
            for k in range(start, stop):
                shifted = torch.addmv(wanted[k - start], errors[start:k].T, feedback[start:k, k])
                torch.sub(target[k], self.round(places[k], shifted), out=errors[k])

    def descend(self, hessian: torch.Tensor, refit: bool) -> bool:
        """One pass: the levels of a block of columns, then its scales; whether anything changed."""
        values = self.values()
        pull = hessian @ (self.target - values)
        step = self.group if self.group <= 4 * BLOCK else BLOCK
        changed = False
        for start in range(0, len(values), step):
            stop = min(start + step, len(values))
            own = hessian[start:stop, start:stop]
            before = values[start:stop].clone()
            self._levels(values, pull[start:stop].clone(), own, start)
            if refit and step == self.group:
                self._refit(values, pull[start:stop] - own @ (values[start:stop] - before), own, start)
            moves = values[start:stop] - before
            if moves.any():
                pull -= hessian[:, start:stop] @ moves
                changed = True
        return changed

    def _levels(self, values: torch.Tensor, pull: torch.Tensor, own: torch.Tensor, start: int) -> None:
        """Each column of a block to its best level given the others; `values` in place."""
        moves = torch.zeros_like(pull)
        for i in range(len(pull)):
            near = torch.addmv(pull[i], moves[:i].T, own[:i, i], alpha=-1)
            best = self.round(start + i, values[start + i] + near / own[i, i])
            torch.sub(best, values[start + i], out=moves[i])
            values[start + i] = best

    def _refit(self, values: torch.Tensor, pull: torch.Tensor, own: torch.Tensor, start: int) -> None:
        """A group's scales to the least squares given all else, where that lowers the loss; `values` in place."""
        g, stop = start // self.group, start + len(pull)
        steps = self.levels[start:stop] - self.zero[g]
        slope, bend = (steps * pull).sum(0), (steps * (own @ steps)).sum(0)
        scale = storable(self.scale[g] + torch.where(bend > 0, slope / bend.clamp_min(1e-30), 0.0))
        change = scale - self.scale[g]
        gains = (2 * slope - change * bend) * change > 0
        self.scale[g] = torch.where(gains, scale, self.scale[g])
        values[start:stop] = steps * self.scale[g]

    def finished(self) -> tuple[torch.Tensor, Scales]:
        return self.levels.T.contiguous(), Scales(self.grid, self.scale.T.contiguous(), self.zero.T.contiguous())


def _feedback(hessian: torch.Tensor) -> torch.Tensor:
    """R_jk / R_kk of H = R R^T, R upper triangular: the lower Cholesky factor of H turned by half a circle; float32 [K, K]."""
    factor = torch.linalg.cholesky(hessian.double().flip(0, 1)).flip(0, 1)
    return (factor / factor.diagonal()).float()
