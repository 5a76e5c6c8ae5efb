"""`lowbit validate MODEL --data DATA`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from lowbit.cli.options import data_options, output


@click.command("validate", short_help="Score one model on one data set and keep every sample's outcome.")
@click.argument("model", type=click.Path(path_type=Path))
@data_options
@click.option("--runtime", default="onnxruntime", show_default=True, metavar="NAME", help="Where to run it; see `lowbit doctor`.")
@click.option(
    "--precision", type=click.Choice(["f32", "bf16", "f16"]), default="f32", show_default=True, help="Arithmetic of what is floating point."
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE.json", help="Keep the results for `lowbit compare`.")
@output
def command(model: Path, data: str, runtime: str, precision: Any, out: Path | None, form: str, **options: Any) -> None:
    """Score MODEL (.onnx, or .pt2 with --runtime torch) on a data set and keep every sample's outcome.

    \b
    lowbit validate model.onnx --data val/ --out fp32.json
    lowbit validate model-int8.onnx --data val/ --out int8.json
    lowbit compare fp32.json int8.json --max-drop 1%
    """
    from lowbit.bundle import words
    from lowbit.cli.live import reporter_for
    from lowbit.pipeline import results
    from lowbit.pipeline.request import Options

    if out is not None:
        results.check_target(out)
    with reporter_for(sys.stderr) as reporter:
        scored = results.validate(model, data, runtime=runtime, precision=precision, options=Options(**options), reporter=reporter)
    if out is not None:
        results.save(scored, out)
    if form == "json":
        click.echo(json.dumps(results.summary(scored), indent=1, allow_nan=False))
        return
    click.echo(f"{scored.model} on {scored.runtime}, {scored.n:,} samples")
    for name, value in {scored.metric: scored.value, **scored.secondary}.items():
        click.echo(f"  {words.metric_name(name):<20} {words.metric_value(name, value)}")
    for name, value, n in results.slice_values(scored):
        click.echo(f"  {name} (n={n:,}): {words.metric_value(scored.metric, value)}")
    if out is not None:
        click.echo(f"Results: {out}")
