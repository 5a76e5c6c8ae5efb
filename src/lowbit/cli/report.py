"""`lowbit report BUNDLE`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


@click.command("report", short_help="Write a bundle's report again, or open it.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE.html", help="Where to write it.  [default: BUNDLE/report.html]")
@click.option("--open/--no-open", "show", default=None, help="Open it in the browser.  [default: from a terminal with a display]")
def command(bundle: Path, out: Path | None, show: bool | None) -> None:
    """Write the report of BUNDLE (a folder that `lowbit optimize` made) from its manifest, and open it."""
    from lowbit.bundle.bundle import Bundle
    from lowbit.bundle.manifest import write_atomic
    from lowbit.bundle.report import render_report
    from lowbit.bundle.report_layers import find_layers

    loaded = Bundle.load(bundle, verify=False)
    path = out or bundle / "report.html"
    layers = find_layers(bundle, loaded.manifest)
    write_atomic(path, render_report(loaded.manifest, title=Path(loaded.manifest.source.path).stem, layers=layers))
    if has_display() if show is None else show:
        click.launch(str(path.resolve()))
    click.echo(path)


def has_display() -> bool:
    """True where a browser window can appear."""
    return sys.stdout.isatty() and (sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()))
