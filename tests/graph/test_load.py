"""What `load_model` describes, and what it refuses in which words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lowbit.errors import ModelError
from lowbit.graph.load import artifact_size, load_model, operator_counts
from small_models import cnn, embedding, save, two_inputs


def test_a_model_is_described(tmp_path: Path) -> None:
    path = cnn(tmp_path / "cnn.onnx")
    model = load_model(path)
    assert [(info.name, info.shape, info.dtype) for info in model.inputs] == [("input.1", ("N", 3, 8, 8), "float32")]
    assert [(info.name, info.shape) for info in model.outputs] == [("logits", ("N", 10))]
    assert model.size_bytes == path.stat().st_size == artifact_size(path)
    assert model.opset == 19
    assert model.parameters == sum(int(np.prod(tensor.dims)) for tensor in onnx.load(path).graph.initializer)
    assert operator_counts(path) == {"Conv": 1, "Relu": 1, "Flatten": 1, "Gemm": 1}


def test_the_digest_follows_the_content_not_the_name(tmp_path: Path) -> None:
    first, second = cnn(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    second.write_bytes(first.read_bytes())
    assert load_model(first).sha256 == load_model(second).sha256
    assert load_model(first).sha256 != load_model(two_inputs(tmp_path / "c.onnx")).sha256


def test_integer_inputs_keep_their_type(tmp_path: Path) -> None:
    assert load_model(embedding(tmp_path / "e.onnx")).inputs[0].dtype == "int64"


def test_initializers_that_are_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    path = cnn(tmp_path / "cnn.onnx")
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(proto, path)
    assert [info.name for info in load_model(path).inputs] == ["input.1"]


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no file"):
        load_model(tmp_path / "absent.onnx")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="folder"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n" + bytes(2000), b"{}" * 500, b"not a model"])
def test_what_is_not_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"not a whole ONNX model|is empty"):
        load_model(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    path = cnn(tmp_path / "cnn.onnx")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=r"cut off|not a valid ONNX model"):
        load_model(path)


def external(tmp_path: Path) -> Path:
    path = tmp_path / "external.onnx"
    onnx.save_model(onnx.load(cnn(tmp_path / "cnn.onnx")), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_external_data_counts_in_size_and_digest(tmp_path: Path) -> None:
    path = external(tmp_path)
    before = load_model(path)
    assert before.size_bytes == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert load_model(path).sha256 != before.sha256


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin"):
        load_model(path)


def test_cut_off_external_data_is_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[:-100])
    with pytest.raises(ModelError, match="cut off"):
        load_model(path)


def test_external_data_outside_the_folder_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    proto = onnx.load_model(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    onnx.save(proto, path)
    with pytest.raises(ModelError, match="outside"):
        load_model(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    path = cnn(tmp_path / "cnn.onnx")
    proto = onnx.load(path)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "w1")
    values = numpy_helper.to_array(tensor).copy()
    values.flat[3] = value
    tensor.CopyFrom(numpy_helper.from_array(values, "w1"))
    onnx.save(proto, path)
    with pytest.raises(ModelError, match=r"NaN or infinite: w1"):
        load_model(path)


def test_an_attention_mask_of_minus_infinity_is_fine(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "mask"], ["y"])]
    shape = (TensorProto.FLOAT, ["N", 4])
    path = save(tmp_path / "mask.onnx", nodes, {"x": shape}, {"y": shape}, {"mask": np.array([0, 0, -np.inf, 0], np.float32)})
    assert load_model(path).parameters == 4
