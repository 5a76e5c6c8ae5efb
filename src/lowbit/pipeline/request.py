"""Turn what the user typed into what a run needs, refusing early whatever cannot work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np

from lowbit.data import Dataset, Preprocess, Split, open_data, split
from lowbit.data.fit import some
from lowbit.data.splits import refuse_leak
from lowbit.errors import DataError, ModelError, UsageError, unknown
from lowbit.frontends.bring import Incoming
from lowbit.frontends.parity import Run, check_parity
from lowbit.graph.load import load_model, operator_counts
from lowbit.graph.nncf_writer import installed as nncf_installed
from lowbit.measure.metrics import Metric, metric_for
from lowbit.measure.race import FINAL
from lowbit.pipeline import training
from lowbit.pipeline.context import Training, When
from lowbit.pipeline.evaluate import call_batch
from lowbit.pipeline.journal import SCHEMA as JOURNAL_SCHEMA
from lowbit.pipeline.recipes import FP32, INT8_PT2E, INT8_TORCH_DYNAMIC, ON_REQUEST, Traits, program_recipes_for, recipes_for, traits
from lowbit.pipeline.store import request_key
from lowbit.recipe import Recipe
from lowbit.runtimes import registry
from lowbit.runtimes.base import Runtime, opens
from lowbit.runtimes.hardware import Hardware, probe
from lowbit.types import Array, Budget, Model, Objective, Parity, Policy

Data = str | Path | Mapping[str, Array]
MAX_BATCH = 4096
PARITY = 64
"""Samples on which an exported file is compared with its source: enough to see another computation, soon done."""

PARITY_BATCH = 8
MAX_MODEL = 2_000_000_000
"""Bytes: what one protobuf file can hold, which the writers need."""


@dataclass(frozen=True)
class Options:
    """What a user may say about a run; every field has a sensible default (docs/reference/cli.md)."""

    max_drop: str = "1%"
    task: str | None = None
    metric: str | None = None
    calibration: Data | Dataset | None = None
    preprocess: str | Path | Preprocess | None = None
    target: str | None = None
    slices: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    batch: tuple[int, ...] = (1, 8)
    objective: Objective = "latency"
    confidence: float = 0.95
    max_latency_ms: float | None = None
    time_limit_s: float | None = None
    threshold: float | None = None
    max_fpr_rise: str | None = None
    safety_critical: bool = False
    limit: int | None = None
    nncf: bool = True
    rounds: int = FINAL["rounds"]
    force: bool = False
    prune: bool = False
    qat: When = "auto"
    qat_minutes: float = 10.0
    train: Data | None = None
    train_labels: bool = False


NOT_KEPT = ("calibration", "preprocess", "train", "force", "prune", "qat", "qat_minutes", "train_labels", "time_limit_s")
"""What is given anew, or lies in the bundle. Where data lie is nobody's business but the caller's."""


def kept_options(options: Options) -> dict[str, Any]:
    """The options that a journal keeps: what a run must be told again to be the same run."""
    return {each.name: getattr(options, each.name) for each in fields(options) if each.name not in NOT_KEPT}


@dataclass(frozen=True)
class Request:
    """A checked request: everything opened, nothing done yet."""

    model: Model
    data: Dataset
    split: Split
    metric: Metric
    policy: Policy
    runtimes: tuple[Runtime, ...]
    recipes: tuple[Recipe, ...]
    traits: Traits
    hardware: Hardware
    training: Training
    key: str
    options: Options = field(repr=False)


def read_request(model: str | Path, data: Data | Dataset, options: Options, incoming: Incoming | None = None) -> Request:
    """Opens the model and the data and checks every option against them.

    Args:
        model: The .onnx file.
        data: The samples, or a data set of them that is open already.
        options: What the user said.
        incoming: Where the file was exported from something else: it brings its preprocessing and task, and is compared with the file.

    Raises:
        UsageError: an option is wrong. ModelError, DataError: the model or the data is.
    """
    runtimes = _runtimes(options.runtimes)
    source = load_model(model)
    if source.size_bytes > MAX_MODEL:
        raise ModelError(
            f"'{source.path.name}' has {source.size_bytes / 1e9:.1f} GB; this version optimizes models of up to {MAX_MODEL / 1e9:.1f} GB.",
            "Optimize its parts one by one, or use a smaller model.",
        )
    preprocess = read_preprocess(options.preprocess) or (incoming.preprocess if incoming else None)
    samples = data
    if not isinstance(samples, Dataset):
        samples = open_data(samples, source.inputs, preprocess, target=options.target, slices=options.slices, limit=options.limit)
    asked = _asked(options, incoming, samples)
    task, metric, _ = metric_for(*asked, source.outputs, samples.labels, preprocess=samples.preprocess)
    policy = read_policy(options, task, metric, call_batch(source.inputs, 0))
    calibration = options.calibration
    if calibration is not None and not isinstance(calibration, Dataset):
        calibration = open_data(calibration, source.inputs, samples.preprocess, target=options.target)
    parts = split(samples, calibration, metric.groups(samples.labels))
    may_train = read_training(options, source, samples, task)
    kinds = traits(operator_counts(source.path))
    programs = any(opens(runtime) == "pt2" for runtime in runtimes)
    usual = [*recipes_for(kinds, nncf=options.nncf and nncf_installed()), *(program_recipes_for(kinds) if programs else ())]
    recipes = _recipes(options.recipes, usual, programs=programs)
    if incoming is not None and incoming.origin is not None and incoming.run is not None:
        source = replace(source, origin=replace(incoming.origin, parity=_parity(incoming.run, source, samples)))
    hardware = probe(("torch", "torchao") if programs else ())
    key = request_key(
        source.sha256,
        parts.calibration.fingerprint,
        parts.search.fingerprint,
        parts.confirm.fingerprint,
        samples.preprocess.to_yaml(),
        task,
        metric.name,
        policy.max_drop,
        policy.confidence,
        policy.batch,
        policy.objective,
        policy.max_latency_ms,
        policy.threshold,
        policy.max_fpr_rise,
        policy.safety_critical,
        options.slices,
        [runtime.name for runtime in runtimes],
        [recipe.name for recipe in recipes],
        JOURNAL_SCHEMA,
        hardware.cpu,
        hardware.cores,
        hardware.versions,
    )
    return Request(source, samples, parts, metric, policy, runtimes, recipes, kinds, hardware, may_train, key, options)


def _asked(options: Options, incoming: Incoming | None, samples: Dataset) -> tuple[str | None, str | None]:
    """Task and metric: the user's, else the model's own where the data has labels to judge it by."""
    if incoming is None or options.task is not None or options.metric is not None or samples.labels is None:
        return options.task, options.metric
    return incoming.task, incoming.metric


def _parity(run: Run, source: Model, samples: Dataset) -> Parity:
    """The exported file against what it came from, on samples spread over the data."""
    rows = (np.arange(min(PARITY, len(samples))) * len(samples)) // min(PARITY, len(samples))
    size = call_batch(source.inputs, PARITY_BATCH)
    batches = (batch.feeds for batch in samples.subset(rows).batches(size) if len(batch.rows) == size or not call_batch(source.inputs, 0))
    return check_parity(run, source.path, islice(batches, PARITY))


def read_policy(options: Options, task: str, metric: Metric, own_batch: int) -> Policy:
    """The policy of the options.

    Raises:
        UsageError: a value is out of range, or the budget is in points and the metric has no scale.
    """
    if not 0.5 <= options.confidence < 1:
        raise UsageError(f"Confidence {options.confidence} is not between 0.5 and 1.", "Give e.g. 0.95.")
    if options.objective not in get_args(Objective):
        raise unknown("objective", options.objective, get_args(Objective))
    budget = Budget.parse(options.max_drop)
    if not budget.relative and not metric.bounded:
        raise UsageError(f"'{options.max_drop}' has no meaning for {metric.name}, which has no 0-1 scale.", "Give a share, e.g. 1%.")
    if options.max_fpr_rise is not None and options.threshold is None:
        raise UsageError("--max-fpr-rise needs --threshold: the score from which the model says yes.")
    rise = Budget.parse(options.max_fpr_rise) if options.max_fpr_rise else None
    if rise is not None and rise.relative:
        raise UsageError(f"The rise of the false-positive rate is in points; got '{options.max_fpr_rise}'.", "Give e.g. 0.5pp.")
    return Policy(
        task=task,
        metric=metric.name,
        max_drop=budget,
        confidence=options.confidence,
        objective=options.objective,
        batch=_batches(options.batch, own_batch),
        max_latency_ms=_positive("Latency ceiling", options.max_latency_ms),
        time_limit_s=_positive("Time limit", options.time_limit_s),
        threshold=options.threshold,
        max_fpr_rise=rise.value if rise else None,
        safety_critical=options.safety_critical,
    )


def read_training(options: Options, model: Model, samples: Dataset, task: str) -> Training:
    """What may be done to train, with its samples opened.

    Raises:
        UsageError: an option is wrong. DataError: samples to learn from are among those that judge.
    """
    if options.qat not in get_args(When):
        raise unknown("choice for --qat", options.qat, get_args(When))
    asked = options.qat in ("always", "again") or any(recipe.name in options.recipes for recipe in ON_REQUEST)
    if asked and not training.installed():
        raise UsageError(
            "Training needs PyTorch, which is not installed.",
            "pip install 'lowbit[torch]', or ask for none.",
        )
    minutes = _positive("Training time", options.qat_minutes)
    assert minutes is not None
    data = None
    if options.train is not None:
        data = open_data(options.train, model.inputs, samples.preprocess, target=options.target)
        refuse_leak(data, samples, "training")
    if options.train_labels:
        _check_labels(data if data is not None else samples, samples, model, task)
    return Training(options.qat, minutes, data, options.train_labels)


def _check_labels(data: Dataset, samples: Dataset, model: Model, task: str) -> None:
    """Refuses labels that the loss cannot take, before anything is computed.

    Raises:
        UsageError: there are none, or the task has no classes. DataError: other classes than those that judge.
    """
    if data.labels is None:
        raise UsageError(f"'{data.name}' has no labels to train on.", "Leave --train-labels out: distillation needs none.")
    shape = model.outputs[0].shape
    if task != "classification" or len(shape) != 2 or shape[1] == 1:
        raise UsageError("--train-labels is for models that score every class.", "Leave it out: distillation needs no labels.")
    if data.classes != samples.classes:
        raise DataError(
            f"'{data.name}' has the classes {some(data.classes or ())}, the data that judge {some(samples.classes or ())}.",
            "Give the same classes, or leave --train-labels out.",
        )
    most = int(np.max(data.labels, initial=0))
    if isinstance(shape[1], int) and most >= shape[1]:
        raise DataError(f"'{data.name}' has class {most}; the model gives {shape[1]} scores.", "Number classes from 0, as the model does.")


def read_preprocess(given: str | Path | Preprocess | None) -> Preprocess | None:
    """A preset's name, a YAML file, or what is one already."""
    return given if given is None or isinstance(given, Preprocess) else Preprocess.load(given)


def _runtimes(names: Sequence[str]) -> tuple[Runtime, ...]:
    """The asked runtimes, onnxruntime always first among them: the baseline runs there."""
    if not names:
        return tuple(registry.available())
    chosen = [registry.get(name) for name in dict.fromkeys(names)]
    return tuple(sorted(chosen, key=lambda runtime: runtime.name != "onnxruntime"))


def _recipes(names: Sequence[str], usual: list[Recipe], *, programs: bool) -> tuple[Recipe, ...]:
    """The asked recipes; the usual ones where none are. `programs`: some runtime opens what PyTorch's own recipes make."""
    if not names:
        return tuple(usual)
    pytorch = (INT8_PT2E, INT8_TORCH_DYNAMIC)
    known = [*usual, *(recipe for recipe in pytorch if recipe not in usual), *ON_REQUEST]
    by_name = {recipe.name: recipe for recipe in known}
    for name in names:
        if not programs and name in {recipe.name for recipe in pytorch}:
            raise UsageError(f"'{name}' is for PyTorch as a runtime, which was not asked for.", "Add --runtime torch.")
        if name not in by_name:
            raise unknown("recipe", name, by_name)
    # Source precision is always tried: without the fastest of it, nobody can say what quantization brings.
    return tuple(recipe for recipe in known if recipe.name in (FP32.name, *names))


def _batches(asked: Sequence[int], own: int) -> tuple[int, ...]:
    if not asked or min(asked) < 1 or max(asked) > MAX_BATCH:
        raise UsageError(f"Batch sizes {list(asked)} are not between 1 and {MAX_BATCH}.", "Give e.g. --batch 1,8.")
    return (own,) if own else tuple(sorted(set(asked)))


def _positive(what: str, value: float | None) -> float | None:
    if value is not None and value <= 0:
        raise UsageError(f"{what} {value} is not above zero.")
    return value


def parse_duration(text: str) -> float:
    """Seconds of "90", "90s", "5m", "1.5h", "7d" or "60ms".

    Raises:
        UsageError: not of that form.
    """
    units: dict[str, float] = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
    stripped = text.strip().lower()
    number = stripped.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = stripped[len(number) :].strip()
    try:
        return float(number) * units[unit]
    except (KeyError, ValueError) as error:
        raise UsageError(f"'{text}' is not a duration.", "Give e.g. 60ms, 90s, 5m or 1h.") from error
