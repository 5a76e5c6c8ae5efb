"""What a channel is worth: by how much the answers change when it goes.

Where the answers are scores of classes, importance is the Fisher information of a gate on each set of coupled channels: half of it is, to
second order, by how much the answers' distribution changes (Kullback-Leibler) when the gate closes (optimal brain damage: LeCun et al.
1990; for channels: Theis et al. 2018, arXiv 1801.05787; Molchanov et al. 2019, arXiv 1906.10771). The gradient of the distillation loss
itself is no use: it is zero where the student still is its teacher.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lowbit.graph.channel_sets import Channels
from lowbit.train.distill import Kind
from lowbit.train.pool import Pool
from lowbit.train.twin import Twin
from lowbit.types import Array


def importance(twin: Twin, pool: Pool, found: Channels, *, kind: Kind = "classes", batch: int = 32, seed: int = 0) -> dict[str, Array]:
    """By how much the answers change when a channel goes, to second order.

    Args:
        twin: Of the FP32 model.
        pool: Samples; labels are not used.
        found: Channels of the model.
        kind: What the outputs are: for "values" it is the squared change over the outputs' power.
        batch: Samples at once.
        seed: Of the answers that are drawn.

    Returns:
        Set -> [C], mean over samples, all at least zero.
    """
    counted = np.unique(np.concatenate([each.channels for each in found.sets])) if found.sets else np.zeros(0, int)
    makers = [work.output for work in found.work if work.mixes and np.isin(work.made, counted).any()]
    total, random = torch.zeros(found.count, dtype=torch.float64), torch.Generator().manual_seed(seed)
    for feeds, _ in pool.batches(batch):
        values = twin(feeds, makers)
        asked = sum(_asked(values[name], kind, random) for name in twin.plan.outputs)
        gradients = torch.autograd.grad(asked, [values[name] for name in makers], allow_unused=True)  # type: ignore[arg-type]
        felt = torch.zeros(len(next(iter(feeds.values()))), found.count)
        for name, gradient in zip(makers, gradients, strict=True):
            if gradient is not None:
                carried = found.carried[name]
                felt.index_add_(1, torch.from_numpy(carried.channels), _by_channel(values[name].detach() * gradient, carried.axis))
        total += (felt.double() ** 2).sum(0)
    mean = (total / (2 * len(pool))).numpy()
    return {each.name: mean[each.channels] for each in found.sets}


def _asked(output: Tensor, kind: Kind, random: torch.Generator) -> Tensor:
    """A scalar whose squared gradient is, on average over draws, the curvature of the loss, summed over samples."""
    if kind == "classes" and output.ndim > 1 and output.shape[-1] > 1:
        scores = torch.log_softmax(output.flatten(0, -2), -1)
        drawn = torch.multinomial(scores.detach().exp(), 1, generator=random)
        return -scores.gather(1, drawn).sum()
    noise = torch.randn(output.shape, generator=random)
    power = (output.detach() ** 2).flatten(1).sum(1).mean().clamp_min(1e-12) if output.ndim > 1 else (output.detach() ** 2).mean()
    return (output * noise).sum() * (2 / power).sqrt()


def _by_channel(value: Tensor, axis: int) -> Tensor:
    """[N, ...] -> [N, C], summed over all else."""
    moved = value.movedim(axis, 1)
    return moved.flatten(2).sum(2) if moved.ndim > 2 else moved
