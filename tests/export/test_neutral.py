"""From a bundle's candidate to the neutral model: pairs become a table, integers come back exactly, and what has no table is refused."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
from target_case import CLASSES, target_bundle

from graph_cases import INT8, STATIC, UINT8, Case, everything, node, quantized, ranges_of, run, samples, weights
from lowbit.bundle.bundle import Bundle
from lowbit.compress.calibrate import CalibrationStats
from lowbit.errors import ModelError, UsageError
from lowbit.export.neutral import labels_for, read_neutral
from lowbit.export.neutral_candidate import Source, ranked
from lowbit.export.neutral_pairs import Stripped, strip_pairs
from lowbit.export.neutral_ranges import ranges_of as ranges_for
from lowbit.export.neutral_ranges import true_statistics
from lowbit.graph.place import Format
from lowbit.quant.affine import Affine, from_range, quantize, span
from lowbit.quant.observers import Observer
from lowbit.recipe import QuantSpec, Recipe
from lowbit.types import Array

CNN = Case(
    [
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2 b2", "c2"),
        node("Add", "c2 r1", "s"),
        node("GlobalAveragePool", "s", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f w3 b3", "y", transB=1),
    ],
    {"x": ["N", 3, 6, 6]},
    ["y"],
    {"w1": weights(4, 3, 3, 3), "b1": weights(4), "w2": weights(4, 4, 1, 1, seed=1), "b2": weights(4, seed=2)}
    | {"w3": weights(5, 4, seed=3), "b3": weights(5, seed=4)},
)


def stored(case: Case, form: Format = STATIC) -> tuple[onnx_ir.Model, Mapping[str, Affine], Mapping[str, Array]]:
    """The quantized model, its table, and the integers in it by name."""
    model = case.proto()
    written = quantized(model, ranges_of(everything(model, {"x": samples((8, 3, 6, 6))})), form)
    read = onnx_ir.from_proto(written.model)
    values = {name: value.const_value for name, value in read.graph.initializers.items()}
    integers = {name.removesuffix("_quantized"): each.numpy() for name, each in values.items() if name.endswith("_quantized") and each}
    return read, written.table, integers


def test_weights_and_biases_come_back_as_the_very_same_integers() -> None:
    model, table, integers = stored(CNN)
    found = strip_pairs(model)
    assert set(found.weights) == {"w1", "b1", "w2", "b2", "w3", "b3"} == set(integers)
    for name, grid in found.weights.items():
        values = model.graph.initializers[name].const_value
        assert values is not None
        again = np.rint(values.numpy() / grid.scale) if grid.dtype == "int32" else quantize(values.numpy(), grid)
        np.testing.assert_array_equal(again, integers[name])
        np.testing.assert_array_equal(grid.scale, table[name].scale)
        assert (grid.dtype, grid.axis) == ("int32" if name.startswith("b") else "int8", 0)


def test_activations_have_the_grids_of_the_table_and_no_pair_is_left() -> None:
    model, table, _ = stored(CNN)
    found = strip_pairs(model)
    assert {n.op_type for n in model.graph} == {"Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
    assert {"x", "r1"} <= set(found.activations)
    for name, grid in found.activations.items():
        assert (grid.dtype, float(grid.scale), int(grid.zero_point)) == ("uint8", float(table[name].scale), int(table[name].zero_point))
    assert found.ends == {"x", "y"}


def test_the_stripped_model_computes_with_the_rounded_weights() -> None:
    model, _, integers = stored(CNN)
    found = strip_pairs(model)
    x = samples((4, 3, 6, 6), seed=9)
    shapes = {name: (-1, *[1] * (values.ndim - 1)) for name, values in integers.items()}
    real = {name: values * found.weights[name].scale.reshape(shapes[name]).astype(np.float64) for name, values in integers.items()}
    rounded = {name: real[name].astype(np.float32) for name in CNN.constants}
    expected = run(replace(CNN, constants=rounded).proto(), {"x": x})["y"]
    np.testing.assert_allclose(run(onnx_ir.to_proto(model), {"x": x})["y"], expected, rtol=1e-5, atol=1e-6)


def test_a_rounded_output_keeps_its_name() -> None:
    case = replace(CNN, nodes=CNN.nodes[:2], outputs=["r1"], constants={name: CNN.constants[name] for name in ("w1", "b1")})
    model, table, _ = stored(case)
    found = strip_pairs(model)
    assert [value.name for value in model.graph.outputs] == ["r1"]
    assert float(found.activations["r1"].scale) == float(table["r1"].scale)


def test_weights_of_four_bits_in_blocks_and_per_tensor_keep_their_grids() -> None:
    for spec, block in ((QuantSpec("int4", "per-group", symmetric=True, block=2), 2), (QuantSpec("int8", symmetric=True), None)):
        model, _, integers = stored(CNN, Format(spec, UINT8))
        found = strip_pairs(model)
        assert found.weights["w2"].block == block
        assert (found.weights["w2"].axis is None) == (block is None)
        values = model.graph.initializers["w2"].const_value
        assert values is not None
        np.testing.assert_array_equal(quantize(values.numpy(), found.weights["w2"]), integers["w2"].astype(np.int8))


def test_layers_that_stay_in_floating_point_have_no_grid() -> None:
    model = CNN.proto()
    ranges = ranges_of(everything(model, {"x": samples((8, 3, 6, 6))}))
    written = quantized(model, ranges, lambda group: None if group.kind == "Gemm" else Format(INT8, UINT8))
    read = onnx_ir.from_proto(written.model)
    found = strip_pairs(read)
    assert "w3" not in found.weights
    np.testing.assert_array_equal(read.graph.initializers["w3"].const_value.numpy(), CNN.constants["w3"])  # type: ignore[union-attr]


def test_of_two_widths_the_narrow_one_is_kept() -> None:
    case = Case([node("Conv", "x w a", "c1"), node("Conv", "x v a", "c2"), node("Add", "c1 c2", "y")], {"x": ["N", 3, 6, 6]}, ["y"])
    case = replace(case, constants={"w": weights(2, 3, 1, 1), "v": weights(2, 3, 1, 1, seed=1), "a": weights(2)})
    model = case.proto()
    wide = Format(INT8, QuantSpec("uint16"))
    written = quantized(
        model,
        ranges_of(everything(model, {"x": samples((4, 3, 6, 6))})),
        lambda group: wide if group.output == "c1" else STATIC,
    )
    found = strip_pairs(onnx_ir.from_proto(written.model))
    assert found.activations["x"].dtype == "uint8"


def test_scales_that_are_computed_are_refused() -> None:
    case = Case(
        [node("DynamicQuantizeLinear", "x", "q s z"), node("DequantizeLinear", "q s z", "y")],
        {"x": ["N", 3]},
        ["y"],
    )
    with pytest.raises(ModelError, match=r"reads 'q'|stands alone"):
        strip_pairs(onnx_ir.from_proto(case.proto()))


# Ranges: grids first, then calibration as far as it still speaks of the same values.


def observed(values: Mapping[str, Array], aliases: Mapping[str, str]) -> CalibrationStats:
    own = {name: Observer().update(array).finalize() for name, array in values.items()}
    return CalibrationStats(own | {name: own[of] for name, of in aliases.items()}, 8, dict(aliases))


def source(stats: CalibrationStats, **recipe: object) -> Source:
    made = {"name": "r", "method": "static", "weights": INT8, "activations": UINT8, "ranges": "minmax", **recipe}
    return Source("r@onnxruntime", Path("model.onnx"), Recipe(**made), stats, "hint")  # type: ignore[arg-type]


def test_a_grid_wins_over_what_was_seen_for_its_aliases_too() -> None:
    rng = np.random.default_rng(0)
    stats = observed({"r": rng.uniform(0, 8, 1000), "free": rng.normal(0, 1, 1000)}, {"c": "r"})
    stripped = Stripped(activations={"r": from_range(0, 4, "uint8", symmetric=False)}, ends=frozenset())
    made = source(stats)
    found = ranges_for(made, stripped, true_statistics(made, stripped))
    assert found["r"] == found["c"] == pytest.approx((0, 4), abs=1e-6)
    assert found["free"] == (stats.tensors["free"].low, stats.tensors["free"].high)


def test_outputs_are_never_clipped() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(0, 1, 20000), [40.0]])
    made = source(observed({"y": values, "inner": values}, {}), ranges="mse")
    stripped = Stripped(ends=frozenset({"y"}))
    found = ranges_for(made, stripped, true_statistics(made, stripped))
    assert found["y"][1] == pytest.approx(40)
    assert found["inner"][1] < 39


def test_tensors_that_equalizing_moved_are_known_by_their_grids() -> None:
    rng = np.random.default_rng(1)
    stats = observed({"moved": rng.uniform(-8, 8, 4000), "kept": rng.uniform(-2, 2, 4000), "leaking": rng.uniform(-8, 8, 4000)}, {})
    kept = from_range(stats.tensors["kept"].low, stats.tensors["kept"].high, "uint8", symmetric=False)
    moved = from_range(-0.1, 1, "uint8", symmetric=False)
    stripped = Stripped(activations={"moved": moved, "kept": kept}, leaks={"leaking": ("moved", 0.1)})
    made = source(stats, transforms=("equalize",))
    found = true_statistics(made, stripped)
    assert (found["moved"].low, found["moved"].high) == pytest.approx(span(moved))
    assert found["kept"] is stats.tensors["kept"]
    low, high = span(moved)
    assert (found["leaking"].low, found["leaking"].high) == pytest.approx((low / 0.1, high))
    assert true_statistics(source(stats), stripped)["moved"] is stats.tensors["moved"]


def test_of_pruned_models_nothing_is_known_but_their_grids() -> None:
    stats = observed({"a": np.arange(9.0), "b": np.arange(9.0)}, {})
    made = source(stats, method="prune")
    found = true_statistics(made, Stripped(activations={"a": from_range(0, 3, "uint8", symmetric=False)}))
    assert set(found) == {"a"}
    assert found["a"].high == pytest.approx(3)


# Whole bundles.


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return target_bundle(tmp_path_factory.mktemp("neutral"))


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(bundle.folder, tmp_path / "bundle")
    return Bundle(tmp_path / "bundle", bundle.manifest)


STATIC_ID = "int8-static-minmax@onnxruntime"


def test_a_bundle_is_read(bundle: Bundle) -> None:
    found = read_neutral(bundle)
    assert found.candidate == STATIC_ID
    assert (found.name, [t.name for t in found.inputs], [t.name for t in found.outputs]) == ("net", ["image"], ["logits"])
    assert set(found.activations) <= set(found.ranges)
    assert set(found.stats) <= set(found.ranges)
    assert "logits" in found.ranges
    assert all(node.op_type not in ("QuantizeLinear", "DequantizeLinear") for node in found.model.graph)
    assert ranked(bundle)[0].id == STATIC_ID


def test_the_data_s_names_of_classes_go_with_the_model(bundle: Bundle) -> None:
    assert bundle.manifest.data.classes == CLASSES
    found = read_neutral(bundle)
    assert found.labels == CLASSES
    assert labels_for(CLASSES[:9], found.outputs) == (), "nine names for ten outputs say nothing"


def test_what_is_not_static_is_refused_and_others_are_named(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="only static INT8 has a table") as raised:
        read_neutral(bundle, bundle.manifest.baseline.id)
    assert STATIC_ID in str(raised.value.hint)
    with pytest.raises(UsageError, match="Unknown candidate"):
        read_neutral(bundle, "int9")


def test_a_bundle_without_its_table_or_statistics_is_refused(copied: Bundle) -> None:
    stats = copied.folder / "calibration" / "stats.npz"
    stats.rename(stats.with_suffix(".away"))
    with pytest.raises(UsageError, match=r"no calibration/stats\.npz.*older"):
        read_neutral(copied)
    (copied.folder / "candidates" / STATIC_ID / "parameters.json").unlink()
    with pytest.raises(UsageError, match=r"parameters\.json.*older"):
        read_neutral(copied, STATIC_ID)
    with pytest.raises(UsageError, match="No candidate of this bundle is static INT8"):
        read_neutral(copied)


def test_a_pruned_artifact_is_refused(copied: Bundle) -> None:
    other = "fp32-other@onnxruntime"
    decision = copied.manifest.decision.model_copy(update={"chosen": other})
    pruned = Bundle(copied.folder, copied.manifest.model_copy(update={"decision": decision}))
    shutil.rmtree(copied.folder / "candidates" / STATIC_ID)
    with pytest.raises(UsageError, match="No candidate"):
        read_neutral(pruned)


def test_a_graph_that_calibration_has_not_seen_is_refused(copied: Bundle) -> None:
    artifact = copied.artifact(STATIC_ID)
    content = artifact.read_bytes()
    artifact.write_bytes(content.replace(b"r1", b"q1"))
    with pytest.raises(ModelError, match=r"calibration has not seen \(q1\)"):
        read_neutral(copied)


def test_a_language_model_is_refused(bundle: Bundle) -> None:
    language = Bundle(bundle.folder, bundle.manifest.model_copy(update={"language": object()}))
    with pytest.raises(UsageError, match="language model"):
        read_neutral(language)
