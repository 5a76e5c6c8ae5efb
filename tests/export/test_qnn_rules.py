"""Every rule of QNN's is broken once, and found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from pair_case import bypass, changed, named, neutral_of, quantizer, residual, store, stored

from graph_cases import node
from lowbit.export.base import Finding
from lowbit.export.qnn import rules, writer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that keeps all rules."""
    path = tmp_path_factory.mktemp("qnn") / "case.onnx"
    writer.write(neutral_of(residual()), path, 8)
    return path


def broken(whole: Path, change: Callable[[onnx.ModelProto], None]) -> list[Finding]:
    return rules.check(changed(whole, change))


def rules_of(found: list[Finding], severity: str = "error") -> set[str]:
    return {finding.rule for finding in found if finding.severity == severity}


@pytest.mark.parametrize("bits", [8, 16])
def test_what_is_written_keeps_all_rules(bits: int, tmp_path: Path) -> None:
    writer.write(neutral_of(residual(node("Sigmoid", "r", "g"), last="g")), tmp_path / "case.onnx", bits)
    assert rules.check(tmp_path / "case.onnx") == []


def test_signed_activations_with_a_zero_point_are_refused(whole: Path) -> None:
    def signed(model: onnx.ModelProto) -> None:
        name = quantizer(model, "x").input[2]
        assert stored(model, name) == 127 or stored(model, name) == 128
        store(model, name, np.array(stored(model, name).astype(np.int32) - 100, np.int8))
        del model.graph.value_info[:]

    found = broken(whole, signed)
    assert rules_of(found) == {"activations are unsigned"}
    assert "'x'" in found[0].text
    assert "int8" in found[0].text


def test_signed_activations_without_one_are_warned_of(whole: Path) -> None:
    def symmetric(model: onnx.ModelProto) -> None:
        store(model, quantizer(model, "x").input[2], np.array(0, np.int8))
        del model.graph.value_info[:]

    found = broken(whole, symmetric)
    assert rules_of(found, "warning") == {"activations are unsigned"}
    assert rules_of(found) == set()


def test_an_operator_without_a_pair_is_found_with_its_part(whole: Path) -> None:
    found = broken(whole, lambda model: bypass(model, "p"))
    assert rules_of(found) == {"every operator between pairs"}
    assert "GlobalAveragePool" in found[0].text
    assert "Flatten" in found[0].text


def test_an_unrounded_output_is_found(whole: Path) -> None:
    def unrounded(model: onnx.ModelProto) -> None:
        gemm = named(model, "Gemm")[0]
        bypass(model, gemm.output[0])
        gemm.output[0] = "y"

    found = broken(whole, unrounded)
    assert rules_of(found) == {"every operator between pairs"}
    assert "Gemm" in found[0].text


def test_a_weight_in_floating_point_is_found(whole: Path) -> None:
    def plain(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.ones((6, 6, 3, 3), np.float32), "plain"))
        named(model, "Conv")[1].input[1] = "plain"

    assert rules_of(broken(whole, plain)) == {"every operator between pairs"}


def test_dynamic_shapes_are_found(whole: Path) -> None:
    def dynamic(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"

    found = broken(whole, dynamic)
    assert rules_of(found) == {"static shapes"}
    assert "'x'" in found[0].text


def test_an_operator_that_qnn_lacks_is_found_with_its_part(whole: Path) -> None:
    def erf(model: onnx.ModelProto) -> None:
        named(model, "GlobalAveragePool")[0].op_type = "Erf"
        named(model, "Flatten")[0].domain = "org.example"

    found = broken(whole, erf)
    assert rules_of(found) == {"operators that QNN has"}
    assert len(found) == 2, "the pair between them keeps them apart"
    assert "Erf 'GlobalAveragePool:p'" in found[0].text


def test_scales_a_channel_of_activations_are_found(whole: Path) -> None:
    def channels(model: onnx.ModelProto) -> None:
        pair = quantizer(model, "x")
        store(model, pair.input[1], np.full(4, 0.1, np.float32))
        store(model, pair.input[2], np.zeros(4, np.uint8))

    assert "scales a channel are of weights" in rules_of(broken(whole, channels))


def test_scales_on_the_wrong_axis_of_a_weight_are_found(whole: Path) -> None:
    def axis(model: onnx.ModelProto) -> None:
        weight = named(model, "Conv")[1].input[1]
        maker = next(each for each in model.graph.node if weight in each.output)
        next(each for each in maker.attribute if each.name == "axis").i = 1

    found = broken(whole, axis)
    assert rules_of(found) == {"scales a channel are of weights"}
    assert "axis 1" in found[0].text


def test_zero_points_of_a_channel_are_found(whole: Path) -> None:
    def zeros(model: onnx.ModelProto) -> None:
        weight = named(model, "Conv")[1].input[1]
        maker = next(each for each in model.graph.node if weight in each.output)
        store(model, maker.input[2], np.array([0, 0, 3, 0, 0, 0], np.int8))

    assert rules_of(broken(whole, zeros)) == {"scales a channel are of weights"}


def test_a_bias_in_floating_point_is_found(whole: Path) -> None:
    def plain(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.ones(6, np.float32), "plain"))
        named(model, "Conv")[0].input[2] = "plain"

    assert rules_of(broken(whole, plain)) == {"biases are int32"}


def test_a_bias_on_another_grid_is_found(whole: Path) -> None:
    def other(model: onnx.ModelProto) -> None:
        bias = named(model, "Conv")[0].input[2]
        maker = next(each for each in model.graph.node if bias in each.output)
        store(model, maker.input[1], 3 * stored(model, maker.input[1]))

    found = broken(whole, other)
    assert rules_of(found) == {"biases are int32"}
    assert "another grid" in found[0].text


def test_a_computed_scale_is_found(whole: Path) -> None:
    def computed(model: onnx.ModelProto) -> None:
        pair = quantizer(model, "x")
        model.graph.initializer.append(numpy_helper.from_array(np.float32(2), "two"))
        model.graph.node.insert(0, helper.make_node("Mul", [pair.input[1], "two"], ["computed"], name="computed"))
        pair.input[1] = "computed"

    assert "scales are constants" in rules_of(broken(whole, computed))


def test_another_grid_than_qnns_own_is_warned_of_in_16_bit(tmp_path: Path) -> None:
    path = tmp_path / "case.onnx"
    written = writer.write(neutral_of(residual(node("Sigmoid", "r", "g"), last="g")), path, 16)
    assert written.same == 0

    def other(model: onnx.ModelProto) -> None:
        pair = quantizer(model, "g")
        assert stored(model, pair.input[1]) == np.float32(1 / 65536)
        store(model, pair.input[1], np.float32(1 / 60000))

    found = rules.check(changed(path, other))
    assert rules_of(found, "warning") == {"grids that are given"}
