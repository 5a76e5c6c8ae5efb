"""`lowbit bench MODEL...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from lowbit.cli.options import Numbers, output


@click.command("bench", short_help="Time models against each other, each alone in its process.")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--runtime", "runtimes", multiple=True, metavar="NAME", help="Runtimes to use; all that open the file where not given. Repeatable."
)
@click.option("--batch", type=Numbers(), default="1,8", show_default=True, help="Batch sizes.")
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="Compute threads; 0 means the runtime's default.")
@click.option("--streams", type=click.IntRange(1), default=1, show_default=True, help="Calls in flight at once.")
@click.option(
    "--precision", type=click.Choice(["f32", "bf16", "f16"]), default="f32", show_default=True, help="Arithmetic of what is floating point."
)
@click.option("--rounds", type=click.IntRange(3, 1000), default=15, show_default=True, help="Turns of each variant.")
@click.option("--seconds", type=click.FloatRange(0.01, 60), default=0.3, show_default=True, help="Length of a turn.")
@click.option(
    "--size", "length", type=click.IntRange(1), default=64, show_default=True, help="Length of dynamic axes other than the batch."
)
@output
def command(models: tuple[Path, ...], runtimes: tuple[str, ...], batch: tuple[int, ...], length: int, form: str, **settings: Any) -> None:
    """Time MODELS (.onnx, or .pt2 on torch) on every runtime: one process each, the others blocked, rounds in turn.

    The first line is the yardstick.

    \b
    lowbit bench model.onnx model-int8.onnx --batch 1
    """
    from lowbit.bundle import words
    from lowbit.cli.live import reporter_for
    from lowbit.pipeline.bench import bench
    from lowbit.pipeline.journal import encode

    with reporter_for(sys.stderr) as reporter:
        rows = bench(models, runtimes, batch, length=length, reporter=reporter, **settings)
    if form == "json":
        click.echo(
            json.dumps(
                [{"id": row.id, "error": row.error, "measurement": encode(row.measurement) if row.measurement else None} for row in rows],
                indent=1,
            )
        )
        return
    width = max(len(row.id) for row in rows)
    for row in rows:
        if row.measurement is None:
            click.echo(f"{row.id:<{width}}  {row.error}")
            continue
        found = row.measurement
        ratio = found.speedup
        times = "" if ratio is None else f"{words.times(ratio.value)} [{words.times(ratio.ci_low)}, {words.times(ratio.ci_high)}]"
        click.echo(
            f"{row.id:<{width}}  batch {found.batch:>3}  p50 {words.milliseconds(found.latency_ms.p50):>9}  p95 "
            f"{words.milliseconds(found.latency_ms.p95):>9}  {found.throughput_per_s:>8,.0f}/s  {times}{'  noisy' if found.noisy else ''}"
        )
