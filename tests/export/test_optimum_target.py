"""A model folder as Optimum wants it, loaded by Optimum itself where it has an environment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from by_hand import STEPS, Case, case, with_batch
from target_case import INPUT, OUTPUT

from conftest import missing
from lowbit.data.geometry import Letterbox
from lowbit.data.preprocess import Preprocess
from lowbit.errors import ModelError, RunError, UsageError
from lowbit.export.base import Artifact
from lowbit.export.optimum.files import MODEL, image_processor
from lowbit.export.optimum.openvino_ir import Ir, open_ir
from lowbit.export.optimum.target import MODULES, ONNXRUNTIME, OPENVINO, OPTIMUM, OPTIMUM_INTEL, Optimum
from lowbit.export.settings import settings_of
from lowbit.export.worker import python_of
from lowbit.plugins import installed_version
from lowbit.types import Array

LABELS = tuple(f"thing {index}" for index in range(10))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(tmp_path_factory.mktemp("optimum"), labels=LABELS)


def write(made: Case, folder: Path, *settings: str) -> Artifact:
    folder.mkdir()
    target = Optimum()
    return target.write(made.source, folder, settings_of(target, settings))


def need(kernels: str) -> None:
    if python_of(kernels, MODULES[kernels].replace(".", "/")) is None:
        missing(f"{MODULES[kernels]} (LOWBIT_{kernels.upper().replace('-', '_')}_PYTHON or .venv-{kernels})")
    if kernels == OPTIMUM_INTEL:
        openvino_is_there()


def openvino_is_there() -> None:
    if installed_version("openvino") is None:
        missing("openvino")


def asked(artifact: Artifact, kernels: str, made: Case) -> Array:
    session = Optimum().open(artifact, kernels)
    try:
        found = session.run({INPUT: made.asked})
    finally:
        session.close()
    assert set(found) == {OUTPUT}
    return found[OUTPUT]


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
    assert np.array_equal(asked(write(made, tmp_path / "out"), ONNXRUNTIME, made), made.answers())


def test_optimum_loads_the_folder_by_itself_and_is_fed_as_many_samples_as_the_model_takes(made: Case, tmp_path: Path) -> None:
    need(OPTIMUM)
    artifact = write(replace(made, source=with_batch(made.source, 5)), tmp_path / "out")
    assert Optimum().kernel_sets(artifact)[0] == OPTIMUM
    assert "optimum.onnxruntime" in artifact.words
    assert any("takes 5 samples a call" in note for note in artifact.notes)
    assert np.array_equal(asked(artifact, OPTIMUM, made), made.answers())  # 48 samples


def test_optimum_intel_answers_with_the_integers_of_openvinos_file(made: Case, tmp_path: Path) -> None:
    need(OPTIMUM_INTEL)
    artifact = write(made, tmp_path / "out")
    assert artifact.facts["openvino_class"] == "OVModelForImageClassification"
    assert OPTIMUM_INTEL in Optimum().kernel_sets(artifact)
    assert "optimum.intel" in artifact.words
    assert np.array_equal(asked(artifact, OPTIMUM_INTEL, made), asked(artifact, OPENVINO, made))


def test_openvino_takes_its_own_files(made: Case, tmp_path: Path) -> None:
    openvino_is_there()
    artifact = write(made, tmp_path / "out")
    files = [tmp_path / "out" / name for name in ("openvino_model.xml", "openvino_model.bin")]
    assert set(files) < set(artifact.files)
    assert artifact.facts["openvino_bytes"] == sum(file.stat().st_size for file in files)
    assert any("OVModelForImageClassification" in note and '"INFERENCE_PRECISION_HINT": "f32"' in note for note in artifact.notes)
    found, ours = asked(artifact, OPENVINO, made), made.answers()
    assert (found.argmax(1) == ours.argmax(1)).mean() >= 0.9
    assert np.abs(found - ours).max() < 0.1 * np.abs(ours).max()


def test_openvino_computes_in_32_bit_on_one_thread(made: Case, tmp_path: Path) -> None:
    openvino_is_there()
    write(made, tmp_path / "out")
    session = open_ir(tmp_path / "out" / "openvino_model.xml")
    assert session.precision == "f32"
    session.close()
    assert Ir(Path("x.xml"), {}, reshapes=True).keywords() == {"ov_config": {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}}
    assert Ir(Path("x.xml"), {}, reshapes=False).keywords()["dynamic_shapes"] is False


def test_openvinos_files_can_be_left_out(made: Case, tmp_path: Path) -> None:
    artifact = write(made, tmp_path / "out", "openvino=false")
    assert not list((tmp_path / "out").glob("openvino*"))
    assert not {OPENVINO, OPTIMUM_INTEL} & set(Optimum().kernel_sets(artifact))
    assert "optimum.intel" not in artifact.words
    assert any("OVModelForImageClassification finds no model" in note for note in artifact.notes)
    with pytest.raises(RunError, match="has no kernels 'openvino'"):
        Optimum().open(artifact, OPENVINO)


def test_without_openvino_the_folder_is_for_onnxruntime_alone(made: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowbit.export.optimum.target.installed_version", lambda *names: None if "openvino" in names else "1.0")
    artifact = write(made, tmp_path / "out")
    assert not list((tmp_path / "out").glob("openvino*"))
    assert any("written without openvino" in note for note in artifact.notes)
    assert "pip install 'lowbit[openvino]'" in Optimum().abilities().missing
    with pytest.raises(UsageError, match="openvino=true needs openvino"):
        write(made, tmp_path / "more", "openvino=true")


def test_what_openvino_does_not_take_leaves_for_onnxruntime_alone(made: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino_is_there()

    def refuse(*_: object) -> None:
        raise ModelError("OpenVINO does not read the model: no Foo.")

    monkeypatch.setattr("lowbit.export.optimum.openvino_ir.write_ir", refuse)
    assert "Without OpenVINO's files: OpenVINO does not read the model: no Foo." in write(made, tmp_path / "out").notes
    with pytest.raises(ModelError, match="no Foo"):
        write(made, tmp_path / "more", "openvino=true")


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
