"""What was found of a language model, in the terminal: the decision, a table of candidates, where the report is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from lowbit.bundle import language_words as say
from lowbit.bundle import words
from lowbit.cli.show import COLOURS, NARROW, WIDE, print_decision, results_console

if TYPE_CHECKING:
    from rich.table import Table

    from lowbit.bundle.bundle import Bundle
    from lowbit.bundle.schema import CandidateEntry, Manifest

LEGEND = """perplexity: on the text of the search; rise: against the 16-bit model on the same text, finalists on unseen text, plus is worse
request: from end to end, on the workload
~ timed quickly in the search; provisional: not proved; reject: too slow; refuse: broken, or far over its budget
"""


def show_language_result(bundle: Bundle, form: str) -> None:
    """Prints a bundle's decision on stdout, as a table or as the manifest's JSON."""
    manifest = bundle.manifest
    if form == "json":
        from lowbit.bundle.manifest import to_json

        click.echo(to_json(manifest), nl=False)
        return
    console = results_console()
    console.print(candidate_table(manifest, console.width))
    console.print(LEGEND, style="dim")
    print_decision(console, bundle)


def candidate_table(manifest: Manifest, width: int = WIDE) -> Table:
    """The candidates with what is known of them; a narrow terminal sees fewer columns, never broken ones."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    heads = ["perplexity", "rise", "request", "first token", "reads/s", "writes/s", "size"]
    kept = heads if width >= WIDE else [h for h in heads if h not in ("perplexity", "reads/s")] if width >= NARROW else ["rise", "request"]
    table.add_column("candidate", no_wrap=True)
    for head in kept:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for entry in sorted((manifest.baseline, *manifest.candidates), key=lambda entry: _place(manifest, entry)):
        chosen = entry.id == manifest.decision.chosen
        word = "failed" if entry.status == "failed" else entry.verdict or ""
        cells = _cells(manifest, entry)
        name = Text(("→ " if chosen else "  ") + entry.id, style="bold" if chosen else "")
        table.add_row(name, *(cells[head] for head in kept), Text(word, style=COLOURS.get(word, "dim")))
    return table


def _place(manifest: Manifest, entry: CandidateEntry) -> tuple[bool, bool, float, str]:
    """What was chosen and the baseline first, then by the time of a request."""
    speed = say.speed_of(manifest, entry.id)
    seconds = speed.total_s.value if speed else math.inf
    return entry.id != manifest.decision.chosen, entry.id != manifest.baseline.id, seconds, entry.id


def _cells(manifest: Manifest, entry: CandidateEntry) -> dict[str, str]:
    speed = say.speed_of(manifest, entry.id)
    measured = words.at(entry, words.main_batch(manifest))
    rough = words.rough(measured, manifest) if measured else ""
    return {
        "perplexity": words.metric_value("perplexity", say.perplexity(manifest, entry)),
        "rise": "reference" if entry.id == manifest.baseline.id else say.rise(entry.delta),
        "request": f"{rough}{words.digits(speed.total_s.value)} s" if speed else words.NONE,
        "first token": words.milliseconds(speed.ttft_ms.value if speed else None),
        "reads/s": say.rate(speed.prefill_tokens_per_s if speed else None),
        "writes/s": say.rate(speed.decode_tokens_per_s if speed else None),
        "size": words.size(entry.size_bytes),
    }
