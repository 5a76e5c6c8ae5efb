"""Models for the tests of capturing, transforms and static recipes: what they need is that rounding hurts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from graph_cases import Case, node, relative_error, run, samples, weights
from lowbit.compress.evidence import Evidence
from lowbit.recipe import QuantSpec, Recipe
from lowbit.types import Array, Batch, Feeds

INT8 = QuantSpec("int8", "per-channel", symmetric=True)
UINT8 = QuantSpec("uint8")


def spread(channels: int) -> Array:
    """Sizes of channels that lie far apart: a factor of 300 between the least and the most."""
    return np.geomspace(0.01, 3.0, channels).astype(np.float32)


def conv_net(*, between: str = "Relu", channels: int = 16, uneven: bool = True) -> Case:
    """Conv, `between`, Conv, GlobalAveragePool, Flatten, Gemm; channels of the first convolution are wildly different."""
    sizes = spread(channels) if uneven else np.ones(channels, np.float32)
    constants = {
        "w1": weights(channels, 3, 3, 3, seed=1) * sizes.reshape(-1, 1, 1, 1),
        "b1": weights(channels, seed=2) * sizes,
        "w2": weights(12, channels, 3, 3, seed=3) / sizes.reshape(1, -1, 1, 1),
        "b2": weights(12, seed=4),
        "w3": weights(5, 12, seed=5),
        "b3": weights(5, seed=6),
        "zero": np.float32(0),
        "six": np.float32(6),
    }
    followers = {
        "": [],
        "Relu": [node("Relu", "c1", "r1")],
        "LeakyRelu": [node("LeakyRelu", "c1", "r1", alpha=0.1)],
        "Clip": [node("Clip", "c1 zero six", "r1")],
        "Sigmoid": [node("Sigmoid", "c1", "r1")],
        "Tanh": [node("Tanh", "c1", "r1")],
    }[between]
    nodes = [
        node("Conv", "x w1 b1", "c1", "conv1", pads=[1, 1, 1, 1]),
        *followers,
        node("Conv", f"{'r1' if followers else 'c1'} w2 b2", "c2", "conv2", pads=[1, 1, 1, 1]),
        node("Relu", "c2", "r2"),
        node("GlobalAveragePool", "r2", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f w3 b3", "y", "gemm", transB=1),
    ]
    used = {name for each in nodes for name in each.input}
    return Case(nodes, {"x": ["N", 3, 8, 8]}, ["y"], {name: value for name, value in constants.items() if name in used})


def outlier_net(width: int = 32) -> Case:
    """Layer normalisation with one strong channel, MatMul and bias, Tanh, MatMul: x float32 [N, 4, width]."""
    gain = np.ones(width, np.float32)
    gain[3] = 60.0
    first = weights(width, 24, seed=1)
    first[3] *= 0.05
    constants = {"gain": gain, "shift": weights(width, seed=2), "w1": first, "b1": weights(24, seed=3), "w2": weights(24, 6, seed=4)}
    nodes = [
        node("LayerNormalization", "x gain shift", "n"),
        node("MatMul", "n w1", "m", "first"),
        node("Add", "m b1", "a"),
        node("Tanh", "a", "t"),
        node("MatMul", "t w2", "y", "second"),
    ]
    return Case(nodes, {"x": ["N", 4, width]}, ["y"], constants)


@dataclass
class Counted:
    """Calibration samples that count how often they are asked for."""

    feeds: list[Feeds]
    calls: int = 0

    def __call__(self) -> Iterable[Batch]:
        self.calls += 1
        return [Batch(np.arange(len(next(iter(each.values())))), each, None) for each in self.feeds]


def feeds(case: Case, count: int = 4, batch: int = 8, seed: int = 10) -> list[Feeds]:
    shape = [batch if dim == "N" else dim for dim in case.inputs["x"]]
    return [{"x": samples(shape, seed + i)} for i in range(count)]


def evidence(case: Case, folder: Path, count: int = 4) -> tuple[Evidence, Counted]:
    batches = Counted(feeds(case, count))
    return Evidence(case.save(folder / "prepared.onnx"), batches), batches


def static(*transforms: str, **more: object) -> Recipe:
    return Recipe("int8-static", "static", INT8, UINT8, "minmax", transforms=transforms, **more)  # type: ignore[arg-type]


def error_of(artifact: Path, case: Case, runner: Callable[..., dict[str, Array]] = run) -> float:
    """Relative error of the outputs on samples that calibration has not seen."""
    unseen = feeds(case, 1, batch=64, seed=99)[0]
    name = case.outputs[0]
    return relative_error(runner(onnx.load(artifact), unseen)[name], run(case.proto(), unseen)[name])
