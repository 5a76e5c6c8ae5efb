"""`lowbit recalibrate BUNDLE --samples STATE`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowbit.cli.options import Duration, output, state_folder

if TYPE_CHECKING:
    from lowbit.pipeline.recalibrate import Recalibrated

FOLDER = click.Path(path_type=Path)


@click.command("recalibrate", short_help="Find a bundle's ranges anew on recent inputs, as a challenger.")
@click.argument("bundle", type=FOLDER)
@click.option(
    "--samples",
    "state",
    type=FOLDER,
    required=True,
    callback=state_folder,
    metavar="STATE",
    help="The server's state folder, or its registry, with the inputs that it kept.",
)
@click.option("--model", metavar="NAME", help="Under which it is served; needed where inputs of several models were kept.")
@click.option("--since", type=Duration(), metavar="TIME", help="Only inputs of that time up to now, e.g. 48h.  [default: all]")
@click.option("--data", metavar="PATH", help="The original data, to judge by.  [default: labels of recent inputs, else full precision]")
@click.option("--target", metavar="COLUMN", help="Column with the label of tabular data.  [default: the last]")
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="The challenger's folder.")
@click.option("--time-limit", type=Duration(), metavar="TIME", help="Decide with what is found by then, e.g. 10m.")
@click.option("--force", is_flag=True, help="Start anew: replace what an earlier run left in --out.")
@output
def command(
    bundle: Path,
    state: Path,
    model: str | None,
    since: float | None,
    data: str | None,
    target: str | None,
    out: Path,
    time_limit: float | None,
    force: bool,
    form: str,
) -> None:
    """Find the ranges of BUNDLE's static INT8 anew on recent inputs; the result is a bundle that can challenge it.

    The inputs are those that `lowbit serve --sample-inputs` kept. What decides is, in this order: the original data where --data gives
    them, labels that came later, agreement with full precision on recent inputs that were kept apart.

    \b
    lowbit recalibrate build/demo --samples state --out build/challenger
    lowbit recalibrate build/demo --samples state --since 48h --data val/ --out build/challenger
    """
    from lowbit.cli.live import reporter_for
    from lowbit.cli.optimize import command_line
    from lowbit.pipeline.recalibrate import recalibrate

    with reporter_for(sys.stderr) as reporter:
        found = recalibrate(
            bundle,
            state,
            out=out,
            model=model,
            data=data,
            target=target,
            since=0.0 if since is None else time.time() - since,
            time_limit_s=time_limit,
            force=force,
            reporter=reporter,
            command=command_line(),
        )
    show(found, form)


def show(found: Recalibrated, form: str) -> None:
    """The challenger's decision, and how it compares on recent inputs with what ships today."""
    if form == "json":
        click.echo(json.dumps(found.to_json(), indent=1, allow_nan=False))
        return
    from lowbit.cli.show import show_result

    show_result(found.result.bundle, form)
    click.echo(f"Calibrated on {found.calibrated_on:,} recent inputs; judged by {found.judged_by}.")
    for why, n in found.left_out.items():
        click.echo(f"  {n:,} left out: {why}")
    if not found.challenger:
        click.secho("No new ranges were chosen, so this is no challenger: see the reasons above.", fg="yellow")
    if (agreement := found.agreement) is not None:
        low, high = -agreement.delta.ci_high, -agreement.delta.ci_low
        click.echo(
            f"Answers as full precision on {agreement.n:,} recent inputs that calibrated neither: today {agreement.before:.2%}, "
            f"challenger {agreement.after:.2%} ({100 * -agreement.delta.value:+.2f} pp [{100 * low:+.2f}, {100 * high:+.2f}])"
        )
