"""Every operator that a profile has a rule for, written for that profile and run on every runtime against the float reference.

Each operator stands between convolutions (or is one), so that its rule applies. Its answer must lie within a sound bound of the float
model's (error_bounds.py), and runtimes must agree to a step of its grid with onnx's own evaluator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from conftest import missing
from error_bounds import predicted
from graph_cases import Case, Written, everything, node, quantized, ranges_of, samples, weights
from lowbit.graph.place import Format
from lowbit.graph.profiles import OPENVINO_CPU, PROFILES, QNN, TENSORRT, Profile
from lowbit.recipe import QuantSpec
from lowbit.runtimes import registry
from lowbit.types import Array, Tuning

RUNTIMES = {"onnxruntime-cpu": ("onnxruntime", "openvino"), "openvino-cpu": ("onnxruntime", "openvino")}
"""Target -> where its artifacts run; those of targets that are not here run on onnxruntime."""

FORM = Format(QuantSpec("int8", "per-channel", symmetric=True), QuantSpec("uint8"))
SHAPE = (2, 4, 6, 6)

SCALES: dict[str, Array] = {"scales": np.array([1, 1, 2, 2], np.float32)}
POINTWISE: dict[str, dict[str, Any]] = {
    "Clip": {}, "Elu": {"alpha": 0.7}, "Exp": {}, "Gelu": {}, "HardSigmoid": {"alpha": 0.2}, "HardSwish": {}, "LeakyRelu": {"alpha": 0.1},
    "Mish": {}, "Relu": {}, "Sigmoid": {}, "Softmax": {"axis": -1}, "Tanh": {}, "Identity": {},
}  # fmt: skip
MOVES: dict[str, tuple[str, dict[str, Any], dict[str, Array]]] = {
    "AveragePool": ("c", {"kernel_shape": [2, 2], "strides": [2, 2]}, {}),
    "DepthToSpace": ("c", {"blocksize": 2}, {}),
    "Expand": ("c shape", {}, {"shape": np.array([2, 1, 4, 6, 6])}),
    "Flatten": ("c", {}, {}),
    "Gather": ("c which", {"axis": 2}, {"which": np.array([3, 1])}),
    "GlobalAveragePool": ("c", {}, {}),
    "MaxPool": ("c", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, {}),
    "Pad": ("c pads", {}, {"pads": np.array([0, 0, 1, 0, 0, 0, 0, 2])}),
    "ReduceMean": ("c axes", {"keepdims": 1}, {"axes": np.array([2, 3])}),
    "Reshape": ("c shape", {}, {"shape": np.array([0, -1, 3, 3])}),
    "Resize": ("c _ scales", {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}, SCALES),
    "Slice": ("c starts ends axes", {}, {"starts": np.array([1]), "ends": np.array([5]), "axes": np.array([3])}),
    "SpaceToDepth": ("c", {"blocksize": 2}, {}),
    "Squeeze": ("c", {}, {}),
    "Tile": ("c times", {}, {"times": np.array([1, 2, 1, 1])}),
    "Transpose": ("c", {"perm": [0, 2, 3, 1]}, {}),
    "Unsqueeze": ("c axes", {}, {"axes": np.array([1])}),
}  # fmt: skip


def case(op: str) -> Case:
    """A model around one operator. It answers at `y`, which a product reads; products answer themselves."""
    image: dict[str, Any] = {"x": list(SHAPE)}
    if op in ("Conv", "ConvTranspose"):
        return Case([node(op, "x w b", "y", strides=[2, 2])], image, ["y"], {"w": weights(4, 4, 3, 3), "b": weights(4, seed=1)}, opset=20)
    if op == "Gemm":
        return Case([node(op, "x w b", "y", transB=1)], {"x": [4, 24]}, ["y"], {"w": weights(8, 24), "b": weights(8, seed=1)}, opset=20)
    if op == "MatMul":
        nodes = [node(op, "x w", "m"), node("Add", "m b", "y")]
        return Case(nodes, {"x": [2, 5, 24]}, ["y"], {"w": weights(24, 8), "b": weights(8, seed=1)}, opset=20)
    first = node("Conv", "x w", "c")
    constants = {"w": weights(4, 4, 1, 1)}
    second: list[onnx.NodeProto] = []
    if op in ("Add", "Sub", "Mul", "Div", "Concat"):
        second = [node("Conv", "x u", "d")]
        constants |= {"u": weights(4, 4, 1, 1, seed=3)}
        middle = node(op, "c d", "y", **({"axis": 1} if op == "Concat" else {}))
        if op == "Div":  # away from zero
            second, middle = [node("Conv", "x u", "e"), node("Relu", "e", "f"), node("Add", "f one", "d")], node(op, "c d", "y")
            constants["one"] = np.ones((1, 1, 1, 1), np.float32)
    elif op == "Split":
        middle = node(op, "c", "y other", axis=1, num_outputs=2)
    elif op == "PRelu":
        middle, constants = node(op, "c slope", "y"), {**constants, "slope": np.full((4, 1, 1), 0.2, np.float32)}
    elif op == "Clip":
        middle, constants = node(op, "c low high", "y"), {**constants, "low": np.float32(0), "high": np.float32(1.5)}
    elif op in POINTWISE:
        middle = node(op, "c", "y", **POINTWISE[op])
    else:
        inputs, attributes, more = MOVES[op]
        middle, constants = node(op, inputs, "y", **attributes), {**constants, **more}
    proto = Case([first, *second, middle], image, ["y"], constants, opset=20).proto()
    shape = [each.dim_value for each in proto.graph.output[0].type.tensor_type.shape.dim]
    last = node("Conv", "y v", "z") if len(shape) == 4 else node("MatMul", "y v", "z")
    constants["v"] = weights(3, shape[1], 1, 1, seed=5) if len(shape) == 4 else weights(shape[-1], 3, seed=5)
    return Case([first, *second, middle, last], image, ["y", "z"], constants, opset=20)


def rules(profile: Profile) -> list[str]:
    return sorted(profile.products | profile.absorbed | profile.gates | profile.elementwise | profile.unary | profile.moves | profile.joins)


PAIRS = [(name, op) for name in PROFILES for op in rules(PROFILES[name])]


def written(op: str, profile: Profile, form: Format = FORM) -> tuple[Written, onnx.ModelProto, Mapping[str, Array], dict[str, Array]]:
    model = case(op).proto()
    feeds = {"x": samples([each.dim_value for each in model.graph.input[0].type.tensor_type.shape.dim], low=-3, high=3)}
    values = everything(model, feeds)
    return quantized(model, ranges_of(values), form, profile), model, feeds, values


def answers(model: onnx.ModelProto, feeds: Mapping[str, Array], folder: Path, runtimes: Sequence[str]) -> dict[str, dict[str, Array]]:
    """What every runtime that is here answers, and onnx's evaluator where it can."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    here = {each.name: each for each in registry.available()}
    found = {}
    for name in runtimes:
        if name not in here:
            missing(name)
        found[name] = here[name].open(path, Tuning(threads=1), None).run(dict(feeds))
    evaluator = ReferenceEvaluator(model)
    found["reference"] = dict(zip(evaluator.output_names, evaluator.run(None, dict(feeds)), strict=True))
    return found


@pytest.mark.parametrize(("target", "op"), PAIRS, ids=[f"{target}-{op}" for target, op in PAIRS])
def test_an_operator_is_right_within_the_bound_and_the_same_everywhere(target: str, op: str, tmp_path: Path) -> None:
    made, model, feeds, values = written(op, PROFILES[target])
    bounds = predicted(model, made.model, values)
    found = answers(made.model, feeds, tmp_path, RUNTIMES.get(target, ("onnxruntime",)))
    step = float(made.table["y"].scale) if "y" in made.table else 0.0
    before = max((float(made.table[each].scale) for each in ("c", "d") if each in made.table), default=0.0)
    for runtime, outputs in found.items():
        for name, answer in outputs.items():
            assert answer.shape == values[name].shape, runtime
            excess = np.abs(answer - values[name]) - bounds[name]
            assert excess.max() <= _tie(step), (runtime, name, float(excess.max()))
        # A kernel may round a tie of what goes in, and of what comes out, to the other side, and openvino adds before it rounds.
        apart = np.abs(outputs["y"] - found["reference"]["y"])
        assert apart.max() <= step + 1.5 * before + 1e-4, runtime
        assert np.mean(apart <= 1e-4 + step / 100) > 0.7, runtime


def _tie(step: float) -> float:
    return 1e-4 + step  # kernels that round once more than the model says


@pytest.mark.parametrize("op", rules(TENSORRT))
def test_tensorrt_knows_no_zero_points_and_takes_biases_as_they_are(op: str) -> None:
    made, _, _, _ = written(op, TENSORRT, Format(QuantSpec("uint8", "per-channel"), QuantSpec("uint8")))
    for each in made.model.graph.node:
        if each.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = (numpy_helper.to_array(t) for t in made.model.graph.initializer if t.name in each.input[1:])
            assert not zero.any()
            assert zero.dtype == np.int8
            assert scale.ndim == 0 or each.op_type == "DequantizeLinear", "activations have one scale"
    kinds = {t.name: t.data_type for t in made.model.graph.initializer}
    assert TensorProto.INT32 not in kinds.values()
    if "b" in kinds:
        assert kinds["b"] == TensorProto.FLOAT


@pytest.mark.parametrize("op", rules(QNN))
@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_qnn_takes_unsigned_activations_and_int32_biases(op: str, dtype: str) -> None:
    made, _, _, _ = written(op, QNN, Format(FORM.weights, QuantSpec(dtype)))  # type: ignore[arg-type]
    stored = {t.name: numpy_helper.to_array(t) for t in made.model.graph.initializer}
    quantizers = [each for each in made.model.graph.node if each.op_type == "QuantizeLinear"]
    assert quantizers
    for each in quantizers:
        assert stored[each.input[2]].dtype == np.dtype("u" + dtype)
        assert stored[each.input[1]].ndim == 0
    if op in ("Conv", "ConvTranspose", "Gemm"):
        assert stored["b_quantized"].dtype == np.int32
    if op in rules(QNN) and op not in ("MatMul",):
        assert any(each.tensor == "y" for each in made.placement.activations), "the whole graph runs on integers"


@pytest.mark.parametrize("target", PROFILES)
def test_every_rule_has_a_case(target: str) -> None:
    for op in rules(PROFILES[target]):
        assert op in {each.op_type for each in case(op).nodes}


def test_rows_that_are_joined_in_front_of_a_matrix_product_run_on_openvino(tmp_path: Path) -> None:
    """Its compiler fails where the product is on integers."""
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "x u", "b"), node("Concat", "a b", "j", axis=1), node("MatMul", "j v", "y")]
    model = Case(nodes, {"x": ["N", 5, 8]}, ["y"], {"w": weights(8, 8), "u": weights(8, 8, seed=1), "v": weights(8, 4)}, opset=20).proto()
    feeds = {"x": samples((2, 5, 8))}
    values = everything(model, feeds)
    made = quantized(model, ranges_of(values), FORM, OPENVINO_CPU)
    bounds = predicted(model, made.model, values)["y"]
    for outputs in answers(made.model, feeds, tmp_path, RUNTIMES["openvino-cpu"]).values():
        assert np.all(np.abs(outputs["y"] - values["y"]) <= bounds)
    assert {entry.tensor for entry in made.placement.activations} == {"x"}
