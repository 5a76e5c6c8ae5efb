"""Structured pruning without labels or training code: take out channels, let the smaller model learn from the one it came from, repeat.

    shrunk = shrink(prepared, out, pool, Pruning(share=0.5), seconds=seconds_of_products, share_of=measured_int8_latency)

What comes out is an ordinary FP32 model with fewer channels, to be quantized like any other. Where the answers are scores of classes,
importance is the Fisher information of a gate on each set of coupled channels: half of it is, to second order, by how much the answers'
distribution changes (Kullback-Leibler) when the gate closes (optimal brain damage: LeCun et al. 1990; for channels: Theis et al. 2018,
arXiv 1801.05787; Molchanov et al. 2019, arXiv 1906.10771). The gradient of the distillation loss itself is no use: it is zero where
the student still is its teacher.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowbit.errors import ModelError, UsageError
from lowbit.graph import ir_files
from lowbit.graph.channel_sets import Channels
from lowbit.graph.channels import channels_of, prune
from lowbit.train.distill import Distillation, Kind
from lowbit.train.pool import Pool
from lowbit.train.prune_choose import BLOCK, choose, cost, rates
from lowbit.train.qat import Settings, Trained, train
from lowbit.train.twin import Twin
from lowbit.train.write_back import write_back
from lowbit.types import Array

TRIES = 4
"""Cuts of a round whose latency is measured, each deeper than the one before."""

ShareOf = Callable[[Path], float]
"""A pruned FP32 model -> what will ship of it, measured: its time as a share of that of the whole model."""


@dataclass(frozen=True)
class Pruning:
    """How to prune.

    Attributes:
        share: Of the time that may be left in the end.
        rounds: Cuts, each followed by training; the time falls by the same factor in each.
        block: Widths come down to multiples of it.
        least: Share of a set of channels that stays in any case.
        samples: Images that importance is found on.
        training: Of each round.
    """

    share: float = 0.5
    rounds: int = 2
    block: int = BLOCK
    least: float = 0.25
    samples: int = 512
    training: Settings = field(default_factory=lambda: Settings(epochs=4, minutes=4.0, weight_rate=0.3))

    def __post_init__(self) -> None:
        for name in ("share", "least"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}.", "Give a share between 0 and 1, e.g. 0.5.")
        for name in ("rounds", "block", "samples"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}.", "Give a whole number from 1 on.")


@dataclass(frozen=True)
class Round:
    """One cut and what training made of it.

    Attributes:
        widths: Set of channels -> how many are left.
        predicted: Time left, as a share of the whole model's, by the model of costs.
        measured: The same by measuring; None where nothing measures.
        trained: How training went.
    """

    widths: Mapping[str, int]
    predicted: float
    measured: float | None
    trained: Trained


@dataclass(frozen=True)
class Shrunk:
    """The pruned model and how it came about."""

    path: Path
    rounds: tuple[Round, ...]


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


def shrink(
    source: Path,
    out: Path,
    pool: Pool,
    settings: Pruning | None = None,
    *,
    kind: Kind = "classes",
    seconds: Mapping[str, float] | None = None,
    share_of: ShareOf | None = None,
    on_round: Callable[[Round], None] | None = None,
) -> Shrunk:
    """Prunes a model round by round, each time trained by distillation from the whole model.

    Args:
        source: A prepared FP32 model; not changed.
        out: Where the pruned model goes.
        pool: Samples to learn from; labels are not used.
        settings: Defaults where not given.
        kind: What the outputs are.
        seconds: Product -> time (`prune_choose.seconds_of`): where time is to be had. None means by multiplications.
        share_of: Measures what a cut has saved; cuts are deepened until that is enough. None means the model of costs is believed.
        on_round: Told of every round.

    Raises:
        ModelError: nothing can be pruned, or the model has operators that the twin does not know.
        DataError: too few samples.
    """
    settings = settings or Pruning()
    out.parent.mkdir(parents=True, exist_ok=True)
    run = _Run(source, out, pool, settings, kind, seconds, share_of)
    rounds = []
    for number in range(1, settings.rounds + 1):
        rounds.append(run.round(settings.share ** (number / settings.rounds)))
        if on_round is not None:
            on_round(rounds[-1])
    return Shrunk(out, tuple(rounds))


class _Run:
    """One pruning from the whole model to the last round; `current` is the model as it is."""

    def __init__(
        self,
        source: Path,
        out: Path,
        pool: Pool,
        settings: Pruning,
        kind: Kind,
        seconds: Mapping[str, float] | None,
        share_of: ShareOf | None,
    ) -> None:
        self.current, self.out, self.pool, self.settings, self.kind = source, out, pool, settings, kind
        whole = channels_of(ir_files.read(source).graph)
        if not whole.sets:
            raise ModelError(f"'{source.name}' has no channels that can be pruned.", "Quantize it without pruning.")
        self.rates = rates(whole, seconds, settings.block)
        self.whole = cost(whole, np.ones(whole.count, bool), self.rates, settings.block)
        self.teacher, self.share_of = Twin(source), share_of

    def round(self, share: float) -> Round:
        """Cuts down to a share of the whole model's time, and trains."""
        found = channels_of(ir_files.read(self.current).graph)
        some = self.pool.take(_spread(len(self.pool), self.settings.samples))
        worth = importance(Twin(self.current), some, found, kind=self.kind, seed=self.settings.training.seed)
        with tempfile.TemporaryDirectory(dir=self.out.parent) as folder:
            cut = Path(folder) / "cut.onnx"
            predicted, measured = self._cut(cut, found, worth, share)
            student = Twin(cut)
            loss = self._loss(list(student.plan.outputs))
            trained = train(student, self.teacher, self.pool, self.settings.training, kind=self.kind, loss=loss)
            write_back(student, cut, self.out)
        self.current = self.out
        after = channels_of(ir_files.read(self.out).graph)
        return Round({each.name: len(each.channels) for each in after.sets}, predicted, measured, trained)

    def _cut(self, out: Path, found: Channels, worth: Mapping[str, Array], share: float) -> tuple[float, float | None]:
        """Writes the cut; share of time left by the model of costs, and measured."""
        budget, predicted, measured = share, 1.0, None
        for _ in range(TRIES):
            chosen = choose(found, worth, self.rates, budget * self.whole, block=self.settings.block, least=self.settings.least)
            model = ir_files.read(self.current)
            prune(model, chosen)
            ir_files.write(model, out)
            predicted = cost(found, found.kept(chosen), self.rates, self.settings.block) / self.whole
            measured = None if self.share_of is None else self.share_of(out)
            if measured is None or measured <= share or predicted > budget:  # enough, or nothing more may go
                break
            budget = predicted * max(share / measured, 0.5)
        return predicted, measured

    def _loss(self, names: Sequence[str]) -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Tensor | None], Tensor]:
        """The outputs alone: tensors inside have other widths than the teacher's."""
        distillation = Distillation(self.kind)
        return lambda found, wanted, _: distillation.outputs(found, wanted, names)


def _spread(count: int, wanted: int) -> Array:
    """Positions of some samples, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(int))
