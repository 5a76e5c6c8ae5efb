"""PyTorch's own quantizer and compiler beside lowbit's artifacts: PT2E INT8, dynamic INT8 and FP32 on torch, on ResNet-20.

    python benchmarks/pt2e.py                            what results/pt2e.json keeps: about five minutes on two idle cores
    python benchmarks/pt2e.py --batches 1 --out -        a quick look

400 CIFAR-10 test images calibrate, the same ones for all; accuracies are of the other 9,600. Latencies come from one race for each batch
size, every model alone in its process. All but the baseline have fixed shapes where their runtime takes them: it was faster on every model
measured. torch compiles with inductor, which needs a C++ compiler; how long an artifact takes to open is in the results, too: with nothing
compiled before, and once more with what the race left in the compiler's cache.

Dynamic INT8 is for linear layers, of which ResNet-20 has one: it is here because it is what people try first.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.compress.evidence import Evidence
from lowbit.compress.static import write_static
from lowbit.graph.load import load_model
from lowbit.graph.prepare import prepare
from lowbit.graph.profiles import profile
from lowbit.measure.race import FINAL, Variant, measurement, race
from lowbit.pipeline.recipes import fitted
from lowbit.runtimes import registry
from lowbit.train.pt2e import write_program, write_pt2e
from lowbit.types import Array, Batch, Feeds, Measurement, Tuning

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
MODEL = SHARED / "cifar10-resnet" / "resnet20.onnx"
IMAGES = SHARED / "cifar10" / "cifar10_test10k.npz"
RESULTS = Path(__file__).parent / "results" / "pt2e.json"
CALIBRATION, AT_ONCE = 400, 8
FIXED = Tuning(fixed_shape=True)
RECIPE = fitted("mse")


def images() -> tuple[Array, Array]:
    """Images as the model takes them, float32 [10000, 3, 32, 32], and their classes, in an order of no meaning."""
    raw = np.load(IMAGES)
    mean, deviation = (np.array(v, np.float32)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    order = np.random.default_rng(0).permutation(len(raw["labels"]))
    return ((raw["images"].astype(np.float32) / 255 - mean) / deviation)[order], raw["labels"][order]


def make(folder: Path, calibration: Array) -> tuple[list[Variant], dict[str, float]]:
    """Who races, the baseline first, and the seconds that it took to make each artifact."""
    prepared = prepare(load_model(MODEL), folder / "prepared.onnx")
    name = load_model(MODEL).inputs[0].name
    batches: list[Feeds] = [{name: calibration[start : start + AT_ONCE]} for start in range(0, len(calibration), AT_ONCE)]
    variants = [Variant("fp32@onnxruntime", "onnxruntime", MODEL), Variant("fp32@openvino", "openvino", MODEL, FIXED)]
    seconds: dict[str, float] = {}
    for runtime in ("onnxruntime", "openvino"):
        started = time.monotonic()
        evidence = Evidence(prepared, lambda: (Batch(np.arange(AT_ONCE), feeds, None) for feeds in batches))
        write_static(evidence, path := folder / f"int8-{runtime}.onnx", RECIPE, profile(f"{runtime}-cpu"))
        variants.append(Variant(id_ := f"{RECIPE.name}@{runtime}", runtime, path, FIXED if runtime == "openvino" else Tuning()))
        seconds[id_] = time.monotonic() - started
    writers = {
        "fp32": lambda out: write_program(prepared, out, batches[0]),
        "int8-pt2e": lambda out: write_pt2e(prepared, out, batches),
        "int8-torch-dynamic": lambda out: write_pt2e(prepared, out, batches, dynamic=True),
    }
    for recipe, write in writers.items():
        started = time.monotonic()
        variants.append(Variant(id_ := f"{recipe}@torch", "torch", write(folder / f"{recipe}.pt2"), FIXED))
        seconds[id_] = time.monotonic() - started
    return variants, seconds


def right(variant: Variant, x: Array, labels: Array) -> tuple[Array, float]:
    """Whether each image is answered right, and seconds to open."""
    runtime = registry.get(variant.runtime)
    runtime.describe()  # imports the library
    started = time.monotonic()
    session = runtime.open(variant.model, replace(variant.tuning, fixed_shape=True), AT_ONCE)
    opening = time.monotonic() - started
    (name,) = (info.name for info in session.inputs)
    parts = [session.run({name: x[start : start + AT_ONCE]}) for start in range(0, len(x), AT_ONCE)]
    session.close()
    found: Array = np.concatenate([next(iter(part.values())).argmax(1) for part in parts]) == labels
    return found, opening


def timed(variants: Sequence[Variant], x: Array, batch: int) -> dict[str, dict[str, Any]]:
    """Milliseconds, times as fast as the baseline, and seconds to open."""
    name = load_model(MODEL).inputs[0].name
    results = race(variants, {name: x[:batch]}, batch=batch, **FINAL)
    base = results[variants[0].id]
    found: dict[str, dict[str, Any]] = {}
    for id_, result in results.items():
        if not result.usable:
            found[id_] = {"error": result.error}
            continue
        found[id_] = {**told(measurement(result, base)), "open_seconds": result.load_seconds}
    return found


def told(seen: Measurement) -> dict[str, Any]:
    assert seen.speedup is not None
    return {
        "p50_ms": seen.latency_ms.p50,
        "speedup": [seen.speedup.value, seen.speedup.ci_low, seen.speedup.ci_high],
        "noisy": seen.noisy,
    }


def points_lost(base: Array, other: Array) -> list[float]:
    """Points of accuracy lost, with a paired bootstrap's 95 % interval."""
    lost = 100 * (base.astype(float) - other.astype(float))
    rng = np.random.default_rng(0)
    draws = [lost[rng.integers(0, len(lost), len(lost))].mean() for _ in range(1000)]
    low, high = np.quantile(draws, (0.025, 0.975))
    return [float(lost.mean()), float(low), float(high)]


def run(batches: Sequence[int]) -> dict[str, Any]:
    started = time.monotonic()
    x, labels = images()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/compiled"
        variants, seconds = make(Path(folder), x[:CALIBRATION])
        # Races first: what was scored in this process would leave its threads behind.
        latency = {str(batch): timed(variants, x[CALIBRATION:], batch) for batch in batches}
        scored = {each.id: right(each, x[CALIBRATION:], labels[CALIBRATION:]) for each in variants}
        answers = {id_: found for id_, (found, _) in scored.items()}
        base = answers[variants[0].id]
        return {
            "model": MODEL.name,
            "images": {"calibration": CALIBRATION, "scored": len(x) - CALIBRATION},
            "torch": registry.get("torch").describe(),
            "accuracy": {id_: float(each.mean()) for id_, each in answers.items()},
            "points_lost": {id_: points_lost(base, each) for id_, each in answers.items()},
            "latency": latency,
            "make_seconds": seconds,
            "open_again_seconds": {id_: opening for id_, (_, opening) in scored.items()},
            "size_bytes": {each.id: each.model.stat().st_size for each in variants},
            "seconds": time.monotonic() - started,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--out", default=str(RESULTS), help="where results go; - for nowhere")
    given = parser.parse_args()
    text = json.dumps(run(given.batches), indent=2)
    print(text)
    if given.out != "-":
        Path(given.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
