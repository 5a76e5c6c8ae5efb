"""Every rule of TensorRT's is broken once, and found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from pair_case import bypass, changed, named, neutral_of, quantizer, residual, store, stored

from lowbit.export.base import Finding
from lowbit.export.tensorrt import rules, writer


def written(folder: Path, sums: str) -> Path:
    writer.write(neutral_of(residual()), folder / "case.onnx", method="mse", sums=sums)
    return folder / "case.onnx"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that keeps all rules; its sum reads the shortcut alone from a pair."""
    return written(tmp_path_factory.mktemp("tensorrt"), writer.SHORTCUT)


def broken(whole: Path, change: Callable[[onnx.ModelProto], None]) -> list[Finding]:
    return rules.check(changed(whole, change))


def rules_of(found: list[Finding], severity: str = "error") -> set[str]:
    return {finding.rule for finding in found if finding.severity == severity}


def test_what_is_written_keeps_all_rules(whole: Path) -> None:
    assert rules.check(whole) == []


def test_both_operands_of_a_sum_from_pairs_are_noted(tmp_path: Path) -> None:
    found = rules.check(written(tmp_path, writer.BOTH))
    assert [(finding.rule, finding.severity) for finding in found] == [("pairs on residual sums", "note")]
    assert "sums=shortcut" in found[0].text


def test_unsigned_bytes_are_found(whole: Path) -> None:
    def unsigned(model: onnx.ModelProto) -> None:
        store(model, quantizer(model, "x").input[2], np.array(0, np.uint8))
        del model.graph.value_info[:]

    found = broken(whole, unsigned)
    assert rules_of(found) == {"int8 alone"}
    assert "uint8" in found[0].text


def test_zero_points_are_found(whole: Path) -> None:
    found = broken(whole, lambda model: store(model, quantizer(model, "x").input[2], np.array(-5, np.int8)))
    assert rules_of(found) == {"zero points are 0"}
    assert "-5" in found[0].text


def test_a_scale_that_is_not_above_zero_is_found(whole: Path) -> None:
    assert rules_of(broken(whole, lambda model: store(model, quantizer(model, "x").input[1], np.float32(0)))) == {"scales are constants"}


def test_scales_a_channel_of_activations_are_found(whole: Path) -> None:
    def channels(model: onnx.ModelProto) -> None:
        pair = quantizer(model, "x")
        store(model, pair.input[1], np.full(4, 0.1, np.float32))
        store(model, pair.input[2], np.zeros(4, np.int8))

    assert rules_of(broken(whole, channels)) == {"scales a channel are of weights"}


def test_a_bias_behind_a_pair_is_found(whole: Path) -> None:
    def integers(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(6, np.int8), "bias"))
        pair = quantizer(model, "x")
        dequantize = helper.make_node("DequantizeLinear", ["bias", pair.input[1], pair.input[2]], ["real"], name="bias_pair")
        model.graph.node.insert(0, dequantize)
        named(model, "Conv")[0].input[2] = "real"

    found = broken(whole, integers)
    assert rules_of(found) == {"biases are floating point"}
    assert "Conv:c1" in found[0].text


def test_a_product_with_one_operand_from_a_pair_is_found(whole: Path) -> None:
    def plain(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.ones((6, 6, 3, 3), np.float32), "plain"))
        named(model, "Conv")[1].input[1] = "plain"

    found = broken(whole, plain)
    assert rules_of(found) == {"both operands from pairs"}
    assert "weight of Conv 'Conv:c2'" in found[0].text


def test_a_shortcut_in_floating_point_is_warned_of(whole: Path) -> None:
    """The convolution's pair stays for the convolution that reads the same tensor."""

    def unrounded(model: onnx.ModelProto) -> None:
        add = named(model, "Add")[0]
        add.input[list(add.input).index("c2") - 1] = "r1"

    found = broken(whole, unrounded)
    assert rules_of(found, "warning") == {"pairs on residual sums"}


def test_an_operator_that_the_parser_lacks_is_found(whole: Path) -> None:
    def unique(model: onnx.ModelProto) -> None:
        named(model, "GlobalAveragePool")[0].op_type = "Det"

    found = broken(whole, unique)
    assert rules_of(found) == {"operators that TensorRT has"}
    assert "Det 'GlobalAveragePool:p'" in found[0].text


def test_positions_of_a_pooling_are_found(whole: Path) -> None:
    def positions(model: onnx.ModelProto) -> None:
        pool = named(model, "GlobalAveragePool")[0]
        pool.op_type = "MaxPool"
        pool.attribute.append(helper.make_attribute("kernel_shape", [8, 8]))
        pool.output.append("where")
        model.graph.output.append(helper.make_tensor_value_info("where", onnx.TensorProto.INT64, None))

    found = broken(whole, positions)
    assert "positions" in " ".join(finding.text for finding in found if finding.severity == "error")


def test_a_newer_operator_set_is_warned_of(whole: Path) -> None:
    def newer(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 22

    assert rules_of(broken(whole, newer), "warning") == {"operator set"}


def test_a_missing_pair_in_front_of_a_product_is_found(whole: Path) -> None:
    assert "both operands from pairs" in rules_of(broken(whole, lambda model: bypass(model, "x")))


def test_scales_lie_on_the_output_channels(whole: Path) -> None:
    model = onnx.load(whole)
    made = {output: each for each in model.graph.node for output in each.output}
    for product in (*named(model, "Conv"), *named(model, "Gemm")):
        pair = made[product.input[1]]
        assert stored(model, pair.input[1]).shape == (stored(model, pair.input[0]).shape[0],)
