"""The words are held to the code: commands parse, options are listed, examples run, links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import io
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import get_args

import click
import pytest
from cli_runner import lowbit

from conftest import missing
from lowbit import __version__, optimize
from lowbit.cli.main import COMMANDS, cli
from lowbit.data.preprocess import PRESETS
from lowbit.errors import DataError, Interrupted, LowbitError, ModelError, UsageError
from lowbit.measure.metrics import _ALIASES, _CATALOGUE, TASKS
from lowbit.pipeline.request import Options, parse_duration, read_request
from lowbit.runtimes import registry
from lowbit.types import Budget, Objective, Verdict

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SHELL = ("bash", "console", "sh")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    marks: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    inside: Block | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"\s*```(.*)", line)
        if fence and inside is None:
            language, *marks = fence[1].split() or [""]
            inside, lines = Block(str(page.relative_to(ROOT)), number, language, tuple(marks), ""), []
        elif fence and inside is not None:
            yield Block(inside.page, inside.line, inside.language, inside.marks, "\n".join(lines) + "\n")
            inside = None
        else:
            lines.append(line)
    assert inside is None, f"{inside}: the block never ends"


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def shell_lines(block: Block) -> list[str]:
    """Commands of a shell block, continuation lines joined, without prompts, comments, redirections and pipes."""
    joined = block.text.replace("\\\n", " ")
    lines = [line.removeprefix("$ ").strip() for line in joined.splitlines()]
    return [re.split(r"\s[>|#]|\s&&\s", line)[0].strip() for line in lines if line and not line.startswith("#")]


LINES = [(str(block), line) for block in BLOCKS if block.language in SHELL for line in shell_lines(block)]
CALLS = [pytest.param(line, id=f"{where} {line[:60]}") for where, line in LINES if line.split()[0] == "lowbit"]


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "reference" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs" / "reference"))  # as for a script: what lies beside it is found
        spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()


# Commands --------------------------------------------------------------------------------------------------------------


def parse(line: str) -> tuple[str, dict[str, object]]:
    """Command and parameters of a line, as click and lowbit's own readers understand it."""
    name, *arguments = shlex.split(line)[1:]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"there is no command '{name}'"
    if isinstance(command, click.Group):
        inner, *arguments = arguments
        command = command.get_command(click.Context(command), inner)
        assert command is not None, f"there is no command '{name} {inner}'"
    context = command.make_context(name, arguments)
    return name, context.params


def test_there_are_commands_to_check() -> None:
    assert len(CALLS) > 30
    assert sum("optimize" in str(call.values[0]) for call in CALLS) > 12


@pytest.mark.parametrize("line", CALLS)
def test_a_command_in_the_docs_parses(line: str) -> None:
    name, given = parse(line)
    assert name in COMMANDS
    for runtime in (*given.get("runtimes", ()), *filter(None, [given.get("runtime")])):
        assert runtime in registry.names()
    for recipe in given.get("recipes", ()):
        assert recipe in GENERATOR.recipe_names()
    if (metric := given.get("metric")) is not None:
        assert ":" in metric or metric in _CATALOGUE
    if (preprocess := given.get("preprocess")) is not None:
        assert preprocess in PRESETS or preprocess.endswith(".yaml")
    if given.get("task") is not None:
        assert given["task"] in TASKS
    for budget in filter(None, [given.get("max_drop"), given.get("max_fpr_rise")]):
        Budget.parse(budget)
    assert given.get("max_fpr_rise") is None or given["threshold"] is not None


@pytest.mark.parametrize(
    "line",
    [
        "lowbit optimise m.onnx --data d",
        "lowbit optimize m.onnx",
        "lowbit optimize m.onnx --data d --no-such-option",
        "lowbit bench m.onnx --precision f8",
        "lowbit calibrate choose pool/",
        "lowbit calibrate select pool/ -n 2",
    ],
)
def test_the_check_would_notice_a_wrong_command(line: str) -> None:
    with pytest.raises((click.ClickException, AssertionError)):
        parse(line)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["doctor"], ["doctor", "--output", "json"], ["completion", "bash"], ["completion", "fish"]]
)
def test_what_needs_no_data_runs(arguments: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shell = lowbit(capfd, monkeypatch, *arguments)
    assert shell.code == 0
    assert shell.out.strip()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shell = lowbit(capfd, monkeypatch, name, "--help")
    assert shell.code == 0
    assert shell.out.startswith(f"Usage: lowbit {name}")
    command = GENERATOR.the_command(name)
    assert command.short_help == COMMANDS[name], "the list of commands and the command say different things"
    assert [option.name for option in GENERATOR.options(command) if not option.help] == []


@pytest.mark.parametrize("model", ["resnet20.onnx", "mcunet-320kb-1mb.onnx", "squeezenet1.1.onnx"])
def test_a_job_of_the_guide_can_be_read(model: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything up to the search itself, with the very words of the guide."""
    assert shared_data.is_dir()
    monkeypatch.chdir(ROOT)
    (line,) = [line for where, line in LINES if where.startswith("docs/guides/optimize.md") and f"/{model} " in line]
    _, given = parse(line)
    fields = {key: value for key, value in given.items() if key in ("max_drop", "preprocess", "metric", "task")}
    request = read_request(given["model"], given["data"], Options(**fields, limit=60))  # type: ignore[arg-type]
    assert (request.policy.task, request.metric.name) == ("classification", "top1")
    assert len(request.data) == 60


# The reference ---------------------------------------------------------------------------------------------------------


def test_the_reference_is_current() -> None:
    assert GENERATOR.main(["--check"]) == 0, "run: python docs/reference/generate.py"


def test_a_stale_reference_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "reference"
    monkeypatch.setattr(GENERATOR, "HERE", here)
    here.mkdir()
    (tmp_path / "guides" / "targets").mkdir(parents=True)
    for name in GENERATOR.GUIDES:
        (here / name).write_text("before\n<!-- measured: matrix -->\nold\n<!-- end -->\nafter\n")
    assert GENERATOR.main(["--check"]) == 1
    assert list(here.iterdir()) == []
    assert GENERATOR.main([]) == 0
    assert GENERATOR.main(["--check"]) == 0
    guide = (here / GENERATOR.GUIDES[0]).read_text()
    assert guide.startswith("before\n<!-- measured: matrix -->\n| target | demo |")
    assert guide.endswith("<!-- end -->\nafter\n")
    page = here / "cli.md"
    page.write_text(page.read_text().replace("--max-drop", "--max-loss"))
    assert GENERATOR.main(["--check"]) == 1


@pytest.mark.parametrize("name", GENERATOR.names())
def test_every_option_is_in_the_reference(name: str) -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## lowbit {name}\n")[2].partition("\n## ")[0]
    for option in GENERATOR.options(GENERATOR.the_command(name)):
        for flag in (*option.opts, *option.secondary_opts):
            assert re.search(rf"`{flag}[` ]", section), f"{flag} of {name} is missing"


# Python ----------------------------------------------------------------------------------------------------------------

PYTHON = [pytest.param(block, id=str(block)) for block in BLOCKS if block.language == "python"]
RUNNABLE = [pytest.param(block, id=str(block)) for block in BLOCKS if block.language == "python" and "runnable" in block.marks]


@pytest.mark.parametrize("block", PYTHON)
def test_an_example_compiles_and_names_what_exists(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lowbit":
            try:
                module = importlib.import_module(node.module or "")
            except ModuleNotFoundError as error:  # an extra
                missing(str(error.name))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "optimize":
            known = {*Options.__dataclass_fields__, *inspect.signature(optimize).parameters}
            assert {keyword.arg for keyword in node.keywords} <= known


@pytest.mark.parametrize("block", RUNNABLE)
def test_a_runnable_example_runs_and_prints_what_it_says(block: Block) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text, str(block), "exec"), {})
    expected = re.findall(r"^print\(.*\)  # (.*)$", block.text, re.MULTILINE)
    assert printed.getvalue().splitlines() == expected


def test_some_examples_run() -> None:
    assert len(RUNNABLE) >= 4


# Links and names -------------------------------------------------------------------------------------------------------


def links_of(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", link)]


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them: lower case, punctuation dropped, blanks to dashes."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} does not exist"
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        assert not anchor or anchor in anchors_of(target), f"{link}: no such heading"


def test_every_page_can_be_reached_from_the_index() -> None:
    found, waiting = set(), [ROOT / "docs" / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in found:
            found.add(page)
            targets = [(page.parent / link.partition("#")[0]).resolve() for link in links_of(page)]
            waiting += [target for target in targets if target.suffix == ".md" and target.is_file()]
    assert [page for page in ROOT.glob("docs/**/*.md") if page not in found] == []


def test_scripts_and_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [line.split()[1] for _, line in LINES if line.startswith("make ")]
    named += re.findall(r"`make (\w+)`", "\n".join(page.read_text(encoding="utf-8") for page in PAGES))
    assert set(named) >= {"demo", "test", "lint"}
    assert set(named) <= targets
    scripts = [shlex.split(line)[1:] for _, line in LINES if re.match(r"python \S+\.py", line)]
    assert len(scripts) >= 3
    for path, *arguments in scripts:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert [flag for flag in arguments if flag.startswith("--") and f'"{flag}"' not in source] == []


def test_the_changelog_has_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    section = (ROOT / "CHANGELOG.md").read_text().partition(f"\n## {__version__}")[2].partition("\n## ")[0]
    assert len(re.findall(r"^- ", section, re.MULTILINE)) >= 1


def words_of(page: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", (ROOT / page).read_text(encoding="utf-8")))


def test_every_name_is_explained_by_hand_somewhere() -> None:
    assert set(PRESETS) <= words_of("docs/guides/data.md")
    assert set(get_args(Verdict)) <= words_of("docs/concepts/decision.md")
    assert set(get_args(Objective)) <= words_of("docs/concepts/decision.md")
    assert {"ship", "provisional", "recover", "keep"} <= words_of("README.md")
    metrics = {name for name, entry in _CATALOGUE.items() if entry.primary}
    assert metrics <= words_of("docs/reference/cli.md")
    assert not metrics & set(_ALIASES)


@pytest.mark.parametrize("page", ["README.md", "docs/guides/optimize.md", "docs/reference/cli.md"])
def test_exit_codes_are_those_of_the_errors(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    listed = {int(code) for code in re.findall(r"^\| `?(\d)`? \|", text, re.MULTILINE)}
    assert listed == {0, *(error.exit_code for error in (LowbitError, UsageError, ModelError, DataError, Interrupted))}


def test_durations_in_the_docs_are_read_as_meant() -> None:
    assert [parse_duration(text) for text in ("60ms", "10m", "1h")] == [0.06, 600.0, 3600.0]
