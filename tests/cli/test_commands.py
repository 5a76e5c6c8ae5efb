"""The commands beside `optimize`: what they print, in which stream, with which exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Shell, lowbit
from e2e_case import Case, make_case

from small_models import cnn_qdq

Run = Callable[..., Shell]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda *args: lowbit(capfd, monkeypatch, *args)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


def parsed(shell: Shell) -> Any:
    """stdout as JSON: nothing else may be there."""
    assert shell.code == 0, shell.err
    return json.loads(shell.out)


def test_help_names_every_command(run: Run) -> None:
    shell = run("--help")
    assert shell.code == 0
    for name in ("optimize", "validate", "compare", "bench", "report", "doctor", "demo", "completion"):
        assert name in shell.out


def test_an_unknown_command_is_answered_with_the_nearest(run: Run) -> None:
    shell = run("optimise")
    assert shell.code == 2
    assert "Did you mean 'optimize'" in shell.err


def test_doctor_says_what_is_here(run: Run) -> None:
    found = parsed(run("doctor", "--output", "json"))
    assert found["hardware"]["cores"] >= 1
    assert "onnxruntime" in {runtime["name"] for runtime in found["runtimes"]}
    assert "onnxruntime" in run("doctor").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_that_shell(run: Run, shell: str) -> None:
    found = run("completion", shell)
    assert found.code == 0
    assert "_LOWBIT_COMPLETE" in found.out


def test_validate_counts_right_answers(run: Run, case: Case, tmp_path: Path) -> None:
    found = parsed(run("validate", case.model, "--data", case.data, "--out", tmp_path / "r.json", "--output", "json"))
    assert found["metric"]["name"] == "top1"
    assert found["metric"]["n"] == 400
    assert found["metric"]["value"] == pytest.approx(0.9, abs=0.04)
    assert json.loads((tmp_path / "r.json").read_text())["metric"] == found["metric"]


def test_a_model_compared_with_itself_ships(run: Run, case: Case, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("validate", case.model, "--data", case.data, "--out", tmp_path / f"{name}.json").code == 0
    found = parsed(run("compare", tmp_path / "a.json", tmp_path / "b.json", "--max-drop", "2pp", "--output", "json"))
    assert found["verdict"] == "ship"
    assert found["comparison"]["delta"]["value"] == 0
    assert (found["comparison"]["delta"]["worse"], found["comparison"]["delta"]["better"]) == (0, 0)


def test_a_quantized_model_is_compared_in_pairs(run: Run, case: Case, tmp_path: Path) -> None:
    small = cnn_qdq(tmp_path / "small.onnx")
    run("validate", case.model, "--data", case.data, "--out", tmp_path / "a.json")
    run("validate", small, "--data", case.data, "--out", tmp_path / "b.json")
    found = parsed(run("compare", tmp_path / "a.json", tmp_path / "b.json", "--max-drop", "5pp", "--output", "json"))
    delta = found["comparison"]["delta"]
    assert delta["value"] == pytest.approx((delta["worse"] - delta["better"]) / 400)
    assert delta["ci_low"] < delta["value"] < delta["ci_high"]
    assert found["comparison"]["agreement"] < 1


def test_results_do_not_overwrite_the_data_beside_them(run: Run, case: Case, tmp_path: Path) -> None:
    data = case.data.rename(tmp_path / "val.npz")
    before = data.read_bytes()
    assert run("validate", case.model, "--data", data, "--out", tmp_path / "val.json").code == 0
    assert data.read_bytes() == before
    assert (tmp_path / "val.samples.npz").exists()
    shell = run("validate", case.model, "--data", data, "--out", data)
    assert shell.code == 2
    assert "was not written by `lowbit validate`" in shell.err
    assert "Scoring" not in shell.err  # said before the work
    assert data.read_bytes() == before


def test_slices_of_validate_are_shown_and_compared(run: Run, case: Case, tmp_path: Path) -> None:
    shown = run("validate", case.model, "--data", case.data, "--slice", "site", "--out", tmp_path / "a.json")
    assert "site=north (n=134)" in shown.out
    found = parsed(run("validate", case.model, "--data", case.data, "--slice", "site", "--out", tmp_path / "b.json", "--output", "json"))
    assert {entry["name"]: entry["n"] for entry in found["slices"]} == {"site=north": 134, "site=south": 266}
    compared = parsed(run("compare", tmp_path / "a.json", tmp_path / "b.json", "--max-drop", "2pp", "--output", "json"))
    assert {"site=north", "site=south"} <= {entry["name"] for entry in compared["comparison"]["slices"]}


def test_the_order_of_the_data_does_not_matter_to_compare(run: Run, case: Case, tmp_path: Path) -> None:
    import numpy as np

    with np.load(case.data) as archive:
        np.savez(tmp_path / "turned.npz", **{name: archive[name][::-1] for name in archive.files})
    run("validate", case.model, "--data", case.data, "--out", tmp_path / "a.json")
    run("validate", case.model, "--data", tmp_path / "turned.npz", "--out", tmp_path / "b.json")
    found = parsed(run("compare", tmp_path / "a.json", tmp_path / "b.json", "--max-drop", "2pp", "--output", "json"))
    assert (found["verdict"], found["comparison"]["agreement"]) == ("ship", 1)


def test_results_of_different_data_are_not_compared(run: Run, case: Case, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make_case(tmp_path / "other", n=300)
    run("validate", case.model, "--data", case.data, "--out", tmp_path / "a.json")
    run("validate", case.model, "--data", other.data, "--out", tmp_path / "b.json")
    shell = run("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert shell.code == 2
    assert "different data" in shell.err


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"schema": 9}', "not json"])
def test_what_is_no_results_file(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    shell = run("compare", tmp_path / "r.json", tmp_path / "r.json")
    assert shell.code == 3
    assert "r.json" in shell.err


def test_bench_times_models_on_every_runtime(run: Run, case: Case, tmp_path: Path) -> None:
    small = cnn_qdq(tmp_path / "small.onnx")
    found = parsed(run("bench", case.model, small, "--batch", "1", "--rounds", "3", "--seconds", "0.02", "--output", "json"))
    ids = [row["id"] for row in found]
    assert ids[0] == "cnn@onnxruntime"
    assert "small@onnxruntime" in ids
    for row in found:
        assert row["error"] is None, row
        assert row["measurement"]["latency_ms"]["p50"] > 0
    assert found[0]["measurement"]["speedup"]["value"] == 1


def test_bench_says_why_a_model_cannot_run(run: Run, tmp_path: Path) -> None:
    from small_models import unknown_operator

    shell = run("bench", unknown_operator(tmp_path / "odd.onnx"), "--runtime", "onnxruntime", "--batch", "1", "--rounds", "3")
    assert "Frobnicate" in shell.out + shell.err


def test_report_of_what_is_no_bundle(run: Run, tmp_path: Path) -> None:
    shell = run("report", tmp_path, "--no-open")
    assert shell.code == 2
    assert "bundle" in shell.err


def test_the_python_module_is_the_command(run: Run) -> None:
    import subprocess
    import sys

    found = subprocess.run([sys.executable, "-m", "lowbit", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout == run("--version").out
