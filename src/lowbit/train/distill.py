"""What a student is to learn: to answer as its FP32 teacher does, and to think alike on the way there.

Outputs that are scores of classes are compared as distributions (Hinton et al. 2015, arXiv 1503.02531), all others by relative squared
error. Tensors inside the graph are compared by relative squared error, too (Romero et al. 2015, arXiv 1412.6550). A transform may have
scaled the student's channels against the teacher's: each channel of a hint is compared up to a factor, fixed before training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lowbit.graph.channel_sets import Carried
from lowbit.train.parts import Compute
from lowbit.train.twin import Twin

Kind = Literal["classes", "values"]
"""Scores of classes over the last axis (over axis 1 of what is [N, classes]), or anything else."""

HINTS = 4
"""Tensors inside the graph that are compared."""

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_ENDS = ("Add", "Clip", "HardSwish", "LayerNormalization", "LeakyRelu", "Relu", "Sum")
_TINY = 1e-12


@dataclass(frozen=True)
class Distillation:
    """The loss of a student on a batch.

    Attributes:
        kind: Of the outputs.
        hints: Tensors inside the graph, in both twins' names.
        factors: Hint -> factor a channel from the student's scale to the teacher's.
        kept: Hint -> which of the teacher's channels a pruned student still has; the others are not compared.
        weight: Of all hints together, beside the outputs' 1.
    """

    kind: Kind
    hints: Sequence[str] = ()
    factors: Mapping[str, Tensor] | None = None
    kept: Mapping[str, Carried] | None = None
    weight: float = 1.0

    def outputs(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
        """How far the answers are apart: the mean over outputs, a scalar."""
        losses = [self._output(student[name], teacher[name]) for name in names]
        return torch.stack(losses).mean()

    def __call__(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
        """Outputs and hints together, a scalar."""
        loss = self.outputs(student, teacher, names)
        if not self.hints:
            return loss
        inner = [_relative(self._scaled(name, student[name]), self.selected(name, teacher[name])) for name in self.hints]
        return loss + self.weight * torch.stack(inner).mean()

    def _output(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.kind == "classes" and teacher.ndim > 1 and teacher.shape[-1] > 1:
            wanted, found = (functional.log_softmax(each.flatten(0, -2), -1) for each in (teacher, student))
            return functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
        return _relative(student, teacher)

    def selected(self, name: str, value: Tensor) -> Tensor:
        """Of a teacher's tensor the channels that the student has, too."""
        if self.kept is None or name not in self.kept:
            return value
        return value.index_select(self.kept[name].axis, torch.from_numpy(self.kept[name].channels))

    def _scaled(self, name: str, value: Tensor) -> Tensor:
        if self.factors is None or name not in self.factors:
            return value
        return value * _along_channels(self.factors[name], value)


def hints(student: Twin, teacher: Twin, count: int = HINTS) -> tuple[str, ...]:
    """Tensors that both have, evenly spread over the depth of the graph: where a block ends, not inside of it. Never an output."""
    theirs = set(teacher.tensors)
    computed = [step for step in student.plan.steps if isinstance(step, Compute)]
    ends = [name for step in computed if step.attributes.op in _ENDS for name in step.outputs]
    products = [name for step in computed if step.attributes.op in _PRODUCTS for name in step.outputs]
    kept = [name for name in (ends or products) if name in theirs and name not in student.plan.outputs]
    if len(kept) <= count:
        return tuple(kept)
    return tuple(kept[round((index + 1) * len(kept) / (count + 1)) - 1] for index in range(count))


def matching_factors(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The factor a channel that brings the student's tensors nearest to the teacher's: [C] each, least squares."""
    found = {}
    for name in names:
        ours, theirs = student[name].detach(), teacher[name].detach()
        others = [axis for axis in range(ours.ndim) if axis != _channel_axis(ours)]
        power = (ours * ours).sum(others)
        found[name] = torch.where(power > _TINY, (ours * theirs).sum(others) / power.clamp_min(_TINY), torch.ones_like(power))
    return found


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over the wanted values' power."""
    return ((found - wanted) ** 2).sum() / (wanted**2).sum().clamp_min(_TINY)


def _channel_axis(value: Tensor) -> int:
    return 1 if value.ndim == 4 else value.ndim - 1


def _along_channels(factors: Tensor, value: Tensor) -> Tensor:
    axis = _channel_axis(value)
    return factors.reshape([-1 if each == axis else 1 for each in range(value.ndim)])
