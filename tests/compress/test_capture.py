"""Captured rows are what products read: multiplied with the weights they give the runtime's own results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from graph_cases import Case, everything, node, samples, weights
from lowbit.compress import capture as room
from lowbit.compress.capture import capture, sites
from lowbit.compress.equalize import outputs
from lowbit.compress.products import Constants, products
from lowbit.errors import DataError
from lowbit.graph.groups import find_groups
from lowbit.graph.profiles import ONNXRUNTIME_CPU, OPENVINO_CPU
from lowbit.quant.layout import output_size, sample_positions

ALL = 1 << 14  # rows: more than there are, so that every position is taken

CONVS = {
    "plain": ((6, 4, 3, 3), {}),
    "strided": ((6, 4, 3, 3), {"strides": [2, 1]}),
    "padded": ((6, 4, 3, 2), {"pads": [1, 0, 2, 1]}),
    "dilated": ((6, 4, 2, 3), {"dilations": [2, 3], "pads": [2, 2, 2, 2]}),
    "grouped": ((6, 2, 3, 3), {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "depthwise": ((8, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    "valid": ((6, 4, 3, 3), {"auto_pad": "VALID"}),
}
MATRICES = {
    "gemm": ([node("Gemm", "x w", "y", "p")], [5, 8], (8, 6)),
    "gemm-transposed": ([node("Gemm", "x w", "y", "p", transB=1)], [5, 8], (6, 8)),
    "matmul": ([node("MatMul", "x w", "y", "p")], [5, 8], (8, 6)),
    "matmul-3d": ([node("MatMul", "x w", "y", "p")], [5, 3, 8], (8, 6)),
}


def taken(case: Case, folder: Path, feeds: list, **more):
    model = onnx_ir.from_proto(case.proto())
    found = products(model, find_groups(model.graph, ONNXRUNTIME_CPU))
    captured = capture(case.save(folder / "m.onnx"), {name: p.site for name, p in found.items()}, feeds, threads=1, **more)
    return found["p"], Constants(model)[found["p"].weight], captured


@pytest.mark.parametrize("name", CONVS)
def test_rows_of_convolutions_give_its_outputs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ALONE", ALL)
    shape, attributes = CONVS[name]
    case = Case([node("Conv", "x w", "y", "p", **attributes)], {"x": [2, 4, 9, 8]}, ["y"], {"w": weights(*shape)})
    feeds = [{"x": samples([2, 4, 9, 8], seed)} for seed in range(2)]
    product, values, captured = taken(case, tmp_path, feeds, rows=ALL)
    expected = np.concatenate([np.moveaxis(everything(case.proto(), each)["y"], 1, -1).reshape(-1, shape[0]) for each in feeds])
    found = outputs(captured.rows["p"], product.matrices(values)).reshape(-1, shape[0])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MATRICES)
def test_rows_of_matrix_products_give_their_outputs(name: str, tmp_path: Path) -> None:
    nodes, extent, shape = MATRICES[name]
    case = Case(nodes, {"x": extent}, ["y"], {"w": weights(*shape)})
    feeds = [{"x": samples(extent, seed)} for seed in range(2)]
    product, values, captured = taken(case, tmp_path, feeds, rows=ALL)
    expected = np.concatenate([everything(case.proto(), each)["y"].reshape(-1, 6) for each in feeds])
    np.testing.assert_allclose(outputs(captured.rows["p"], product.matrices(values))[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_some_rows_are_those_of_the_drawn_positions(tmp_path: Path) -> None:
    case = Case([node("Conv", "x w", "y", "p", strides=[2, 2])], {"x": [3, 4, 9, 9]}, ["y"], {"w": weights(6, 4, 3, 3)})
    feed = {"x": samples([3, 4, 9, 9])}
    product, values, captured = taken(case, tmp_path, [feed], rows=10)
    n, row, column = sample_positions(3, output_size((9, 9), (3, 3), (2, 2), (0,) * 4, (1, 1)), 10, 0).T
    expected = everything(case.proto(), feed)["y"][n, :, row, column]
    assert captured.rows["p"].shape == (10, 1, 36)
    np.testing.assert_allclose(outputs(captured.rows["p"], product.matrices(values))[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_extremes_of_channels_are_exact_over_all_batches(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "r"), node("Conv", "r w", "y", "p"), node("MatMul", "y m", "z", "q")]
    case = Case(nodes, {"x": [2, 4, 6, 6]}, ["z"], {"w": weights(3, 4, 3, 3), "m": weights(4, 5)})
    feeds = [{"x": samples([2, 4, 6, 6], seed)} for seed in range(3)]
    model = onnx_ir.from_proto(case.proto())
    where = sites(model.graph, find_groups(model.graph, ONNXRUNTIME_CPU))
    captured = capture(case.save(tmp_path / "m.onnx"), where, feeds, rows=4, threads=1)
    seen = [everything(case.proto(), each) for each in feeds]
    r, y = (np.concatenate([each[name] for each in seen]) for name in "ry")
    np.testing.assert_allclose(captured.high["r"], r.max(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(captured.low["r"], r.min(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(captured.high["y"], y.max(axis=(0, 1, 2)), rtol=1e-5)  # a matrix product has its inputs on the last axis
    np.testing.assert_allclose(captured.low["y"], y.min(axis=(0, 1, 2)), rtol=1e-5)


def test_rows_taken_inside_the_graph_are_those_of_whole_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        node("Relu", "x", "r"),
        node("Conv", "r w", "y", "p", pads=[1, 1, 1, 1]),
        node("Conv", "r d", "z", "depthwise", group=4, strides=[2, 2]),
        node("Conv", "z v", "u", "last"),
    ]
    case = Case(nodes, {"x": ["N", 4, 9, 9]}, ["y", "u"], {"w": weights(6, 4, 3, 3), "v": weights(6, 4, 3, 3), "d": weights(4, 1, 3, 3)})
    feeds = [{"x": samples([2, 4, 9, 9], seed)} for seed in range(3)]
    inside = taken(case, tmp_path, feeds, rows=20)[2]
    monkeypatch.setattr(room, "shapes_of", lambda _: {})  # of what has no known shape, the whole is handed out
    whole = taken(case, tmp_path, feeds, rows=20)[2]
    assert list(inside.rows) == list(whole.rows) == ["p", "depthwise", "last"]
    for name in whole.rows:
        np.testing.assert_array_equal(inside.rows[name], whole.rows[name])
    for tensor in ("r", "z"):
        np.testing.assert_array_equal(inside.low[tensor], whole.low[tensor])
        np.testing.assert_array_equal(inside.high[tensor], whole.high[tensor])


def test_images_of_several_sizes_give_rows(tmp_path: Path) -> None:
    case = Case([node("Relu", "x", "r"), node("Conv", "r w", "y", "p")], {"x": ["N", 4, "H", "W"]}, ["y"], {"w": weights(6, 4, 3, 3)})
    feeds = [{"x": samples([1, 4, 9, side])} for side in (6, 8)]
    product, values, captured = taken(case, tmp_path, feeds, rows=ALL)
    expected = np.concatenate([np.moveaxis(everything(case.proto(), each)["y"], 1, -1).reshape(-1, 6) for each in feeds])
    assert len(expected) == 7 * 4 + 7 * 6
    np.testing.assert_allclose(outputs(captured.rows["p"], product.matrices(values))[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_batches_share_the_rows_and_wide_products_keep_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case([node("MatMul", "x w", "y", "p")], {"x": [50, 8]}, ["y"], {"w": weights(8, 6)})
    feeds = [{"x": samples([50, 8], seed)} for seed in range(4)]
    assert len(taken(case, tmp_path, feeds, rows=100)[2].rows["p"]) == 100
    monkeypatch.setattr(room, "FLOATS", 8 * 80)
    monkeypatch.setattr(room, "FEW", 16)
    assert len(taken(case, tmp_path, feeds, rows=100)[2].rows["p"]) == 80


def test_what_has_no_rows_has_no_site() -> None:
    nodes = [
        node("ConvTranspose", "x t", "u", "up"),
        node("Conv", "u w", "y", "same", auto_pad="SAME_UPPER"),
        node("Add", "y y", "z", "sum"),
    ]
    case = Case(nodes, {"x": [1, 4, 5, 5]}, ["z"], {"t": weights(4, 4, 2, 2), "w": weights(4, 4, 3, 3)})
    graph = onnx_ir.from_proto(case.proto()).graph
    assert sites(graph, find_groups(graph, OPENVINO_CPU)) == {}


def test_no_samples_is_said_kindly(tmp_path: Path) -> None:
    case = Case([node("MatMul", "x w", "y", "p")], {"x": [5, 8]}, ["y"], {"w": weights(8, 6)})
    with pytest.raises(DataError, match="no samples"):
        taken(case, tmp_path, [])


def test_a_sample_that_does_not_fit_is_said_kindly(tmp_path: Path) -> None:
    case = Case([node("Relu", "x", "r"), node("Conv", "r w", "y", "p")], {"x": ["N", 4, 9, 9]}, ["y"], {"w": weights(6, 4, 3, 3)})
    with pytest.raises(DataError, match="could not run") as caught:
        taken(case, tmp_path, [{"x": samples([2, 4, 9, 9])}, {"x": samples([2, 3, 9, 9])}])
    assert "'x'" in (caught.value.hint or "")
    assert "lowbit" not in (caught.value.hint or "")  # inputs that probes have are nobody else's business
