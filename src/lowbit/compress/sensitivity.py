"""Sensitivity: how much of a model's output each group costs in each format, measured in a few passes over the calibration set.

Every group is quantized alone, in every format, on the same few samples, and the change of the model's own output is measured: no
gradient, no assumption on how noise travels. What makes few samples enough, for classifiers: one pass of the float model tells which
predictions a change can reach at all, samples are drawn in proportion to that (and weighed back), and every sample's change of the
logits is tried on every sample's distribution (compress/damage.py). docs/lab.md has the numbers against brute force.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.compress.calibrate import CalibrationStats
from lowbit.compress.damage import Judge, Kind, check_kind
from lowbit.compress.sessions import open_session
from lowbit.compress.spread import inclusion, systematic
from lowbit.compress.switches import FLOATS, FORMAT, GROUP, Switched, switch
from lowbit.errors import DataError, ModelError
from lowbit.graph.place import Format
from lowbit.graph.profiles import Profile
from lowbit.quant.affine import levels
from lowbit.types import Array, Feeds, RangeMethod

Key = tuple[str, str]
"""Name of a group, name of a format."""

FEW = 40
"""Samples a group up to which crossing them ranks better than the samples' own divergences, which are right in the end."""


@dataclass(frozen=True)
class Sensitivity:
    """What each group suffers in each format, alone. Keys are (group name, format name), e.g. ("conv1", "w4a8").

    Attributes:
        damage: Effect on the model's output, never negative, 0 = none: see `kind`. Small damages of several groups add up.
        local_sqnr: Of the group's own output, dB, signal over noise of all samples seen; inf where nothing changed.
        passes: Cost: forward passes over the calibration set, in samples run / samples.
        samples: In the calibration set.
        kind: What damage is: "classes" mean KL divergence of the softmaxed outputs (nats), "embedding" mean 1 - cosine,
            "values" mean squared error over variance.
        budget: Most passes that were allowed.
        each: Samples on which every group was tried.
    """

    damage: Mapping[Key, float]
    local_sqnr: Mapping[Key, float]
    passes: float
    samples: int
    kind: str
    budget: float = 3.0
    each: int = 0

    def ranking(self, format_name: str) -> list[str]:
        """Groups, the most sensitive in this format first."""
        return sorted((g for g, f in self.damage if f == format_name), key=lambda g: -self.damage[g, format_name])


def sensitivity(
    prepared: Path,
    profile: Profile,
    formats: Mapping[str, Format],
    stats: CalibrationStats,
    batches: Sequence[Feeds],
    *,
    kind: Kind,
    ranges: RangeMethod = "minmax",
    passes: float = 3.0,
    seed: int = 0,
    threads: int = 0,
) -> Sensitivity:
    """Measures what quantizing each group alone does to the output of a model.

    Args:
        prepared: What `graph.prepare` wrote; not changed.
        profile: Of the target.
        formats: Name -> weights and activations, e.g. {"w4a8": Format(QuantSpec("int4", "per-channel", True), QuantSpec("uint8"))};
            floating point types leave weights or activations as they are.
        stats: Of the same model.
        batches: The calibration samples; the largest batch is also the largest that is run here.
        kind: What the model's outputs are.
        ranges: How activation ranges follow from `stats`.
        passes: Most forward passes over all samples.
        seed: Moves the choice of samples; the same seed gives the same result.
        threads: For the runtime; 0 means all cores.

    Raises:
        DataError: no samples, or too few for the number of groups.
        ModelError: nothing in the model can be quantized, or its outputs cannot be compared.
        UsageError: an unknown `kind`.
    """
    check_kind(kind)
    switched = switch(prepared, profile, formats, lambda t: stats.range(t, ranges), list(stats.tensors))
    if not switched.groups or not formats:
        raise ModelError("There is nothing to measure: no product of the model can be quantized on this target, or no format was given.")
    samples = _Samples(batches, switched)
    plan = Plan.of(len(samples), len(switched.groups), formats, passes, kind, samples.fixed or 1)
    runner = _Runner(open_session(switched.model, prepared, threads, "with switches"))
    chosen, weights = _choose(runner, samples, plan, kind, seed)
    return _measure(runner, switched, samples, chosen, weights, plan, kind, passes)


# Which samples --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How a budget of samples is spent.

    Attributes:
        reference: Samples of a first pass of the float model that tells which ones matter; 0 = none.
        each: Samples on which every group is tried.
        formats: Those that are tried; the damage of others follows from theirs by the noise in the group's own output.
    """

    reference: int
    each: int
    formats: tuple[str, ...]

    @classmethod
    def of(cls, samples: int, groups: int, formats: Mapping[str, Format], passes: float, kind: Kind, batch: int = 1) -> Plan:
        """Spends no more than passes x samples, in whole batches where the model takes no others.

        Raises:
            DataError: not even one batch a group is within the budget.
        """
        budget = int(passes * samples + 1e-9)
        reference = min(samples, budget // 3) // batch * batch if kind == "classes" else 0
        coarsest = min(formats, key=lambda name: _bits(formats[name]))
        for tried in (tuple(formats), (coarsest,)):
            runs = groups * len(tried) + 1  # one is the float model's
            each = min((budget - reference) // runs, reference or samples) // batch * batch
            if each >= min(2, samples):
                return cls(reference, each, tried)
        if each < 1:
            raise DataError(
                f"{samples} samples are too few to try {groups} groups in {passes:g} passes.",
                "Give more calibration samples, allow more passes, or leave operators out.",
            )
        return cls(reference, each, tried)


def _bits(form: Format) -> int:
    """Of weights and activations together."""
    specs = (form.weights.dtype, form.activations.dtype)
    return sum(32 if dtype in FLOATS else (levels(dtype, False)[1] - levels(dtype, False)[0]).bit_length() for dtype in specs)


def _choose(runner: _Runner, samples: _Samples, plan: Plan, kind: Kind, seed: int) -> tuple[Array, Array]:
    """Positions of the samples on which groups are tried, and their weights, which add up to about 1."""
    offset = float(np.random.default_rng(seed).random())
    if not plan.reference:
        chosen = systematic(np.full(len(samples), plan.each / len(samples)), offset)
        return chosen, np.full(len(chosen), 1 / len(chosen))
    candidates = np.arange(plan.reference) * len(samples) // plan.reference
    chunks = samples.chunks(candidates)
    rows = np.concatenate([chunk.rows for chunk in chunks])
    importance = Judge([runner(chunk) for chunk in chunks], kind).importance()
    order = np.argsort(rows)
    rows, chance = rows[order], inclusion(importance[order], plan.each)
    drawn = systematic(chance, offset)
    return rows[drawn], 1 / (chance[drawn] * len(rows))


@dataclass(frozen=True)
class _Chunk:
    """Samples that run together: their positions, and their inputs, padded by repetition where the model wants more."""

    rows: Array
    feeds: Feeds


class _Samples:
    """The calibration samples, one by one."""

    def __init__(self, batches: Sequence[Feeds], switched: Switched) -> None:
        self.batches = batches
        sizes = [len(next(iter(feeds.values()))) for feeds in batches]
        self.where = [(batch, row) for batch, size in enumerate(sizes) for row in range(size)]
        if not self.where:
            raise DataError("There are no samples to measure with.", "Give at least a few dozen calibration samples.")
        dims = [value.type.tensor_type.shape.dim for value in switched.model.graph.input]
        self.fixed = max((dim[0].dim_value for dim in dims if dim), default=0)
        self.most = self.fixed or max(sizes)

    def __len__(self) -> int:
        return len(self.where)

    def chunks(self, rows: Array) -> list[_Chunk]:
        """These samples in batches of equal shapes, each no larger than the largest given, or as large as the model wants."""
        alike: dict[tuple[Any, ...], list[int]] = {}
        for row in rows:
            batch, _ = self.where[row]
            alike.setdefault(tuple(feed.shape[1:] for feed in self.batches[batch].values()), []).append(int(row))
        return [self._chunk(group[i : i + self.most]) for group in alike.values() for i in range(0, len(group), self.most)]

    def _chunk(self, rows: list[int]) -> _Chunk:
        filled = rows + [rows[-1]] * (self.fixed - len(rows) if self.fixed else 0)
        places = [self.where[row] for row in filled]
        names = self.batches[places[0][0]]
        return _Chunk(np.array(rows), {name: np.stack([self.batches[batch][name][row] for batch, row in places]) for name in names})


# The measurement ------------------------------------------------------------------------------------------------------


@dataclass
class _Runner:
    """A session of the switched model that counts the samples it runs."""

    session: Any
    spent: int = 0
    error: Array = field(default_factory=lambda: np.zeros(1))

    def __call__(self, chunk: _Chunk, group: int = -1, form: int = 0) -> list[Array]:
        """The model's outputs for the samples of a chunk; what the group's own output suffered is added to `error`."""
        feeds = {**chunk.feeds, GROUP: np.array(group, np.int64), FORMAT: np.array(form, np.int64)}
        ran = len(next(iter(chunk.feeds.values())))
        self.spent += ran
        try:
            *outputs, error = self.session.run(None, feeds)
        except Exception as failure:  # onnxruntime's exceptions share no base class but Exception
            raise DataError(f"The model could not run the calibration samples: {str(failure).splitlines()[0]}") from failure
        self.error = self.error + error.astype(np.float64)
        return [_per_sample(array, ran)[: len(chunk.rows)] for array in outputs]


def _per_sample(array: Array, samples: int) -> Array:
    if array.ndim and len(array) == samples:
        return array
    if array.size == 0 or array.ndim == 0 or len(array) % samples:
        raise ModelError(f"An output of shape {list(array.shape)} has no part for each of {samples} samples.")
    return array.reshape(samples, len(array) // samples, *array.shape[1:])


def _measure(
    runner: _Runner, switched: Switched, samples: _Samples, chosen: Array, weights: Array, plan: Plan, kind: Kind, budget: float
) -> Sensitivity:
    """Tries every group on the chosen samples."""
    chunks = samples.chunks(chosen)
    weights = weights[np.searchsorted(chosen, np.concatenate([chunk.rows for chunk in chunks]))]
    judge = Judge([runner(chunk) for chunk in chunks], kind)
    crosses = judge.crosses and len(chosen) <= FEW
    own: dict[Key, float] = {}
    crossed: dict[Key, float] = {}
    noise: dict[Key, float] = {}
    for (number, group), name in _pairs(switched, plan):
        runner.error = np.zeros(1 + len(switched.formats))
        outputs = [runner(chunk, number, switched.formats.index(name)) for chunk in chunks]
        own[group, name] = float(judge.own(outputs) @ weights)
        if crosses:
            crossed[group, name] = judge.crossed(outputs, weights)
        signal, *errors = runner.error
        noise |= {(group, form): error / signal if signal else 0.0 for form, error in zip(switched.formats, errors, strict=True)}
    damage = _predict(_scaled(crossed, own) if crosses else own, noise, plan)
    local = {key: float("inf") if ratio == 0 else float(-10 * np.log10(ratio)) for key, ratio in noise.items()}
    return Sensitivity(damage, local, runner.spent / len(samples), len(samples), kind, budget, len(chosen))


def _pairs(switched: Switched, plan: Plan) -> Iterator[tuple[tuple[int, str], str]]:
    return ((numbered, name) for numbered in enumerate(switched.groups) for name in plan.formats)


def _scaled(crossed: Mapping[Key, float], own: Mapping[Key, float]) -> dict[Key, float]:
    """Crossed damages on the scale of the samples' own: a change is smaller where it matters more, by a factor that groups share."""
    ratios = [np.log(own[key] / value) for key, value in crossed.items() if value > 0 and own[key] > 0]
    factor = float(np.exp(np.mean(ratios))) if ratios else 1.0
    return {key: value * factor for key, value in crossed.items()}


def _predict(measured: Mapping[Key, float], noise: Mapping[Key, float], plan: Plan) -> dict[Key, float]:
    """Damage in every format; where it was not measured, that of the format that was, times the ratio of their noise."""
    found = {}
    for group, name in noise:
        known = (group, name) if (group, name) in measured else (group, plan.formats[0])
        found[group, name] = measured[known] * noise[group, name] / noise[known] if noise[known] else 0.0
    return found
