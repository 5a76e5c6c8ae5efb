"""Calibration selection: does a chosen calibration set beat a random one of the same size?

    python benchmarks/selection.py            ResNet-20, then MCUNet: about an hour on one thread
    python benchmarks/selection.py --quick    ResNet-20 with three seeds: a few minutes

Every method picks n samples of the same pool, with several seeds; ranges come from those samples alone, and the quantized
network answers the same scoring images as FP32. What counts is the signal-to-noise ratio of its output against FP32's and the
share of equal predictions. "pool" calibrates on the whole pool: what more data alone could bring.

Quantization is simulated in floating point, the same arithmetic for all widths: activations before each Conv, Gemm, MatMul
and Add are rounded and clipped to 256 or 16 levels, weights a channel at a time to 8 or 4 bits by their largest value. MCUNet answers
nothing right with 4-bit weights or activations, however they are calibrated; it gets 6-bit activations instead. `--check`
compares that with the INT8 file that `lowbit.compress.quantize` writes.

ResNet-20: the pool is 5,000 CIFAR-10 training images, scored on the first 500 test images. MCUNet: 300 of the 500 ImageNet
images are the pool, the other 200 score.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.compress.calibrate import CalibrationStats, calibrate
from lowbit.compress.features import Space, extract
from lowbit.data import Dataset, Preprocess, open_data
from lowbit.data.selection import METHODS, choose, strata_of
from lowbit.graph.load import load_model
from lowbit.graph.prepare import prepare
from lowbit.quant.ranges import find_range
from lowbit.recipe import QuantSpec, Recipe

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "selection.json"
SIZES = (16, 64, 200)
FORMATS = {"resnet20": {"W8A8": (8, 8), "W8A4": (8, 4), "W4A4": (4, 4)}, "mcunet": {"W8A8": (8, 8), "W8A6": (8, 6)}}
RANGES = ("minmax", "mse")
QUANTIZED = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 2, "Add": 2}
"""Operator -> how many of its first inputs are activations that get rounded."""


@dataclass(frozen=True)
class Case:
    """A model with its pool and its scoring images."""

    name: str
    prepared: Path
    source: Path
    pool: Dataset
    scoring: Dataset


def cases(folder: Path, names: Sequence[str]) -> Iterator[Case]:
    if "resnet20" in names:
        source = load_model(SHARED / "cifar10-resnet/resnet20.onnx")
        preset = Preprocess.preset("imagenet")
        pool = open_data(SHARED / "cifar10/cifar10_train5k.npz", source.inputs, preset)
        scoring = open_data(SHARED / "cifar10/cifar10_test10k.npz", source.inputs, preset)
        yield Case("resnet20", prepare(source, folder / "resnet20.onnx"), source.path, pool, scoring.subset(np.arange(500)))
    if "mcunet" in names:
        source = load_model(SHARED / "imagenet-models/mcunet-320kb-1mb.onnx")
        data = open_data(SHARED / "imagenet-sample", source.inputs, Preprocess.preset("inception"))
        order = np.random.default_rng(0).permutation(len(data))
        prepared = prepare(source, folder / "mcunet.onnx")
        yield Case("mcunet", prepared, source.path, data.subset(order[:300]), data.subset(order[300:]))


# The quantized network, in floating point ------------------------------------------------------------------------------


class Simulated:
    """Sessions, one a weight width, in which every rounded tensor takes its scale, zero point and levels as inputs."""

    def __init__(self, case: Case) -> None:
        self.scoring = [dict(batch.feeds) for batch in case.scoring.batches(100)]
        self.formats = FORMATS[case.name]
        self.sessions: dict[int, Any] = {}
        self.tensors: list[str] = []
        for bits in sorted({weights for weights, _ in self.formats.values()}):
            self.sessions[bits], self.tensors = simulated(case.prepared, bits)
        plain = session(case.prepared.read_bytes())
        self.expected = np.concatenate([plain.run(None, feeds)[0] for feeds in self.scoring])

    def score(self, stats: CalibrationStats, ranges: str, weights: int, activations: int) -> dict[str, float]:
        """Output SQNR in dB and agreement with FP32."""
        levels = 2**activations
        parameters: dict[str, Any] = {}
        for name in self.tensors:
            low, high = find_range(stats.tensors[name], ranges, levels)  # type: ignore[arg-type]
            step = max((high - low) / (levels - 1), 1e-12)
            bottom = np.round(low / step)
            values = {"step": step, "inverse": 1 / step, "bottom": bottom, "top": bottom + levels - 1}
            parameters |= {f"{name}/{key}": np.array(value, np.float32) for key, value in values.items()}
        return fidelity(self.expected, [self.sessions[weights].run(None, {**feeds, **parameters})[0] for feeds in self.scoring])


def fidelity(expected: np.ndarray, found: Sequence[np.ndarray]) -> dict[str, float]:
    got = np.concatenate(found)
    noise = np.square(got - expected).sum()
    return {
        "sqnr_db": float(10 * np.log10(np.square(expected).sum() / noise)),
        "agreement": float((got.argmax(1) == expected.argmax(1)).mean()),
    }


def session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def simulated(path: Path, bits: int) -> tuple[Any, list[str]]:
    """A session with rounded weights and with nodes that round activations; the names of the rounded tensors."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    rounded: dict[str, list[Any]] = {}
    for node in graph.node:
        for index in range(QUANTIZED.get(node.op_type, 0)):
            if node.input[index] not in constants:
                rounded.setdefault(node.input[index], rounding(node.input[index]))
                node.input[index] = f"{node.input[index]}/rounded"
        if node.op_type in QUANTIZED and len(node.input) > 1 and node.input[1] in constants:
            tensor = constants[node.input[1]]
            axis = 0 if node.op_type in ("Conv", "Gemm") else 1
            tensor.CopyFrom(numpy_helper.from_array(rounded_weight(numpy_helper.to_array(tensor), bits, axis), tensor.name))
    nodes = [made for value in graph.input for made in rounded.get(value.name, [])]
    for node in graph.node:
        nodes += [node, *(made for name in node.output for made in rounded.get(name, []))]
    del graph.node[:]
    graph.node.extend(nodes)
    for name in (f"{name}/{key}" for name in rounded for key in ("step", "inverse", "bottom", "top")):
        graph.input.append(helper.make_tensor_value_info(name, 1, []))
    return session(model.SerializeToString()), list(rounded)


def rounding(name: str) -> list[Any]:
    from onnx import helper

    chain = [("Mul", ["inverse"]), ("Round", []), ("Clip", ["bottom", "top"]), ("Mul", ["step"])]
    nodes, current = [], name
    for index, (op, others) in enumerate(chain):
        out = f"{name}/rounded" if index == len(chain) - 1 else f"{name}/{op}{index}"
        nodes.append(helper.make_node(op, [current, *(f"{name}/{key}" for key in others)], [out], name=out))
        current = out
    return nodes


def rounded_weight(weight: np.ndarray, bits: int, axis: int) -> np.ndarray:
    if weight.ndim < 2:
        return weight
    most = 2 ** (bits - 1) - 1
    others = tuple(index for index in range(weight.ndim) if index != axis)
    step = np.maximum(np.abs(weight).max(axis=others, keepdims=True) / most, 1e-12)
    return (np.clip(np.round(weight / step), -most, most) * step).astype(np.float32)


# Runs -------------------------------------------------------------------------------------------------------------------


def ways(case: Case, only: Sequence[str]) -> dict[str, tuple[np.ndarray, str, np.ndarray | None]]:
    """Name -> points, method, strata."""
    features = extract(case.pool, case.prepared, threads=1)
    raw = extract(case.pool, None)
    points, plain = Space.fit(features).transform(features), Space.fit(raw).transform(raw)
    strata = None if case.pool.labels is None or len(case.pool) < 1000 else strata_of([case.pool.labels])
    found: dict[str, tuple[np.ndarray, str, np.ndarray | None]] = {method: (points, method, None) for method in METHODS}
    found["mixed, inputs only"] = (plain, "mixed", None)
    if strata is not None:
        found["mixed, stratified"] = (points, "mixed", strata)
        found["random, stratified"] = (points, "random", strata)
    return {name: found[name] for name in found if not only or name in {*only, "random"}}


def measured(case: Case, simulation: Simulated, rows: np.ndarray) -> dict[str, dict[str, float]]:
    stats = calibrate(case.prepared, case.pool.subset(rows).batches(50), threads=1)
    return {f"{name} {ranges}": simulation.score(stats, ranges, *bits) for name, bits in simulation.formats.items() for ranges in RANGES}


def run(case: Case, seeds: int, sizes: Sequence[int], only: Sequence[str] = ()) -> dict[str, Any]:
    simulation = Simulated(case)
    started = time.monotonic()
    pool = measured(case, simulation, np.arange(len(case.pool)))
    found: dict[str, Any] = {"pool_size": len(case.pool), "scored": len(case.scoring), "pool": pool, "sizes": {}}
    chosen = ways(case, only)
    for n in sizes:
        table: dict[str, list[dict[str, dict[str, float]]]] = {}
        for seed in range(seeds):
            for name, (points, method, strata) in chosen.items():
                rows = choose(points, n, method, strata=strata, seed=seed)  # type: ignore[arg-type]
                table.setdefault(name, []).append(measured(case, simulation, rows))
        found["sizes"][str(n)] = {name: summary(results, table["random"]) for name, results in table.items()}
        show(case.name, n, found["sizes"][str(n)], pool, time.monotonic() - started)
    return found


def summary(results: Sequence[Mapping[str, Any]], random: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, spread and worst over seeds, and the difference from random with its standard error."""
    out: dict[str, Any] = {}
    for setting in results[0]:
        entry: dict[str, float] = {}
        for key in ("sqnr_db", "agreement"):
            values, base = [r[setting][key] for r in results], [r[setting][key] for r in random]
            entry[key], entry[f"{key}_sd"], entry[f"{key}_min"] = statistics.mean(values), statistics.stdev(values), min(values)
            entry[f"{key}_gain"] = entry[key] - statistics.mean(base)
            entry[f"{key}_gain_se"] = float(np.sqrt((statistics.variance(values) + statistics.variance(base)) / len(values)))
        out[setting] = entry
    return out


def show(case: str, n: int, table: Mapping[str, Any], pool: Mapping[str, Any], seconds: float) -> None:
    print(f"\n{case}, n = {n} ({seconds:.0f} s so far): SQNR dB mean ± sd (agreement %)", flush=True)
    settings = list(pool)
    print(f"{'':22}" + "".join(f"{setting:>24}" for setting in settings))
    for name, row in table.items():
        cells = [f"{row[s]['sqnr_db']:.2f} ± {row[s]['sqnr_db_sd']:.2f} ({100 * row[s]['agreement']:.1f})" for s in settings]
        print(f"{name:22}" + "".join(f"{cell:>24}" for cell in cells))
    cells = [f"{pool[s]['sqnr_db']:.2f} ({100 * pool[s]['agreement']:.1f})" for s in settings]
    print(f"{'whole pool':22}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


def check(case: Case, folder: Path) -> dict[str, Any]:
    """The simulation beside the INT8 file that lowbit writes, on the same 64 random samples."""
    from lowbit.compress.evidence import Evidence
    from lowbit.compress.quantize import quantize

    stats = calibrate(case.prepared, case.pool.subset(choose(np.zeros((len(case.pool), 1)), 64, "random")).batches(50), threads=1)
    simulation = Simulated(case)
    recipe = Recipe("int8-static-minmax", "static", QuantSpec("int8", "per-channel", symmetric=True), QuantSpec("uint8"), "minmax")
    evidence = Evidence(case.prepared, lambda: ())
    evidence.stats = stats
    file = quantize(case.source, case.prepared, recipe, folder / f"{case.name}-int8.onnx", evidence=evidence)
    real = session(file.read_bytes())
    written = fidelity(simulation.expected, [real.run(None, feeds)[0] for feeds in simulation.scoring])
    return {"simulated": simulation.score(stats, "minmax", 8, 8), "written": written}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ResNet-20 with three seeds")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--only", nargs="+", default=[], help="these ways of choosing, beside random")
    parser.add_argument("--case", nargs="+", default=["resnet20", "mcunet"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    names, seeds = (["resnet20"], 3) if given.quick else (given.case, given.seeds)
    found: dict[str, Any] = {"seeds": seeds, "cases": {}}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(Path(folder), names):
            found["cases"][case.name] = {**run(case, seeds, given.sizes, given.only), "check": check(case, Path(folder))}
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
