"""Options that several commands share, defined once so that they mean the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lowbit.errors import UsageError

Command = Callable[..., Any]
DASH = "\N{EN DASH}"


def state_folder(_context: click.Context, _parameter: click.Parameter, value: Path) -> Path:
    """The state folder that is meant: a registry stands for the one that `lowbit serve --registry` keeps in it."""
    return value / "state" if (value / "registry.sqlite").is_file() and (value / "state").is_dir() else value


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """Numbers separated by commas, e.g. 1,8."""

    name = "numbers"

    def __init__(
        self,
        kind: type = int,
        wrong: str = "is not a list of whole numbers, e.g. 1,8",
        *,
        above: float = float("-inf"),
        below: float = float("inf"),
    ) -> None:
        """Says `wrong` of anything else, and of numbers that are not between the bounds."""
        self.kind, self.wrong, self.above, self.below = kind, wrong, above, below

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            found = ()
        if not found or not all(self.above < number < self.below for number in found):
            self.fail(f"'{value}' {self.wrong}", param, ctx)
        return found


class Duration(click.ParamType):  # type: ignore[type-arg]
    """Seconds, from "60ms", "90s", "5m" or "1h"."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from lowbit.pipeline.request import parse_duration

        if isinstance(value, float):
            return value
        try:
            return parse_duration(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


output = click.option(
    "--output", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="What goes to stdout."
)


def data_options(command: Command) -> Command:
    """--data and how to read it."""
    for option in reversed(
        [
            click.option(
                "--data",
                required=True,
                metavar="PATH",
                help="Folder of images, .npz, .csv, .tsv, .parquet, .jsonl, COCO .json, or module:callable.",
            ),
            click.option("--preprocess", metavar="PRESET|YAML", help="How samples become inputs; inferred where not given."),
            click.option("--target", metavar="COLUMN", help="Column with the label of tabular data.  [default: the last]"),
            click.option("--slice", "slices", multiple=True, metavar="COLUMN", help="Also score every value of this column. Repeatable."),
            click.option(
                "--task",
                metavar="TASK",
                help="classification, tokens, span, detection, regression, embedding or fidelity; inferred where not given.",
            ),
            click.option("--metric", metavar="METRIC", help="What the budget is about, e.g. top1, rmse, or module:callable."),
            click.option("--limit", type=click.IntRange(1), metavar="N", help="Read the first N samples only."),
        ]
    ):
        command = option(command)
    return command


def budget_options(command: Command) -> Command:
    """--max-drop and what else a verdict needs."""
    for option in reversed(
        [
            click.option(
                "--max-drop", default="1%", show_default=True, metavar="BUDGET", help="1pp: absolute points; 1%: of the baseline's value."
            ),
            click.option(
                "--confidence", type=float, default=0.95, show_default=True, help="Of the interval that must lie within the budget."
            ),
            click.option("--threshold", type=float, metavar="SCORE", help="Binary models: the score from which they say yes."),
            click.option("--max-fpr-rise", metavar="POINTS", help="Binary models: allowed rise of the false-positive rate, e.g. 0.5pp."),
        ]
    ):
        command = option(command)
    return command


def training_options(command: Command) -> Command:
    """What a model may learn from, and for how long."""
    for option in reversed(
        [
            click.option("--qat-time", type=Duration(), default="10m", show_default=True, metavar="TIME", help="Most that is trained for."),
            click.option("--train", metavar="PATH", help="Samples to learn from, labels not needed; those that calibrate where not given."),
            click.option("--train-labels", is_flag=True, help="Learn from the labels of those samples, too."),
        ]
    ):
        command = option(command)
    return command
