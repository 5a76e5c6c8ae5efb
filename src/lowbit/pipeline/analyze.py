"""Explain a model layer by layer: prepare, calibrate, quantize every product alone, and say what hurts and why.

Costs one pass over the samples for calibration, at most `PASSES` for the damage, and less than one for the causes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowbit.compress.calibrate import CalibrationStats, calibrate
from lowbit.compress.capture import capture, sites
from lowbit.compress.explain import Layers, Seen, explain
from lowbit.compress.products import Constants, products
from lowbit.compress.sensitivity import Sensitivity, sensitivity
from lowbit.data import Dataset, open_data
from lowbit.errors import DataError
from lowbit.graph import ir_files
from lowbit.graph.groups import find_groups
from lowbit.graph.load import load_model
from lowbit.graph.place import Format
from lowbit.graph.prepare import prepare
from lowbit.graph.profiles import Profile, profile, target_of
from lowbit.measure.metrics import metric_for
from lowbit.pipeline.evaluate import call_batch, repeated
from lowbit.pipeline.recover import INTEGER, KINDS
from lowbit.pipeline.reporting import Reporter
from lowbit.pipeline.request import Data, read_preprocess
from lowbit.recipe import QuantSpec
from lowbit.runtimes import registry
from lowbit.types import Array, Batch, Feeds, RangeMethod

PASSES = 3.0
"""Forward passes over the samples that sensitivity takes at most, as in a search."""

NOISE_PASSES = 0.75
"""Most passes besides that tell the noise of weights from that of activations."""

CHANNEL_SAMPLES = 16
"""Samples whose channels are looked at."""

UINT8 = QuantSpec("uint8")
FLOAT = QuantSpec("fp32")


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found.

    Attributes:
        model: Name of the file.
        data: Name of the samples.
        runtime: For which runtime it was placed.
        task: By which damage is measured.
        layers: Of the model.
    """

    model: str
    data: str
    runtime: str
    task: str
    layers: Layers


def analyze(
    model: str | Path,
    data: Data,
    *,
    n: int = 100,
    passes: float = PASSES,
    runtime: str = "onnxruntime",
    ranges: RangeMethod = "minmax",
    per_tensor: bool = False,
    preprocess: str | Path | None = None,
    task: str | None = None,
    target: str | None = None,
    reporter: Reporter | None = None,
) -> Analysis:
    """Measures what 8-bit integers do to every product of a model, each alone, and gathers facts that say why.

    Args:
        model: An ONNX file in floating point.
        data: Samples, as for `optimize`; labels only tell the task.
        n: At most so many samples, spread evenly over the data.
        passes: Most forward passes over them that tell damages apart: more are slower and surer.
        runtime: Whose placement is followed.
        ranges: How activation ranges follow from the samples.
        per_tensor: Whether a weight has one scale instead of one for each output channel.
        preprocess: As for `optimize`.
        task: As for `optimize`; inferred where not given.
        target: The label's column.
        reporter: Told about progress.

    Raises:
        UsageError, ModelError, DataError: what the user can mend.
    """
    reporter = reporter or Reporter()
    placed_for = profile(target_of(registry.get(runtime).name))
    source = load_model(model)
    samples = open_data(data, source.inputs, read_preprocess(preprocess), target=target, limit=n)
    task, _, _ = metric_for(task, None, source.outputs, samples.labels, preprocess=samples.preprocess)
    kind = KINDS.get(task, "values")
    weights = QuantSpec("int8", "per-tensor" if per_tensor else "per-channel", symmetric=True)
    with tempfile.TemporaryDirectory(prefix="lowbit-analyze-") as folder:
        prepared = prepare(source, Path(folder) / "prepared.onnx")
        reporter.stage(f"Calibrating on {len(samples)} samples", len(samples))
        batches = list(_batches(samples, call_batch(source.inputs, 0)))
        stats = calibrate(prepared, batches, progress=reporter.advance)
        run = _Run(prepared, placed_for, stats, [batch.feeds for batch in batches], ranges, weights)
        reporter.stage("Quantizing every layer alone")
        found = run.sensitivity({INTEGER: Format(weights, UINT8)}, kind, passes)
        reporter.stage("Looking for causes")
        parts = run.parts(_noise_samples(len(run.groups), len(samples)))
        seen = Seen(run.weights(), run.channels(), dict(parts.local_sqnr) if parts else {})
        groups = find_groups(ir_files.read(prepared).graph, placed_for)
        layers = explain(found, groups, stats, format_name=INTEGER, ranges=ranges, shared=per_tensor, seen=seen)
    return Analysis(source.path.name, samples.name, runtime, task, layers)


def _noise_samples(groups: int, samples: int) -> int:
    """Samples on which the noise of weights is told from that of activations: as many as the passes for it allow, 0 for none."""
    return min(int(NOISE_PASSES * samples / (groups + 1)), samples, 8) if groups else 0


def _batches(samples: Dataset, fixed: int) -> Iterator[Batch]:
    """Batches of the model's own size where it has one, the last one filled up with its own samples."""
    for batch in samples.batches(fixed or 8):
        if fixed and len(batch.rows) < fixed:
            batch = Batch(repeated(batch.rows, fixed), {name: repeated(values, fixed) for name, values in batch.feeds.items()}, None)
        yield batch


@dataclass(frozen=True)
class _Run:
    """A prepared model and its samples: what every measurement here needs."""

    prepared: Path
    target: Profile
    stats: CalibrationStats
    feeds: list[Feeds]
    ranges: RangeMethod
    weight: QuantSpec

    @property
    def groups(self) -> list[str]:
        """Names of the products."""
        return [group.name for group in find_groups(ir_files.read(self.prepared).graph, self.target) if group.is_product]

    def sensitivity(self, formats: dict[str, Format], kind: str, passes: float, feeds: list[Feeds] | None = None) -> Sensitivity:
        return sensitivity(
            self.prepared,
            self.target,
            formats,
            self.stats,
            feeds or self.feeds,
            kind=kind,  # type: ignore[arg-type]
            ranges=self.ranges,
            passes=passes,
        )

    def parts(self, each: int) -> Sensitivity | None:
        """Noise of weights alone, activations alone and 4-bit weights; None where the samples are too few for that many products.

        All formats' noise comes from the runs of the coarsest, so that one run a product and sample is enough.
        """
        four = QuantSpec("int4", self.weight.granularity, symmetric=True)
        formats = {"w8": Format(self.weight, FLOAT), "a8": Format(FLOAT, UINT8), "w4a8": Format(four, UINT8)}
        feeds, count = self.feeds[:1], len(self.groups)
        have = len(next(iter(feeds[0].values())))
        if not each:
            return None
        try:
            return self.sensitivity(formats, "values", min(each, have) * (count + 1) / have, feeds)
        except DataError:  # a fixed batch size that is more than the passes allow
            return None

    def weights(self) -> dict[str, Array]:
        """Product -> largest magnitude of each output channel of its weight."""
        model = ir_files.read(self.prepared)
        constants = Constants(model)
        found = products(model, find_groups(model.graph, self.target))
        return {name: np.abs(each.matrices(constants[each.weight])).max(axis=-1).ravel() for name, each in found.items()}

    def channels(self) -> dict[str, Array]:
        """Tensor that a product reads -> largest magnitude of each channel, over a few samples spread over all."""
        graph = ir_files.read(self.prepared).graph
        where = sites(graph, find_groups(graph, self.target))
        size = len(next(iter(self.feeds[0].values())))
        wanted = max(1, CHANNEL_SAMPLES // size)
        few = [self.feeds[i * len(self.feeds) // wanted] for i in range(min(wanted, len(self.feeds)))]
        captured = capture(self.prepared, where, few, rows=1)
        return {tensor: np.maximum(np.abs(captured.low[tensor]), np.abs(captured.high[tensor])) for tensor in captured.low}
