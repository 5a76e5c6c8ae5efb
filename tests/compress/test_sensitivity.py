"""Sensitivity: switches against the QDQ writer, damages against brute force, cost, and the samples that are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from scipy.stats import spearmanr

from lowbit.compress import sensitivity as module
from lowbit.compress.calibrate import CalibrationStats, calibrate
from lowbit.compress.damage import Judge, Kind
from lowbit.compress.sensitivity import Plan, Sensitivity, sensitivity
from lowbit.compress.spread import inclusion, systematic
from lowbit.errors import DataError, ModelError, UsageError
from lowbit.graph import ir_files
from lowbit.graph.load import load_model
from lowbit.graph.parameterize import parameterize
from lowbit.graph.place import Format, place
from lowbit.graph.prepare import prepare
from lowbit.graph.profiles import ONNXRUNTIME_CPU, OPENVINO_CPU, QNN, Profile
from lowbit.graph.qdq import values_of, write_pairs
from lowbit.quant.error import sqnr
from lowbit.recipe import QuantSpec
from lowbit.types import Array, Batch, Feeds
from small_models import save

UINT8, UINT16, FLOAT = QuantSpec("uint8"), QuantSpec("uint16"), QuantSpec("fp32")  # type: ignore[arg-type]
W8, W4 = (QuantSpec(dtype, "per-channel", symmetric=True) for dtype in ("int8", "int4"))  # type: ignore[arg-type]
FORMATS = {"w8a8": Format(W8, UINT8), "w4a8": Format(W4, UINT8)}
BLOCKS = ("c1", "c2", "c3", "c4", "c5", "c6")
WIDE = "c6"


def cnn(folder: Path, *, batch: int | str = "N", softmax: bool = False) -> Path:
    """Six convolutions, two of them in a residual block, and a linear layer. One channel of c6 has a far wider range than all others."""
    rng = np.random.default_rng(0)
    shapes = {"c1": (8, 3, 3, 3), "c2": (8, 8, 3, 3), "c3": (8, 8, 3, 3), "c4": (12, 8, 1, 1), "c5": (12, 1, 3, 3), "c6": (16, 12, 1, 1)}
    weights = {f"w_{name}": rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32) for name, shape in shapes.items()}
    weights |= {f"b_{name}": rng.normal(0, 0.1, shape[0]).astype(np.float32) for name, shape in shapes.items()}
    weights["w_c6"][0] *= 40
    weights["b_c6"][0] = -1000  # ReLU closes the wide channel: nothing but the grid that it shares sees it
    weights |= {"w_fc": rng.normal(0, 0.5, (16, 10)).astype(np.float32), "b_fc": rng.normal(0, 0.1, 10).astype(np.float32)}

    def conv(name: str, source: str, **more: Any) -> list[Any]:
        node = helper.make_node("Conv", [source, f"w_{name}", f"b_{name}"], [f"{name}_sum"], name=name, **more)
        return [node, helper.make_node("Relu", [f"{name}_sum"], [f"{name}_out"], name=f"{name}_relu")]

    nodes = [*conv("c1", "x", pads=[1] * 4), *conv("c2", "c1_out", pads=[1] * 4), *conv("c3", "c2_out", pads=[1] * 4)]
    nodes += [helper.make_node("Add", ["c3_out", "c1_out"], ["added"], name="add"), *conv("c4", "added")]
    nodes += [*conv("c5", "c4_out", group=12, strides=[2, 2]), *conv("c6", "c5_out")]
    nodes += [
        helper.make_node("GlobalAveragePool", ["c6_out"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="f"),
    ]
    nodes += [helper.make_node("Gemm", ["flat", "w_fc", "b_fc"], ["logits"], name="fc")]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["p"], name="softmax"))
    info = {"p" if softmax else "logits": (TensorProto.FLOAT, [batch, 10])}
    return _prepared(folder, nodes, {"x": (TensorProto.FLOAT, [batch, 3, 8, 8])}, info, weights)


def attention(folder: Path) -> Path:
    """One attention head: x [N, T, 16] -> y [N, T, 16]."""
    rng = np.random.default_rng(1)
    weights = {name: rng.normal(0, 0.4, (16, 16)).astype(np.float32) for name in ("wq", "wk", "wv", "wo")}
    weights["bo"] = rng.normal(0, 0.1, 16).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", f"w{name}"], [name], name=name) for name in "qkv"]
    nodes += [
        helper.make_node("Transpose", ["k"], ["kt"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["p"], name="softmax"),
        helper.make_node("MatMul", ["p", "v"], ["mixed"], name="mixed"),
        helper.make_node("MatMul", ["mixed", "wo"], ["projected"], name="out"),
        helper.make_node("Add", ["projected", "bo"], ["y"], name="bias"),
    ]
    info = (TensorProto.FLOAT, ["N", "T", 16])
    return _prepared(folder, nodes, {"x": info}, {"y": info}, weights)


def _prepared(folder: Path, nodes: list[Any], inputs: Mapping[str, Any], outputs: Mapping[str, Any], weights: dict[str, Array]) -> Path:
    source = save(folder / "source.onnx", nodes, dict(inputs), dict(outputs), weights)
    return prepare(load_model(source), folder / "prepared.onnx")


def images(count: int, size: int = 16) -> list[Feeds]:
    x = np.random.default_rng(3).normal(size=(count, 3, 8, 8)).astype(np.float32)
    return [{"x": x[start : start + size]} for start in range(0, count, size)]


def tokens(*lengths: int) -> list[Feeds]:
    rng = np.random.default_rng(4)
    return [{"x": rng.normal(size=(6, length, 16)).astype(np.float32)} for length in lengths]


def observed(prepared: Path, batches: list[Feeds]) -> CalibrationStats:
    return calibrate(prepared, [Batch(np.arange(len(f["x"])), f, None) for f in batches], methods=["minmax"], threads=1)


def run(model: Path | bytes, feeds: Feeds) -> Array:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def alone(prepared: Path, profile: Profile, group: str, form: Format, stats: CalibrationStats) -> Path:
    """What the writer makes where one group alone is quantized."""
    model = ir_files.read(prepared)
    placement = place(model.graph, profile, lambda g: form if g.name == group else None, set(stats.tensors))
    assert list(placement.formats) == [group]
    write_pairs(model, placement, parameterize(placement, lambda t: stats.range(t, "minmax"), values_of(model)), target=profile)
    out = prepared.with_name("alone.onnx")
    ir_files.write(model, out)
    return out


def measure(
    prepared: Path, batches: list[Feeds], formats: Mapping[str, Format], profile: Profile = ONNXRUNTIME_CPU, **more: Any
) -> Sensitivity:
    stats = observed(prepared, batches)
    return sensitivity(prepared, profile, formats, stats, batches, threads=1, **{"kind": "classes", **more})


@pytest.mark.parametrize("profile", [ONNXRUNTIME_CPU, OPENVINO_CPU], ids=lambda p: p.name)
def test_with_all_samples_damage_and_local_error_are_those_of_the_written_model(tmp_path: Path, profile: Profile) -> None:
    prepared, batches = cnn(tmp_path), images(24)
    stats = observed(prepared, batches)
    found = sensitivity(prepared, profile, FORMATS, stats, batches, kind="values", passes=1000, threads=1)
    x = {"x": np.concatenate([feeds["x"] for feeds in batches])}
    exact = run(prepared, x).astype(np.float64)
    assert found.each == found.samples == 24
    assert {group for group, _ in found.damage} == {*BLOCKS, "fc"}
    for (group, name), damage in found.damage.items():
        seen = run(alone(prepared, profile, group, FORMATS[name], stats), x)
        assert damage == pytest.approx(((seen - exact) ** 2).mean() / exact.var(), rel=1e-2), (group, name)
        if group == "fc":
            assert found.local_sqnr[group, name] == pytest.approx(sqnr(exact, seen), abs=0.01)
    assert found.local_sqnr["c2", "w4a8"] < found.local_sqnr["c2", "w8a8"] - 10


def test_attention_is_measured_where_the_target_computes_it_on_integers(tmp_path: Path) -> None:
    prepared, batches = attention(tmp_path), tokens(7, 7, 7)
    stats = observed(prepared, batches)
    formats = {"w8a8": Format(W8, UINT8), "w8a16": Format(W8, UINT16)}
    found = sensitivity(prepared, QNN, formats, stats, batches, kind="embedding", passes=1000, threads=1)
    x = {"x": np.concatenate([feeds["x"] for feeds in batches])}
    exact = run(prepared, x).reshape(18, -1).astype(np.float64)
    assert {"scores", "mixed"} <= {group for group, _ in found.damage}
    for group in ("scores", "mixed"):
        seen = run(alone(prepared, QNN, group, formats["w8a8"], stats), x).reshape(18, -1).astype(np.float64)
        cosines = (seen * exact).sum(1) / np.linalg.norm(seen, axis=1) / np.linalg.norm(exact, axis=1)
        assert found.damage[group, "w8a8"] == pytest.approx((1 - cosines).mean(), rel=1e-2)
        assert found.damage[group, "w8a16"] < 1e-3 * found.damage[group, "w8a8"]


def test_three_passes_rank_as_brute_force_does(tmp_path: Path) -> None:
    prepared, batches = cnn(tmp_path), images(256)
    stats = observed(prepared, batches)
    found = sensitivity(prepared, ONNXRUNTIME_CPU, FORMATS, stats, batches, kind="classes", threads=1)
    x = {"x": np.concatenate([feeds["x"] for feeds in images(256)])}
    judge = Judge([[run(prepared, x)]], "classes")
    truth = {(g, f): judge.own([[run(alone(prepared, ONNXRUNTIME_CPU, g, FORMATS[f], stats), x)]]).mean() for g, f in found.damage}
    assert found.passes <= 3
    for name in FORMATS:
        groups = [group for group, form in truth if form == name]
        assert spearmanr([found.damage[g, name] for g in groups], [truth[g, name] for g in groups])[0] >= 0.85
    assert np.median([found.damage[key] / truth[key] for key in truth]) == pytest.approx(1, abs=0.5)


def test_channels_of_very_different_range_come_first_where_they_share_a_grid(tmp_path: Path) -> None:
    formats = {"tensor": Format(QuantSpec("int8", symmetric=True), UINT8), "channel": Format(W8, UINT8)}
    found = measure(cnn(tmp_path), images(64), formats)
    assert found.ranking("tensor")[0] == WIDE
    assert found.damage[WIDE, "tensor"] > 3 * found.damage[WIDE, "channel"]


def test_cost_is_what_was_run_and_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    original = module.open_session

    class Counting:
        def __init__(self, *arguments: Any) -> None:
            self.session = original(*arguments)

        def run(self, names: Any, feeds: Feeds) -> Any:
            ran.append(len(feeds["x"]))
            return self.session.run(names, feeds)

    monkeypatch.setattr(module, "open_session", Counting)
    prepared, batches = cnn(tmp_path), images(50, 7)
    for passes in (1.0, 2.0, 3.0, 5.5):
        ran.clear()
        found = measure(prepared, batches, FORMATS, passes=passes)
        assert found.passes == sum(ran) / 50 <= passes == found.budget
        assert max(ran) <= 7
    assert found.samples == 50


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path) -> None:
    prepared, batches = cnn(tmp_path), images(64)
    one, two, other = (measure(prepared, batches, FORMATS, seed=seed) for seed in (0, 0, 1))
    assert one == two
    assert one.damage != other.damage


@pytest.mark.parametrize("kind", ["classes", "embedding", "values"])
def test_nothing_rounded_is_no_damage(tmp_path: Path, kind: Kind) -> None:
    found = measure(cnn(tmp_path), images(64), {"float": Format(FLOAT, FLOAT), "w8": Format(W8, FLOAT)}, kind=kind)
    assert {found.damage[group, "float"] for group in (*BLOCKS, "fc")} == {0.0}
    assert {found.local_sqnr[group, "float"] for group in (*BLOCKS, "fc")} == {float("inf")}
    assert all(found.damage[group, "w8"] > 0 for group in (*BLOCKS, "fc"))


def test_where_samples_are_few_one_format_is_run_and_the_others_follow_from_local_noise(tmp_path: Path) -> None:
    prepared, batches = cnn(tmp_path), images(13)
    few, many = measure(prepared, batches, FORMATS), measure(prepared, batches, FORMATS, passes=1000)
    assert Plan.of(13, 7, FORMATS, 3.0, "classes") == Plan(13, 3, ("w4a8",))
    assert few.passes <= 3
    for group in (*BLOCKS, "fc"):
        noise = {name: 10 ** (-few.local_sqnr[group, name] / 10) for name in FORMATS}
        assert few.damage[group, "w8a8"] == pytest.approx(few.damage[group, "w4a8"] * noise["w8a8"] / noise["w4a8"])
    assert spearmanr([few.damage[key] for key in many.damage], list(many.damage.values()))[0] > 0.8
    with pytest.raises(DataError, match="2 samples are too few to try 7 groups in 3 passes"):
        measure(prepared, images(2), FORMATS)


def test_fixed_batches_ragged_texts_and_probabilities(tmp_path: Path) -> None:
    for folder in ("a", "b", "c", "d"):
        (tmp_path / folder).mkdir()
    fixed = measure(cnn(tmp_path / "a", batch=4), images(96, 4), FORMATS, passes=4)
    assert fixed.passes <= 4
    assert fixed.each % 4 == 0
    ragged = measure(attention(tmp_path / "b"), tokens(5, 9, 5, 11), {"w8a8": FORMATS["w8a8"]}, kind="values")
    assert all(0 < damage < 0.1 for damage in ragged.damage.values())
    logits, chances = (measure(cnn(tmp_path / f, softmax=s), images(96), FORMATS) for f, s in (("c", False), ("d", True)))
    assert chances.damage.keys() == logits.damage.keys()
    np.testing.assert_allclose(list(chances.damage.values()), list(logits.damage.values()), rtol=0.05)


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    prepared, batches = cnn(tmp_path), images(16)
    stats = observed(prepared, batches)
    with pytest.raises(UsageError, match="Unknown kind of output 'boxes'"):
        sensitivity(prepared, ONNXRUNTIME_CPU, FORMATS, stats, batches, kind="boxes")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no samples"):
        sensitivity(prepared, ONNXRUNTIME_CPU, FORMATS, stats, [], kind="classes")
    with pytest.raises(ModelError, match="nothing to measure"):
        sensitivity(prepared, ONNXRUNTIME_CPU, {}, stats, batches, kind="classes")
    with pytest.raises(DataError, match="could not run the calibration samples"):
        sensitivity(prepared, ONNXRUNTIME_CPU, FORMATS, stats, [{"x": batches[0]["x"][:, :2]}], kind="classes", passes=1000)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=30), st.data())
def test_samples_are_drawn_with_their_chances(importance: list[float], data: st.DataObject) -> None:
    values = np.array(importance)
    count = data.draw(st.integers(1, len(values)))
    chance = inclusion(values, count)
    assert chance.sum() == pytest.approx(count)
    assert ((chance > 0) & (chance <= 1 + 1e-12)).all()
    assert (np.diff(chance[np.argsort(values, kind="stable")]) >= -1e-12).all()
    draws = [systematic(chance, offset) for offset in (np.arange(1000) + 0.5) / 1000]
    seen = np.bincount(np.concatenate(draws), minlength=len(values)) / len(draws)
    np.testing.assert_allclose(seen, chance, atol=3e-3)


def test_divergence_crossed_over_samples_by_hand() -> None:
    before = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    change = np.array([[0.4, 0.0], [0.0, 0.2]])
    judge = Judge([[before]], "classes")

    def kl(p: Array, scores: Array) -> float:
        q = np.exp(scores) / np.exp(scores).sum()
        return float((p * np.log(p / q)).sum())

    own = [kl(np.exp(before[i]), before[i] + change[i]) for i in range(2)]
    crossed = [np.mean([kl(np.exp(before[i]), before[i] + change[j]) for j in range(2)]) for i in range(2)]
    np.testing.assert_allclose(judge.own([[before + change]]), own, rtol=1e-9)
    assert judge.crossed([[before + change]], np.array([0.25, 0.75])) == pytest.approx(0.25 * crossed[0] + 0.75 * crossed[1])
    np.testing.assert_allclose(judge.importance(), [0.5, 0.18])
