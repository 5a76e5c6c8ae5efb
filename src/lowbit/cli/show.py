"""Results in the terminal: the decision, the table of candidates, where the report is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from lowbit.bundle import words
from lowbit.types import Candidate, Verdict

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lowbit.bundle.bundle import Bundle
    from lowbit.bundle.schema import TargetEntry

COLOURS: Mapping[str, str] = {
    "ship": "bold green",
    "keep": "green",
    "provisional": "yellow",
    "recover": "yellow",
    "reject": "dim",
    "refuse": "red",
}

WIDE, MEDIUM, NARROW = 132, 108, 96
"""Terminal widths from which the interval, the metric and the size are shown."""

LEGEND = """~ rough: a noisy machine, or timed quickly in the search; trust the ratio more than the milliseconds
finalists and the baseline: on the confirming samples; the others: on the search's, so compare changes, not values
provisional: not proved; reject: too slow, or another is as good or better; refuse: broken, or far over the budget
"""


def show_result(bundle: Bundle, form: str) -> None:
    """Prints a bundle's decision on stdout, as a table or as the manifest's JSON."""
    if form == "json":
        from lowbit.bundle.manifest import to_json

        click.echo(to_json(bundle.manifest), nl=False)
        return
    console = results_console()
    decision = bundle.decision
    baseline_id = bundle.manifest.baseline.id
    verdicts: dict[str, Verdict] = {judgement.id: judgement.verdict for judgement in decision.judgements}
    from lowbit.bundle.manifest import candidate_of

    candidates = [candidate_of(entry) for entry in (bundle.manifest.baseline, *bundle.manifest.candidates)]
    console.print(
        candidate_table(
            sorted(candidates, key=lambda entry: order(entry, baseline_id, decision.chosen)),
            verdicts,
            decision.chosen,
            console.width,
            baseline_id,
        )
    )
    console.print(LEGEND, style="dim")
    print_decision(console, bundle)


def results_console() -> Console:
    """Standard output; a pipe or a file has room for everything."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 2 * WIDE
    return console


def print_decision(console: Console, bundle: Bundle) -> None:
    """The end of every result: the verdict, its reasons, what to do next, where the report is."""
    from rich.text import Text

    decision = bundle.manifest.decision
    console.print(Text.assemble((decision.verdict, COLOURS[decision.verdict]), ": ", (decision.chosen, "bold")))
    for sentence in (*decision.reasons, *bundle.manifest.notes):
        console.print(f"  {sentence}", markup=False)
    if decision.next_steps:
        console.print(Text("Next:", style="bold"))
        for step in decision.next_steps:
            console.print(f"  - {step}", markup=False)
    if bundle.manifest.targets:
        console.print(Text("Targets, in targets/ of the bundle:", style="bold"))
        for entry in bundle.manifest.targets:
            console.print(f"  - {entry.title}: {told(entry)}", markup=False)
    console.print(f"Report: {bundle.folder / 'report.html'}", markup=False)


def told(entry: TargetEntry) -> str:
    """A target in one line: why it was not written; or each kernel set's verdict, and what is wrong."""
    if entry.refused is not None:
        return f"not written: {entry.refused.splitlines()[0]}"
    ways = [f"{each.kernels} {'could not be run' if each.error else each.verdict or 'not judged'}" for each in entry.kernels]
    wrong = [each.text.splitlines()[0] for each in entry.findings if each.severity != "note"]
    return "; ".join([", ".join(ways) or entry.words, *wrong])


def order(candidate: Candidate, baseline_id: str, chosen: str) -> tuple[bool, bool, bool, float]:
    """What was chosen and the baseline first, then by latency at the first batch size; what was never timed last."""
    times = [entry.latency_ms.p50 for entry in candidate.measurements]
    return candidate.id != chosen, candidate.id != baseline_id, not times or candidate.status != "done", times[0] if times else 0.0


def candidate_table(
    candidates: Sequence[Candidate],
    verdicts: Mapping[str, Verdict] | None = None,
    chosen: str | None = None,
    width: int = WIDE,
    baseline_id: str | None = None,
) -> Table:
    """The candidates with what is known of them; a narrow terminal sees fewer columns, never broken ones."""
    from rich.table import Table
    from rich.text import Text

    batches = sorted({entry.batch for candidate in candidates for entry in candidate.measurements if entry.streams == 1})
    batches = batches if width >= NARROW else batches[:1]
    metric = next((words.metric_name(entry.evidence.metric.name) for entry in candidates if entry.evidence), "metric")
    final = max((entry.rounds for candidate in candidates for entry in candidate.measurements), default=0)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("candidate", no_wrap=True)
    if width >= MEDIUM:
        table.add_column(metric, justify="right", no_wrap=True)
    relative = any(entry.evidence and entry.evidence.delta.relative for entry in candidates)
    table.add_column("change, of baseline" if relative and width >= NARROW else "change", justify="right", no_wrap=True)
    for batch in batches:
        table.add_column(f"batch {batch}", justify="right", no_wrap=True)
    if width >= NARROW:
        table.add_column("size", justify="right", no_wrap=True)
    table.add_column("verdict" if verdicts is not None else "status", no_wrap=True)
    for candidate in candidates:
        word = (verdicts or {}).get(candidate.id) or ("" if candidate.status == "done" else candidate.status)
        name = Text(("→ " if candidate.id == chosen else "  ") + candidate.id, style="bold" if candidate.id == chosen else "")
        value, change, interval = accuracy(candidate)
        if candidate.id == baseline_id:
            change, interval = "reference", ""
        cells = [change if width < WIDE else f"{change} {interval}", *times(candidate, batches, final)]
        cells = ([value] if width >= MEDIUM else []) + cells + ([words.size(candidate.size_bytes)] if width >= NARROW else [])
        table.add_row(name, *cells, Text(word, style=COLOURS.get(word, "dim")))
    return table


def accuracy(candidate: Candidate) -> tuple[str, str, str]:
    """Metric, change and interval of the change, as cells."""
    evidence = candidate.evidence
    if evidence is None:
        return words.NONE, words.NONE, ""
    if evidence.broken is not None:
        return "broken", words.NONE, ""
    delta = evidence.delta
    unit = "%" if delta.relative else "pp"
    interval = f"[{words.signed(-delta.ci_high)}, {words.signed(-delta.ci_low)}]"
    return words.metric_value(evidence.metric.name, evidence.metric.value), f"{words.signed(-delta.value)} {unit}", interval


def times(candidate: Candidate, batches: Sequence[int], final: int) -> list[str]:
    """Latency and speedup at each batch size, as cells; ~ where noisy or from fewer than the `final` rounds."""
    found = {entry.batch: entry for entry in candidate.measurements if entry.streams == 1}
    cells = []
    for batch in batches:
        entry = found.get(batch)
        ratio = f" {words.times(entry.speedup.value):>5}" if entry and entry.speedup else ""
        mark = "~ " if entry and (entry.noisy or entry.rounds < final) else ""
        cells.append(mark + words.milliseconds(entry.latency_ms.p50) + ratio if entry else words.NONE)
    return cells
