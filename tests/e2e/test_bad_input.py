"""What a user can get wrong: one clear message, the right exit code, nothing left behind."""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_runner import Shell, lowbit
from e2e_case import Case, make_case
from onnx import numpy_helper
from PIL import Image

from conftest import missing
from lowbit.errors import Interrupted
from lowbit.pipeline.journal import Journal
from small_models import images, unknown_operator

Optimize = Callable[..., Shell]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


@pytest.fixture
def optimize(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Optimize:
    """`lowbit optimize MODEL --data DATA --out OUT ...` in an empty working folder."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def run(model: object, data: object, *more: object) -> Shell:
        return lowbit(capfd, monkeypatch, "optimize", model, "--data", data, "--out", tmp_path / "out", *more)

    return run


def refused(shell: Shell, code: int, *words: str, out: Path | None = None) -> None:
    """The exit code, one message with these words, no traceback, nothing on stdout, nothing written."""
    assert shell.code == code, shell.err
    for word in words:
        assert word in shell.err, shell.err
    assert "Traceback" not in shell.err
    assert shell.out == ""
    if out is not None:
        assert not out.exists() or not list(out.iterdir())


def test_no_such_model(optimize: Optimize, case: Case, tmp_path: Path) -> None:
    refused(optimize(tmp_path / "absent.onnx", case.data), 3, "There is no file", "absent.onnx", out=tmp_path / "out")


def test_not_onnx(optimize: Optimize, case: Case, tmp_path: Path) -> None:
    refused(optimize(case.data, case.data), 3, "not a whole ONNX model", out=tmp_path / "out")


def test_truncated_onnx(optimize: Optimize, case: Case, tmp_path: Path) -> None:
    case.model.write_bytes(case.model.read_bytes()[:-500])
    refused(optimize(case.model, case.data), 3, "cut off", out=tmp_path / "out")


def test_missing_external_data(optimize: Optimize, case: Case, tmp_path: Path) -> None:
    onnx.save_model(onnx.load(case.model), case.model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    refused(optimize(case.model, case.data), 3, "weights.bin", out=tmp_path / "out")


def test_nan_weights(optimize: Optimize, case: Case, tmp_path: Path) -> None:
    proto = onnx.load(case.model)
    tensor = proto.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.nan, tensor.name))
    onnx.save(proto, case.model)
    refused(optimize(case.model, case.data), 3, "NaN", tensor.name, out=tmp_path / "out")


def test_an_operator_that_no_runtime_has(optimize: Optimize, tmp_path: Path) -> None:
    model = unknown_operator(tmp_path / "odd.onnx")
    info = onnx.load(model).graph.input[0]
    shape = [dim.dim_value or 40 for dim in info.type.tensor_type.shape.dim]
    np.savez(tmp_path / "odd.npz", **{info.name: np.random.default_rng(0).normal(size=[40, *shape[1:]]).astype(np.float32)})
    refused(optimize(model, tmp_path / "odd.npz"), 3, "Frobnicate", out=tmp_path / "out")


def test_no_such_data(optimize: Optimize, case: Case, tmp_path: Path) -> None:
    refused(optimize(case.model, tmp_path / "absent.npz"), 3, "absent.npz", out=tmp_path / "out")


def test_inputs_of_another_name(optimize: Optimize, case: Case, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", pixels_a=images(50), pixels_b=images(50))
    refused(optimize(case.model, tmp_path / "d.npz"), 3, "input.1", "pixels_a", out=tmp_path / "out")


def test_inputs_of_another_shape(optimize: Optimize, case: Case, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((50, 5, 9), np.float32), labels=np.arange(50) % 10)
    refused(optimize(case.model, tmp_path / "d.npz"), 3, "5, 9", out=tmp_path / "out")


def test_inputs_of_another_dtype(optimize: Optimize, case: Case, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.full((50, 3, 8, 8), "x"), labels=np.arange(50) % 10)
    refused(optimize(case.model, tmp_path / "d.npz"), 3, out=tmp_path / "out")


@pytest.mark.parametrize("count", [0, 1])
def test_no_samples_and_one_sample(optimize: Optimize, case: Case, tmp_path: Path, count: int) -> None:
    np.savez(tmp_path / "d.npz", images=images(count), labels=np.arange(count))
    refused(optimize(case.model, tmp_path / "d.npz"), 3, "sample", out=tmp_path / "out")


def test_labels_out_of_range(optimize: Optimize, case: Case, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=images(100), labels=np.arange(100) % 11)
    refused(optimize(case.model, tmp_path / "d.npz"), 3, "10", out=tmp_path / "out")


def test_labels_all_of_one_class(optimize: Optimize, case: Case, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=images(100), labels=np.full(100, 3))
    refused(optimize(case.model, tmp_path / "d.npz"), 3, "class", out=tmp_path / "out")


def picture_folder(folder: Path, good: int, corrupt: int) -> Path:
    rng = np.random.default_rng(0)
    for index in range(good + corrupt):
        place = folder / f"class{index % 10}"
        place.mkdir(parents=True, exist_ok=True)
        file = place / f"{index:04d}.png"
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file)
        if index >= good:
            file.write_bytes(file.read_bytes()[:40])
    return folder


def test_too_many_corrupt_images(optimize: Optimize, case: Case, tmp_path: Path) -> None:
    refused(optimize(case.model, picture_folder(tmp_path / "pictures", 90, 10)), 3, "10 of 100", out=tmp_path / "out")


def test_calibration_samples_that_validate_too(optimize: Optimize, case: Case, tmp_path: Path) -> None:
    refused(optimize(case.model, case.data, "--calibration", case.data), 3, "also validation samples", out=tmp_path / "out")


def test_nan_in_the_data(optimize: Optimize, case: Case, tmp_path: Path) -> None:
    x = images(60)
    x[7] = np.nan
    np.savez(tmp_path / "d.npz", images=x, labels=np.arange(60) % 10)
    refused(optimize(case.model, tmp_path / "d.npz"), 3, "NaN", out=tmp_path / "out")


def test_a_table_with_words_where_numbers_belong(optimize: Optimize, case: Case, tmp_path: Path) -> None:
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "y"], *[[1, "x", 0]] * 30])
    refused(optimize(case.model, tmp_path / "d.csv"), 3, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-drop", "a bit"], ["a bit", "1pp"]),
        (["--max-drop", "200%"], ["200%"]),
        (["--batch", "0"], ["0"]),
        (["--batch", "one"], ["one"]),
        (["--confidence", "1.5"], ["1.5"]),
        (["--runtime", "openvno"], ["openvno", "Did you mean 'openvino'"]),
        (["--recipe", "int8-static-mess"], ["int8-static-mess", "Did you mean 'int8-static-mse'"]),
        (["--metric", "top2"], ["top2"]),
        (["--task", "classification", "--metric", "rmse"], ["rmse"]),
        (["--preprocess", "imagenett"], ["imagenett", "Did you mean 'imagenet'"]),
        (["--max-latency", "soon"], ["soon"]),
        (["--max-fpr-rise", "1pp"], ["--threshold"]),
        (["--objektive", "size"], ["--objektive"]),
    ],
)
def test_options_that_mean_nothing(optimize: Optimize, case: Case, tmp_path: Path, options: list[str], words: list[str]) -> None:
    refused(optimize(case.model, case.data, *options), 2, *words, out=tmp_path / "out")


def test_an_output_folder_that_is_a_file(optimize: Optimize, case: Case, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    refused(optimize(case.model, case.data), 2, "is a file")
    assert (tmp_path / "out").read_text() == "precious"


def test_an_output_folder_with_other_things(optimize: Optimize, case: Case, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    refused(optimize(case.model, case.data), 2, "not empty", "thesis.tex")
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]  # noqa: PTH208


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small tmpfs at `out`, with options."""
    places: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / "out"
        place.mkdir()
        if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True).returncode:
            missing("the right to mount a tmpfs")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", place], check=True)


def test_a_read_only_output_folder(optimize: Optimize, case: Case, mounted: Callable[[str], Path]) -> None:
    place = mounted("size=4m,ro")
    refused(optimize(case.model, case.data), 2, "cannot be written", out=place)


def test_a_disk_too_small_then_larger(optimize: Optimize, case: Case, mounted: Callable[[str], Path]) -> None:
    """Exit code 4 before anything is half-written; once there is space, the same command goes through."""
    place = mounted("size=1m")
    shell = optimize(case.model, case.data, "--recipe", "fp16", "--runtime", "onnxruntime", "--rounds", "3", "--batch", "1")
    assert shell.code == 4, shell.err
    assert "The disk is full" in shell.err
    assert "the same command resumes" in shell.err
    assert not (place / "bundle.json").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
    shell = optimize(case.model, case.data, "--recipe", "fp16", "--runtime", "onnxruntime", "--rounds", "3", "--batch", "1")
    assert shell.code == 0, shell.err
    assert (place / "bundle.json").is_file()


def test_a_disk_that_fills_up_under_the_journal(mounted: Callable[[str], Path]) -> None:
    """The event that does not fit is taken back whole; what was there stays readable."""
    place = mounted("size=64k")
    journal = Journal(place / "journal.jsonl")
    journal.append("start", key="k")
    (place / "ballast").write_bytes(bytes(48 * 1024))
    with pytest.raises(Interrupted, match="cannot be written"):
        journal.append("candidate", text="x" * 100_000)
    (place / "ballast").unlink()
    assert [event["event"] for event in journal.events()] == ["start"]
    journal.append("interrupted")
    assert [event["event"] for event in journal.events()] == ["start", "interrupted"]
