"""Rows that mind each other are never put together, whatever measurements or options say; and nothing else takes a model's place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asgi_case import kept_bundle
from onnx import TensorProto, helper
from serving_case import INT8, tiny_bundle

from lowbit.bundle.bundle import Bundle
from lowbit.bundle.manifest import FILE_NAME
from lowbit.errors import ModelError, RunError, UsageError
from lowbit.pipeline.recipes import INT8_DYNAMIC, INT8_NNCF
from lowbit.runtimes import registry
from lowbit.serving.run import deployment
from lowbit.serving.run.deployment import CHOSEN, Limits
from lowbit.serving.run.sessions import Sessions, open_sessions
from lowbit.types import Array, Feeds, TensorInfo
from small_models import images, save

FLOATS: dict[str, Any] = {"x": (TensorProto.FLOAT, ["N", 4])}
ROWS: dict[str, Any] = {"y": (TensorProto.FLOAT, ["N", 4])}
Write = Callable[[Path], Path]


def plain(path: Path) -> Path:
    return save(path, [helper.make_node("Relu", ["x"], ["y"])], FLOATS, ROWS, {})


def one_scale_for_all(path: Path) -> Path:
    """As dynamic quantization does: the largest value of the whole batch gives the scale of all its rows."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    return save(path, nodes, FLOATS, ROWS, {})


def one_number_for_all(path: Path) -> Path:
    results: dict[str, Any] = {**ROWS, "n": (TensorProto.FLOAT, [])}
    return save(
        path, [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("ReduceSum", ["x"], ["n"], keepdims=0)], FLOATS, results, {}
    )


def any_width(path: Path) -> Path:
    return save(path, [helper.make_node("Relu", ["x"], ["y"])], {"x": (1, ["N", "W"])}, {"y": (1, ["N", "W"])}, {})


def one_width_in_truth(path: Path) -> Path:
    """Says that any width will do; seven does."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return save(path, [node], {"x": (1, ["N", "W"])}, {"y": (1, ["N", 3])}, {"w": np.ones((7, 3), np.float32)})


def words_with_one_scale(path: Path) -> Path:
    """Tokens, their vectors, and one scale for the vectors of the whole batch."""
    table = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["v"]),
        helper.make_node("ReduceMean", ["v", "axes"], ["m"], keepdims=0),
        helper.make_node("DynamicQuantizeLinear", ["m"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    return save(path, nodes, {"input_ids": (TensorProto.INT64, ["N", "T"])}, ROWS, {"table": table, "axes": np.array([1])})


def bundle_of(folder: Path, write: Write) -> Path:
    (folder / "baseline").mkdir(parents=True)
    return kept_bundle(folder, write(folder / "baseline" / "model.onnx"))


@pytest.mark.parametrize(
    ("write", "rows"),
    [(plain, 16), (any_width, 16), (one_scale_for_all, 1), (one_number_for_all, 1), (one_width_in_truth, 1), (words_with_one_scale, 1)],
)
def test_rows_share_a_batch_only_where_they_were_seen_not_to_mind(tmp_path: Path, write: Write, rows: int) -> None:
    made = deployment.load(bundle_of(tmp_path / "m", write), limits=Limits(max_batch=16))
    try:
        assert made.variants[CHOSEN].batcher.settings.max_batch == rows
        assert made.variants[CHOSEN].sessions.batch == min(rows, 8)  # 8 was measured to be best
    finally:
        made.close()


@pytest.mark.parametrize(("recipe", "batch"), [(INT8_DYNAMIC, 1), (INT8_NNCF, 8)])
def test_a_recipe_that_says_so_is_believed(tmp_path: Path, recipe: Any, batch: int) -> None:
    folder = tiny_bundle(tmp_path / "tiny")
    (folder / "candidates" / INT8 / "recipe.yaml").write_text(recipe.to_yaml())
    sessions = open_sessions(Bundle.load(folder), INT8)
    try:
        assert sessions.batch == batch
        assert sessions.run({"input.1": images(3)})["logits"].shape == (3, 10)  # rows of one client stay together
    finally:
        sessions.close()


class Fixed:
    """A session for one number of rows, whose neighbours may matter."""

    inputs: tuple[TensorInfo, ...] = (TensorInfo("x", (4, 2), "float32"),)
    outputs: tuple[TensorInfo, ...] = (TensorInfo("y", (4, 2), "float32"),)

    def __init__(self, work: Callable[[Array], Array]) -> None:
        self.work = work

    def run(self, x: Feeds) -> dict[str, Array]:
        assert len(x["x"]) == 4
        return {"y": self.work(x["x"])}

    def close(self) -> None:
        pass


def test_what_has_no_rows_cannot_be_taken_apart() -> None:
    sessions = Sessions({4: Fixed(lambda x: x.sum(axis=0))}, {4: 1.0}, None, 4, 1)
    with pytest.raises(RunError, match="4 rows at once, and 2 came"):
        sessions.run({"x": np.ones((2, 2), np.float32)})
    assert sessions.run({"x": np.ones((4, 2), np.float32)})["y"].tolist() == [4, 4]


def test_no_other_runtime_takes_the_place_of_the_measured_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_bundle(tmp_path / "tiny")
    manifest = json.loads((folder / FILE_NAME).read_text().replace('"runtime": "onnxruntime"', '"runtime": "openvino"'))
    (folder / FILE_NAME).write_text(json.dumps(manifest))
    get = registry.get

    def without_openvino(name: str) -> Any:
        if name == "openvino":
            raise UsageError("openvino is not installed.", "pip install openvino")
        return get(name)

    monkeypatch.setattr(registry, "get", without_openvino)
    with pytest.raises(UsageError, match="openvino is not installed"):
        deployment.load(folder)


def test_a_deployment_knows_what_it_was_loaded_from(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "tiny")
    made = deployment.load(folder)
    made.close()
    digests = {each["path"]: each["sha256"] for each in json.loads((folder / FILE_NAME).read_text())["files"]}
    assert "model/model.onnx" in made.digests
    assert made.digests == digests
    assert made.preprocess == Bundle.load(folder).preprocess


def test_a_bundle_that_is_exchanged_while_it_is_loaded_is_not_served(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "tiny")
    closed = []

    def opener(bundle: Bundle, candidate: str) -> Sessions:
        made = open_sessions(bundle, candidate)
        close = made.close
        made.close = lambda: (closed.append(candidate), close())[1]  # type: ignore[method-assign,func-returns-value]
        tiny_bundle(folder, note="another one")
        return made

    with pytest.raises(ModelError, match="exchanged while it was loaded"):
        deployment.load(folder, opener=opener)
    assert len(closed) == 2
