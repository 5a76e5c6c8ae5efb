"""The registry in the terminal."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from lowbit.bundle import words

if TYPE_CHECKING:
    from rich.table import Table

    from lowbit.registry.diff import Change, Difference
    from lowbit.registry.listing import Listed
    from lowbit.registry.records import AliasEvent, AuditRow, ModelVersion

WIDE = 160
"""A pipe or a file has room for everything."""
MOST = 25
"""Lines of a table of differences."""
SHORT = 12
"""Digits of a digest that a person is shown."""


def show_versions(versions: Sequence[ModelVersion], aliases: Mapping[str, ModelVersion]) -> None:
    """A model's versions, the newest last."""
    table = table_of("version", "aliases", "precision", "runtime", "recipe", "score", "batch 1", "size", "digest", "registered")
    for version in versions:
        names = ", ".join(alias for alias, named in aliases.items() if named == version)
        score, latency = version.lineage.get("score") or {}, version.lineage.get("latency_ms") or {}
        table.add_row(
            version.ref,
            names,
            _one_line(version.precision),
            _one_line(version.runtime),
            _one_line(str(version.lineage.get("recipe", ""))),
            words.metric_value(score["name"], score["value"]) if score.get("value") is not None else words.NONE,
            words.milliseconds(latency["1"]) if "1" in latency else words.NONE,
            words.size(version.lineage.get("artifact_bytes")),
            version.digest[:SHORT],
            f"{_day(version.created)} {version.by}",
        )
    print_table(table)


def show_version(version: ModelVersion, aliases: Sequence[str], parents: Sequence[str], files: Sequence[Listed]) -> None:
    """One version with its lineage."""
    line = version.lineage
    click.secho(version.ref, bold=True, nl=False)
    click.echo(f"  {', '.join(aliases) or 'no alias'}")
    facts = {
        "digest": version.digest,
        "kind": version.kind + (f", made from {', '.join(parents)}" if parents else ""),
        "answers with": f"{version.candidate} ({version.precision} on {version.runtime})",
        "source": _brief(line["source"], "name", "format", "sha256"),
        "recipe": f"{line['recipe']}  {line['recipe_sha256'][:SHORT]}",
        "calibration": _brief(line["calibration"], "n", "how_selected", "sha256"),
        "validation": _brief(line["validation"], "n", "sha256"),
        "preprocessing": (line["preprocess_sha256"] or words.NONE)[:SHORT],
        "score": _scored(line.get("score")),
        "latency": ", ".join(f"batch {batch}: {words.milliseconds(ms)}" for batch, ms in (line.get("latency_ms") or {}).items()),
        "verdict": line["verdict"],
        "hardware": _hardware(line["hardware"]),
        "tools": ", ".join(f"{name} {number}" for name, number in line["tools"].items()),
        "lowbit": f"{line['lowbit_version']}, {line['made']}",
        "command": line["command"],
        "registered": f"{clock(version.created)} by {version.by}",
        "files": f"{len(files)}, {words.size(version.size_bytes)}",
    }
    for name, value in facts.items():
        click.echo(f"  {name:<14} {_one_line(value)}")


def show_difference(first: ModelVersion, second: ModelVersion, found: Difference) -> None:
    """Two versions beside each other."""
    for title, changes, form in (
        ("score", found.score, _number),
        ("latency by batch", found.latency_ms, _latency),
        ("lineage", found.lineage, _text),
        ("files", found.files, _size),
    ):
        if changes:
            print_table(_changes(title, changes[:MOST], first.ref, second.ref, form))
        if len(changes) > MOST:
            click.echo(f"and {len(changes) - MOST:,} more: --output json")
    if not (found.files or found.lineage):
        click.echo(f"{first.ref} and {second.ref} are the same.")
    for note in found.notes:
        click.secho(note, fg="yellow", err=True)


def show_history(events: Sequence[AliasEvent], names: Mapping[str, str]) -> None:
    """Moves of aliases, the last one last."""
    table = table_of("event", "when", "alias", "from", "to", "what", "by", "why")
    for event in events:
        before, after = (words.NONE if d is None else names.get(d, d[:SHORT]) for d in (event.before, event.after))
        table.add_row(str(event.id), clock(event.at), event.alias, before, after, event.kind, event.by, _one_line(event.why))
    print_table(table)


def show_audit(rows: Sequence[AuditRow]) -> None:
    """Rows of the log, the last one last."""
    table = table_of("row", "when", "by", "action", "subject", "digest")
    for row in rows:
        table.add_row(str(row.id), clock(row.at), row.by, row.action, row.subject, row.sha256[:SHORT])
    print_table(table)


def _changes(title: str, changes: Sequence[Change], first: str, second: str, form: Any) -> Table:
    table = table_of(title, first, second)
    for change in changes:
        table.add_row(change.what, form(change.before), form(change.after))
    return table


def table_of(*heads: str, right: Sequence[str] = ()) -> Table:
    """An empty table without lines; the columns in `right` hold numbers."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold", justify="right" if head in right else "left")
    return table


def print_table(table: Table) -> None:
    """To the terminal; a pipe gets wide lines."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)


def _scored(score: Mapping[str, Any] | None) -> str:
    if not score or score.get("value") is None:
        return words.NONE
    return f"{words.metric_name(score['name'])} {words.metric_value(score['name'], score['value'])} on {score['n']:,} samples"


def _brief(part: Mapping[str, Any] | None, *names: str) -> str:
    if not part:
        return words.NONE
    values = {name: part.get(name) for name in names}
    return ", ".join(str(value)[:SHORT] if name == "sha256" else str(value) for name, value in values.items() if value is not None)


def _number(value: Any) -> str:
    return words.NONE if value is None else f"{value:.6g}" if isinstance(value, int | float) else str(value)


def _latency(value: Any) -> str:
    return words.NONE if value is None else words.milliseconds(value)


def _hardware(part: Mapping[str, Any] | None) -> str:
    cores = (part or {}).get("cores")
    return _brief(
        {**(part or {}), "cores": cores and f"{cores} {'core' if cores == 1 else 'cores'}"}, "cpu", "cores", "accelerator", "system"
    )


def _text(value: Any) -> str:
    text = words.NONE if value is None else str(value)
    return text[:SHORT] if len(text) == 64 and set(text) <= set("0123456789abcdef") else _one_line(text)


def _size(value: Any) -> str:
    return words.NONE if value is None else words.size(value)


def _one_line(text: str) -> str:
    """Words alone: a bundle is others' work, and what it says must not steer the terminal."""
    return " ".join("".join(each if unicodedata.category(each) != "Cc" or each.isspace() else "?" for each in text).split())


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def clock(at: float) -> str:
    """A time for a person, the same one wherever it is read."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
