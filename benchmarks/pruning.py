"""Pruning before INT8, on the demo model: what it gains over INT8 alone, and what it costs.

    python benchmarks/pruning.py                                       what results/pruning.json keeps: about 15 minutes on two idle cores
    python benchmarks/pruning.py --minutes 1 --samples 4000 --out -    a quick look
    python benchmarks/pruning.py --work build/pruning                  one that can be stopped: the same command goes on

The model is the demo's ResNet for Fashion-MNIST (40, 80 and 160 channels, 126 million multiplications). It learns, without labels, from
the FP32 model on training images; 256 of them calibrate. Accuracies are of the 10,000 test images, which nothing else has seen. What is
cut where follows the runtime's profile of the INT8 model, and every cut is measured: an INT8 model of it races the whole one. Latencies
come from one race at the end, each model in its own process; beside them the processor time of a call on one thread, which tells the
same on a machine that has other things to do.

Beside it, before any training: the accuracy that is left right after one cut to that share of the predicted time, with channels ranked
by the Fisher information, by the size of their weights, and at random; and of the first round's cut, which may be deeper, because it is
measured, before and after what is left was fitted to the whole model.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowbit.compress.evidence import Evidence
from lowbit.compress.static import write_static
from lowbit.graph import ir_files
from lowbit.graph.channel_sets import Channels
from lowbit.graph.channels import channels_of, prune
from lowbit.graph.load import load_model
from lowbit.graph.prepare import prepare
from lowbit.graph.profiles import profile as target_of
from lowbit.measure.profile import profile
from lowbit.measure.race import FINAL, QUICK, Effort, Variant, measurement, race
from lowbit.pipeline.recipes import fitted, static
from lowbit.pipeline.training import SHARE
from lowbit.recipe import Recipe
from lowbit.runtimes import registry
from lowbit.train.importance import importance
from lowbit.train.pool import Pool
from lowbit.train.prune import TRAINING, Pruning, Round, shrink
from lowbit.train.prune_choose import choose, cost, rates, seconds_of
from lowbit.train.twin import Twin
from lowbit.types import Array, Batch, Tuning

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT.parent / "shared" / "data" / "fashion-mnist"
MODEL = ROOT / "src" / "lowbit" / "demo" / "resnet_fashion.onnx"
RESULTS = Path(__file__).parent / "results" / "pruning.json"
CALIBRATION = 256
TURNS, CALLS = 15, 400
MEAN, DEVIATION = 0.2860, 0.3530


def idx(name: str) -> Array:
    """An array in the IDX format: two zeros, a type, the number of axes, their sizes, the values."""
    raw = gzip.decompress((IMAGES / name).read_bytes())
    sizes = np.frombuffer(raw, ">i4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)


def images(kind: str) -> Array:
    """float32 [N, 1, 28, 28], as the model takes them."""
    return ((idx(f"{kind}-images-idx3-ubyte.gz")[:, None].astype(np.float32) / 255 - MEAN) / DEVIATION).astype(np.float32)


@dataclass(frozen=True)
class Bench:
    """Data and target of all that is made here."""

    name: str
    calibration: Array
    test: Array
    labels: Array
    runtime: str
    tuning: Tuning
    folder: Path

    def integer(self, model: Path, recipe: Recipe) -> Path:
        """INT8 of a prepared FP32 model."""
        batches = [Batch(np.arange(len(self.calibration)), {self.name: self.calibration}, None)]
        out = self.folder / f"{model.stem}-{recipe.name}.onnx"
        write_static(Evidence(model, lambda: batches), out, recipe, target_of(f"{self.runtime}-cpu"))
        return out

    def right(self, model: Path) -> Array:
        """Whether each test image is answered right."""
        session = registry.get(self.runtime).open(model, Tuning(threads=self.tuning.threads))
        parts = [session.run({self.name: self.test[start : start + 200]}) for start in range(0, len(self.test), 200)]
        found: Array = np.concatenate([next(iter(part.values())).argmax(1) for part in parts]) == self.labels
        return found

    def race(self, models: Mapping[str, Path], batch: int, effort: Effort) -> dict[str, Any]:
        """Milliseconds of every model, and how much faster than the first it is."""
        variants = [Variant(name, self.runtime, path, self.tuning) for name, path in models.items()]
        results = race(variants, {self.name: self.test[:batch]}, batch=batch, **effort)
        base = results[next(iter(models))]
        seen = {name: measurement(result, base) for name, result in results.items()}
        return {
            name: {
                "p50_ms": each.latency_ms.p50,
                "speedup": [each.speedup.value, each.speedup.ci_low, each.speedup.ci_high] if each.speedup else None,
                "noisy": each.noisy,
            }
            for name, each in seen.items()
        }

    def processor_time(self, models: Mapping[str, Path], batch: int) -> dict[str, Any]:
        """Milliseconds of processor time a call takes on one thread, in turns: what other load does to a clock does not count in it."""
        feeds, tuning = {self.name: self.test[:batch]}, replace(self.tuning, threads=1)
        sessions = {name: registry.get(self.runtime).open(path, tuning, batch) for name, path in models.items()}
        spent: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(TURNS + 1):
            for name, session in sessions.items():
                start = time.process_time()
                for _ in range(max(1, CALLS // batch)):
                    session.run(feeds)
                if turn:  # the first warms up
                    spent[name].append(1e3 * (time.process_time() - start) / max(1, CALLS // batch))
        rng, first = np.random.default_rng(0), np.array(spent[next(iter(models))])
        found = {}
        for name, each in spent.items():
            ratio = first / np.array(each)
            low, high = np.quantile(np.median(ratio[rng.integers(0, TURNS, (2000, TURNS))], 1), (0.025, 0.975))
            found[name] = {"p50_ms": float(np.median(each)), "speedup": [float(np.median(ratio)), float(low), float(high)]}
        return found

    def share(self, whole: Path, model: Path, batches: Sequence[int]) -> float:
        """Time of an INT8 model as a share of the whole one's: the worst over batch sizes."""
        quick = {"whole": whole, "cut": self.integer(model, static("minmax"))}
        return max(1 / self.race(quick, batch, QUICK)["cut"]["speedup"][0] for batch in batches)


def sizes(prepared: Path, found: Channels) -> dict[str, Array]:
    """Set -> sum of |w| over everything that a channel is made of and read by: what magnitude pruning ranks by."""
    graph, total = ir_files.read(prepared).graph, np.zeros(found.count)
    for cut in found.cuts:
        value = graph.initializers[cut.constant].const_value
        assert value is not None
        array = np.abs(value.numpy())
        np.add.at(total, cut.channels, array.sum(axis=tuple(axis for axis in range(array.ndim) if axis != cut.axis)))
    return {each.name: total[each.channels] for each in found.sets}


def untrained(bench: Bench, prepared: Path, pool: Pool, seconds: Mapping[str, float], given: argparse.Namespace) -> dict[str, float]:
    """Accuracy right after one cut to the given share of the products' time, by what channels are ranked by."""
    found = channels_of(ir_files.read(prepared).graph)
    costs = rates(found, seconds, given.block)
    budget = given.share * cost(found, np.ones(found.count, bool), costs, given.block)
    rng = np.random.default_rng(0)
    worths = {
        "fisher": importance(Twin(prepared), pool.take(np.arange(512)), found),
        "weights": sizes(prepared, found),
        "random": {each.name: rng.random(len(each.channels)) for each in found.sets},
    }
    left = {}
    for name, worth in worths.items():
        model, out = ir_files.read(prepared), bench.folder / f"untrained-{name}.onnx"
        prune(model, choose(found, worth, costs, budget, block=given.block))
        ir_files.write(model, out)
        left[name] = float(bench.right(out).mean())
    return left


def told(each: Round) -> dict[str, Any]:
    losses = [epoch.held_out_loss for epoch in each.trained.history]
    return {
        "widths": dict(each.widths),
        "repaired": {name: list(errors) for name, errors in each.repaired.items()},
        "predicted_share": each.predicted,
        "measured_share": each.measured,
        "held_out_loss": losses,
        "held_out_agreement": each.agreement,
        "train_seconds": each.trained.seconds,
        "stopped": each.trained.reason,
    }


def interval(base: Array, other: Array, seed: int = 0) -> list[float]:
    """Points lost, with a paired bootstrap's 95 % interval."""
    lost = 100 * (base.astype(float) - other.astype(float))
    draws = np.random.default_rng(seed).integers(0, len(lost), (2000, len(lost)), np.int32)
    low, high = np.quantile(lost[draws].mean(1), (0.025, 0.975))
    return [float(lost.mean()), float(low), float(high)]


def run(bench: Bench, prepared: Path, pool: Pool, given: argparse.Namespace) -> dict[str, Any]:
    started = time.monotonic()
    recipe = fitted("mse")
    alone, plain = bench.integer(prepared, recipe), bench.integer(prepared, static("minmax"))
    kernels = profile(Variant("whole", given.runtime, plain, bench.tuning), {bench.name: bench.test[:1]}, batch=1)
    seconds = seconds_of(kernels, channels_of(ir_files.read(prepared).graph))
    left = untrained(bench, prepared, pool, seconds, given)
    training = replace(TRAINING, epochs=given.epochs, minutes=given.minutes / given.rounds, weight_rate=given.rate)
    settings = Pruning(share=given.share, rounds=given.rounds, block=given.block, training=training)
    rounds: list[dict[str, Any]] = []

    def note(each: Round) -> None:
        rounds.append(told(each))
        print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)

    small = bench.folder / "pruned.onnx"
    shrink(
        prepared,
        small,
        pool,
        settings,
        seconds=seconds,
        share_of=lambda path: bench.share(plain, path, given.batches),
        folder=given.work or bench.folder,
        on_round=note,
        on_epoch=lambda epoch: print(f"  {epoch}", file=sys.stderr, flush=True),
    )
    for name, file in (("round 1, cut", "cut-round-1.onnx"), ("round 1, cut and fitted", "round-1.onnx")):
        left[name] = float(bench.right((given.work or bench.folder) / file).mean())
    models = {"int8": alone, "pruned+int8": bench.integer(small, recipe), "fp32": prepared, "pruned fp32": small}
    right = {name: bench.right(path) for name, path in models.items()}
    latency = {str(batch): bench.race(models, batch, FINAL) for batch in given.batches}
    first = next(iter(latency.values()))
    lost = interval(right["int8"], right["pruned+int8"])
    faster = all(each["pruned+int8"]["speedup"][1] > 1 for each in latency.values())
    return {
        "settings": {key: value for key, value in vars(given).items() if key not in ("out", "work")},
        "images": {"learned_from": len(pool), "labels": "not used", "calibration": len(bench.calibration), "test": len(bench.test)},
        "profile": {
            "products_share": sum(seconds.values()) / sum(kernel.seconds for kernel in kernels),
            "call_ms": first["int8"]["p50_ms"],
            "kernels_ms": 1e3 * sum(kernel.seconds for kernel in kernels),
            "ms": {kernel.name: 1e3 * kernel.seconds for kernel in kernels},
        },
        "rounds": rounds,
        "accuracy_untrained": left,
        "accuracy": {name: float(each.mean()) for name, each in right.items()},
        "kept": faster and lost[2] <= given.budget,
        "points_lost_to_int8": lost,
        "points_lost_to_fp32": interval(right["fp32"], right["pruned+int8"]),
        "latency": latency,
        "processor_time_one_thread": {
            str(batch): bench.processor_time({name: models[name] for name in ("int8", "pruned+int8")}, batch) for batch in given.batches
        },
        "size_bytes": {name: path.stat().st_size for name, path in models.items()},
        "seconds": time.monotonic() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=SHARE, help="of INT8's time that may be left")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--block", type=int, default=16, help="widths come down to multiples of it")
    parser.add_argument("--minutes", type=float, default=15.0, help="of training, all rounds together")
    parser.add_argument("--epochs", type=int, default=3, help="most of a round")
    parser.add_argument("--rate", type=float, default=TRAINING.weight_rate)
    parser.add_argument("--samples", type=int, default=20000, help="training images to learn from")
    parser.add_argument("--budget", type=float, default=1.0, help="points that may be lost to INT8 alone, by the end of the interval")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--runtime", choices=("openvino", "onnxruntime"), default="openvino")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--work", type=Path, help="keeps cuts and checkpoints there")
    parser.add_argument("--out", default=str(RESULTS), help="where results go; - for nowhere")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    learning = images("train")
    chosen = np.random.default_rng(0).permutation(len(learning))
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(MODEL)
        bench = Bench(
            model.inputs[0].name,
            learning[chosen[:CALIBRATION]],
            images("t10k"),
            idx("t10k-labels-idx1-ubyte.gz"),
            given.runtime,
            Tuning(threads=given.threads, fixed_shape=given.runtime == "openvino"),
            Path(folder),
        )
        pool = Pool({bench.name: learning[chosen[: given.samples]]}, images=True)
        report = run(bench, prepare(model, Path(folder) / "whole.onnx"), pool, given)
    text = json.dumps(report, indent=2)
    print(text)
    if given.out != "-":
        Path(given.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
