"""Write the pages that follow from the code and from measurements: cli.md from the commands, bundle.schema.json from the manifest's models,
targets.md and the tables of guides from benchmarks/results/targets.json (measured_targets.py).

python docs/reference/generate.py            writes them
python docs/reference/generate.py --check    writes nothing; exit code 1 where one is stale
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
import measured_targets
from measured_targets import table

from lowbit.bundle.schema import json_schema
from lowbit.cli.main import COMMANDS, cli
from lowbit.data.preprocess import PRESETS
from lowbit.errors import DataError, Interrupted, LowbitError, ModelError, UsageError
from lowbit.measure.metrics import _CATALOGUE as METRICS
from lowbit.pipeline.recipes import INT8_PT2E, INT8_TORCH_DYNAMIC, ON_REQUEST, Traits, recipes_for
from lowbit.runtimes import registry

HERE = Path(__file__).resolve().parent

HEAD = """# The command line

This page is generated from the code by `python docs/reference/generate.py`; do not edit it. Guides with examples:
[optimize](../guides/optimize.md), [validate and compare](../guides/validate-and-compare.md), [bench](../guides/bench.md),
[data](../guides/data.md), [choosing calibration samples](../guides/calibration.md).
"""


def cli_page() -> str:
    """The whole of cli.md."""
    sections = [HEAD, exit_codes(), streams(), *map(command_section, names()), names_section()]
    return "\n".join(section.strip("\n") + "\n" for section in sections)


def exit_codes() -> str:
    meanings = {
        0: ["Something was decided and written. `keep` counts, too: it is an answer."],
        LowbitError.exit_code: ["A bug of ours: one line says where the traceback lies. Please report it."],
    }
    for error in (UsageError, ModelError, DataError, Interrupted):
        meanings.setdefault(error.exit_code, []).append(first_line(error))
    return "## Exit codes\n\n" + table(["code", "means"], [(f"`{code}`", " ".join(texts)) for code, texts in meanings.items()])


def streams() -> str:
    return """## Output

What was found goes to stdout, as a table or, with `--output json`, as one JSON document. Progress, notes and errors go to stderr.
`-h` and `--help` work everywhere, `lowbit --version` says which version it is.
"""


def names() -> list[str]:
    """Every command, those of a group in its place, e.g. "calibrate select"."""
    found = []
    for name in COMMANDS:
        command = the_command(name)
        found += [f"{name} {inner}" for inner in command.commands] if isinstance(command, click.Group) else [name]
    return found


def command_section(name: str) -> str:
    """One command: what it does, how it is called, every option."""
    command = the_command(name)
    usage = " ".join(["lowbit", name, *command.collect_usage_pieces(click.Context(command))])
    text, examples = split_help(command.help or "")
    parts = [f"## lowbit {name}", text, f"```text\n{usage}\n```"]
    if examples:
        language = "console" if all(line.startswith("lowbit ") for line in examples) else "text"
        parts.append(f"{'Example' if len(examples) == 1 else 'Examples'}:\n\n```{language}\n{chr(10).join(examples)}\n```")
    if rows := [option_row(option) for option in options(command)]:
        parts.append(table(["option", "what it does", "default"], rows))
    return "\n\n".join(parts)


def the_command(name: str) -> click.Command:
    """A command by name; "calibrate select" is one of a group."""
    found: click.Command | None = cli
    for part in name.split():
        assert isinstance(found, click.Group), f"{name} is no group"
        found = found.get_command(click.Context(found), part)
    assert found is not None, f"{name} is listed and does not exist"
    return found


def options(command: click.Command) -> list[click.Option]:
    """A command's own options; `--help`, which all have, is not among them."""
    return [parameter for parameter in command.params if isinstance(parameter, click.Option)]


def option_row(option: click.Option) -> tuple[str, str, str]:
    """Names with what they take, the help text, the default."""
    flags = ", ".join(f"`{flag}`" for flag in option.opts) + "".join(f" / `{flag}`" for flag in option.secondary_opts)
    if not option.is_flag:
        flags = f"`{option.opts[0]} {taken(option)}`"
    # Texts may bring a default of their own, where it is not one value.
    text, _, own = (option.help or "").partition("  [default: ")
    notes = [] if "repeatable" in text.lower() or not option.multiple else ["Repeatable."]
    if option.required:
        notes.append("Required.")
    if isinstance(option.type, click.IntRange | click.FloatRange):
        notes.append(f"{allowed(option.type.min, option.type.max)}.")
    return flags, " ".join([text, *notes]).strip(), own.rstrip("]") or default(option)


def allowed(low: float | None, high: float | None) -> str:
    return f"{low} or more" if high is None else f"{low} to {high}"


def taken(option: click.Option) -> str:
    """What an option takes: its choices, or its placeholder."""
    if isinstance(option.type, click.Choice):
        return "\\|".join(map(str, option.type.choices))
    return (option.metavar or option.type.name.upper().replace(" RANGE", "")).replace("|", "\\|")


def default(option: click.Option) -> str:
    if not option.show_default or option.default is None:
        return ""
    if option.is_flag:
        return f"`{(option.opts if option.default else option.secondary_opts)[0]}`"
    return f"`{option.default}`"


def names_section() -> str:
    """The words that options take, from the code's own lists."""
    metrics = [
        (f"`{name}`", ", ".join(entry.tasks), "higher" if entry.higher_is_better else "lower", "`1pp` or `1%`" if entry.bounded else "`1%`")
        for name, entry in METRICS.items()
        if entry.primary
    ]
    presets = [f"`{name}`" for name in PRESETS]
    runtimes = [f"`{name}`" for name in registry.BUILT_IN]
    waiting = ", ".join(f"`{name}`" for name in registry.ON_REQUEST)
    recipes = [f"`{name}`" for name in recipe_names()]
    pytorch = [f"`{recipe.name}`" for recipe in (INT8_PT2E, INT8_TORCH_DYNAMIC)]
    return "\n\n".join(
        [
            "## Names",
            f"`--preprocess` knows the presets {listed(presets)} ([what they do](../guides/data.md#preprocessing)).",
            f"`--runtime` knows {listed(runtimes)}, whatever installed packages add, and, only where it is named, {waiting}.",
            f"`--recipe` knows {listed(recipes)}. A model's kind decides which of them are tried; "
            f"{listed([f'`{recipe.name}`' for recipe in ON_REQUEST])} only where they are named, "
            f"{listed(pytorch)} only on `torch`.",
            "`--metric` knows these, or `module:callable`, your own function of (outputs, labels) that gives a score from 0 to 1 a sample:",
            table(["metric", "task", "better is", "budget"], metrics),
        ]
    )


def recipe_names() -> list[str]:
    """Every recipe that some model would be given, or may be asked for."""
    yes_no = (True, False)
    kinds = [Traits(a, b, c, d) for a in yes_no for b in yes_no for c in yes_no for d in yes_no]
    planned = {recipe.name for kind in kinds for recipe in recipes_for(kind, nncf=True)}
    return sorted(planned | {recipe.name for recipe in (INT8_PT2E, INT8_TORCH_DYNAMIC, *ON_REQUEST)})


def split_help(text: str) -> tuple[str, list[str]]:
    """Paragraphs, and the lines of the block that click must not wrap (after a line with \\b)."""
    prose, _, block = inspect.cleandoc(text).partition("\b\n")
    return " ".join(prose.split("\n")).replace("  ", "\n\n").strip(), block.strip().splitlines()


def first_line(error: type[LowbitError]) -> str:
    return inspect.cleandoc(error.__doc__ or "").splitlines()[0]


def listed(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


PAGES = {"cli.md": cli_page, "bundle.schema.json": json_schema, "targets.md": measured_targets.page}
GUIDES = tuple(f"../guides/{name}" for name in measured_targets.GUIDES)
"""Pages that people write, with tables from measurements in them."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    stale = []
    for name, make in {**PAGES, **{name: partial(measured_targets.guide, HERE / name) for name in GUIDES}}.items():
        path, text = HERE / name, make()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"{'stale' if check else 'written'}: {', '.join(stale)}", file=sys.stderr)
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
