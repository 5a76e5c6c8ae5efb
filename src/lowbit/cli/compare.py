"""`lowbit compare BASELINE.json CANDIDATE.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from lowbit.cli.options import budget_options, output


@click.command("compare", short_help="Compare two results of `validate`, sample by sample, and give a verdict.")
@click.argument("baseline", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@budget_options
@output
def command(baseline: Path, candidate: Path, form: str, **options: Any) -> None:
    """Compare two results of `lowbit validate` sample by sample: how much worse is CANDIDATE, how sure is that, is it within the budget?"""
    from lowbit.bundle import words
    from lowbit.pipeline import results
    from lowbit.pipeline.request import Options

    first, second = results.load(baseline), results.load(candidate)
    found, policy, verdict = results.compare_results(first, second, Options(**options))
    if form == "json":
        click.echo(json.dumps(results.comparison_json(found, policy, verdict), indent=1, allow_nan=False))
        return
    delta, name = found.delta, found.metric.name
    unit = "%" if delta.relative else "pp"
    click.echo(f"{first.model} → {second.model}, {found.metric.n:,} samples")
    click.echo(
        f"  {words.metric_name(name)}: {words.metric_value(name, found.baseline.value)} → {words.metric_value(name, found.metric.value)}"
    )
    low, high = words.signed(-delta.ci_high), words.signed(-delta.ci_low)
    click.echo(f"  change: {words.signed(-delta.value)} {unit} [{low}, {high}] at {words.confidence(delta.confidence)} ({delta.method})")
    if delta.worse is not None:
        click.echo(f"  flips: {delta.worse} became wrong, {delta.better} became right")
    for guard, rise in found.guards.items():
        low, high = words.signed(rise.ci_low), words.signed(rise.ci_high)
        click.echo(f"  {words.metric_name(guard)}: {words.signed(rise.value)} pp [{low}, {high}]")
    for entry in found.slices:
        click.echo(
            f"  {entry.name} (n={entry.n}): {words.metric_value(name, entry.baseline)} → {words.metric_value(name, entry.candidate)}"
        )
    click.echo(f"{verdict}: {results.MEANINGS[verdict].format(budget=policy.max_drop)}")
