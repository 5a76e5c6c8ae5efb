"""The panel: lowbit's quantizer beside its peers, on every model, in one run.

    python benchmarks/panel.py                         all models; some hours on two quiet cores the first time
    python benchmarks/panel.py --only mcunet --quick   few samples, folds and rounds: does everything work?
    python benchmarks/panel.py --resume                goes on where a run was interrupted

For each model and producer: fidelity to FP32 and the metric with paired intervals on every lane (onnxruntime, OpenVINO
in f32 and bf16), latency there, and time and peak memory to produce. Every quantization runs in a process of its
own; every variant is timed alone in its process, in interleaved rounds (lowbit.measure.race).

Artifacts are kept under build/panel and made anew when what they follow from changes, or with --remake. Results go to
benchmarks/results/panel/MODEL.json after each model, and together to benchmarks/results/panel.json and panel.md; a
run that is quick or without timing writes to build/panel/trial instead. Needs `make full` and the test data in ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from panel import paths, table
from panel.producers import ALL as PRODUCERS
from panel.run import Effort, run
from panel.subjects import ALL as SUBJECTS


def main() -> int:
    args = arguments()
    out = paths.BUILD / "trial" if args.quick or args.no_timing else paths.RESULTS / "panel"
    effort = Effort(args.quick, args.remake, not args.no_timing)
    chosen = [name for name in PRODUCERS if name == "fp32" or name in args.producers]
    for name in args.only:
        file = out / f"{name}.json"
        if args.resume and file.exists() and set(json.loads(file.read_text())["production"]) >= set(chosen):
            continue
        result = run(SUBJECTS[name], chosen, effort)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")
        table.show(result)
        assemble(out)
    return 0


def assemble(folder: Path) -> None:
    """All kept results as one JSON and one Markdown document beside their folder."""
    found: list[dict[str, Any]] = [
        json.loads((folder / f"{name}.json").read_text()) for name in SUBJECTS if (folder / f"{name}.json").exists()
    ]
    folder.with_suffix(".json").write_text(json.dumps({result["subject"]: result for result in found}, indent=1) + "\n")
    folder.with_suffix(".md").write_text(table.markdown(found))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS), metavar="MODEL", help=", ".join(SUBJECTS))
    parser.add_argument(
        "--producers", nargs="+", choices=list(PRODUCERS), default=list(PRODUCERS), metavar="NAME", help=", ".join(PRODUCERS)
    )
    parser.add_argument("--remake", nargs="+", choices=["all", *PRODUCERS], default=[], metavar="NAME", help="make these artifacts anew")
    parser.add_argument("--quick", action="store_true", help="few samples, folds and rounds; numbers that say little")
    parser.add_argument("--no-timing", action="store_true", help="production and fidelity alone")
    parser.add_argument("--resume", action="store_true", help="leave out models whose results have all the producers")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
