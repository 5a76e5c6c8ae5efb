"""How far LiteRT's own kernels agree with each other: the same INT8 file on XNNPACK, on the built-in and on the reference kernels.

    python benchmarks/litert_kernels.py                     everything, about ten minutes
    python benchmarks/litert_kernels.py --model mcunet      may be repeated
    python benchmarks/litert_kernels.py --folder DIR        where bundles and artifacts are made, and kept for the next run

Two files of each model: ours, with the bundle's scales, and one by litert-torch and ai-edge-quantizer (static, ranges from 100 pictures)
from the same weights. Each is asked 200 pictures that calibrated neither. What two kernel sets answer to one file differs by nothing but
the kernels: it is the limit of what a claim about parity can mean there. Needs litert-torch's environment (tests/export/litert-torch.txt).
Results: benchmarks/results/litert_kernels.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from target_models import MODELS, bundle_of

from lowbit.export.litert import opening, sessions
from lowbit.export.litert.target import LiteRT
from lowbit.export.neutral import read_neutral
from lowbit.export.settings import settings_of
from lowbit.measure.intervals import wilson
from lowbit.pipeline.targets.samples import parted, with_samples
from lowbit.runtimes.hardware import probe
from lowbit.types import Array

RESULTS = Path(__file__).parent / "results" / "litert_kernels.json"
NAMES = ("resnet20", "squeezenet", "mcunet")
FILES = {"ours": ("way=table", "float_output=false"), "recalibrated": ("way=recalibrated", "recipe=static", "float_output=false")}
KERNELS = tuple(sessions.RESOLVERS)
ASKED = 200


def levels(file: Path, feeds: dict[str, Array], kernels: str) -> Array:
    """A file's answers as levels [N, classes]."""
    session = opening.opened(file.read_bytes(), kernels)
    found = session.integers(feeds)
    session.close()
    assert found is not None, "written with integers at its end"
    return next(iter(found.values())).reshape(len(next(iter(feeds.values()))), -1).astype(np.int64)


def apart(one: Array, other: Array) -> dict[str, Any]:
    """How far two kernel sets are from each other, [N, classes] each."""
    same = one.argmax(1) == other.argmax(1)
    low, high = wilson(int(same.sum()), same.size)
    steps = np.abs(one - other)
    return {
        "same_class": float(same.mean()),
        "same_class_interval": [float(low), float(high)],
        "identical_levels": float((steps == 0).mean()),
        "largest_step": int(steps.max()),
    }


def one(name: str, folder: Path) -> dict[str, Any]:
    """Both files of a model, on all kernel sets."""
    bundle, target = bundle_of(name, folder), LiteRT()
    judges, known = parted(bundle, MODELS[name](folder).data)
    assert judges is not None
    source, judges = with_samples(read_neutral(bundle), judges, known, 100)
    batch = next(judges.subset(np.arange(min(ASKED, len(judges)))).batches(ASKED))
    found: dict[str, Any] = {"samples": len(batch.labels), "candidate": source.candidate, "files": {}}
    for file, settings in FILES.items():
        out = folder / "kernels" / name / file
        out.mkdir(parents=True, exist_ok=True)
        artifact = target.write(source, out, settings_of(target, settings))
        answers = {kernels: levels(artifact.main, batch.feeds, kernels) for kernels in KERNELS}
        told = {
            "size_bytes": artifact.size_bytes,
            "accuracy": {kernels: float((each.argmax(1) == batch.labels).mean()) for kernels, each in answers.items()},
            "pairs": {f"{a} and {b}": apart(answers[a], answers[b]) for a, b in itertools.combinations(KERNELS, 2)},
        }
        found["files"][file] = told
        for pair, each in told["pairs"].items():
            print(f"    {file:<13} {pair:<26} {100 * each['same_class']:.1f} % same class, {100 * each['identical_levels']:.1f} % of levels"
                  f" identical, at most {each['largest_step']} apart", flush=True)  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=NAMES, action="append")
    parser.add_argument("--folder", type=Path)
    said = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"models": {}}
    with tempfile.TemporaryDirectory(prefix="lowbit-kernels-") as scratch:
        for name in said.model or NAMES:
            print(f"\n== {name}", flush=True)
            results["models"][name] = one(name, said.folder or Path(scratch))
            results |= {"versions": sessions.versions(), "machine": asdict(probe())}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
