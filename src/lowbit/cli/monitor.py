"""`lowbit monitor show|rules|dashboard`."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowbit.cli.options import Duration, output, state_folder
from lowbit.errors import UsageError, unknown

if TYPE_CHECKING:
    from lowbit.monitoring.looking import Look
    from lowbit.monitoring.tally import Key

SLA = "100ms:0.99:0.999"
promise = click.option(
    "--sla", default=SLA, show_default=True, metavar="TIME[:SHARE[:SHARE]]", help="Answered within; how many; how many without an error."
)


@click.group("monitor", short_help="Show windows of a server's traffic; write alert rules and a dashboard.")
def command() -> None:
    """Show windows of a server's traffic, and write what Prometheus and Grafana need to watch it."""


@command.command("show", short_help="The latest window of every variant, and what the rules say of it.")
@click.argument("state", type=click.Path(path_type=Path), callback=state_folder)
@click.option("--model", metavar="NAME", help="Of one model alone.")
@click.option("--span", type=Duration(), default="7d", show_default=True, metavar="TIME", help="How far back a window may reach.")
@click.option("--history", type=Duration(), metavar="TIME", help="Also every window of this length, e.g. 1h.")
@promise
@click.option("--price", type=click.FloatRange(0), metavar="USD", help="Of the machine, an hour.")
@click.option("--cores", type=click.IntRange(1), metavar="N", help="That the server may use.  [default: this machine's]")
@output
def show(
    state: Path, model: str | None, span: float, history: float | None, sla: str, price: float | None, cores: int | None, form: str
) -> None:
    """Show the latest window of every variant in STATE: the folder of `lowbit serve --state`, or the registry that is served.

    Nothing is changed by looking.
    """
    import time

    from lowbit.monitoring.looking import look
    from lowbit.monitoring.rules import Rules
    from lowbit.monitoring.shown import look_document, window_document
    from lowbit.monitoring.sla import Sla
    from lowbit.monitoring.store import Monitoring
    from lowbit.monitoring.windows import buckets

    _check(span, history, price)
    rules, now, most = Rules(sla=Sla.parse(sla)), time.time(), cores or os.cpu_count() or 1
    with Monitoring(state, create=False) as monitoring:
        kept = monitoring.keys(since=now - span)
        if model is not None and kept and model not in (names := sorted({key.model for key in kept})):
            raise unknown("model", model, names)
        keys = [key for key in kept if model in (None, key.model)]
        looks = {key: look(monitoring, key, rules, now=now, span_s=span, opens=False) for key in keys}
        before = [] if history is None else buckets(monitoring.windows(model=model, since=now - span), history)
        waiting = monitoring.reviews.listed("open", model=model)
    if form == "json":
        documents = [look_document(each, cores=most, price_per_hour=price) for each in looks.values()]
        listed = [window_document(window, cores=most, price_per_hour=price) for window in before]
        report = {"schema": 1, "windows": documents, "history": listed, "reviews_open": [review.id for review in waiting]}
        click.echo(json.dumps(report, indent=1, allow_nan=False))
        return
    if not looks:
        click.echo("No window of that time is kept. A server writes one a minute, and one when it stops, once requests have come.")
        return
    for key, seen in looks.items():
        show_look(key, seen, price, most)
    if before:
        show_history([window_document(window, cores=most, price_per_hour=price) for window in before])
    if waiting:
        many = "1 review waits" if len(waiting) == 1 else f"{len(waiting)} reviews wait"
        click.secho(f"{many} for a person: lowbit reviews list {state}", fg="yellow")


def _check(span: float, history: float | None, price: float | None) -> None:
    """Refuses what is no span of time, and no price.

    Raises:
        UsageError: one of them is not above zero, or not finite.
    """
    for option, seconds in (("--span", span), ("--history", history)):
        if seconds is not None and not 0 < seconds < math.inf:
            raise UsageError(f"{option} of {seconds:g} s is no span of time.", "Give e.g. 1h or 7d.")
    if price is not None and not math.isfinite(price):
        raise UsageError(f"A machine does not cost {price:g} dollars an hour.", "Give e.g. --price 0.0416.")


def show_look(key: Key, seen: Look, price: float | None, cores: int) -> None:
    """One variant: what came, and each rule's answer."""
    from lowbit.cli.reviews import day
    from lowbit.monitoring.shown import look_document

    document = look_document(seen, cores=cores, price_per_hour=price)
    assert document is not None, key
    click.secho(f"{key.model} {key.version} {key.variant}", bold=True)
    click.echo(f"  {day(document['since'])} to {day(document['until'])}: {line(document)}")
    baseline = document["baseline_from"]
    click.echo(f"  baseline: {baseline or 'none yet'}")
    for finding in seen.findings:
        over = finding.review or (finding.kind in ("errors", "latency") and finding.value > finding.limit)
        click.secho(
            f"  {'!' if over else ' '} {finding.kind:<12}{finding.text.removesuffix(f' Compared with {baseline}.')}",
            fg="yellow" if over else None,
        )
    if seen.accuracy is not None and not any(finding.kind == "accuracy" for finding in seen.findings):
        found = seen.accuracy
        click.echo(f"    accuracy    {found.value:.1%} [{found.low:.1%}, {found.high:.1%}] of {found.n:,} labelled answers")
    if (energy := document["energy"]) is not None and energy["joules_per_inference"] is not None:
        ends = "" if energy["low"] is None else f" ({1000 * energy['low']:.3g} to {1000 * energy['high']:.3g})"
        click.echo(f"    energy      {1000 * energy['joules_per_inference']:.3g} mJ{ends} an inference, {energy['method']}")
    if (cost := document["cost"]) is not None:
        click.echo(f"    cost        ${cost['per_million_usd']:.2f} a million inferences, {cost['method']}")


def line(document: dict[str, object]) -> str:
    """What came, in a line."""
    times = document["latency_ms"]
    shown = ", ".join(f"{name} {value:.1f}" for name, value in times.items()) + " ms" if isinstance(times, dict) else "no times"
    return f"{document['requests']:,} requests ({document['errors']:,} failed), {document['throughput_per_s']:.1f} a second, {shown}"


def show_history(documents: list[dict[str, object]]) -> None:
    """Windows of one length, one a line."""
    from lowbit.cli.reviews import day

    click.secho("Windows", bold=True)
    for each in documents:
        click.echo(f"  {day(float(str(each['until'])))}  {each['model']} {each['version']} {each['variant']}  {line(each)}")


@command.command("rules", short_help="Alert rules for Prometheus.")
@promise
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="To write.  [default: stdout]")
def rules(sla: str, out: Path | None) -> None:
    """Write alert rules for Prometheus: budgets that burn, shifts that wait for a person, servers that are away."""
    from lowbit.monitoring.prometheus_rules import rules_file
    from lowbit.monitoring.sla import Sla

    written(rules_file(Sla.parse(sla)), out)


@command.command("dashboard", short_help="A dashboard for Grafana.")
@promise
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="To write.  [default: stdout]")
def dashboard(sla: str, out: Path | None) -> None:
    """Write a dashboard that Grafana imports: requests, times, shifts, labels, energy and cost."""
    from lowbit.monitoring.dashboard import dashboard_file
    from lowbit.monitoring.sla import Sla

    written(dashboard_file(Sla.parse(sla)), out)


def written(text: str, out: Path | None) -> None:
    """To a file or to stdout."""
    from lowbit.bundle.manifest import write_atomic

    if out is None:
        click.echo(text, nl=False)
        return
    if not out.parent.is_dir():
        raise UsageError(f"There is no folder {out.parent}.", "Make it, or choose another --out.")
    click.echo(f"Written: {write_atomic(out, text)}")
