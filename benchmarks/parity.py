"""Does the trainer's accuracy hold for the file that ships? Measured where a tenth of a point is many answers: on up to 70,000 images.

    python benchmarks/parity.py                              all images, about 8 minutes on two idle cores
    python benchmarks/parity.py --images 30000 --minutes 1   what results/parity.json keeps
    python benchmarks/parity.py --images 10000 --out -       a quick look: the test images alone

The demo's ResNet for Fashion-MNIST in INT8, trained by distillation on 4,000 unlabelled training images, then written back: one file.
The 10,000 test and 60,000 training images are answered by the trainer (the torch twin, which rounds where the file's nodes say) and by
the runtimes with all optimizations, whose fused kernels round in other places. What counts is the difference between accuracies on the
same images; its interval (95 %) is that of the mean of paired differences. Single answers may differ all the same: "same" is the share
that does not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pruning import MODEL, idx, images
from qat import Numbers, answers, say, twin_answers

from lowbit.compress.evidence import Evidence
from lowbit.compress.static import write_static
from lowbit.graph.load import load_model
from lowbit.graph.prepare import prepare
from lowbit.graph.profiles import ONNXRUNTIME_CPU
from lowbit.pipeline.recipes import fitted
from lowbit.train.pool import Pool
from lowbit.train.qat import Settings, train
from lowbit.train.twin import Twin
from lowbit.train.write_back import write_back
from lowbit.types import Array, Batch

RESULTS = Path(__file__).parent / "results" / "parity.json"
CALIBRATION, LEARNED, TEST = 256, 4000, 10000


def difference(one: Array, other: Array) -> list[float]:
    """Points by which one is right more often than the other on the same images, with a 95 % interval."""
    gained = 100 * (one.astype(float) - other.astype(float))
    reach = 1.96 * gained.std() / np.sqrt(len(gained))
    return [float(gained.mean()), float(gained.mean() - reach), float(gained.mean() + reach)]


def trained(folder: Path, name: str, minutes: float) -> tuple[Twin, Path, str]:
    """An INT8 model of the demo, trained: the trainer, the file, how training went."""
    learning = images("train")
    chosen = np.random.default_rng(0).permutation(len(learning))
    prepared, start, out = (folder / f"{part}.onnx" for part in ("prepared", "start", "trained"))
    prepare(load_model(MODEL), prepared)
    batches = [Batch(np.arange(CALIBRATION), {name: learning[chosen[:CALIBRATION]]}, None)]
    write_static(Evidence(prepared, lambda: batches), start, fitted("mse"), ONNXRUNTIME_CPU)
    student = Twin(start, recipe=fitted("mse"))
    pool = Pool({name: learning[chosen[:LEARNED]]}, images=True)
    found = train(student, Twin(prepared), pool, replace(Settings(), minutes=minutes), on_epoch=say)
    write_back(student, start, out)
    return student, out, found.summary


def told(ours: Array, theirs: Array, labels: Array) -> Numbers:
    """The trainer's answers beside a runtime's."""
    return {
        "trainer_minus_file_points": difference(ours == labels, theirs == labels),
        "on_test_images": difference(ours[:TEST] == labels[:TEST], theirs[:TEST] == labels[:TEST]),
        "accuracy": float((theirs == labels).mean()),
        "accuracy_on_test_images": float((theirs[:TEST] == labels[:TEST]).mean()),
        "same": float((ours == theirs).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=70000, help="that are answered, the test images first")
    parser.add_argument("--minutes", type=float, default=2.0, help="of each training")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", default=str(RESULTS), help="where results go; - for nowhere")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    pixels = np.concatenate([images("t10k"), images("train")])[: given.images]
    labels = np.concatenate([idx(f"{kind}-labels-idx1-ubyte.gz") for kind in ("t10k", "train")])[: given.images]
    name = load_model(MODEL).inputs[0].name
    with tempfile.TemporaryDirectory() as folder:
        student, path, summary = trained(Path(folder), name, given.minutes)
        theirs = {runtime: answers(path, {name: pixels}, runtime) for runtime in ("onnxruntime", "openvino")}
    ours = twin_answers(student, {name: pixels})
    found = {
        "images": len(labels),
        "trained": summary,
        "trainer": {"accuracy": float((ours == labels).mean()), "accuracy_on_test_images": float((ours[:TEST] == labels[:TEST]).mean())},
        **{runtime: told(ours, each, labels) for runtime, each in theirs.items()},
    }
    text = json.dumps(found, indent=1)
    print(text)
    if given.out != "-":
        Path(given.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
