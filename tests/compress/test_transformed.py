"""What products suffer after a recipe's transforms: measured on the scaled model, less what fitting took off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from graph_cases import relative_error, run
from lowbit.compress.fit import Way
from lowbit.compress.sensitivity import Sensitivity, sensitivity
from lowbit.compress.static import write_scaled, write_static
from lowbit.compress.transformed import after_fitting, transformed_sensitivity
from lowbit.graph import ir_files
from lowbit.graph.place import Format
from lowbit.graph.profiles import OPENVINO_CPU
from lowbit.graph.qdq import values_of
from lowbit.recipe import QuantSpec, Recipe
from transform_cases import UINT8, conv_net, evidence, feeds

SHARED = QuantSpec("int8", "per-tensor", symmetric=True)


def recipe(*transforms: str, **more: object) -> Recipe:
    return Recipe("r", "static", SHARED, UINT8, "minmax", transforms=transforms, **more)  # type: ignore[arg-type]


def measured(tmp_path: Path, *transforms: str, **more: object) -> tuple[Sensitivity, int]:
    """Over all samples, and how often they were asked for."""
    case = conv_net(between="Relu")
    known, batches = evidence(case, tmp_path)
    found, stats = transformed_sensitivity(known, recipe(*transforms, **more), OPENVINO_CPU, "w8a8", feeds(case), kind="values", threads=1)
    assert set(stats.tensors) == set(known.stats.tensors)
    return found, batches.calls


def test_without_transforms_it_is_the_sensitivity_of_the_model(tmp_path: Path) -> None:
    case = conv_net(between="Relu")
    known, _ = evidence(case, tmp_path)
    found, _ = measured(tmp_path)
    plain = sensitivity(
        known.prepared, OPENVINO_CPU, {"w8a8": Format(SHARED, UINT8)}, known.stats, feeds(case), kind="values", ranges="minmax", threads=1
    )
    assert found.damage == plain.damage
    assert found.passes == plain.passes


def test_what_equalizing_heals_does_not_count(tmp_path: Path) -> None:
    """Channels that lie 300 times apart share one grid: rounding destroys the small ones, which the next product multiplies up."""
    before, after = (measured(tmp_path, *transforms)[0].damage["conv2", "w8a8"] for transforms in ((), ("equalize",)))
    assert after < before / 10


def test_fitting_takes_its_share_off(tmp_path: Path) -> None:
    """Exactly the share of the error that the artifact's own fitting left on rows it had not seen."""
    scaled, _ = measured(tmp_path, "equalize")
    fitted, _ = measured(tmp_path, "equalize", "fit")
    known, _ = evidence(conv_net(between="Relu"), tmp_path)
    ways = write_static(known, tmp_path / "out.onnx", recipe("equalize", "fit"), OPENVINO_CPU).ways
    assert set(ways) == {"conv1", "conv2", "gemm"}
    for (group, form), value in fitted.damage.items():
        assert value == pytest.approx(scaled.damage[group, form] * ways[group].error / ways[group].plain)
    assert sum(fitted.damage.values()) < sum(scaled.damage.values())


def test_formats_of_the_recipe_are_ignored_and_samples_are_run_once_more(tmp_path: Path) -> None:
    """Rows, and the statistics of the scaled model: two passes. Those of the prepared model are the caller's third."""
    found, calls = measured(tmp_path, "equalize", "fit", formats={"conv1": "float"})
    assert {group for group, _ in found.damage} == {"conv1", "conv2", "gemm"}
    assert calls == 3


def test_the_scaled_model_computes_the_same(tmp_path: Path) -> None:
    case = conv_net(between="Relu")
    known, _ = evidence(case, tmp_path)
    out = write_scaled(known, tmp_path / "scaled.onnx", recipe("equalize"), OPENVINO_CPU)
    one = feeds(case, 1)[0]
    assert relative_error(run(onnx.load(out), one)["y"], run(case.proto(), one)["y"]) < 1e-5
    first, second = (values_of(ir_files.read(path))("w1") for path in (known.prepared, out))
    assert not np.allclose(first, second)


def test_what_fitting_says_nothing_about_stays() -> None:
    ways = {"a": Way(True, True, 0.2, 0.8), "b": Way(False, False, 0.0, 0.0)}
    damage = {("a", "w8a8"): 4.0, ("b", "w8a8"): 3.0, ("c", "w8a8"): 2.0}
    assert after_fitting(damage, ways) == {("a", "w8a8"): 1.0, ("b", "w8a8"): 3.0, ("c", "w8a8"): 2.0}
