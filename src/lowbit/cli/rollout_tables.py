"""Rollouts in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from lowbit.bundle import words
from lowbit.cli.registry_tables import clock, print_table, table_of
from lowbit.rollout.plan import RELATIVE

if TYPE_CHECKING:
    from lowbit.rollout.records import Decided, Rollout

NUMBERS = ("n", "requests", "share")
"""Columns."""


def show_rollouts(rollouts: Sequence[Rollout], refs: Mapping[str, str]) -> None:
    """All of them, the latest first."""
    table = table_of("rollout", "champion", "candidate", "mode", "state", "step", "share", "started", "why", right=NUMBERS)
    for each in rollouts:
        step = f"{each.step + 1} of {len(each.plan.steps)}"
        share, names = f"{100 * each.share:g} %", (refs[each.champion], refs[each.candidate])
        table.add_row(each.id, *names, each.plan.mode, each.state.replace("_", " "), step, share, clock(each.started), each.why)
    print_table(table)


def show_rollout(rollout: Rollout, last: Decided | None, refs: Mapping[str, str]) -> None:
    """One, with what its guardrails said last."""
    since = f", since {clock(rollout.step_since)}" if rollout.open else f", ended {clock(rollout.ended or 0.0)}"
    click.echo(f"{rollout.id}: {refs[rollout.candidate]} beside {refs[rollout.champion]}, mode {rollout.plan.mode}")
    step = f"step {rollout.step + 1} of {len(rollout.plan.steps)}"
    click.echo(f"{rollout.state.replace('_', ' ')}, {step}, {100 * rollout.share:g} % of the traffic{since}")
    if rollout.why:
        click.echo(f"{rollout.by}: {rollout.why}")
    if last is None:
        click.echo("Nobody has looked yet: a server that follows the registry does.")
        return
    click.echo(f"Last look, {clock(last.at)}: {last.decision.action}. {' '.join(last.decision.reasons)}")
    if last.decision.verdicts:
        table = table_of("guardrail", "verdict", "worse by", "between", "n", "waited for", right=NUMBERS)
        for each in last.decision.verdicts:
            between = interval(each.guardrail, each.low, each.high)
            waits = "yes" if each.needed else "no"
            table.add_row(each.guardrail, each.verdict, amount(each.guardrail, each.value), between, f"{each.n:,}", waits)
        print_table(table)


def show_decisions(decisions: Sequence[Decided]) -> None:
    """Each with its reasons."""
    table = table_of("decision", "at", "step", "requests", "action", "why", right=NUMBERS)
    for each in decisions:
        n = each.look.evidence.canary.requests
        table.add_row(
            str(each.id), clock(each.at), str(each.look.step + 1), f"{n:,}", each.decision.action, " ".join(each.decision.reasons)
        )
    print_table(table)


def show_result(results: Sequence[Mapping[str, Any]]) -> None:
    """Who is better in what; all intervals together are right with 95 %, whenever one looks."""
    table = table_of("measure", "better", "candidate worse by", "between", "n", right=NUMBERS)
    for each in results:
        kind = each["kind"]
        table.add_row(kind, each["better"], amount(kind, each["value"]), interval(kind, each["low"], each["high"]), f"{each['n']:,}")
    print_table(table)


def amount(kind: str, value: float | None) -> str:
    """Points or per cent with a sign."""
    if value is None:
        return words.NONE
    unit = "%" if kind in RELATIVE or kind == "confidence" else "pp"
    return f"{100 * value:+.2f} {unit}"


def interval(kind: str, low: float | None, high: float | None) -> str:
    """Both ends, or what is known of them."""
    if low is None and high is None:
        return words.NONE
    return f"{amount(kind, low) if low is not None else '?'} and {amount(kind, high) if high is not None else '?'}"
