"""`lowbit calibrate select POOL`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.options import output

if TYPE_CHECKING:
    from lowbit.pipeline.select import Selection

METHODS = ("mixed", "clusters", "k-center", "herding", "random")
SHOWN = 5
"""Lines of a list in the terminal; `--output json` has all."""


@click.group("calibrate", short_help="Choose the samples that a model is calibrated on.")
def command() -> None:
    """Choose the samples that a model is calibrated on."""


@command.command("select", short_help="Choose a few samples that stand for a pool, and say what they cover.")
@click.argument("pool")
@click.option("--model", type=click.Path(path_type=Path), metavar="MODEL", help="Whose activations tell samples apart; else the inputs do.")
@click.option("-n", "n", type=click.IntRange(8), default=200, show_default=True, help="How many samples.")
@click.option("--method", type=click.Choice(METHODS), default="mixed", show_default=True, help="How they are chosen.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything random; the same seed, the same choice.")
@click.option("--stratify/--no-stratify", default=True, show_default=True, help="Give labels and slices their shares, where there are any.")
@click.option("--production", metavar="PATH", help="Samples seen in production: say which lie outside the choice.")
@click.option("--preprocess", metavar="PRESET|YAML", help="How samples become inputs; inferred where not given.")
@click.option("--target", metavar="COLUMN", help="Column with the label of tabular data.  [default: the last]")
@click.option("--slice", "slices", multiple=True, metavar="COLUMN", help="A column whose values all get their share. Repeatable.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Choose among N samples, spread evenly over the pool.")
@click.option(
    "--out", type=click.Path(path_type=Path), default="selection.json", show_default=True, metavar="FILE.json", help="The listing to write."
)
@output
def select(pool: str, out: Path, form: str, **options: Any) -> None:
    """Choose a few samples that stand for POOL, and say what they cover of it.

    POOL is data like `--data` of `lowbit optimize`, but other samples: what calibrates must not validate. The listing that is written
    goes to `--calibration`.

    \b
    lowbit calibrate select train/ --model resnet50.onnx -n 200 --out selection.json
    lowbit optimize resnet50.onnx --data val/ --calibration selection.json
    """
    from lowbit.cli.live import reporter_for
    from lowbit.data.listing import check_place, listing_of
    from lowbit.pipeline.select import select as choose

    check_place(out)
    with reporter_for(sys.stderr) as reporter:
        found = choose(pool, reporter=reporter, **options)
    listing = listing_of(found.chosen, pool, out, target=options["target"], of=found.of, method=options["method"], seed=options["seed"])
    listing.save(out)
    if form == "json":
        report = {"listing": str(out), "copies": found.copies, "stratified": found.stratified, "coverage": found.coverage.to_json()}
        click.echo(json.dumps(report, indent=1, allow_nan=False))
        return
    show(found, options["method"])
    click.echo(f"Listing: {out}")


def show(found: Selection, method: str) -> None:
    """Prints what a selection covers."""
    copies = f", {found.copies:,} copies left out" if found.copies else ""
    shares = ", labels and slices in proportion" if found.stratified else ""
    click.echo(f"{len(found.chosen):,} of {found.of:,} samples of {found.chosen.name} by {method}{shares}{copies}")
    coverage = found.coverage
    lines: list[tuple[str, str, str]] = [("", "chosen", "random")]
    for label, name, form in (
        ("slices and labels", "groups", "{:.0%}"),
        ("clusters", "clusters", "{:.0%}"),
        ("ranges of tensors, mean", "ranges", "{:.1%}"),
        ("distance to the nearest, mean", "distance", "{:.3g}"),
        ("distance to the nearest, largest", "farthest", "{:.3g}"),
    ):
        values = [getattr(reach, name) for reach in (coverage.chosen, coverage.random)]
        if None not in values:
            lines.append((label, *(form.format(value) for value in values)))  # type: ignore[arg-type]
    for label, chosen, random in lines:
        click.echo(f"  {label:<34}{chosen:>8}{random:>10}")
    missed = [group for group in (*coverage.groups, *coverage.clusters) if not group.chosen]
    listed("Without a sample", [f"{group.kind} {group.name} ({group.pool:,} in the pool)" for group in missed])
    narrow = [entry for entry in coverage.ranges if entry.share < 0.9]
    listed(
        "Ranges below 90 % of the pool's",
        [f"{e.tensor}: {e.chosen[0]:.3g} to {e.chosen[1]:.3g} of {e.pool[0]:.3g} to {e.pool[1]:.3g} ({e.share:.0%})" for e in narrow],
    )
    if (seen := coverage.production) is not None:
        share = f"{seen.outside / seen.n:.1%}; of the pool it is {seen.expected:.1%}"
        click.echo(f"Production: {seen.outside:,} of {seen.n:,} samples lie outside ({share})")
        listed("Farthest", [f"{entry.name}: {reason(entry.distance, entry.overshoot, entry.tensor)}" for entry in seen.worst])


def reason(distance: float, overshoot: float, tensor: str | None) -> str:
    """Why a production sample is outside, in words."""
    parts = [f"{distance:.2g} times the distance that 99 % of the pool keep"] if distance > 1 else []
    return "; ".join(parts + ([] if tensor is None else [f"exceeds the range of {tensor} by {overshoot:.0%} of it"]))


def listed(title: str, entries: list[str]) -> None:
    """The first few entries below a title; nothing where there are none."""
    if not entries:
        return
    click.echo(f"{title}: {len(entries)}")
    for entry in entries[:SHOWN]:
        click.echo(f"  {entry}")
    if len(entries) > SHOWN:
        click.echo(f"  and {len(entries) - SHOWN:,} more (--output json)")
