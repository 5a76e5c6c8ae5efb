"""What the guardrails of a rollout promise, by simulation: how often a healthy candidate is rolled back, and how soon a bad one is.

    python benchmarks/canary.py                 # all of it, about four minutes on one core
    python benchmarks/canary.py --runs 200      # less sure, sooner

Writes results/canary.json and the tables in results/canary.md. Seeds are fixed: the same runs, the same numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / "rollout")]

from rollout_evidence import HEALTHY, Traffic  # noqa: E402
from simulated import arms, failed, first, risen, rolled_back, shifted  # noqa: E402

from lowbit.measure.compare import BINS  # noqa: E402
from lowbit.rollout.plan import Plan  # noqa: E402
from lowbit.rollout.sequential import distance  # noqa: E402
from lowbit.types import Array  # noqa: E402

PLAN = Plan()
MINUTES, RATE = 60, 200
CHUNK = 100
BAD = {
    "errors": Traffic(errors=0.03),
    "p99": Traffic(slower=1.5),
    "disagreement": Traffic(disagree=0.1),
    "confidence": Traffic(confident=2.0),
    "accuracy": Traffic(wrong=0.25),
    "cost": Traffic(cost=1.3),
}
WORSE = {
    "errors": "3 % instead of 1 %",
    "p99": "all latencies x 1.5",
    "disagreement": "10 % instead of 1 %",
    "confidence": "a mean of 0.75 instead of 0.83",
    "accuracy": "75 % instead of 90 %",
    "cost": "30 % more",
}


def healthy(runs: int) -> dict[str, Any]:
    """Whole rollouts by the default plan."""
    looks, rate, found = 30, 3000, {}
    for seed in range(math.ceil(runs / CHUNK)):
        for kind, each in rolled_back(np.random.default_rng(seed), PLAN, CHUNK, looks, rate, HEALTHY).items():
            found[kind] = found.get(kind, 0) + int(each.sum())
        print(f"  healthy: {found['all']} of {(seed + 1) * CHUNK} rolled back", file=sys.stderr)
    steps = sum(share < 1 for share in PLAN.steps)
    return {
        "runs": CHUNK * math.ceil(runs / CHUNK),
        "steps": steps,
        "looks_per_step": looks,
        "requests_per_look": rate,
        "rolled_back": found,
    }


def errors(runs: int) -> list[dict[str, Any]]:
    """The usual case: 1 % errors, 200 requests a minute and arm, 60 looks."""
    rows = []
    for name, alpha in (("z-test at 5 %, repeated", None), ("e-process at 5 %", 0.05), ("default plan", PLAN.alpha_of(PLAN.guardrails[0]))):
        row: dict[str, Any] = {"test": name}
        for canary in (0.01, 0.015, 0.02, 0.03):
            rng = np.random.default_rng(int(1000 * canary))
            x_b, x_c = (rng.binomial(RATE, rate, (runs, MINUTES)).cumsum(axis=1) for rate in (0.01, canary))
            n = RATE * np.arange(1, MINUTES + 1)
            fails = z_test(x_b, x_c, n) if alpha is None else risen(x_b, n, x_c, n, 0.0, alpha)
            at = first(fails)
            row[f"{canary:.1%}"] = {"found": float(np.isfinite(at).mean()), "median_minutes": plain(float(np.median(at)))}
        rows.append(row)
    return rows


def z_test(x_b: Array, x_c: Array, n: Array) -> Array:
    """What one must not do."""
    pooled = (x_b + x_c) / (2 * n)
    return (x_c - x_b) / n / np.sqrt(np.maximum(pooled * (1 - pooled), 1e-12) * 2 / n) > 1.645


def delays(runs: int) -> list[dict[str, Any]]:
    """Answers of the candidate until it goes, at the default plan's error rates; a tenth of them is shadowed and labelled."""
    rows, each, looks = [], 100, 100
    for guardrail in PLAN.guardrails:
        row: dict[str, Any] = {"guardrail": guardrail.kind, "worse": WORSE[guardrail.kind]}
        for share in (0.01, 0.5):
            found = []
            for seed in range(math.ceil(runs / CHUNK)):
                rng = np.random.default_rng(seed)
                both = (
                    arms(rng, CHUNK, looks, part, int(each / share), traffic)
                    for part, traffic in ((1 - share, HEALTHY), (share, BAD[guardrail.kind]))
                )
                found.append(first(failed(PLAN, guardrail, *both)) * each)
            answers = np.concatenate(found)
            row[f"{share:.0%}"] = {
                "median": plain(float(np.median(answers))),
                "p90": plain(float(np.percentile(answers, 90, method="higher"))),
            }
        rows.append(row)
        print(f"  {row}", file=sys.stderr)
    return rows


def confidences(runs: int) -> list[dict[str, Any]]:
    """The rule of five per cent: relative shift of the mean, or distance, with 2,000 answers or more; Beta(6, 1.2), baseline n=20,000."""
    rng, alpha, rows = np.random.default_rng(0), PLAN.alpha_of(PLAN.guardrails[3]), []
    runs = min(runs, 200)
    for name in ("healthy", "mean -5 %", "mean -10 %", "5 % of answers below 0.3", "5 % of answers anywhere", "same mean, spread x 1.3"):
        row: dict[str, Any] = {"shift": name}
        for n in (500, 1000, 2000, 5000, 20_000):
            fails, apart, means = [], [], []
            for _ in range(runs):
                ours, theirs = rng.beta(6, 1.2, 20_000), moved(rng, rng.beta(6, 1.2, n), name)
                counts = [np.bincount(np.minimum((each * BINS).astype(int), BINS - 1), minlength=BINS)[None] for each in (ours, theirs)]
                fails.append(bool(shifted(*counts, 0.05, alpha)[0]))
                apart.append(float(distance(*counts)[0]))
                means.append(float(abs(theirs.mean() / ours.mean() - 1)))
            row[f"n={n}"] = {
                "guardrail_fails": float(np.mean(fails)),
                "ks_over_5_percent": float(np.mean(np.array(apart) > 0.05)),
                "mean_over_5_percent": float(np.mean(np.array(means) > 0.05)),
                "ks": float(np.median(apart)),
                "mean": float(np.median(means)),
            }
        rows.append(row)
        print(f"  {name}", file=sys.stderr)
    return rows


def moved(rng: np.random.Generator, values: Array, how: str) -> Array:
    """Confidences after a shift."""
    hit = rng.random(values.shape) < 0.05
    return {
        "healthy": values,
        "mean -5 %": 0.95 * values,
        "mean -10 %": 0.9 * values,
        "5 % of answers below 0.3": np.where(hit, 0.3 * rng.random(values.shape), values),
        "5 % of answers anywhere": np.where(hit, rng.random(values.shape), values),
        "same mean, spread x 1.3": np.clip(values.mean() + 1.3 * (values - values.mean()), 0, 1),
    }[how]


def plain(value: float) -> float | None:
    """None for never."""
    return value if math.isfinite(value) else None


def tables(found: dict[str, Any]) -> str:
    """For people."""
    good = found["healthy"]
    by = ", ".join(f"{kind} {count}" for kind, count in good["rolled_back"].items() if kind != "all")
    lines = ["# Guardrails of a rollout, by simulation", "", "Made by `python benchmarks/canary.py`.", ""]
    lines += [
        f"Healthy candidates rolled back: {good['rolled_back']['all']} of {good['runs']:,} rollouts by the default plan; 2 % are promised."
    ]
    size = f"{good['looks_per_step']} looks in each, {good['requests_per_look']:,} requests from look to look"
    lines += [f"There were {good['steps']} steps with both arms, {size}. By guardrail: {by}.", ""]
    lines += ["1 % errors, 200 requests a minute and arm, 60 looks: how often it fails, and after how many minutes (median).", ""]
    lines += ["| test | healthy | 1.5 % errors | 2 % | 3 % |", "|---|---|---|---|---|"]
    for row in found["errors"]:
        cells = [row[rate] for rate in ("1.0%", "1.5%", "2.0%", "3.0%")]
        texts = [
            f"{cells[0]['found']:.1%}",
            *(f"{c['found']:.0%}" + (f", {c['median_minutes']:g} min" if c["median_minutes"] else "") for c in cells[1:]),
        ]
        lines.append(f"| {row['test']} | {' | '.join(texts)} |")
    lines += ["", "Answers of the candidate until a bad one goes, by the default plan (median, and nine of ten runs).", ""]
    lines += ["| guardrail | candidate | at 1 % of the traffic | at 50 % |", "|---|---|---|---|"]
    for row in found["delays"]:
        texts = [f"{row[share]['median'] or math.inf:,.0f} ({row[share]['p90'] or math.inf:,.0f})" for share in ("1%", "50%")]
        lines.append(f"| {row['guardrail']} | {row['worse']} | {' | '.join(texts)} |")
    lines += ["", "The rule of five per cent: share of single looks at which the guardrail fails; in brackets that of the bare rule.", ""]
    sizes = [key for key in found["confidences"][0] if key != "shift"]
    lines += [f"| shift | {' | '.join(sizes)} | KS | mean |", "|---" * (len(sizes) + 3) + "|"]
    for row in found["confidences"]:
        texts = [f"{row[n]['guardrail_fails']:.2f} ({max(row[n]['ks_over_5_percent'], row[n]['mean_over_5_percent']):.2f})" for n in sizes]
        lines.append(f"| {row['shift']} | {' | '.join(texts)} | {row[sizes[-1]]['ks']:.3f} | {row[sizes[-1]]['mean']:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    found = {
        "errors": errors(4 * options.runs),
        "confidences": confidences(options.runs),
        "delays": delays(max(options.runs // 10, CHUNK)),
        "healthy": healthy(options.runs),
    }
    (options.out / "canary.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "canary.md").write_text(tables(found))
    print(tables(found))


if __name__ == "__main__":
    main()
