"""`lowbit rollout`: let a version in step by step, and take it back when it is worse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.options import output
from lowbit.cli.registry import FOLDER, attempt, author, dry, place, why
from lowbit.errors import ModelError, UsageError

if TYPE_CHECKING:
    from lowbit.rollout.plan import Plan
    from lowbit.rollout.records import Decided, Rollout
    from lowbit.rollout.store import Rollouts

SHOWN = 20


@click.group("rollout", short_help="Let a version in step by step, and take it back when it is worse.", no_args_is_help=True)
def command() -> None:
    """Let a version in step by step, and take it back when it is worse.

    Servers that were started with `lowbit serve NAME --registry DIR` follow: they split the traffic, report what they see, and look at it
    every few seconds. ROLLOUT is a rollout's name, e.g. fashion-1, or a model's name: its latest.
    """


@command.command("start", short_help="Begin to let a version in.")
@click.argument("ref")
@click.option("--plan", "file", type=FOLDER, metavar="FILE.yaml", help="Steps, times and guardrails.")
@click.option("--mode", type=click.Choice(["canary", "ab", "shadow"]), help="In steps; one split; or mirrored only.  [default: canary]")
@click.option("--steps", metavar="SHARE,...", help="Shares that the candidate answers.  [default: 1%,5%,25%,50%,100%]")
@click.option("--step-time", metavar="TIME", help="A step lasts at least that long.  [default: 10m]")
@click.option("--min-requests", type=click.IntRange(1), metavar="N", help="And until the candidate has answered so many.  [default: 500]")
@click.option("--deadline", metavar="TIME", help="A step without its data by then is rolled back.  [default: 24h]")
@click.option("--shadow", metavar="SHARE", help="Of answers that are asked again at full precision.  [default: 10%]")
@place
@author
@why("")
@dry
@output
def start(ref: str, file: Path | None, folder: Path, by: str, why: str, dry_run: bool, form: str, **options: Any) -> None:
    """Begin to let version REF in beside the champion of its model.

    \b
    lowbit rollout start fashion@4
    lowbit rollout start fashion@4 --steps 20%,50%,100% --step-time 2m
    lowbit rollout start fashion@4 --mode ab --steps 50%

    What is given here goes before what the plan's file says.
    """
    plan = _plan(file, **options)
    with _rollouts(folder) as rollouts:
        candidate = rollouts.registry.resolve(ref)
        if dry_run:
            _show_plan(plan, form)
            return
        rollout = rollouts.start(candidate.model, candidate, plan, by=by, why=why)
        if form == "json":
            _print(_document(rollouts, rollout))
            return
        share = f"answers {100 * rollout.share:g} % of the traffic" if rollout.share else "is asked, too, and answers nobody"
        click.echo(f"{rollout.id}: {candidate.ref} {share}.")


@command.command("status", short_help="Show rollouts, or one with its evidence.")
@click.argument("rollout", required=False)
@place
@output
def status(rollout: str | None, folder: Path, form: str) -> None:
    """Show all rollouts, or ROLLOUT with what its guardrails say."""
    from lowbit.cli import rollout_tables

    with _rollouts(folder) as rollouts:
        if rollout is None:
            found = rollouts.listed()
            if form == "json":
                _print({"rollouts": [_document(rollouts, each) for each in found]})
            elif not found:
                click.echo("There are no rollouts yet.")
            else:
                rollout_tables.show_rollouts(found, _refs(rollouts))
            return
        one = _found(rollouts, rollout)
        if form == "json":
            _print(
                {**_document(rollouts, one), "evidence": rollouts.evidence(one.id, one.step).to_json(), "result": _result(rollouts, one)}
            )
            return
        last = rollouts.decisions(one.id, last=1)
        rollout_tables.show_rollout(one, last[0] if last else None, _refs(rollouts))
        if one.plan.mode == "ab":
            rollout_tables.show_result(_result(rollouts, one))


@command.command("pause", short_help="Stop the steps; the share and the guardrails stay.")
@click.argument("rollout")
@place
@author
@why("")
@output
def pause(rollout: str, folder: Path, by: str, why: str, form: str) -> None:
    """Stop the steps of ROLLOUT and their clock. The candidate keeps its share, and a failing guardrail still takes it away."""
    _act("pause", rollout, folder, by, why, form)


@command.command("resume", short_help="Go on after a pause.")
@click.argument("rollout")
@place
@author
@why("")
@output
def resume(rollout: str, folder: Path, by: str, why: str, form: str) -> None:
    """Go on with ROLLOUT after a pause, which counts nowhere as time."""
    _act("resume", rollout, folder, by, why, form)


@command.command("promote", short_help="Make the candidate the champion now.")
@click.argument("rollout")
@place
@author
@why("A person ended it.")
@dry
@output
def promote(rollout: str, folder: Path, by: str, why: str, dry_run: bool, form: str) -> None:
    """Make the candidate of ROLLOUT the champion now, whatever the evidence says. The champion so far becomes the fallback."""
    _act("promote", rollout, folder, by, why, form, dry_run=dry_run)


@command.command("abort", short_help="Take the candidate's share away now.")
@click.argument("rollout")
@place
@author
@why("A person ended it.")
@dry
@output
def abort(rollout: str, folder: Path, by: str, why: str, dry_run: bool, form: str) -> None:
    """Take the share of ROLLOUT's candidate away now: the champion answers everybody again."""
    _act("abort", rollout, folder, by, why, form, dry_run=dry_run)


@command.command("decisions", short_help="Show what was decided, and from what.")
@click.argument("rollout")
@click.option("--limit", type=click.IntRange(1), default=SHOWN, show_default=True, metavar="N", help="The last N.")
@place
@output
def decisions(rollout: str, limit: int, folder: Path, form: str) -> None:
    """Show the decisions of ROLLOUT. With --output json each has everything that it was made from."""
    from lowbit.cli import rollout_tables

    with _rollouts(folder) as rollouts:
        found = rollouts.decisions(_found(rollouts, rollout).id, last=min(limit, 10**9))
        if form == "json":
            _print({"decisions": [_decided(each, look=True) for each in found]})
        elif not found:
            click.echo("Nobody has looked yet: a server that follows the registry does.")
        else:
            rollout_tables.show_decisions(found)


@command.command("replay", short_help="Decide everything again from what was kept.")
@click.argument("rollout")
@place
@output
def replay(rollout: str, folder: Path, form: str) -> None:
    """Decide everything in ROLLOUT again from the evidence that was kept, and say whether it comes to the same.

    The exit code is 3 where it does not: something was changed afterwards.
    """
    with _rollouts(folder) as rollouts:
        one = _found(rollouts, rollout)
        count, found = rollouts.count(one.id), rollouts.replay(one.id)
    if form == "json":
        _print({"rollout": one.id, "decisions": count, "mismatches": [asdict(each) for each in found]})
    else:
        click.echo(f"{one.id}: {count - len(found):,} of {count:,} decisions replay to what was written.")
        for each in found:
            click.echo(f"  decision {each.decision}: {each.text}")
    if found:
        raise ModelError(f"{len(found)} decisions of {one.id} are not what was decided.", "`lowbit registry verify` looks for more.")


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _rollouts(folder: Path) -> Iterator[Rollouts]:
    from lowbit.registry.registry import Registry
    from lowbit.rollout.store import Rollouts

    with Registry.open(folder) as registry:
        yield Rollouts(registry)


def _plan(file: Path | None, **options: Any) -> Plan:
    """The file's plan, with what was given on the command line instead."""
    import yaml

    from lowbit.rollout.plan import Plan

    try:
        text = file.read_text(encoding="utf-8") if file else ""
    except (OSError, UnicodeError) as error:
        raise UsageError(f"The plan {file} cannot be read: {error}.", "Give a text file; docs/guides/rollout.md shows one.") from None
    Plan.from_yaml(text)  # says what is wrong with the file itself
    named = {
        "mode": "mode",
        "steps": "steps",
        "step_time": "step_s",
        "min_requests": "min_requests",
        "deadline": "deadline_s",
        "shadow": "shadow",
    }
    given = {key: options[name] for name, key in named.items() if options[name] is not None}
    if "steps" in given:
        given["steps"] = [_number(part) for part in given["steps"].split(",")]
    if "shadow" in given:
        given["shadow"] = _number(given["shadow"])
    return Plan.from_json({**(yaml.safe_load(text) or {}), **given})


def _number(text: str) -> float | str:
    """As YAML would read it: 0.2 is a number, 20% a text."""
    try:
        return float(text)
    except ValueError:
        return text


def _found(rollouts: Rollouts, name: str) -> Rollout:
    """By its own name, which goes before a model's of the same name; or the latest of a model."""
    named = [each for each in rollouts.listed() if each.id == name] or rollouts.listed(name)
    return named[0] if named else rollouts.get(name)


def _act(verb: str, name: str, folder: Path, by: str, why: str, form: str, *, dry_run: bool = False) -> None:
    with _rollouts(folder) as rollouts:
        before = _found(rollouts, name)
        with attempt(rollouts.registry, dry_run):
            after = getattr(rollouts, verb)(before.id, by=by, why=why)
            document, champion = _document(rollouts, after), rollouts.registry.resolve(f"{after.model}@champion").ref
        if form == "json":
            _print(document | {"dry_run": dry_run})
            return
        answers = f"{document['candidate']} answers {100 * after.share:g} %" if after.open else f"{champion} answers everybody"
        would, state = "would be" if dry_run else "is", after.state.replace("_", " ")
        click.echo(f"{after.id} {would} {state}: {answers}.{'  Not done: --dry-run.' if dry_run else ''}")


def _refs(rollouts: Rollouts) -> dict[str, str]:
    """Digest -> reference of every version, beginnings of digests for those that were collected."""
    registry = rollouts.registry
    known = {version.digest: version.ref for model in registry.models() for version in registry.versions(model)}
    listed = [digest for each in rollouts.listed() for digest in (each.champion, each.candidate)]
    return {digest: f"sha256:{digest[:12]}" for digest in listed} | known


def _document(rollouts: Rollouts, rollout: Rollout) -> dict[str, Any]:
    last = rollouts.decisions(rollout.id, last=1)
    refs = _refs(rollouts)
    names = {"champion": refs[rollout.champion], "candidate": refs[rollout.candidate]}
    return {
        **asdict(rollout),
        **names,
        "digests": {"champion": rollout.champion, "candidate": rollout.candidate},
        "plan": rollout.plan.to_json(),
        "decision": _decided(last[0]) if last else None,
    }


def _decided(decided: Decided, *, look: bool = False) -> dict[str, Any]:
    found = {"id": decided.id, "at": decided.at, "step": decided.look.step, **decided.decision.to_json(), "sha256": decided.sha256}
    return {**found, "look": decided.look.to_json()} if look else found


def _result(rollouts: Rollouts, rollout: Rollout) -> list[dict[str, Any]]:
    from lowbit.rollout.result import results

    return [asdict(each) for each in results(rollout.plan, rollouts.evidence(rollout.id, rollout.step))]


def _show_plan(plan: Plan, form: str) -> None:
    click.echo(json.dumps(plan.to_json(), indent=1) if form == "json" else plan.to_yaml().rstrip())


def _print(document: Any) -> None:
    click.echo(json.dumps(document, indent=1))
