"""Options of `lowbit serve` for what is kept of the traffic, and what it costs."""

from __future__ import annotations

import os
from typing import Any

import click

from lowbit.cli.options import Command, Duration
from lowbit.errors import LowbitError, UsageError

WEBHOOK = "LOWBIT_WEBHOOK"


def keeping(command: Command) -> Command:
    """Adds the options."""
    options = (
        click.option(
            "--window-every", type=Duration(), default="1m", show_default=True, metavar="TIME", help="Keep traffic in windows so long."
        ),
        click.option("--feedback", is_flag=True, help="Keep the answers, so that labels which come later can be compared with them."),
        click.option(
            "--sample-inputs",
            type=click.FloatRange(0, 1),
            default=0.0,
            metavar="SHARE",
            help="Keep inputs of so many requests.  [default: none]",
        ),
        click.option("--sample-keep", type=click.IntRange(1), default=2000, show_default=True, metavar="N", help="Rows of each model."),
        click.option(
            "--sample-age", type=Duration(), default="7d", show_default=True, metavar="TIME", help="After which they are deleted."
        ),
        click.option("--redact", multiple=True, metavar="INPUT[=blur]", help="Leave it out of samples, or keep only the coarse of it."),
        click.option("--webhook", envvar=WEBHOOK, metavar="URL", help=f"Post alerts to it. {WEBHOOK} works, too, and is seen by nobody."),
        click.option("--price", metavar="USD|INSTANCE", help="Of the machine, an hour; or its name in lowbit's price table."),
        click.option("--sla", metavar="TIME[:SHARE[:SHARE]]", help="Promised: 100ms:0.99:0.999 is 99 % so quick, 99.9 % without an error."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def read_keeping(options: dict[str, Any]) -> Any:
    """The settings from the command line's.

    Raises:
        UsageError: a value that is none.
    """
    from lowbit.monitoring.samples import Redaction
    from lowbit.monitoring.sla import Sla
    from lowbit.serving.keep.settings import KeepSettings

    if options["window_every"] < 1:
        raise UsageError(f"A window of {options['window_every']:g} s is too short.", "Give --window-every 1s or more.")
    wishes = [text.partition("=") for text in options["redact"]]
    for name, equals, how in wishes:
        if not name or (equals and how not in ("blur", "drop")):
            raise UsageError(f"--redact: '{name}{equals}{how}' is not known.", "Give INPUT, which is left out, or INPUT=blur.")
    blur = frozenset(name for name, _, how in wishes if how == "blur")
    return KeepSettings(
        window_s=options["window_every"],
        feedback=options["feedback"],
        sample=options["sample_inputs"],
        samples=options["sample_keep"],
        sample_age_s=options["sample_age"],
        redaction=Redaction(frozenset(name for name, _, _ in wishes) - blur, blur),
        webhook=options["webhook"],
        price=None if options["price"] is None else price_of(options["price"]),
        sla=None if options["sla"] is None else Sla.parse(options["sla"]),
    )


def price_of(text: str) -> Any:
    """Dollars an hour, with who says so.

    Raises:
        UsageError: neither a price nor an instance of the table.
    """
    from lowbit.serving.keep.spending import Price

    try:
        usd = float(text.removeprefix("$"))
    except ValueError:
        return _from_table(text)
    if not 0 < usd < float("inf"):
        raise UsageError(f"--price: {text} is no price.", "Give dollars an hour, e.g. 0.0416.")
    return Price(usd, "--price")


def _from_table(instance: str) -> Any:
    from lowbit.cost.prices import own_table
    from lowbit.serving.keep.spending import Price

    try:
        row = own_table().find(instance)
    except LowbitError as error:
        raise UsageError(f"--price: {error.message}", "Give dollars an hour, e.g. 0.0416.") from None
    own = os.cpu_count()
    cores = f"; it has {row.vcpus:g} cores, this machine {own}" if row.vcpus is not None and row.vcpus != own else ""
    return Price(row.usd_per_hour, f"{row.origin}{cores}")
