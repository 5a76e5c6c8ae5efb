"""Calibration end to end: against every activation in full, for any batch size, and with bad input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lowbit.compress import calibrate as room
from lowbit.compress.calibrate import CalibrationStats, calibrate
from lowbit.errors import DataError, LowbitError, ModelError, UsageError
from lowbit.graph import observe, probes
from lowbit.types import Array, Batch

N = 24


def cnn(path: Path, batch: int | str = "N", scale: float = 1.0) -> Path:
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(size=(32, 3, 3, 3)) * scale,
        "w2": rng.normal(size=(32, 32, 1, 1)) * 0.2,
        "w3": rng.normal(size=(24, 32, 3, 3)) * 0.1,
        "w4": rng.normal(size=(24, 5)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="c1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="r1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="c2"),
        helper.make_node("Add", ["c2", "r1"], ["a"], name="a"),
        helper.make_node("Relu", ["a"], ["r2"], name="r2"),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], name="c3"),
        helper.make_node("GlobalAveragePool", ["c3"], ["g"], name="g"),
        helper.make_node("Flatten", ["g"], ["f"], name="f"),
        helper.make_node("Gemm", ["f", "w4"], ["y"], name="y"),
    ]
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 40, 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def images(n: int = N) -> Array:
    return np.random.default_rng(5).normal(size=(n, 3, 40, 40)).astype(np.float32)


def batches(x: Array, size: int, name: str = "x") -> Iterator[Batch]:
    for start in range(0, len(x), size):
        part = x[start : start + size]
        yield Batch(np.arange(start, start + len(part)), {name: part}, None)


def in_full(path: Path, feeds: dict[str, Array], tensors: list[str]) -> dict[str, Array]:
    """Every named tensor as the runtime gives it."""
    import onnxruntime

    model = onnx.load(str(path))
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(tensors, session.run(tensors, feeds), strict=True))


def test_min_max_is_exact_for_every_tensor(tmp_path: Path) -> None:
    path, x = cnn(tmp_path / "m.onnx"), images()
    stats = calibrate(path, batches(x, 7))
    assert stats.n == N
    assert stats.aliases == {"c1": "r1", "a": "r2", "f": "g"}
    full = in_full(path, {"x": x}, ["r1", "c2", "r2", "c3", "g", "y"])
    assert set(stats.tensors) == {*full, *stats.aliases, "x"}
    for name, values in {**full, "x": x}.items():
        assert stats.tensors[name].low == pytest.approx(values.min(), rel=1e-5)
        assert stats.tensors[name].high == pytest.approx(values.max(), rel=1e-5)
    assert stats.tensors["c1"] is stats.tensors["r1"]
    assert stats.ranges("mse") == {name: stats.range(name, "mse") for name in stats.tensors}


def test_the_batch_size_changes_nothing(tmp_path: Path) -> None:
    path, x = cnn(tmp_path / "m.onnx"), images()
    whole, single, odd = (calibrate(path, batches(x, size)) for size in (N, 1, 5))
    for other in (single, odd):
        assert other.n == whole.n
        for name, stats in whole.tensors.items():
            assert other.tensors[name].histogram.count == stats.histogram.count
            for method in ("minmax", "percentile", "entropy", "mse"):
                assert other.range(name, method) == pytest.approx(whole.range(name, method), rel=0.02, abs=1e-6)  # type: ignore[arg-type]
        assert other.tensors["x"].histogram.zeros == whole.tensors["x"].histogram.zeros
        assert np.array_equal(other.tensors["x"].histogram.counts, whole.tensors["x"].histogram.counts)


def test_a_batch_in_parts_gives_what_it_gives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, x = cnn(tmp_path / "m.onnx"), images()
    whole = calibrate(path, batches(x, 8))
    runs: list[int] = []
    run = room._Pass._run
    monkeypatch.setattr(room._Pass, "_run", lambda self, feeds: runs.append(len(feeds["x"])) or run(self, feeds))
    monkeypatch.setattr(room, "AT_ONCE", 3 * 32 * 40 * 40)  # three samples of the largest tensor
    parts = calibrate(path, batches(x, 8))
    assert runs == [3, 3, 2] * 3
    for name, stats in whole.tensors.items():
        assert (parts.tensors[name].low, parts.tensors[name].high) == pytest.approx((stats.low, stats.high), rel=1e-5)
        assert parts.tensors[name].histogram.count == stats.histogram.count
        assert parts.range(name, "mse") == pytest.approx(whole.range(name, "mse"), rel=0.02, abs=1e-6)


def test_a_tensor_is_looked_at_before_the_next_is_computed(tmp_path: Path) -> None:
    """Else all tensors are alive at once: the order is the runtime's, so it is read from its profile."""
    import onnxruntime

    sizes = {"w1": (32, 3, 3, 3), "w2": (32, 32, 3, 3), "w3": (16, 32, 1, 1), "w4": (16, 16, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="c1"),
        helper.make_node("Relu", ["c1"], ["r1"], name="r1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="c2"),
        helper.make_node("Conv", ["c2", "w3"], ["small"], name="small", strides=[9, 9]),  # small ones are handed out whole
        helper.make_node("Conv", ["small", "w4"], ["y"], name="y"),
    ]
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 40, 40]), onnx.ValueInfoProto(name="y")]
    infos[1].type.tensor_type.elem_type = TensorProto.FLOAT
    weights = [numpy_helper.from_array(np.ones(size, np.float32), name) for name, size in sizes.items()]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    one, two = (probes.infer(model, {"x": (n, 3, 40, 40)}) for n in (2, 3))
    model, _ = probes.instrument(model, observe.plan(one), one, two, sample=True)
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": images()[:2]})
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event["name"] for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    last_of_first = max(i for i, name in enumerate(ran) if name.startswith("r1/lowbit"))
    assert last_of_first < min(i for i, name in enumerate(ran) if name.startswith("c2"))


def test_a_fixed_batch_of_one_gives_what_a_free_one_does(tmp_path: Path) -> None:
    x = images()
    fixed = calibrate(cnn(tmp_path / "fixed.onnx", batch=1), batches(x, 1))
    free = calibrate(cnn(tmp_path / "free.onnx"), batches(x, 8))
    for name, stats in free.tensors.items():
        assert fixed.tensors[name].histogram.count == stats.histogram.count
        assert fixed.range(name, "mse") == pytest.approx(free.range(name, "mse"), rel=0.02, abs=1e-6)


def test_a_table_that_no_input_moves_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = numpy_helper.from_array(np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64), "table")
    nodes = [
        helper.make_node("Shape", ["x"], ["length"], start=1, end=2),
        helper.make_node("Slice", ["table", "zero", "length", "one"], ["positions"], name="positions"),
        helper.make_node("Add", ["x", "positions"], ["y"], name="y"),
    ]
    constants = [table, *(numpy_helper.from_array(np.array([v], np.int64), name) for name, v in (("zero", 0), ("one", 1)))]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "L"]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(12, 32)).astype(np.float32)
    for size, at_once in ((12, 1 << 20), (5, 1 << 20), (1, 1 << 20), (12, 64)):
        monkeypatch.setattr(room, "AT_ONCE", at_once)
        stats = calibrate(tmp_path / "m.onnx", batches(x, size))
        assert stats.tensors["positions"].histogram.count == 32
        assert stats.tensors["y"].histogram.count == 12 * 32


def test_onnxruntimes_exact_calibrator_agrees(tmp_path: Path) -> None:
    from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

    path, x = cnn(tmp_path / "m.onnx"), images()

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter([{"x": x[i : i + 1]} for i in range(N)])

        def get_next(self) -> Any:
            return next(self.rest, None)

    calibrator = create_calibrator(path, ["Conv", "Gemm"], str(tmp_path / "augmented.onnx"), CalibrationMethod.MinMax)
    calibrator.collect_data(Reader())
    ours = calibrate(path, batches(x, 4), methods=["minmax"])
    theirs = {name: tuple(np.ravel(v).item() for v in data.range_value) for name, data in calibrator.compute_data().items()}
    for name in ("x", "c2", "c3", "y"):
        assert (ours.tensors[name].low, ours.tensors[name].high) == pytest.approx(theirs[name], rel=1e-5)


def test_min_max_alone_keeps_no_histograms(tmp_path: Path) -> None:
    stats = calibrate(cnn(tmp_path / "m.onnx"), batches(images(), 8), methods=["minmax"])
    assert all(s.histogram.count == 0 for s in stats.tensors.values())
    with pytest.raises(DataError, match="needs a histogram"):
        stats.range("c2", "entropy")


def test_round_trip_on_disk(tmp_path: Path) -> None:
    stats = calibrate(cnn(tmp_path / "m.onnx"), batches(images(), 8))
    stats.save(tmp_path / "stats.npz")
    loaded = CalibrationStats.load(tmp_path / "stats.npz")
    assert (loaded.n, loaded.aliases) == (stats.n, stats.aliases)
    assert set(loaded.tensors) == set(stats.tensors)
    for name in stats.tensors:
        assert all(loaded.range(name, m) == stats.range(name, m) for m in ("minmax", "percentile", "entropy", "mse"))
    loaded.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "stats.npz").read_bytes()
    assert [p.name for p in tmp_path.glob("*.partial")] == []


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04broken", b"not a zip"])
def test_broken_statistics_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "stats.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="calibration statistics"):
        CalibrationStats.load(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(DataError, match="does not hold"):
        CalibrationStats.load(path)


def test_progress_counts_samples(tmp_path: Path) -> None:
    seen: list[int] = []
    calibrate(cnn(tmp_path / "m.onnx"), batches(images(), 10), progress=seen.append)
    assert seen == [10, 20, 24]


def test_the_model_file_is_not_changed(tmp_path: Path) -> None:
    path = cnn(tmp_path / "m.onnx")
    before = path.read_bytes()
    calibrate(path, batches(images(), 8))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_external_weights_are_found_beside_the_model(tmp_path: Path) -> None:
    inside = calibrate(cnn(tmp_path / "m.onnx"), batches(images(), 8))
    (tmp_path / "external").mkdir()
    model = onnx.load(str(tmp_path / "m.onnx"))
    onnx.save(model, str(tmp_path / "external" / "m.onnx"), save_as_external_data=True, location="m.data", size_threshold=0)
    outside = calibrate(tmp_path / "external" / "m.onnx", batches(images(), 8))
    assert {n: s.high for n, s in outside.tensors.items()} == {n: s.high for n, s in inside.tensors.items()}


@pytest.mark.parametrize("row", [0, 9, N - 1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_input_that_is_not_finite_is_named(tmp_path: Path, row: int, value: float) -> None:
    x = images()
    x[row, 1, 2, 3] = value
    with pytest.raises(DataError, match=rf"'x' holds NaN or infinity .* sample {row // 8 * 8}\."):
        calibrate(cnn(tmp_path / "m.onnx"), batches(x, 8), methods=["minmax"])


def test_a_model_that_overflows_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Tensor '(r1|c2|r2)' holds NaN or infinity"):
        calibrate(cnn(tmp_path / "m.onnx", scale=3e37), batches(images(), 8), methods=["minmax"])


@pytest.mark.parametrize("size", [4, 100])
def test_nan_made_inside_is_found_though_maxima_pass_over_it(tmp_path: Path, size: int) -> None:
    """The root of one negative number in a large output; size 100 makes an output that is not fetched in full."""
    x = np.random.default_rng(0).uniform(1, 2, size=(4, 3, size, size)).astype(np.float32)
    x[2, 1, size // 2, size // 2] = -1
    graph = helper.make_graph(
        [helper.make_node("Sqrt", ["x"], ["y"], name="y")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, size, size])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="'y' holds NaN"):
        calibrate(tmp_path / "m.onnx", batches(x, 2), methods=["minmax"])


def test_bad_calls(tmp_path: Path) -> None:
    path, x = cnn(tmp_path / "m.onnx"), images(4)
    (tmp_path / "broken.onnx").write_bytes(path.read_bytes()[:1000])
    (tmp_path / "text.onnx").write_text("hello")
    cases: list[tuple[type[LowbitError], str, Any]] = [
        (DataError, "no samples", lambda: calibrate(path, [])),
        (DataError, "no samples", lambda: calibrate(path, [Batch(np.arange(0), {"x": x[:0]}, None)])),
        (DataError, "could not run", lambda: calibrate(path, batches(x[:, :2], 4))),
        (DataError, "could not run", lambda: calibrate(path, batches(x.astype(np.float64), 4))),
        (DataError, "could not run", lambda: calibrate(path, batches(x, 4, name="y"))),
        (UsageError, "Unknown range method 'kl'", lambda: calibrate(path, batches(x, 4), methods=["kl"])),  # type: ignore[list-item]
        (UsageError, "No range method", lambda: calibrate(path, batches(x, 4), methods=[])),
        (UsageError, "Unknown tensor 'c9'", lambda: calibrate(path, batches(x, 4)).range("c9", "minmax")),
        (ModelError, "no model", lambda: calibrate(tmp_path / "none.onnx", batches(x, 4))),
        (ModelError, "onnx", lambda: calibrate(tmp_path / "broken.onnx", batches(x, 4))),
        (ModelError, "onnx", lambda: calibrate(tmp_path / "text.onnx", batches(x, 4))),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()


def test_a_real_network_with_weights_listed_as_inputs(shared_data: Path) -> None:
    path = shared_data / "detection" / "ultraface_slim_320.onnx"
    x = np.random.default_rng(0).uniform(-1, 1, size=(3, 3, 240, 320)).astype(np.float32)
    stats = calibrate(path, batches(x, 1, name="input"))
    assert stats.n == 3
    assert {"input", "scores", "boxes"} <= set(stats.tensors)
    assert stats.tensors["scores"].low >= 0
    assert stats.tensors["scores"].high <= 1


def test_onnxruntimes_writer_finds_every_range_it_asks_for(shared_data: Path) -> None:
    import onnxruntime
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    path = shared_data / "cifar10-resnet" / "resnet20.onnx"
    x = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)
    stats = calibrate(path, batches(x, 8, name="input"))
    table = {name: stats.range(name, "mse") for name in stats.tensors}
    data = {n: TensorData(lowest=np.float32(low), highest=np.float32(high)) for n, (low, high) in table.items()}
    writer = QDQQuantizer(
        onnx.load(str(path)),
        True,
        False,
        QuantType.QInt8,
        QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, data),
        [],
        [],
        sorted({*QDQRegistry, *QLinearOpsRegistry, "ReduceMean"}),
        {},
    )
    model = writer.quantize_model()
    onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert sum(n.op_type == "QuantizeLinear" for n in model.graph.node) > 30
