"""Calibration: one pass over the data, then every range of every tensor by every method.

The model is copied in memory with probes beside its tensors (graph/probes.py), so that what comes out of the runtime is
a few extrema and samples instead of activations. Memory does not depend on the number of samples, and the
result not on how they are cut into batches (up to the last bits of the runtime's own arithmetic).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.compress.sessions import misfit, one_more, open_session, read_model
from lowbit.errors import DataError, ModelError, UsageError, unknown
from lowbit.graph import observe, probes
from lowbit.quant import table
from lowbit.quant.observers import Histogram, MinMax, Observer, TensorStats
from lowbit.quant.ranges import find_range
from lowbit.types import Array, Batch, Feeds, RangeMethod

METHODS: tuple[RangeMethod, ...] = ("minmax", "percentile", "entropy", "mse")

AT_ONCE = 1 << 22
"""Most numbers of one tensor that are alive at once: large models see a batch in parts, as many parts as that takes."""


@dataclass(frozen=True)
class CalibrationStats:
    """What calibration found.

    Attributes:
        tensors: Statistics of every tensor that a writer may ask for. A tensor whose values are another's, or that a kernel
            fuses with its activation, has that one's.
        n: Samples seen.
        aliases: Tensor -> the tensor whose statistics it has.
    """

    tensors: Mapping[str, TensorStats]
    n: int
    aliases: Mapping[str, str]

    def range(self, tensor: str, method: RangeMethod) -> tuple[float, float]:
        """The range of a tensor; it holds zero. Takes milliseconds.

        Raises:
            UsageError: a tensor that was not observed, or an unknown method.
            DataError: calibration kept no histograms, and the method needs one.
        """
        if tensor not in self.tensors:
            raise unknown("tensor", tensor, self.tensors)
        return find_range(self.tensors[tensor], method)

    def ranges(self, method: RangeMethod) -> dict[str, tuple[float, float]]:
        """`range` of every tensor; what shares its statistics is computed once."""
        own = {name: find_range(stats, method) for name, stats in self.tensors.items() if name not in self.aliases}
        return {name: own[self.aliases.get(name, name)] for name in self.tensors}

    def save(self, path: Path) -> None:
        """Writes everything as one `.npz`; the same statistics give the same bytes."""
        own = {name: stats for name, stats in self.tensors.items() if name not in self.aliases}
        notes = json.dumps({"n": self.n, "aliases": dict(sorted(self.aliases.items()))})
        table.write(path, {**table.to_arrays(own), "calibration": np.array(notes)})

    @classmethod
    def load(cls, path: Path) -> CalibrationStats:
        """Reads what `save` wrote.

        Raises:
            DataError: no such file, or not one of ours.
        """
        arrays = table.read(path)
        try:
            notes = json.loads(str(arrays["calibration"]))
            return cls(_with_aliases(table.from_arrays(arrays), notes["aliases"]), int(notes["n"]), notes["aliases"])
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(f"'{path.name}' does not hold calibration statistics.", "Calibrate again.") from error


def calibrate(
    model_path: Path,
    batches: Iterable[Batch],
    *,
    methods: Sequence[RangeMethod] = METHODS,
    threads: int = 0,
    progress: Callable[[int], None] | None = None,
) -> CalibrationStats:
    """Observes every tensor that quantization may touch, in one pass.

    Args:
        model_path: An ONNX file; not changed.
        batches: Samples; read once. All of them have the model's batch size where that is fixed.
        methods: Range methods that will be asked for. Min-max alone needs no histograms and is a little faster.
        threads: For the runtime; 0 means all cores.
        progress: Called after each batch with the number of samples seen.

    Raises:
        ModelError: the model cannot be read or run, or gives NaN or infinity on sound data.
        DataError: no samples, samples that do not fit the model, or NaN or infinity in them.
        UsageError: an unknown method, or none.
    """
    _check_methods(methods)
    histograms = any(method != "minmax" for method in methods)
    pass_: _Pass | None = None
    seen = 0
    for batch in batches:
        if not len(batch.rows):
            continue
        pass_ = pass_ or _Pass.prepare(model_path, batch.feeds, histograms, threads)
        pass_.observe(batch.feeds, seen)
        seen += len(batch.rows)
        if progress is not None:
            progress(seen)
    if pass_ is None:
        raise DataError("There are no samples to calibrate with.", "Give at least one sample; a hundred or more are better.")
    tensors = {name: observer.finalize() for name, observer in pass_.observers.items()}
    aliases = {name: target for name, target in pass_.plan.aliases.items() if target in tensors}
    return CalibrationStats(_with_aliases(tensors, aliases), seen, aliases)


@dataclass(frozen=True)
class _Pass:
    """A session of the probed copy, and what was seen so far.

    Attributes:
        step: Samples it runs on at once; None where the batch size is fixed.
    """

    session: Any
    plan: observe.Plan
    probes: list[probes.Probe]
    outputs: list[str]
    histograms: bool
    step: int | None
    observers: dict[str, Observer]

    @classmethod
    def prepare(cls, path: Path, feeds: Feeds, histograms: bool, threads: int) -> _Pass:
        """Reads the model and places probes by the shapes of the first batch."""
        model = read_model(path)
        shapes = {name: feed.shape for name, feed in feeds.items()}
        more = one_more(model, shapes)
        one, two = probes.infer(model, shapes), probes.infer(model, more)
        plan = observe.plan(one)
        model, found = probes.instrument(model, plan, one, two, sample=histograms)
        outputs = [value.name for value in model.graph.output]
        step = _samples_at_once(shapes, probes.shapes_of(one)) if all(more[name] != shape for name, shape in shapes.items()) else None
        return cls(open_session(model, path, threads, "for calibration"), plan, found, outputs, histograms, step, {})

    def observe(self, feeds: Feeds, seen: int) -> None:
        """Runs one batch and updates the observers."""
        for name in self.plan.observed:
            if name in feeds and feeds[name].dtype.kind == "f":
                rows = feeds[name].reshape(len(feeds[name]), -1)
                self._update(name, MinMax.of(rows), rows[:, :: probes.stride(rows.shape[1])], None, DataError, seen)
        calls = [dict(zip(self.outputs, self._run(part), strict=True)) for part in self._parts(feeds)]
        for probe in self.probes:
            if calls[0][probe.high].dtype.kind == "f" and calls[0][probe.high].size:
                steady = probe.tensor in self.plan.steady  # looked at once, or calls, not samples, would be counted
                sample = None if steady and seen else _joined(calls[:1] if steady else calls, probe.sample)
                self._update(probe.tensor, _extrema(probe, calls), sample, _joined(calls, probe.check), ModelError, seen)

    def _update(
        self, name: str, extrema: MinMax, sample: Array | None, check: Array | None, error: type[DataError | ModelError], seen: int
    ) -> None:
        taken = sample if self.histograms and sample is not None else np.zeros(0, np.float32)
        evidence = (np.array([extrema.low, extrema.high]), taken, np.zeros(0) if check is None else check)
        if not all(np.isfinite(values.sum(dtype=np.float64)) for values in evidence):
            what = "Input" if error is DataError else "Tensor"
            hint = "Remove or repair these samples." if error is DataError else "The model overflows or is broken: check it in FP32 first."
            raise error(f"{what} '{name}' holds NaN or infinity in the calibration batch that starts at sample {seen}.", hint)
        self.observers[name] = self.observers.get(name, Observer()).merge(Observer(extrema, Histogram.of(taken)))

    def _parts(self, feeds: Feeds) -> Iterator[Feeds]:
        """A batch in parts that are run one after the other."""
        count = min((len(values) for values in feeds.values() if values.ndim), default=0)
        step = self.step or count
        if step >= count or any(len(values) != count for values in feeds.values()):
            yield feeds
            return
        for start in range(0, count, step):
            yield {name: values[start : start + step] for name, values in feeds.items()}

    def _run(self, feeds: Feeds) -> list[Array]:
        try:
            result: list[Array] = self.session.run(self.outputs, feeds)
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise misfit(self.session, feeds, error) from error
        return result


def _samples_at_once(feeds: Mapping[str, tuple[int, ...]], shapes: probes.Shapes) -> int:
    """As many samples as keep the largest tensor within `AT_ONCE` numbers, told from the shapes for a batch."""
    count = max((shape[0] for shape in feeds.values() if shape), default=1)
    largest = max((math.prod(shape) for shape in shapes.values()), default=1)
    return max(1, AT_ONCE * count // max(largest, 1))


def _joined(calls: Sequence[Mapping[str, Array]], output: str | None) -> Array | None:
    """All values of an output, [n]; None where it is not there."""
    return None if output is None else np.concatenate([call[output].reshape(-1) for call in calls])


def _extrema(probe: probes.Probe, calls: Sequence[Mapping[str, Array]]) -> MinMax:
    """Of one tensor over the batch; `+ 0.0` makes a negative zero positive."""
    high = max(float(call[probe.high].max()) for call in calls) + 0.0
    if probe.low is None:
        return MinMax(0.0, high)
    if probe.negated:
        return MinMax(-max(float(call[probe.low].max()) for call in calls) + 0.0, high)
    return MinMax(min(float(call[probe.low].min()) for call in calls) + 0.0, high)


def _check_methods(methods: Sequence[RangeMethod]) -> None:
    if not methods:
        raise UsageError("No range method was asked for.", f"Give at least one of {', '.join(METHODS)}.")
    for method in methods:
        if method not in METHODS:
            raise unknown("range method", method, METHODS)


def _with_aliases(tensors: Mapping[str, TensorStats], aliases: Mapping[str, str]) -> dict[str, TensorStats]:
    return {**tensors, **{name: tensors[target] for name, target in aliases.items()}}
