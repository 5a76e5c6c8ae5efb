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
from lowbit.errors import UsageError
from lowbit.pipeline.context import Context
from lowbit.recipe import Recipe
from lowbit.types import Array

if TYPE_CHECKING:
    from lowbit.train.distill import Kind
    from lowbit.train.pool import Pool

MOST = 4096
"""Samples that are trained on: they are kept in memory."""

SHARE = 0.65
"""Of a model's arithmetic that pruning leaves: a half faster, where arithmetic is what takes the time."""

PRUNING_EPOCHS = 20

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

    static = replace(recipe, method="static")
    start = out.with_name(f"{out.stem}-untrained.onnx")
    if not start.exists():
        quantize(context.model.path, context.store.prepared, static, start, evidence=evidence, target=target)
    pool = _pool(context)
    settings = Settings(minutes=max(context.minutes_left(), 0.01), batch=context.fixed_batch or Settings.batch)
    context.reporter.stage(f"Training {recipe.name} on {len(pool):,} samples", settings.epochs + 1)
    student = Twin(start, recipe=static)
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
        ModelError: no channels can go, or the graph has operators that cannot be trained.
        UsageError: PyTorch is not installed.
    """
    _need_torch(recipe)
    from lowbit.train.prune import Pruning, shrink

    pool, settings = _pool(context), Pruning(share=SHARE, rounds=1)
    training = replace(settings.training, epochs=PRUNING_EPOCHS, minutes=max(context.minutes_left(), 0.01))
    small = out.with_name(f"{out.stem}-pruned.onnx")
    if not small.exists():
        context.reporter.stage(f"Pruning, and training what is left on {len(pool):,} samples")
        made = small.with_suffix(".tmp.onnx")
        rounds = shrink(context.store.prepared, made, pool, replace(settings, training=training), kind=_kind(context)).rounds
        made.replace(small)
        context.reporter.note(f"{rounds[-1].predicted:.0%} of the arithmetic is left. {rounds[-1].trained.summary}")
    own = Evidence(small, evidence.batches)
    return quantize(context.model.path, small, replace(recipe, method="static"), out, evidence=own, target=target)


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
    """Samples in memory, preprocessed; `MOST` of them, spread evenly, where there are more.

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
    rows = np.arange(len(data)) if len(data) <= MOST else np.arange(MOST) * len(data) // MOST
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
