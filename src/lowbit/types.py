"""The shared nouns: small frozen records that every room speaks with.

Records that end up in `bundle.json` have the manifest's own field names, so that
`dataclasses.asdict` is the manifest entry (docs/reference/bundle.md).

Units, everywhere: seconds only inside `measure`; milliseconds where a name says `_ms`;
bytes where it says `_bytes`. A positive `Delta` means worse, whatever the metric's direction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from lowbit.errors import UsageError

Array = NDArray[Any]
Feeds = dict[str, Array]
"""Input name -> batch array [N, ...]."""

Dim = int | str | None
"""A fixed size, a named dynamic axis, or an unnamed dynamic axis."""

RangeMethod = Literal["minmax", "percentile", "entropy", "mse"]
Objective = Literal["latency", "throughput", "size"]
Verdict = Literal["ship", "provisional", "recover", "keep", "reject", "refuse"]
Status = Literal["done", "dropped", "failed"]


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a model; `dtype` is numpy's name ("float32", "int64")."""

    name: str
    shape: tuple[Dim, ...]
    dtype: str


@dataclass(frozen=True)
class Parity:
    """How close an exported model is to what it was exported from, on the same real samples.

    Attributes:
        n: Samples.
        max_abs: Largest difference of any number in any output.
        max_rel: The same over the largest magnitude of that output.
        agreement: Share of rows whose largest value is at the same place; None where a row has one value.
    """

    n: int
    max_abs: float
    max_rel: float
    agreement: float | None


@dataclass(frozen=True)
class Origin:
    """What a model was before it became an ONNX file.

    Attributes:
        format: "pytorch", "pt2" or "huggingface".
        name: Of the class, the function, the file or the folder, never a path.
        parity: The exported file against it; None before it was checked.
    """

    format: str
    name: str
    parity: Parity | None = None


@dataclass(frozen=True)
class Model:
    """A lazy handle on an ONNX model on disk. The file is never changed.

    Attributes:
        path: The .onnx file.
        sha256: Digest of the file and of its external data, hex.
        inputs: What must be fed (initializers that old exporters list as inputs are left out).
        outputs: What comes back.
        parameters: Number of weights.
        size_bytes: The file with its external data.
        opset: Version of the default operator set.
        origin: What it was exported from; None where it was given as ONNX.
    """

    path: Path
    sha256: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    parameters: int
    size_bytes: int
    opset: int
    origin: Origin | None = None


@dataclass(frozen=True)
class Batch:
    """Consecutive samples of a data set, ready for the model.

    Attributes:
        rows: Positions in the data set, int64 [N].
        feeds: Input name -> [N, ...], preprocessed, in the model's dtypes.
        labels: [N] (or [N, ...]), None where the data has none.
    """

    rows: Array
    feeds: Feeds
    labels: Array | None


@dataclass(frozen=True)
class Tuning:
    """How a runtime is asked to run an artifact.

    Attributes:
        threads: Compute threads in all; 0 means all cores.
        streams: Requests in flight at once (1 = latency mode).
        precision: Arithmetic of whatever is still floating point: "f32" (pinned) or "bf16"/"f16".
        fixed_shape: Compile for the asked batch size alone.
    """

    threads: int = 0
    streams: int = 1
    precision: Literal["f32", "bf16", "f16"] = "f32"
    fixed_shape: bool = False


@dataclass(frozen=True)
class Delta:
    """How much worse a candidate is than the baseline on the same samples.

    Attributes:
        value: Point estimate; positive = worse.
        ci_low: Lower end of the interval.
        ci_high: Upper end of the interval.
        confidence: Of the two-sided interval, after any correction for multiplicity.
        n: Paired samples.
        method: "tango-score" or "paired-bootstrap".
        relative: True where the three numbers are fractions of the baseline's value.
        worse: Samples that were right and became wrong (None where that has no meaning).
        better: Samples that were wrong and became right.
    """

    value: float
    ci_low: float
    ci_high: float
    confidence: float
    n: int
    method: str
    relative: bool = False
    worse: int | None = None
    better: int | None = None


@dataclass(frozen=True)
class Ratio:
    """A ratio with its bootstrap interval, e.g. a speedup (> 1 = faster)."""

    value: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call; the interval is of the median."""

    p50: float
    p95: float
    p99: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Measurement:
    """One variant at one batch size and number of streams, measured alone in its process.

    Attributes:
        batch: Samples per call.
        streams: Calls in flight at once.
        latency_ms: Per call.
        throughput_per_s: Samples per second.
        speedup: Over the baseline, per round, in the same run.
        speedup_over_best_fp32: Over the fastest FP32 on any runtime, in the same run.
        rounds: Rounds the medians come from.
        noisy: True when the rounds disagree too much to call.
        tuning: What the runtime was asked for.
        tokens: Sequence length of the samples where that was varied.
    """

    batch: int
    streams: int
    latency_ms: Latency
    throughput_per_s: float
    speedup: Ratio | None
    speedup_over_best_fp32: Ratio | None
    rounds: int
    noisy: bool
    tuning: Tuning
    tokens: int | None = None


@dataclass(frozen=True)
class Energy:
    """Joules per inference and how they were found; `None` where that is impossible."""

    joules_per_inference: float | None
    method: str
    low: float | None = None
    high: float | None = None
    cpu_seconds_per_inference: float | None = None


@dataclass(frozen=True)
class MetricValue:
    name: str
    value: float
    n: int


@dataclass(frozen=True)
class ConfidenceShift:
    """How the confidence distribution moved against the baseline's, same samples.

    Attributes:
        relative_mean: (mean of candidate - mean of baseline) / mean of baseline.
        ks: Kolmogorov-Smirnov distance of the two distributions, 0-1.
        low_tail: Share of the candidate's confidences below the baseline's 5th percentile (0.05 = no change).
        n: Samples.
        review: True when |relative_mean| > 0.05 or ks > 0.05 with n >= 2,000.
    """

    relative_mean: float
    ks: float
    low_tail: float
    n: int
    review: bool


@dataclass(frozen=True)
class SliceResult:
    """One slice of the validation data (a column's value, a class, the hardest tenth)."""

    name: str
    n: int
    baseline: float
    candidate: float
    delta: Delta


@dataclass(frozen=True)
class Comparison:
    """One candidate against the baseline on the same samples, as the gate sees it.

    Attributes:
        metric: The candidate's value.
        baseline: The baseline's value on the same samples.
        delta: Paired; positive = worse. In points of the metric, or relative where the budget is.
        agreement: Share of samples whose prediction equals FP32's (cosine or 1 - relative error where
            a model has no classes).
        secondary: Other metrics by name -> candidate's value, e.g. top-5, macro-F1, false-positive rate.
        baseline_secondary: The same of the baseline.
        guards: Deltas of secondary metrics that must hold too (false-positive rate at a threshold).
        confidence_shift: None where the model gives no confidences.
        slices: Columns of the data, classes, hardest tenth; intervals Holm-corrected over the slices.
        histogram: Confidences of the candidate in 256 equal bins over [0, 1]; empty where there are none.
        baseline_histogram: The same of the baseline.
        broken: Why the outputs cannot be right at all (NaN, constant, wrong shape), None if they can.
    """

    metric: MetricValue
    baseline: MetricValue
    delta: Delta
    agreement: float
    secondary: Mapping[str, float] = field(default_factory=dict)
    baseline_secondary: Mapping[str, float] = field(default_factory=dict)
    guards: Mapping[str, Delta] = field(default_factory=dict)
    confidence_shift: ConfidenceShift | None = None
    slices: tuple[SliceResult, ...] = ()
    histogram: tuple[int, ...] = ()
    baseline_histogram: tuple[int, ...] = ()
    broken: str | None = None


@dataclass(frozen=True)
class Budget:
    """How much worse the metric may become.

    `1pp` is absolute: a hundredth of the metric's own 0-1 scale. `1%` is relative to the baseline's value.
    """

    value: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads "1pp", "0.5 pp", "1%" or "0.5 %".

        Raises:
            UsageError: not of that form, negative, or 100 and above.
        """
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(pp|%)\s*", text)
        if not match:
            raise UsageError(f"Budget '{text}' is not understood.", "Give points, e.g. 1pp, or a share of the baseline's value, e.g. 1%.")
        value = float(match[1])
        if value >= 100:
            raise UsageError(f"Budget '{text}' would accept anything.", "Give less than 100, e.g. 1pp or 1%.")
        return cls(value / 100, match[2] == "%")

    def __str__(self) -> str:
        return f"{self.value * 100:g}{'%' if self.relative else 'pp'}"


@dataclass(frozen=True)
class Policy:
    """What the user asked for; with the evidence it determines the decision.

    Attributes:
        task: "classification", "detection", "regression", "embedding", "fidelity" or "custom".
        metric: The metric that the budget is about.
        max_drop: The budget.
        confidence: Of the whole search's statement, two-sided; default 0.95.
        objective: What "best" means among what holds.
        batch: Batch sizes that matter; a shipped candidate is not slower at any of them.
        max_latency_ms: Ceiling for p95 at the smallest batch size.
        time_limit_s: Stop searching after this; what was found by then is decided on.
        threshold: Score from which a binary model says yes; guards the false-positive rate.
        max_fpr_rise: Allowed rise of the false-positive rate, absolute.
        safety_critical: The user says a wrong answer can hurt someone.
    """

    task: str
    metric: str
    max_drop: Budget
    confidence: float = 0.95
    objective: Objective = "latency"
    batch: tuple[int, ...] = (1, 8)
    max_latency_ms: float | None = None
    time_limit_s: float | None = None
    threshold: float | None = None
    max_fpr_rise: float | None = None
    safety_critical: bool = False


@dataclass(frozen=True)
class Candidate:
    """One thing that could ship, with all evidence about it.

    Attributes:
        id: Recipe, runtime and what sets it apart, e.g. "int8-static-mse@openvino"; also its folder.
        recipe: Name of the recipe.
        runtime: Name of the runtime.
        precision: What the weights and arithmetic are: "fp32", "bf16", "fp16", "int8".
        tuning: Best found.
        status: "done", "dropped" (stopped early on evidence), "failed" (could not be made or run).
        size_bytes: Of the artifact.
        search: Comparison on the samples the search may look at.
        confirm: Comparison on the confirming samples; finalists alone have one.
        measurements: One per batch size (streams 1), then with several streams.
        peak_memory_bytes: Of a fresh process that loads and runs it at the largest batch size.
        reasons: What happened to it, in sentences.
        artifact: Path relative to the bundle, None once pruned or never made.
        by_length: The same at several sequence lengths; of the chosen one, for text.
    """

    id: str
    recipe: str
    runtime: str
    precision: str
    tuning: Tuning = Tuning()
    status: Status = "done"
    size_bytes: int | None = None
    search: Comparison | None = None
    confirm: Comparison | None = None
    measurements: tuple[Measurement, ...] = ()
    peak_memory_bytes: int | None = None
    energy: Energy | None = None
    reasons: tuple[str, ...] = ()
    artifact: str | None = None
    by_length: tuple[Measurement, ...] = ()

    @property
    def evidence(self) -> Comparison | None:
        """The comparison that counts: the confirming one where there is one."""
        return self.confirm or self.search


@dataclass(frozen=True)
class Judgement:
    """The verdict on one candidate, with reasons in sentences."""

    id: str
    verdict: Verdict
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """What to do: data, never an exception.

    Attributes:
        verdict: "ship", "provisional", "recover" or "keep".
        chosen: Id of the candidate to run (for `keep` the fastest one at source precision).
        reasons: Why, in sentences.
        next_steps: What to do now, in sentences.
        judgements: One for every candidate.
    """

    verdict: Verdict
    chosen: str
    reasons: tuple[str, ...]
    next_steps: tuple[str, ...]
    judgements: tuple[Judgement, ...]
