"""Single-node models, run by onnxruntime and by the twin's table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper

from lowbit.train.twin import Twin

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One node: its operator, inputs (None for one that is left out) and attributes."""

    op: str
    inputs: tuple[Array | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 21


def floats(*shape: int, seed: int = 0, low: float = -2.0, high: float = 2.0) -> Array:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def integers(*values: int) -> Array:
    return np.array(values, np.int64)


def save(case: Case, path: Path) -> Path:
    """The model of a case; all inputs are fed."""
    names = [f"x{i}" if value is not None else "" for i, value in enumerate(case.inputs)]
    node = helper.make_node(case.op, names, [f"y{i}" for i in range(case.outputs)], name="it", **case.attributes)
    fed = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in zip(names, case.inputs, strict=True)
        if value is not None
    ]
    graph = helper.make_graph([node], "graph", fed, [helper.make_empty_tensor_value_info(f"y{i}") for i in range(case.outputs)])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=10), path)
    return path


def session(path: Path, *, optimized: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def runtime(path: Path, feeds: dict[str, Array], *, optimized: bool = True) -> dict[str, Array]:
    """onnxruntime's answers by name."""
    opened = session(path, optimized=optimized)
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(names, feeds), strict=True))


def twin_answers(twin: Twin, feeds: dict[str, Array], watch: tuple[str, ...] = ()) -> dict[str, Array]:
    with torch.no_grad():
        return {name: value.numpy() for name, value in twin({n: torch.from_numpy(v) for n, v in feeds.items()}, watch).items()}


def compare(case: Case, path: Path) -> None:
    """Equal shapes and types; integers and truth values equal, floats within 1e-5 of the largest."""
    save(case, path)
    feeds = {f"x{i}": value for i, value in enumerate(case.inputs) if value is not None}
    wanted, found = runtime(path, feeds, optimized=False), twin_answers(Twin(path), feeds)
    for name, right in wanted.items():
        assert found[name].shape == right.shape
        assert found[name].dtype == right.dtype
        if right.dtype.kind != "f":
            np.testing.assert_array_equal(found[name], right)
        elif right.size:
            assert np.isfinite(right).all(), "the case says nothing"
            assert np.abs(found[name] - right).max() <= 1e-5 * max(float(np.abs(right).max()), 1e-30)
