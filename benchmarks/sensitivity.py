"""Sensitivity: does a ranking of groups from three passes agree with quantizing every group alone and evaluating it?

    python benchmarks/sensitivity.py [--only resnet20 minilm mcunet] [--samples N]

Brute force writes one QDQ model a group and format with the product's own writer, everything else in floating point, and runs it on
samples that calibration never saw: onnxruntime on one thread, its optimizer off (it rewrites partly quantized graphs). What it finds, the
KL divergence of the outputs (MiniLM: 1 - cosine), is compared with the damage that `lowbit.compress.sensitivity` measures on the
calibration samples: Spearman's rank correlation over groups, its interval by resampling the samples of the brute force. Three seeds.
Cost is counted in passes of one sample, and in CPU seconds. MiniLM needs what `make full` installs. About twenty minutes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from panel.paths import RESULTS, SHARED
from panel.subjects import images, minilm
from scipy.stats import spearmanr

from lowbit.compress.calibrate import CalibrationStats, calibrate
from lowbit.compress.damage import Judge, Kind
from lowbit.compress.sensitivity import Sensitivity, sensitivity
from lowbit.graph import ir_files
from lowbit.graph.load import load_model
from lowbit.graph.parameterize import parameterize
from lowbit.graph.place import Format, place
from lowbit.graph.prepare import prepare
from lowbit.graph.profiles import ONNXRUNTIME_CPU
from lowbit.graph.qdq import values_of, write_pairs
from lowbit.recipe import QuantSpec
from lowbit.types import Batch

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
BATCH, RESAMPLES, SEEDS = 25, 1000, 3
OUT = RESULTS / "sensitivity.json"
UINT8 = QuantSpec("uint8")
CHANNELS = {
    "w8a8": Format(QuantSpec("int8", "per-channel", symmetric=True), UINT8),
    "w4a8": Format(QuantSpec("int4", "per-channel", symmetric=True), UINT8),
}
TENSORS = {"w8a8-tensor": Format(QuantSpec("int8", symmetric=True), UINT8)}


@dataclass(frozen=True)
class Case:
    """A model, samples to calibrate with, others to evaluate on, and what is tried."""

    model: Path
    calibration: Feeds
    scoring: Feeds
    kind: Kind
    formats: Mapping[str, Format]


def resnet20() -> Case:
    train, test = (images.pixels(SHARED / "cifar10" / f"cifar10_{p}.npz", "input", (32, 32), "imagenet")[0] for p in ("train5k", "test10k"))
    return Case(SHARED / "cifar10-resnet" / "resnet20.onnx", {"input": train[:512]}, {"input": test[:512]}, "classes", CHANNELS)


def mcunet() -> Case:
    found, _ = images.pixels(images.IMAGES, "input", (176, 176), "inception")
    order = np.random.default_rng(0).permutation(len(found))
    model = SHARED / "imagenet-models" / "mcunet-320kb-1mb.onnx"
    return Case(model, {"input": found[order[:100]]}, {"input": found[order[100:300]]}, "classes", TENSORS)


def sentences() -> Case:
    pool = minilm.pool()
    split = pool.splits[0]
    return Case(minilm.model(), pool.rows(split.calibration), pool.rows(split.validation[:300]), "embedding", CHANNELS)


CASES: dict[str, Callable[[], Case]] = {"resnet20": resnet20, "mcunet": mcunet, "minilm": sentences}


def cut(feeds: Feeds, size: int = BATCH) -> list[Feeds]:
    count = len(next(iter(feeds.values())))
    return [{name: values[start : start + size] for name, values in feeds.items()} for start in range(0, count, size)]


def session(model: Path, optimized: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def alone(prepared: Path, group: str, form: Format, stats: CalibrationStats, out: Path) -> Path:
    """A model in which one group is quantized."""
    model = ir_files.read(prepared)
    placement = place(model.graph, ONNXRUNTIME_CPU, lambda g: form if g.name == group else None, set(stats.tensors))
    assert list(placement.formats) == [group]
    write_pairs(model, placement, parameterize(placement, lambda t: stats.range(t, "minmax"), values_of(model)))
    ir_files.write(model, out)
    return out


def brute_force(
    case: Case, prepared: Path, stats: CalibrationStats, pairs: Sequence[tuple[str, str]], folder: Path
) -> dict[tuple[str, str], Array]:
    """Damage of every scoring sample [n], for every group in every format."""
    batches = cut(case.scoring)
    plain = session(prepared, optimized=False)
    judge = Judge([plain.run(None, feeds) for feeds in batches], case.kind)
    found = {}
    for group, name in pairs:
        quantized = session(alone(prepared, group, case.formats[name], stats, folder / "alone.onnx"), optimized=False)
        found[group, name] = judge.own([quantized.run(None, feeds) for feeds in batches])
    return found


def agreement(measured: Sequence[Sensitivity], truth: Mapping[tuple[str, str], Array], name: str) -> dict[str, Any]:
    """Spearman's correlation over groups, by seed, and the interval of the first."""
    groups = [group for group, form in truth if form == name]
    table = np.stack([truth[group, name] for group in groups])
    by_seed = [[one.damage[group, name] for group in groups] for one in measured]
    rng = np.random.default_rng(0)
    again = [spearmanr(by_seed[0], table[:, rng.integers(table.shape[1], size=table.shape[1])].mean(1))[0] for _ in range(RESAMPLES)]
    low, high = np.quantile(again, [0.025, 0.975])
    noise = [-measured[0].local_sqnr[group, name] for group in groups]
    half = table.shape[1] // 2
    return {
        "groups": len(groups),
        "spearman": [float(spearmanr(one, table.mean(1))[0]) for one in by_seed],
        "ci_low": float(low),
        "ci_high": float(high),
        "spearman_of_local_error_alone": float(spearmanr(noise, table.mean(1))[0]),
        "spearman_between_halves_of_the_brute_force": float(spearmanr(table[:, :half].mean(1), table[:, half:].mean(1))[0]),
        "scale": float(np.median(np.array(by_seed[0]) / np.maximum(table.mean(1), 1e-15))),
        "worst": sorted(groups, key=lambda g: -measured[0].damage[g, name])[:3],
        "worst_by_brute_force": sorted(groups, key=lambda g: -float(truth[g, name].mean()))[:3],
    }


def cpu(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return call(), time.process_time() - start


def run(name: str, samples: int | None) -> dict[str, Any]:
    case = CASES[name]()
    scoring = {key: values[:samples] for key, values in case.scoring.items()}
    case = Case(case.model, case.calibration, scoring, case.kind, case.formats)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(load_model(case.model), Path(folder) / "prepared.onnx")
        batches = cut(case.calibration)
        numbered = [Batch(np.arange(len(next(iter(feeds.values())))), feeds, None) for feeds in batches]
        stats = calibrate(prepared, numbered, methods=["minmax"], threads=1)
        plain = session(prepared, optimized=True)
        _, pass_seconds = cpu(lambda: [plain.run(None, feeds) for feeds in batches])
        measured, seconds = [], []
        for seed in range(SEEDS):
            found, spent = cpu(
                lambda seed=seed: sensitivity(prepared, ONNXRUNTIME_CPU, case.formats, stats, batches, kind=case.kind, seed=seed, threads=1)
            )
            measured.append(found)
            seconds.append(spent)
        truth, brute_seconds = cpu(lambda: brute_force(case, prepared, stats, list(measured[0].damage), Path(folder)))
    n = len(next(iter(case.scoring.values())))
    return {
        "calibration_samples": measured[0].samples,
        "brute_force_samples": n,
        "kind": case.kind,
        "samples_a_group": measured[0].each,
        "passes": measured[0].passes,
        "sample_passes": round(measured[0].passes * measured[0].samples),
        "brute_force_passes": len(truth),
        "brute_force_sample_passes": len(truth) * n,
        "cpu_seconds": min(seconds),
        "cpu_seconds_of_a_plain_pass": pass_seconds,
        "cpu_seconds_of_brute_force": brute_seconds,
        "formats": {form: agreement(measured, truth, form) for form in case.formats},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--samples", type=int, help="of the brute force; all by default")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {}
    for name in options.only:
        found = run(name, options.samples)
        results[name] = found
        ratio = found["cpu_seconds"] / found["cpu_seconds_of_a_plain_pass"]
        cost = f"{found['passes']:.2f} passes ({found['sample_passes']} samples, CPU of {ratio:.1f} plain passes)"
        print(f"{name}: {cost} against {found['brute_force_passes']} passes, {found['samples_a_group']} samples a group")
        for form, row in found["formats"].items():
            seeds = ", ".join(f"{value:.3f}" for value in row["spearman"])
            print(f"  {form:<12} Spearman {seeds}  [{row['ci_low']:.3f}, {row['ci_high']:.3f}]", end="")
            print(f"  local error alone {row['spearman_of_local_error_alone']:.2f}", flush=True)
        OUT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
