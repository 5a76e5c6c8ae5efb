"""Every model through every target it fits: parity, accuracy through the gate, size, arena, latency.

    python benchmarks/targets.py                                   everything, about an hour on two quiet cores
    python benchmarks/targets.py --model demo --target litert      one of each; both may be repeated
    python benchmarks/targets.py --folder DIR                      where bundles and artifacts are made, and kept for the next run

Models (benchmarks/target_models.py): the built-in Fashion-MNIST network, ResNet-20 (CIFAR-10), SqueezeNet 1.1 and MCUNet (500 ImageNet
pictures), the sentence encoder MiniLM-L6 with a head (SST-2), the sine of hello_world, the dense network of the California housing data,
and two detectors, of faces and of objects. Each is optimized once to static INT8; every target is written from that one table, asked
samples that calibrated nothing on the target's own runtime or emulator, and judged by the gate. LiteRT is timed beside the full-precision
model on onnxruntime and the bundle's own artifact on onnxruntime and OpenVINO, one process each, in turn. Results:
benchmarks/results/targets.json, from which docs/guides/targets.md has its table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from target_models import MODELS, bundle_of

from lowbit.bundle.bundle import Bundle
from lowbit.cli.live import Lines
from lowbit.errors import LowbitError
from lowbit.export import registry
from lowbit.export.neutral import read_neutral
from lowbit.measure import ratios
from lowbit.measure.race import Variant, race
from lowbit.pipeline.targets.leave import leave, refused
from lowbit.pipeline.targets.samples import parted, questions
from lowbit.runtimes.hardware import probe
from lowbit.types import Feeds, Ratio

RESULTS = Path(__file__).parent / "results" / "targets.json"
KERNELS = {"xnnpack": "Xnnpack", "built-in": "BuiltIn"}
VARIANTS: dict[str, tuple[str, tuple[str, ...], str]] = {
    **{name: (name, (), "") for name in registry.names()},
    "qnn-16": ("qnn", ("activations=16",), ", 16-bit activations"),
    "litert-static": ("litert", ("way=recalibrated", "recipe=static"), ", recalibrated, static"),
    "litert-dynamic": ("litert", ("way=recalibrated", "recipe=dynamic"), ", recalibrated, dynamic"),
}
"""Row -> target, settings, and what its title has more."""

ALONE: dict[str, tuple[str, ...]] = {"litert-static": ("resnet20", "sst2"), "litert-dynamic": ("resnet20",)}
"""Models of rows that are there for a comparison, not for every model."""

ORDER = sorted(VARIANTS, key=("cortex-m", "qnn", "qnn-16").count)
"""The slow ones last."""

SETTINGS: dict[tuple[str, str], tuple[str, ...]] = {
    (model, "cortex-m"): ("sram_kb=4096", "flash_kb=4096") for model in ("squeezenet", "ultraface", "nanodet")
}
"""What a model needs of a target to be written at all."""

SAMPLES: dict[tuple[str, str], int] = {
    **{(model, row): 100 for model in ("mcunet", "squeezenet") for row in ("qnn", "qnn-16", "coreml", "edgetpu", "ort-web")},
    **{(model, "litert"): 200 for model in ("mcunet", "squeezenet")},
    **{(model, row): 20 for model in ("ultraface", "nanodet") for row in VARIANTS},
    **{(model, "cortex-m"): 4 for model in ("mcunet", "squeezenet", "ultraface", "nanodet")},
}
"""Fewer than usual where an emulator or a reference kernel takes long."""


def one(bundle: Bundle, name: str, row: str, data: Path, out: Path, *, time: bool) -> dict[str, Any]:
    """One cell of the matrix."""
    target, settings, more = VARIANTS[row]
    try:
        settings, samples = settings + SETTINGS.get((name, row), ()), SAMPLES.get((name, row))
        found = leave(bundle, target, out, data=data, settings=settings, samples=samples, force=True, time=time, reporter=Lines())
    except LowbitError as error:
        found = refused(registry.find(target), error)
    return found.model_copy(update={"title": found.title + more}).model_dump(mode="json")


def beside(bundle: Bundle, candidate: str, tflite: Path, feeds: Feeds) -> dict[str, Any]:
    """One sample's latency on LiteRT beside full precision and the candidate's own file: one process each, in turn."""
    own, full = bundle.artifact(candidate), bundle.artifact(bundle.manifest.baseline.id)
    variants = [Variant("fp32 on onnxruntime", "onnxruntime", full), Variant("fp32 on openvino", "openvino", full)]
    variants += [Variant(f"int8 on {runtime}", runtime, own) for runtime in ("onnxruntime", "openvino")]
    variants += [Variant(f"int8 on LiteRT, {name}", f"lowbit.export.litert.timing:{way}", tflite) for name, way in KERNELS.items()]
    found = race(variants, {name: values[:1] for name, values in feeds.items()}, batch=1)
    yard = found["fp32 on onnxruntime"].rounds
    return {
        name: {"latency_ms": asdict(ratios.latency(each.rounds)), "speedup": asdict(ratios.speedup(yard, each.rounds) or Ratio(1, 1, 1))}
        if each.usable
        else {"error": each.error}
        for name, each in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--target", choices=ORDER, action="append")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--no-time", action="store_true", help="Leave latency out, on a machine that does other things, too.")
    said = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"models": {}}
    with tempfile.TemporaryDirectory(prefix="lowbit-targets-") as scratch:
        folder = said.folder or Path(scratch)
        bundles = {name: bundle_of(name, folder) for name in said.model or MODELS}
        data = {name: MODELS[name](folder).data for name in bundles}
        for row in said.target or ORDER:
            for name, bundle in bundles.items():
                if name not in ALONE.get(row, (name,)):
                    continue
                print(f"\n== {name}, {row}", flush=True)
                found = one(bundle, name, row, data[name], folder / "targets" / name / row, time=not said.no_time)
                results["models"].setdefault(name, {})[row] = found
                print_row(found)
                if row == "litert" and not found["refused"] and not said.no_time:
                    place = folder / "targets" / name / row / found["artifact"]
                    first = next(questions(read_neutral(bundle), parted(bundle, data[name])[0], 1).batches())[0]
                    results.setdefault("litert_latency", {})[name] = beside(bundle, found["candidate"], place, first)
                    for way, told in results["litert_latency"][name].items():
                        print(f"    {way:<28} {told['latency_ms']['p50']:.3f} ms, {told['speedup']['value']:.2f}x", flush=True)
                results["machine"] = asdict(probe())
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def print_row(found: dict[str, Any]) -> None:
    if found["refused"]:
        print("   ", found["refused"])
    for each in found["kernels"]:
        if each["error"]:
            print(f"    {each['kernels']:<24} {each['error']}")
            continue
        same = f"{100 * each['agreement']:.1f} %" if each["agreement"] is not None else f"cosine {each['cosine']:.4f}"
        exact = f", {100 * each['identical']:.2f} % identical" if each["identical"] is not None else ""
        ms = f", {each['latency_ms']['p50']:.3f} ms ({each['speedup']['value']:.2f}x)" if each["latency_ms"] else ""
        print(f"    {each['kernels']:<24} {same} of {each['samples']}{exact}{ms}", flush=True)


if __name__ == "__main__":
    main()
