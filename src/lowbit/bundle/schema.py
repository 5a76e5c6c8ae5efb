"""The models of `bundle.json`, schema "2": what a bundle says about itself, field by field.

Closed on purpose: a key that is not here is refused, by writers and by readers. Any change of a field is a new schema
version with a step in `lowbit.bundle.manifest.MIGRATIONS`. The JSON Schema in docs/reference is generated from here.

The parts that mirror a record of `lowbit.types` have that record's field names, and convert both ways without loss.
"""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema, model_validator

from lowbit.types import Objective, Status, Verdict

SCHEMA: Literal["2"] = "2"

ROOTS = "home|root|tmp|var|usr|opt|mnt|media|srv|private|Users|Volumes|workspace|workspaces"
_ABSOLUTE = re.compile(rf"(?<![\w./-])(?:/(?:{ROOTS})(?:/|\b)|~/|[A-Za-z]:\\|\\\\\w|file://)")
_NOT_RELATIVE = re.compile(r"^(?:/|~|[A-Za-z]:)|\\|(?:^|/)\.\.(?:/|$)")


def _relative(path: str) -> str:
    if not path or _NOT_RELATIVE.search(path):
        raise ValueError(f"'{path}' is not a relative path inside the bundle with forward slashes")
    return path


def _base_name(path: str) -> str:
    """Any name that is no path: `~model.onnx`, or `module:callable` for data from code."""
    if not path or "/" in path or "\\" in path or path in (".", ".."):
        raise ValueError(f"'{path}' is not a base name; a source is named without its path")
    return path


def _number(value: Any) -> Any:
    if value is None:
        return math.nan
    return math.nan if isinstance(value, float) and not math.isfinite(value) else value


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None


RelativePath = Annotated[str, AfterValidator(_relative), Field(description="Relative to the bundle's folder, forward slashes.")]
BaseName = Annotated[str, AfterValidator(_base_name), Field(description="A file's or folder's name without its path.")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="SHA-256, hex.")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Number = Annotated[
    float,
    BeforeValidator(_number),
    PlainSerializer(_json_number, when_used="json"),
    WithJsonSchema({"type": ["number", "null"]}),
]
"""A number that broken outputs can make undefined: NaN in memory, null in JSON."""


class Entry(BaseModel):
    """Base of every part: frozen, closed, read from the attributes of the record with the same field names."""

    model_config = ConfigDict(extra="forbid", frozen=True, from_attributes=True)


class TensorEntry(Entry):
    name: str
    shape: tuple[int | str | None, ...] = Field(description="A size, the name of a dynamic axis, or null for an unnamed one.")
    dtype: str = Field(description="numpy's name, e.g. float32.")


class ParityEntry(Entry):
    n: Count
    max_abs: float = Field(description="Largest difference of any number in any output.")
    max_rel: float = Field(description="The same over the largest magnitude of that output.")
    agreement: float | None = Field(ge=0, le=1, description="Rows whose largest output is the same; null where a row has one number.")


class OriginEntry(Entry):
    format: Literal["pytorch", "pt2", "huggingface"]
    name: BaseName
    parity: ParityEntry | None = Field(description="The ONNX file against it, on real samples.")


class SourceEntry(Entry):
    path: BaseName
    sha256: Digest = Field(description="Of the model as it was given, external data included; of the exported file where it was no ONNX.")
    format: str = "onnx"
    parameters: Count
    size_bytes: Count
    exported_from: OriginEntry | None = Field(default=None, description="What the ONNX file was exported from; null where it was given.")


class CalibrationEntry(Entry):
    sha256: Digest | None = Field(description="Content fingerprint; null where nothing was calibrated.")
    n: Count
    how_selected: str = Field(description="In words, e.g. 'the 512 lowest content hashes'.")


class ValidationEntry(Entry):
    sha256: Digest = Field(description="Content fingerprint of all validation samples together, as `lowbit validate` gives it.")
    n: Count
    n_search: Count | None = Field(default=None, description="Samples that the search and the tuning looked at.")
    n_confirm: Count | None = Field(default=None, description="Samples that only confirmed the finalists.")
    skipped: Count = Field(default=0, description="Samples left out because they could not be read.")


class DataEntry(Entry):
    source: BaseName | None = None
    classes: tuple[str, ...] = Field(default=(), description="Their names, by number; empty where the data do not tell.")
    calibration: CalibrationEntry
    validation: ValidationEntry


class EnvironmentEntry(Entry):
    """The hardware and software that the numbers hold for; no host or user name."""

    cpu: str
    cores: Count = Field(description="That the process may use.")
    isa: tuple[str, ...] = Field(description="Instruction sets that matter, e.g. avx512_vnni.")
    memory_bytes: Count
    accelerator: str | None = None
    architecture: str | None = None
    physical_cores: Count | None = None
    logical_cores: Count | None = None
    system: str | None = None
    python: str | None = None
    versions: dict[str, str] = Field(default_factory=dict, description="Package -> version.")


class PolicyEntry(Entry):
    task: str
    metric: str
    max_drop: str = Field(pattern=r"^[0-9]*\.?[0-9]+(pp|%)$", description="1pp: absolute points. 1%: relative to the baseline's value.")
    confidence: Finite
    objective: Objective
    batch: tuple[int, ...]
    max_latency_ms: Finite | None = None
    time_limit_s: Finite | None = None
    threshold: Finite | None = None
    max_fpr_rise: Finite | None = None
    safety_critical: bool = False


class TuningEntry(Entry):
    threads: Count = Field(description="0 means all cores.")
    streams: int
    precision: Literal["f32", "bf16", "f16"] = Field(description="Arithmetic of whatever is still floating point.")
    fixed_shape: bool


class RatioEntry(Entry):
    value: Finite
    ci_low: Finite
    ci_high: Finite


class LatencyEntry(Entry):
    """Milliseconds per call; the interval is of the median."""

    p50: Finite
    p95: Finite
    p99: Finite
    ci_low: Finite
    ci_high: Finite


class MeasurementEntry(Entry):
    batch: int
    streams: int
    latency_ms: LatencyEntry
    throughput_per_s: Finite = Field(description="Samples per second.")
    speedup: RatioEntry | None = Field(description="Over the baseline, in the same run.")
    speedup_over_best_fp32: RatioEntry | None = Field(description="Over the fastest FP32 on any runtime, in the same run.")
    rounds: int
    noisy: bool
    tuning: TuningEntry
    tokens: int | None = Field(default=None, description="Sequence length, where that was varied.")


class EnergyEntry(Entry):
    joules_per_inference: Finite | None
    method: str = Field(description="nvml, rapl, modelled or unavailable.")
    low: Finite | None = None
    high: Finite | None = None
    cpu_seconds_per_inference: Finite | None = None


class MetricEntry(Entry):
    name: str
    value: Number
    n: Count


class DeltaEntry(Entry):
    """How much worse than the baseline on the same samples; positive = worse, whatever the metric's direction."""

    value: Number
    ci_low: Number
    ci_high: Number
    confidence: Finite
    n: Count
    method: str
    relative: bool = Field(description="True where the three numbers are fractions of the baseline's value.")
    worse: Count | None = Field(description="Samples that were right and became wrong.")
    better: Count | None = Field(description="Samples that were wrong and became right.")


class ConfidenceShiftEntry(Entry):
    relative_mean: Number
    ks: Number
    low_tail: Number = Field(description="Share below the baseline's 5th percentile; 0.05 = no change.")
    n: Count
    review: bool


class SliceEntry(Entry):
    name: str
    n: Count
    baseline: Number
    candidate: Number
    delta: DeltaEntry


class ComparisonEntry(Entry):
    """One candidate against the baseline on the same samples, as the gate saw it."""

    metric: MetricEntry
    baseline: MetricEntry
    delta: DeltaEntry
    agreement: Number
    secondary: dict[str, Number]
    baseline_secondary: dict[str, Number]
    guards: dict[str, DeltaEntry]
    confidence_shift: ConfidenceShiftEntry | None
    slices: tuple[SliceEntry, ...]
    histogram: tuple[int, ...] = Field(description="Confidences in 256 equal bins over [0, 1]; empty where there are none.")
    baseline_histogram: tuple[int, ...]
    broken: str | None


class CandidateEntry(Entry):
    """One thing that could ship. `metric` to `slices` repeat the comparison that counts, which `evidence` names."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+=-]*$", description="Also the name of its folder under candidates/.")
    recipe: str
    runtime: str
    precision: str
    tuning: TuningEntry
    status: Status
    size_bytes: Count | None
    measurements: tuple[MeasurementEntry, ...]
    peak_memory_bytes: Count | None
    energy: EnergyEntry | None
    evidence: Literal["confirm", "search"] | None
    metric: MetricEntry | None
    delta: DeltaEntry | None
    agreement: Finite | None
    confidence_shift: ConfidenceShiftEntry | None
    slices: tuple[SliceEntry, ...]
    verdict: Verdict | None = Field(description="Null for a baseline that was not judged.")
    reasons: tuple[str, ...] = Field(description="Why this verdict.")
    notes: tuple[str, ...] = Field(description="What happened to it on the way.")
    artifact: RelativePath | None
    search: ComparisonEntry | None = Field(description="On the samples that the search may look at.")
    confirm: ComparisonEntry | None = Field(description="On the confirming samples; finalists alone have one.")
    by_length: tuple[MeasurementEntry, ...] = Field(default=(), description="Of what was chosen, at several sequence lengths.")

    @property
    def comparison(self) -> ComparisonEntry | None:
        """The comparison that counts: the confirming one where there is one."""
        return self.confirm or self.search


class DecisionEntry(Entry):
    verdict: Literal["ship", "provisional", "recover", "keep"]
    chosen: str
    reasons: tuple[str, ...]
    next_steps: tuple[str, ...]


class FileEntry(Entry):
    path: RelativePath
    sha256: Digest
    size_bytes: Count


class ModelEntry(Entry):
    """What ships: the chosen candidate's artifact, in model/."""

    artifact: RelativePath
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]


class EngineTuningEntry(Entry):
    """How an engine for language models is asked to run an artifact."""

    threads: Count = Field(default=0, description="Of one token's products; 0 means all cores.")
    prompt_threads: Count = Field(default=0, description="Of a prompt's, where the engine tells them apart.")
    kv: Literal["f32", "bf16", "f16", "int8", "int4"] = Field(default="f16", description="Precision of keys and values in the cache.")
    activations: Count | None = Field(default=None, description="Inputs that share a scale where activations are 8 bit; 0: they are not.")
    precision: Literal["f32", "bf16", "f16"] = Field(default="f32", description="Arithmetic of whatever is still floating point.")
    batch: Count = Field(default=0, description="Tokens of a prompt that are computed at once; 0: the engine's choice.")


class LanguageVariantEntry(Entry):
    """An artifact with what runs it."""

    engine: str
    format: Literal["gguf", "openvino", "onnx", "safetensors"]
    artifact: RelativePath = Field(description="Its main file.")
    tuning: EngineTuningEntry


class SpeedEntry(Entry):
    """Of the workload's requests; each with the interval of its median."""

    ttft_ms: RatioEntry = Field(description="From the request to the first token of the answer.")
    prefill_tokens_per_s: RatioEntry
    decode_tokens_per_s: RatioEntry = Field(description="Of one answer, after its first token.")
    total_s: RatioEntry = Field(description="A request from end to end.")
    throughput_tokens_per_s: RatioEntry = Field(description="Of answers, all requests in flight together.")
    peak_memory_bytes: Count = Field(description="Of the process, mapped weights included.")
    anonymous_memory_bytes: Count | None = Field(default=None, description="Of it what is not mapped from files.")
    usd_per_million_tokens: Finite | None = Field(
        default=None, description="Prompt and answer tokens alike, on a machine that does nothing else."
    )


class DivergenceEntry(Entry):
    """Against the 16-bit model's probabilities, on the same tokens."""

    kl_mean: Number = Field(description="Kullback-Leibler divergence from the 16-bit model, nats a token.")
    kl_p99: Number
    top1: Number = Field(description="Share of tokens whose likeliest successor is the same.")
    tokens: Count


class TaskEntry(Entry):
    name: str
    metric: str
    value: Number
    baseline: Number
    delta: DeltaEntry


class LanguageCandidateEntry(LanguageVariantEntry):
    """What only candidates for language models have."""

    artifact: RelativePath | None = Field(default=None, description="Null once pruned or never made.")  # type: ignore[assignment]
    perplexity: Number | None = None
    bits_per_byte: Number | None = Field(
        default=None,
        description="Perplexity as bits a byte of text, comparable between tokenizers: log2 of it, times tokens a byte. "
        "Null where tokens do not say which bytes they spell.",
    )
    bits_per_weight: Number | None = Field(default=None, description="Of the blocks' linear layers, scales and zero points included.")
    divergence: DivergenceEntry | None = None
    speed: SpeedEntry | None = None
    tasks: tuple[TaskEntry, ...] = ()


class LanguageEntry(Entry):
    """What a bundle of a language model says beyond the rest."""

    chosen: LanguageVariantEntry = Field(description="What ships.")
    baseline: LanguageVariantEntry | None = Field(description="The 16-bit model that stands beside it when it is served.")
    context: int = Field(gt=0, description="Tokens that a prompt and its answer may have together.")
    tokenizer: RelativePath = Field(description="Folder with tokenizer.json and, for chats, its template.")
    workload: str = Field(description="As `--workload` has it.")
    window: int = Field(description="Tokens of a window that perplexity is counted on.")
    stride: int = Field(description="Tokens between two windows' starts; the window where they do not overlap.")
    tokens: Count = Field(description="That were scored.")
    budgets: dict[str, str] = Field(description="Largest rise of perplexity, relative, by the word for the weights (int8, int4, ...).")
    candidates: dict[str, LanguageCandidateEntry] = Field(description="By the candidate's id.")


class FindingEntry(Entry):
    """What a target's documented rules say of an artifact."""

    rule: str
    severity: Literal["error", "warning", "note"]
    text: str


class KernelsEntry(Entry):
    """One way in which a target's artifact was run, and what it answered."""

    kernels: str = Field(description="Of the target's runtime, e.g. xnnpack, built-in, qemu-m7.")
    samples: Count = Field(description="That were asked.")
    drawn: bool = Field(description="True where they are random draws from what calibration saw, not data.")
    agreement: Number = Field(description="Share of samples with the same class as the bundle's own artifact; null where there are none.")
    agreement_low: Number = Field(description="Of its 95 % interval.")
    agreement_high: Number
    agreement_with_ties: Number = Field(description="The same, where several highest outputs are equal and the class is among them.")
    cosine: Number = Field(
        description="Of the outputs to those of the bundle's own artifact, mean over samples; of single numbers their correlation."
    )
    identical: Number = Field(description="Share of output levels that equal the exact reference's; null where there is none.")
    largest_step: Count | None = Field(description="Largest difference to it, in levels.")
    agreement_exact: Number = Field(default=math.nan, description="Share of samples with its reference's class; null where it has none.")
    metric: MetricEntry | None = Field(description="On labelled data.")
    delta: DeltaEntry | None = Field(description="Against the full-precision model, paired.")
    verdict: Literal["ship", "provisional", "recover", "refuse"] | None = Field(description="Of the accuracy gate; null without data.")
    latency_ms: LatencyEntry | None = Field(default=None, description="Where this machine can measure what it would be there.")
    speedup: RatioEntry | None = Field(default=None, description="Over the full-precision baseline, in the same run.")
    error: str | None = Field(default=None, description="Why it could not be run.")


class TargetEntry(Entry):
    """What was written for another target, and how far it was tried."""

    target: str
    title: str
    version: str | None = Field(description="Of what wrote or ran it.")
    level: Literal["run", "emulated", "interpreted", "checked"] = Field(
        description="On the target's own runtime; on an emulator; by our interpreter; by rules alone."
    )
    words: str = Field(description="What a result here means.")
    candidate: str = Field(description="Whose table it was written from.")
    artifact: RelativePath | None = Field(description="Main file, relative to the target's folder; null where nothing was written.")
    size_bytes: Count | None
    facts: dict[str, str | int | float | bool] = Field(default_factory=dict)
    findings: tuple[FindingEntry, ...] = ()
    kernels: tuple[KernelsEntry, ...] = ()
    notes: tuple[str, ...] = ()
    refused: str | None = Field(default=None, description="Why nothing was written: what the target lacks, and what to do.")


class Manifest(Entry):
    """All of `bundle.json`."""

    model_config = ConfigDict(title="lowbit bundle manifest", populate_by_name=True)

    schema_: Literal["2"] = Field(default=SCHEMA, alias="schema")
    lowbit_version: str
    created: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", description="UTC.")
    command: str
    source: SourceEntry
    data: DataEntry
    environment: EnvironmentEntry
    policy: PolicyEntry
    baseline: CandidateEntry
    candidates: tuple[CandidateEntry, ...]
    decision: DecisionEntry
    model: ModelEntry
    preprocess: RelativePath | None = Field(description="The bundle's preprocess.yaml; null where samples are fed as they are.")
    notes: tuple[str, ...] = Field(default=(), description="What else a reader should know about data and method.")
    language: LanguageEntry | None = Field(default=None, description="Of a language model; null for everything else.")
    targets: tuple[TargetEntry, ...] = Field(default=(), description="Other targets that it was written for, in targets/NAME.")
    files: tuple[FileEntry, ...] = Field(description="Every file that running the bundle needs, with its digest.")

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        ids = [self.baseline.id, *(candidate.id for candidate in self.candidates)]
        if len(set(ids)) != len(ids):
            raise ValueError(f"two candidates have one id: {sorted({i for i in ids if ids.count(i) > 1})}")
        if self.decision.chosen not in ids:
            raise ValueError(f"the decision chose '{self.decision.chosen}', which is not among the candidates")
        needed = {self.model.artifact, *([self.preprocess] if self.preprocess else [])}
        if lacking := needed - {file.path for file in self.files}:
            raise ValueError(f"no digest is given for {', '.join(sorted(lacking))}")
        if found := _absolute_paths(self.model_dump(mode="json")):
            raise ValueError(f"an absolute path would tell where this was made: {found[0]}")
        return self

    @property
    def chosen(self) -> CandidateEntry:
        """The entry of what ships."""
        return self.entry(self.decision.chosen)

    def entry(self, candidate_id: str) -> CandidateEntry:
        """The baseline or candidate of that id.

        Raises:
            KeyError: there is none.
        """
        for candidate in (self.baseline, *self.candidates):
            if candidate.id == candidate_id:
                return candidate
        raise KeyError(candidate_id)


def _absolute_paths(value: Any) -> list[str]:
    """Every string anywhere that contains an absolute path (node names such as "/layer1/Conv" are not paths)."""
    if isinstance(value, dict):
        return [found for pair in value.items() for item in pair for found in _absolute_paths(item)]
    if isinstance(value, list):
        return [found for item in value for found in _absolute_paths(item)]
    return [value] if isinstance(value, str) and _ABSOLUTE.search(value) else []


def json_schema() -> str:
    """The JSON Schema of `bundle.json` (draft 2020-12), as docs/reference/bundle.schema.json has it."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(head | Manifest.model_json_schema(mode="serialization"), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(json_schema(), end="")
