"""What every runtime must do. Third parties: register an entry point and run this file; it picks yours up."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from program_runtime import Programs, program_of

import small_models
from conftest import missing
from lowbit.errors import RunError, UsageError
from lowbit.runtimes import Runtime, Session, probe, registry
from lowbit.runtimes.base import Profiler, opens
from lowbit.runtimes.torch_cpu import TorchCpu
from lowbit.types import TensorInfo, Tuning

NO_COMPILER = "no-such-compiler"
"""torch runs node by node here: it would compile for ten seconds a test. tests/runtimes/test_torch_cpu.py compiles."""


@pytest.fixture(params=registry.names())
def runtime(request: pytest.FixtureRequest) -> Runtime:
    try:
        found = registry.get(request.param)
    except UsageError:
        missing(request.param)
    if opens(found) == "pt2":
        return Programs(TorchCpu(compiled=False) if found.name == "torch" else found)
    return found


def needs_onnx(runtime: Runtime, what: str) -> None:
    """Skips a test of something that programs are not made from."""
    if opens(runtime) != "onnx":
        pytest.skip(f"{runtime.name} opens programs, and none is made from {what}")


def feeds(n: int) -> dict[str, np.ndarray]:
    return {"input.1": small_models.images(n)}


def test_describes_itself(runtime: Runtime, tmp_path: Path) -> None:
    assert isinstance(runtime, Runtime)
    facts = runtime.describe()
    assert facts["name"] == runtime.name
    assert "f32" in facts["precisions"].split()
    assert isinstance(runtime.open(small_models.cnn(tmp_path / "m.onnx")), Session)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("batch", [1, 8])
def test_float_equals_reference(runtime: Runtime, tmp_path: Path, batch: int, fixed: bool) -> None:
    path = small_models.cnn(tmp_path / "m.onnx")
    found = runtime.open(path, Tuning(fixed_shape=fixed), batch).run(feeds(batch))
    expected = small_models.reference(path, feeds(batch))["logits"]
    assert list(found) == ["logits"]
    assert found["logits"].shape == (batch, 10)
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 8])
def test_qdq_agrees_with_reference(runtime: Runtime, tmp_path: Path, batch: int) -> None:
    needs_onnx(runtime, "a quantized graph")
    path = small_models.cnn_qdq(tmp_path / "q.onnx")
    found = runtime.open(path).run(feeds(batch))["logits"]
    expected = small_models.reference(path, feeds(batch))["logits"]
    # Integer kernels round intermediate values once less or once more: a step of the output at most.
    assert np.abs(found - expected).max() <= 1.01 * small_models.LOGITS_STEP
    assert np.mean(np.abs(found - expected) < 1e-5) > 0.8
    plain = small_models.reference(small_models.cnn(tmp_path / "m.onnx"), feeds(batch))["logits"]
    assert 0 < np.abs(found - plain).max() < 5 * small_models.LOGITS_STEP


def test_several_inputs_and_outputs(runtime: Runtime, tmp_path: Path) -> None:
    session = runtime.open(small_models.two_inputs(tmp_path / "m.onnx"))
    a, b = np.arange(8, dtype=np.float32).reshape(2, 4), np.full((2, 4), 3, np.float32)
    found = session.run({"b": b, "a": a})
    assert list(found) == ["total", "product", "same"]
    np.testing.assert_array_equal(found["total"], a + b)
    np.testing.assert_array_equal(found["product"], a * b)
    np.testing.assert_array_equal(found["same"], a + b)


@pytest.mark.parametrize("length", [3, 17])
def test_integer_input_and_second_dynamic_axis(runtime: Runtime, tmp_path: Path, length: int) -> None:
    needs_onnx(runtime, "two open axes: the second keeps the length that it was traced with")
    path = small_models.embedding(tmp_path / "m.onnx")
    ids = {"ids": np.random.default_rng(5).integers(0, 50, (2, length))}
    np.testing.assert_allclose(runtime.open(path).run(ids)["mean"], small_models.reference(path, ids)["mean"], rtol=1e-5, atol=1e-6)


def test_weights_stored_in_half(runtime: Runtime, tmp_path: Path) -> None:
    path = small_models.half_weights(tmp_path / "m.onnx")
    x = {"x": np.random.default_rng(6).normal(size=(3, 16)).astype(np.float32)}
    np.testing.assert_allclose(runtime.open(path).run(x)["y"], small_models.reference(path, x)["y"], rtol=1e-5, atol=1e-5)


def test_precision_is_pinned_and_told(runtime: Runtime, tmp_path: Path) -> None:
    path = small_models.wide_matmul(tmp_path / "m.onnx")
    x = {"x": np.random.default_rng(7).normal(size=(4, 512)).astype(np.float32)}
    exact = small_models.reference(path, {"x": x["x"]})["y"]
    for precision in ("f32", "bf16", "f16"):
        if precision not in runtime.describe()["precisions"].split():
            with pytest.raises(RunError, match=f"no {precision} arithmetic"):
                runtime.open(path, Tuning(precision=precision))  # type: ignore[arg-type]
            continue
        session = runtime.open(path, Tuning(precision=precision))  # type: ignore[arg-type]
        assert session.precision == precision
        error = np.abs(session.run(x)["y"] - exact).max() / np.abs(exact).max()
        assert error < 1e-6 if precision == "f32" else 1e-6 < error < 2e-2


def test_describes_inputs_and_outputs(runtime: Runtime, tmp_path: Path) -> None:
    session = runtime.open(small_models.cnn(tmp_path / "m.onnx"))
    (given,), (answer,) = session.inputs, session.outputs
    assert (given.name, given.shape[1:], given.dtype) == ("input.1", (3, 8, 8), "float32")
    assert not isinstance(given.shape[0], int)
    assert (answer.name, answer.shape[1:], answer.dtype) == ("logits", (10,), "float32")
    assert runtime.open(small_models.embedding(tmp_path / "e.onnx")).inputs[0].dtype == "int64"
    assert runtime.open(small_models.cnn(tmp_path / "one.onnx", batch=1)).inputs == (TensorInfo("input.1", (1, 3, 8, 8), "float32"),)
    fixed = runtime.open(tmp_path / "m.onnx", Tuning(fixed_shape=True), 8)
    assert fixed.inputs == (TensorInfo("input.1", (8, 3, 8, 8), "float32"),)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"image": np.zeros((1, 3, 8, 8), np.float32)}, "no input 'image'. Its inputs: input.1"),
        ({}, "Input 'input.1' is missing"),
        ({"input.1": np.zeros((1, 3, 8, 9), np.float32)}, r"shape \[1, 3, 8, 9\]; the model wants"),
        ({"input.1": np.zeros((3, 8, 8), np.float32)}, r"shape \[3, 8, 8\]; the model wants"),
        ({"input.1": np.zeros((1, 3, 8, 8))}, "is float64; the model wants float32"),
        ({"input.1": [1.0]}, "is a list, not a numpy array"),
    ],
)
def test_wrong_feeds(runtime: Runtime, tmp_path: Path, wrong: dict[str, np.ndarray], says: str) -> None:
    session = runtime.open(small_models.cnn(tmp_path / "m.onnx"))
    for use in (session.run, session.prepare):
        with pytest.raises(RunError, match=says):
            use(wrong)


def test_fixed_shape_refuses_another_batch(runtime: Runtime, tmp_path: Path) -> None:
    path = small_models.cnn(tmp_path / "m.onnx")
    with pytest.raises(RunError, match=r"shape \[2, 3, 8, 8\]; the model wants \[8, 3, 8, 8\]"):
        runtime.open(path, Tuning(fixed_shape=True), 8).run(feeds(2))
    with pytest.raises(RunError, match="needs the batch size"):
        runtime.open(path, Tuning(fixed_shape=True))


def test_inputs_and_earlier_outputs_stay_as_they_are(runtime: Runtime, tmp_path: Path) -> None:
    session = runtime.open(small_models.cnn(tmp_path / "m.onnx"))
    given = feeds(2)
    before = given["input.1"].copy()
    first = session.run(given)["logits"]
    kept = first.copy()
    session.run({"input.1": small_models.images(2, seed=9)})
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(given["input.1"], before)


def test_input_that_is_not_contiguous(runtime: Runtime, tmp_path: Path) -> None:
    path = small_models.cnn(tmp_path / "m.onnx")
    turned = np.ascontiguousarray(small_models.images(2).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    expected = small_models.reference(path, feeds(2))["logits"]
    np.testing.assert_allclose(runtime.open(path).run({"input.1": turned})["logits"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tuning", [Tuning(threads=1), Tuning(threads=2, streams=2)])
def test_several_threads_get_their_own_answers(runtime: Runtime, tmp_path: Path, tuning: Tuning) -> None:
    path = small_models.cnn(tmp_path / "m.onnx")
    session = runtime.open(path, tuning)
    wrong: list[int] = []

    def use(seed: int) -> None:
        given = {"input.1": small_models.images(4, seed)}
        expected = small_models.reference(path, given)["logits"]
        wrong.extend(seed for _ in range(100) if np.abs(session.run(given)["logits"] - expected).max() > 1e-5)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_closing_and_opening_again(runtime: Runtime, tmp_path: Path) -> None:
    path = small_models.cnn(tmp_path / "m.onnx")
    session = runtime.open(path)
    first = session.run(feeds(1))["logits"]
    session.close()
    session.close()
    with pytest.raises(RunError, match="closed"):
        session.run(feeds(1))
    np.testing.assert_array_equal(runtime.open(path).run(feeds(1))["logits"], first)


def test_prepared_call_runs(runtime: Runtime, tmp_path: Path) -> None:
    calls = [runtime.open(small_models.cnn(tmp_path / "m.onnx")).prepare(feeds(n)) for n in (1, 4)]
    for call in calls:
        assert call() is not None


@pytest.mark.parametrize("fixed", [False, True])
def test_profile_names_the_nodes_that_ran(runtime: Runtime, tmp_path: Path, fixed: bool) -> None:
    """A runtime need not have a profiler; one that has says which nodes a kernel is made of, and what it takes."""
    if not isinstance(runtime, Profiler):
        pytest.skip(f"{runtime.name} cannot profile")
    plain, quantized = small_models.cnn(tmp_path / "m.onnx"), small_models.cnn_qdq(tmp_path / "q.onnx")
    for path in (plain, quantized):
        kernels = runtime.profile(path, feeds(4), tuning=Tuning(threads=1, fixed_shape=fixed), batch=4, repeats=8)
        named = [name for kernel in kernels for name in kernel.origins]
        assert any(name in ("conv", "c", "r") for name in named), named
        assert any(name.startswith(("gemm", "logits")) for name in named), named
        assert all(0 <= kernel.seconds < 10 and kernel.kind for kernel in kernels)
        assert sum(kernel.seconds for kernel in kernels) > 0
        if fixed:
            assert max(kernel.elements for kernel in kernels) >= 4 * 6 * 8 * 8
    with pytest.raises(RunError, match="does not exist"):
        runtime.profile(tmp_path / "absent.onnx", feeds(4))


def test_tunings_open(runtime: Runtime, tmp_path: Path) -> None:
    tunings = runtime.tunings(probe())
    assert tunings[0] == Tuning()
    assert len(set(tunings)) == len(tunings)
    path = small_models.cnn(tmp_path / "m.onnx")
    expected = small_models.reference(path, feeds(2))["logits"]
    for tuning in tunings:
        session = runtime.open(path, tuning, 2)
        assert session.precision == tuning.precision
        tolerance = 1e-5 if tuning.precision == "f32" else 5e-2
        np.testing.assert_allclose(session.run(feeds(2))["logits"], expected, rtol=tolerance, atol=tolerance)


def broken_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """name -> (path, what the error must say)."""
    text, cut = folder / "text.onnx", folder / "cut.onnx"
    text.write_text("this is not onnx at all\n" * 20)
    cut.write_bytes(small_models.cnn(folder / "whole.onnx").read_bytes()[:4000])
    (folder / "empty.onnx").write_bytes(b"")
    return {
        "text": (text, "'text.onnx' is not an ONNX file"),
        "cut": (cut, "'cut.onnx' is not an ONNX file"),
        "empty": (folder / "empty.onnx", "'empty.onnx'"),
        "absent": (folder / "absent.onnx", "'absent.onnx' does not exist"),
        "folder": (folder, "is a folder"),
        "operator": (small_models.unknown_operator(folder / "op.onnx"), "no operator 'acme.Frobnicate'"),
    }


@pytest.mark.parametrize("kind", ["text", "cut", "empty", "absent", "folder", "operator"])
def test_unusable_files(runtime: Runtime, tmp_path: Path, kind: str) -> None:
    path, says = broken_files(tmp_path)[kind]
    if kind == "operator":
        needs_onnx(runtime, "an operator that nobody knows")
    if opens(runtime) == "pt2":
        says = says.replace("not an ONNX file", "no program")
    with pytest.raises(RunError) as caught:
        runtime.open(path)
    assert says in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


QUIETLY = """
import sys
from pathlib import Path
from lowbit.errors import RunError
from lowbit.runtimes import get
from lowbit.types import Tuning
import numpy as np
runtime = get(sys.argv[1])
runtime.describe()
runtime.open(Path(sys.argv[2])).run({"input.1": np.zeros((1, 3, 8, 8), np.float32)})
for path in sys.argv[3:]:
    try:
        runtime.open(Path(path))
    except RunError:
        continue
    raise SystemExit("opened " + path)
"""


def test_prints_nothing_and_writes_nothing_at_home(runtime: Runtime, tmp_path: Path) -> None:
    home, models = tmp_path / "home", tmp_path / "models"
    home.mkdir()
    models.mkdir()
    bad = [str(path) for path, _ in broken_files(models).values()]
    good = small_models.cnn(models / "good.onnx")
    if opens(runtime) == "pt2":
        good = program_of(good)
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(home / "cache"), "CXX": NO_COMPILER}
    done = subprocess.run([sys.executable, "-c", QUIETLY, runtime.name, str(good), *bad], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.rglob("*")) == []


def test_real_model(runtime: Runtime, shared_data: Path) -> None:
    raw = np.load(shared_data / "cifar10" / "cifar10_test10k.npz")
    mean, std = (np.array(v, np.float32)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = (raw["images"][:200].astype(np.float32) / 255 - mean) / std
    logits = runtime.open(shared_data / "cifar10-resnet" / "resnet20.onnx").run({"input": x})["logits"]
    accuracy = (logits.argmax(1) == raw["labels"][:200]).mean()
    assert 0.76 < accuracy < 0.86  # 81.03 % on all 10,000
