"""Mixed precision: how much of an integer model's speed is left once its accuracy is back, and what finding that out costs.

    python benchmarks/mixed.py             both cases, with NNCF's accuracy control beside them: about ten minutes
    python benchmarks/mixed.py --threads 1 on a busy machine: one thread is disturbed less than two

resnet20   weights of 4 bits a channel, activations of 8: plain rounding loses several points on the degraded CIFAR-10 images. CPU runtimes
           have no 4-bit kernels, so the 15 levels are stored as int8 and run at INT8's speed. Calibrated on 100 training images,
           searched on 2,000 test images, confirmed on the other 8,000.
mcunet     INT8 with one scale a weight tensor. Calibrated on 100 of the 500 ImageNet images, searched on the other 400; --folds 5
           repeats that with every fifth and pools the scores.

Every product of a model may stay in floating point. Per case: damages (compress/sensitivity.py), seconds of each group (a race and
runtime profiles), a frontier of at most 12 choices, at most five of them evaluated end to end. Cost is counted in full evaluations:
samples run through a model over the samples it is searched on. Latencies of all models come from one race at the end, in turn.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.compress.allocate import FLOAT, Assignment, frontier
from lowbit.compress.calibrate import calibrate
from lowbit.compress.capture import capture, sites
from lowbit.compress.latency import LatencyTable, Layout, layout, measure_latency
from lowbit.compress.mixed import Evidence, Outcome, mixed
from lowbit.compress.products import products
from lowbit.compress.sensitivity import sensitivity
from lowbit.data import Dataset, Preprocess, open_data
from lowbit.errors import LowbitError
from lowbit.graph import ir_files
from lowbit.graph.groups import Group, find_groups
from lowbit.graph.load import load_model
from lowbit.graph.parameterize import parameterize
from lowbit.graph.place import Format, Placement, place
from lowbit.graph.prepare import prepare
from lowbit.graph.profiles import profile as target_of
from lowbit.graph.qdq import values_of, write_pairs
from lowbit.measure.race import FINAL, Variant, race
from lowbit.quant.affine import Affine, from_values, round_trip
from lowbit.recipe import QuantSpec
from lowbit.runtimes import registry
from lowbit.types import Array, Tuning

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "mixed.json"
BUDGET = 0.01 + 1e-9
"""One point. The hair more is for 0.70 - 0.69, which is above 0.01 in floating point."""


@dataclass(frozen=True)
class Case:
    """A model, the integer format that hurts it, and its samples."""

    name: str
    prepared: Path
    form: str
    per_channel: bool
    calibration: Dataset
    searching: Dataset
    confirming: Dataset | None


def resnet20(folder: Path) -> Case:
    source = load_model(SHARED / "cifar10-resnet/resnet20.onnx")
    steps = Preprocess.preset("imagenet")
    train = open_data(SHARED / "cifar10/cifar10_train5k.npz", source.inputs, steps)
    test = open_data(SHARED / "cifar10/cifar10_test10k.npz", source.inputs, steps)
    chosen = np.random.default_rng(0).permutation(len(train))[:100]
    parts = train.subset(chosen), test.subset(np.arange(2000)), test.subset(np.arange(2000, len(test)))
    return Case("resnet20", prepare(source, folder / "resnet20.onnx"), "w4a8", True, *parts)


def mcunet(folder: Path, fold: int = 0) -> Case:
    source = load_model(SHARED / "imagenet-models/mcunet-320kb-1mb.onnx")
    data = open_data(SHARED / "imagenet-sample", source.inputs, Preprocess.preset("inception"))
    order = np.random.default_rng(0).permutation(len(data))
    inside = np.arange(len(data)) % 5 == fold
    path = prepare(source, folder / "mcunet.onnx")
    return Case("mcunet", path, "w8a8", False, data.subset(order[inside]), data.subset(order[~inside]), None)


# The integer model ---------------------------------------------------------------------------------------------------------


class Maker:
    """Writes the model of a case in given formats."""

    def __init__(self, case: Case, runtime: str, folder: Path) -> None:
        self.case, self.folder, self.target = case, folder, target_of(f"{runtime}-cpu")
        self.stats = calibrate(case.prepared, case.calibration.batches(20), methods=("minmax",))
        self.ranges = self.stats.ranges("minmax")
        graph = ir_files.read(case.prepared).graph
        self.groups = find_groups(graph, self.target)
        self.layout: Layout = layout(graph, self.groups, self.target)
        self.made: dict[str, Path] = {}

    def write(self, formats: Mapping[str, str]) -> Path:
        key = json.dumps({name: formats[name] for name in self.layout.products})
        if key not in self.made:
            self.made[key] = self._write(formats, self.folder / f"{self.case.name}-{len(self.made)}.onnx")
        return self.made[key]

    def _write(self, formats: Mapping[str, str], out: Path) -> Path:
        model = ir_files.read(self.case.prepared)
        weights = QuantSpec("int8", "per-channel" if self.case.per_channel else "per-tensor", symmetric=True)
        form = Format(weights, self.target.activations)

        def format_of(group: Group) -> Format | None:
            return None if formats.get(group.name, FLOAT) == FLOAT else form

        placement = place(model.graph, self.target, format_of, self.ranges)
        table = parameterize(placement, self.ranges.__getitem__, values_of(model), self._given(placement, values_of(model)))
        write_pairs(model, placement, table)
        ir_files.write(model, out)
        return out

    def _given(self, placement: Placement, values: Any) -> dict[str, Affine]:
        """Weights of 4 bits: their grid has int4's scale and sits in int8."""
        if not self.case.form.startswith("w4"):
            return {}
        return {each.tensor: replace(weight_grid(values(each.tensor), self.case, each.axis), dtype="int8") for each in placement.weights}


def weight_grid(values: Array, case: Case, axis: int | None) -> Affine:
    return from_values(values, "int4" if case.form.startswith("w4") else "int8", symmetric=True, axis=axis)


def accuracy(model: Path, data: Dataset, runtime: str, tuning: Tuning) -> Array:
    """Right or wrong, per sample."""
    session = registry.get(runtime).open(model, replace(tuning, fixed_shape=False))
    found = [next(iter(session.run(batch.feeds).values())).argmax(1) == batch.labels for batch in data.batches(50)]
    return np.concatenate(found)


# Damage --------------------------------------------------------------------------------------------------------------------


Damages = tuple[dict[tuple[str, str], float], float, str]
"""(group, format) -> damage; samples run for it; what it is."""


def sensitivities(case: Case, maker: Maker) -> Damages:
    """What lowbit measures, in at most three passes over the calibration samples."""
    weights = QuantSpec("int4" if case.form == "w4a8" else "int8", "per-channel" if case.per_channel else "per-tensor", symmetric=True)
    forms = {case.form: Format(weights, maker.target.activations)}
    feeds = [batch.feeds for batch in case.calibration.batches(20)]
    found = sensitivity(case.prepared, maker.target, forms, maker.stats, feeds, kind="classes", threads=1)
    return dict(found.damage), found.passes * found.samples, f"sensitivity in {found.passes:.2f} passes"


def one_at_a_time(case: Case, maker: Maker) -> Damages:
    """Divergence of the outputs with one product quantized, over all calibration samples: exact and dear, to compare with."""
    runtime = registry.get("onnxruntime")

    def log_probabilities(formats: Mapping[str, str]) -> Array:
        session = runtime.open(maker.write(formats), Tuning(threads=1))
        outputs = np.concatenate([next(iter(session.run(batch.feeds).values())) for batch in case.calibration.batches(20)])
        shifted = outputs - outputs.max(1, keepdims=True)
        found: Array = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        return found

    nothing = dict.fromkeys(maker.layout.products, FLOAT)
    exact = log_probabilities(nothing)
    found = {}
    for name in maker.layout.products:
        wrong = log_probabilities({**nothing, name: case.form})
        found[name, case.form] = max(0.0, float(np.mean(np.sum(np.exp(exact) * (exact - wrong), axis=1))))
    return found, float(len(case.calibration) * (1 + len(found))), "divergence, one product at a time"


def local_noise(case: Case, maker: Maker) -> Damages:
    """Noise over signal at each product's own output, on rows sampled in one pass: no idea of what that does to the model's output."""
    model = ir_files.read(case.prepared)
    values = values_of(model)
    seen = capture(case.prepared, sites(model.graph, maker.groups), [batch.feeds for batch in case.calibration.batches(20)])
    placement = place(model.graph, maker.target, lambda _: Format(QuantSpec("int8"), QuantSpec("uint8")), maker.ranges)
    grids = parameterize(placement, maker.ranges.__getitem__, values)
    axes = {weight.tensor: weight.axis for weight in placement.weights}
    found = {}
    for name, product in products(model, maker.groups).items():
        rows, weight = seen.rows[name], values(product.weight)
        axis = axes[product.weight] if case.per_channel else None
        exact = np.einsum("rgk,gok->rgo", rows, product.matrices(weight))
        rounded = product.matrices(round_trip(weight, weight_grid(weight, case, axis)))
        wrong = np.einsum("rgk,gok->rgo", round_trip(rows, grids[product.group.activations[0]]), rounded)
        found[name, case.form] = float(np.square(wrong - exact).sum() / np.square(exact).sum())
    return found, float(len(case.calibration)), "local noise over signal"


DAMAGES = {"sensitivity": sensitivities, "local": local_noise, "brute": one_at_a_time}

# NNCF ----------------------------------------------------------------------------------------------------------------------


def nncf_control(case: Case, out: Path) -> dict[str, Any]:
    """nncf.quantize_with_accuracy_control with the same budget and the same kind of weights; why not, where it refuses."""
    import nncf
    import onnx
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

    bits = 4 if case.form.startswith("w4") else 8
    weights = QuantizationParameters(num_bits=bits, per_channel=case.per_channel)
    counter = Counter(case.searching)
    started = time.monotonic()
    try:
        quantized = nncf.quantize_with_accuracy_control(
            onnx.load(case.prepared),
            calibration_dataset=nncf.Dataset([batch.feeds for batch in case.calibration.batches(1)]),
            validation_dataset=nncf.Dataset(counter.samples),
            validation_fn=counter,
            max_drop=0.01 + 1e-6,
            subset_size=len(case.calibration),
            advanced_quantization_parameters=AdvancedQuantizationParameters(weights_quantization_params=weights),
        )
    except Exception as error:  # it raises whatever it likes
        return {"error": f"{type(error).__name__}: {error}"[:300], "evaluations": counter.seen / len(counter.samples)}
    onnx.save(quantized, out)
    spent = {"evaluations": counter.seen / len(counter.samples), "seconds": time.monotonic() - started}
    return {**spent, "quantized_nodes": sum(node.op_type == "QuantizeLinear" for node in quantized.graph.node)}


class Counter:
    """NNCF's validation function, which counts the samples it sees."""

    def __init__(self, data: Dataset) -> None:
        self.samples = [(batch.feeds, int(batch.labels[0])) for batch in data.batches(1) if batch.labels is not None]
        self.seen = 0

    def __call__(self, model: Any, samples: Any) -> tuple[float, list[float]]:
        import openvino

        core = openvino.Core()
        compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        hits = [float(next(iter(compiled(feeds).values())).argmax() == label) for feeds, label in samples]
        self.seen += len(hits)
        return float(np.mean(hits)), hits


# A case from start to end ---------------------------------------------------------------------------------------------------


def run(case: Case, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    tuning = Tuning(threads=given.threads, fixed_shape=given.runtime == "openvino")
    maker = Maker(case, given.runtime, folder)
    n = len(case.searching)

    def score(model: Path, data: Dataset = case.searching) -> float:
        return float(accuracy(model, data, given.runtime, tuning).mean())

    feeds = next(iter(case.searching.batches(given.batch))).feeds
    started = time.monotonic()
    damage, samples, kind = DAMAGES[given.damage](case, maker)
    table = measure_latency(maker.layout, [case.form], maker.write, given.runtime, feeds, batch=given.batch, tuning=tuning)
    points = frontier(damage, table.seconds, table.boundaries)
    float_, integer = maker.write({}.fromkeys(maker.layout.products, FLOAT)), maker.write(points[0].formats)
    base = score(float_)

    def evaluate(formats: Mapping[str, str]) -> Evidence:
        return Evidence(base - score(maker.write(formats)))

    first = evaluate(points[0].formats)
    outcome = mixed(points, evaluate, BUDGET, known=[(0, first)])
    spent = {"calibration": len(case.calibration) / n, "damages": samples / n, "fp32": 1.0, "fastest": 1.0, "frontier": outcome.cost}
    seconds = time.monotonic() - started
    models = {"fp32": float_, "integer": integer}
    models |= {f"point {step.point}": maker.write(points[step.point].formats) for step in outcome.steps}
    if outcome.chosen is not None:
        models["chosen"] = maker.write(outcome.chosen.formats)
    control = {} if given.no_nncf else nncf_control(case, folder / f"{case.name}-nncf.onnx")
    if control and "error" not in control:
        models["nncf"] = folder / f"{case.name}-nncf.onnx"
    results = race([Variant(name, given.runtime, path, tuning) for name, path in models.items()], feeds, batch=given.batch, **FINAL)
    calls = {name: np.concatenate([np.asarray(turn) for turn in result.rounds]) for name, result in results.items() if result.usable}
    latency = {name: dict(zip(("q25_ms", "p50_ms"), 1e3 * np.quantile(each, (0.25, 0.5)), strict=True)) for name, each in calls.items()}
    names = ("fp32", "integer", "chosen", "nncf")
    confirmed = {} if case.confirming is None else {name: score(models[name], case.confirming) for name in names if name in models}
    report = {
        "form": case.form,
        "damage": kind,
        "accuracy": {name: score(path) for name, path in models.items()},
        "confirmed": confirmed,
        "latency": latency,
        "evaluations": {**spent, "total": sum(spent.values())},
        "seconds": seconds,
        "nncf": control,
        **told(points, outcome, table, maker.layout),
    }
    show(case, n, report)
    return report


def told(points: tuple[Assignment, ...], outcome: Outcome, table: LatencyTable, layout_: Layout) -> dict[str, Any]:
    """What the search saw, as data."""
    floats = {} if outcome.chosen is None else outcome.chosen.formats
    return {
        "frontier": [[point.predicted_damage, 1e3 * point.predicted_seconds] for point in points],
        "steps": [[step.point, step.expected, step.evidence.damage] for step in outcome.steps],
        "reason": outcome.reason,
        "left_in_float": [name for name in layout_.products if floats.get(name) == FLOAT],
        "products": len(layout_.products),
        "ns_per_element": 1e9 * table.per_element,
    }


def show(case: Case, n: int, report: Mapping[str, Any]) -> None:
    """A table; latency kept is the share of the integer model's gain over FP32 that is left."""
    latency, base = {name: each["q25_ms"] for name, each in report["latency"].items()}, report["accuracy"]["fp32"]
    print(f"\n{case.name}, {case.form}, searched on {n}; damage: {report['damage']}; {report['reason']}")
    gain = latency["fp32"] - latency["integer"]
    for name, value in report["accuracy"].items():
        kept = 100 * (latency["fp32"] - latency[name]) / gain if name in latency else float("nan")
        other = f"{100 * (report['confirmed']['fp32'] - report['confirmed'][name]):+6.2f}" if name in report["confirmed"] else "      "
        drop, ms = 100 * (base - value), latency.get(name, float("nan"))
        print(f"{name:10} drop {drop:+6.2f} points (confirmed {other}) {ms:8.3f} ms, {kept:4.0f} % of the gain")
    print(f"left in floating point: {len(report['left_in_float'])} of {report['products']} products")
    print("evaluations: " + ", ".join(f"{key} {value:.2f}" for key, value in report["evaluations"].items()))
    print(f"steps (point, expected, seen): {[[s[0], round(s[1], 4), round(s[2], 4)] for s in report['steps']]}")
    if report["nncf"]:
        print(f"nncf: {report['nncf']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=("resnet20", "mcunet"), default=["resnet20", "mcunet"])
    parser.add_argument("--runtime", default="openvino")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--folds", type=int, default=1, help="of mcunet, up to 5")
    parser.add_argument("--damage", choices=tuple(DAMAGES), default="sensitivity")
    parser.add_argument("--no-nncf", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    found: dict[str, Any] = {"command": sys.argv[1:], "cases": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = [resnet20(folder)] if "resnet20" in given.case else []
        cases += [mcunet(folder, fold) for fold in range(given.folds)] if "mcunet" in given.case else []
        for index, case in enumerate(cases):
            try:
                found["cases"].setdefault(case.name, []).append(run(case, given, folder / str(index)))
            except LowbitError as error:
                print(f"{case.name}: {error}", file=sys.stderr)
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
