"""A bundle as a Triton repository: read by Triton's own message, and run the way its backends would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_runner import lowbit
from clients_case import run
from google.protobuf import text_format
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import strategies as st
from serving_case import BASELINE, INPUT, INT8, OUTPUT, tiny_bundle

from lowbit.bundle.bundle import Bundle
from lowbit.bundle.manifest import file_entries, write_manifest
from lowbit.errors import Interrupted, UsageError
from lowbit.export.servers import write
from lowbit.export.servers.leaving import Leaving, leaving
from lowbit.export.servers.pbtxt import Word, quoted, to_text
from lowbit.export.servers.triton import configured
from lowbit.export.servers.write import Wishes, export
from lowbit.types import Candidate, Latency, Measurement, TensorInfo, Tuning
from small_models import images

PLAIN = Tuning()
PARSE = Path(__file__).with_name("parse_config.py")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("export") / "tiny")


@pytest.fixture(scope="module")
def on_openvino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, whose chosen candidate says that it was measured on openvino."""
    folder = tiny_bundle(tmp_path_factory.mktemp("openvino") / "tiny")
    return changed(folder, runtime="openvino")


def changed(folder: Path, **fields: Any) -> Path:
    """With other facts about its chosen candidate."""
    manifest = Bundle.load(folder).manifest
    chosen = manifest.chosen.model_copy(update=fields)
    write_manifest(manifest.model_copy(update={"candidates": (chosen,)}), folder)
    return folder


def parsed(file: Path) -> dict[str, Any]:
    """As Triton reads it."""
    done = run(PARSE, file)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(batch: int, per_s: float, tuning: Tuning = PLAIN) -> Measurement:
    ms = 1000 * batch / per_s
    return Measurement(batch, tuning.streams, Latency(ms, ms, ms, ms, ms), per_s, None, None, 9, False, tuning)


def model(
    runtime: str = "onnxruntime",
    *rates: tuple[int, float],
    tuning: Tuning = PLAIN,
    inputs: tuple[TensorInfo, ...] = (TensorInfo("x", ("n", 4), "float32"),),
    outputs: tuple[TensorInfo, ...] = (TensorInfo("y", ("n", 2), "float32"),),
    apart: bool = True,
) -> Leaving:
    measurements = tuple(measured(batch, per_s, tuning) for batch, per_s in rates)
    candidate = Candidate(f"int8@{runtime}", "int8", runtime, "int8", tuning, measurements=measurements)
    return Leaving("m", candidate, (), inputs, outputs, apart)


def text_of(leaves: Leaving, **given: Any) -> str:
    return configured(leaves, about={}, **given).text


# What Triton reads -----------------------------------------------------------------------------------------------------


def test_triton_reads_both_models(tiny: Path, tmp_path: Path) -> None:
    written = export(tiny, tmp_path / "repo", Wishes(window_s=0.002))
    assert [(each.name, each.candidate.id) for each, _ in written.models] == [("tiny", INT8), ("tiny_full", BASELINE)]
    found = parsed(tmp_path / "repo" / "tiny" / "config.pbtxt")
    facts = {each: found["parameters"].pop(f"lowbit.{each}")["string_value"] for each in ("candidate", "precision", "bundle")}
    assert facts["candidate"] == INT8
    assert facts["precision"] == "int8"
    assert len(facts["bundle"]) == 12
    del found["parameters"]["lowbit.version"], found["parameters"]["lowbit.measured-with"]
    assert found == {
        "name": "tiny",
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
        "max_batch_size": 8,
        "input": [{"name": INPUT, "data_type": "TYPE_FP32", "dims": ["3", "8", "8"]}],
        "output": [{"name": OUTPUT, "data_type": "TYPE_FP32", "dims": ["10"]}],
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        "dynamic_batching": {"max_queue_delay_microseconds": "2000"},
        "parameters": {"intra_op_thread_count": {"string_value": "1"}},
    }
    full = parsed(tmp_path / "repo" / "tiny_full" / "config.pbtxt")
    assert full["parameters"]["lowbit.candidate"]["string_value"] == BASELINE


def test_triton_reads_what_is_unusual(tmp_path: Path) -> None:
    """Scalars a row, text, axes of any size, names with quotes, a batch that is preferred below the largest."""
    inputs = (TensorInfo('in"put\n', ("n",), "int64"), TensorInfo("größe", ("n", None, "t"), "object"))
    leaves = model("onnxruntime", (1, 100), (4, 400), (16, 405), inputs=inputs, tuning=Tuning(threads=4, streams=2))
    file = tmp_path / "config.pbtxt"
    file.write_text(text_of(leaves))
    found = parsed(file)
    assert found["input"] == [
        {"name": 'in"put\n', "data_type": "TYPE_INT64", "dims": ["1"], "reshape": {}},
        {"name": "größe", "data_type": "TYPE_STRING", "dims": ["-1", "-1"]},
    ]
    assert found["max_batch_size"] == 16
    assert found["dynamic_batching"] == {"preferred_batch_size": [4]}
    assert found["instance_group"] == [{"count": 2, "kind": "KIND_CPU"}]
    assert found["parameters"]["intra_op_thread_count"]["string_value"] == "2"


def test_the_check_would_notice_a_wrong_field(tmp_path: Path) -> None:
    file = tmp_path / "config.pbtxt"
    file.write_text('name: "m"\nmax_batches: 3\n')
    assert run(PARSE, file).returncode != 0


# What its backends do with it ------------------------------------------------------------------------------------------


def test_onnxruntime_runs_the_repository(tiny: Path, tmp_path: Path) -> None:
    import onnxruntime as ort

    export(tiny, tmp_path / "repo")
    x = images(5, 3)
    for name, candidate in (("tiny", INT8), ("tiny_full", BASELINE)):
        found = parsed(tmp_path / "repo" / name / "config.pbtxt")
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(found["parameters"]["intra_op_thread_count"]["string_value"])
        there = ort.InferenceSession(str(tmp_path / "repo" / name / "1" / found["default_model_filename"]), options)
        with Bundle.load(tiny).session(candidate=candidate) as here:
            np.testing.assert_array_equal(there.run([OUTPUT], {INPUT: x})[0], here.run(x)[OUTPUT])


def test_openvino_runs_the_repository(on_openvino: Path, tmp_path: Path) -> None:
    """As its backend does: the first axis is the batch, set to the largest, and what is fewer is filled up."""
    ov = pytest.importorskip("openvino")
    written = export(on_openvino, tmp_path / "repo", Wishes(full=False))
    found = parsed(tmp_path / "repo" / "tiny" / "config.pbtxt")
    most, given = found["max_batch_size"], {key: value["string_value"] for key, value in found["parameters"].items()}
    assert (found["backend"], most, given["ENABLE_BATCH_PADDING"]) == ("openvino", 8, "YES")
    core = ov.Core()
    read = core.read_model(tmp_path / "repo" / "tiny" / "1" / found["default_model_filename"])
    assert [port.get_any_name() for port in (*read.inputs, *read.outputs)] == [INPUT, OUTPUT]
    steps = ov.preprocess.PrePostProcessor(read)
    steps.input(INPUT).tensor().set_element_type(ov.Type.f32)
    steps.input(INPUT).tensor().set_layout(ov.Layout("N..."))
    read = steps.build()
    ov.set_batch(read, most)
    settings = {key: given[key] for key in ("PERFORMANCE_HINT", "NUM_STREAMS", "INFERENCE_NUM_THREADS") if key in given}
    compiled = core.compile_model(read, "CPU", {**settings, "INFERENCE_PRECISION_HINT": "f32"})
    x = images(5, 3)
    there = compiled({INPUT: np.concatenate([x, np.zeros((most - 5, 3, 8, 8), np.float32)])})[OUTPUT][:5]
    with Bundle.load(on_openvino).session() as here:
        np.testing.assert_allclose(there, here.run(x)[OUTPUT], atol=1e-4)
    assert [note.partition(":")[0] for note in written.notes] == ["tiny", "tiny"]


def test_external_data_comes_along(tiny: Path, tmp_path: Path) -> None:
    import onnxruntime as ort

    folder = tmp_path / "tiny"
    shutil.copytree(tiny, folder)
    (folder / "model" / "data").mkdir()
    model_proto = onnx.load(folder / "model" / "model.onnx")
    onnx.save(model_proto, folder / "model" / "model.onnx", save_as_external_data=True, location="data/weights.bin", size_threshold=0)
    manifest = Bundle.load(tiny).manifest
    entries = file_entries(folder, ("model", "baseline/model.onnx", "preprocess.yaml"))
    write_manifest(manifest.model_copy(update={"files": entries}), folder)
    export(folder, tmp_path / "repo")
    assert (tmp_path / "repo" / "tiny" / "1" / "data" / "weights.bin").stat().st_size > 0
    there = ort.InferenceSession(str(tmp_path / "repo" / "tiny" / "1" / "model.onnx"))
    with Bundle.load(tiny).session() as here:
        np.testing.assert_array_equal(there.run([OUTPUT], {INPUT: images(2, 3)})[0], here.run(images(2, 3))[OUTPUT])


# How rows are put together ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leaves", "asked", "expected"),
    [
        (model("onnxruntime", (1, 100), (8, 400)), None, (8, None)),
        (model("onnxruntime", (1, 100), (8, 400), (32, 402)), None, (32, 8)),
        (model("openvino", (1, 100), (8, 400), (32, 402)), None, (8, None)),  # it fills up to the largest
        (model("onnxruntime", (1, 400), (8, 401)), None, (0, None)),  # together is no quicker
        (model("onnxruntime", (1, 100), (8, 400), apart=False), None, (0, None)),
        (model("onnxruntime"), None, (0, None)),  # nothing was measured
        (model("openvino", (1, 100), (8, 400)), 0, (0, None)),
        (model("onnxruntime", (1, 100), (8, 400)), 4, (4, None)),
    ],
)
def test_batches_follow_from_measurements(leaves: Leaving, asked: int | None, expected: tuple[int, int | None]) -> None:
    found = configured(leaves, about={}, max_batch=asked).batching
    assert (found.most, found.preferred) == expected


def test_without_batches_the_first_axis_is_any() -> None:
    text = text_of(model("openvino", (1, 400)))
    assert "dims: [-1, 4]" in text
    assert "max_batch_size: 0" in text
    assert "dynamic_batching" not in text
    assert "PADDING" not in text


def test_a_model_for_one_batch_size_keeps_it() -> None:
    leaves = model(inputs=(TensorInfo("x", (2, 4), "float32"),), outputs=(TensorInfo("y", (2, 2), "float32"),), apart=False)
    assert "dims: [2, 4]" in text_of(leaves)
    with pytest.raises(UsageError, match="cannot share a run"):
        text_of(leaves, max_batch=4)


def test_rows_are_tried_where_names_do_not_say(tiny: Path) -> None:
    bundle = Bundle.load(tiny)
    assert [each.apart for each in leaving(bundle, "m")] == [True, True]
    renamed = model_with_other_axis(tiny)
    assert leaving(Bundle.load(renamed), "m", full=False)[0].apart


def model_with_other_axis(tiny: Path) -> Path:
    """The same bundle, whose output names its rows otherwise."""
    folder = tiny.parent / "renamed"
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    proto = onnx.load(folder / "model" / "model.onnx")
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "rows"
    onnx.save(proto, folder / "model" / "model.onnx")
    manifest = Bundle.load(tiny).manifest
    entries = file_entries(folder, ("model", "baseline/model.onnx", "preprocess.yaml"))
    write_manifest(manifest.model_copy(update={"files": entries}), folder)
    return folder


# What cannot leave -----------------------------------------------------------------------------------------------------


def test_what_triton_cannot_run_is_refused() -> None:
    cases = [
        (model("torch"), "runs on torch"),
        (model("openvino", tuning=Tuning(precision="f16")), "measured in f16"),
        (model("openvino", inputs=(TensorInfo("x", ("n",), "object"),)), "is text"),
        (model("openvino", inputs=(TensorInfo("x", (), "float32"),), apart=False), "is a scalar"),
        (model(inputs=(TensorInfo("x", ("n", 4), "int4"),)), "is int4"),
    ]
    for leaves, words in cases:
        with pytest.raises(UsageError, match=words) as caught:
            configured(leaves, about={})
        assert caught.value.hint


def test_bf16_is_asked_for() -> None:
    found = configured(model("openvino", tuning=Tuning(precision="bf16", threads=4, streams=4)), about={})
    for word in ("HINT_BF16", '"THROUGHPUT"', "INFERENCE_NUM_THREADS", "count: 4"):
        assert word in found.text
    assert found.notes == ()


def test_a_program_names_what_can_leave(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(tiny, folder)
    (folder / "model" / "model.onnx").rename(folder / "model" / "model.pt2")
    manifest = Bundle.load(tiny).manifest
    program = manifest.chosen.model_copy(update={"id": "int8-pt2e@torch", "runtime": "torch", "artifact": None})
    update = {
        "candidates": (manifest.chosen, program),
        "decision": manifest.decision.model_copy(update={"chosen": "int8-pt2e@torch"}),
        "model": manifest.model.model_copy(update={"artifact": "model/model.pt2"}),
        "files": file_entries(folder, ("model", "baseline/model.onnx", "preprocess.yaml")),
    }
    write_manifest(manifest.model_copy(update=update), folder)
    with pytest.raises(UsageError, match="is a PyTorch program") as caught:
        export(folder, tmp_path / "repo")
    assert caught.value.hint == f"Export another candidate: --candidate {INT8}."
    assert not (tmp_path / "repo").exists()
    export(folder, tmp_path / "repo", Wishes(candidate=INT8))


# Writing ---------------------------------------------------------------------------------------------------------------


def test_other_models_stay_and_the_same_needs_force(tiny: Path, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    export(tiny, repo, Wishes(full=False))
    export(tiny, repo, Wishes(name="other", full=False))
    (repo / "tiny" / "1" / "mine.txt").write_text("kept until replaced")
    with pytest.raises(UsageError, match="has tiny already"):
        export(tiny, repo)
    assert sorted(each.name for each in repo.iterdir()) == ["other", "tiny"]
    export(tiny, repo, Wishes(force=True))
    assert sorted(each.name for each in repo.iterdir()) == ["other", "tiny", "tiny_full"]
    assert not (repo / "tiny" / "1" / "mine.txt").exists()


def test_a_full_disk_leaves_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write.shutil, "copyfile", full)
    with pytest.raises(Interrupted, match="disk is full"):
        export(tiny, tmp_path / "repo")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_keeps_what_was_there(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = tmp_path / "repo"
    export(tiny, repo, Wishes(full=False))
    before = (repo / "tiny" / "config.pbtxt").read_text()
    real = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if target == repo / "tiny" and "old" not in self.name:
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(UsageError, match="cannot be written"):
        export(tiny, repo, Wishes(full=False, force=True, max_batch=2))
    assert (repo / "tiny" / "config.pbtxt").read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["repo"]


def test_the_command(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    done = lowbit(capfd, monkeypatch, "export", tiny, "--to", "triton", "--out", tmp_path / "repo", "--output", "json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [(each["name"], each["backend"], each["max_batch_size"]) for each in found["models"]] == [
        ("tiny", "onnxruntime", 8),
        ("tiny_full", "onnxruntime", 8),
    ]
    again = lowbit(capfd, monkeypatch, "export", tiny, "--to", "triton", "--out", tmp_path / "repo")
    assert (again.code, "--force" in again.err) == (2, True)
    wrong = lowbit(capfd, monkeypatch, "export", tiny, "--to", "triton", "--out", tmp_path / "x", "--name", "../up")
    assert (wrong.code, "cannot be a model's name" in wrong.err) == (2, True)


# The text format -------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_any_text_comes_back(text: str) -> None:
    assert text_format.Parse(f"value: {quoted(text)}", StringValue()).value == text


def test_a_message() -> None:
    found = to_text({"a": 1, "b": Word("ON"), "c": [1, -1], "d": [{"e": "x"}, {}], "f": True, "g": []})
    assert found == 'a: 1\nb: ON\nc: [1, -1]\nd {\n  e: "x"\n}\nd { }\nf: true\ng: []\n'
