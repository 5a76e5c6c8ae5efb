"""The results as tables: one for a person at the terminal, one in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from panel import lanes

Result = Mapping[str, Any]
HEAD = ("producer", "lane", "fidelity", "metric", "drop", "made in s (CPU s)", "peak MB")

WORDS = """Made by `python benchmarks/panel.py`. Fidelity compares with the FP32 model on the same samples, the drop is the metric's loss
against it (positive = worse), both with 95 % paired bootstrap intervals. A lane is a runtime with the precision of what is left in
floating point. "Made in" is the quantization without imports, median over splits; CPU seconds count all threads; peak MB is the most
that its processes held. "x FP32" is the speedup over the source model on onnxruntime in the same race, with the median latency; "as"
means another producer's artifact was timed, which differs in the values of its ranges alone."""


def header(result: Result) -> list[str]:
    return [*HEAD, *(f"x FP32, {shape}" for shape in result["latency"])]


def body(result: Result) -> list[list[str]]:
    """One row a producer and lane; what could not be made is one row with its error."""
    found = []
    for producer, made in result["production"].items():
        if made["error"]:
            found.append([producer, "-", f"failed: {made['error'][:80]}", *[""] * (len(header(result)) - 3)])
            continue
        for number, lane in enumerate(lanes.ALL):
            word = lanes.variant(producer, lane)
            cost = [f"{made['seconds']:.1f} ({made['cpu_seconds']:.1f})", f"{made['peak_bytes'] / 2**20:.0f}"] if number == 0 else ["", ""]
            found.append([producer, lane, *_quality(result["quality"].get(word)), *cost, *_speeds(result, producer, lane)])
    return found


def _quality(entry: Mapping[str, Any] | None) -> list[str]:
    if entry is None or "error" in entry:
        return [f"failed: {entry['error'][:60]}" if entry else "", "", ""]
    found = entry["fidelity"]
    words = [f"{found['value']:.4f} [{found['ci_low']:.4f}, {found['ci_high']:.4f}]"]
    if (metric := entry.get("metric")) is None:
        return [*words, "", ""]
    drop = metric["drop"]
    return [*words, f"{metric['value']:.4f}", f"{drop['value']:+.4f} [{drop['ci_low']:+.4f}, {drop['ci_high']:+.4f}]"]


def _speeds(result: Result, producer: str, lane: str) -> list[str]:
    like = result["speed_as"].get(producer)
    found = []
    for variants in result["latency"].values():
        entry = variants.get(lanes.variant(like or producer, lane))
        if entry is None or "error" in entry:
            found.append("failed" if entry else "")
            continue
        speed = entry["speedup"]
        ratio = f"{speed['value']:.2f} [{speed['ci_low']:.2f}, {speed['ci_high']:.2f}]" if speed else "?"
        found.append(f"{'as ' + like + ' ' if like else ''}{ratio} {entry['latency_ms']['p50']:.2f} ms{' noisy' if entry['noisy'] else ''}")
    return found


def lines(result: Result) -> list[str]:
    """What ours are beside the best and the fastest peers, in words."""
    found = []
    for lane, entry in result["best_peer"].items():
        for word, above in entry["ours_above"].items():
            interval = f"{above['value']:+.4f} [{above['ci_low']:+.4f}, {above['ci_high']:+.4f}]"
            found.append(f"fidelity ({lane}): {word} {interval} above the best peer, {entry['peer']} ({entry['fidelity']:.4f})")
    for shape, variants in result["latency"].items():
        mine = {word: entry for word, entry in variants.items() if word.startswith("lowbit") and "time_over_fastest_peer" in entry}
        if mine:
            word = min(mine, key=lambda name: mine[name]["latency_ms"]["p50"])
            over = mine[word]["time_over_fastest_peer"]
            interval = f"{over['value']:.3f} [{over['ci_low']:.3f}, {over['ci_high']:.3f}]"
            found.append(f"speed ({shape}): {word} takes {interval} of the time of the fastest peer, {over['rival']}")
    return found


def show(result: Result) -> None:
    """Prints one subject's table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['subject']}{' (quick: says little)' if result['quick'] else ''}", header_style="bold")
    for name in header(result):
        table.add_column(name, no_wrap=name in HEAD[:2])
    for row in body(result):
        table.add_row(*row)
    console = Console(width=None if Console().is_terminal else 240)
    console.print(table)
    for line in lines(result):
        console.print(line, highlight=False)


def markdown(results: Sequence[Result]) -> str:
    """All subjects' tables as one Markdown document."""
    parts = ["# The panel", WORDS]
    for result in results:
        rows = [header(result), ["---"] * len(header(result)), *body(result)]
        parts.append(f"## {result['subject']}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
        parts += ["\n".join(f"- {line}" for line in lines(result))]
    return "\n\n".join(part for part in parts if part) + "\n"
