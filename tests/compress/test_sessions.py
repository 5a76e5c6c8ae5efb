"""Models opened with other outputs than their own, and with their weights apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from graph_cases import everything, samples
from lowbit.compress import kept as room
from lowbit.compress.sessions import apart, misfit, open_session, read_model, show
from lowbit.errors import DataError, ModelError
from lowbit.graph import ir_files
from transform_cases import conv_net


def test_inner_tensors_are_those_of_the_model(tmp_path: Path) -> None:
    case = conv_net()
    path = case.save(tmp_path / "m.onnx")
    model = read_model(path)
    assert show(model, ["x", "r1"]) == ["r1"]  # what is fed is not asked for
    x = samples([dim.dim_value or 2 for dim in model.graph.input[0].type.tensor_type.shape.dim])
    (found,) = open_session(model, path, 1, "here").run(["r1"], {"x": x})
    np.testing.assert_allclose(found, everything(case.proto(), {"x": x})["r1"], rtol=1e-4, atol=1e-5)


def test_weights_apart_are_the_same_weights_and_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ir_files, "LARGE", 0)
    monkeypatch.setattr(ir_files, "INLINE", 256)
    path = conv_net().save(tmp_path / "m.onnx")
    with apart(path) as light:
        assert light != path
        assert any(t.external_data for t in read_model(light).graph.initializer)
        assert {i.name: onnx.numpy_helper.to_array(i).tobytes() for i in onnx.load(light).graph.initializer} == {
            i.name: onnx.numpy_helper.to_array(i).tobytes() for i in onnx.load(path).graph.initializer
        }
        with apart(light) as again:
            assert again == light
    assert not light.exists()
    monkeypatch.setattr(ir_files, "LARGE", 1 << 24)
    with apart(path) as small:
        assert small == path


def test_rows_on_disk_are_the_rows_that_were_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [samples([n, 2, 3], n) for n in (4, 1, 2)]
    for limit in (1 << 20, 16):
        monkeypatch.setattr(room, "IN_MEMORY", limit)
        kept = room.Kept()
        for part in parts:
            kept.add("p", part)
            kept.add("q", part[:, :1] * 2)
        assert list(kept) == ["p", "q"]
        np.testing.assert_array_equal(kept["p"], np.concatenate(parts))
        np.testing.assert_array_equal(kept["q"], np.concatenate(parts)[:, :1] * 2)


def test_samples_wait_on_disk_and_come_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = [{"x": samples([2, 3], n), "ids": np.arange(n, n + 4).reshape(2, 2)} for n in range(3)]
    for limit in (1 << 20, 16):
        monkeypatch.setattr(room, "IN_MEMORY", limit)
        with room.Waiting() as waiting:
            for each in feeds:
                waiting.add(each)
            assert len(waiting) == 3
            for found, expected in zip(waiting, feeds, strict=True):
                assert {name: (values.dtype, values.tolist()) for name, values in found.items()} == {
                    name: (values.dtype, values.tolist()) for name, values in expected.items()
                }


def test_what_cannot_be_opened_is_said_kindly(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model"):
        read_model(tmp_path / "none.onnx")
    model = read_model(conv_net().save(tmp_path / "m.onnx"))
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match=r"cannot load 'm\.onnx' for a test"):
        open_session(model, tmp_path / "m.onnx", 1, "for a test")


def test_a_batch_that_does_not_fit_is_the_datas_fault(tmp_path: Path) -> None:
    path = conv_net().save(tmp_path / "m.onnx")
    session = open_session(read_model(path), path, 1, "here")
    feeds = {"x": np.zeros((1, 1), np.float32)}
    with pytest.raises(Exception, match="nvalid") as caught:
        session.run(None, feeds)
    found = misfit(session, feeds, caught.value)
    assert isinstance(found, DataError)
    assert "[1, 1]" in (found.hint or "")
