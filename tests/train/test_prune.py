"""Pruning: what a channel is worth, which go first, and rounds of cutting and training on a small model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from graph_cases import Case, node, run, weights
from lowbit.errors import ModelError, UsageError
from lowbit.graph import ir_files
from lowbit.graph.channel_sets import Channels
from lowbit.graph.channels import channels_of
from lowbit.runtimes.base import Kernel
from lowbit.train.checkpoint import Epoch
from lowbit.train.importance import importance
from lowbit.train.pool import Pool
from lowbit.train.prune import Pruning, shrink
from lowbit.train.prune_choose import choose, cost, rates, seconds_of
from lowbit.train.qat import Settings
from lowbit.train.twin import Twin
from lowbit.types import Array

SHORT = Settings(epochs=3, minutes=1, batch=16, weight_rate=1.0, vary=False)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def case(first: int = 8, second: int = 16) -> Case:
    """Two convolutions, a residual sum, scores of classes."""
    nodes = [
        node("Conv", "x w1 b1", "a", pads=[1] * 4),
        node("Relu", "a", "r"),
        node("Conv", "r w2 b2", "b", pads=[1] * 4),
        node("Relu", "b", "rb"),
        node("Conv", "rb w3 _", "c"),
        node("Add", "c r", "s"),
        node("GlobalAveragePool", "s", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f wh bh", "y", transB=1),
    ]
    constants = {
        "w1": weights(first, 1, 3, 3, scale=0.6),
        "b1": weights(first, seed=1),
        "w2": weights(second, first, 3, 3, seed=2),
        "b2": weights(second, seed=3),
        "w3": weights(first, second, 1, 1, seed=4),
        "wh": weights(4, first, seed=5, scale=1.0),
        "bh": weights(4, seed=6),
    }
    return Case(nodes, {"x": ["N", 1, 8, 8]}, ["y"], constants)


def images(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 1, (count, 1, 8, 8)).astype(np.float32)


def found_in(path: Path) -> Channels:
    return channels_of(ir_files.read(path).graph)


def test_importance_of_values_is_the_squared_change_when_a_channel_goes(tmp_path: Path) -> None:
    """On a linear model second order is exact."""
    h, w = weights(3, 6, scale=1.0), weights(6, 4, seed=1, scale=1.0)
    linear = Case([node("MatMul", "x h", "a"), node("MatMul", "a w", "y")], {"x": ["N", 3]}, ["y"], {"h": h, "w": w})
    path = linear.save(tmp_path / "linear.onnx")
    x = np.random.default_rng(0).normal(size=(8000, 3)).astype(np.float32)
    given = importance(Twin(path), Pool({"x": x}), found_in(path), kind="values", batch=500)
    inner = x @ h
    power = float(((inner @ w) ** 2).sum(1).mean())
    exact = (inner**2).mean(0) * (w**2).sum(1) / power
    np.testing.assert_allclose(given["MatMul:a"], exact, rtol=0.1)


def test_importance_of_classes_is_the_change_of_the_distribution(tmp_path: Path) -> None:
    """A gate that closes by a hundredth changes the answers by the square of that, times what importance says."""
    path = case().save(tmp_path / "model.onnx")
    found, pool = found_in(path), Pool({"x": images(3000)})
    given = importance(Twin(path), pool, found, batch=200)["Conv:b"]
    twin, feeds = Twin(path), {"x": torch.from_numpy(pool.feeds["x"])}
    with torch.no_grad():
        before = torch.log_softmax(twin(feeds)["y"].double(), -1)
        for channel in np.argsort(given)[-3:]:
            for name in ("w2", "b2"):
                twin.weight(name)[channel] *= 0.95
            after = torch.log_softmax(twin(feeds)["y"].double(), -1)
            change = float((before.exp() * (before - after)).sum(-1).mean())
            for name in ("w2", "b2"):
                twin.weight(name)[channel] /= 0.95
            assert change / 0.05**2 == pytest.approx(given[channel], rel=0.25)


def test_a_channel_that_nobody_reads_is_worth_nothing(tmp_path: Path) -> None:
    made = case()
    made.constants["w3"][:, 5] = 0  # type: ignore[index]
    path = made.save(tmp_path / "model.onnx")
    given = importance(Twin(path), Pool({"x": images(64)}), found_in(path))["Conv:b"]
    assert given[5] == 0
    assert np.count_nonzero(given) > 12


def test_costs_round_up_to_the_block(tmp_path: Path) -> None:
    found = found_in(case(24, 40).save(tmp_path / "model.onnx"))
    given = rates(found, {"Conv:b": 1.0, "Conv:c": 0.5}, block=16)
    stays = np.ones(found.count, bool)
    assert cost(found, stays, given) == pytest.approx(1.5)
    (wide,) = [each for each in found.sets if each.name == "Conv:b"]
    stays[wide.channels[:7]] = False  # 33 left: as slow as 40
    assert cost(found, stays, given) == pytest.approx(1.5)
    stays[wide.channels[:8]] = False  # 32: two blocks instead of three
    assert cost(found, stays, given) == pytest.approx(1.0)


def test_what_is_missed_least_for_its_time_goes_first(tmp_path: Path) -> None:
    found = found_in(case(32, 32).save(tmp_path / "model.onnx"))
    given = rates(found)
    whole = cost(found, np.ones(found.count, bool), given)
    worth = {"Conv:a": np.arange(32.0) + 100, "Conv:b": np.arange(32.0)[::-1]}
    chosen = choose(found, worth, given, 0.6 * whole)
    assert list(chosen) == ["Conv:b"]
    np.testing.assert_array_equal(chosen["Conv:b"], np.arange(32) < 16)
    assert set(choose(found, worth, given, 0.4 * whole)) == {"Conv:a", "Conv:b"}
    assert choose(found, worth, given, whole) == {}
    lowest = choose(found, worth, given, 0.0, block=4, least=0.25)
    assert {name: int(mask.sum()) for name, mask in lowest.items()} == {"Conv:a": 8, "Conv:b": 8}


def test_kernels_share_their_time_out_over_their_products(tmp_path: Path) -> None:
    found = found_in(case().save(tmp_path / "model.onnx"))
    kernels = [Kernel("k", "Convolution", ("Conv:a", "Relu:r"), 2.0, 0), Kernel("l", "Fused", ("Conv:b", "Conv:c"), 1.0, 0)]
    given = seconds_of([*kernels, Kernel("m", "Reorder", ("other",), 9.0, 0)], found)
    assert given == {"Conv:a": 2.0, "Conv:b": 0.5, "Conv:c": 0.5, "Gemm:y": 0.0}


def test_rounds_cut_and_train(tmp_path: Path) -> None:
    source = case(8, 16).save(tmp_path / "model.onnx")
    before = source.read_bytes()
    pool = Pool({"x": images(256)}, images=True)
    settings = Pruning(share=0.4, rounds=2, block=4, samples=64, agreement=0.01, training=SHORT)
    seen: list[float] = []
    shrunk = shrink(source, tmp_path / "out.onnx", pool, settings, on_round=lambda each: seen.append(each.predicted))
    assert source.read_bytes() == before
    assert seen == [each.predicted for each in shrunk.rounds]
    assert [each.predicted <= share for each, share in zip(shrunk.rounds, (0.4**0.5, 0.4), strict=True)] == [True, True]
    model = onnx.load(shrunk.path)
    onnx.checker.check_model(model, full_check=True)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    widths = shrunk.rounds[-1].widths
    assert shapes["w2"] == (widths["Conv:b"], widths["Conv:a"], 3, 3)
    assert widths["Conv:a"] * widths["Conv:b"] <= 64
    history = shrunk.rounds[-1].trained.history
    assert shrunk.rounds[-1].trained.best.held_out_loss < history[0].held_out_loss
    fresh = {"x": images(50, seed=9)}
    twin = Twin(shrunk.path)({"x": torch.from_numpy(fresh["x"])})["y"].detach().numpy()
    np.testing.assert_allclose(run(model, fresh)["y"], twin, rtol=1e-4, atol=1e-4)


def test_a_pruning_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """Neither cut nor timed again; the epochs that are done are not trained again; and it ends where it would have ended."""
    source, pool = case(8, 16).save(tmp_path / "model.onnx"), Pool({"x": images(128)}, images=True)
    settings = Pruning(share=0.4, rounds=2, block=4, samples=64, agreement=0.01, training=SHORT)
    timed: list[Path] = []

    def share_of(path: Path) -> float:
        timed.append(path)
        return 0.1

    def stop(epoch: Epoch) -> None:
        seen.append(epoch.number)
        if len(seen) == 6:  # the second of the second round
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        shrink(source, tmp_path / "out.onnx", pool, settings, share_of=share_of, folder=tmp_path / "work", on_epoch=stop)
    assert not (tmp_path / "out.onnx").exists()
    assert len(timed) == 2
    trained: list[float] = []
    found = shrink(
        source,
        tmp_path / "out.onnx",
        pool,
        settings,
        share_of=share_of,
        folder=tmp_path / "work",
        on_epoch=lambda epoch: trained.append(epoch.seconds),
    )
    assert len(timed) == 2
    assert [len(each.trained.history) for each in found.rounds] == [4, 4]
    assert len(trained) == 8  # those of before are told of again
    whole = shrink(source, tmp_path / "at_once.onnx", pool, settings, share_of=share_of)
    assert found.rounds[-1].widths == whole.rounds[-1].widths
    for ours, theirs in zip(*(onnx.load(path).graph.initializer for path in (found.path, whole.path)), strict=True):
        np.testing.assert_allclose(numpy_helper.to_array(ours), numpy_helper.to_array(theirs), rtol=1e-5, atol=1e-6)
    deeper = Pruning(share=0.3, rounds=2, block=4, samples=64, agreement=0.01, training=SHORT)
    shrink(source, tmp_path / "out.onnx", pool, deeper, share_of=share_of, folder=tmp_path / "work")
    assert len(timed) > 4  # another pruning begins anew
    before = len(timed)
    shrink(
        source, tmp_path / "out.onnx", Pool({"x": images(128, seed=5)}, images=True), deeper, share_of=share_of, folder=tmp_path / "work"
    )
    assert len(timed) > before  # and so does one by other samples


def test_a_round_whose_answers_are_too_different_is_taken_back(tmp_path: Path) -> None:
    source, pool = case(8, 16).save(tmp_path / "model.onnx"), Pool({"x": images(256)}, images=True)
    strict = Pruning(share=0.1, rounds=2, block=4, samples=64, agreement=0.999, training=SHORT)
    seen: list[float | None] = []
    found = shrink(source, tmp_path / "out.onnx", pool, strict, on_round=lambda each: seen.append(each.agreement))
    assert len(seen) == 2
    assert found.taken_back is not None
    assert found.taken_back.agreement == seen[1]
    assert seen[1] is not None
    assert seen[1] < 0.999
    (only,) = found.rounds
    shapes = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(found.path).graph.initializer}
    assert shapes["w2"][:2] == (only.widths["Conv:b"], only.widths["Conv:a"])
    assert only.widths != found.taken_back.widths


def test_what_is_left_is_fitted_before_it_is_trained(tmp_path: Path) -> None:
    source = case(8, 16).save(tmp_path / "model.onnx")
    found = shrink(source, tmp_path / "out.onnx", Pool({"x": images(256)}), Pruning(share=0.4, block=4, training=SHORT))
    (only,) = found.rounds
    assert set(only.repaired) == {"Conv:a", "Conv:b", "Conv:c", "Gemm:y"}
    assert all(after <= before for before, after in only.repaired.values())
    assert only.repaired["Conv:c"][1] < 0.9 * only.repaired["Conv:c"][0]


def test_a_cut_that_saves_too_little_is_deepened(tmp_path: Path) -> None:
    """Three tenths of the time pass whatever the widths, which the model of costs does not know."""
    source = case(8, 32).save(tmp_path / "model.onnx")
    found = found_in(source)
    whole = cost(found, np.ones(found.count, bool), rates(found, block=4), 4)

    def measured(path: Path) -> float:
        after = found_in(path)
        return 0.3 + 0.7 * cost(after, np.ones(after.count, bool), rates(after, block=4), 4) / whole

    settings = Pruning(share=0.7, rounds=1, block=4, samples=64, training=SHORT)
    shrunk = shrink(source, tmp_path / "out.onnx", Pool({"x": images(64)}), settings, share_of=measured)
    (only,) = shrunk.rounds
    assert only.measured is not None
    assert only.measured <= 0.7
    assert only.predicted < 0.6


def test_a_model_without_channels_to_prune_is_refused(tmp_path: Path) -> None:
    one = Case([node("Conv", "x w _", "y")], {"x": ["N", 1, 8, 8]}, ["y"], {"w": weights(3, 1, 3, 3)})
    with pytest.raises(ModelError, match=r"'one.onnx' has no channels that can be pruned"):
        shrink(one.save(tmp_path / "one.onnx"), tmp_path / "out.onnx", Pool({"x": images(40)}))


@pytest.mark.parametrize(
    ("name", "value"), [("share", 1.5), ("least", 0.0), ("agreement", 1.0), ("rounds", 0), ("block", 0), ("samples", 0)]
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{name} is {value}"):
        Pruning(**{name: value})
