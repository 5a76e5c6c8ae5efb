"""A model folder as Optimum wants it, loaded by Optimum itself where it has an environment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from by_hand import STEPS, Case, case
from target_case import INPUT, OUTPUT

from conftest import missing
from lowbit.data.geometry import Letterbox
from lowbit.data.preprocess import Preprocess
from lowbit.export.base import Artifact
from lowbit.export.optimum.files import MODEL, config, image_processor, shape_of
from lowbit.export.optimum.target import ONNXRUNTIME, OPENVINO, OPTIMUM, Optimum
from lowbit.export.settings import settings_of
from lowbit.export.worker import python_of
from lowbit.plugins import installed_version
from lowbit.types import TensorInfo

LABELS = tuple(f"thing {index}" for index in range(10))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(tmp_path_factory.mktemp("optimum"), labels=LABELS)


def write(made: Case, folder: Path, *settings: str) -> Artifact:
    folder.mkdir()
    target = Optimum()
    return target.write(made.source, folder, settings_of(target, settings))


def test_the_folder_is_what_an_image_classifier_is(made: Case, tmp_path: Path) -> None:
    artifact = write(made, tmp_path / "out")
    model = onnx.load_model(tmp_path / "out" / MODEL)
    assert [value.name for value in model.graph.input] == ["pixel_values"]
    assert [value.name for value in model.graph.output] == ["logits"]
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["id2label"]["3"] == "thing 3"
    assert told["label2id"]["thing 3"] == 3
    assert (told["num_channels"], told["image_size"]) == (3, 12)
    assert artifact.facts["class"] == "ORTModelForImageClassification"
    assert [finding.severity for finding in Optimum().check(artifact)] == ["note"]


def test_onnxruntime_answers_in_the_source_names_to_the_bit(made: Case, tmp_path: Path) -> None:
    session = Optimum().open(write(made, tmp_path / "out"), ONNXRUNTIME)
    found = session.run({INPUT: made.asked})
    assert set(found) == {OUTPUT}
    assert np.array_equal(found[OUTPUT], made.answers())
    session.close()


def test_optimum_loads_the_folder_by_itself(made: Case, tmp_path: Path) -> None:
    if python_of("optimum", "optimum/onnxruntime") is None:
        missing("Optimum's environment (LOWBIT_OPTIMUM_PYTHON or .venv-optimum)")
    artifact = write(made, tmp_path / "out")
    assert Optimum().kernel_sets(artifact)[0] == OPTIMUM
    session = Optimum().open(artifact, OPTIMUM)
    assert np.array_equal(session.run({INPUT: made.asked})[OUTPUT], made.answers())
    session.close()


def test_openvino_takes_its_own_files(made: Case, tmp_path: Path) -> None:
    if installed_version("openvino") is None:
        missing("openvino")
    artifact = write(made, tmp_path / "out", "openvino=true")
    assert {"openvino_model.xml", "openvino_model.bin"} <= {file.name for file in artifact.files}
    assert any("OVModelForImageClassification" in note and "not run" in note for note in artifact.notes)
    session = Optimum().open(artifact, OPENVINO)
    found, ours = session.run({INPUT: made.asked})[OUTPUT], made.answers()
    session.close()
    assert (found.argmax(1) == ours.argmax(1)).mean() >= 0.9
    assert np.abs(found - ours).max() < 0.1 * np.abs(ours).max()


def test_transformers_processor_says_the_same_steps() -> None:
    settings, lacking = image_processor(STEPS)
    assert lacking == ""
    assert settings is not None
    assert settings["size"] == {"shortest_edge": 14}
    assert settings["crop_size"] == {"height": 12, "width": 12}
    assert settings["image_mean"] == [0.5, 0.5, 0.5]
    assert settings["image_std"] == [0.25, 0.25, 0.25]
    assert settings["rescale_factor"] == 1 / 255
    assert settings["resample"] == 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"channels": "grey"}, "grey pixels"),
        ({"channels": "bgr"}, "bgr pixels"),
        ({"layout": "nhwc"}, "the layout nhwc"),
        ({"resize": None, "crop": None, "letterbox": Letterbox((12, 12))}, "a letterbox"),
        ({"kind": "array"}, "samples that are no images"),
    ],
)
def test_what_the_processor_cannot_say_is_said_in_words(made: Case, tmp_path: Path, changed: dict[str, object], words: str) -> None:
    steps: Preprocess = replace(STEPS, **changed)  # type: ignore[arg-type]
    assert image_processor(steps) == (None, words)
    if steps.kind == "image":
        other = replace(made, source=replace(made.source, preprocess=steps))
        artifact = write(other, tmp_path / "out")
        assert any(words in note for note in artifact.notes)
        assert not (tmp_path / "out" / "preprocessor_config.json").exists()
        assert "warning" in [finding.severity for finding in Optimum().check(artifact)]


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


def test_classes_without_names_are_numbered() -> None:
    inputs, outputs = infos(x=("n", 3, 8, 8)), infos(y=("n", 3))
    found = config(shape_of(inputs, outputs, None), inputs, outputs, ())
    assert found["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    twice = config(shape_of(inputs, outputs, None), inputs, outputs, ("crane", "dog", "crane"))
    assert twice["label2id"] == {"crane": 0, "dog": 1}
