"""Which of Optimum's classes a model is for; models of text, and what fits no task, loaded by these classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from by_hand import STEPS, Case, case, with_batch
from onnx import TensorProto, helper
from target_case import INPUT, OUTPUT
from text_case import SCORES, answers, neutral_of_tokens, sentences, text_source

from conftest import missing
from lowbit.export.base import Artifact, TargetSession
from lowbit.export.neutral import Neutral
from lowbit.export.optimum.files import MODEL, config, shape_of
from lowbit.export.optimum.target import MODULES, ONNXRUNTIME, OPENVINO, OPTIMUM_INTEL, Optimum
from lowbit.export.settings import settings_of
from lowbit.export.worker import python_of
from lowbit.plugins import installed_version
from lowbit.types import TensorInfo
from small_models import save

KERNELS = (OPTIMUM_INTEL, ONNXRUNTIME, OPENVINO)
Opened = Callable[[Artifact, str], TargetSession]


def write(source: Neutral, folder: Path) -> Artifact:
    folder.mkdir()
    target = Optimum()
    return target.write(source, folder, settings_of(target, ()))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Neutral:
    return text_source(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def of_text(text: Neutral, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write(text, tmp_path_factory.mktemp("folder") / "out")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A network that takes three samples a call, whose names are no words, and that is not said to take images."""
    plain = case(tmp_path_factory.mktemp("custom"), preprocess=replace(STEPS, kind="array"))
    return replace(plain, source=renamed(with_batch(plain.source, 3), {INPUT: "input.1", OUTPUT: "out.1"}))


@pytest.fixture(scope="module")
def custom(made: Case, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write(made.source, tmp_path_factory.mktemp("folder") / "out")


def renamed(source: Neutral, names: Mapping[str, str]) -> Neutral:
    """The same model with other names of its ends."""

    def keyed(table: Mapping[str, Any]) -> dict[str, Any]:
        return {names.get(name, name): entry for name, entry in table.items()}

    model = source.model.clone()
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = names[str(value.name)]
    inputs, outputs = (tuple(replace(info, name=names[info.name]) for info in side) for side in (source.inputs, source.outputs))
    tables = {name: keyed(getattr(source, name)) for name in ("activations", "ranges", "stats")}
    return replace(source, model=model, inputs=inputs, outputs=outputs, **tables)


@pytest.fixture(scope="module")
def opened() -> Iterator[Opened]:
    """Opens each kernel set of an artifact once: classes take seconds to load. Skips where they are not there."""
    sessions: dict[tuple[Path, str], TargetSession] = {}

    def get(artifact: Artifact, kernels: str) -> TargetSession:
        if kernels in MODULES and python_of(kernels, MODULES[kernels].replace(".", "/")) is None:
            missing(f"{MODULES[kernels]} (LOWBIT_{kernels.upper().replace('-', '_')}_PYTHON or .venv-{kernels})")
        if kernels in (OPENVINO, OPTIMUM_INTEL) and installed_version("openvino") is None:
            missing("openvino")
        if (artifact.main, kernels) not in sessions:
            sessions[artifact.main, kernels] = Optimum().open(artifact, kernels)
        return sessions[artifact.main, kernels]

    yield get
    for session in sessions.values():
        session.close()


def test_a_model_of_text_is_a_sequence_classifier(of_text: Artifact) -> None:
    assert of_text.facts["class"] == "ORTModelForSequenceClassification"
    told = json.loads((of_text.main / "config.json").read_text())
    assert (told["model_type"], told["id2label"]["2"]) == ("bert", "fair")
    assert "tokenizer" in [finding.rule for finding in Optimum().check(of_text)]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("length", [12, 7])
def test_tokens_are_answered_as_the_model_means_them(text: Neutral, of_text: Artifact, opened: Opened, kernels: str, length: int) -> None:
    feeds = {name: values[:, :length] for name, values in sentences(20, seed=3).items()}
    found, meant = opened(of_text, kernels).run(feeds), answers(text, feeds)
    assert set(found) == {SCORES}
    assert (found[SCORES].argmax(1) == meant.argmax(1)).mean() >= 0.9
    assert np.abs(found[SCORES] - meant).max() < 0.1 * np.abs(meant).max()


def test_what_is_no_integer_is_computed_in_32_bit_by_the_class_too(of_text: Artifact, opened: Opened) -> None:
    feeds = sentences(20, seed=5)
    by_class, by_openvino = (opened(of_text, kernels).run(feeds)[SCORES] for kernels in (OPTIMUM_INTEL, OPENVINO))
    assert np.array_equal(by_class, by_openvino)  # bfloat16, the class's default where a processor has it, is 0.05 off here


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("n", [7, 3, 1])
def test_what_fits_no_task_is_asked_by_name_and_in_whole_calls(made: Case, custom: Artifact, opened: Opened, kernels: str, n: int) -> None:
    found, ours = opened(custom, kernels).run({"input.1": made.asked[:n]}), made.answers()[:n]
    assert set(found) == {"out.1"}
    assert found["out.1"].shape == ours.shape
    assert np.abs(found["out.1"] - ours).max() < 0.1 * np.abs(ours).max()


def test_what_is_special_about_such_a_model_is_said(custom: Artifact) -> None:
    model = onnx.load_model(custom.main / MODEL)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["input_1", "out_1"]
    assert any("takes them by name" in note for note in custom.notes)
    assert any("takes 3 samples a call" in note for note in custom.notes)


def test_sizes_that_cannot_be_opened_are_said(opened: Opened, tmp_path: Path) -> None:
    ids = helper.make_node("Gather", ["table", "ids"], ["row"], name="embed")
    dense = helper.make_node("MatMul", ["row", "w"], ["y"], name="dense")
    shapes = {"ids": (TensorProto.INT64, ["N"])}, {"y": (TensorProto.FLOAT, ["N", 4])}
    rng = np.random.default_rng(0)
    weights = {"table": rng.normal(size=(9, 8)).astype(np.float32), "w": rng.normal(size=(8, 4)).astype(np.float32)}
    source = neutral_of_tokens(onnx.load(save(tmp_path / "net.onnx", [ids, dense], *shapes, weights)), {"ids": np.arange(9)})
    artifact = write(source, tmp_path / "out")
    session = opened(artifact, OPENVINO)
    assert any("OVModelForCustomTasks needs dynamic_shapes=False" in note for note in artifact.notes)
    found = session.run({"ids": np.arange(5)})["y"]
    assert np.abs(found - weights["table"][:5] @ weights["w"]).max() < 0.1


def test_an_output_has_the_one_name_that_is_meant(tmp_path: Path) -> None:
    if installed_version("openvino") is None:
        missing("openvino")
    import openvino

    nodes = [helper.make_node("MatMul", ["x", "w"], ["inner"], name="dense"), helper.make_node("Reshape", ["inner", "same"], ["y"])]
    shapes = {"x": (TensorProto.FLOAT, ["N", 8])}, {"y": (TensorProto.FLOAT, ["N", 4])}
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(8, 4)).astype(np.float32), "same": np.array([0, 4])}
    model = onnx.load(save(tmp_path / "net.onnx", nodes, *shapes, weights))
    write(neutral_of_tokens(model, {"x": rng.normal(size=(9, 8)).astype(np.float32)}), tmp_path / "out")
    found = openvino.Core().compile_model(tmp_path / "out" / "openvino_model.xml", "CPU")
    assert [port.get_names() for port in (*found.inputs, *found.outputs)] == [{"x"}, {"y"}]  # the reshaping is gone, with its name


def test_openvinos_file_is_the_same_every_time(text: Neutral, of_text: Artifact, tmp_path: Path) -> None:
    if installed_version("openvino") is None:
        missing("openvino")
    write(text, tmp_path / "out")
    for name in ("openvino_model.xml", "openvino_model.bin"):
        assert (tmp_path / "out" / name).read_bytes() == (of_text.main / name).read_bytes()


def infos(**shapes: tuple[object, ...]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(name, shape, "float32") for name, shape in shapes.items())  # type: ignore[arg-type]


def test_the_class_follows_from_what_goes_in_and_out() -> None:
    text = infos(input_ids=("n", "t"), attention_mask=("n", "t"))
    assert shape_of(text, infos(scores=("n", 2)), None).class_name == "ORTModelForSequenceClassification"
    assert shape_of(text, infos(scores=("n", 2)), None).renamed == {"scores": "logits"}
    assert shape_of(text, infos(logits=("n", "t", 9)), None).class_name == "ORTModelForTokenClassification"
    assert shape_of(infos(x=("n", 3, 8, 8)), infos(boxes=("n", 5, 4), scores=("n", 5)), None).class_name == "ORTModelForCustomTasks"
    assert shape_of(infos(x=("n", 8)), infos(y=("n", 1)), None).class_name == "ORTModelForCustomTasks"
    assert shape_of(infos(x=("n", 3, 8, 8)), infos(y=("n", 5)), None).openvino_class == "OVModelForImageClassification"


def test_inputs_that_a_class_does_not_pass_on_make_it_custom() -> None:
    bare = shape_of(infos(input_ids=("n", "t")), infos(scores=("n", 2)), None)
    assert bare.class_name == "ORTModelForSequenceClassification"
    assert bare.openvino_class == "OVModelForCustomTasks"  # the class for text always feeds a mask
    placed = shape_of(infos(input_ids=("n", "t"), attention_mask=("n", "t"), position_ids=("n", "t")), infos(scores=("n", 2)), None)
    assert (placed.class_name, placed.openvino_class) == ("ORTModelForCustomTasks", "OVModelForCustomTasks")
    assert placed.model_type == "bert"


def test_names_become_words_where_that_stays_clear() -> None:
    inputs = (TensorInfo("input.1", ("n", 8), "float32"),)
    outputs = tuple(TensorInfo(name, ("n", 1), "float32") for name in ("a/b", "a_b", "plain"))
    assert shape_of(inputs, outputs, None).renamed == {"input.1": "input_1"}


def test_classes_without_names_are_numbered() -> None:
    inputs, outputs = infos(x=("n", 3, 8, 8)), infos(y=("n", 3))
    found = config(shape_of(inputs, outputs, None), inputs, outputs, ())
    assert found["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    twice = config(shape_of(inputs, outputs, None), inputs, outputs, ("crane", "dog", "crane"))
    assert twice["label2id"] == {"crane": 0, "dog": 1}
