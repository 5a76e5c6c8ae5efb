"""`lowbit assess [BUNDLE]`."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.options import output
from lowbit.errors import DataError, UsageError

if TYPE_CHECKING:
    from lowbit.cost.assess import Assessment
    from lowbit.cost.figures import Figure
    from lowbit.cost.lines import Line
    from lowbit.cost.workload import Workload

TODAY = {
    "instance": ("NAME", "What runs today, as the price table calls it."),
    "instances": ("N", "How many of them."),
    "price": ("USD", "What one costs an hour; the table's price where not given."),
    "hours": ("N", "Each runs a month.  [default: 730]"),
    "latency": ("MS", "Of one request today; a bundle's baseline where not given."),
}
LOAD = {
    "requests": ("N", "A month, e.g. 2.5e6."),
    "peak": ("N", "Requests in the busiest second.  [default: 3 times the mean]"),
    "target": ("MS", "99 % of the requests are answered within it."),
    "effort": ("USD", "What the change costs."),
    "horizon": ("N", "Months within which it has to pay.  [default: 12]"),
}
KEYS = {"price": "price_per_hour", "hours": "hours_per_month", "latency": "latency_ms", "requests": "requests_per_month"}
KEYS |= {"peak": "peak_per_second", "target": "latency_target_ms", "horizon": "horizon_months"}
COLOURS = {"worth it": "bold green", "probably": "yellow", "not worth it": "bold", "unknown": "yellow"}


def _stated(command: Any) -> Any:
    for name, (metavar, text) in reversed((TODAY | LOAD).items()):
        kind = str if name == "instance" else float
        command = click.option(f"--{name}", type=kind, metavar=metavar, help=text)(command)
    return command


@click.command("assess", short_help="Say what a model costs to run, and whether changing it is worth it.")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--workload", type=click.Path(path_type=Path), metavar="FILE.yaml", help="What runs today and what might; options below win.")
@_stated
@click.option("--prices", type=click.Path(path_type=Path), metavar="FILE", help="Your own table (.yaml), or a SkyPilot catalog (.csv).")
@click.option("--region", metavar="NAME", help="Of today's instances, where prices differ.")
@click.option(
    "--times",
    type=click.Choice(["replace", "ratio"]),
    default="replace",
    show_default=True,
    help="The bundle's times in the place of stated ones, or their ratio on today's stated time.",
)
@click.option(
    "--loadtest", "loadtests", multiple=True, metavar="NAME=FILE.json", help="`lowbit loadtest --output json` of a deployment, or of today."
)
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.html", help="Write a page, too.")
@output
def command(bundle: Path | None, workload: Path | None, prices: Path | None, report: Path | None, form: str, **options: Any) -> None:
    """Say what runs today costs, what each candidate would cost per million requests and a month, and whether the change is worth it.

    \b
    lowbit assess build/demo --instance t3.medium --instances 8 --requests 2.6e9 --target 20 --effort 16000
    lowbit assess build/demo --workload workload.yaml --report cost.html
    lowbit assess --workload workload.yaml --prices vms.csv --output json

    Every figure says where it comes from: measured (a bundle), stated (you, a price table), assumed (a default), or derived.
    What a bundle measured takes the place of what was stated. What is not known is asked for, not guessed.
    """
    from lowbit.cost.assess import assess
    from lowbit.cost.prices import own_table, read_prices

    if report is not None and (report.is_dir() or not report.parent.is_dir()):
        why = "it is a folder" if report.is_dir() else "its folder is missing"
        raise UsageError(f"The report cannot be written to {report}: {why}.", "Give another --report FILE.html.")
    evidence = _evidence(bundle)
    stated = _workload(workload, options, bundle)
    table = read_prices(prices) if prices else own_table()
    found = assess(stated, table, evidence, options["times"], _held(options["loadtests"]))
    if report is not None:
        from lowbit.bundle.manifest import write_atomic
        from lowbit.cli.assess_page import render

        write_atomic(report, render(found))
    if form == "json":
        click.echo(json.dumps(found.document(), indent=1, ensure_ascii=False, allow_nan=False))
        return
    show(found)
    if report is not None:
        click.echo(f"Report: {report}")


def _evidence(bundle: Path | None) -> Any:
    if bundle is None:
        return None
    from lowbit.bundle.bundle import Bundle
    from lowbit.cli.assess_bundle import evidence_of

    return evidence_of(Bundle.load(bundle, verify=False).manifest)


def _workload(file: Path | None, options: dict[str, Any], bundle: Path | None) -> Workload:
    """The file's, with what the command line says in its place.

    Raises:
        UsageError: there is nothing to assess, or an option is wrong.
    """
    from lowbit.cost.workload import Workload, parse_workload, read_workload

    today = {KEYS.get(name, name): options[name] for name in TODAY if options[name] is not None}
    if options["region"]:
        today["region"] = options["region"]
    load = {KEYS.get(name, name): options[name] for name in LOAD if options[name] is not None and name != "effort"}
    if options["effort"] is not None:
        load["effort"] = {"usd": options["effort"]}
    if file is None and bundle is None and not today:
        raise UsageError("There is nothing to assess.", "Give a bundle, --workload FILE.yaml, or what runs today: --instance, --instances.")
    try:
        given = parse_workload(load | {"today": today}, "the command line")
    except DataError as error:
        raise UsageError(error.message, error.hint) from None
    base = read_workload(file) if file else Workload(name=bundle.resolve().name if bundle else "today")
    return _over(replace(base, today=_over(base.today, given.today)), given, skip=("today", "name", "source"))


def _over(base: Any, given: Any, skip: tuple[str, ...] = ("name",)) -> Any:
    """`base` with the fields of `given` that are not at their defaults."""
    default = type(given)()
    changed = {each.name: getattr(given, each.name) for each in fields(given) if each.name not in skip}
    return replace(base, **{name: value for name, value in changed.items() if value != getattr(default, name)})


def _held(loadtests: tuple[str, ...]) -> dict[str, Figure]:
    """The rates that load tests held.

    Raises:
        DataError: a file is no such result.
        UsageError: an option is not NAME=FILE, or no rate was held.
    """
    from lowbit.cost.figures import measured

    found = {}
    for text in loadtests:
        name, equals, file = text.partition("=")
        if not (name and equals and file):
            raise UsageError(f"--loadtest '{text}' is not NAME=FILE.json.", "NAME is a candidate of the workload, or today.")
        try:
            document = json.loads(Path(file).read_text(encoding="utf-8"))
            best, limit = document["best"], float(document["objective"]["p99_ms"])
            rate = None if best is None else float(best["rate"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} is no result of `lowbit loadtest --output json`: {error}.") from None
        if not rate:
            raise UsageError(f"No rate was held in {file}.", "Test with a lower --rate, or a longer --p99.")
        found[name] = measured(rate, "requests/s", f"held in a load test, p99 within {limit:g} ms ({Path(file).name})")
    return found


def show(found: Assessment) -> None:
    """The assessment as tables and sentences."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 280  # a pipe or a file has room for everything
    console.print(Text.assemble((found.name, "bold")))
    console.print(cost_table(found, console.width))
    console.print(Text.assemble((found.answer.word, COLOURS[found.answer.word])))
    for sentence in found.answer.reasons:
        console.print(f"  {sentence}", markup=False)
    for title, texts in sections(found):
        if texts:
            console.print(Text(title, style="bold"))
            for text in texts:
                console.print(f"  {text}", markup=False)


def sections(found: Assessment) -> list[tuple[str, list[str]]]:
    """What stands below the answer: headings and lines."""
    from lowbit.cost import say

    money = [f"Effort: {say.dollars(found.effort)} ({found.effort.origin}: {found.effort.note})."] if found.effort else []
    if found.payback is not None:
        money.append(f"Payback: {say.number(found.payback, 'days')} ({found.payback.origin}: {found.payback.note}).")
    weeks = [f"{f'Week {week.number}' if week.number else week.state.capitalize()}: {week.title}. {week.what}" for week in found.roadmap]
    return [
        ("Effort and payback", money),
        ("Roadmap", weeks),
        ("Measured in the place of stated", replaced(found)),
        ("Where the figures come from", origins(found)),
        ("Assumed", list(found.assumptions)),
        ("Not known: please say", list(found.asked)),
    ]


def replaced(found: Assessment) -> list[str]:
    """What a bundle or a load test put in the place of what was stated."""
    from lowbit.cost import say

    names = {"latency_ms": "latency", "batch_latency_ms": "latency of a batch", "size_mb": "size", "capacity_per_s": "capacity"}
    return [
        f"{each.deployment}, {names.get(each.what, each.what)}: {say.any_unit(each.before) if each.before else 'not stated'} "
        f"→ {say.any_unit(each.after)}; {each.after.note}"
        for each in found.replaced
    ]


def origins(found: Assessment) -> list[str]:
    """Origin and note of every figure, the same ones once, with the deployments and figures that they are of."""
    lines = (found.today, *found.lines)
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for line in lines:
        for name, figure in line.figures.items():
            groups.setdefault((figure.origin, figure.note), {}).setdefault(FIGURES.get(name, name), []).append(line.name)
    order = ("measured", "stated", "assumed", "derived")
    return [
        f"{', '.join(_of_whom(name, of, len(lines)) for name, of in by_name.items())}: {origin}, {note}"
        for (origin, note), by_name in sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    ]


def _of_whom(name: str, deployments: list[str], every: int) -> str:
    if len(deployments) == every > 1:
        return f"{name} of all"
    return f"{name} of {'; '.join(deployments)}" if len(deployments) < 4 else f"{name} of {len(deployments)}"


FIGURES = {
    "request_ms": "request time",
    "capacity_per_s": "capacity",
    "hours": "hours",
    "price": "price",
    "spot_price": "spot price",
    "on_demand": "bill on demand",
    "on_spot": "bill on spot",
    "per_million": "per million",
    "per_million_spot": "per million on spot",
    "busy_per_million": "per million, never idle",
    "busy_per_million_spot": "per million on spot, never idle",
    "cpu_seconds": "CPU seconds",
    "kwh_per_million": "energy",
    "size_gb": "size",
}


def cost_table(found: Assessment, width: int) -> Any:
    """Today, today trimmed where that is less, and the candidates; a narrow terminal sees fewer columns, never broken ones."""
    from rich.table import Table
    from rich.text import Text

    names = [f"{'→' if line.name == found.answer.chosen else ' '} {name_of(found, line)}" for line in rows_of(found)]
    columns = [each for each in columns_of(found) if any(cell not in ("", "–") for cell in each[2])]
    while columns and max(map(len, names)) + sum(2 + max(len(head), *map(len, cells)) for head, _, cells in columns) > width:
        columns.remove(max(columns, key=lambda each: each[1]))
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("", no_wrap=True)
    for head, _, _ in columns:
        table.add_column(head, justify="left" if head in TEXTS else "right", no_wrap=True)
    for number, name in enumerate(names):
        table.add_row(Text(name, style="bold" if name.startswith("→") else ""), *(Text(cells[number]) for _, _, cells in columns))
    return table


TEXTS = ("instance", "quality")
"""Columns of words."""


def rows_of(found: Assessment) -> list[Line]:
    """Lines of the table."""
    return [found.today, *([] if found.trimmed is found.today else [found.trimmed]), *found.lines]


def name_of(found: Assessment, line: Line) -> str:
    """As a row is called."""
    return "today, fewer instances" if line is found.trimmed and line is not found.today else line.name


def columns_of(found: Assessment) -> list[tuple[str, int, list[str]]]:
    """Heading, rank (the highest goes first where there is no room), and a cell for each line."""
    from lowbit.bundle import words
    from lowbit.cost import say
    from lowbit.cost.decide import best_of

    def of(cell: Any) -> list[str]:
        return [cell(line) for line in rows_of(found)]

    def saved(line: Line) -> str:
        known = best_of(found.savings, line.name) if line in found.lines and not line.problems else None
        return f"{say.dollars(known.paid, ends=False)} ({say.share(known.share)})" if known else say.NONE

    def request(line: Line) -> str:
        before, now = found.today.request_ms, line.request_ms
        ratio = f" ({words.times(before.value / now.value)})" if before and now and line in found.lines else ""
        return say.number(now, "ms", ends=False) + ratio

    return [
        ("instance", 10, of(lambda line: line.instance)),
        ("request", 3, of(request)),
        ("one holds", 7, of(lambda line: say.number(line.capacity_per_s, ends=False) + ("/s" if line.capacity_per_s else ""))),
        ("instances", 4, of(lambda line: say.number(line.instances))),
        ("busy", 8, of(lambda line: say.share(line.utilization))),
        ("hours", 9, of(lambda line: say.number(line.hours, ends=False))),
        ("month", 0, of(lambda line: say.dollars(line.on_demand, ends=False))),
        ("on spot", 2, of(lambda line: say.dollars(line.on_spot, ends=False))),
        ("saves", 1, of(saved)),
        ("per million", 5, of(lambda line: say.dollars(line.per_million, ends=False))),
        ("never idle", 6, of(lambda line: say.dollars(line.least, ends=False))),
        ("weights", 11, of(lambda line: words.size(line.size_gb.value * 1e9) if line.size_gb else say.NONE)),
        ("CPU time", 13, of(lambda line: f"{say.amount(line.cpu_seconds.value * 1e3)} ms" if line.cpu_seconds else say.NONE)),
        ("kWh per million", 14, of(lambda line: say.number(line.kwh_per_million, ends=False))),
        ("quality", 12, of(lambda line: line.problems[0] if line.problems else line.quality)),
    ]
