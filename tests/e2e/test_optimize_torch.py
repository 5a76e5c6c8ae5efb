"""PyTorch as a runtime and quantizer in the search. Node by node, for want of a compiler: tests/runtimes/test_torch_cpu.py compiles."""

from __future__ import annotations

import importlib.util
import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import lowbit
from e2e_case import Case, make_case
from onnx import TensorProto, helper

from conftest import missing
from lowbit import Bundle, optimize
from lowbit.bundle.manifest import candidate_of, file_entries, read_manifest, write_manifest
from lowbit.errors import Interrupted, UsageError
from lowbit.graph.prepare import prepare
from lowbit.pipeline import screen
from lowbit.pipeline.context import Context
from lowbit.pipeline.journal import Journal
from lowbit.pipeline.optimize import new_context
from lowbit.pipeline.programs import batch_of, make_program
from lowbit.pipeline.recipes import FP32, INT8_PT2E
from lowbit.pipeline.reporting import Reporter
from lowbit.pipeline.request import Options, read_request
from lowbit.pipeline.screen import QuickTimes
from lowbit.pipeline.search import pending, try_candidate
from lowbit.pipeline.store import claimed
from lowbit.pipeline.write import place_model
from lowbit.runtimes.torch_cpu import TorchCpu
from lowbit.types import Candidate
from small_models import cnn, cnn_weights, images, reference, save

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("short_timing")

PT2E, SOURCE = "int8-pt2e@torch", "fp32@torch"
ASKED: dict[str, Any] = {"max_drop": "5pp", "runtimes": ("onnxruntime", "torch"), "recipes": ("int8-pt2e",), "batch": (4,), "rounds": 3}


@pytest.fixture(scope="module", autouse=True)
def slow_is_fine() -> Iterator[None]:
    """No compiler here and in what is started, so opening is quick and running is slow; slow candidates are evaluated like others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "no-such-compiler")
        patch.setattr(screen, "SLOW", 0.0)
        yield


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"), n=300)


class StopsAfter(Reporter):
    """Someone who presses Ctrl-C when a candidate is finished."""

    def __init__(self, name: str) -> None:
        self._name = name

    def candidate(self, candidate: Candidate) -> None:
        if candidate.id == self._name:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def out(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, from a search that was interrupted once the first program was there."""
    if importlib.util.find_spec("torchao") is None:
        missing("torchao")
    out = tmp_path_factory.mktemp("optimize") / "bundle"
    with pytest.raises(Interrupted, match="Stopped"):
        optimize(case.model, case.data, out=out, reporter=StopsAfter(SOURCE), **ASKED)
    optimize(case.model, case.data, out=out, **ASKED)
    return out


def entries(out: Path) -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in json.loads((out / "bundle.json").read_text())["candidates"]}


def test_programs_are_candidates_like_any_other(out: Path) -> None:
    found = entries(out)
    assert set(found) == {"fp32-tuned@onnxruntime", SOURCE, PT2E}
    for name in (SOURCE, PT2E):
        assert found[name]["status"] == "done", found[name]
        assert found[name]["verdict"] is not None
        assert [entry["batch"] for entry in found[name]["measurements"]][:1] == [4]
        assert found[name]["artifact"] == f"candidates/{name}/model.pt2"
        assert found[name]["size_bytes"] == (out / found[name]["artifact"]).stat().st_size
        assert "There is no C++ compiler here, so it ran node by node." in found[name]["notes"]
    assert found[SOURCE]["agreement"] == 1.0
    assert found[PT2E]["agreement"] > 0.9
    assert found[PT2E]["precision"] == "int8"


def test_the_folder_of_a_program(out: Path) -> None:
    assert {"model.pt2", "recipe.yaml", "result.json"} <= {file.name for file in (out / "candidates" / PT2E).iterdir()}
    assert "method: pt2e" in (out / "candidates" / PT2E / "recipe.yaml").read_text()
    assert PT2E in (out / "report.html").read_text()
    with zipfile.ZipFile(out / "candidates" / PT2E / "model.pt2") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert str(Path.cwd()).encode() not in content


def test_a_resumed_search_makes_no_program_twice(out: Path, case: Case) -> None:
    def finished() -> list[str]:
        return [event["candidate"]["id"] for event in Journal(out / "journal.jsonl").events() if event["event"] == "candidate"]

    assert finished().count(SOURCE) == finished().count(PT2E) == 1
    optimize(case.model, case.data, out=out, **ASKED)
    assert finished().count(PT2E) == 1


def test_a_bundle_opens_its_programs(out: Path) -> None:
    bundle = Bundle.load(out)
    right = reference(out / "baseline" / "model.onnx", {"input.1": images(3)})["logits"]
    with bundle.session(candidate=SOURCE) as session:
        assert session.runtime == "torch"
        np.testing.assert_allclose(session.run(images(3))["logits"], right, rtol=1e-4, atol=1e-5)
    with bundle.session(candidate=PT2E) as session:
        error = np.abs(session.run(images(3))["logits"] - right).max() / np.abs(right).max()
        assert 1e-5 < error < 0.05


def test_a_program_that_ships(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in model/, runs on torch, and where torch is missing the baseline runs instead."""
    folder = shutil.copytree(out, tmp_path / "bundle")
    manifest = read_manifest(folder)
    artifact = place_model(folder, candidate_of(manifest.entry(PT2E)))
    assert artifact == "model/model.pt2"
    assert [file.name for file in (folder / "model").iterdir()] == ["model.pt2"]
    changed = {
        "decision": manifest.decision.model_copy(update={"chosen": PT2E}),
        "model": manifest.model.model_copy(update={"artifact": artifact}),
        "files": file_entries(folder, ["model", "baseline", "preprocess.yaml"]),
    }
    write_manifest(manifest.model_copy(update=changed), folder)
    bundle = Bundle.load(folder)
    answer = bundle.session().run(images(3))["logits"]
    assert bundle.session().runtime == "torch"
    monkeypatch.setattr(TorchCpu, "version", lambda _: None)
    with pytest.warns(UserWarning, match=r"'torch' is not installed. 'model\.pt2' runs nowhere else. Running the baseline on onnxruntime"):
        replaced = bundle.session()
    right = reference(folder / "baseline" / "model.onnx", {"input.1": images(3)})["logits"]
    np.testing.assert_allclose(replaced.run(images(3))["logits"], right, rtol=1e-4, atol=1e-5)
    assert np.abs(answer - right).max() > 1e-5
    with pytest.raises(UsageError, match="Runtime 'torch' is not installed"):
        bundle.session(runtime="torch")


def test_programs_are_validated_and_timed_like_files_of_onnx(
    out: Path, case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = out / "candidates" / PT2E / "model.pt2"
    for model, runtime in ((case.model, "onnxruntime"), (program, "torch")):
        shell = lowbit(
            capfd, monkeypatch, "validate", model, "--data", case.data, "--runtime", runtime, "--out", tmp_path / f"{runtime}.json"
        )
        assert shell.code == 0, shell.err
    compared = lowbit(
        capfd, monkeypatch, "compare", tmp_path / "onnxruntime.json", tmp_path / "torch.json", "--max-drop", "5pp", "--output", "json"
    )
    assert json.loads(compared.out)["verdict"] in ("ship", "provisional")
    timed = lowbit(
        capfd, monkeypatch, "bench", case.model, program, "--runtime", "onnxruntime", "--runtime", "torch",
        "--batch", "4", "--rounds", "3", "--seconds", "0.01", "--output", "json",
    )  # fmt: skip
    rows = json.loads(timed.out)
    assert [row["id"] for row in rows] == ["cnn@onnxruntime", "model@torch"]
    assert all(row["measurement"] for row in rows)
    wrong = lowbit(capfd, monkeypatch, "validate", program, "--data", case.data)
    assert wrong.code == 2
    assert "--runtime torch" in wrong.err


def counting(path: Path) -> Path:
    """Like `cnn`, with nothing added to each answer, as often as there are samples: no twin of it takes any number of them."""
    nodes = [
        helper.make_node("Conv", ["input.1", "w1", "b1"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Flatten", ["r"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["g"], name="gemm", transB=1),
        helper.make_node("Shape", ["input.1"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"], axis=0),
        helper.make_node("Concat", ["n", "one"], ["column"], axis=0),
        helper.make_node("ConstantOfShape", ["column"], ["nothing"]),
        helper.make_node("Add", ["g", "nothing"], ["logits"], name="add"),
    ]
    weights = {**cnn_weights(), "zero": np.array([0]), "one": np.array([1])}
    sides = {"input.1": (TensorProto.FLOAT, ["N", 3, 8, 8])}, {"logits": (TensorProto.FLOAT, ["N", 10])}
    return save(path, nodes, *sides, weights)


@contextmanager
def begun(model: Path, case: Case, folder: Path, **more: Any) -> Iterator[Context]:
    """A run that has prepared its model and nothing else."""
    request = read_request(model, case.data, Options(**{**ASKED, **more}))
    with claimed(folder, request.key) as store:
        context = new_context(request, store, Reporter(), 0.0)
        prepare(context.model, store.prepared)
        yield context


def tried(context: Context) -> dict[str, Candidate]:
    """The candidates that are programs, each by itself."""
    quick = QuickTimes(context)
    return {entry.id: try_candidate(context, entry, quick) for entry in pending(context) if entry.runtime == "torch"}


def test_what_cannot_be_made_is_a_note_and_no_crash(case: Case, tmp_path: Path) -> None:
    with begun(counting(tmp_path / "m.onnx"), case, tmp_path / "bundle", batch=(1, 8)) as context:
        found = tried(context)
    assert set(found) == {SOURCE, PT2E}
    for candidate in found.values():
        assert candidate.status == "failed"
        assert "one number of samples at a time only, and batch sizes 1 and 8 were asked for" in candidate.reasons[0]
    assert not list((tmp_path / "bundle").rglob("*.pt2"))


def test_what_is_missing_is_a_note_and_no_crash(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "torchao" else real(name, *more))
    with begun(case.model, case, tmp_path / "bundle") as context:
        (entry,) = (each for each in pending(context) if each.id == PT2E)
        candidate = try_candidate(context, entry, QuickTimes(context))
    assert candidate.status == "failed"
    assert candidate.reasons == ("PT2E needs torchao, which is not installed. pip install 'lowbit[torch]'",)


@pytest.mark.parametrize("batch", [1, 4])
def test_one_number_of_samples_will_do_where_one_is_asked_for(case: Case, tmp_path: Path, batch: int) -> None:
    with begun(counting(tmp_path / "m.onnx"), case, tmp_path / "bundle", batch=(batch,)) as context:
        path = make_program(context, FP32, tmp_path / "p.pt2")
    assert batch_of(path) == batch
    given = {"input.1": images(batch)}
    answer = TorchCpu().open(path).run(given)["logits"]
    np.testing.assert_allclose(answer, reference(tmp_path / "m.onnx", given)["logits"], rtol=1e-4, atol=1e-5)


def test_a_source_of_one_sample_keeps_to_one(case: Case, tmp_path: Path) -> None:
    with begun(cnn(tmp_path / "m.onnx", batch=1), case, tmp_path / "bundle") as context:
        path = make_program(context, INT8_PT2E, tmp_path / "p.pt2")
    assert batch_of(path) == 1
    assert TorchCpu().open(path).run({"input.1": images(1)})["logits"].shape == (1, 10)


def test_a_graph_that_takes_any_number_is_written_for_any(case: Case, tmp_path: Path) -> None:
    with begun(case.model, case, tmp_path / "bundle", batch=(1,)) as context:
        assert batch_of(make_program(context, FP32, tmp_path / "p.pt2")) is None


def test_it_is_not_searched_unless_it_is_named(case: Case) -> None:
    default = read_request(case.model, case.data, Options())
    assert "torch" not in [runtime.name for runtime in default.runtimes]
    assert "int8-pt2e" not in [recipe.name for recipe in default.recipes]
    named = read_request(case.model, case.data, Options(runtimes=("torch", "onnxruntime")))
    assert [runtime.name for runtime in named.runtimes] == ["onnxruntime", "torch"]
    assert named.recipes[-1].name == "int8-pt2e"
    assert default.key != named.key
    assert {"torch"} <= set(named.hardware.versions) - set(default.hardware.versions)


def test_doctor_lists_it_as_on_request(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shell = lowbit(capfd, monkeypatch, "doctor", "--output", "json")
    runtimes = {each["name"]: each for each in json.loads(shell.out)["runtimes"]}
    assert runtimes["torch"]["used"] == "on request: --runtime torch"
    assert runtimes["torch"]["compiler"].startswith("none")
    assert "used" not in runtimes["onnxruntime"]
