"""A manifest of a language model, made through the real records. All numbers are test data: nothing was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bundle_examples import make

from lowbit.bundle.manifest import Manifest
from lowbit.bundle.schema import (
    CalibrationEntry,
    DataEntry,
    DeltaEntry,
    DivergenceEntry,
    EngineTuningEntry,
    FileEntry,
    LanguageCandidateEntry,
    LanguageEntry,
    LanguageVariantEntry,
    RatioEntry,
    SpeedEntry,
    TaskEntry,
    ValidationEntry,
)
from lowbit.types import Budget, Candidate, Comparison, Delta, Latency, Measurement, MetricValue, Model, Policy, TensorInfo, Tuning

BASELINE, PLAIN, INT8, INT4, BROKEN = "f16@torch", "f16@llamacpp", "int8@llamacpp", "int4-gptq@openvino", "int8-row@onnxruntime-genai"
PERPLEXITY = 12.5
DECODER = Model(
    Path("/home/someone/models/small-llama"),
    "ab" * 32,
    (TensorInfo("input_ids", (None, None), "int64"),),
    (TensorInfo("logits", (None, None, 32_000), "float32"),),
    134_500_000,
    269_000_000,
    0,
)


def rise(value: float, half: float = 0.0031, tokens: int = 51_200) -> Comparison:
    """Perplexity that rose by such a share."""
    return Comparison(
        metric=MetricValue("perplexity", PERPLEXITY * (1 + value), tokens),
        baseline=MetricValue("perplexity", PERPLEXITY, tokens),
        delta=Delta(value, value - half, value + half, 0.95, 200, "paired-bootstrap", relative=True),
        agreement=0.95,
    )


def candidate(id: str, precision: str, seconds: float, size: int, rises: float | None, **more: Any) -> Candidate:
    recipe, engine = id.split("@")
    ms = 1000 * seconds
    timed = Measurement(1, 1, Latency(ms, ms, ms, ms, ms), 1 / seconds, None, None, more.pop("rounds", 7), False, Tuning())
    values: dict[str, Any] = {
        "size_bytes": size,
        "search": None if rises is None else rise(rises),
        "measurements": (timed,),
        "artifact": f"candidates/{id}/model/model.gguf",
    }
    return Candidate(id, recipe, engine, precision, Tuning(), **{**values, **more})


CANDIDATES = (
    candidate(PLAIN, "16 bit", 2.5, 270_000_000, 0.0001),
    candidate(INT8, "int8", 1.6, 144_000_000, 0.0012, rounds=2),
    candidate(INT4, "int4", 0.96, 84_000_000, 0.0411, confirm=rise(0.0437, 0.0058)),
    candidate(
        BROKEN,
        "int8",
        1,
        1,
        None,
        status="failed",
        size_bytes=None,
        measurements=(),
        artifact=None,
        reasons=("No kernel for <uint8> & friends.",),
    ),
)


def facts(id: str, form: Any, perplexity: float | None, seconds: float | None, **more: Any) -> LanguageCandidateEntry:
    def ratio(value: float) -> RatioEntry:
        return RatioEntry(value=value, ci_low=0.95 * value, ci_high=1.05 * value)

    speed = None
    if seconds is not None:
        speed = SpeedEntry(
            ttft_ms=ratio(125 * seconds),
            prefill_tokens_per_s=ratio(4096 / seconds),
            decode_tokens_per_s=ratio(146.0 / seconds),
            total_s=ratio(seconds),
            throughput_tokens_per_s=ratio(128 / seconds),
            peak_memory_bytes=round(400e6 * seconds),
            usd_per_million_tokens=0.321 * seconds,
        )
    tuning = more.pop("tuning", EngineTuningEntry())
    return LanguageCandidateEntry(
        engine=id.split("@")[1], format=form, artifact="model/model.gguf", tuning=tuning, perplexity=perplexity, speed=speed, **more
    )


TASK = TaskEntry(
    name="arithmetic",
    metric="exact_match",
    value=0.612,
    baseline=0.625,
    delta=DeltaEntry(
        value=0.013, ci_low=-0.004, ci_high=0.03, confidence=0.95, n=400, method="paired-bootstrap", relative=False, worse=12, better=7
    ),
)
FACTS = {
    BASELINE: facts(BASELINE, "safetensors", PERPLEXITY, 3.2, bits_per_weight=16.0),
    PLAIN: facts(PLAIN, "gguf", 12.501, 2.5, bits_per_weight=16.0),
    INT8: facts(INT8, "gguf", 12.515, 1.6, bits_per_weight=8.5),
    INT4: facts(
        INT4,
        "openvino",
        13.014,
        0.96,
        bits_per_weight=4.5,
        divergence=DivergenceEntry(kl_mean=0.0456, kl_p99=0.71, top1=0.917, tokens=16_384),
        tuning=EngineTuningEntry(kv="int8", activations=32),
        tasks=(TASK,),
    ),
    BROKEN: facts(BROKEN, "onnx", None, None),
}


def language(**more: Any) -> Manifest:
    """INT4 ships, within its 8 %."""
    values: dict[str, Any] = {
        "model": DECODER,
        "policy": Policy("language-model", "perplexity", Budget.parse("8%")),
        "data": DataEntry(
            source="texts",
            calibration=CalibrationEntry(
                sha256="c1" * 32, n=128, how_selected="the 128 windows of 256 tokens with the lowest content hashes"
            ),
            validation=ValidationEntry(sha256="d2" * 32, n=401, n_search=201, n_confirm=200),
        ),
        "baseline": candidate(BASELINE, "16 bit", 3.2, 269_000_000, 0.0, artifact="baseline/model.safetensors"),
        "candidates": CANDIDATES,
        "command": "lowbit optimize small-llama --data texts",
        "artifact": "model/openvino_model.xml",
        "files": (FileEntry(path="model/openvino_model.xml", sha256="e3" * 32, size_bytes=84_000_000),),
        "preprocess": None,
        "form": "huggingface",
        "notes": ("The machine was quiet.",),
        "verdicts": {
            PLAIN: ("reject", "2.6 times slower than what ships."),
            INT8: ("reject", "1.7 times slower than what ships."),
            INT4: ("ship", "The whole interval lies within 8 %."),
            BROKEN: ("refuse", "It could not be made."),
        },
        "language": LanguageEntry(
            chosen=LanguageVariantEntry(
                engine="openvino", format="openvino", artifact="model/openvino_model.xml", tuning=FACTS[INT4].tuning
            ),
            baseline=LanguageVariantEntry(
                engine="torch", format="safetensors", artifact="baseline/model.safetensors", tuning=EngineTuningEntry()
            ),
            context=2048,
            tokenizer="tokenizer",
            workload="prompt=512,output=128,concurrency=1",
            window=256,
            stride=256,
            tokens=51_200,
            budgets={"int8": "2%", "int4": "8%"},
            candidates=FACTS,
        ),
    }
    reasons, steps = (f"{INT4} answers soonest of those within their budget.",), ("Serve it beside 16 bit behind a canary.",)
    return make(INT4, "ship", more.pop("reasons", reasons), more.pop("next_steps", steps), **{**values, **more})
