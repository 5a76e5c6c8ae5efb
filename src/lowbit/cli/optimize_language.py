"""`lowbit optimize FOLDER` where the folder holds a language model: its own options, and which of the others mean something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lowbit.errors import UsageError

SHARED = {
    "data": "data",
    "calibration": "calibration",
    "out": "out",
    "max_drop": "max_drop",
    "confidence": "confidence",
    "objective": "objective",
    "time_limit": "time_limit_s",
    "runtimes": "engines",
    "recipes": "recipes",
    "rounds": "rounds",
    "prune": "prune",
    "force": "force",
}
"""Options that every model has -> fields of `LanguageOptions`."""

OWN = ("workload", "window", "context", "qa", "tasks", "task_drop", "most_tokens", "price_per_hour")
NEUTRAL = ("model", "form")


def language_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What only language models have."""
    count = click.IntRange(1)
    for option in reversed(
        [
            click.option(
                "--workload", metavar="SPEC|LOG", help="Language models: e.g. prompt=512,output=128,concurrency=1, or a log of requests."
            ),
            click.option(
                "--window", type=count, metavar="TOKENS", help="Language models: tokens of a window that perplexity is counted on."
            ),
            click.option(
                "--context", type=count, metavar="TOKENS", help="Language models: tokens that a request may have when it is served."
            ),
            click.option("--qa", type=click.Path(path_type=Path), metavar="JSONL", help="Language models: questions with known answers."),
            click.option(
                "--judge",
                "tasks",
                multiple=True,
                metavar="FILE",
                help="Language models: a task: choices .jsonl or harness .yaml. Repeatable.",
            ),
            click.option("--task-drop", metavar="POINTS", help="Language models: what answers may lose, e.g. 2pp."),
            click.option("--price-per-hour", type=float, metavar="USD", help="Language models: of this machine, for costs."),
            click.option(
                "--most-tokens", type=count, metavar="N", help="Language models: tokens of text that each candidate is judged on."
            ),
        ]
    ):
        command = option(command)
    return command


def given(context: click.Context) -> dict[str, Any]:
    """What the user typed, or set in the environment; defaults left out."""
    return {name: value for name, value in context.params.items() if context.get_parameter_source(name) is not ParameterSource.DEFAULT}


def check_unused(context: click.Context) -> None:
    """Refuses options for language models where the model is none.

    Raises:
        UsageError: naming the first.
    """
    for name in given(context):
        if name in OWN:
            raise UsageError(f"{_flag(context, name)} is for language models, and this is none.", "Leave it out.")


def fields_of(context: click.Context) -> dict[str, Any]:
    """Arguments of `optimize_language` from the options of `lowbit optimize`.

    Raises:
        UsageError: an option that means nothing for a language model.
    """
    found = {}
    for name, value in given(context).items():
        if name in OWN:
            found[name] = value
        elif name in SHARED:
            found[SHARED[name]] = value
        elif name not in NEUTRAL:
            flags = ", ".join(sorted(_flag(context, known) for known in (*SHARED, *OWN)))
            raise UsageError(f"{_flag(context, name)} means nothing for a language model.", f"Options that do: {flags}.")
    return found


def _flag(context: click.Context, name: str) -> str:
    return next((option.opts[0] for option in context.command.params if option.name == name), name)
