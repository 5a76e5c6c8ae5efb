"""Options of `lowbit serve` for language models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.options import Command, Duration

if TYPE_CHECKING:
    from lowbit.serving.language.settings import LanguageSettings

_OPTIONS = (
    click.option("--slots", type=click.IntRange(1, 1024), metavar="N", help="Language models: answers at once, for each variant."),
    click.option("--answer", type=Duration(), default="10m", show_default=True, metavar="TIME", help="Language models: of a whole answer."),
    click.option(
        "--shadow",
        type=click.FloatRange(0, 1),
        default=0.0,
        metavar="SHARE",
        help="Language models: so many answers are scored by the 16-bit model, too, while nobody waits.  [default: none]",
    ),
    click.option(
        "--refusals",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Language models: phrases, one a line, by which an answer counts as a refusal.  [default: some in English]",
    ),
)


def language(command: Command) -> Command:
    """Adds the options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_language(options: dict[str, Any]) -> LanguageSettings:
    """The settings from the command line's options.

    Raises:
        UsageError: the phrases cannot be read.
    """
    from lowbit.serving.language.refusing import PHRASES, read_phrases
    from lowbit.serving.language.settings import LanguageSettings

    phrases = PHRASES if options["refusals"] is None else read_phrases(options["refusals"])
    return LanguageSettings(options["slots"], options["answer"], phrases, options["shadow"])
