"""Which tensors are observed, which borrow another's statistics, and what probes give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lowbit.graph import observe, probes


def graph(nodes: list[Any], inputs: dict[str, list[Any]], outputs: dict[str, list[Any] | None], opset: int = 17, **weights: Any) -> Any:
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=9,
    )


def node(op: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], name=output, **attributes)


def residual() -> Any:
    """conv-relu-conv-add-relu-pool-flatten-gemm, as in a residual network."""
    rng = np.random.default_rng(0)
    return graph(
        [
            node("Conv", "x w1", "c1", pads=[1] * 4),
            node("Relu", "c1", "r1"),
            node("Conv", "r1 w2", "c2", pads=[1] * 4),
            node("Add", "c2 r1", "a"),
            node("Clip", "a zero six", "r2"),
            node("GlobalAveragePool", "r2", "g"),
            node("Flatten", "g", "f"),
            node("Gemm", "f w3", "y"),
        ],
        {"x": ["N", 16, 20, 20]},
        {"y": ["N", 3]},
        w1=rng.normal(size=(32, 16, 3, 3)).astype(np.float32),
        w2=rng.normal(size=(32, 32, 3, 3)).astype(np.float32),
        w3=rng.normal(size=(32, 3)).astype(np.float32),
        zero=np.float32(0),
        six=np.float32(6),
    )


def test_residual_block() -> None:
    plan = observe.plan(onnx.shape_inference.infer_shapes(residual()))
    assert plan.observed == ("x", "r1", "c2", "r2", "g", "y")
    assert plan.aliases == {"c1": "r1", "a": "r2", "f": "g"}
    assert plan.rectified == {"r1", "r2", "g"}


def test_an_activation_with_a_second_reader_is_no_alias() -> None:
    model = graph(
        [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Add", "c r", "y")],
        {"x": [1, 1, 4, 4]},
        {"y": None},
        w=np.ones((1, 1, 1, 1), np.float32),
    )
    plan = observe.plan(onnx.shape_inference.infer_shapes(model))
    assert plan.aliases == {}
    assert plan.observed == ("x", "c", "r", "y")


def test_a_graph_output_is_no_alias_though_one_relu_reads_it() -> None:
    nodes = [node("MatMul", "x w", "m"), node("Relu", "m", "y")]
    model = graph(nodes, {"x": [2, 4]}, {"m": None, "y": None}, w=np.eye(4, dtype=np.float32))
    assert observe.plan(onnx.shape_inference.infer_shapes(model)).aliases == {}


def test_chains_of_aliases_end_at_what_is_observed() -> None:
    model = graph(
        [
            node("MatMul", "x w", "m"),
            node("Relu", "m", "r"),
            node("Transpose", "r", "t"),
            node("Reshape", "t shape", "s"),
            node("Softmax", "s", "y"),
        ],
        {"x": [2, 4]},
        {"y": None},
        w=np.eye(4, dtype=np.float32),
        shape=np.array([8], np.int64),
    )
    plan = observe.plan(onnx.shape_inference.infer_shapes(model))
    assert plan.aliases == {"m": "r", "t": "r", "s": "r"}
    assert plan.observed == ("x", "r", "y")


def test_integers_and_constants_are_left_alone() -> None:
    model = graph(
        [
            node("Constant", "", "k", value=numpy_helper.from_array(np.ones(4, np.float32))),
            node("Shape", "x", "shape"),
            node("Reshape", "x shape", "same"),
            node("Add", "same k", "y"),
        ],
        {"x": [2, 4]},
        {"y": None},
    )
    plan = observe.plan(onnx.shape_inference.infer_shapes(model))
    assert plan.observed == ("x", "y")
    assert plan.aliases == {"same": "x"}


def test_clip_is_rectified_only_from_zero_up() -> None:
    for low, expected in ((0.0, {"y"}), (-1.0, set())):
        new = graph([node("Clip", "x low", "y")], {"x": [2]}, {"y": None}, low=np.float32(low))
        old = graph([node("Clip", "x", "y", min=low, max=6.0)], {"x": [2]}, {"y": None}, opset=6)
        assert observe.plan(new).rectified == expected
        assert observe.plan(old).rectified == expected


def probed(model: Any, feeds: dict[str, Any]) -> tuple[dict[str, Any], list[probes.Probe], dict[str, Any]]:
    """Outputs of the probed copy, its probes, and every tensor of the original."""
    import onnxruntime

    shapes = {name: feed.shape for name, feed in feeds.items()}
    more = {name: (shape[0] + 1, *shape[1:]) for name, shape in shapes.items()}
    one, two = probes.infer(model, shapes), probes.infer(model, more)
    plan = observe.plan(one)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy, found = probes.instrument(copy, plan, one, two, sample=True)
    full = onnx.ModelProto()
    full.CopyFrom(model)
    del full.graph.output[:]
    full.graph.output.extend(onnx.ValueInfoProto(name=name) for name in plan.observed if name not in feeds)
    results = []
    for proto in (copy, full):
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        results.append(dict(zip(names, session.run(names, feeds), strict=True)))
    return results[0], found, results[1]


def transformer(opset: int) -> Any:
    rng = np.random.default_rng(1)
    return graph(
        [node("MatMul", "x w", "m"), node("Add", "m b", "s"), node("Softmax", "s", "y", axis=-1)],
        {"x": ["N", 50, 96]},
        {"y": ["N", 50, 192]},
        opset,
        w=rng.normal(size=(96, 192)).astype(np.float32),
        b=rng.normal(size=192).astype(np.float32),
    )


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_probes_give_exact_extrema_and_a_sample(opset: int) -> None:
    feeds = {"x": np.random.default_rng(2).normal(size=(3, 50, 96)).astype(np.float32)}
    out, found, tensors = probed(transformer(opset), feeds)
    assert [p.tensor for p in found] == ["m", "s", "y"]
    for probe in found:
        assert probe.low is not None
        assert probe.sample is not None
        assert out[probe.high].max() == pytest.approx(tensors[probe.tensor].max(), rel=1e-5)
        assert out[probe.low].min() == pytest.approx(tensors[probe.tensor].min(), rel=1e-5)
        assert out[probe.high].size < 3 * 1024
        assert np.array_equal(out[probe.sample], tensors[probe.tensor].reshape(3, -1)[:, ::7])  # 9600 elements: 3 and 5 divide them


def test_pooled_probes_are_exact() -> None:
    feeds = {"x": np.random.default_rng(2).normal(size=(2, 16, 20, 20)).astype(np.float32)}
    out, found, tensors = probed(residual(), feeds)
    by_name = {p.tensor: p for p in found}
    conv = by_name["c2"]
    assert conv.low is not None
    assert conv.negated
    assert conv.sample is not None
    assert out[conv.high].shape == (2, 32)
    assert out[conv.high].max() == pytest.approx(tensors["c2"].max(), rel=1e-5)
    assert -out[conv.low].max() == pytest.approx(tensors["c2"].min(), rel=1e-5)
    assert out[conv.sample] == pytest.approx(tensors["c2"][:, :, ::2, ::2].reshape(2, -1), rel=1e-3, abs=1e-3)
    assert by_name["r1"].low is None
    assert by_name["y"].high == "y"


def test_the_batch_is_found_by_what_grows_with_it() -> None:
    """Time first, batch second: rows of axis 0 mix samples, so nothing may be left out."""
    model = graph(
        [node("Transpose", "x", "t", perm=[1, 0, 2]), node("MatMul", "t w", "y")],
        {"x": ["N", 100, 64]},
        {"y": None},
        w=np.eye(64, dtype=np.float32),
    )
    out, found, tensors = probed(model, {"x": np.random.default_rng(0).normal(size=(2, 100, 64)).astype(np.float32)})
    assert [(p.tensor, p.sample) for p in found] == [("y", "y")]
    assert np.array_equal(out["y"], tensors["y"])


def test_probes_run_right_after_their_tensor(tmp_path: Path) -> None:
    """Otherwise every activation of the batch would be alive at once."""
    import onnxruntime

    shape = (2, 16, 20, 20)
    model = residual()
    one = probes.infer(model, {"x": shape})
    model, _ = probes.instrument(model, observe.plan(one), one, probes.infer(model, {"x": (3, 16, 20, 20)}), sample=True)
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.ones(shape, np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    order = [e["name"] for e in events if e["name"].endswith("_kernel_time")]
    last_probe_of = {t: max(i for i, name in enumerate(order) if name.startswith(f"{t}/lowbit")) for t in ("r1", "c2", "r2")}
    assert last_probe_of["r1"] < last_probe_of["c2"] < last_probe_of["r2"]
    assert last_probe_of["r1"] < min(i for i, name in enumerate(order) if name.startswith("c2"))
