"""The jobs of docs/guides/optimize.md, one after the other, and what was decided on each.

    python benchmarks/jobs.py [--only resnet20 ...]

Needs the project's test data in ../shared/data; MiniLM and California housing also need `make full` and their
example scripts, which are run first. About twenty minutes on two quiet cores. Bundles go to build/jobs/NAME; the
table and benchmarks/results/jobs.json are written after every job.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
OUT = ROOT / "build" / "jobs"
RESULTS = ROOT / "benchmarks" / "results" / "jobs.json"
CIFAR = ["--data", SHARED / "cifar10" / "cifar10_test10k.npz", "--preprocess", "imagenet", "--max-drop", "1pp"]
IMAGENET = ["--data", SHARED / "imagenet-sample", "--max-drop", "2pp"]

JOBS: dict[str, list[Any]] = {
    "resnet20": [SHARED / "cifar10-resnet" / "resnet20.onnx", *CIFAR],
    "resnet32": [SHARED / "cifar10-resnet" / "resnet32.onnx", *CIFAR],
    "mcunet": [SHARED / "imagenet-models" / "mcunet-320kb-1mb.onnx", *IMAGENET, "--preprocess", "inception"],
    "squeezenet": [SHARED / "imagenet-models" / "squeezenet1.1.onnx", *IMAGENET, "--preprocess", "imagenet-caffe"],
    "california": [
        OUT / "california" / "mlp.onnx", "--data", OUT / "california" / "test.csv",
        "--preprocess", OUT / "california" / "preprocess.yaml", "--max-drop", "1%",
    ],
    "minilm": [OUT / "minilm" / "minilm.onnx", "--data", OUT / "minilm" / "sentences.npz", "--metric", "cosine", "--max-drop", "1%"],
}  # fmt: skip
SETUP: dict[str, list[Any]] = {
    "california": ["examples/california/train.py", "--data", SHARED / "tabular" / "california_housing.csv", "--out", OUT / "california"],
    "minilm": ["examples/minilm/export.py", "--sentences", SHARED / "sst2" / "dev.tsv", "--out", OUT / "minilm"],
}


def run(name: str) -> dict[str, Any]:
    """Runs one job and keeps what matters of its manifest."""
    if name in SETUP and not JOBS[name][0].exists():
        subprocess.run([sys.executable, *map(str, SETUP[name])], check=True, cwd=ROOT)
    command = [sys.executable, "-m", "lowbit", "optimize", *map(str, JOBS[name]), "--out", str(OUT / f"{name}.bundle"), "--output", "json"]
    found = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    manifest = json.loads(found.stdout)
    entries = {entry["id"]: entry for entry in [manifest["baseline"], *manifest["candidates"]]}
    chosen = entries[manifest["decision"]["chosen"]]
    return {
        "verdict": manifest["decision"]["verdict"],
        "chosen": chosen["id"],
        "reasons": manifest["decision"]["reasons"],
        "size_share": chosen["size_bytes"] / manifest["source"]["size_bytes"],
        "metric": chosen["metric"],
        "delta": chosen["delta"],
        "measurements": chosen["measurements"],
        "refused": sorted(entry["id"] for entry in entries.values() if entry["verdict"] == "refuse"),
        "environment": manifest["environment"],
    }


def line(name: str, result: dict[str, Any]) -> str:
    """One row of the table."""
    delta = result["delta"]
    change = f"{-100 * delta['value']:+.2f} [{-100 * delta['ci_high']:+.2f}, {-100 * delta['ci_low']:+.2f}]"
    speeds = "  ".join(speed(m) for m in result["measurements"] if m["streams"] == 1 and m["speedup"])
    return f"{name:<11} {result['verdict']:<12} {result['chosen']:<34} {change:<24} size {result['size_share']:.2f}  {speeds}"


def speed(measurement: dict[str, Any]) -> str:
    ratio = measurement["speedup"]
    noisy = " noisy" if measurement["noisy"] else ""
    return f"batch {measurement['batch']}: {ratio['value']:.2f}x [{ratio['ci_low']:.2f}, {ratio['ci_high']:.2f}]{noisy}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS))
    names = parser.parse_args().only
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names:
        results[name] = run(name)
        print(line(name, results[name]), flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
