"""`lowbit targets`, and what `lowbit export` refuses before it does anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runner import Shell, lowbit

from lowbit.export import registry

Run = Callable[..., Shell]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda *args: lowbit(capfd, monkeypatch, *args)


def test_every_target_is_listed(run: Run) -> None:
    shell = run("targets")
    assert shell.code == 0, shell.err
    assert [line.split()[0] for line in shell.out.splitlines()[1:] if not line.startswith(" ")] == list(registry.names())


def test_the_list_is_json_where_machines_read_it(run: Run) -> None:
    found = {each["name"]: each for each in json.loads(run("targets", "--output", "json").out)}
    assert set(found) == set(registry.names())
    assert found["tensorrt"]["level"] == "checked"
    assert {wish["name"] for wish in found["cortex-m"]["settings"]} == {"board", "sram_kb", "flash_kb", "float_io"}
    assert all(each["words"] for each in found.values())


def test_one_target_shows_its_settings(run: Run) -> None:
    shell = run("targets", "cortex-m")
    assert shell.code == 0, shell.err
    assert "sram_kb" in shell.out
    assert "mps2-an500" in shell.out


def test_an_unknown_target_names_the_nearest(run: Run) -> None:
    shell = run("targets", "litrt")
    assert shell.code == 2
    assert "Did you mean 'litert'?" in shell.err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--to", "litert", "--name", "x"), "--name is for servers, not for litert."),
        (("--to", "litert", "--max-batch", "4"), "--max-batch is for servers"),
        (("--to", "triton", "--out", "o", "--set", "a=b"), "--set is not for triton."),
        (("--to", "triton"), "triton needs a folder to write to."),
        (("--to", "nowhere"), "Unknown target 'nowhere'."),
    ],
)
def test_options_of_the_other_kind_are_refused(run: Run, tmp_path: Path, given: tuple[str, ...], told: str) -> None:
    (tmp_path / "bundle").mkdir()
    shell = run("export", tmp_path / "bundle", *given)
    assert shell.code == 2
    assert told in shell.err
    assert [each.name for each in tmp_path.iterdir()] == ["bundle"]
