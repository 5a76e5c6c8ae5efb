"""What sets programs apart from ONNX files on their way through a search."""

from __future__ import annotations

from pathlib import Path

import pytest

import small_models
from lowbit.errors import UsageError
from lowbit.pipeline.artifacts import artifact_files, artifact_size, format_of, load_artifact, need_opens
from lowbit.pipeline.bench import runs_on
from lowbit.pipeline.programs import notes_on, traced_with
from lowbit.pipeline.recipes import INT8_PT2E, program_recipes_for, recipes_for, traits
from lowbit.pipeline.request import _recipes
from lowbit.runtimes import registry

CNN = traits({"Conv": 3, "Gemm": 1})


@pytest.fixture
def program(tmp_path: Path) -> Path:
    pytest.importorskip("torch")
    from lowbit.train.pt2e import write_program

    return write_program(small_models.cnn(tmp_path / "m.onnx"), tmp_path / "m.pt2", {"input.1": small_models.images(2)})


@pytest.fixture
def fixed(tmp_path: Path) -> Path:
    """A program of a graph that takes one sample."""
    pytest.importorskip("torch")
    from lowbit.train.pt2e import write_program

    return write_program(small_models.cnn(tmp_path / "one.onnx", batch=1), tmp_path / "one.pt2", {"input.1": small_models.images(1)})


def test_numbers_of_samples_to_trace_with() -> None:
    assert traced_with((1, 8), 0) == (8,)
    assert traced_with((4,), 0) == (4,)
    assert traced_with((1,), 0) == (2, 1)
    assert traced_with((1,), 1) == (1,)  # the source takes no other


def test_files_are_told_apart_by_their_name(program: Path, tmp_path: Path) -> None:
    onnx = tmp_path / "m.onnx"
    assert (format_of(onnx), format_of(program)) == ("onnx", "pt2")
    assert artifact_files(program) == [program]
    assert artifact_size(program) == program.stat().st_size
    assert artifact_size(onnx) == onnx.stat().st_size
    assert [info.name for info in load_artifact(program).inputs] == [info.name for info in load_artifact(onnx).inputs]


def test_a_runtime_is_not_given_what_it_does_not_open(program: Path) -> None:
    with pytest.raises(UsageError, match=r"'m\.pt2' is a PyTorch program; onnxruntime opens an ONNX file") as caught:
        need_opens(registry.get("onnxruntime"), program)
    assert caught.value.hint == "Run it on torch: --runtime torch."
    with pytest.raises(UsageError, match=r"'m\.onnx' is an ONNX file; torch opens a PyTorch program"):
        need_opens(registry.get("torch"), program.with_suffix(".onnx"))


def test_timing_pairs_files_with_runtimes(program: Path) -> None:
    source, made = load_artifact(program.with_suffix(".onnx")), load_artifact(program)
    assert "torch" not in runs_on(source, ())
    assert runs_on(made, ()) == ["torch"]
    assert runs_on(source, ("torch", "onnxruntime")) == ["onnxruntime"]
    with pytest.raises(UsageError, match="is a PyTorch program"):
        runs_on(made, ("onnxruntime",))


def test_notes_say_what_a_program_cannot_do(program: Path, fixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.pipeline import programs

    monkeypatch.setattr(programs, "compiler", lambda: "g++")
    assert notes_on(program, 0, 1.2) == ()
    assert notes_on(program, 0, 14.4) == ("Opening it took 14 s.",)
    assert notes_on(program.with_suffix(".onnx"), 0, 14.4) == ()
    assert notes_on(fixed, 0, 0.1) == ("It takes 1 sample at a time and no other number.",)
    assert notes_on(fixed, 1, 0.1) == ()  # nor does the source
    monkeypatch.setattr(programs, "compiler", lambda: None)
    assert notes_on(program, 0, 0.1) == ("There is no C++ compiler here, so it ran node by node.",)


def test_pytorch_recipes_are_tried_where_its_runtime_is() -> None:
    usual = recipes_for(CNN, nncf=False)
    assert INT8_PT2E not in _recipes((), usual, programs=False)
    chosen = _recipes((), [*usual, *program_recipes_for(CNN)], programs=True)
    assert chosen[-1] == INT8_PT2E
    by_name = _recipes(("int8-torch-dynamic",), [*usual, *program_recipes_for(CNN)], programs=True)
    assert [recipe.name for recipe in by_name] == ["fp32", "int8-torch-dynamic"]


def test_pytorch_recipes_without_its_runtime_are_a_mistake() -> None:
    with pytest.raises(UsageError, match="'int8-pt2e' is for PyTorch as a runtime, which was not asked for") as caught:
        _recipes(("int8-pt2e",), recipes_for(CNN, nncf=False), programs=False)
    assert caught.value.hint == "Add --runtime torch."
