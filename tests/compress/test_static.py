"""Static recipes: formats reach the groups they name, and an artifact appears whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graph_cases import run
from lowbit.compress import quantize as room
from lowbit.compress.evidence import Evidence
from lowbit.compress.quantize import quantize
from lowbit.compress.static import named_format, write_static
from lowbit.errors import ModelError, UsageError
from lowbit.graph import ir_files
from lowbit.graph.place import Format
from lowbit.graph.profiles import ONNXRUNTIME_CPU, Profile
from lowbit.recipe import QuantSpec, Recipe
from transform_cases import conv_net, error_of, evidence, feeds, static


def makers_of_weights(path: Path) -> dict[str, str]:
    """Product -> operator that gives its weight, "" for a constant in floating point."""
    graph = onnx.load(path).graph
    made = {name: each.op_type for each in graph.node for name in each.output}
    return {each.name: made.get(each.input[1], "") for each in graph.node if each.op_type in ("Conv", "Gemm")}


@pytest.mark.parametrize("kept", ["conv1", "conv2", "gemm"])
def test_float_leaves_exactly_that_group(kept: str, tmp_path: Path) -> None:
    case = conv_net()
    seen, _ = evidence(case, tmp_path)
    for transforms in ((), ("equalize", "fit")):
        made = write_static(seen, tmp_path / "m.onnx", static(*transforms, formats={kept: "float"}), ONNXRUNTIME_CPU)
        expected = {name: "" if name == kept else "DequantizeLinear" for name in ("conv1", "conv2", "gemm")}
        assert makers_of_weights(tmp_path / "m.onnx") == expected
        assert kept not in made.ways
        assert set(made.ways) == (set(expected) - {kept} if transforms else set())


def test_excluded_nodes_and_other_operators_stay_floating_point(tmp_path: Path) -> None:
    seen, _ = evidence(conv_net(), tmp_path)
    write_static(seen, tmp_path / "m.onnx", static(operators=("Conv",), exclude=("conv1",)), ONNXRUNTIME_CPU)
    assert makers_of_weights(tmp_path / "m.onnx") == {"conv1": "", "conv2": "DequantizeLinear", "gemm": ""}
    write_static(seen, tmp_path / "m.onnx", static(operators=("Conv",), formats={"gemm": "w8a8"}), ONNXRUNTIME_CPU)
    assert makers_of_weights(tmp_path / "m.onnx")["gemm"] == "DequantizeLinear"  # what a group is given by name counts


def test_four_bits_have_at_most_fifteen_levels(tmp_path: Path) -> None:
    seen, _ = evidence(conv_net(), tmp_path)
    made = write_static(seen, tmp_path / "m.onnx", static(formats={"conv2": "w4a8"}), ONNXRUNTIME_CPU)
    constants = {each.name: numpy_helper.to_array(each) for each in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert made.table["w2"].dtype == "int4"
    assert (constants["w2_quantized"].min(), constants["w2_quantized"].max()) == (-7, 7)
    assert 10 < len(np.unique(constants["w2_quantized"])) <= 15
    assert len(np.unique(constants["w1_quantized"])) > 15


def test_names_of_formats_keep_sign_and_granularity() -> None:
    default = Format(QuantSpec("int8", "per-channel", symmetric=True), QuantSpec("uint8"))
    assert named_format("w4a16", default) == Format(QuantSpec("int4", "per-channel", symmetric=True), QuantSpec("uint16"))
    assert named_format("w8a8", default) == default
    assert named_format("float", default) is None


@pytest.mark.parametrize(
    ("formats", "said"), [({"conv2": "w3a8"}, "w3a8"), ({"conv": "float"}, "Unknown product 'conv'.*conv1, conv2, gemm")]
)
def test_formats_and_products_that_there_are_none_of(formats: dict[str, str], said: str, tmp_path: Path) -> None:
    seen, _ = evidence(conv_net(), tmp_path)
    with pytest.raises(UsageError, match=said):
        quantize(seen.prepared, seen.prepared, static(formats=formats), tmp_path / "new" / "m.onnx", evidence=seen)
    assert not (tmp_path / "new").exists()


def test_what_fails_half_way_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, _ = evidence(conv_net(), tmp_path)
    out = tmp_path / "new"

    def torn(evidence: Evidence, path: Path, recipe: Recipe, target: Profile) -> None:  # noqa: ARG001
        path.write_bytes(b"half of a model")
        path.with_name(f"{path.name}.data").write_bytes(b"half of its weights")
        raise ValueError("out of grids")

    monkeypatch.setattr(room, "write_static", torn)
    with pytest.raises(ModelError, match=r"int8-static cannot be made: ValueError: out of grids"):
        quantize(seen.prepared, seen.prepared, static(), out / "m.onnx", evidence=seen)
    assert list(out.iterdir()) == []
    monkeypatch.undo()
    (out / "m.onnx").write_bytes(b"what was there")
    with pytest.raises(ModelError):
        quantize(seen.prepared, seen.prepared, replace(static(), ranges=None), out / "m.onnx", evidence=seen)
    assert (out / "m.onnx").read_bytes() == b"what was there"


def test_weights_in_a_file_of_their_own_move_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = conv_net()
    seen, _ = evidence(case, tmp_path)
    quantize(seen.prepared, seen.prepared, static("equalize", "fit"), tmp_path / "one.onnx", evidence=seen)
    monkeypatch.setattr(ir_files, "LARGEST_FILE", 1000)
    quantize(seen.prepared, seen.prepared, static("equalize", "fit"), tmp_path / "new" / "m.onnx", evidence=seen)
    assert sorted(each.name for each in (tmp_path / "new").iterdir()) == ["m.onnx", "m.onnx.data"]
    feed = feeds(case, 1)[0]
    found, expected = (run(onnx.load(each), feed)["y"] for each in (tmp_path / "new" / "m.onnx", tmp_path / "one.onnx"))
    np.testing.assert_array_equal(found, expected)


def test_the_prepared_model_stays_as_it_is(tmp_path: Path) -> None:
    seen, _ = evidence(conv_net(), tmp_path)
    before = seen.prepared.read_bytes()
    quantize(seen.prepared, seen.prepared, static("equalize", "smooth", "fit"), tmp_path / "m.onnx", evidence=seen)
    assert seen.prepared.read_bytes() == before
    assert error_of(tmp_path / "m.onnx", conv_net()) < 0.05
