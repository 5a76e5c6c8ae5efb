"""The torch runtime and the writers of its files. Node by node, which takes no compiler; one test compiles."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import small_models
from conftest import missing
from lowbit.errors import ModelError, RunError, UsageError
from lowbit.runtimes import Runtime, Session, probe, registry
from lowbit.runtimes.base import opens
from lowbit.runtimes.programs import describe_program
from lowbit.runtimes.torch_cpu import TorchCpu, compiler
from lowbit.types import Tuning

torch = pytest.importorskip("torch")

from lowbit.train import pt2e  # noqa: E402

EAGER = TorchCpu(compiled=False)


def torchao() -> None:
    if importlib.util.find_spec("torchao") is None:
        missing("torchao")


def feeds(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"input.1": small_models.images(n, seed)}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return pt2e.write_program(small_models.cnn(tmp_path / "m.onnx"), tmp_path / "m.pt2", feeds(4))


def expected(program: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    return small_models.reference(program.with_suffix(".onnx"), given)["logits"]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("batch", [1, 8])
def test_program_of_a_graph_equals_the_graph(program: Path, batch: int, fixed: bool) -> None:
    session = EAGER.open(program, Tuning(fixed_shape=fixed), batch)
    assert isinstance(session, Session)
    found = session.run(feeds(batch))
    assert list(found) == ["logits"]
    np.testing.assert_allclose(found["logits"], expected(program, feeds(batch)), rtol=1e-5, atol=1e-5)


def test_tells_names_shapes_and_types_of_the_graph(program: Path) -> None:
    session = EAGER.open(program)
    (given,), (answer,) = session.inputs, session.outputs
    assert (given.name, given.shape[1:], given.dtype) == ("input.1", (3, 8, 8), "float32")
    assert not isinstance(given.shape[0], int)
    assert (answer.name, answer.shape, answer.dtype) == ("logits", (given.shape[0], 10), "float32")
    fixed = EAGER.open(program, Tuning(fixed_shape=True), 8)
    assert (fixed.inputs[0].shape, fixed.outputs[0].shape) == ((8, 3, 8, 8), (8, 10))
    with pytest.raises(RunError, match=r"shape \[2, 3, 8, 8\]; the model wants \[8, 3, 8, 8\]"):
        fixed.run(feeds(2))
    with pytest.raises(RunError, match="needs the batch size"):
        EAGER.open(program, Tuning(fixed_shape=True))


def test_program_of_several_inputs_and_outputs(tmp_path: Path) -> None:
    a, b = np.arange(8, dtype=np.float32).reshape(2, 4), np.full((2, 4), 3, np.float32)
    path = pt2e.write_program(small_models.two_inputs(tmp_path / "m.onnx"), tmp_path / "m.pt2", {"b": b, "a": a})
    found = EAGER.open(path).run({"b": b, "a": a})
    assert list(found) == ["total", "product", "same"]
    np.testing.assert_array_equal(found["total"], a + b)
    np.testing.assert_array_equal(found["product"], a * b)
    found["total"][:] = 0
    np.testing.assert_array_equal(found["same"], a + b)  # arrays of their own


@pytest.mark.parametrize("told", ["sizes", "scales"])
def test_a_program_resizes_by_numbers_that_the_file_holds(told: str, tmp_path: Path) -> None:
    """Beside them there are tensors without elements for what is left out; exporters cannot look into either."""
    held = {
        "nothing": np.zeros(0, np.float32),
        "sizes": np.array([2, 3, 6, 10], np.int64),
        "scales": np.array([1, 1, 1.5, 2.5], np.float32),
    }
    further = ["nothing", "nothing", "sizes"] if told == "sizes" else ["nothing", "scales"]
    nodes = [helper.make_node("Resize", ["x", *further], ["y"], mode="linear", coordinate_transformation_mode="pytorch_half_pixel")]
    ends = [(TensorProto.FLOAT, [2, 3, *shape]) for shape in ((4, 4), (6, 10))]
    source = small_models.save(tmp_path / "m.onnx", nodes, {"x": ends[0]}, {"y": ends[1]}, {name: held[name] for name in set(further)})
    given = {"x": np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)}
    found = EAGER.open(pt2e.write_program(source, tmp_path / "m.pt2", given), Tuning(fixed_shape=True), 2).run(given)
    np.testing.assert_allclose(found["y"], small_models.reference(source, given)["y"], rtol=1e-5, atol=1e-6)


def test_a_program_that_torch_saved_keeps_its_own_names(tmp_path: Path) -> None:
    class Twice(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image * 2

    torch.export.save(torch.export.export(Twice(), (torch.ones(2, 3),)), tmp_path / "own.pt2")
    session = EAGER.open(tmp_path / "own.pt2")
    assert (session.inputs[0].name, session.inputs[0].shape) == ("image", (2, 3))
    (answer,) = session.run({"image": np.full((2, 3), 1.5, np.float32)}).values()
    np.testing.assert_array_equal(answer, np.full((2, 3), 3, np.float32))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"image": np.zeros((1, 3, 8, 8), np.float32)}, "no input 'image'. Its inputs: input.1"),
        ({}, "Input 'input.1' is missing"),
        ({"input.1": np.zeros((1, 3, 8, 9), np.float32)}, r"shape \[1, 3, 8, 9\]; the model wants"),
        ({"input.1": np.zeros((1, 3, 8, 8))}, "is float64; the model wants float32"),
    ],
)
def test_wrong_feeds_of_a_program(program: Path, wrong: dict[str, np.ndarray], says: str) -> None:
    session = EAGER.open(program)
    for use in (session.run, session.prepare):
        with pytest.raises(RunError, match=says):
            use(wrong)


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"'absent\.pt2' does not exist"):
        EAGER.open(tmp_path / "absent.pt2")
    (tmp_path / "text.pt2").write_text("this is no program")
    with pytest.raises(RunError, match=r"'text\.pt2' is no program"):
        EAGER.open(tmp_path / "text.pt2")
    with pytest.raises(RunError, match=r"'m\.onnx' is no program"):
        EAGER.open(small_models.cnn(tmp_path / "m.onnx"))


def test_threads_streams_and_precision(program: Path) -> None:
    for tuning in EAGER.tunings(probe()):
        session = EAGER.open(program, tuning, 2)
        np.testing.assert_allclose(session.run(feeds(2))["logits"], expected(program, feeds(2)), rtol=1e-5, atol=1e-5)
        if tuning.threads:
            assert torch.get_num_threads() == tuning.threads
    for precision in ("bf16", "f16"):
        with pytest.raises(RunError, match=f"no {precision} arithmetic"):
            EAGER.open(program, Tuning(precision=precision))  # type: ignore[arg-type]


def test_several_threads_share_a_session(program: Path) -> None:
    session = EAGER.open(program, Tuning(threads=1))
    wrong: list[int] = []

    def use(seed: int) -> None:
        right = expected(program, feeds(4, seed))
        wrong.extend(seed for _ in range(50) if np.abs(session.run(feeds(4, seed))["logits"] - right).max() > 1e-5)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_closed(program: Path) -> None:
    session = EAGER.open(program)
    call = session.prepare(feeds(1))
    assert call() is not None
    session.close()
    session.close()
    with pytest.raises(RunError, match="closed"):
        session.run(feeds(1))


def test_is_a_runtime_that_opens_programs() -> None:
    assert isinstance(TorchCpu(), Runtime)
    assert opens(TorchCpu()) == "pt2"
    assert {opens(each) for each in registry.available()} == {"onnx"}


def test_a_program_tells_neither_where_it_was_made_nor_of_which_samples(tmp_path: Path) -> None:
    torchao()
    source = small_models.cnn(tmp_path / "m.onnx")
    given = {"input.1": np.full((4, 3, 8, 8), 1.2345678, np.float32)}
    for path in (
        pt2e.write_program(source, tmp_path / "p.pt2", given),
        pt2e.write_pt2e(source, tmp_path / "q.pt2", [given]),
    ):
        with zipfile.ZipFile(path) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist())
        assert b"stack_trace" not in content
        assert str(Path(pt2e.__file__).parent).encode() not in content
        assert given["input.1"][0, 0, 0].tobytes() not in content
        assert EAGER.open(path).run(given)["logits"].shape == (4, 10)


def test_a_program_is_described_like_a_model(program: Path) -> None:
    found = describe_program(program)
    (given,), (answer,) = found.inputs, found.outputs
    assert (given.name, given.shape[1:], answer.name) == ("input.1", (3, 8, 8), "logits")
    assert found.parameters >= 6 * 3 * 9 + 6 + 384 * 10 + 10
    assert found.size_bytes == program.stat().st_size
    assert found.sha256 == hashlib.sha256(program.read_bytes()).hexdigest()


def test_a_graph_of_a_fixed_number_of_samples_is_written_too(tmp_path: Path) -> None:
    for batch in (1, 4):
        source = small_models.cnn(tmp_path / "m.onnx", batch=batch)
        session = EAGER.open(pt2e.write_program(source, tmp_path / f"{batch}.pt2", feeds(batch)))
        right = small_models.reference(source, feeds(batch))["logits"]
        np.testing.assert_allclose(session.run(feeds(batch))["logits"], right, rtol=1e-5, atol=1e-5)
    one = EAGER.open(tmp_path / "1.pt2")
    assert one.inputs[0].shape == (1, 3, 8, 8)
    with pytest.raises(RunError, match=r"the model wants \[1, 3, 8, 8\]"):
        one.run(feeds(2))


def test_says_when_it_runs_node_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    assert EAGER.describe()["compiler"].startswith("none")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiler() is None
    assert TorchCpu().describe()["compiler"].startswith("none")


@pytest.mark.parametrize("dynamic", [False, True])
def test_int8_is_near_the_graph_and_not_equal(tmp_path: Path, dynamic: bool) -> None:
    torchao()
    source = small_models.cnn(tmp_path / "m.onnx")
    path = pt2e.write_pt2e(source, tmp_path / "q.pt2", [feeds(8, seed) for seed in range(4)], dynamic=dynamic)
    found, right = EAGER.open(path).run(feeds(8))["logits"], small_models.reference(source, feeds(8))["logits"]
    error = np.abs(found - right).max() / np.abs(right).max()
    assert 1e-4 < error < 0.03
    graph = torch.export.load(path).graph
    targets = [str(node.target) for node in graph.nodes]
    assert any("choose_qparams" in target for target in targets) == dynamic
    # The convolution and the product have integer weights; with run-time ranges the product alone.
    assert sum("dequantize_per_channel" in target for target in targets) == (1 if dynamic else 2)


def test_products_and_sums_become_linear_layers(tmp_path: Path) -> None:
    twin = pt2e._Fixed(small_models.cnn(tmp_path / "m.onnx"))
    values = (torch.from_numpy(small_models.images(4)),)
    module = pt2e._export(pt2e._Positional(twin), values, None).module()
    before = module(*values)[0]
    assert pt2e.as_linear(module) == 1
    (linear,) = [node for node in module.graph.nodes if node.target == torch.ops.aten.linear.default]
    assert len(linear.args) == 3  # with its bias
    torch.testing.assert_close(module(*values)[0], before)


def test_what_pt2e_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchao()
    ids = {"ids": np.ones((2, 5), np.int64)}
    with pytest.raises(ModelError, match="nothing to quantize"):
        pt2e.write_pt2e(small_models.embedding(tmp_path / "m.onnx"), tmp_path / "q.pt2", [ids])
    assert not (tmp_path / "q.pt2").exists()
    with pytest.raises(UsageError, match="no calibration samples"):
        pt2e.write_pt2e(small_models.cnn(tmp_path / "c.onnx"), tmp_path / "q.pt2", [])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="torchao, which is not installed"):
        pt2e.write_pt2e(small_models.cnn(tmp_path / "c.onnx"), tmp_path / "q.pt2", [feeds(2)])


@pytest.mark.parametrize("quantized", [False, True])
def test_compiled_equals_node_by_node(tmp_path: Path, quantized: bool) -> None:
    """In a process of its own, which prints nothing but the answer."""
    if compiler() is None:
        missing("a C++ compiler")
    source, path = small_models.cnn(tmp_path / "m.onnx"), tmp_path / "m.pt2"
    if quantized:
        torchao()
        pt2e.write_pt2e(source, path, [feeds(8)])
    else:
        pt2e.write_program(source, path, feeds(4))
    np.save(tmp_path / "x.npy", small_models.images(8))
    code = (
        "import json, sys, numpy as np; from pathlib import Path;"
        "from lowbit.runtimes.torch_cpu import TorchCpu; from lowbit.types import Tuning;"
        "folder = Path(sys.argv[1]); session = TorchCpu().open(folder / 'm.pt2', Tuning(threads=1, fixed_shape=True), 8);"
        "print(json.dumps(session.run({'input.1': np.load(folder / 'x.npy')})['logits'].tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found, eager = np.array(json.loads(done.stdout)), EAGER.open(path).run(feeds(8))["logits"]
    step = np.ptp(eager) / 255 if quantized else 1e-5  # integer kernels round once less or once more
    assert np.abs(found - eager).max() <= 2 * step
