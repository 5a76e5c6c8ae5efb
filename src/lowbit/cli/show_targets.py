"""Exported targets in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.bundle import words
from lowbit.bundle.report_targets import artifact_size, identical, same_class
from lowbit.bundle.schema import KernelsEntry, TargetEntry
from lowbit.cli.show import COLOURS, results_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SEVERITIES = {"error": "red", "warning": "yellow", "note": "dim"}


def show_target(entry: TargetEntry, folder: Path) -> None:
    """What was written for one target, and how far it was tried."""
    console = results_console()
    artifact = "a folder" if entry.artifact == "." else entry.artifact
    console.print(f"{entry.title}: {artifact}, {artifact_size(entry)}, from {entry.candidate}", style="bold", markup=False)
    print_facts(console, entry)
    if entry.kernels:
        console.print(kernels_table(entry.kernels))
    console.print(f"  {entry.words}", style="dim", markup=False)
    for finding in entry.findings:
        console.print(f"  {finding.severity}: {finding.text} ({finding.rule})", style=SEVERITIES[finding.severity], markup=False)
    for note in entry.notes:
        console.print(f"  {note}", markup=False)
    console.print(folder, markup=False)


def print_facts(console: Console, entry: TargetEntry) -> None:
    """Numbers that belong to the artifact."""
    for name, value in entry.facts.items():
        shown = words.size(value) if "_bytes" in name and isinstance(value, int | float) else str(value)
        console.print(f"  {name.replace('_bytes', '').replace('_', ' ')}: {shown}", markup=False)


def kernels_table(kernels: Sequence[KernelsEntry]) -> Table:
    """One row a kernel set."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for head in ("kernels", "samples", "same class", "to its reference", "metric", "change", "verdict", "latency", "speedup"):
        table.add_column(head, justify="left" if head in ("kernels", "verdict") else "right")
    for each in kernels:
        if each.error:
            table.add_row(each.kernels, "", Text(each.error, style="red"))
            continue
        table.add_row(
            each.kernels,
            f"{each.samples:,}{' drawn' if each.drawn else ''}",
            same_class(each),
            identical(each).replace(words.NONE, ""),
            words.metric_value(each.metric.name, each.metric.value) if each.metric else "",
            words.change(each.delta) if each.delta else "",
            Text(each.verdict, style=COLOURS[each.verdict]) if each.verdict else "",
            words.milliseconds(each.latency_ms.p50) if each.latency_ms else "",
            speedup(each),
        )
    return table


def speedup(each: KernelsEntry) -> str:
    """Over full precision in the same run; slower is said."""
    if each.speedup is None:
        return ""
    return words.times(each.speedup.value) + (" (slower)" if each.speedup.ci_high < 1 else "")
