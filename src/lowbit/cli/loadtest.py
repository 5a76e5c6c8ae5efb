"""`lowbit loadtest URL`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.options import Duration, Numbers, output
from lowbit.errors import UsageError

if TYPE_CHECKING:
    from lowbit.serving.load.loadtest import Objective, Step

KEY = "LOWBIT_API_KEY"
HEAD = ("rate/s", "sent", "ok/s", "errors", "p50", "p95", "p99", "max")


RATES = Numbers(float, "are no rates, e.g. 50,100,200", above=0, below=1e6)


@click.command("loadtest", short_help="Load a server as its users would, and find what it holds.")
@click.argument("url")
@click.option("--model", required=True, metavar="NAME", help="To ask.")
@click.option("--grpc", metavar="HOST:PORT", help="Send over gRPC to this address; with TLS where URL has https.")
@click.option("--rate", "rates", type=RATES, metavar="N,...", help="Requests a second, a step each.  [default: raised until it breaks]")
@click.option("--first", type=click.FloatRange(0.1), default=10.0, show_default=True, metavar="N", help="The rate to begin with.")
@click.option("--seconds", type=Duration(), default="10s", show_default=True, metavar="TIME", help="Of each step.")
@click.option("--p99", type=Duration(), default="100ms", show_default=True, metavar="TIME", help="Objective: 99 % answered within.")
@click.option("--errors", type=click.FloatRange(0, 1), default=0.01, show_default=True, metavar="SHARE", help="Objective: at most so many.")
@click.option("--rows", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="In a request.")
@click.option("--size", type=click.IntRange(1), default=64, show_default=True, metavar="N", help="Of axes of any length, e.g. tokens.")
@click.option("--tokens", metavar="PROMPT:ANSWER", help="A language model: stream answers of so many tokens to prompts of so many.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of arrivals and inputs.")
@click.option("--api-key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help=f"The key; {KEY} works, too.")
@output
def command(url: str, form: str, **options: Any) -> None:
    """Send requests to the server at URL when they are due, ready or not (open loop, Poisson arrivals), and say how long answers take.

    \b
    lowbit loadtest http://127.0.0.1:8000 --model demo --p99 50ms
    lowbit loadtest http://127.0.0.1:8000 --model demo --rate 50,100,200
    lowbit loadtest http://127.0.0.1:8000 --model chat --tokens 512:128 --rate 0.5,1,2 --p99 20s

    Without --rate the rate is raised until the objective breaks. A latency runs from when a request was due. Inputs are noise: what
    rollouts and reviews say of confidences and classes meanwhile says nothing about the model.
    """
    import asyncio

    from lowbit.serving.load.loadtest import Objective

    objective = Objective(options["p99"], options["errors"])
    if "://" not in url:
        raise UsageError(f"'{url}' is no address of a server.", f"Write http://{url}")
    show = _show if form == "table" else lambda step: click.echo(f"  {step.rate:g}/s: {step.ok:,} of {step.sent:,}", err=True)
    found, best = asyncio.run(_run(url, objective, show, form=form, **options))
    if form == "json":
        document = {"objective": {"p99_ms": 1000 * objective.p99_s, "errors": objective.errors}, "steps": [s.document() for s in found]}
        click.echo(json.dumps(document | {"best": best.document() if best else None}, indent=1))
        return
    click.echo(verdict(best, objective))


def verdict(best: Step | None, objective: Objective) -> str:
    """In a sentence."""
    goal = f"p99 within {1000 * objective.p99_s:g} ms and at most {objective.errors:.2%} errors"
    if best is None:
        return f"No rate held {goal}."
    return f"{best.rate:,.0f} requests a second held {goal}."


async def _run(url: str, objective: Objective, show: Any, **options: Any) -> tuple[list[Step], Step | None]:
    from lowbit.serving.load.load_targets import GrpcTarget, RestTarget, describe, varied
    from lowbit.serving.load.loadtest import closed_loop, steps, until_it_breaks

    headers = _headers(options["api_key_file"])
    if options["tokens"]:
        return await _spoken(url, objective, show, headers, **options)
    model = await describe(url, options["model"], headers)
    feeds = varied(model, options["rows"], options["size"], options["seed"])
    target: GrpcTarget | RestTarget
    if options["grpc"]:
        target = GrpcTarget(options["grpc"], model, feeds, headers, tls=url.startswith("https:"))
    else:
        target = RestTarget(url, model, feeds, headers)
    try:
        warm = await closed_loop(target, 1, 0.5)
        if not warm.ok:
            raise UsageError(f"No request is answered: {dict(warm.statuses)} by status.", "Look at the server's log.")
        if options["form"] == "table":
            click.echo(_line(HEAD))
        if options["rates"]:
            found = await steps(target, options["rates"], options["seconds"], options["seed"], show)
            held = [step for step in found if objective.held(step)]
            return found, max(held, key=lambda step: step.rate or 0, default=None)
        return await until_it_breaks(target, objective, options["seconds"], first=options["first"], seed=options["seed"], on_step=show)
    finally:
        await target.close()


async def _spoken(url: str, objective: Objective, show: Any, headers: dict[str, str], **options: Any) -> tuple[list[Step], Step | None]:
    """The same for a language model: what its first tokens took is told beside each step."""
    from lowbit.serving.load.language_target import LanguageTarget, sentence, told
    from lowbit.serving.load.loadtest import closed_loop, steps, until_it_breaks

    target = LanguageTarget(url, options["model"], *_tokens(options["tokens"]), headers, options["seed"])
    warm = await closed_loop(target, 1, 0.5)
    if not warm.ok:
        raise UsageError(f"No request is answered: {dict(warm.statuses)} by status.", "Look at the server's log, and at --model.")
    target.taken()

    def spoke(step: Step) -> None:
        step.more.update(told(target.taken()))
        show(step)
        click.echo(f"            {sentence(step.more)}", err=options["form"] != "table")

    if options["form"] == "table":
        click.echo(_line(HEAD))
    if not options["rates"]:
        return await until_it_breaks(target, objective, options["seconds"], first=options["first"], seed=options["seed"], on_step=spoke)
    found = await steps(target, options["rates"], options["seconds"], options["seed"], spoke)
    return found, max((step for step in found if objective.held(step)), key=lambda step: step.rate or 0, default=None)


def _tokens(text: str) -> tuple[int, int]:
    prompt, colon, answer = text.partition(":")
    if not colon or not all(part.isascii() and part.isdigit() and 0 < int(part) < 10_000_000 for part in (prompt, answer)):
        raise UsageError(f"--tokens: '{text}' is not understood.", "Give tokens of prompts and of answers, e.g. 512:128.")
    return int(prompt), int(answer)


def _headers(file: Path | None) -> dict[str, str]:
    try:
        text = file.read_text(encoding="utf-8-sig") if file else os.environ.get(KEY, "")
    except (OSError, UnicodeError):
        raise UsageError(f"The key in {file} cannot be read.", "Give a text file with one key.") from None
    keys = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    if len(keys) > 1 or (file and not keys):
        raise UsageError(f"There are {len(keys)} keys in {file or KEY}.", "A load test sends one key: leave one line.")
    if keys and not (keys[0].isascii() and keys[0].isprintable()):
        raise UsageError(f"The key in {file or KEY} cannot be part of a header.", "Keys are letters, digits and signs of ASCII.")
    return {"Authorization": f"Bearer {keys[0]}"} if keys else {}


def _show(step: Step) -> None:
    times = [_time(step.quantile(q)) for q in (0.5, 0.95, 0.99)]
    slowest = _time(float(step.all_latencies_s[-1])) if step.sent else "-"
    click.echo(_line((f"{step.rate:g}", f"{step.sent:,}", f"{step.throughput:,.1f}", f"{step.errors:.2%}", *times, slowest)))


def _time(seconds: float) -> str:
    return "-" if seconds != seconds else f"{1000 * seconds:,.1f} ms"


def _line(cells: tuple[str, ...]) -> str:
    return "  ".join(cell.rjust(10) for cell in cells)
