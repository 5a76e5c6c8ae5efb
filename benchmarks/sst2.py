"""A text classifier from a Hugging Face folder: MiniLM-L6 fine-tuned on SST-2, then one command; every sequence length beside FP32.

    python benchmarks/sst2.py [--time-limit 4.5m]

Needs `make full` and the project's test data in ../shared/data; about fifteen minutes on two quiet cores, most of it training and
search. The folder and the bundle are kept in build/sst2, the numbers in benchmarks/results/sst2.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data" / "sst2"
OUT = ROOT / "build" / "sst2"
RESULTS = ROOT / "benchmarks" / "results" / "sst2.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", default="1h")
    options = parser.parse_args()
    if not (OUT / "validation.tsv").exists():
        run("examples/sst2/train.py", "--data", DATA, "--out", OUT)
    data = ["--data", OUT / "validation.tsv", "--calibration", OUT / "calibration.tsv"]
    run("-m", "lowbit", "optimize", OUT / "model", *data, "--max-drop", "1pp", "--time-limit", options.time_limit, "--out", OUT / "bundle")
    found = numbers(json.loads((OUT / "bundle" / "bundle.json").read_text()), score(OUT / "bundle"))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def run(*command: Any) -> None:
    subprocess.run([sys.executable, *map(str, command)], check=True, cwd=ROOT)


def score(bundle: Path) -> dict[str, Any]:
    """Correct answers on the whole of dev.tsv, of the baseline and what was chosen."""
    from lowbit import Bundle

    rows = [line.split("\t") for line in (DATA / "dev.tsv").read_text(encoding="utf-8").splitlines()]
    texts, labels = [text for text, _ in rows], [int(label) for _, label in rows]
    loaded = Bundle.load(bundle)
    right = {}
    for name, candidate in (("baseline", loaded.manifest.baseline.id), ("chosen", loaded.manifest.decision.chosen)):
        with loaded.session(candidate=candidate) as session:
            answers = [session.predict(texts[start : start + 32])["logits"].argmax(1) for start in range(0, len(texts), 32)]
        flat = [int(answer) for part in answers for answer in part]
        right[name] = sum(answer == label for answer, label in zip(flat, labels, strict=True))
    return {"n": len(labels), **right}


def numbers(manifest: dict[str, Any], dev: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a manifest. Pure."""
    entries = {entry["id"]: entry for entry in [manifest["baseline"], *manifest["candidates"]]}
    chosen = entries[manifest["decision"]["chosen"]]
    return {
        "dev": dev,
        "verdict": manifest["decision"]["verdict"],
        "chosen": chosen["id"],
        "reasons": manifest["decision"]["reasons"],
        "cpu": manifest["environment"]["cpu"],
        "cores": manifest["environment"]["cores"],
        "versions": manifest["environment"]["versions"],
        "size_share": chosen["size_bytes"] / manifest["source"]["size_bytes"],
        "parity": manifest["source"]["exported_from"]["parity"],
        "metric": {"baseline": manifest["baseline"]["metric"], "chosen": chosen["metric"]},
        "delta": chosen["delta"],
        "candidates": {
            name: {"metric": entry["metric"], "delta": entry["delta"], "verdict": entry["verdict"]} for name, entry in entries.items()
        },
        "by_length": {name: entries[name]["by_length"] for name in (manifest["baseline"]["id"], chosen["id"])},
    }


def table(found: dict[str, Any]) -> str:
    """The lengths as Markdown. Pure."""
    before, now = found["by_length"].values()
    lines = [
        f"{found['chosen']}, dev {found['dev']['chosen'] / found['dev']['n']:.2%} (FP32 {found['dev']['baseline'] / found['dev']['n']:.2%})"
    ]
    lines += ["", "| tokens | batch | FP32 ms | chosen ms | speedup |", "|---|---|---|---|---|"]
    for old, new in zip(before, now, strict=True):
        ratio = new["speedup"]
        times = f"{ratio['value']:.2f} [{ratio['ci_low']:.2f}, {ratio['ci_high']:.2f}]"
        lines.append(f"| {new['tokens']} | {new['batch']} | {old['latency_ms']['p50']:.2f} | {new['latency_ms']['p50']:.2f} | {times} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
