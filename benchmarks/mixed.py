"""Mixed precision: how much of an integer model's speed is left once its accuracy is back, and what finding that out costs.

    python benchmarks/mixed.py --folds 5               what results/mixed.json keeps: about ten minutes on two idle cores
    python benchmarks/mixed.py --threads 1 --no-nncf   a quick look; one thread is disturbed less than two

resnet20        weights of 4 bits a channel, activations of 8, plain rounding, which loses several points on the degraded CIFAR-10
                images. CPU runtimes have no 4-bit kernels, so the 15 levels are stored as int8 and run at INT8's speed. Calibrated on
                100 training images, searched on 2,000 test images, confirmed on the other 8,000.
mcunet          INT8 with one scale a weight tensor, which loses 10 to 14 points. Transforms first, as the search does it: channels
                equalized, weights and biases fitted, and what that still loses is left to mixed precision. Calibrated on 100 of the 500
                ImageNet images, searched on the other 400; --folds 5 repeats that with every fifth and pools the scores.
mcunet-rounding the same from plain rounding, fold 0 only: mixed precision by itself.

Every product of a model may stay in floating point, 16 bit where the processor has it. Per case: damages, seconds of each group (a race
and runtime profiles), a frontier, at most five of its points evaluated end to end. Cost is counted in full evaluations: samples run
through a model over the samples it is searched on, rows and statistics for the transforms included, at most ten in all. Latencies of all
models come from one race at the end, in turn, beside NNCF's accuracy control with the same weights and budget (of the folds, in the
first: it takes minutes).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.compress.allocate import FLOAT, Assignment, between, frontier
from lowbit.compress.capture import capture, sites
from lowbit.compress.evidence import Evidence as Rows
from lowbit.compress.latency import LatencyTable, Layout, layout, measure_latency, starting_with
from lowbit.compress.mixed import MOST, Evidence, Outcome, mixed
from lowbit.compress.products import products
from lowbit.compress.sensitivity import sensitivity
from lowbit.compress.static import write_static
from lowbit.compress.transformed import transformed_sensitivity
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
from lowbit.recipe import QuantSpec, Recipe
from lowbit.runtimes import registry
from lowbit.runtimes.hardware import probe
from lowbit.types import Array, Batch, Tuning

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "mixed.json"
BUDGET = 0.01 + 1e-9
"""One point. The hair more is for 0.70 - 0.69, which is above 0.01 in floating point."""

MOST_EVALUATIONS = 10
"""In all, samples for damages, rows and statistics included."""
CASES = ("resnet20", "mcunet-rounding", "mcunet")


@dataclass(frozen=True)
class Case:
    """A model, the integer format that hurts it, whether transforms go first, and its samples."""

    name: str
    prepared: Path
    form: str
    per_channel: bool
    fitted: bool
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
    return Case("resnet20", prepare(source, folder / "resnet20.onnx"), "w4a8", True, False, *parts)


def mcunet(folder: Path, fold: int = 0, *, fitted: bool = True) -> Case:
    source = load_model(SHARED / "imagenet-models/mcunet-320kb-1mb.onnx")
    data = open_data(SHARED / "imagenet-sample", source.inputs, Preprocess.preset("inception"))
    order = np.random.default_rng(0).permutation(len(data))
    inside = np.arange(len(data)) % 5 == fold
    path = prepare(source, folder / "mcunet.onnx")
    return Case(
        "mcunet" if fitted else "mcunet-rounding",
        path,
        "w8a8",
        False,
        fitted,
        data.subset(order[inside]),
        data.subset(order[~inside]),
        None,
    )


class Counted:
    """Calibration samples, and how many of them have been handed out."""

    def __init__(self, data: Dataset) -> None:
        self.data, self.seen = data, 0

    def __call__(self) -> Iterator[Batch]:
        for batch in self.data.batches(20):
            self.seen += len(batch.rows)
            yield batch


# The integer model ---------------------------------------------------------------------------------------------------------


class Maker:
    """Writes the model of a case in given formats."""

    def __init__(self, case: Case, runtime: str, folder: Path) -> None:
        self.case, self.folder, self.target = case, folder, target_of(f"{runtime}-cpu")
        self.calibration = Counted(case.calibration)
        self.evidence = Rows(case.prepared, self.calibration)
        self.weights = QuantSpec("int8", "per-channel" if case.per_channel else "per-tensor", symmetric=True)
        self.ranges = self.evidence.stats.ranges("minmax")
        graph = ir_files.read(case.prepared).graph
        self.groups = find_groups(graph, self.target)
        self.layout: Layout = layout(graph, self.groups, self.target)
        self.made: dict[str, Path] = {}

    def plain(self, formats: Mapping[str, str]) -> Path:
        """Rounded, and no more."""
        return self._kept("plain", formats, self._round)

    def fitted(self, formats: Mapping[str, str]) -> Path:
        """Transformed first."""
        return self._kept("fitted", formats, self._fit)

    def write(self, formats: Mapping[str, str]) -> Path:
        return self.fitted(formats) if self.case.fitted else self.plain(formats)

    def _kept(self, kind: str, formats: Mapping[str, str], make: Callable[[Mapping[str, str], Path], object]) -> Path:
        key = json.dumps([kind, *(formats[name] for name in self.layout.products)])
        if key not in self.made:
            out = self.folder / f"{self.case.name}-{len(self.made)}.onnx"
            make(formats, out)
            self.made[key] = out
        return self.made[key]

    def recipe(self, formats: Mapping[str, str]) -> Recipe:
        kept = {name: FLOAT for name in self.layout.products if formats.get(name, FLOAT) == FLOAT}
        return Recipe("fitted", "static", self.weights, self.target.activations, "mse", transforms=("equalize", "fit"), formats=kept)

    def _fit(self, formats: Mapping[str, str], out: Path) -> None:
        write_static(self.evidence, out, self.recipe(formats), self.target)

    def _round(self, formats: Mapping[str, str], out: Path) -> None:
        model = ir_files.read(self.case.prepared)
        form = Format(self.weights, self.target.activations)

        def format_of(group: Group) -> Format | None:
            return None if formats.get(group.name, FLOAT) == FLOAT else form

        placement = place(model.graph, self.target, format_of, self.ranges)
        table = parameterize(placement, self.ranges.__getitem__, values_of(model), self._given(placement, values_of(model)))
        write_pairs(model, placement, table)
        ir_files.write(model, out)

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
    if case.fitted:
        recipe = maker.recipe(dict.fromkeys(maker.layout.products, case.form))
        found, _ = transformed_sensitivity(maker.evidence, recipe, maker.target, case.form, feeds, kind="classes", threads=1)
    else:
        found = sensitivity(case.prepared, maker.target, forms, maker.evidence.stats, feeds, kind="classes", threads=1)
    return dict(found.damage), found.passes * found.samples, f"sensitivity in {found.passes:.2f} passes"


def one_at_a_time(case: Case, maker: Maker) -> Damages:
    """Divergence of the outputs with one product quantized, over all calibration samples: exact and dear, to compare with."""
    runtime = registry.get("onnxruntime")

    def log_probabilities(formats: Mapping[str, str]) -> Array:
        session = runtime.open(maker.plain(formats), Tuning(threads=1))
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


def nncf_control(case: Case, out: Path, limit: float) -> dict[str, Any]:
    """Accuracy control by NNCF with the same budget and kind of weights; why not, where it refuses."""
    import nncf
    import onnx
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

    bits = 4 if case.form.startswith("w4") else 8
    weights = QuantizationParameters(num_bits=bits, per_channel=case.per_channel)
    counter = Counter(case.searching, limit)
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
        return {"error": f"{type(error).__name__}: {error}"[:300], **counter.spent(started)}
    spent = counter.spent(started)
    onnx.save(quantized, out)
    return {**spent, "quantized_nodes": sum(node.op_type == "QuantizeLinear" for node in quantized.graph.node)}


class TimeIsUpError(Exception):
    """NNCF's search has taken longer than it may."""


class Counter:
    """NNCF's validation function, which counts the samples it sees, and ends the search when its time is up."""

    def __init__(self, data: Dataset, limit: float) -> None:
        self.samples = [(batch.feeds, int(batch.labels[0])) for batch in data.batches(1) if batch.labels is not None]
        self.seen, self.deadline = 0, time.monotonic() + limit
        self.values: list[float] = []

    def __call__(self, model: Any, samples: Any) -> tuple[float, list[float]]:
        import openvino

        if time.monotonic() > self.deadline:
            raise TimeIsUpError(f"stopped after {len(self.values)} calls of the validation; accuracies seen: {self.values[-5:]}")
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        hits = [float(next(iter(compiled(feeds).values())).argmax() == label) for feeds, label in samples]
        self.seen += len(hits)
        self.values.append(float(np.mean(hits)))
        return self.values[-1], hits

    def spent(self, started: float) -> dict[str, float]:
        return {"evaluations": self.seen / len(self.samples), "seconds": time.monotonic() - started}


# A case from start to end ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What a search for mixed precision came to.

    Attributes:
        models: "integer" is plain rounding, "fitted" the transformed integers, "chosen" what was found.
        cost: In full evaluations, by what it was spent on.
        seconds: All of it took.
        details: What the search saw, as data.
    """

    models: Mapping[str, Path]
    cost: Mapping[str, float]
    seconds: float
    details: Mapping[str, Any]


class Search:
    """lowbit's way on a case: integers as they start, and where they are over budget, mixed precision."""

    def __init__(self, case: Case, given: argparse.Namespace, folder: Path) -> None:
        self.case, self.given = case, given
        native = [t for t in registry.get(given.runtime).tunings(probe()) if t.precision != "f32" and t.streams == 1]
        self.exact = Tuning(threads=given.threads, fixed_shape=given.runtime == "openvino")
        self.tuning = replace(self.exact, precision=native[0].precision) if native else self.exact
        self.started = time.monotonic()
        self.maker = Maker(case, given.runtime, folder)
        self.whole = dict.fromkeys(self.maker.layout.products, case.form)
        self.fp32 = self.maker.plain(dict.fromkeys(self.maker.layout.products, FLOAT))
        self.cost = {"fp32": 1.0}
        self.base = self.score(self.fp32, tuning=self.exact)

    def score(self, model: Path, data: Dataset | None = None, tuning: Tuning | None = None) -> float:
        return float(accuracy(model, data or self.case.searching, self.given.runtime, tuning or self.tuning).mean())

    def evaluate(self, formats: Mapping[str, str]) -> Evidence:
        return Evidence(self.base - self.score(self.maker.write(formats)))

    def run(self) -> Found:
        models = {"fp32": self.fp32, "integer": self.maker.plain(self.whole), "chosen": self.maker.write(self.whole)}
        if self.case.fitted:
            models["fitted"] = models["chosen"]
        start = self.evaluate(self.whole)
        self.cost["integers"] = 1.0
        details: dict[str, Any] = {"reason": "The integers hold.", "left_in_float": [], "products": len(self.whole), "steps": []}
        if start.damage > BUDGET:
            outcome, details = self.mixed(start)
            models.pop("chosen")
            if outcome.chosen is not None:
                models["chosen"] = self.maker.write(outcome.chosen.formats)
        self.cost["rows and statistics"] = self.maker.calibration.seen / len(self.case.searching)
        return Found(models, self.cost, time.monotonic() - self.started, details)

    def mixed(self, start: Evidence) -> tuple[Outcome, dict[str, Any]]:
        case, given, maker, n = self.case, self.given, self.maker, len(self.case.searching)
        feeds = next(iter(case.searching.batches(given.batch))).feeds
        damage, samples, kind = DAMAGES[given.damage](case, maker)
        table = measure_latency(maker.layout, [case.form], maker.plain, given.runtime, feeds, batch=given.batch, tuning=self.tuning)
        costs = damage, table.seconds, table.boundaries
        points = starting_with(case.form, frontier(*costs), damage, table, maker.layout)
        self.cost["damages"] = samples / n
        spent = sum(self.cost.values()) + maker.calibration.seen / n
        each = 1 + case.fitted * len(case.calibration) / n  # a model that is equalized elsewhere is calibrated anew
        most = min(MOST, int((MOST_EVALUATIONS - spent) / each))
        outcome = mixed(points, self.evaluate, BUDGET, most, [(0, start)], lambda fast, slow: between(*costs, fast, slow))
        self.cost["frontier"] = outcome.cost
        return outcome, {"damage": kind, **told(points, outcome, table, maker.layout)}


def run(case: Case, given: argparse.Namespace, folder: Path, *, beside: bool) -> dict[str, Any]:
    """A case from start to end; with NNCF's accuracy control where it is wanted `beside`."""
    search = Search(case, given, folder)
    found = search.run()
    models = dict(found.models)
    control = nncf_control(case, folder / f"{case.name}-nncf.onnx", given.nncf_limit) if beside else {}
    if control and "error" not in control:
        models["nncf"] = folder / f"{case.name}-nncf.onnx"
    models.setdefault(search.tuning.precision, search.fp32)  # nothing but 16 bit, where there is that: the other end of the scale
    models.pop("f32", None)
    tunings = {name: search.exact if name == "fp32" else search.tuning for name in models}
    feeds = next(iter(case.searching.batches(given.batch))).feeds
    variants = [Variant(name, given.runtime, path, tunings[name]) for name, path in models.items()]
    results = race(variants, feeds, batch=given.batch, **FINAL)
    calls = {name: np.concatenate([np.asarray(turn) for turn in result.rounds]) for name, result in results.items() if result.usable}
    latency = {name: dict(zip(("q25_ms", "p50_ms"), 1e3 * np.quantile(each, (0.25, 0.5)), strict=True)) for name, each in calls.items()}
    kept = models if case.confirming is not None else {}
    report = {
        "form": case.form,
        "float": search.tuning.precision,
        "threads": given.threads,
        "searched_on": len(case.searching),
        "accuracy": {name: search.score(path, tuning=tunings[name]) for name, path in models.items()},
        "confirmed": {name: search.score(path, case.confirming, tunings[name]) for name, path in kept.items()},
        "latency": latency,
        "evaluations": {**found.cost, "total": sum(found.cost.values())},
        "seconds": found.seconds,
        "nncf": control,
        **found.details,
    }
    show(case.name, report)
    return report


def told(points: tuple[Assignment, ...], outcome: Outcome, table: LatencyTable, layout_: Layout) -> dict[str, Any]:
    """What the search saw, as data."""
    floats = {} if outcome.chosen is None else outcome.chosen.formats
    return {
        "frontier": [[point.predicted_damage, 1e3 * point.predicted_seconds] for point in points],
        "steps": [[1e3 * step.point.predicted_seconds, step.expected, step.evidence.damage] for step in outcome.steps],
        "reason": outcome.reason,
        "left_in_float": [name for name in layout_.products if floats.get(name) == FLOAT],
        "products": len(layout_.products),
        "ns_per_element": 1e9 * table.per_element,
    }


def gains(report: Mapping[str, Any]) -> dict[str, float]:
    """Model -> share of the integer model's gain over FP32 that is left."""
    latency = {name: each["q25_ms"] for name, each in report["latency"].items()}
    return {name: (latency["fp32"] - each) / (latency["fp32"] - latency["integer"]) for name, each in latency.items()}


def show(name: str, report: Mapping[str, Any]) -> None:
    """A table."""
    base, kept = report["accuracy"]["fp32"], gains(report)
    print(f"\n{name}, {report['form']} and {report['float']}, searched on {report['searched_on']}; {report['reason']}")
    for model, value in report["accuracy"].items():
        confirmed = report["confirmed"].get(model)
        other = "" if confirmed is None else f" (confirmed {100 * (report['confirmed']['fp32'] - confirmed):+6.2f})"
        ms = report["latency"].get(model, {}).get("q25_ms", float("nan"))
        share = 100 * kept.get(model, float("nan"))
        print(f"{model:10} drop {100 * (base - value):+6.2f} points{other} {ms:8.3f} ms, {share:4.0f} % of the gain")
    print(f"left in floating point: {len(report['left_in_float'])} of {report['products']} products")
    print(f"{report['seconds']:.0f} s; evaluations: " + ", ".join(f"{key} {value:.2f}" for key, value in report["evaluations"].items()))
    print(f"steps (predicted ms, expected, seen): {[[round(number, 4) for number in step] for step in report['steps']]}")
    if report["nncf"]:
        print(f"nncf: {report['nncf']}", flush=True)


def pooled(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the folds in which a model is there, and in how many that is."""
    found: dict[str, Any] = {}
    for name in sorted({name for report in reports for name in report["accuracy"]} - {"fp32"}):
        own = [report for report in reports if name in report["accuracy"]]
        drops = [report["accuracy"]["fp32"] - report["accuracy"][name] for report in own]
        shares = [gains(report)[name] for report in own if name in report["latency"]]
        found[name] = {"drop": float(np.mean(drops)), "gain_kept": float(np.mean(shares)), "folds": len(own)}
    found["evaluations"] = [report["evaluations"]["total"] for report in reports]
    found["nncf_evaluations"] = [report["nncf"]["evaluations"] for report in reports if report["nncf"]]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--runtime", default="openvino")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--folds", type=int, default=1, help="of mcunet, up to 5")
    parser.add_argument("--damage", choices=tuple(DAMAGES), default="sensitivity")
    parser.add_argument("--no-nncf", action="store_true")
    parser.add_argument("--nncf-limit", type=float, default=120.0, help="seconds of its accuracy control, about")
    parser.add_argument("--resume", action="store_true", help="keep the folds that the results have already")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    found: dict[str, Any] = {"command": sys.argv[1:], "cases": {}}
    if given.resume and given.out.exists():
        found = json.loads(given.out.read_text())
    done = {name: len(reports) for name, reports in found["cases"].items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = [resnet20(folder)] if "resnet20" in given.case else []
        cases += [mcunet(folder, fitted=False)] if "mcunet-rounding" in given.case else []
        cases += [mcunet(folder, fold) for fold in range(given.folds)] if "mcunet" in given.case else []
        for index, case in enumerate(cases):
            if done.get(case.name, 0) > 0:
                done[case.name] -= 1
                continue
            try:
                known = found["cases"].setdefault(case.name, [])
                beside = not given.no_nncf and not known and case.name != "mcunet-rounding"  # which is mcunet's first fold again
                known.append(run(case, given, folder / str(index), beside=beside))
            except LowbitError as error:
                print(f"{case.name}: {error}", file=sys.stderr)
            found["pooled"] = {name: pooled(reports) for name, reports in found["cases"].items()}
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found.get("pooled"), indent=1))


if __name__ == "__main__":
    main()
