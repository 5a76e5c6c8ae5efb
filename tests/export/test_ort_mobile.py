"""The ORT format: converted, opened again, and no longer than what it needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from by_hand import Case, case, with_batch
from target_case import INPUT, OUTPUT

from lowbit.errors import ModelError, RunError
from lowbit.export.base import Artifact
from lowbit.export.ortmobile.target import KERNELS, OrtMobile, operators_of
from lowbit.export.settings import settings_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(tmp_path_factory.mktemp("mobile"), labels=tuple(f"thing {index}" for index in range(10)))


def write(made: Case, folder: Path, *settings: str) -> Artifact:
    folder.mkdir()
    target = OrtMobile()
    return target.write(made.source, folder, settings_of(target, settings))


def test_the_file_answers_as_the_artifact_to_the_bit(made: Case, tmp_path: Path) -> None:
    session = OrtMobile().open(write(made, tmp_path / "out"), KERNELS)
    assert np.array_equal(session.run({INPUT: made.asked})[OUTPUT], made.answers())
    session.close()


@pytest.mark.parametrize("size", [1, 8])
def test_any_number_of_samples_is_answered_whatever_the_file_takes(made: Case, tmp_path: Path, size: int) -> None:
    session = OrtMobile().open(write(replace(made, source=with_batch(made.source, size)), tmp_path / "out"), KERNELS)
    assert np.array_equal(session.run({INPUT: made.asked[:21]})[OUTPUT], made.answers()[:21])
    session.close()


def test_the_folder_holds_the_fast_file_alone_and_no_path_of_this_machine(made: Case, tmp_path: Path) -> None:
    artifact = write(made, tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"case.ort", "case.required_operators.config", "labels.txt", "preprocess.yaml"}
    assert {file.name for file in artifact.files} == names
    assert str(tmp_path) not in (tmp_path / "out" / "case.required_operators.config").read_text()
    assert (tmp_path / "out" / "labels.txt").read_text().splitlines()[:2] == ["thing 0", "thing 1"]


def test_the_list_of_operators_has_the_integer_kernels(made: Case, tmp_path: Path) -> None:
    artifact = write(made, tmp_path / "out")
    operators = operators_of(tmp_path / "out" / "case.required_operators.config")
    assert {"QLinearConv", "QLinearAdd", "QGemm"} <= set(operators)
    assert artifact.facts["operators"] == len(operators)
    assert OrtMobile().check(artifact) == []


def test_lists_of_operators_are_read_with_types_and_comments(tmp_path: Path) -> None:
    config = tmp_path / "x.config"
    text = '# a comment\nai.onnx;13;Pad,Relu{"inputs": {"0": ["float"]}}\ncom.microsoft;1;QGemm\n'
    config.write_text(text)
    assert operators_of(config) == ("Pad", "Relu", "QGemm")


def test_a_file_of_another_format_is_an_error(made: Case, tmp_path: Path) -> None:
    artifact = write(made, tmp_path / "out")
    artifact.main.write_bytes(made.artifact.read_bytes())
    assert [finding.severity for finding in OrtMobile().check(artifact)] == ["error"]


def test_other_kernels_are_refused(made: Case, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no kernels 'gpu'"):
        OrtMobile().open(write(made, tmp_path / "out"), "gpu")


def test_a_model_without_a_table_is_refused(made: Case, tmp_path: Path) -> None:
    bare = replace(made, source=replace(made.source, weights={}, activations={}))
    with pytest.raises(ModelError, match="Nothing in 'by-hand' computes on integers"):
        write(bare, tmp_path / "out")
