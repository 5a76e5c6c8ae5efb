"""Random small graphs: what the writer makes of them passes the checker, loads, and is no further from FP32 than rounding explains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import missing
from error_bounds import predicted
from graph_cases import Case, everything, node, quantized, ranges_of, run, samples, weights
from lowbit.graph.place import Format
from lowbit.graph.profiles import PROFILES
from lowbit.recipe import QuantSpec
from lowbit.runtimes import registry
from lowbit.types import Array, Tuning

FORMATS = [
    Format(QuantSpec("int8", "per-channel", symmetric=True), QuantSpec("uint8")),
    Format(QuantSpec("int8", symmetric=True), QuantSpec("uint8", symmetric=True)),
    Format(QuantSpec("uint8", "per-channel"), QuantSpec("int8")),
    Format(QuantSpec("int4", "per-channel", symmetric=True), QuantSpec("uint8")),
    Format(QuantSpec("int4", "per-group", symmetric=True, block=2), QuantSpec("uint8")),
    Format(QuantSpec("int8", "per-channel", symmetric=True), QuantSpec("uint16")),
]
Draw = Callable[[Any], Any]


class Builder:
    """Grows a graph node by node. Tensors are images [2, C, H, W] or rows [2, T, C]."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"x": (2, 4, 6, 6)}

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def tensor(self, rank: int | None = None, like: tuple[int, ...] | None = None) -> str:
        fits = [n for n, s in self.shapes.items() if (rank is None or len(s) == rank) and (like is None or s == like)]
        return self.draw(st.sampled_from(fits[-4:]))

    def constant(self, *shape: int, scale: float = 0.4) -> str:
        """A new weight, or one that something reads already."""
        same = [name for name, value in self.constants.items() if value.shape == shape and value.dtype == np.float32]
        if same and self.draw(st.booleans()):
            return self.draw(st.sampled_from(same))
        name = f"w{len(self.constants)}"
        self.constants[name] = weights(*shape, seed=len(self.constants), scale=scale)
        return name

    def integers(self, *values: int) -> str:
        name = f"n{len(self.constants)}"
        self.constants[name] = np.array(values, np.int64)
        return name

    def add(self, op: str, inputs: str, shape: tuple[int, ...], **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(node(op, inputs, name, **attributes))
        self.shapes[name] = shape
        return name

    def grow(self) -> None:
        rank = self.draw(st.sampled_from(sorted({len(s) for s in self.shapes.values()})))
        steps = [self.conv, self.conv, self.pointwise, self.combine, self.join, self.pool, self.move, self.to_rows]
        if rank == 3:
            steps = [self.matmul, self.matmul, self.pointwise, self.combine, self.join, self.norm, self.attention, self.move_rows]
        self.draw(st.sampled_from(steps))()

    def conv(self) -> None:
        x = self.tensor(4)
        n, c, h, w = self.shapes[x]
        kernel = 3 if min(h, w) >= 3 and self.draw(st.booleans()) else 1
        groups = c if self.draw(st.booleans()) else 1
        outputs = c if groups > 1 else self.number(1, 8)
        stride, pad = self.number(1, 2), kernel // 2
        bias = f" {self.constant(outputs)}" if self.draw(st.booleans()) else ""
        weight = self.constant(outputs, c // groups, kernel, kernel)
        shape = (n, outputs, (h - 1) // stride + 1, (w - 1) // stride + 1)
        self.add("Conv", f"{x} {weight}{bias}", shape, group=groups, strides=[stride] * 2, pads=[pad] * 4)

    def matmul(self) -> None:
        x = self.tensor(3)
        n, t, c = self.shapes[x]
        outputs = self.number(1, 8)
        y = self.add("MatMul", f"{x} {self.constant(c, outputs)}", (n, t, outputs))
        if self.draw(st.booleans()):
            self.add("Add", f"{y} {self.constant(outputs)}", (n, t, outputs))

    def pointwise(self) -> None:
        x = self.tensor()
        shape = self.shapes[x]
        kind = self.draw(st.sampled_from(["Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "SiLU", "Gelu"]))
        if kind == "Clip":
            self.constants |= {"low": np.float32(0), "high": np.float32(1)}
            self.add("Clip", f"{x} low high", shape)
        elif kind == "SiLU":
            self.add("Mul", f"{x} {self.add('Sigmoid', x, shape)}", shape)
        else:
            self.add(kind, x, shape, **({"alpha": 0.1} if kind == "LeakyRelu" else {}))

    def combine(self) -> None:
        x = self.tensor()
        self.add(self.draw(st.sampled_from(["Add", "Add", "Mul"])), f"{x} {self.tensor(like=self.shapes[x])}", self.shapes[x])

    def join(self) -> None:
        x = self.tensor()
        y, axis = self.tensor(like=self.shapes[x]), self.draw(st.sampled_from([1, 2]))
        shape = tuple(size * (2 if i == axis else 1) for i, size in enumerate(self.shapes[x]))
        if shape[axis] <= 16:
            self.add("Concat", f"{x} {y}", shape, axis=axis)

    def pool(self) -> None:
        x = self.tensor(4)
        n, c, h, w = self.shapes[x]
        kind = self.draw(st.sampled_from(["MaxPool", "AveragePool", "GlobalAveragePool"]))
        if kind == "GlobalAveragePool":
            self.add(kind, x, (n, c, 1, 1))
        elif min(h, w) >= 2:
            self.add(kind, x, (n, c, h - 1, w - 1), kernel_shape=[2, 2])

    def move(self) -> None:
        x = self.tensor(4)
        n, c, h, w = self.shapes[x]
        kind = self.draw(st.sampled_from(["Pad", "Slice", "Transpose", "Split"]))
        if kind == "Pad":
            self.add("Pad", f"{x} {self.integers(0, 0, 1, 0, 0, 0, 0, 1)}", (n, c, h + 1, w + 1))
        elif kind == "Transpose":
            self.add("Transpose", x, (n, c, w, h), perm=[0, 1, 3, 2])
        elif kind == "Slice" and c > 1:
            self.add("Slice", f"{x} {self.integers(1)} {self.integers(c)} {self.integers(1)}", (n, c - 1, h, w))
        elif kind == "Split" and c % 2 == 0:
            names = [f"t{len(self.nodes)}", f"t{len(self.nodes)}b"]
            self.nodes.append(node("Split", x, " ".join(names), axis=1, num_outputs=2))
            self.shapes |= dict.fromkeys(names, (n, c // 2, h, w))

    def to_rows(self) -> None:
        x = self.tensor(4)
        n, c, h, w = self.shapes[x]
        flat = self.add("Reshape", f"{x} {self.integers(n, c, h * w)}", (n, c, h * w))
        self.add("Transpose", flat, (n, h * w, c), perm=[0, 2, 1])

    def move_rows(self) -> None:
        x = self.tensor(3)
        n, t, c = self.shapes[x]
        self.add("Transpose", x, (n, c, t), perm=[0, 2, 1])

    def norm(self) -> None:
        x = self.tensor(3)
        c = self.shapes[x][-1]
        if c > 2:
            self.add("LayerNormalization", f"{x} {self.constant(c)} {self.constant(c)}", self.shapes[x], epsilon=0.01)

    def attention(self) -> None:
        x = self.tensor(3)
        n, t, c = self.shapes[x]
        turned = self.add("Transpose", x, (n, c, t), perm=[0, 2, 1])
        scores = self.add("MatMul", f"{x} {turned}", (n, t, t))
        self.add("MatMul", f"{self.add('Softmax', scores, (n, t, t), axis=-1)} {x}", (n, t, c))

    def case(self) -> Case:
        inner = [name for each in self.nodes for name in each.output]
        read = {name for each in self.nodes for name in each.input}
        ends = [name for name in inner if name not in read]
        outputs = dict.fromkeys([*ends, self.draw(st.sampled_from(inner))])
        return Case(self.nodes, {"x": self.shapes["x"]}, list(outputs), self.constants, opset=20)


@st.composite
def cases(draw: Any) -> Case:
    builder = Builder(draw)
    builder.conv()
    for _ in range(draw(st.integers(2, 12))):
        builder.grow()
    return builder.case()


def compare(answers: Mapping[str, Array], values: Mapping[str, Array], bounds: Mapping[str, Array], case: Case) -> None:
    assert set(answers) == set(case.outputs)
    for name, answer in answers.items():
        assert answer.shape == values[name].shape
        assert np.isfinite(answer).all()
        room = 1.05 * bounds[name] + 1e-4 * (1 + np.abs(values[name]).max())
        assert np.all(np.abs(answer - values[name]) <= room), (name, float((np.abs(answer - values[name]) - room).max()))


FUZZ = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


# Signed activations are for other runtimes: onnxruntime's optimizer breaks some graphs of them. test_quantized_operators.py has them.
@given(case=cases(), target=st.sampled_from(["onnxruntime-cpu", "openvino-cpu", "qnn"]), form=st.sampled_from(FORMATS))
@settings(FUZZ, max_examples=100)
def test_any_graph_is_written_right(case: Case, target: str, form: Format) -> None:
    model, feeds = case.proto(), {"x": samples((2, 4, 6, 6))}
    values = everything(model, feeds)
    written = quantized(model, ranges_of(values), form, PROFILES[target])
    compare(run(written.model, feeds), values, predicted(model, written.model, values), case)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@given(case=cases(), form=st.sampled_from(FORMATS[:5]))
@settings(FUZZ, max_examples=25)
def test_any_graph_runs_on_openvino(folder: Path, case: Case, form: Format) -> None:
    here = {each.name: each for each in registry.available()}
    if "openvino" not in here:
        missing("openvino")
    model, feeds = case.proto(), {"x": samples((2, 4, 6, 6))}
    values = everything(model, feeds)
    written = quantized(model, ranges_of(values), form, PROFILES["openvino-cpu"])
    onnx.save(written.model, folder / "model.onnx")
    answers = here["openvino"].open(folder / "model.onnx", Tuning(threads=1), None).run(feeds)
    compare(answers, values, predicted(model, written.model, values), case)
