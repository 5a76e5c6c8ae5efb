"""Make the artifact of a recipe that is trained: by distillation, on samples that may be learned from.

Neither the search samples nor the confirming ones are ever trained on: they judge.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit.compress.evidence import Evidence
from lowbit.compress.quantize import quantize
from lowbit.data.dataset import Dataset
from lowbit.errors import RunError, UsageError
from lowbit.graph import ir_files
from lowbit.graph.channels import channels_of
from lowbit.graph.profiles import target_of
from lowbit.measure.profile import profile
from lowbit.measure.race import QUICK, Variant, measurement, race
from lowbit.pipeline.context import Context
from lowbit.pipeline.recipes import static
from lowbit.recipe import Recipe
from lowbit.train.prune_choose import seconds_of
from lowbit.types import Array, Tuning

if TYPE_CHECKING:
    from lowbit.train.distill import Kind
    from lowbit.train.pool import Pool

MOST_BYTES = 512 * 1024 * 1024
"""Samples that are trained on are kept in memory: at most so many bytes of them."""

SHARE = 0.62
"""Of the time of the whole INT8 model that pruning leaves, measured where it will run: a half faster, and a little to spare."""

_USUAL = (Tuning(), Tuning(fixed_shape=True))
"""How a pruned model is timed while it is cut."""

READ = 64
"""Samples read at once."""


def installed() -> bool:
    """Whether there is anything to train with."""
    return importlib.util.find_spec("torch") is not None


def train_artifact(context: Context, recipe: Recipe, out: Path, evidence: Evidence, target: str) -> Path:
    """Writes the artifact of a recipe whose method is "qat".

    Args:
        context: The run. What it says of training is used; without training samples the calibration samples are learned from.
        recipe: Otherwise a static one, which is where training starts.
        out: Where it goes. A training that was interrupted goes on from the checkpoint beside it.
        evidence: Of the prepared model.
        target: Where it will run.

    Raises:
        DataError: too few samples.
        ModelError: the graph has operators that cannot be trained.
        UsageError: PyTorch is not installed.
    """
    _need_torch(recipe)
    from lowbit.train.qat import Settings, train
    from lowbit.train.twin import Twin
    from lowbit.train.write_back import write_back

    binary = recipe.weights.dtype == "int1"
    base = replace(recipe, method="static", weights=replace(recipe.weights, dtype="int8") if binary else recipe.weights)
    start = out.with_name(f"{out.stem}-untrained.onnx")
    if not start.exists():
        quantize(context.model.path, context.store.prepared, base, start, evidence=evidence, target=target)
    pool = _pool(context)
    settings = Settings(minutes=max(context.minutes_left(), 0.01), batch=context.fixed_batch or Settings.batch)
    context.reporter.stage(f"Training {recipe.name} on {len(pool):,} samples", settings.epochs + 1)
    student = Twin(start, recipe=base)
    if binary:  # no file format has one bit: what is written is INT8, of which two levels are used
        student.regrid_weights(1)
    found = train(
        student,
        Twin(context.store.prepared),
        pool,
        settings,
        kind=_kind(context),
        checkpoint=out.with_name(f"{out.stem}-training.pt"),
        on_epoch=lambda epoch: context.reporter.advance(epoch.number + 1),
    )
    context.reporter.note(f"{recipe.name} was trained for {found.seconds:.0f} s. {found.summary}")
    whole = out.with_name(f"{out.stem}-whole.onnx")
    write_back(student, start, whole)
    whole.replace(out)  # what is there is finished
    return out


def prune_artifact(context: Context, recipe: Recipe, out: Path, evidence: Evidence, target: str) -> Path:
    """Writes the artifact of a recipe whose method is "prune": channels go, what is left learns, and then it is quantized.

    Args:
        context: As in `train_artifact`.
        recipe: Otherwise a static one, by which the pruned model is quantized.
        out: Where it goes.
        evidence: Of the prepared model.
        target: Where it will run.

    Raises:
        DataError: too few samples.
        RunError: what was cut cannot be timed.
        ModelError: no channels can go, or the graph has operators that cannot be trained.
        UsageError: PyTorch is not installed.
    """
    _need_torch(recipe)
    from lowbit.train.prune import TRAINING, Pruning, shrink

    pool = _pool(context)
    training = replace(TRAINING, minutes=max(context.minutes_left(), 0.01))
    small = out.with_name(f"{out.stem}-pruned.onnx")
    if not small.exists():
        context.reporter.stage(f"Pruning, and training what is left on {len(pool):,} samples", training.epochs + 1)
        clock = _Clock(context, evidence, target, out.with_name(f"{out.stem}-timing"))
        found = shrink(
            context.store.prepared,
            small,
            pool,
            Pruning(share=SHARE, training=training),
            kind=_kind(context),
            seconds=clock.seconds(),
            share_of=clock.share,
            folder=out.with_name(f"{out.stem}-pruning"),
            on_epoch=lambda epoch: context.reporter.advance(epoch.number + 1),
        )
        last = found.rounds[-1]
        context.reporter.note(f"{last.measured or last.predicted:.0%} of INT8's time is left. {last.trained.summary}")
    own = Evidence(small, evidence.batches)
    return quantize(context.model.path, small, replace(recipe, method="static"), out, evidence=own, target=target)


class _Clock:
    """Times INT8 models where they will run: what is pruned for is not arithmetic, but time."""

    def __init__(self, context: Context, evidence: Evidence, target: str, folder: Path) -> None:
        self.context, self.evidence, self.target, self.folder = context, evidence, target, folder
        self.runtime = next(each for each in context.runtimes if target_of(each.name) == target)
        self.tuning = next(each for each in reversed(self.runtime.tunings(context.hardware)) if each in _USUAL)

    def seconds(self) -> dict[str, float] | None:
        """Product -> seconds in the whole model; None where the runtime does not say."""
        variant = Variant("whole", self.runtime.name, self._integer(self.context.store.prepared, "whole"), self.tuning)
        batch = self.context.policy.batch[0]
        try:
            kernels = profile(variant, self.context.sample(batch), batch=batch)
        except RunError:
            return None
        return seconds_of(kernels, channels_of(ir_files.read(self.context.store.prepared).graph)) or None

    def share(self, model: Path) -> float:
        """Time of a model that was cut as a share of the whole one's, both INT8: the worst over the asked batch sizes.

        Raises:
            RunError: one of them does not run.
        """
        paths = {"whole": self._integer(self.context.store.prepared, "whole"), "cut": self._integer(model, "cut")}
        variants = [Variant(name, self.runtime.name, path, self.tuning) for name, path in paths.items()]
        worst = 0.0
        for batch in self.context.policy.batch:
            results = race(variants, self.context.sample(batch), batch=batch, **QUICK)
            broken = [result.error for result in results.values() if not result.usable]
            found = None if broken else measurement(results["cut"], results["whole"]).speedup
            if found is None:
                raise RunError(f"The pruned model could not be timed: {broken[0] if broken else 'no round was finished.'}")
            worst = max(worst, 1 / found.value)
        return worst

    def _integer(self, model: Path, name: str) -> Path:
        """Plain INT8, made in seconds: how channels are rounded does not change the time that they take."""
        out = self.folder / f"{name}.onnx"
        if name == "cut" or not out.exists():
            own = Evidence(model, self.evidence.batches)
            quantize(self.context.model.path, model, static("minmax"), out, evidence=own, target=self.target)
        return out


TRAINED: Mapping[str, Callable[[Context, Recipe, Path, Evidence, str], Path]] = {"qat": train_artifact, "prune": prune_artifact}
"""Method of a recipe -> what makes its artifact."""


def _need_torch(recipe: Recipe) -> None:
    if not installed():
        raise UsageError(f"{recipe.name} needs PyTorch, which is not installed.", "pip install 'lowbit[torch]', or leave the recipe out.")


def _kind(context: Context) -> Kind:
    return "classes" if context.metric.task == "classification" else "values"


def _pool(context: Context) -> Pool:
    wanted = context.training
    return training_pool(wanted.data or context.split.calibration, context.fixed_batch, labels=wanted.labels)


def training_pool(data: Dataset, batch: int, *, labels: bool) -> Pool:
    """Samples in memory, preprocessed; as many as `MOST_BYTES` hold, spread evenly, where there are more.

    Args:
        data: Samples that do not judge.
        batch: The model's own batch size; 0 where it takes any.
        labels: Learn from their labels, too.

    Raises:
        UsageError: labels are wanted and there are none.
    """
    from lowbit.train.pool import Pool

    if labels and data.labels is None:
        raise UsageError(f"'{data.name}' has no labels to train on.", "Leave --train-labels out: distillation needs none.")
    one = sum(values.nbytes for values in next(iter(data.subset(np.arange(1)).batches(1))).feeds.values())
    most = max(MOST_BYTES // max(one, 1), 1)
    rows = np.arange(len(data)) if len(data) <= most else np.arange(most) * len(data) // most
    batches = [each.feeds for each in data.subset(rows).batches(batch or READ)]
    feeds = {name: _joined([each[name] for each in batches]) for name in batches[0]}
    return Pool(feeds, data.labels[rows] if labels and data.labels is not None else None, images=_are_images(data, feeds))


def _are_images(data: Dataset, feeds: Mapping[str, Array]) -> bool:
    """Whether all that is fed are images [N, C, H, W], which may be mirrored and shifted."""
    return data.preprocess.kind == "image" and data.preprocess.layout == "nchw" and all(each.ndim == 4 for each in feeds.values())


def _joined(parts: list[Array]) -> Array:
    """Batches one after the other; shorter sequences are filled up with zeros, which attention masks leave out."""
    longest = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].ndim)]
    filled = [np.pad(part, [(0, 0), *((0, most - size) for most, size in zip(longest, part.shape[1:], strict=True))]) for part in parts]
    return np.concatenate(filled)
