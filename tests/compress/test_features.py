"""Features and per-sample ranges: against every activation in full, for any batch size; and what coverage makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from lowbit.compress import features as features_module
from lowbit.compress.calibrate import calibrate
from lowbit.compress.coverage import cover
from lowbit.compress.features import Features, Space, extract
from lowbit.data import Dataset, open_data
from lowbit.errors import ModelError
from lowbit.graph.load import load_model

N = 21


def cnn(path: Path, batch: int | str = "N", opset: int = 17, scale: float = 1.0) -> Path:
    """Two convolutions of 32 channels, so that probes of both kinds are met, and a linear layer."""
    rng = np.random.default_rng(0)
    weights = {"w1": rng.normal(size=(32, 3, 3, 3)) * scale, "w2": rng.normal(size=(20, 32, 3, 3)) * 0.1, "w3": rng.normal(size=(20, 5))}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"]),
        helper.make_node("GlobalAveragePool", ["c2"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 24, 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    return path


def images(n: int = N) -> np.ndarray:
    scales = np.random.default_rng(1).uniform(0.2, 2, n)
    return (np.random.default_rng(0).normal(size=(n, 3, 24, 24)) * scales[:, None, None, None]).astype(np.float32)


def opened(path: Path, x: np.ndarray) -> Dataset:
    return open_data({"x": x}, load_model(path).inputs)


def everything(path: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor, from onnx's own evaluator."""
    model = onnx.load(path)
    names = [name for node in model.graph.node for name in node.output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return {"x": x, **dict(zip(names, ReferenceEvaluator(model).run(None, {"x": x}), strict=True))}


@pytest.mark.parametrize("opset", [13, 18])
def test_features_are_channel_means_and_ranges_are_per_sample(tmp_path: Path, opset: int) -> None:
    x, path = images(), cnn(tmp_path / "m.onnx", opset=opset)
    found, full = extract(opened(path, x), path, threads=1), everything(path, x)
    # What r1 fuses with is not looked at; f has the values of g; y is the output.
    assert found.tensors == ("x", "r1", "c2", "g", "y")
    for index, name in enumerate(found.tensors):
        rows = full[name].reshape(N, -1)
        np.testing.assert_allclose(found.low[:, index], rows.min(axis=1), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.high[:, index], rows.max(axis=1), rtol=1e-4, atol=1e-4)
    means = [full[name].reshape(N, full[name].shape[1], -1).mean(axis=2) for name in ("r1", "c2", "g", "y")]
    np.testing.assert_allclose(found.values, np.concatenate(means, axis=1), rtol=1e-4, atol=1e-4)
    assert np.bincount(found.blocks).tolist() == [32, 20, 20, 5]


def test_ranges_over_all_samples_are_those_of_calibration(tmp_path: Path) -> None:
    path = cnn(tmp_path / "m.onnx")
    data = opened(path, images())
    found, stats = extract(data, path, threads=1), calibrate(path, data.batches(8), methods=["minmax"], threads=1)
    for index, name in enumerate(found.tensors):
        low, high = stats.range(name, "minmax")
        assert min(0.0, float(found.low[:, index].min())) == pytest.approx(low, abs=1e-5)
        assert max(0.0, float(found.high[:, index].max())) == pytest.approx(high, abs=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_size_changes_nothing(tmp_path: Path, batch: int) -> None:
    x = images()
    free, fixed = cnn(tmp_path / "a.onnx"), cnn(tmp_path / "b.onnx", batch)
    expected, found = (extract(opened(path, x), path, threads=1) for path in (free, fixed))
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.high, expected.high, rtol=1e-4, atol=1e-5)


def test_sequences_are_averaged_over_their_steps(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 7, size]) for name, size in (("x", 6), ("y", 12))]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Tanh", ["m"], ["y"])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    x = np.random.default_rng(0).normal(size=(10, 7, 6)).astype(np.float32)
    found = extract(open_data({"x": x}, load_model(path).inputs), path, threads=1)
    product = x @ weight
    np.testing.assert_allclose(found.values, np.concatenate([product.mean(1), np.tanh(product).mean(1)], axis=1), atol=1e-5)


def test_a_model_that_overflows_is_named(tmp_path: Path) -> None:
    path = cnn(tmp_path / "m.onnx", scale=5e37)
    with pytest.raises(ModelError, match="NaN or infinity for row 0"):
        extract(opened(path, images()), path, threads=1)


def test_without_a_model_the_inputs_are_compared() -> None:
    x = images()
    data = open_data({"x": x}, [_info("x", (None, 3, 24, 24), "float32")])
    found = extract(data)
    small = x.reshape(N, 3, 8, 3, 8, 3).mean(axis=(3, 5)).reshape(N, -1)
    rng = np.random.default_rng(0).normal(size=(192, 128)) / np.sqrt(128)
    np.testing.assert_allclose(found.values, small @ rng.astype(np.float32), atol=1e-4)
    np.testing.assert_array_equal(found.high[:, 0], x.reshape(N, -1).max(axis=1))
    table = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
    rows = extract(open_data({"t": table}, [_info("t", (None, 4), "float32")]))
    assert rows.tensors == ("t[0]", "t[1]", "t[2]", "t[3]")
    np.testing.assert_array_equal(rows.low, table)
    tokens = np.array([[1, 2, 2, 130]] * 9)  # 130 falls on 2
    ids = extract(open_data({"ids": tokens}, [_info("ids", (None, 4), "int64")]))
    assert ids.values[:, :4].tolist() == [[0, 1, 3, 0]] * 9
    assert ids.high[:, 0].tolist() == [130] * 9


def _info(name: str, shape: tuple[int | None, ...], dtype: str):  # type: ignore[no-untyped-def]
    from lowbit.types import TensorInfo

    return TensorInfo(name, shape, dtype)


def made(values: np.ndarray, blocks: list[int] | None = None) -> Features:
    values = values.astype(np.float32)
    columns = np.zeros(values.shape[1], np.int64) if blocks is None else np.array(blocks)
    return Features(values, columns, ("t",), values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True))


def test_a_space_gives_every_tensor_the_same_weight() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([1000 * rng.normal(size=(400, 8)) + 7, rng.normal(size=(400, 1)), np.full((400, 1), 5.0)], axis=1)
    features = made(values, [0] * 8 + [1] + [2])
    points = Space.fit(features).transform(features)
    assert points.mean(axis=0) == pytest.approx(0, abs=1e-4)
    assert np.square(points).sum(axis=1).mean() == pytest.approx(2.0, rel=0.06)  # one for each tensor that varies at all
    assert points.shape[1] <= 9
    assert np.isfinite(points).all()


def test_wide_tensors_keep_their_distances() -> None:
    values = np.random.default_rng(0).normal(size=(30, 4000)).astype(np.float32)
    narrow = features_module._narrowed(values, 0)
    assert narrow.shape == (30, features_module.WIDTH)
    ratio = np.linalg.norm(narrow[1:] - narrow[0], axis=1) / np.linalg.norm(values[1:] - values[0], axis=1)
    assert ratio == pytest.approx(1, abs=0.3)


# Coverage --------------------------------------------------------------------------------------------------------------


def test_coverage_counts_what_is_there() -> None:
    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1, 2], [100, 60, 40])
    values = rng.uniform(-1, 1, size=(200, 3)) + 20 * kind[:, None]
    features = made(values)
    chosen = np.array([0, 1, 2, 100, 101])
    found = cover(features, Space.fit(features), chosen, {"light": np.array(["day", "dusk", "night"])[kind]})
    assert [(g.kind, g.name, g.pool, g.chosen) for g in found.groups] == [
        ("light", "day", 100, 3),
        ("light", "dusk", 60, 2),
        ("light", "night", 40, 0),
    ]
    assert found.chosen.groups == pytest.approx(2 / 3)
    assert sum(group.pool for group in found.clusters) == 200
    assert sum(group.chosen for group in found.clusters) == 5
    (entry,) = found.ranges
    assert entry.pool == pytest.approx((values.min(), values.max()), abs=1e-5)
    assert entry.chosen == pytest.approx((values[chosen].min(), values[chosen].max()), abs=1e-5)
    assert entry.share == pytest.approx(np.ptp(values[chosen]) / np.ptp(values), abs=1e-5)
    assert found.chosen.farthest > found.random.farthest * 0.9
    everything_ = cover(features, Space.fit(features), np.arange(200))
    assert (everything_.chosen.clusters, everything_.chosen.ranges, everything_.chosen.groups) == (1.0, 1.0, None)
    assert everything_.chosen.distance == pytest.approx(0, abs=1e-3)


def test_production_like_the_pool_is_inside_and_other_is_not() -> None:
    rng = np.random.default_rng(0)
    pool = made(rng.normal(size=(2000, 3)))
    space, chosen = Space.fit(pool), np.arange(0, 2000, 20)

    def seen(values: np.ndarray):  # type: ignore[no-untyped-def]
        return cover(pool, space, chosen, production=(made(values), "p{}".format)).production

    same = seen(rng.normal(size=(1000, 3)))
    assert 0.005 < same.outside / 1000 < 0.035
    assert 0.01 <= same.expected <= 0.02
    far = np.concatenate([np.zeros((5, 3)), np.full((1, 3), 9.0)])
    other = seen(far)
    assert (other.n, other.distant, other.exceeding, other.outside) == (6, 1, 1, 1)
    assert [(entry.name, entry.tensor) for entry in other.worst] == [("p5", "t")]
    assert other.worst[0].overshoot == pytest.approx((9 - pool.high[chosen].max()) / np.ptp(pool.values[chosen]), rel=1e-4)


def test_coverage_of_a_pool_of_equal_samples_is_finite() -> None:
    features = made(np.ones((30, 2)))
    found = cover(features, Space.fit(features), np.arange(8), production=(features, str))
    assert (found.chosen.ranges, found.chosen.distance, found.chosen.clusters) == (1.0, 0.0, 1.0)
    assert found.production is not None
    assert found.production.outside == 0
