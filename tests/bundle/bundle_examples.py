"""Manifests made through the real records. All numbers are test data: nothing was measured.

`python tests/bundle/bundle_examples.py OUT` writes one report and card for each example, to look at.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lowbit.bundle.manifest import Manifest, build_manifest
from lowbit.bundle.schema import CalibrationEntry, DataEntry, EnvironmentEntry, FileEntry, ValidationEntry
from lowbit.types import (
    Budget,
    Candidate,
    Comparison,
    ConfidenceShift,
    Decision,
    Delta,
    Energy,
    Judgement,
    Latency,
    Measurement,
    MetricValue,
    Model,
    Policy,
    Ratio,
    SliceResult,
    TensorInfo,
    Tuning,
)

BASE_MS = {1: 21.4, 8: 148.0}
BEST_FP32 = 1.31
FP32_BYTES = 44_700_000
SLICES = {"T-shirt/top": 0.89, "Trouser": 0.99, "Pullover": 0.91, "Dress": 0.94, "Sandal": 0.985, "Shirt": 0.80, "hardest tenth": 0.52}


def histogram(mean: float) -> tuple[int, ...]:
    """Confidences of 7,000 samples that pile up near 1."""
    weights = [math.exp(-(1 - (i + 0.5) / 256) * mean) + 0.012 for i in range(26, 256)]
    return (0,) * 26 + tuple(round(7000 * w / sum(weights)) for w in weights)


def delta(value: float, half: float, n: int, confidence: float = 0.95, relative: bool = False) -> Delta:
    flips = round(n * 0.008)
    return Delta(
        value,
        value - half,
        value + half,
        confidence,
        n,
        "tango-score",
        relative,
        flips + max(round(value * n), 0),
        flips - min(round(value * n), 0),
    )


def comparison(
    drop: float, n: int = 7000, half: float = 0.0032, pile: float = 9.0, slices: bool = True, broken: str | None = None
) -> Comparison:
    found = SLICES if slices else {}
    return Comparison(
        metric=MetricValue("top1", 0.9341 - drop, n),
        baseline=MetricValue("top1", 0.9341, n),
        delta=delta(drop, half, n),
        agreement=max(0.02, 0.994 - 3 * abs(drop)),
        secondary={"top5": 0.9981 - drop / 9, "macro_f1": 0.9338 - drop},
        baseline_secondary={"top5": 0.9981, "macro_f1": 0.9338},
        confidence_shift=ConfidenceShift(-0.004 - drop, 0.008 + abs(drop), 0.05 + 2 * max(drop, 0), n, drop > 0.03),
        slices=tuple(
            SliceResult(name, n // 10, base, base - drop * k, delta(drop * k, half * 3.1, n // 10, 0.993))
            for k, (name, base) in zip((0.5, -1, 1.8, 1, 0.2, 3, 2.2), found.items(), strict=False)
        ),
        histogram=histogram(pile - 20 * drop),
        baseline_histogram=histogram(9.2),
        broken=broken,
    )


def measurements(speed: float, noisy: bool = False, tuning: Tuning | None = None) -> tuple[Measurement, ...]:
    tuning = tuning or Tuning(fixed_shape=True)
    found = []
    for batch, streams in ((1, 1), (8, 1), (8, 2)):
        factor = speed * (1.08 if batch == 8 else 1.0)
        ms = BASE_MS[batch] / factor * (1 if streams == 1 else 1.7)
        spread = 0.16 if noisy else 0.03
        found.append(
            Measurement(
                batch=batch,
                streams=streams,
                latency_ms=Latency(ms, ms * 1.12, ms * 1.31, ms * (1 - spread), ms * (1 + spread)),
                throughput_per_s=1000 * batch * streams / ms,
                speedup=Ratio(factor, factor * (1 - spread), factor * (1 + spread)) if streams == 1 else None,
                speedup_over_best_fp32=Ratio(factor / BEST_FP32, factor / BEST_FP32 * 0.97, factor / BEST_FP32 * 1.03)
                if streams == 1
                else None,
                rounds=9,
                noisy=noisy,
                tuning=replace(tuning, streams=streams),
            )
        )
    return tuple(found)


def candidate(id: str, precision: str, speed: float, drop: float, size: float, **more: Any) -> Candidate:
    recipe, runtime = id.split("@")
    tuning = Tuning(fixed_shape=runtime.startswith("openvino"), precision="bf16" if precision == "bf16" else "f32")
    values: dict[str, Any] = {
        "tuning": tuning,
        "size_bytes": round(FP32_BYTES * size),
        "search": comparison(drop),
        "measurements": measurements(speed, tuning=tuning),
        "peak_memory_bytes": round(90e6 + FP32_BYTES * size * 2.4),
        "energy": Energy(0.31 / speed, "modelled", 0.2 / speed, 0.5 / speed, 0.04 / speed),
        "artifact": f"candidates/{id}/model.onnx",
    }
    return Candidate(id, recipe, runtime.split("-")[0], precision, **{**values, **more})


BASELINE = candidate("fp32@onnxruntime", "fp32", 1.0, 0.0, 1.0, artifact="baseline/model.onnx")
CANDIDATES = (
    candidate("fp32@openvino", "fp32", 1.31, 0.0, 1.0),
    candidate("fp32@openvino-bf16", "bf16", 1.94, 0.0003, 1.0),
    candidate("fp16@onnxruntime", "fp16", 0.97, 0.0, 0.5),
    candidate("int8-dynamic@onnxruntime", "int8", 0.62, 0.0011, 0.26),
    candidate("int8-static-minmax@openvino", "int8", 3.64, 0.0064, 0.255, confirm=comparison(0.0071, 4000, 0.0051)),
    candidate("int8-static-mse@onnxruntime", "int8", 2.71, 0.0017, 0.255, measurements=measurements(2.71, noisy=True)),
    candidate("int8-static-mse@openvino", "int8", 3.7, 0.0019, 0.255, confirm=comparison(0.0021, 4000, 0.0042)),
    candidate("int8-nncf@openvino", "int8", 3.44, 0.0013, 0.256, confirm=comparison(0.0016, 4000, 0.0043)),
    candidate("int8-static-entropy@openvino", "int8", 3.71, 0.021, 0.255),
    candidate(
        "int8-static-minmax-tensor@onnxruntime",
        "int8",
        2.8,
        0.523,
        0.252,
        status="dropped",
        reasons=("Stopped after 512 samples: 41.1 % top-1.",),
    ),
    candidate(
        "int8-static-percentile@onnxruntime",
        "int8",
        1,
        0,
        0.25,
        status="failed",
        size_bytes=None,
        search=None,
        measurements=(),
        peak_memory_bytes=None,
        energy=None,
        artifact=None,
        reasons=("onnxruntime could not load it: node '/layer2/conv1/Conv' has no kernel for uint8.",),
    ),
)
VERDICTS = {
    "fp32@openvino": ("reject", "Within budget, but 2.8x slower than int8-static-mse@openvino."),
    "fp32@openvino-bf16": ("reject", "Within budget, but 1.9x slower than int8-static-mse@openvino."),
    "fp16@onnxruntime": ("reject", "Not faster than the baseline at batch 1 (0.97x)."),
    "int8-dynamic@onnxruntime": ("reject", "Slower than the baseline at batch 1 (0.62x)."),
    "int8-static-minmax@openvino": ("provisional", "The point estimate is within 1pp, the interval reaches 1.2 pp."),
    "int8-static-mse@onnxruntime": ("reject", "Within budget, but dominated by int8-static-mse@openvino."),
    "int8-static-mse@openvino": ("ship", "The whole interval lies within 1pp, and it is 3.7x faster at batch 1."),
    "int8-nncf@openvino": ("ship", "The whole interval lies within 1pp, and it is 3.4x faster at batch 1."),
    "int8-static-entropy@openvino": ("recover", "2.1 pp worse: over budget, within 3x of it."),
    "int8-static-minmax-tensor@onnxruntime": ("refuse", "52.3 pp worse: more than 3x over budget."),
    "int8-static-percentile@onnxruntime": ("refuse", "It could not be run."),
}
ENVIRONMENT = EnvironmentEntry(
    cpu="Intel Xeon (test data)",
    cores=2,
    isa=("avx2", "avx512f", "avx512_vnni", "amx_int8"),
    memory_bytes=16 * 2**30,
    versions={"lowbit": "0.1.0", "onnxruntime": "1.30.0", "openvino": "2026.1", "python": "3.11.9"},
)
POLICY = Policy("classification", "top1", Budget.parse("1pp"))
MODEL = Model(
    Path("/home/someone/models/fashion-resnet.onnx"),
    "ab" * 32,
    (TensorInfo("images", ("N", 1, 28, 28), "float32"),),
    (TensorInfo("logits", ("N", 10), "float32"),),
    11_170_000,
    FP32_BYTES,
    17,
)


def make(chosen: str, verdict: str, reasons: tuple[str, ...], next_steps: tuple[str, ...], **more: Any) -> Manifest:
    values: dict[str, Any] = {
        "model": MODEL,
        "policy": POLICY,
        "data": DataEntry(
            source="fashion-mnist.npz",
            calibration=CalibrationEntry(sha256="c1" * 32, n=512, how_selected="the 512 lowest content hashes"),
            validation=ValidationEntry(sha256="d2" * 32, n=11_000, n_search=7000, n_confirm=4000, skipped=3),
        ),
        "environment": ENVIRONMENT,
        "baseline": BASELINE,
        "candidates": CANDIDATES,
        "command": "lowbit optimize /home/someone/models/fashion-resnet.onnx --data data/fashion-mnist.npz --max-drop 1pp --out build/demo",
        "artifact": "model/model.onnx",
        "files": (
            FileEntry(path="model/model.onnx", sha256="e3" * 32, size_bytes=11_400_000),
            FileEntry(path="baseline/model.onnx", sha256="ab" * 32, size_bytes=FP32_BYTES),
            FileEntry(path="preprocess.yaml", sha256="f4" * 32, size_bytes=210),
        ),
        "preprocess": "preprocess.yaml",
        "created": datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
    }
    values |= more
    judged = {c.id for c in values["candidates"]}
    judgements = tuple(
        Judgement(id, word, (why,)) for id, (word, why) in {**VERDICTS, **values.pop("verdicts", {})}.items() if id in judged
    )
    decision = Decision(verdict, chosen, reasons, next_steps, judgements)
    return build_manifest(decision=decision, **values)


def ship(**more: Any) -> Manifest:
    return make(
        "int8-static-mse@openvino",
        "ship",
        (
            "int8-static-mse@openvino is the fastest of 2 candidates whose whole interval lies within the budget of 1pp.",
            "Confirmed on 4,000 samples that the search did not use.",
            "It is not slower than the baseline at any asked batch size.",
        ),
        ("Serve it beside FP32 behind a canary: lowbit serve build/demo.", "Watch the slice 'Shirt': its interval is the widest."),
        **more,
    )


def provisional() -> Manifest:
    return make(
        "int8-static-minmax@openvino",
        "provisional",
        ("The point estimate is within 1pp, the interval reaches 1.2 pp.", "About 2,600 more samples would settle it."),
        ("Add about 2,600 validation samples and run the same command.", "Until then serve it behind a canary."),
        candidates=tuple(c for c in CANDIDATES if "mse" not in c.id and "nncf" not in c.id),
    )


def recover() -> Manifest:
    return make(
        "fp32@openvino-bf16",
        "recover",
        ("The best INT8 candidate, int8-static-entropy@openvino, is 2.1 pp worse: over the budget of 1pp, within 3x of it.",),
        ("Keep the most sensitive layers in 16 bit (mixed precision).", "Or train with quantization in the loop (QAT)."),
        candidates=tuple(c for c in CANDIDATES if c.precision != "int8" or "entropy" in c.id or "tensor" in c.id),
    )


def keep() -> Manifest:
    """A small model without labels, confidences or slices, on a noisy machine; everything changed was refused."""
    plain = replace(
        comparison(0.0, slices=False), confidence_shift=None, histogram=(), baseline_histogram=(), secondary={}, baseline_secondary={}
    )
    broken = replace(
        plain,
        metric=MetricValue("cosine", math.nan, 400),
        delta=Delta(math.nan, math.nan, math.nan, 0.95, 400, "paired-bootstrap", relative=True),
        agreement=math.nan,
        broken="The output is NaN for 400 of 400 samples.",
    )
    fine = replace(
        plain,
        metric=MetricValue("cosine", 1.0, 400),
        baseline=MetricValue("cosine", 1.0, 400),
        delta=Delta(0, 0, 0.0004, 0.95, 400, "paired-bootstrap", relative=True),
    )
    base = replace(BASELINE, search=None, energy=None, measurements=measurements(1.0, noisy=True)[:1])
    return make(
        "fp32@openvino",
        "keep",
        ("Every candidate at lower precision was refused.", "The source precision runs 1.3x faster on openvino than on onnxruntime."),
        ("Nothing needs to be done.",),
        model=replace(MODEL, size_bytes=812_000, parameters=203_000),
        policy=Policy("fidelity", "cosine", Budget.parse("1%")),
        baseline=base,
        candidates=(
            replace(CANDIDATES[0], search=fine, energy=None, measurements=measurements(1.31, noisy=True)[:1]),
            replace(CANDIDATES[9], search=broken, status="done", reasons=(), energy=None, measurements=()),
            CANDIDATES[10],
        ),
        data=DataEntry(
            calibration=CalibrationEntry(sha256=None, n=0, how_selected="nothing was calibrated"),
            validation=ValidationEntry(sha256="d2" * 32, n=400),
        ),
        preprocess=None,
        notes=("The model is 0.8 MB: quantizing so small a model rarely pays.",),
        verdicts={"fp32@openvino": ("keep", "Source precision on its fastest runtime.")},
    )


def by_length(speed: float) -> tuple[Measurement, ...]:
    """Times at 16, 32 and 64 tokens; the shorter, the less there is to gain."""
    return tuple(
        replace(
            entry,
            tokens=tokens,
            latency_ms=Latency(*(value * tokens / 64 for value in (entry.latency_ms.p50,) * 5)),
            speedup=Ratio(gain, gain * 0.96, gain * 1.04),
        )
        for tokens in (16, 32, 64)
        for entry in measurements(speed)[:2]
        for gain in [1 + (speed - 1) * tokens / 64]
    )


def text() -> Manifest:
    """A text model, timed at several sequence lengths."""
    chosen = replace(CANDIDATES[6], by_length=by_length(3.7))
    return ship(candidates=(*CANDIDATES[:6], chosen, *CANDIDATES[7:]), baseline=replace(BASELINE, by_length=by_length(1.0)))


def single() -> Manifest:
    """The baseline alone: nothing else could be tried, nothing was measured."""
    return make(
        BASELINE.id,
        "keep",
        ("Nothing else could be run.",),
        (),
        baseline=replace(BASELINE, search=None, energy=None, measurements=(), peak_memory_bytes=None),
        candidates=(),
    )


EXAMPLES = {"ship": ship, "provisional": provisional, "recover": recover, "keep": keep, "single": single, "text": text}


def main(out: Path) -> None:
    from lowbit.bundle.card import render_card
    from lowbit.bundle.report import render_report

    out.mkdir(parents=True, exist_ok=True)
    for name, example in EXAMPLES.items():
        (out / f"{name}.html").write_text(render_report(example()), encoding="utf-8")
        (out / f"{name}.md").write_text(render_card(example()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
