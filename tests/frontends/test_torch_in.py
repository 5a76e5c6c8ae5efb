"""PyTorch modules in: built, filled with weights, exported, and refused kindly where that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lowbit.errors import LowbitError, ModelError, UsageError
from lowbit.frontends.bring import How, Incoming, bring_in, kind_of, load_program
from lowbit.frontends.parity import check_parity
from lowbit.graph.load import load_model
from small_models import reference

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import small_torch as nets  # noqa: E402  (needs torch)

from lowbit.frontends.builder import build_module  # noqa: E402
from lowbit.frontends.weights import load_weights  # noqa: E402


def pixels(n: int = 20, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {"images": generator.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8), "labels": generator.integers(0, 5, n)}


def brought(model: Any, folder: Path, data: Any = None, **how: Any) -> Incoming:
    found = bring_in(model, pixels() if data is None else data, folder, How(**how))
    assert found is not None
    return found


# Export ----------------------------------------------------------------------------------------------------------------


def test_a_module_becomes_the_same_function_with_a_dynamic_batch(tmp_path: Path) -> None:
    net = nets.seeded(nets.Net)
    net.train()
    net.conv.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = brought(net, tmp_path)
    info = load_model(found.path)
    assert info.inputs[0].shape == ("batch", 3, 8, 8)
    assert [output.name for output in info.outputs] == ["output"]
    x = np.random.default_rng(1).random((5, 3, 8, 8), np.float32)
    with torch.no_grad():
        expected = nets.seeded(nets.Net).eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(reference(found.path, {info.inputs[0].name: x})["output"], expected, atol=1e-5)
    np.testing.assert_allclose(found.run({info.inputs[0].name: x})[0], expected, atol=1e-6)
    assert net.training
    assert not net.conv.training  # every part is in the mode that it was in
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_exporting_twice_gives_the_same_file_without_paths(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        found = brought(nets.seeded(nets.Net), tmp_path / name)
        digests.append(load_model(found.path).sha256)
        text = found.path.read_bytes()
        assert str(Path(nets.__file__).parent).encode() not in text
        assert b"stack_trace" not in text
    assert digests[0] == digests[1]


def test_sequences_are_dynamic_and_outputs_keep_their_names(tmp_path: Path) -> None:
    examples = {"ids": np.ones((1, 6), np.int64), "mask": np.ones((1, 6), np.int64)}
    found = brought(nets.seeded(nets.Tagger), tmp_path, example_inputs=examples)
    info = load_model(found.path)
    assert [(one.name, one.shape) for one in info.inputs] == [("ids", ("batch", "tokens")), ("mask", ("batch", "tokens"))]
    assert [one.name for one in info.outputs] == ["tags", "pooled"]
    feeds = {"ids": np.arange(33).reshape(3, 11) % 20, "mask": np.ones((3, 11), np.int64)}
    for expected, name in zip(found.run(feeds), ("tags", "pooled"), strict=True):
        np.testing.assert_allclose(reference(found.path, feeds)[name], expected, atol=1e-6)


def test_a_module_that_fixes_its_batch_is_exported_with_that_batch(tmp_path: Path) -> None:
    found = brought(nets.OneSample(), tmp_path, example_inputs=torch.rand(2, 2, 3))
    assert load_model(found.path).inputs[0].shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        ({"images": np.zeros((10, 8, 8, 3), np.uint8)}, ("batch", 3, 8, 8)),  # channels last: turned round
        ({"images": np.zeros((10, 3, 8, 8), np.uint8)}, ("batch", 3, 8, 8)),
    ],
    ids=["nhwc", "nchw"],
)
def test_the_input_shape_follows_from_the_data(tmp_path: Path, data: dict[str, Any], shape: tuple[object, ...]) -> None:
    assert load_model(brought(nets.seeded(nets.Net), tmp_path, data).path).inputs[0].shape == shape


def test_a_table_gives_the_number_of_features(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("a,b,c,label\n" + "".join(f"{i},{i + 1},{i % 3},{i % 2}\n" for i in range(20)))
    found = brought(torch.nn.Linear(3, 2), tmp_path, table)
    assert load_model(found.path).inputs[0].shape == ("batch", 3)


def test_a_shape_given_in_words_is_used(tmp_path: Path) -> None:
    found = brought(nets.seeded(nets.Net), tmp_path, tmp_path, example_shapes=[(3, 12, 10)])
    assert load_model(found.path).inputs[0].shape == ("batch", 3, 12, 10)


def test_a_program_comes_in_with_its_own_axes(tmp_path: Path) -> None:
    net = nets.seeded(nets.Net).eval()
    axes = ({0: torch.export.Dim("n", min=1, max=64)},)
    torch.export.save(torch.export.export(net, (torch.rand(2, 3, 8, 8),), dynamic_shapes=axes), tmp_path / "net.pt2")
    found = brought(tmp_path / "net.pt2", tmp_path)
    info = load_model(found.path)
    assert not isinstance(info.inputs[0].shape[0], int)
    x = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(reference(found.path, {info.inputs[0].name: x})["output"], expected, atol=1e-5)
    np.testing.assert_allclose(found.run({info.inputs[0].name: x})[0], expected, atol=1e-6)
    assert found.origin.format == "pt2"


# Parity ----------------------------------------------------------------------------------------------------------------


def test_parity_counts_what_differs(tmp_path: Path) -> None:
    found = brought(nets.seeded(nets.Net), tmp_path)
    name = load_model(found.path).inputs[0].name
    batches = [{name: np.random.default_rng(seed).random((4, 3, 8, 8), np.float32)} for seed in range(3)]
    parity = check_parity(found.run, found.path, batches)
    assert parity.n == 12
    assert parity.max_rel < 1e-5
    assert parity.agreement == 1.0

    def off(feeds: dict[str, Any]) -> list[Any]:
        [output] = found.run(feeds)
        return [output + np.where(np.arange(5) == 0, 0.001 * np.abs(output).max(), 0)]

    parity = check_parity(off, found.path, batches)
    assert parity.max_rel == pytest.approx(1e-3, rel=0.2)
    with pytest.raises(ModelError, match=r"does not compute what the module does: on 12 real samples"):
        check_parity(lambda feeds: [2 * found.run(feeds)[0]], found.path, batches)


def test_a_module_that_rolls_dice_is_refused_by_its_parity(tmp_path: Path) -> None:
    found = brought(nets.Noisy(), tmp_path, example_inputs=torch.rand(2, 6))
    name = load_model(found.path).inputs[0].name
    with pytest.raises(ModelError, match="Random steps"):
        check_parity(found.run, found.path, [{name: np.random.default_rng(0).random((8, 6), np.float32)}])


# What cannot be exported -----------------------------------------------------------------------------------------------


def test_a_branch_on_values_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"'Branching' decides by the values of a tensor \(line \d+ of small_torch.py, in forward"
    ) as error:
        brought(nets.Branching(), tmp_path, example_inputs=torch.rand(2, 6))
    assert "torch.where" in str(error.value)


def test_an_operator_without_translation_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'Bessel' uses the operator aten.bessel_j0 \(line \d+ of small_torch.py, in forward: `return"):
        brought(nets.Bessel(), tmp_path, example_inputs=torch.rand(2, 6))


def test_a_module_that_fails_on_the_examples_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Net fails on x float32 \[2, 4, 8, 8\].*expected input\[2, 4, 8, 8\] to have 3 channels"):
        brought(nets.Net(), tmp_path, example_inputs=torch.rand(2, 4, 8, 8))


def test_a_folder_of_images_does_not_say_what_size_the_model_takes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not follow from the data") as error:
        brought(nets.Net(), tmp_path, tmp_path)
    assert "--example-shape" in str(error.value)


def test_a_wrong_argument_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no argument idz; it has ids, mask"):
        brought(nets.Tagger(), tmp_path, example_inputs={"idz": np.ones((2, 3))})


# Builders --------------------------------------------------------------------------------------------------------------

CODE = """
import torch
answer = 42
plain = torch.nn.Linear(3, 2)
def build():
    return torch.nn.Linear(3, 2)
def wants(width):
    return torch.nn.Linear(width, 2)
def breaks():
    raise ValueError("no such depth")
def gives_text():
    return "a model"
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_nets_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CODE)
    (tmp_path / f"{name}_broken.py").write_text("import torch\nraise RuntimeError('half done')\n")
    (tmp_path / f"{name}_needy.py").write_text("import no_such_library\n")
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("attribute", ["build", "plain"])
def test_what_is_named_builds_a_module(code: str, attribute: str) -> None:
    assert build_module(f"{code}:{attribute}").weight.shape == (2, 3)


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("no_such_module_here:build", UsageError, "there is no module 'no_such_module_here'"),
        ("{code}_needy:build", UsageError, "imports 'no_such_library', which is not installed"),
        ("{code}_broken:build", ModelError, r"importing .* failed \(.*_broken.py, line 2\): RuntimeError: half done"),
        ("{code}:built", UsageError, r"(?s)Unknown name in .* 'built'.*Did you mean 'build'"),
        ("{code}:answer", UsageError, "is a int, not something to call"),
        ("{code}:breaks", ModelError, r"failed \(.*\.py, line 10\): ValueError: no such depth"),
        ("{code}:wants", ModelError, r"(?s)missing 1 required positional argument.*called without arguments"),
        ("{code}:gives_text", UsageError, "returns a str, not a torch.nn.Module"),
    ],
)
def test_what_builds_no_module_is_refused(code: str, spec: str, kind: type[LowbitError], message: str) -> None:
    with pytest.raises(kind, match=message):
        build_module(spec.format(code=code))


@pytest.mark.parametrize(("name", "kind"), [("net.onnx", "onnx"), ("a.b:build", "builder"), ("net.pt2", "pt2"), ("missing", "onnx")])
def test_kinds_are_told_by_their_names(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_weights_without_a_model_and_things_that_are_no_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"(?s)'w.pth' holds weights.*package.module:function --weights w.pth"):
        kind_of(tmp_path / "w.pth")
    with pytest.raises(UsageError, match="A list is no model"):
        kind_of([1])
    with pytest.raises(UsageError, match="--weights is for PyTorch modules; an ONNX file has its own"):
        bring_in(tmp_path / "net.onnx", {}, tmp_path, How(weights="w.pt"))
    with pytest.raises(UsageError, match=r"--weights is for PyTorch modules; a \.pt2 file has its own"):
        bring_in(tmp_path / "net.pt2", {}, tmp_path, How(weights="w.pt"))


# Weights ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nest", ["plain", "trainer", "parallel", "compiled", "safetensors"])
def test_weights_come_in_however_they_were_saved(tmp_path: Path, nest: str) -> None:
    state = nets.seeded(nets.Net).state_dict()
    path = tmp_path / "w.pt"
    if nest == "safetensors":
        from safetensors.torch import save_file

        path = tmp_path / "w.safetensors"
        save_file(state, path)
    else:
        prefix = {"parallel": "module.", "compiled": "_orig_mod.model."}.get(nest, "")
        state = {prefix + key: value for key, value in state.items() if not (nest == "parallel" and "num_batches" in key)}
        torch.save({"epoch": 3, "state_dict": state} if nest == "trainer" else state, path)
    torch.manual_seed(7)
    net = nets.Net()
    load_weights(net, path)
    assert torch.equal(net.head.weight, nets.seeded(nets.Net).head.weight)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = nets.seeded(nets.Net, 6).state_dict()
    del state["head.bias"]
    state["extra.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError) as error:
        load_weights(nets.Net(), tmp_path / "w.pt")
    assert "1 missing: head.bias" in error.value.message
    assert "1 unexpected: extra.weight" in error.value.message
    assert "conv.weight is [6, 3, 3, 3], the model has [8, 3, 3, 3]" in error.value.message


def test_code_in_weights_runs_only_when_the_user_says_so(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    torch.save({"state_dict": nets.seeded(nets.Net).state_dict(), "extra": nets.Evil(trap)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="reading it would run code") as error:
        load_weights(nets.Net(), tmp_path / "w.pt")
    assert "--allow-pickle" in str(error.value)
    assert not trap.exists()
    load_weights(nets.Net(), tmp_path / "w.pt", allow_pickle=True)
    assert trap.exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_and_missing_weights_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="There are no weights"):
        load_weights(nets.Net(), tmp_path / name)
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(ModelError, match=r"'w\.\w+' (is no file|cannot be read)"):
        load_weights(nets.Net(), tmp_path / name)


def test_damaged_programs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"not a program")
    with pytest.raises(ModelError, match=r"is no program that torch\.export\.save wrote"):
        load_program(tmp_path / "net.pt2")


def test_a_borrowed_module_keeps_its_own_weights(tmp_path: Path) -> None:
    torch.save(nets.seeded(nets.Net).state_dict(), tmp_path / "w.pt")
    torch.manual_seed(3)
    net = nets.Net()
    before = net.head.weight.clone()
    found = brought(net, tmp_path, weights=tmp_path / "w.pt")
    assert torch.equal(net.head.weight, before)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(found.path).graph.initializer}
    assert any(np.array_equal(value, nets.seeded(nets.Net).head.weight.detach().numpy()) for value in weights.values())
