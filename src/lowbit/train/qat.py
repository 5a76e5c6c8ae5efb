"""Quantization-aware training by distillation: no labels and no training code, on the very graph that ships.

    student = Twin(qdq);  teacher = Twin(prepared)
    train(student, teacher, pool, Settings(minutes=10))
    write_back(student, qdq, out)

Rounding is passed straight through and its scales are learned (train/fake_quantize.py). Steps are measured in units of what they
change: a weight moves by a share of its grid's step, a scale by a share of itself, so that one setting serves 8 bits and 2. Weights
near the middle between two levels oscillate (Nagel et al. 2022, arXiv 2203.11086), so what is judged is the mean over about the last
epoch (Polyak and Juditsky 1992). After every epoch it answers samples it is not trained on; the best mean is what remains, and that may be
the student before the first epoch.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.errors import UsageError
from lowbit.graph.channel_sets import Carried
from lowbit.train.checkpoint import Epoch, Progress
from lowbit.train.distill import Distillation, Kind, hints, matching_factors
from lowbit.train.pool import Pool
from lowbit.train.twin import Twin

WARM_UP = 0.05
"""Share of the training in which the rates rise."""

Loss = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Tensor | None], Tensor]
"""A user's own: (student's outputs, teacher's outputs, labels or None) -> scalar."""


Taught = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
"""(student's tensors, teacher's) -> scalar."""


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        epochs: Most of them.
        minutes: Most time; the rates fall to zero by then.
        batch: Samples a step.
        weight_rate: Most that a weight moves in a step, in steps of its grid over the root of its inputs: Adam moves all weights of a
            product at once, and their changes add up. (Other constants: in hundredths of their size.)
        scale_rate: The same of a scale, as a share of itself.
        held_out: Share of the samples that judge.
        patience: Epochs without a better one after which to stop.
        label_share: Weight of the labels' cross-entropy beside the teacher, where labels are given.
        vary: Mirror, shift and blend images.
        half: Products in bfloat16 where the CPU computes in it natively, weights and losses in float32: up to three times as fast.
            Not for students with integers, whose levels it cannot tell apart.
        seed: Of everything random.
    """

    epochs: int = 20
    minutes: float = 10.0
    batch: int = 32
    weight_rate: float = 0.05
    scale_rate: float = 3e-4
    held_out: float = 0.1
    patience: int = 6
    label_share: float = 0.5
    vary: bool = True
    half: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "minutes", "batch", "weight_rate", "scale_rate", "patience"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}.", "Give a number above zero.")
        if not 0 < self.held_out < 1:
            raise UsageError(f"held_out is {self.held_out}.", "Give a share between 0 and 1, e.g. 0.1.")


@dataclass(frozen=True)
class Trained:
    """How training ended; the student holds the parameters of the best epoch.

    Attributes:
        history: All epochs; the first is the student before training.
        reason: Why it stopped, in a sentence.
        seconds: Of all epochs.
        judged: Samples that were held out.
    """

    history: tuple[Epoch, ...]
    reason: str
    seconds: float
    judged: int

    @property
    def best(self) -> Epoch:
        return min(self.history, key=lambda epoch: epoch.held_out_loss)

    @property
    def gain(self) -> float:
        """Share of the held-out loss that training has removed."""
        before = self.history[0].held_out_loss
        return 1 - self.best.held_out_loss / before if before > 0 else 0.0

    @property
    def summary(self) -> str:
        """The reason for stopping and the gain, in two sentences."""
        if self.best.number == 0:
            return f"{self.reason} No epoch was better on {self.judged} samples held out: nothing was changed."
        return f"{self.reason} The distance to FP32 on {self.judged} samples held out fell by {self.gain:.0%}."


def train(
    student: Twin,
    teacher: Twin,
    pool: Pool,
    settings: Settings | None = None,
    *,
    kind: Kind = "classes",
    loss: Loss | None = None,
    kept: Mapping[str, Carried] | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Trained:
    """Trains a student in place.

    Args:
        student: Of the QDQ file.
        teacher: Of the FP32 file with the same inputs and outputs.
        pool: Samples; labels are used where it has them.
        settings: Defaults where not given.
        kind: What the outputs are.
        loss: Instead of distillation.
        kept: Tensor -> which of the teacher's channels a pruned student still has; tensors that are not named have them all.
        checkpoint: File to resume from and to keep up to date.
        on_epoch: Told of every epoch, those of a resumed run included.

    Raises:
        DataError: too few samples, or a checkpoint that cannot be read.
        ModelError: the samples do not fit the models.
    """
    settings = settings or Settings()
    return _Run(student, teacher, pool, settings, kind, loss, kept, checkpoint, on_epoch or (lambda _: None)).run()


class _Run:
    """One training from its first epoch to its best."""

    def __init__(
        self,
        student: Twin,
        teacher: Twin,
        pool: Pool,
        settings: Settings,
        kind: Kind,
        loss: Loss | None,
        kept: Mapping[str, Carried] | None,
        checkpoint: Path | None,
        on_epoch: Callable[[Epoch], None],
    ) -> None:
        self.student, self.teacher, self.settings = student, teacher.requires_grad_(False), settings
        self.training, self.judging = pool.held_out(settings.held_out, settings.seed)
        self.own, self.checkpoint, self.on_epoch = loss, checkpoint, on_epoch
        self.outputs = list(student.plan.outputs)
        self.distillation = Distillation(kind, () if loss is not None else hints(student, teacher), kept=kept)
        self.half = settings.half and _has_bfloat16()
        self.optimizer = torch.optim.Adam(_groups(student, settings))
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.history: list[Epoch] = []
        self.best, self.mean = _copied(student), _copied(student)
        self.key = _key(student, teacher, pool, settings, kind) if checkpoint is not None else ""

    def run(self) -> Trained:
        if not self._resume():
            self._begin()
        while (reason := self._done()) is None:
            started = time.perf_counter()
            total = self._epoch(len(self.history))
            if not math.isfinite(total):
                reason = "The loss was no longer finite; the best epoch before is kept."
                break
            self._note(Epoch(len(self.history), total, self._judged(), time.perf_counter() - started))
        self.student.load_state_dict(self.best)
        return Trained(tuple(self.history), reason, self._seconds(), len(self.judging))

    def _begin(self) -> None:
        with torch.no_grad():
            feeds, _ = next(self.training.batches(self.settings.batch))
            names = self.distillation.hints
            wanted = {name: self.distillation.selected(name, value) for name, value in self.teacher(feeds, names).items()}
            factors = matching_factors(self.student(feeds, names), wanted, names)
        self._use(factors)
        started = time.perf_counter()
        self._note(Epoch(0, None, self._judged(), time.perf_counter() - started))

    def _use(self, factors: Mapping[str, Tensor]) -> None:
        self.distillation = replace(self.distillation, factors=factors)

    def _resume(self) -> bool:
        found = Progress.load(self.checkpoint, self.key) if self.checkpoint is not None else None
        if found is None:
            return False
        self.history, self.best, self.mean = list(found.history), dict(found.best), dict(found.mean)
        self.student.load_state_dict(found.latest)
        self.optimizer.load_state_dict(dict(found.optimizer))
        self._use(found.factors)
        for epoch in self.history:
            self.on_epoch(epoch)
        return True

    def _note(self, epoch: Epoch) -> None:
        """Remembers an epoch, in the file too."""
        if not self.history or epoch.held_out_loss < min(each.held_out_loss for each in self.history):
            self.best = {name: value.clone() for name, value in self.mean.items()}
        self.history.append(epoch)
        if self.checkpoint is not None:
            factors = dict(self.distillation.factors or {})
            latest, state = _copied(self.student), self.optimizer.state_dict()
            Progress(self.key, tuple(self.history), self.best, self.mean, latest, state, factors).save(self.checkpoint)
        self.on_epoch(epoch)

    def _done(self) -> str | None:
        """Why to stop; None to go on."""
        losses = [epoch.held_out_loss for epoch in self.history]
        if len(self.history) > self.settings.epochs:
            return f"All {self.settings.epochs} epochs are done."
        if self._seconds() >= 60 * self.settings.minutes:
            return f"{self.settings.minutes:g} minutes are over."
        if len(losses) - 1 - losses.index(min(losses)) >= self.settings.patience:
            return f"{self.settings.patience} epochs brought nothing better."
        return None

    def _seconds(self) -> float:
        return sum(epoch.seconds for epoch in self.history)

    def _epoch(self, number: int) -> float:
        """Trains on all samples once, or until time is up; the mean loss."""
        started, losses = time.perf_counter(), []
        steps = max(len(self.training) // self.settings.batch, 1)
        for index, (feeds, labels) in enumerate(self.training.epoch(self.settings.batch, number, vary=self.settings.vary)):
            spent = (self._seconds() + time.perf_counter() - started) / (60 * self.settings.minutes)
            if spent >= 1:
                break
            self._set_rates(max((number - 1 + (index + 1) / steps) / self.settings.epochs, spent))
            loss = self._loss(feeds, labels)
            if not torch.isfinite(loss):
                return math.nan
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self._average(1 / min((number - 1) * steps + index + 1, steps))
            losses.append(float(loss.detach()))
        return sum(losses) / max(len(losses), 1)

    def _set_rates(self, done: float) -> None:
        """A short rise, while Adam's averages fill, then half a cosine down to zero."""
        share = min(done / WARM_UP, 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share

    def _of(self, twin: Twin, feeds: Mapping[str, Tensor], watch: Sequence[str] = ()) -> dict[str, Tensor]:
        """What a twin gives, in float32 whatever it computed in."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            found = twin(feeds, watch)
        return {name: value.float() for name, value in found.items()} if self.half else found

    def _loss(self, feeds: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        return self._compared(feeds, labels, self.distillation.hints, lambda found, wanted: self.distillation(found, wanted, self.outputs))

    def _compared(self, feeds: Mapping[str, Tensor], labels: Tensor | None, watch: Sequence[str], taught: Taught) -> Tensor:
        """What the teacher and the labels say of the student's answers, or what the user's own loss does. Who is not asked is not run."""
        found, share = self._of(self.student, feeds, watch), 0.0 if labels is None else self.settings.label_share
        if self.own is None and share >= 1:
            return self._told(found, labels)
        with torch.no_grad():
            wanted = self._of(self.teacher, feeds, watch)
        if self.own is not None:
            return self.own(found, wanted, labels)
        return taught(found, wanted) if labels is None else (1 - share) * taught(found, wanted) + share * self._told(found, labels)

    def _told(self, found: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        """The labels' cross-entropy."""
        assert labels is not None
        return torch.nn.functional.cross_entropy(found[self.outputs[0]], labels.long())

    @torch.no_grad()
    def _average(self, share: float) -> None:
        """Lets the newest parameters into the mean."""
        for name, value in self.student.state_dict().items():
            self.mean[name].lerp_(value, share)

    @torch.no_grad()
    def _judged(self) -> float:
        """The loss of the mean's outputs on the samples that are held out; infinite where it is not finite."""
        total, latest = 0.0, _copied(self.student)
        self.student.load_state_dict(self.mean)
        for feeds, labels in self.judging.batches(self.settings.batch):
            loss = self._compared(feeds, labels, (), lambda found, wanted: self.distillation.outputs(found, wanted, self.outputs))
            total += float(loss) * len(next(iter(feeds.values())))
        self.student.load_state_dict(latest)
        return total / len(self.judging) if math.isfinite(total) else math.inf


def _has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 by itself (AVX-512 BF16 or AMX); a PyTorch that does not tell is taken for no."""
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def _groups(student: Twin, settings: Settings) -> list[dict[str, Any]]:
    """Every parameter with a rate in its own units: the most that Adam moves it in a step."""
    step_of = {
        grid.tensor: float(student.quantizer(key).scale.detach().mean()) for key, grid in student.plan.grids.items() if grid.is_weight
    }
    found = []
    for name in student.plan.trained:
        parameter = student.weight(name)
        step = step_of[name] / math.sqrt(_inputs(parameter)) if name in step_of else 0.01 * _size(parameter)
        found.append({"params": [parameter], "lr": settings.weight_rate * step})
    scales = {id(scale): scale for key in student.plan.grids for scale in [student.quantizer(key).scale]}
    for scale in scales.values():
        found.append({"params": [scale], "lr": settings.scale_rate * float(scale.detach().mean())})
    return found


def _inputs(weight: Tensor) -> int:
    """Inputs of one output: of convolutions [out, in, ...]; of matrices the longer side, whichever way they lie."""
    return weight[0].numel() if weight.ndim > 2 else max(weight.shape, default=1)


def _size(parameter: Tensor) -> float:
    """Root of the mean square; of constants that are all zero, one."""
    return float(parameter.detach().square().mean().sqrt()) or 1.0


def _copied(student: Twin) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in student.state_dict().items()}


def _key(student: Twin, teacher: Twin, pool: Pool, settings: Settings, kind: Kind) -> str:
    digest = hashlib.sha256(f"{replace(settings, minutes=1.0)} {kind} {pool.images}".encode())  # with more time, it is the same training
    digest.update(b"" if pool.labels is None else pool.labels.tobytes())
    parts: Iterable[bytes] = (
        *(value.numpy().tobytes() for twin in (student, teacher) for value in twin.state_dict().values()),
        *(values.tobytes() for values in pool.feeds.values()),
    )
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
