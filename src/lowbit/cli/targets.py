"""`lowbit targets`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.options import output

if TYPE_CHECKING:
    from lowbit.export.base import Target

LEVELS = {
    "run": "runs here",
    "emulated": "emulated here",
    "interpreted": "interpreted here",
    "checked": "checked by rules",
}


@click.command("targets", short_help="List what this machine can write, run, emulate, or only check.")
@click.argument("name", required=False)
@output
def command(name: str | None, form: str) -> None:
    """List the targets that `lowbit export` writes for, and how far this machine can try what was written.

    NAME: one of them, with its settings.

    \b
    lowbit targets
    lowbit targets cortex-m
    """
    from lowbit.export import registry

    found = [registry.find(name)] if name else list(usable(registry.names()))
    if form == "json":
        click.echo(json.dumps([described(target) for target in found], indent=1))
    elif name:
        show_one(found[0])
    else:
        show_all(found)


def usable(names: Iterable[str]) -> Iterator[Target]:
    """Targets that load and can say what they are able to; the others are told of on stderr."""
    from lowbit.errors import UsageError
    from lowbit.export import registry

    for name in names:
        try:
            target = registry.find(name)
            target.abilities()
        except UsageError as error:
            click.secho(f"{name}: {error}", fg="yellow", err=True)
        else:
            yield target


def described(target: Target) -> dict[str, Any]:
    """All that is known of a target before anything is written for it."""
    able = target.abilities()
    return {
        "name": target.name,
        "title": target.title,
        "version": target.version(),
        "writes": able.write,
        "level": able.level,
        "words": able.words,
        "missing": list(able.missing),
        "settings": [
            {"name": wish.name, "default": wish.default, "allowed": list(wish.allowed), "words": wish.words} for wish in target.wishes
        ],
    }


def show_all(targets: list[Target]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from lowbit.cli.show import results_console

    table = Table(box=None, pad_edge=False)
    for head in ("target", "", "writes", "then", "to do more"):
        table.add_column(head, overflow="fold")
    for target in targets:
        able = target.abilities()
        writes = "[green]yes[/]" if able.write else "[red]no[/]"
        more = escape("\n".join(able.missing))
        table.add_row(escape(target.name), escape(target.title), writes, LEVELS[able.level] if able.write else "", more)
    results_console().print(table)


def show_one(target: Target) -> None:
    from rich.markup import escape
    from rich.table import Table

    from lowbit.cli.show import results_console

    console, able = results_console(), target.abilities()
    console.print(f"{target.title} ({target.version() or 'not installed'})", style="bold", markup=False)
    console.print(f"{'Writes; ' + LEVELS[able.level] if able.write else 'Cannot be written here'}. {able.words}", markup=False)
    for line in able.missing:
        console.print(f"To do more: {line}", markup=False)
    if target.wishes:
        table = Table(box=None, pad_edge=False)
        for head in ("--set", "default", "what it does"):
            table.add_column(head, overflow="fold")
        for wish in target.wishes:
            allowed = f" ({', '.join(str(each) for each in wish.allowed)})" if wish.allowed else ""
            table.add_row(escape(wish.name), escape(str(wish.default)), escape(wish.words + allowed))
        console.print(table)
