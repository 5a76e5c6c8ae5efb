"""What samples say is gathered once a model, and models are told apart by all of their weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

from graph_cases import weights
from lowbit.compress import evidence as room
from lowbit.compress.evidence import Evidence
from lowbit.compress.static import write_static
from lowbit.graph import ir_files
from lowbit.graph.profiles import ONNXRUNTIME_CPU
from transform_cases import Counted, conv_net, error_of, evidence, feeds, static


def test_each_model_is_calibrated_once(tmp_path: Path) -> None:
    case = conv_net()
    seen, batches = evidence(case, tmp_path)
    assert batches.calls == 0
    assert seen.stats is seen.stats
    assert seen.stats.n == 32
    assert batches.calls == 1
    other = conv_net(uneven=False).save(tmp_path / "other.onnx")
    assert seen.stats_of(other) is seen.stats_of(other)
    assert seen.stats_of(other) is not seen.stats
    assert batches.calls == 2
    assert seen.captured is seen.captured
    assert batches.calls == 3


def test_recipes_share_the_statistics_of_one_transformation(tmp_path: Path) -> None:
    seen, batches = evidence(conv_net(), tmp_path)
    for transforms in (("equalize",), ("equalize", "fit"), ("equalize",)):
        write_static(seen, tmp_path / "m.onnx", static(*transforms), ONNXRUNTIME_CPU)
    assert batches.calls == 2  # rows, and ranges of the equalized model


def test_saved_statistics_are_taken_over(tmp_path: Path) -> None:
    seen, _ = evidence(conv_net(), tmp_path)
    batches = Counted([])
    again = Evidence(seen.prepared, batches)
    again.stats = seen.stats
    assert again.stats.range("r1", "minmax") == seen.stats.range("r1", "minmax")
    assert batches.calls == 0


def test_models_that_differ_in_external_weights_alone_are_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ir_files, "LARGEST_FILE", 1000)
    case = conv_net()
    seen, batches = evidence(case, tmp_path)
    ranges = []
    for scale in (1, 3):
        model = ir_files.read(case.save(tmp_path / "source.onnx"))
        wide = onnx_ir.tensor(weights(12, 16, 3, 3, seed=3) * np.float32(scale), name="w2")
        model.graph.initializers["w2"].const_value = wide
        (tmp_path / str(scale)).mkdir()
        ir_files.write(model, tmp_path / str(scale) / "m.onnx")
        ranges.append(seen.stats_of(tmp_path / str(scale) / "m.onnx").range("r2", "minmax")[1])
    assert (tmp_path / "1" / "m.onnx").read_bytes() == (tmp_path / "3" / "m.onnx").read_bytes()
    assert ranges[1] > 2 * ranges[0]
    assert batches.calls == 2


def test_a_transform_works_on_weights_in_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = conv_net()
    seen, _ = evidence(case, tmp_path)
    write_static(seen, tmp_path / "one.onnx", static("equalize", "fit"), ONNXRUNTIME_CPU)
    monkeypatch.setattr(ir_files, "LARGEST_FILE", 1000)
    (tmp_path / "large").mkdir()
    ir_files.write(ir_files.read(seen.prepared), tmp_path / "large" / "prepared.onnx")
    large = Evidence(tmp_path / "large" / "prepared.onnx", seen.batches)
    write_static(large, tmp_path / "large" / "m.onnx", static("equalize", "fit"), ONNXRUNTIME_CPU)
    found = sorted(each.name for each in (tmp_path / "large").iterdir())
    assert found == ["m.onnx", "m.onnx.data", "prepared.onnx", "prepared.onnx.data"]  # of the transformed model nothing is left
    loaded = onnx.load(tmp_path / "large" / "m.onnx")
    onnx.save(loaded, tmp_path / "joined.onnx")
    assert error_of(tmp_path / "joined.onnx", case) == pytest.approx(error_of(tmp_path / "one.onnx", case), rel=1e-6)


def test_rows_come_from_a_part_of_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = conv_net()
    monkeypatch.setattr(room, "SAMPLES", 16)
    batches = Counted(feeds(case, 4))
    some = Evidence(case.save(tmp_path / "m.onnx"), batches)
    two = Evidence(some.prepared, Counted(batches.feeds[:2]))
    np.testing.assert_array_equal(some.captured.high["x"], two.captured.high["x"])
    assert not np.array_equal(some.captured.high["x"], np.max([each["x"].max((0, 2, 3)) for each in batches.feeds], axis=0))
