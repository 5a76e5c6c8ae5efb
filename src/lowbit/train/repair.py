"""Right after channels have gone: what is left takes over for them, by least squares, before any training.

Product by product, in the order of the graph, weights and bias are solved for so that the product gives, on what it reads now, what the
whole model gave in its place (channel pruning by reconstruction: He et al. 2017, arXiv 1707.06168). A product that ends in a sum aims
at the sum: it makes up for what the other operand has lost, too. Each solution is kept only where it helps on images it was not fitted
to. A few hundred images do, and a cut that leaves a half of the answers right leaves nearly all of them right afterwards.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit.graph.channel_sets import Carried
from lowbit.train.operators.windows import window
from lowbit.train.parts import Compute
from lowbit.train.pool import Pool
from lowbit.train.twin import Twin

BATCH = 64
POSITIONS = 64
"""Pixels of an image at which a convolution is looked at."""

RIDGE = 1e-3
"""Pull towards the weights as they are, in units of the inputs' mean power."""

JUDGED = 4
"""One batch in so many judges the solution instead of making it."""


@dataclass(frozen=True)
class Goal:
    """What a product is to give.

    Attributes:
        step: The product.
        tensor: What is compared with the teacher's: its output, or the sum that it ends in.
        other: The other operand of that sum, computed before; None where there is no sum.
    """

    step: Compute
    tensor: str
    other: str | None


@torch.no_grad()
def repair(student: Twin, teacher: Twin, pool: Pool, kept: Mapping[str, Carried]) -> dict[str, tuple[float, float]]:
    """Solves for the weights of a pruned model, in place.

    Args:
        student: Of the pruned model.
        teacher: Of the model as it was.
        pool: Images or other samples; some hundred.
        kept: Tensor -> where the student's channels are among the teacher's.

    Returns:
        Product -> relative squared error before and after, on samples it was not fitted to; equal where it was left alone.
    """
    goals = [goal for goal in _goals(student) if goal.tensor in teacher.tensors]
    wanted = _looked_at(teacher, pool, {goal.tensor: goal.tensor for goal in goals}, kept)
    found = {}
    for goal in goals:
        rows, aims = _rows(student, pool, goal, wanted[goal.tensor])
        found[goal.step.attributes.name] = _solve(student, goal.step, rows, aims)
    return found


def _goals(student: Twin) -> list[Goal]:
    steps = [step for step in student.plan.steps if isinstance(step, Compute)]
    made = {name: index for index, step in enumerate(steps) for name in step.outputs}
    readers: dict[str, list[Compute]] = {}
    for step in steps:
        for name in step.inputs:
            readers.setdefault(str(name), []).append(step)
    found = []
    for index, step in enumerate(steps):
        if not _can_be_solved(student, step):
            continue
        output, used = step.outputs[0], readers.get(step.outputs[0], [])
        goal = Goal(step, output, None)
        if len(used) == 1 and used[0].attributes.op == "Add" and output not in student.plan.outputs.values():
            (other,) = [name for name in used[0].inputs if name != output] or [None]
            if other is not None and made.get(other, len(steps)) < index:
                goal = Goal(step, used[0].outputs[0], other)
        found.append(goal)
    return found


def _can_be_solved(student: Twin, step: Compute) -> bool:
    if step.attributes.op not in ("Conv", "Gemm") or step.inputs[1] not in student.plan.trained:
        return False
    rank = student.weight(str(step.inputs[1])).ndim
    if step.attributes.op == "Conv":
        return rank == 4 and step.attributes.get("group", 1) == 1
    return step.attributes.get("alpha", 1.0) == step.attributes.get("beta", 1.0) == 1.0 and not step.attributes.get("transA", 0)


def _looked_at(twin: Twin, pool: Pool, names: Mapping[str, str], kept: Mapping[str, Carried]) -> dict[str, list[Tensor]]:
    """Tensor -> of every batch its rows [R, C] at the positions that are looked at, with the kept channels only."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for number, (feeds, _) in enumerate(pool.batches(BATCH)):
        values = twin(feeds, list(names), outputs=False)
        for name in names:
            value = values[name]
            if name in kept:
                value = value.index_select(kept[name].axis, torch.from_numpy(kept[name].channels))
            found[name].append(_at(value, name, number))
    return found


def _at(value: Tensor, name: str, number: int) -> Tensor:
    """[N, C, H, W] or [N, C] -> [R, C]."""
    if value.ndim == 2:
        return value
    chosen = _positions(value.shape[2] * value.shape[3], name, number)
    return value.flatten(2)[:, :, chosen].transpose(1, 2).reshape(-1, value.shape[1])


def _positions(count: int, name: str, number: int) -> Tensor:
    rng = np.random.default_rng([zlib.crc32(name.encode()), number])
    return torch.from_numpy(np.sort(rng.permutation(count)[:POSITIONS]))


def _rows(student: Twin, pool: Pool, goal: Goal, wanted: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Of every batch what the product reads [R, K], and what it should give [R, O]."""
    rows, aims = [], []
    source = str(goal.step.inputs[0])
    watched = [name for name in (source, goal.other) if name is not None and name in student.tensors]
    for number, ((feeds, _), aim) in enumerate(zip(pool.batches(BATCH), wanted, strict=True)):
        values = feeds | student(feeds, watched, outputs=False)
        rows.append(_patches(student, goal, values[source], number))
        aims.append(aim if goal.other is None else aim - _at(values[goal.other], goal.tensor, number))
    return rows, aims


def _patches(student: Twin, goal: Goal, x: Tensor, number: int) -> Tensor:
    if goal.step.attributes.op == "Gemm":
        return x
    kernel = list(student.weight(str(goal.step.inputs[1])).shape[2:])
    form = window(goal.step.attributes, x.shape[2:], kernel)
    patches = F.unfold(F.pad(x, form.padding()), tuple(kernel), tuple(form.dilations), 0, tuple(form.strides))
    chosen = _positions(patches.shape[2], goal.tensor, number)
    return patches[:, :, chosen].transpose(1, 2).reshape(-1, patches.shape[1])


def _solve(student: Twin, step: Compute, rows: Sequence[Tensor], aims: Sequence[Tensor]) -> tuple[float, float]:
    weight = student.weight(str(step.inputs[1]))
    own = len(step.inputs) > 2 and step.inputs[2] in student.plan.trained
    bias = student.weight(str(step.inputs[2])) if own else None
    turned = step.attributes.op == "Gemm" and not step.attributes.get("transB", 0)
    matrix = (weight.t() if turned else weight.flatten(1)).double()
    shift = torch.zeros(len(matrix), dtype=torch.float64) if bias is None else bias.reshape(-1).double().expand(len(matrix))
    whole = torch.cat([matrix, shift[:, None]], 1)
    change = _change(whole, rows, aims, shifts=bias is not None and bias.numel() == len(matrix))
    before, after = (_error(tried, rows, aims) for tried in (whole, whole + change))
    if not after < before:
        return before, before
    matrix, shift = (whole + change).float().split([whole.shape[1] - 1, 1], 1)
    weight.copy_((matrix.t() if turned else matrix).reshape(weight.shape))
    if bias is not None and bias.numel() == len(matrix):
        bias.copy_(shift.reshape(bias.shape))
    return before, after


def _change(whole: Tensor, rows: Sequence[Tensor], aims: Sequence[Tensor], *, shifts: bool) -> Tensor:
    """What to add to weights and bias [O, K + 1]: least squares with a pull towards nothing."""
    size = whole.shape[1]
    gram, cross = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, len(whole), dtype=torch.float64)
    for number, (x, aim) in enumerate(zip(rows, aims, strict=True)):
        if number % JUDGED == 0 and len(rows) > 1:
            continue
        read = _with_one(x)
        left = aim - read @ whole.float().t()
        read[:, -1] *= shifts
        gram += (read.t() @ read).double()
        cross += (read.t() @ left).double()
    pull = RIDGE * gram.diagonal()[:-1].mean() + 1e-12
    return torch.linalg.solve(gram + pull * torch.eye(size, dtype=torch.float64), cross).t()


def _error(whole: Tensor, rows: Sequence[Tensor], aims: Sequence[Tensor]) -> float:
    wrong, power = 0.0, 0.0
    for number, (x, aim) in enumerate(zip(rows, aims, strict=True)):
        if number % JUDGED == 0:
            wrong += float((aim - _with_one(x) @ whole.float().t()).square().sum())
            power += float(aim.square().sum())
    return wrong / max(power, 1e-30)


def _with_one(x: Tensor) -> Tensor:
    """[R, K] -> [R, K + 1]: a column for the bias."""
    return torch.cat([x, torch.ones(len(x), 1)], 1)
