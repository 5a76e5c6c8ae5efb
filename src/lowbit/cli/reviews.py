"""`lowbit reviews list|show|accept|rollback|recalibrate STATE …`."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.options import output, state_folder
from lowbit.errors import UsageError

if TYPE_CHECKING:
    from lowbit.monitoring.reviews import Review

STATE = click.argument("state", type=click.Path(path_type=Path), callback=state_folder)
WIDTH, HEIGHT = 64, 8
"""Of a histogram in the terminal, in characters."""
BLOCKS = " ▁▂▃▄▅▆▇█"


@click.group("reviews", short_help="Answer shifts that wait for a person.")
def command() -> None:
    """Answer shifts that wait for a person: accept them as normal, roll back, or ask for recalibration.

    STATE is the folder of `lowbit serve --state`, or the registry that is served. Until somebody answers, rollouts of the model hold. The
    first answer stands.
    """


def answered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Who answers, and why."""
    for option in (
        click.option("--why", default="", metavar="TEXT", help="In your words; kept with the review."),
        click.option("--by", metavar="NAME", help="Who answers.  [default: the user's name]"),
    ):
        function = option(function)
    return function


@command.command("list", short_help="What waits, and what was answered.")
@STATE
@click.option("--state", "wanted", default="open", show_default=True, metavar="open|accepted|rolled_back|recalibrated|all", help="Which.")
@click.option("--model", metavar="NAME", help="Of one model alone.")
@output
def list_(state: Path, wanted: str, model: str | None, form: str) -> None:
    """List reviews, the latest first."""
    from lowbit.monitoring.store import Monitoring

    with Monitoring(state, create=False) as monitoring:
        found = monitoring.reviews.listed(None if wanted == "all" else wanted, model=model)
    if form == "json":
        click.echo(json.dumps({"schema": 1, "reviews": [review.to_json() for review in found]}, indent=1))
        return
    if not found:
        click.echo("No review is open." if wanted == "open" else "There is none.")
        return
    for review in found:
        who = "" if review.closed is None else f"  {review.state.replace('_', ' ')} by {review.by}"
        click.echo(f"{review.id}  {day(review.opened)}  {' '.join(review.key)}  {review.kind}{who}")
        click.echo(f"  {review.evidence['finding']['text']}")


@command.command("show", short_help="One review with its evidence.")
@STATE
@click.argument("review")
@output
def show(state: Path, review: str, form: str) -> None:
    """Show a REVIEW: the numbers, and both distributions."""
    from lowbit.monitoring.store import Monitoring

    with Monitoring(state, create=False) as monitoring:
        found = monitoring.reviews.one(review)
    if form == "json":
        click.echo(json.dumps({"schema": 1, **found.to_json()}, indent=1))
        return
    evidence = found.evidence
    click.echo(f"{found.id}: {found.kind} of {' '.join(found.key)}")
    click.echo(f"  {evidence['finding']['text']}")
    looks = "1 look" if found.seen == 1 else f"{found.seen:,} looks"
    click.echo(f"  window: {day(evidence['since'])} to {day(evidence['until'])}, {evidence['n']:,} rows; found in {looks}")
    if evidence["baseline"]:
        click.echo(f"  baseline: {evidence['baseline']['text']}")
    for name in ("baseline_confidence", "confidence"):
        if evidence[name]:
            title = "confidence, window" if name == "confidence" else "confidence, baseline"
            click.echo(f"  {title:<22}0 {bars(evidence[name])} 1")
    if found.closed is None:
        click.echo(f"Open. {found.to_json()['policy']['text']}")
    else:
        why = f": {found.why}" if found.why else ""
        click.echo(f"{found.state.replace('_', ' ').capitalize()} by {found.by}, {day(found.closed)}{why}")


@command.command("accept", short_help="What the window shows is normal now.")
@STATE
@click.argument("review")
@answered
@output
def accept(state: Path, review: str, by: str | None, why: str, form: str) -> None:
    """Accept a REVIEW: its window becomes the baseline that later windows are compared with."""
    from lowbit.monitoring.store import Monitoring

    with Monitoring(state, create=False) as monitoring:
        found = monitoring.accept(review, by=name_of(by), why=why)
    told(found, form, "The window is the new baseline.")


@command.command("rollback", short_help="The version before serves again.")
@STATE
@click.argument("review")
@click.option(
    "--registry",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Roll the model's champion back there, too.  [default: the registry that STATE lies in]",
)
@answered
@output
def rollback(state: Path, review: str, registry: Path | None, by: str | None, why: str, form: str) -> None:
    """Answer a REVIEW by a rollback: the champion of the registry is what it was before; where there is none, only the answer is kept."""
    from lowbit.monitoring.store import Monitoring

    with Monitoring(state, create=False) as monitoring:
        who, registry = name_of(by), registry or registry_around(state)
        before = monitoring.reviews.one(review)
        done = "Nothing was rolled back, because no registry was given: roll the model back where it is served."
        if registry is not None and before.closed is None:
            done = rolled_back(registry, before, who, why)
        found = monitoring.reviews.close(review, "rolled_back", by=who, why=why)
    told(found, form, done)


@command.command("recalibrate", short_help="Ask for new ranges from recent inputs.")
@STATE
@click.argument("review")
@answered
@output
def recalibrate(state: Path, review: str, by: str | None, why: str, form: str) -> None:
    """Answer a REVIEW by asking for recalibration; `lowbit recalibrate` then makes the challenger."""
    from lowbit.monitoring.store import Monitoring

    with Monitoring(state, create=False) as monitoring:
        found = monitoring.reviews.close(review, "recalibrated", by=name_of(by), why=why)
        kept = monitoring.samples.count().get(found.key.model, 0)
    next_step = f"{kept:,} recent inputs are kept. Next: lowbit recalibrate BUNDLE --samples {state} --model {found.key.model} --out DIR"
    if not kept:
        next_step = "No inputs are kept yet: start the server with --sample-inputs SHARE, then lowbit recalibrate."
    told(found, form, next_step)


def registry_around(state: Path) -> Path | None:
    """The registry whose server keeps its state there; None where it is another folder."""
    around = state.absolute().parent
    return around if (around / "registry.sqlite").is_file() else None


def rolled_back(registry: Path, review: Review, by: str, why: str) -> str:
    """Moves the model's champion back; says to what.

    Raises:
        UsageError: the registry does not know the model, or its champion is not what the review is about.
    """
    from lowbit.bundle.manifest import FILE_NAME
    from lowbit.registry.registry import Registry

    model = review.key.model
    with Registry.open(registry) as opened:
        champion = opened.resolve(f"{model}@champion")
        manifest = next(file.sha256 for file in opened.files(champion) if file.path == FILE_NAME)
        if review.key.version not in (str(champion.number), manifest[:12]):  # served from the registry, or from the folder that was pushed
            raise UsageError(
                f"The champion is {champion.ref}, and not the version that the review is about: nothing was rolled back.",
                "Accept the review, or act by hand: lowbit rollout abort, lowbit registry rollback.",
            )
        opened.rollback(model, by=by, why=why or f"review {review.id}: {review.kind}")
        return f"{model}@champion is {opened.resolve(f'{model}@champion').ref} again."


def told(review: Review, form: str, done: str) -> None:
    """Says how a review was answered."""
    if form == "json":
        click.echo(json.dumps({"schema": 1, **review.to_json(), "done": done}, indent=1))
        return
    click.echo(f"{review.id}: {review.state.replace('_', ' ')} by {review.by}. {done}")


def name_of(by: str | None) -> str:
    """Who answers."""
    return getpass.getuser() if by is None else by


def day(at: float) -> str:
    """A time for people, UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def bars(counts: list[int]) -> str:
    """A histogram in one line; heights are square roots, so that a thin tail is seen beside a high peak."""
    step = len(counts) // WIDTH
    sums = [sum(counts[start : start + step]) for start in range(0, step * WIDTH, step)]
    most = max(sums)
    return "".join(BLOCKS[round((value / most) ** 0.5 * HEIGHT)] if most else " " for value in sums)
