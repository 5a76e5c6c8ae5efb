"""Training by distillation: how much of what low bits lose comes back, without labels, within minutes.

    python benchmarks/qat.py                       all cases, more than an hour on two quiet cores
    python benchmarks/qat.py --only resnet20-w3a8  one of them
    python benchmarks/qat.py --minutes 2           shorter trainings

resnet20-w4a8, resnet20-w3a8
    weights a channel, activations of 8 bits. Calibrated on 100 of the 5,000 training images, trained on all of them without their
    labels, scored on the 10,000 test images: top-1 and agreement with FP32, of the shipped file on onnxruntime.
resnet20-w4a8-labels, resnet20-w3a8-labels
    the same, trained on the labels and without a teacher: as the peers train.
mcunet-per-tensor
    INT8 with one scale a weight tensor. Two halves of the 500 ImageNet images: calibrated and trained on one, scored on the other,
    swapped, pooled.

Beside each other: rounding to nearest (min-max ranges), our transforms with fitted rounding (no training), and training from there. And the
trainer's own accuracy (the torch twin's) next to that of the file, on the same samples. With --peers also PT2E's quantization-aware
training on the same images with their labels, in an environment of its own. Results: benchmarks/results/qat.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowbit.compress.evidence import Evidence
from lowbit.compress.static import write_static
from lowbit.data import Dataset, Preprocess, open_data
from lowbit.graph.load import load_model
from lowbit.graph.prepare import prepare
from lowbit.graph.profiles import ONNXRUNTIME_CPU
from lowbit.recipe import Dtype, Granularity, QuantSpec, Recipe, Transform
from lowbit.runtimes import registry
from lowbit.train.pool import Pool
from lowbit.train.qat import Settings, Trained, train
from lowbit.train.twin import Twin
from lowbit.train.write_back import write_back
from lowbit.types import Array, RangeMethod, Tuning

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "qat.json"
READ = 100
Numbers = dict[str, Any]


@dataclass(frozen=True)
class Fold:
    """What one training learns from and is scored on."""

    prepared: Path
    calibration: Dataset
    training: Dataset
    scoring: Dataset


@dataclass(frozen=True)
class Case:
    """A format that hurts a model, and how it is trained."""

    name: str
    weights: Dtype
    granularity: Granularity
    settings: Settings
    peer: str | None = None
    labels: bool = False

    def recipe(self, ranges: RangeMethod, *, fitted: bool) -> Recipe:
        transforms: tuple[Transform, ...] = ("equalize", "fit") if fitted else ()
        weights = QuantSpec(self.weights, self.granularity, symmetric=True)
        return Recipe(self.name, "static", weights, QuantSpec("uint8"), ranges, transforms=transforms)


GENTLE = Settings(epochs=40, batch=8, weight_rate=0.02, scale_rate=1e-4, held_out=0.2, patience=20)
"""For 250 images: small batches make many steps of them, and a fifth judges, as a tenth would be 25 images."""

LABELS = Settings(weight_rate=0.1, label_share=1.0)
"""The labels alone, as those train who have no teacher."""

CASES = (
    Case("resnet20-w4a8", "int4", "per-channel", Settings(weight_rate=0.1), "resnet20-w4a8"),
    Case("resnet20-w3a8", "int3", "per-channel", Settings(weight_rate=0.1), "resnet20-w3a8"),
    Case("resnet20-w4a8-labels", "int4", "per-channel", LABELS, "resnet20-w4a8", labels=True),
    Case("resnet20-w3a8-labels", "int3", "per-channel", LABELS, "resnet20-w3a8", labels=True),
    Case("mcunet-per-tensor", "int8", "per-tensor", GENTLE),
)


def folds(case: Case, folder: Path) -> list[Fold]:
    if case.name.startswith("resnet20"):
        source, steps = load_model(SHARED / "cifar10-resnet/resnet20.onnx"), Preprocess.preset("imagenet")
        training = open_data(SHARED / "cifar10/cifar10_train5k.npz", source.inputs, steps)
        scoring = open_data(SHARED / "cifar10/cifar10_test10k.npz", source.inputs, steps)
        calibration = training.subset(np.random.default_rng(0).permutation(len(training))[:100])
        return [Fold(prepare(source, folder / "resnet20.onnx"), calibration, training, scoring)]
    source = load_model(SHARED / "imagenet-models/mcunet-320kb-1mb.onnx")
    data = open_data(SHARED / "imagenet-sample", source.inputs, Preprocess.preset("inception"))
    halves = np.array_split(np.random.default_rng(0).permutation(len(data)), 2)
    path = prepare(source, folder / "mcunet.onnx")
    parts = [data.subset(half) for half in halves]
    return [Fold(path, ours, ours, theirs) for ours, theirs in (parts, parts[::-1])]


def answers(path: Path, feeds: Mapping[str, Array], runtime: str = "onnxruntime") -> Array:
    """The class that the file gives each sample, with all of the runtime's optimizations."""
    session = registry.get(runtime).open(path, Tuning(), None)
    try:
        count = len(next(iter(feeds.values())))
        found = [session.run({name: each[i : i + READ] for name, each in feeds.items()}) for i in range(0, count, READ)]
    finally:
        session.close()
    return np.concatenate([next(iter(each.values())).argmax(1) for each in found])


@torch.no_grad()
def twin_answers(twin: Twin, feeds: Mapping[str, Array]) -> Array:
    """The same of a torch twin: what the trainer believes."""
    count, found = len(next(iter(feeds.values()))), []
    for start in range(0, count, READ):
        outputs = twin({name: _laid_out(torch.from_numpy(each[start : start + READ])) for name, each in feeds.items()})
        found.append(next(iter(outputs.values())).argmax(1).numpy())
    return np.concatenate(found)


def _laid_out(values: torch.Tensor) -> torch.Tensor:
    """Channels last, which torch's convolutions are faster with; the values are the same."""
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


def arrays(data: Dataset) -> tuple[dict[str, Array], Array]:
    batches = list(data.batches(READ))
    assert data.labels is not None
    return {name: np.concatenate([batch.feeds[name] for batch in batches]) for name in batches[0].feeds}, data.labels


def run(case: Case, fold: Fold, folder: Path) -> Numbers:
    """One training; classes that each version gives the scored samples."""
    evidence = Evidence(fold.prepared, lambda: fold.calibration.batches(8))
    plain, fitted, learned = (folder / f"{name}.onnx" for name in ("plain", "fitted", "learned"))
    write_static(evidence, plain, case.recipe("minmax", fitted=False), ONNXRUNTIME_CPU)
    write_static(evidence, fitted, case.recipe("mse", fitted=True), ONNXRUNTIME_CPU)
    feeds, labels = arrays(fold.scoring)
    student = Twin(fitted, recipe=case.recipe("mse", fitted=True))
    started = time.perf_counter()
    images, classes = arrays(fold.training)
    pool = Pool(images, classes if case.labels else None, images=True)
    found: Trained = train(student, Twin(fold.prepared), pool, case.settings, on_epoch=say)
    seconds = time.perf_counter() - started
    print(f"  {found.summary}", file=sys.stderr)
    write_back(student, fitted, learned)
    versions = {"fp32": fold.prepared, "plain": plain, "fitted": fitted, "trained": learned}
    given = {name: answers(path, feeds) for name, path in versions.items()}
    return {"labels": labels, "seconds": seconds, "epochs": len(found.history) - 1, **given, "twin": twin_answers(student, feeds)}


def say(epoch: Any) -> None:
    print(f"  epoch {epoch.number}: {epoch.held_out_loss:.4f} on what is held out, {epoch.seconds:.0f} s", file=sys.stderr, flush=True)


def summary(runs: list[Numbers]) -> Numbers:
    """Accuracy and agreement of each version over all folds' samples, and how much of the loss came back."""
    pooled = {name: np.concatenate([run[name] for run in runs]) for name in ("labels", "fp32", "plain", "fitted", "trained", "twin")}
    top1 = {name: float((pooled[name] == pooled["labels"]).mean()) for name in ("fp32", "plain", "fitted", "trained", "twin")}
    agreement = {name: float((pooled[name] == pooled["fp32"]).mean()) for name in ("plain", "fitted", "trained")}
    lost = top1["fp32"] - top1["plain"]
    return {
        "n": len(pooled["labels"]),
        "top1": top1,
        "agreement": agreement,
        "recovered_top1": {name: (top1[name] - top1["plain"]) / lost for name in ("fitted", "trained")},
        "recovered_agreement": {name: (agreement[name] - agreement["plain"]) / (1 - agreement["plain"]) for name in ("fitted", "trained")},
        "trainer_minus_file": top1["twin"] - top1["trained"],
        "seconds": [run["seconds"] for run in runs],
        "epochs": [run["epochs"] for run in runs],
    }


def peer(case: Case, minutes: float, folder: Path) -> Numbers:
    """The peer's numbers, or why there are none."""
    out = folder / "peer.json"
    script = Path(__file__).with_name("qat_peers.py")
    command = [sys.executable, str(script), "--case", str(case.peer), "--minutes", str(minutes), "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        return {"error": ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else f"exit code {ended.returncode}"}
    found: Numbers = json.loads(out.read_text())
    return found


def show(name: str, found: Numbers) -> None:
    print(f"{name} ({found['n']:,} samples)")
    for version in ("fp32", "plain", "fitted", "trained"):
        agreement = found["agreement"].get(version, 1.0)
        back = found["recovered_top1"].get(version)
        print(
            f"  {version:<8} top-1 {found['top1'][version]:7.2%}  agreement {agreement:7.2%}"
            + (f"  recovered {back:.0%}" if back is not None else "")
        )
    minutes = ", ".join(f"{seconds / 60:.1f}" for seconds in found["seconds"])
    print(f"  trained for {minutes} min; the trainer's accuracy less the file's: {100 * found['trainer_minus_file']:+.2f} points")
    if "peer" in found:
        print(f"  peer: {json.dumps(found['peer'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], default=[case.name for case in CASES])
    parser.add_argument("--minutes", type=float, default=10.0, help="of each training (default: 10)")
    parser.add_argument("--peers", action="store_true", help="also PT2E's training with labels, in an environment of its own")
    options = parser.parse_args()
    for case in (case for case in CASES if case.name in options.only):
        timed = replace(case, settings=replace(case.settings, minutes=options.minutes))
        with tempfile.TemporaryDirectory() as temporary:
            runs = [run(timed, fold, Path(temporary)) for fold in folds(timed, Path(temporary))]
            found = summary(runs)
            if options.peers and case.peer:
                found["peer"] = peer(case, options.minutes, Path(temporary))
        kept: Numbers = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        kept[case.name] = found | {"threads": torch.get_num_threads(), "minutes": options.minutes}
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
        show(case.name, found)


if __name__ == "__main__":
    main()
