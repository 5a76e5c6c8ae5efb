"""Explanations: facts against what is known of an array, reasons against the facts, and nothing lost on the way to JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lowbit.compress.calibrate import CalibrationStats
from lowbit.compress.explain import Layer, Layers, Seen, explain, leave_in_float, noise_source, range_use, spread, why
from lowbit.compress.sensitivity import Sensitivity
from lowbit.errors import DataError
from lowbit.graph.groups import Group
from lowbit.quant.observers import Histogram, Observer

PLAIN = Layer("conv", "Conv", "x", None, damage=1.0, share=0.5, rank=1, sqnr=25.0)


def test_range_use_of_known_values() -> None:
    even = np.linspace(0, 1, 100_000)
    histogram = Histogram.of(even)
    assert range_use(histogram, 0, 1) == pytest.approx(0.999, abs=0.002)
    assert range_use(histogram, 0, 4) == pytest.approx(0.25, abs=0.002)
    assert range_use(histogram, 0.25, 0.75) == 1  # values beyond a clipped range do not make it better used than fully
    assert range_use(Histogram.of(np.append(even, 10.0)), 0, 10) == pytest.approx(0.1, abs=0.01)
    assert range_use(Histogram.of(np.zeros(5)), 0, 0) == 0


def test_spread_passes_over_dead_channels() -> None:
    assert spread(np.array([1.0, 2.0, 0.0, 80.0])) == 40
    assert spread(np.array([0.0, 3.0])) is None


@pytest.mark.parametrize(
    ("facts", "shared", "said"),
    [
        ({"tail": 0.83}, False, "0.1 % of its input's values take 83 % of the range"),
        ({"input_spread": 200.0}, False, "channels of its input differ 200-fold"),
        ({"weight_spread": 200.0}, True, "channels of its weights differ 200-fold and share one scale"),
        ({"weight_spread": 200.0}, False, "no outlier stands out: all of its values are a little too coarse"),
        ({"sqnr_weights": 40.0, "sqnr_activations": 20.0}, False, "its activations make the noise, not its weights"),
        ({"sqnr_weights": 20.0, "sqnr_activations": 40.0}, False, "its weights make the noise, not its activations"),
        # Outliers of the input are no reason where the weights make the noise.
        ({"tail": 0.83, "sqnr_weights": 20.0, "sqnr_activations": 40.0}, False, "its weights make the noise, not its activations"),
        (
            {"tail": 0.6, "input_spread": 9.0},
            False,
            "0.1 % of its input's values take 60 % of the range; channels of its input differ 9-fold",
        ),
        ({"sqnr": 45.0}, False, "little noise of its own: the output depends on it"),
        ({"share": 0.005, "tail": 0.83}, False, ""),
    ],
)
def test_why(facts: dict[str, float], shared: bool, said: str) -> None:
    assert why(replace(PLAIN, **facts), shared=shared) == said  # type: ignore[arg-type]


def test_noise_has_one_source_or_none() -> None:
    assert noise_source(PLAIN) is None
    assert noise_source(replace(PLAIN, sqnr_weights=30.0, sqnr_activations=33.0)) is None


def test_the_fewest_layers_that_matter_are_left() -> None:
    layers = [replace(PLAIN, name=str(rank), rank=rank, share=share) for rank, share in ((3, 0.15), (1, 0.6), (2, 0.25), (4, 0.0))]
    assert [layer.name for layer in leave_in_float(layers)] == ["1", "2"]
    assert [layer.name for layer in leave_in_float(layers, share=1.0)] == ["1", "2", "3"]
    assert leave_in_float([replace(PLAIN, share=0.0)]) == []


def explained() -> Layers:
    """Two products: the first writes what the second reads, which has an outlier."""
    groups = [
        Group("a", "Conv", ("a", "relu"), {0: "x"}, 1, None, "y"),
        Group("add", "Add", ("add",), {0: "y", 1: "y"}, None, None, "z"),
        Group("b", "MatMul", ("b",), {0: "y"}, 1, None, "out"),
    ]
    values = {"x": np.linspace(-1, 1, 4000), "y": np.append(np.linspace(0, 1, 3999), 50.0)}
    stats = CalibrationStats({name: Observer().update(array[None]).finalize() for name, array in values.items()}, 1, {})
    found = Sensitivity({("a", "w8a8"): 1.0, ("b", "w8a8"): 3.0}, {("a", "w8a8"): float("inf"), ("b", "w8a8"): 20.0}, 2.5, 1, "classes")
    seen = Seen({"a": np.array([1.0, 1.0, 9.0])}, {"y": np.array([1.0, 1.0, 50.0])}, {("b", "w8"): 40.0, ("b", "a8"): 20.0})
    return explain(found, groups, stats, format_name="w8a8", ranges="minmax", seen=seen)


def test_everything_known_comes_together() -> None:
    found = explained()
    assert [layer.name for layer in found.layers] == ["a", "b"]  # in the order of the graph, products alone
    first, second = found.layers
    assert [layer.name for layer in found.worst(5)] == ["b", "a"]
    assert (second.share, second.rank, second.maker, second.tensor) == (0.75, 1, "a", "y")
    assert (first.sqnr, first.maker, first.weight_spread) == (None, None, 9.0)
    assert second.use == pytest.approx(0.02, abs=0.005)
    assert second.tail == pytest.approx(0.98, abs=0.005)
    assert first.kurtosis == pytest.approx(-1.2, abs=0.01)
    assert second.kurtosis is not None
    assert second.kurtosis > 1000
    assert why(second) == "0.1 % of its input's values take 98 % of the range; channels of its input differ 50-fold"


def test_json_there_and_back() -> None:
    text = json.dumps(explained().to_json(), allow_nan=False)
    assert Layers.from_json(json.loads(text)) == explained()
    assert json.loads(text)["layers"][1]["why"].startswith("0.1 %")


@pytest.mark.parametrize("raw", [{}, {"schema": 2, "layers": []}, {"schema": 1, "layers": [{"name": "a"}]}, []])
def test_other_json_is_refused(raw: object) -> None:
    with pytest.raises(DataError):
        Layers.from_json(raw)  # type: ignore[arg-type]
