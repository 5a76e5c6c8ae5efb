"""The main job from a model to a bundle, on a model small enough for a test."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_runner import lowbit
from e2e_case import Case, make_case

from lowbit import Bundle, optimize
from lowbit.pipeline.journal import Journal, replay
from small_models import cnn, images, reference

pytestmark = pytest.mark.usefixtures("short_timing")
RECIPES = ("fp32", "fp16", "int8-static-minmax", "int8-static-mse")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"), n=600)


@pytest.fixture(scope="module")
def out(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished bundle for all tests that only read."""
    out = tmp_path_factory.mktemp("optimize") / "bundle"
    optimize(case.model, case.data, out=out, max_drop="5pp", recipes=RECIPES, slices=("site",), rounds=3)
    return out


def manifest(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "bundle.json").read_text())
    return content


def events(out: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in Journal(out / "journal.jsonl").events() if event["event"] == kind]


def test_the_bundle_has_everything_the_contract_names(out: Path) -> None:
    names = {entry.name for entry in out.iterdir()}
    assert names == {
        "bundle.json",
        "model",
        "baseline",
        "candidates",
        "calibration",
        "journal.jsonl",
        "report.html",
        "MODEL_CARD.md",
        "preprocess.yaml",
    }
    found = manifest(out)
    assert found["data"]["calibration"]["n"] == 120
    assert found["data"]["validation"]["n"] == 480
    assert found["source"]["path"] == "cnn.onnx"
    assert {entry["id"] for entry in found["candidates"]} >= {"fp32@openvino", "fp16@onnxruntime", "int8-static-mse@openvino"}


def test_every_candidate_keeps_its_recipe_result_and_parameters(out: Path) -> None:
    folder = out / "candidates" / "int8-static-mse@onnxruntime"
    files = {"model.onnx", "recipe.yaml", "result.json", "parameters.json", "parameters.npz"}
    assert {entry.name for entry in folder.iterdir()} >= files
    assert (out / "candidates" / "fp16@onnxruntime" / "outcomes-search.npz").is_file()
    table = json.loads((folder / "parameters.json").read_text())
    assert {row["kind"] for row in table["tensors"]} == {"weight", "activation"}


def test_no_path_of_this_machine_is_told(out: Path) -> None:
    text = (out / "bundle.json").read_text() + (out / "report.html").read_text() + (out / "MODEL_CARD.md").read_text()
    assert str(out.parent) not in text
    assert str(Path.home()) + "/" not in text


def test_accuracy_is_what_onnx_itself_computes(case: Case, out: Path) -> None:
    """The baseline's right answers against onnx's reference evaluator, up to those on samples that calibrated."""
    data = np.load(case.data)
    expected = reference(case.model, {"input.1": data["images"]})["logits"].argmax(1) == data["labels"]
    parts = events(out, "baseline")[0]["candidate"]
    seen = sum(parts[part]["metric"]["value"] * parts[part]["metric"]["n"] for part in ("search", "confirm"))
    calibrating = 600 - sum(parts[part]["metric"]["n"] for part in ("search", "confirm"))
    assert expected.sum() - calibrating <= seen <= expected.sum()


def test_slices_are_scored(out: Path) -> None:
    names = {entry["name"] for candidate in manifest(out)["candidates"] if candidate["status"] == "done" for entry in candidate["slices"]}
    assert any("site" in name and "north" in name for name in names), names


def test_the_decision_replays_from_the_journal(out: Path) -> None:
    decision = replay(out / "journal.jsonl")
    found = manifest(out)["decision"]
    assert (decision.verdict, decision.chosen, list(decision.reasons)) == (found["verdict"], found["chosen"], found["reasons"])


def test_three_lines_run_it(out: Path) -> None:
    bundle = Bundle.load(out)
    outputs = bundle.session().run(images(3))
    expected = reference(out / bundle.manifest.model.artifact, {"input.1": images(3)})
    np.testing.assert_allclose(outputs["logits"], expected["logits"], rtol=0.02, atol=0.05)


def test_the_same_call_again_runs_nothing_again(case: Case, out: Path) -> None:
    before = (out / "bundle.json").read_text()
    count = len(events(out, "candidate"))
    result = optimize(case.model, case.data, out=out, max_drop="5pp", recipes=RECIPES, slices=("site",), rounds=3)
    assert len(events(out, "candidate")) == count
    assert len(events(out, "measured")) == 1
    assert json.loads(before)["decision"] == manifest(out)["decision"]
    assert result.decision.chosen == manifest(out)["decision"]["chosen"]


def test_another_models_folder_is_refused(out: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_case(tmp_path, n=200)
    shell = lowbit(capfd, monkeypatch, "optimize", other.model, "--data", other.data, "--out", out)
    assert shell.code == 2
    assert "another run" in shell.err
    assert (out / "bundle.json").is_file()


def command(case: Case, out: Path) -> list[str]:
    recipes = [word for name in RECIPES for word in ("--recipe", name)]
    call = [sys.executable, "-m", "lowbit", "optimize", str(case.model), "--data", str(case.data), "--out", str(out)]
    return [*call, "--max-drop", "5pp", "--rounds", "3", "--batch", "1", *recipes]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_in_the_middle_nothing_finished_runs_again(case: Case, tmp_path: Path, how: signal.Signals) -> None:
    out = tmp_path / "bundle"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    # A shell starts background jobs with SIGINT ignored; the child must not inherit that from whoever runs the tests.
    process = subprocess.Popen(command(case, out), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler), **quiet)
    deadline = time.monotonic() + 120
    while len(events(out, "candidate")) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, how)
    code = process.wait(60)
    assert code == (-9 if how == signal.SIGKILL else 4)
    finished = [event["candidate"]["id"] for event in events(out, "candidate")]
    assert len(finished) >= 3
    assert (out / "bundle.json").is_file(), "the best so far is always on disk"
    assert "was still going on" in " ".join(manifest(out)["notes"])

    if how != signal.SIGKILL:
        return  # the resume is the same as after the kill
    again = subprocess.run(command(case, out), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    ids = Counter(event["candidate"]["id"] for event in events(out, "candidate"))
    assert set(ids.values()) == {1}, ids
    assert list(ids)[: len(finished)] == finished
    decision = replay(out / "journal.jsonl")
    assert manifest(out)["decision"]["chosen"] == decision.chosen
    assert manifest(out)["notes"] == []
    assert not (out / ".work").exists()


def test_out_of_time_decides_with_what_there_is(case: Case, tmp_path: Path) -> None:
    result = optimize(case.model, case.data, out=tmp_path / "b", time_limit_s=0.01, recipes=("fp32", "fp16"), rounds=3)
    assert result.decision.verdict == "keep"
    assert result.decision.chosen == "fp32@onnxruntime"
    assert isinstance(result.bundle.manifest.policy.time_limit_s, float)


def test_prune_keeps_only_what_ships_and_the_same_call_still_works(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "b"
    options: dict[str, Any] = {"max_drop": "5pp", "recipes": ("fp16",), "runtimes": ("onnxruntime",), "rounds": 3, "prune": True}
    first = optimize(case.model, case.data, out=out, **options)
    kept = {file.parent.name for file in (out / "candidates").rglob("*.onnx")}
    assert kept <= {first.decision.chosen}
    assert (out / "model" / "model.onnx").is_file()
    again = optimize(case.model, case.data, out=out, **options)
    assert again.decision == first.decision
    assert again.bundle.session().run(images(1))["logits"].shape == (1, 10)


def test_the_policy_is_what_was_asked(out: Path) -> None:
    policy = Bundle.load(out).manifest.policy
    assert (policy.task, policy.metric, policy.max_drop, policy.batch) == ("classification", "top1", "5pp", (1, 8))


def test_source_precision_is_tried_whatever_recipes_are_asked_for(case: Case, tmp_path: Path) -> None:
    optimize(case.model, case.data, out=tmp_path / "b", max_drop="5pp", recipes=("fp16",), batch=(1,), rounds=3, time_limit_s=600)
    ids = {entry["id"] for entry in manifest(tmp_path / "b")["candidates"]}
    assert {"fp32@openvino", "fp32-tuned@onnxruntime"} <= ids


def test_the_command_line_prints_json_alone_and_tells_no_paths(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With NNCF, which likes to print, and with absolute paths in the command."""
    out = tmp_path / "bundle"
    recipes = ["--recipe", "int8-nncf"] if importlib.util.find_spec("nncf") else []
    options = ["--output", "json", "--rounds", "3", "--batch", "1", *recipes]
    shell = lowbit(capfd, monkeypatch, "optimize", case.model, "--data", case.data, "--out", out, *options)
    assert shell.code == 0, shell.err
    assert json.loads(shell.out)["decision"] == manifest(out)["decision"]
    for file in out.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".html", ".md", ".yaml"):
            assert str(tmp_path) not in file.read_text(), file


def test_a_model_with_a_fixed_batch(tmp_path: Path) -> None:
    """Calibration, evaluation and timing all feed its own batch size; the last batch is filled up."""
    case = make_case(tmp_path, n=203)
    cnn(case.model, batch=8)
    result = optimize(case.model, case.data, out=tmp_path / "b", max_drop="10pp", recipes=("int8-static-minmax",), rounds=3)
    found = result.bundle.manifest
    assert found.policy.batch == (8,)
    assert {entry.status for entry in found.candidates} <= {"done", "dropped"}
    assert found.baseline.search is not None
    assert found.baseline.search.metric.value == pytest.approx(0.9, abs=0.07)


def test_weights_beside_the_model_come_along(tmp_path: Path) -> None:
    case = make_case(tmp_path, n=200)
    (tmp_path / "ext" / "w").mkdir(parents=True)
    model = tmp_path / "ext" / "model.onnx"
    onnx.save_model(onnx.load(case.model), model, save_as_external_data=True, location="w/weights.bin", size_threshold=0)
    result = optimize(model, case.data, out=tmp_path / "b", max_drop="10pp", recipes=("fp16",), runtimes=("onnxruntime",), rounds=3)
    assert (tmp_path / "b" / "baseline" / "w" / "weights.bin").is_file()
    bundle = Bundle.load(tmp_path / "b")
    expected = reference(case.model, {"input.1": images(2)})["logits"]
    np.testing.assert_allclose(bundle.session(candidate="fp32@onnxruntime").run(images(2))["logits"], expected, rtol=1e-4, atol=1e-4)
    chosen = {file.name for file in (tmp_path / "b" / "model").rglob("*") if file.is_file()}
    assert chosen == ({"model.onnx"} if result.decision.chosen.startswith("fp16") else {"model.onnx", "weights.bin"})
