"""Core ML packages: written, read back from disk, and interpreted beside the artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from by_hand import Case, case
from target_case import INPUT, OUTPUT

from conftest import missing
from lowbit.errors import ModelError, RunError
from lowbit.export.base import Artifact
from lowbit.export.coreml.interpreter import Interpreter
from lowbit.export.coreml.target import KERNELS, WORDS, CoreMl
from lowbit.export.settings import settings_of
from lowbit.plugins import installed_version
from lowbit.types import TensorInfo

LABELS = tuple(f"thing {index}" for index in range(10))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Case:
    if installed_version("coremltools") is None:
        missing("coremltools")
    return case(tmp_path_factory.mktemp("coreml"), labels=LABELS)


@pytest.fixture(scope="module")
def written(made: Case, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write(made, tmp_path_factory.mktemp("package") / "out")


def write(made: Case, folder: Path, *settings: str) -> Artifact:
    folder.mkdir()
    target = CoreMl()
    return target.write(made.source, folder, settings_of(target, settings))


def answers(artifact: Artifact, asked: np.ndarray) -> np.ndarray:
    session = CoreMl().open(artifact, KERNELS)
    found = session.run({INPUT: asked})
    assert set(found) == {OUTPUT}
    return found[OUTPUT]


def test_the_package_answers_as_the_artifact(made: Case, written: Artifact) -> None:
    found, ours = answers(written, made.asked), made.answers()
    assert found.dtype == np.float32
    assert (found.argmax(1) == ours.argmax(1)).all()
    assert np.abs(found - ours).max() < 0.02 * np.ptp(ours)


def test_every_product_reads_int8_on_both_sides(written: Artifact) -> None:
    operations = Interpreter(written.main).operations
    assert operations["constexpr_affine_dequantize"] == 4  # three convolutions and a dense layer
    assert operations["conv"] == 3
    assert operations["quantize"] >= 6
    assert [finding.rule for finding in CoreMl().check(written)] == ["Neural Engine"]


def test_its_weights_take_a_byte_each(written: Artifact) -> None:
    weights = written.main / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    count = 8 * 3 * 9 + 8 * 9 + 8 * 8 + 10 * 8
    assert weights.stat().st_size < 4 * count + 2000, "float32 weights would take more; each blob is aligned"


def test_people_find_words_in_it(made: Case, written: Artifact) -> None:
    from coremltools.models.utils import load_spec

    told = load_spec(str(written.main)).description
    assert "int8 weights and activations" in told.metadata.shortDescription
    assert "float32 beside" in told.metadata.shortDescription
    assert told.metadata.author == "written by lowbit"
    assert told.metadata.userDefined["lowbit.candidate"] == made.source.candidate
    assert "resize: 14" in told.metadata.userDefined["lowbit.preprocess"]
    assert '"thing 3"' in told.metadata.userDefined["lowbit.labels"]
    assert "resize: 14" in told.input[0].shortDescription
    assert written.notes[0].casefold() == f"{WORDS}.".casefold()
    assert CoreMl().abilities().level == "interpreted"


def test_half_precision_beside_the_integers_is_close(made: Case, tmp_path: Path) -> None:
    artifact = write(made, tmp_path / "out", "precision=float16")
    found, ours = answers(artifact, made.asked), made.answers()
    assert (found.argmax(1) == ours.argmax(1)).mean() >= 0.95
    assert np.abs(found - ours).max() < 0.05 * np.ptp(ours)


def test_palettized_weights_have_sixteen_values_a_tensor(made: Case, tmp_path: Path) -> None:
    if installed_version("sklearn", "scikit-learn") is None:
        missing("scikit-learn")
    artifact = write(made, tmp_path / "out", "weights=4bit-palettized")
    operations = Interpreter(artifact.main).operations
    assert "quantize" not in operations
    assert artifact.facts["weights"] == "4bit-palettized"
    found, ours = answers(artifact, made.asked[:8]), made.answers()[:8]
    assert np.abs(found - ours).max() < 0.5 * np.ptp(ours)


def test_names_that_swift_cannot_write_are_made_so(made: Case, tmp_path: Path) -> None:
    model = made.source.model.clone()
    model.graph.inputs[0].name = "image.1"
    inputs = (TensorInfo("image.1", ("N", 3, 12, 12), "float32"),)
    grids = dict(made.source.activations)
    grids["image.1"] = grids.pop(INPUT)
    other = replace(made, source=replace(made.source, model=model, inputs=inputs, activations=grids))
    artifact = write(other, tmp_path / "out")
    session = CoreMl().open(artifact, KERNELS)
    assert np.array_equal(session.run({"image.1": made.asked[:2]})[OUTPUT].argmax(1), made.answers()[:2].argmax(1))
    assert list(Interpreter(artifact.main).run({"image_1": made.asked[:1]})) == [OUTPUT]


def test_an_operator_that_core_ml_lacks_is_named_with_its_part(tmp_path: Path) -> None:
    if installed_version("coremltools") is None:
        missing("coremltools")
    special = case(tmp_path, extra="Ceil")
    with pytest.raises(ModelError, match=r"Core ML lacks Ceil 'special'") as error:
        write(special, tmp_path / "out")
    assert "from 'r3' to 'e'" in error.value.message
    assert error.value.hint is not None


def test_dynamic_pixels_are_refused(made: Case, tmp_path: Path) -> None:
    inputs = (TensorInfo(INPUT, ("N", 3, "H", 12), "float32"),)
    with pytest.raises(ModelError, match="needs static shapes"):
        write(replace(made, source=replace(made.source, inputs=inputs)), tmp_path / "out")


def test_what_is_fed_wrong_is_said(written: Artifact, made: Case) -> None:
    session = CoreMl().open(written, KERNELS)
    with pytest.raises(RunError, match="has the shape"):
        session.run({INPUT: made.asked[:1, :, :6]})
    with pytest.raises(RunError, match="is missing"):
        session.run({"picture": made.asked[:1]})
    with pytest.raises(RunError, match="has no kernels 'ane'"):
        CoreMl().open(written, "ane")


def test_a_package_that_is_cut_off_does_not_load(made: Case, tmp_path: Path) -> None:
    artifact = write(made, tmp_path / "out")
    file = artifact.main / "Data" / "com.apple.CoreML" / "model.mlmodel"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(RunError, match="cannot be read back"):
        CoreMl().open(artifact, KERNELS)
