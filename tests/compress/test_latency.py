"""Attribution of kernels to groups, on made-up profiles; and one real table, whose sums must hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import small_models
from conftest import missing
from lowbit.compress.allocate import FLOAT, Assignment, Boundary
from lowbit.compress.latency import LatencyTable, Layout, Profiled, attribute, layout, measure_latency, starting_with, tabulate
from lowbit.graph import ir_files
from lowbit.graph.groups import Group, find_groups
from lowbit.graph.parameterize import parameterize
from lowbit.graph.place import Format, place
from lowbit.graph.profiles import profile as target_named
from lowbit.graph.profiles import target_of
from lowbit.graph.qdq import values_of, write_pairs
from lowbit.measure.race import Effort
from lowbit.runtimes import registry
from lowbit.runtimes.base import Kernel
from lowbit.types import Tuning


def group(name: str, *nodes: str, product: bool = True) -> Group:
    return Group(name, "Conv" if product else "Add", (name, *nodes), {0: "x"}, 1 if product else None, None, f"{name}_out")


BLOCK = Layout(
    (group("a", "relu_a"), group("b"), group("sum", "relu", product=False), group("c")),
    (("a", "b"), ("b", "sum"), ("a", "sum"), ("sum", "c")),
    frozenset({"softmax", "softmax_out"}),
)
"""A residual block: a, b, b + a, c; then a softmax."""


def kernels(**seconds: float) -> tuple[Kernel, ...]:
    """Kernel per word, made of the node of that name; words that start with "to" are made of nothing."""
    return tuple(Kernel(name, "", () if name.startswith("to") else (name,), value, 100) for name, value in seconds.items())


def test_kernels_go_to_their_groups() -> None:
    found = attribute(kernels(to_a=1, a=2, relu_a=3, to_b=4, to_b_too=5, b=6, sum=7, c=8, softmax=9, to_end=10), BLOCK)
    assert found.seconds == {"a": 1 + 2 + 3, "b": 4 + 5 + 6, "sum": 7, "c": 8 + 10}
    assert (found.rest, found.conversions) == (9, 1 + 4 + 5 + 10)


def test_fused_kernels_go_to_the_product() -> None:
    """Names as runtimes give them: a tensor's, and several nodes of two groups."""
    one, two = Kernel("1", "Conv", ("a_out",), 1.0, 50), Kernel("2", "Conv", ("relu", "made-up", "sum", "b"), 2.0, 70)
    found = attribute((one, two), BLOCK)
    assert found.seconds == {"a": 1.0, "b": 2.0, "sum": 0.0, "c": 0.0}
    assert found.elements == {"a": 50, "b": 70, "sum": 70}


def test_sums_follow_their_operands() -> None:
    both = {"a": "w8a8", "b": "w8a8", "c": FLOAT}
    assert BLOCK.formats(both) == {**both, "sum": "w8a8"}
    assert BLOCK.formats({**both, "b": FLOAT}) == {**both, "b": FLOAT, "sum": FLOAT}
    assert BLOCK.formats({"a": "w8a8"}) == {"a": "w8a8", "b": FLOAT, "sum": FLOAT, "c": FLOAT}


UNIFORM = {
    "w8a8": Profiled(kernels(to_a=1, a=2, b=2, sum=1, c=2, softmax=2), 10.0),
    FLOAT: Profiled(kernels(a=5, b=5, sum=2, c=6, softmax=2), 40.0),
}


def test_table_by_hand() -> None:
    """Calls of "float" take twice what its kernels do. a and c are integer: b, the sum and all four edges change domain but none inside."""
    mixed = Profiled(kernels(a=2, to_b=1, b=5, to_sum=1, sum=2, to_c=1, c=2), 45.0)
    table = tabulate(BLOCK, UNIFORM, mixed, {"a": "w8a8", "b": FLOAT, "c": "w8a8"})
    assert table.seconds["a", "w8a8"] == 3
    assert table.seconds["b", FLOAT] == 10
    assert table.rest == (2 + 4) / 2
    # 45 - 3 (rest) - 3 (a) - 10 (b) - 4 (sum) - 2 (c) = 23 for the edges a-b, a-sum and sum-c, of 100 numbers each.
    assert table.per_element == pytest.approx(23 / 300)
    assert table.predict({"a": "w8a8", "b": FLOAT, "sum": FLOAT, "c": "w8a8"}) == pytest.approx(45.0)
    assert table.predict(dict.fromkeys("abc", "w8a8") | {"sum": "w8a8"}) == pytest.approx(8 + 3)


def test_conversions_count_where_whole_calls_drown_in_noise() -> None:
    mixed = Profiled(kernels(a=2, to_b=1, b=5, to_sum=1, sum=2, to_c=1, c=2), 14.0)
    table = tabulate(BLOCK, UNIFORM, mixed, {"a": "w8a8", "b": FLOAT, "c": "w8a8"})
    assert table.per_element == pytest.approx((3 - 1) / 300)
    free = tabulate(BLOCK, UNIFORM, replace(UNIFORM["w8a8"], call_seconds=1.0), {"a": "w8a8"})
    assert free.per_element == 0


def chain(folder: Path) -> Path:
    """Three convolutions of 8 channels on 16 x 16, a shortcut around the second, a pooling before the third."""
    rng = np.random.default_rng(0)
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "w1"], ["c1"], name="conv1", pads=[1] * 4),
        node("Relu", ["c1"], ["r1"], name="relu1"),
        node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1] * 4),
        node("Add", ["c2", "r1"], ["s"], name="add"),
        node("MaxPool", ["s"], ["m"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["m", "w3"], ["y"], name="conv3", pads=[1] * 4),
    ]
    weights = {f"w{i}": rng.normal(0, 0.1, (8, 8, 3, 3)).astype(np.float32) for i in (1, 2, 3)}
    sides = {"x": (onnx.TensorProto.FLOAT, ["N", 8, 16, 16])}, {"y": (onnx.TensorProto.FLOAT, ["N", 8, 8, 8])}
    return small_models.save(folder / "chain.onnx", nodes, *sides, weights)


def test_edges_pass_through_what_hands_integers_on(tmp_path: Path) -> None:
    target = target_named("onnxruntime-cpu")
    graph = ir_files.read(chain(tmp_path)).graph
    found = layout(graph, find_groups(graph, target), target)
    assert set(found.edges) == {("conv1", "conv2"), ("conv2", "add"), ("conv1", "add"), ("add", "conv3")}
    assert found.products == ("conv1", "conv2", "conv3")
    assert found.others == {"pool", "m"}


BRIEF: Effort = {"rounds": 2, "seconds_per_round": 0.02}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_real_table_adds_up(runtime: str, tmp_path: Path) -> None:
    """Every group is seen in every format, and uniform models are predicted as measured, whatever the machine's load."""
    if runtime not in {each.name for each in registry.available()}:
        missing(runtime)
    path = chain(tmp_path)
    target = target_named(target_of(runtime))
    graph = ir_files.read(path).graph
    found = layout(graph, find_groups(graph, target), target)
    ranges = dict.fromkeys(("x", "c1", "r1", "c2", "s", "m", "y"), (-4.0, 4.0))
    made: list[Path] = []

    def write(formats: Mapping[str, str]) -> Path:
        model = ir_files.read(path)
        form = Format(target.weights, target.activations)
        placement = place(model.graph, target, lambda each: form if formats[each.name] != FLOAT else None, ranges)
        write_pairs(model, placement, parameterize(placement, ranges.__getitem__, values_of(model)))
        made.append(tmp_path / f"{len(made)}.onnx")
        ir_files.write(model, made[-1])
        return made[-1]

    feeds = {"x": np.random.default_rng(1).normal(size=(2, 8, 16, 16)).astype(np.float32)}
    table = measure_latency(found, ["w8a8"], write, runtime, feeds, batch=2, tuning=Tuning(threads=1, fixed_shape=True), effort=BRIEF)
    assert len(made) == 3
    assert {pair for pair, seconds in table.seconds.items() if seconds > 0} >= {(f"conv{i}", f) for i in (1, 2, 3) for f in ("w8a8", FLOAT)}
    assert sum(table.seconds.values()) < 1
    assert {(b.first, b.second) for b in table.boundaries} == set(found.edges)
    assert table.predict(found.formats(dict.fromkeys(found.products, "w8a8"))) > 0


def test_a_frontier_starts_with_what_has_been_evaluated() -> None:
    """All integers first, though "b" is faster in floating point; once only, where they are a point of the frontier anyway."""
    seconds = {(name, form): 1.0 for name in ("a", "b", "sum", "c") for form in ("w8a8", FLOAT)} | {("b", "w8a8"): 2.0}
    times = LatencyTable(seconds, 0.0, (Boundary("a", "b", 0.25),), 10.0)
    damage = {(name, "w8a8"): 0.5 for name in ("a", "b", "c")}
    whole = dict.fromkeys(("a", "b", "sum", "c"), "w8a8")
    fast = Assignment({**whole, "b": FLOAT, "sum": FLOAT}, 1.0, 4.25)
    same = Assignment({**whole, "sum": FLOAT}, 1.5, 5.0)
    found = starting_with("w8a8", (fast,), damage, times, BLOCK)
    assert found == (Assignment(whole, 1.5, 5.0), fast)
    assert starting_with("w8a8", (same, fast), damage, times, BLOCK) == found
