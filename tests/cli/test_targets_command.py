"""`lowbit targets`, and what `lowbit export` refuses before it does anything."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Shell, lowbit

from lowbit.bundle.schema import FindingEntry, KernelsEntry, TargetEntry
from lowbit.cli.show import told
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
    ("given", "message"),
    [
        (("--to", "litert", "--name", "x"), "--name is for servers, not for litert."),
        (("--to", "litert", "--max-batch", "4"), "--max-batch is for servers"),
        (("--to", "triton", "--out", "o", "--set", "a=b"), "--set is not for triton."),
        (("--to", "triton"), "triton needs a folder to write to."),
        (("--to", "nowhere"), "Unknown target 'nowhere'."),
    ],
)
def test_options_of_the_other_kind_are_refused(run: Run, tmp_path: Path, given: tuple[str, ...], message: str) -> None:
    (tmp_path / "bundle").mkdir()
    shell = run("export", tmp_path / "bundle", *given)
    assert shell.code == 2
    assert message in shell.err
    assert [each.name for each in tmp_path.iterdir()] == ["bundle"]


def test_a_target_in_one_line_says_what_was_found_or_why_there_is_nothing() -> None:
    def kernels(name: str, **more: Any) -> KernelsEntry:
        unknown = dict.fromkeys(("agreement", "agreement_low", "agreement_high", "agreement_with_ties", "cosine", "identical"), math.nan)
        empty: dict[str, Any] = {"largest_step": None, "metric": None, "delta": None, "verdict": None}
        return KernelsEntry(kernels=name, samples=5, drawn=False, **{**unknown, **empty, **more})

    known: dict[str, Any] = {"target": "litert", "title": "LiteRT", "version": "1", "level": "run", "words": "run here", "candidate": "c"}
    written = {**known, "artifact": "model.tflite", "size_bytes": 5}
    ways = (kernels("xnnpack", verdict="ship"), kernels("built-in"), kernels("reference", error="no"))
    finding = FindingEntry(rule="compiled", severity="warning", text="Not linked.\nmake said so")
    assert told(TargetEntry(**written, kernels=ways, findings=(finding,))) == (
        "xnnpack ship, built-in not judged, reference could not be run; Not linked."
    )
    assert told(TargetEntry(**written)) == "run here"
    refused = TargetEntry(**known, artifact=None, size_bytes=None, refused="Elu 'e' has no integer form.\nCut it off.")
    assert told(refused) == "not written: Elu 'e' has no integer form."
