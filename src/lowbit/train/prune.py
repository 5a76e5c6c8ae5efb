"""Structured pruning without labels or training code: take out channels, let the smaller model learn from the one it came from, repeat.

    shrunk = shrink(prepared, out, pool, Pruning(share=0.5), seconds=seconds_of_products, share_of=measured_int8_latency)

What comes out is an ordinary FP32 model with fewer channels, to be quantized like any other. Which channels go is a matter of what they
are worth (train/importance.py) and of the time that they take (train/prune_choose.py); what is left is fitted to what the whole model
computes (train/repair.py), and then trained to answer as it does (train/qat.py), inner tensors included: of the teacher's channels
those that the student still has.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowbit.errors import ModelError, UsageError
from lowbit.graph import ir_files
from lowbit.graph.channel_sets import Channels
from lowbit.graph.channels import channels_of, prune
from lowbit.train.checkpoint import Epoch
from lowbit.train.distill import Kind
from lowbit.train.importance import importance
from lowbit.train.pool import Pool
from lowbit.train.prune_choose import BLOCK, choose, cost, rates
from lowbit.train.qat import Settings, Trained, train
from lowbit.train.repair import repair
from lowbit.train.twin import Twin
from lowbit.train.write_back import write_back
from lowbit.types import Array

TRIES = 4
"""Cuts of a round whose latency is measured, each deeper than the one before."""

TRAINING = Settings(epochs=12, minutes=10.0, batch=64, weight_rate=0.3, held_out=0.05, half=True)
"""Of a round: all weights have to find a new place, so they move faster than those that only round otherwise."""

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
        samples: Images that importance is found on, and to which what is left is fitted before training.
        agreement: Share of the samples held out whose class must be the whole model's after a round; a later round that falls below is
            taken back, and ends pruning. (Where outputs are no scores of classes, all rounds stay.)
        training: Of each round.
    """

    share: float = 0.5
    rounds: int = 1
    block: int = BLOCK
    least: float = 0.25
    samples: int = 1024
    agreement: float = 0.95
    training: Settings = field(default_factory=lambda: TRAINING)

    def __post_init__(self) -> None:
        for name in ("share", "least", "agreement"):
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
        repaired: Product -> relative squared error before and after what is left was fitted to the whole model (`repair`).
        agreement: Share of the samples held out whose class is the whole model's; None where outputs are no scores of classes.
        trained: How training went.
    """

    widths: Mapping[str, int]
    predicted: float
    measured: float | None
    repaired: Mapping[str, tuple[float, float]]
    agreement: float | None
    trained: Trained


@dataclass(frozen=True)
class Shrunk:
    """The pruned model and how it came about.

    Attributes:
        path: The model.
        rounds: That it has gone through.
        taken_back: The round after them, if its answers were too different.
    """

    path: Path
    rounds: tuple[Round, ...]
    taken_back: Round | None = None


def shrink(
    source: Path,
    out: Path,
    pool: Pool,
    settings: Pruning | None = None,
    *,
    kind: Kind = "classes",
    seconds: Mapping[str, float] | None = None,
    share_of: ShareOf | None = None,
    folder: Path | None = None,
    on_round: Callable[[Round], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Shrunk:
    """Prunes a model round by round; each time what is left is fitted to the whole model, then trained by distillation from it.

    Args:
        source: A prepared FP32 model; not changed.
        out: Where the pruned model goes.
        pool: Samples to learn from; labels are not used.
        settings: Defaults where not given.
        kind: What the outputs are.
        seconds: Product -> time (`prune_choose.seconds_of`): where time is to be had. None means by multiplications.
        share_of: Measures what a cut has saved; cuts are deepened until that is enough. None means the model of costs is believed.
        folder: Keeps cuts and checkpoints: the same call goes on where a former one was stopped. None keeps nothing.
        on_round: Told of every round.
        on_epoch: Told of every epoch of training.

    Raises:
        ModelError: nothing can be pruned, or the model has operators that the twin does not know.
        DataError: too few samples, or a checkpoint that cannot be read.
    """
    settings = settings or Pruning()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        run = _Run(source, pool, settings, kind, seconds, share_of, folder or Path(temporary), on_epoch)
        run.work.mkdir(parents=True, exist_ok=True)
        rounds: list[Round] = []
        taken_back, good = None, run.current
        for number in range(1, settings.rounds + 1):
            made = run.round(number)
            if on_round is not None:
                on_round(made)
            if rounds and made.agreement is not None and made.agreement < settings.agreement:
                taken_back = made
                break
            rounds, good = [*rounds, made], run.current
        shutil.copyfile(good, unfinished := out.with_name(f".{out.name}.tmp"))
        unfinished.replace(out)
    return Shrunk(out, tuple(rounds), taken_back)


class _Run:
    """One pruning from the whole model to the last round; `current` is the model as it is, `kept` where its channels were at first."""

    def __init__(
        self,
        source: Path,
        pool: Pool,
        settings: Pruning,
        kind: Kind,
        seconds: Mapping[str, float] | None,
        share_of: ShareOf | None,
        work: Path,
        on_epoch: Callable[[Epoch], None] | None,
    ) -> None:
        self.current, self.pool, self.settings, self.kind = source, pool, settings, kind
        whole = channels_of(ir_files.read(source).graph)
        if not whole.sets:
            raise ModelError(f"'{source.name}' has no channels that can be pruned.", "Quantize it without pruning.")
        self.rates = rates(whole, seconds, settings.block)
        self.whole = cost(whole, np.ones(whole.count, bool), self.rates, settings.block)
        self.kept = {name: replace(each, channels=np.arange(len(each.channels))) for name, each in whole.carried.items()}
        self.teacher, self.share_of, self.work, self.on_epoch = Twin(source), share_of, work, on_epoch
        self.key = _key(source, pool, settings, kind)

    def round(self, number: int) -> Round:
        """Cuts down to a share of the whole model's time, fits what is left, and trains."""
        start, told = self.work / f"round-{number}.onnx", self.work / f"round-{number}.json"
        cut = Cut.load(told, self.key) if start.exists() else None
        if cut is None:
            told.unlink(missing_ok=True)
            cut = self._cut(start, self.settings.share ** (number / self.settings.rounds))
            cut.save(told, self.key)
        self.kept = {name: replace(each, channels=np.array(cut.kept[name], int)) for name, each in self.kept.items()}
        student = Twin(start)
        trained = train(
            student,
            self.teacher,
            self.pool,
            self.settings.training,
            kind=self.kind,
            kept=self.kept,
            checkpoint=start.with_suffix(".pt"),
            on_epoch=self.on_epoch,
        )
        self.current = self.work / f"trained-{number}.onnx"
        write_back(student, start, self.current)
        after = channels_of(ir_files.read(self.current).graph)
        widths = {each.name: len(each.channels) for each in after.sets}
        return Round(widths, cut.predicted, cut.measured, cut.repaired, self._agreement(student), trained)

    @torch.no_grad()
    def _agreement(self, student: Twin) -> float | None:
        """Over the samples that judge training, and all outputs."""
        _, judging = self.pool.held_out(self.settings.training.held_out, self.settings.training.seed)
        same: list[Tensor] = []
        for feeds, _ in judging.batches(self.settings.training.batch):
            ours, theirs = student(feeds), self.teacher(feeds)
            same += [(ours[name].argmax(-1) == theirs[name].argmax(-1)).flatten() for name in ours if ours[name].ndim > 1]
        return float(torch.cat(same).float().mean()) if same and self.kind == "classes" else None

    def _cut(self, out: Path, share: float) -> Cut:
        """Writes a model with fewer channels, fitted to the whole one."""
        found = channels_of(ir_files.read(self.current).graph)
        some = self.pool.take(_spread(len(self.pool), self.settings.samples))
        worth = importance(Twin(self.current), some, found, kind=self.kind, seed=self.settings.training.seed)
        plain = out.with_name(f"cut-{out.name}")
        stays, predicted, measured = self._deep_enough(plain, found, worth, share)
        kept = {name: self.kept[name].channels[stays[each.channels]] for name, each in found.carried.items()}
        student = Twin(plain)
        repaired = repair(student, self.teacher, some, {name: replace(self.kept[name], channels=kept[name]) for name in kept})
        write_back(student, plain, out)
        return Cut(predicted, measured, {name: channels.tolist() for name, channels in kept.items()}, repaired)

    def _deep_enough(self, out: Path, found: Channels, worth: Mapping[str, Array], share: float) -> tuple[Array, float, float | None]:
        """Writes the cut; what stays, and the share of time left by the model of costs and measured."""
        budget, predicted, measured = share, 1.0, None
        stays = np.ones(found.count, bool)
        for _ in range(TRIES):
            chosen = choose(found, worth, self.rates, budget * self.whole, block=self.settings.block, least=self.settings.least)
            model = ir_files.read(self.current)
            prune(model, chosen)
            ir_files.write(model, out)
            stays = found.kept(chosen)
            predicted = cost(found, stays, self.rates, self.settings.block) / self.whole
            measured = None if self.share_of is None else self.share_of(out)
            if measured is None or measured <= share or predicted > budget:  # enough, or nothing more may go
                break
            budget = predicted * max(share / measured, 0.5)
        return stays, predicted, measured


@dataclass(frozen=True)
class Cut:
    """What a cut has left, in JSON beside its model.

    Attributes:
        predicted: As in `Round`.
        measured: Likewise.
        kept: Tensor -> where its channels are among the whole model's.
        repaired: As in `Round`.
    """

    predicted: float
    measured: float | None
    kept: Mapping[str, list[int]]
    repaired: Mapping[str, tuple[float, float]]

    def save(self, path: Path, key: str) -> None:
        """Written last: where it is, the model beside it is whole."""
        unfinished = path.with_name(f".{path.name}.tmp")
        unfinished.write_text(json.dumps({"key": key, **asdict(self)}))
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path, key: str) -> Cut | None:
        """What was saved; None where there is nothing whole, or where it belongs to another pruning."""
        try:
            found = json.loads(path.read_text())
            return cls(**found) if found.pop("key") == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _key(source: Path, pool: Pool, settings: Pruning, kind: Kind) -> str:
    """Of what is pruned, by which samples and how deep: another key means another cut."""
    digest = hashlib.sha256(source.read_bytes())
    for values in pool.feeds.values():
        digest.update(values.tobytes())
    said = f"{settings.share} {settings.rounds} {settings.block} {settings.least} {settings.samples} {settings.training.seed} {kind}"
    digest.update(said.encode())
    return digest.hexdigest()


def _spread(count: int, wanted: int) -> Array:
    """Positions of some samples, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(int))
