"""`lowbit analyze MODEL`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.options import output

if TYPE_CHECKING:
    from rich.table import Table

    from lowbit.pipeline.analyze import Analysis

PLAIN = 200
"""Width of a table that goes to a pipe or a file."""


@click.command("analyze", short_help="Say layer by layer what 8-bit integers do to a model, and why.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="PATH", help="Samples, as for `lowbit optimize`; labels only tell the task.")
@click.option("-n", "n", type=click.IntRange(8), default=100, show_default=True, help="At most so many samples, spread over the data.")
@click.option(
    "--passes",
    type=click.FloatRange(1, 1000),
    default=3.0,
    show_default=True,
    help="Over the samples, to tell damages apart; more are surer.",
)
@click.option("--preprocess", metavar="PRESET|YAML", help="How samples become inputs; inferred where not given.")
@click.option("--runtime", default="onnxruntime", show_default=True, metavar="NAME", help="Whose placement is followed.")
@click.option(
    "--ranges",
    type=click.Choice(["minmax", "percentile", "entropy", "mse"]),
    default="minmax",
    show_default=True,
    help="How activation ranges follow from the samples.",
)
@click.option("--per-tensor", is_flag=True, help="One scale a weight, instead of one for each output channel.")
@click.option("--task", metavar="TASK", help="classification, detection, regression, embedding or fidelity; inferred where not given.")
@click.option("--target", metavar="COLUMN", help="Column with the label of tabular data.  [default: the last]")
@click.option("--top", type=click.IntRange(1), default=15, show_default=True, help="Layers in the table, the worst first.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Keep all layers: .json, or .html to look at.")
@output
def command(model: Path, data: str, top: int, out: Path | None, form: str, **options: Any) -> None:
    """Say layer by layer what 8-bit integers do to MODEL (.onnx), and why: outliers, unused range, channels apart, weights or activations.

    \b
    lowbit analyze model.onnx --data val/
    lowbit analyze model.onnx --data val/ --ranges mse --out analysis.html
    """
    from lowbit.cli.live import reporter_for
    from lowbit.pipeline.analyze import analyze

    if out is not None:
        check_place(out)
    with reporter_for(sys.stderr) as reporter:
        found = analyze(model, data, reporter=reporter, **options)
    document = json.dumps(as_json(found), indent=1, allow_nan=False) + "\n"
    if out is not None:
        write(out, document, found)
    if form == "json":
        click.echo(document, nl=False)
        return
    show(found, top)
    if out is not None:
        click.echo(f"Written: {out}")


def check_place(out: Path) -> None:
    """Raises UsageError where `out` cannot be written, before anything is measured."""
    from lowbit.errors import UsageError

    if out.suffix not in (".json", ".html"):
        raise UsageError(f"'{out.name}' ends in neither .json nor .html.", "Give e.g. --out analysis.html.")
    if not out.parent.is_dir():
        raise UsageError(f"There is no folder '{out.parent}'.", "Make it, or give another --out.")


def write(out: Path, document: str, found: Analysis) -> None:
    """All layers, as JSON or as a page."""
    from lowbit.bundle.manifest import write_atomic
    from lowbit.bundle.report_layers import layers_page

    write_atomic(out, document if out.suffix == ".json" else layers_page(found.layers, found.model))


def as_json(found: Analysis) -> dict[str, Any]:
    """For machines: everything, every layer in the order in which it runs."""
    from lowbit.compress.explain import leave_in_float

    left = [layer.name for layer in leave_in_float(found.layers.layers)]
    about = {"model": found.model, "data": found.data, "runtime": found.runtime, "task": found.task}
    return {**about, "leave_in_float": left, **found.layers.to_json()}


def show(found: Analysis, top: int) -> None:
    """Prints the worst layers and what to leave in floating point."""
    from rich.console import Console

    from lowbit.compress.explain import leave_in_float

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = PLAIN
    layers = found.layers
    about = f"{layers.format} on {found.runtime}, ranges by {layers.ranges}, {layers.samples:,} samples"
    cost = f"{layers.passes:.1f} passes over the samples, after one for calibration"
    console.print(f"{found.model} in {about}\n{len(layers.layers)} layers, each quantized alone: {cost}\n", markup=False)
    console.print(table(found, top, console.width))
    console.print(LEGEND, style="dim", markup=False)
    left = leave_in_float(layers.layers)
    if left:
        share = sum(layer.share for layer in left)
        count = f"{len(left)} worst of {len(layers.layers)} layers"
        console.print(f"With the {count} left in floating point, {100 * share:.0f} % of the damage is gone.", markup=False)
    else:
        console.print("No layer does any damage.")


LEGEND = """damage: share of what all layers, each alone, do to the output; SQNR: signal over noise of the layer's own output, dB
use: share of the quantized range of what it reads that the middle 99.9 % of the values take; tail: share that the top 0.1 % take alone
"""

WIDE = 110
"""Terminal width from which kurtosis and operator are shown; below, the reason is on a line of its own anyway."""


def table(found: Analysis, top: int, width: int) -> Table:
    """The worst layers, the worst first; a narrow terminal sees fewer columns."""
    from rich.table import Table
    from rich.text import Text

    from lowbit.compress.explain import why

    found_table = Table(box=None, header_style="bold", pad_edge=False)
    wide = width >= WIDE
    heads = ["damage", "SQNR", "use", "tail"] + (["kurtosis"] if wide else [])
    found_table.add_column("layer", overflow="fold")
    if wide:
        found_table.add_column("operator", no_wrap=True)
    for head in heads:
        found_table.add_column(head, justify="right", no_wrap=True)
    found_table.add_column("why", overflow="fold", min_width=20)
    for layer in found.layers.worst(top):
        cells = [_share(layer.share), _number(layer.sqnr), _share(layer.use), _share(layer.tail)]
        cells += [_number(layer.kurtosis)] if wide else []
        kind = [layer.kind] if wide else []
        found_table.add_row(Text(layer.name), *kind, *cells, Text(why(layer, shared=found.layers.shared)))
    return found_table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %" if value >= 0.01 or value == 0 else "<1 %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"
