"""How an export is tried: kernel sets that are chosen, doubtful samples, a reference that does not load, Ctrl-C."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from target_case import INPUT, OUTPUT, samples, target_bundle

from conftest import missing
from lowbit.bundle.bundle import Bundle
from lowbit.bundle.schema import MetricEntry
from lowbit.data.open import open_data
from lowbit.errors import Interrupted, RunError, UsageError
from lowbit.export.litert.target import LiteRT
from lowbit.export.qnn.target import Qnn
from lowbit.measure.metrics import Metric, metric_for
from lowbit.pipeline.reporting import Reporter
from lowbit.pipeline.targets.leave import add_targets, leave
from lowbit.pipeline.targets.plausible import doubt
from lowbit.types import Array, TensorInfo


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return target_bundle(tmp_path_factory.mktemp("plausible"))


def classes(bundle: Bundle, pictures: Array) -> Array:
    with bundle.session(candidate=bundle.manifest.baseline.id) as session:
        return np.asarray(session.run({INPUT: pictures})[OUTPUT].argmax(1))


def top1() -> Metric:
    return metric_for("classification", "top1", (TensorInfo("y", ("N", 10), "float32"),), np.arange(3), preprocess=None)[1]


@pytest.mark.parametrize(
    ("here", "n", "warned"),
    [(0.70, 200, False), (0.60, 200, False), (0.30, 200, True), (0.30, 19, False), (0.95, 200, False), (float("nan"), 200, False)],
)
def test_a_far_lower_share_is_doubted(here: float, n: int, warned: bool) -> None:
    found = doubt(top1(), here, n, MetricEntry(name="top1", value=0.71, n=400))
    assert (found is not None) is warned


def test_what_the_bundle_was_not_judged_by_is_not_doubted() -> None:
    assert doubt(top1(), 0.0, 200, None) is None
    assert doubt(top1(), 0.0, 200, MetricEntry(name="box_f1", value=0.9, n=400)) is None


@pytest.mark.parametrize(("here", "warned"), [(0.5, False), (1.4, False), (1.6, True)])
def test_an_error_three_times_as_large_is_doubted(here: float, warned: bool) -> None:
    metric = metric_for("regression", "mae", (TensorInfo("y", ("N", 1), "float32"),), np.arange(3.0), preprocess=None)[1]
    assert (doubt(metric, here, 100, MetricEntry(name="mae", value=0.5, n=100)) is not None) is warned


@pytest.mark.parametrize(("here", "warned"), [(0.9, False), (0.65, False), (0.5, True)])
def test_a_far_lower_score_is_doubted(here: float, warned: bool) -> None:
    f1 = replace(top1(), name="box_f1", binary=False)
    assert (doubt(f1, here, 100, MetricEntry(name="box_f1", value=0.9, n=100)) is not None) is warned


def test_labels_that_are_numbered_otherwise_are_told_of(bundle: Bundle, tmp_path: Path) -> None:
    pictures = samples(60, seed=7)
    wrong = {INPUT: pictures, "label": (classes(bundle, pictures) + 1) % 10}
    found = leave(bundle, "qnn", tmp_path / "out", data=wrong, settings=["context=false"], time=False)
    (told,) = (each for each in found.findings if each.rule == "the data are of the bundle's kind")
    assert told.severity == "warning"
    assert "0.00 % on these 60 samples and 100.00 % on the bundle's own" in told.text
    right = {INPUT: pictures, "label": classes(bundle, pictures)}
    found = leave(bundle, "qnn", tmp_path / "right", data=right, settings=["context=false"], time=False)
    assert not [each for each in found.findings if each.severity == "warning"]


def test_a_reference_that_does_not_load_is_told_and_the_rest_is_judged(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise RunError("no such operator")

    monkeypatch.setattr(Qnn, "reference", fails)
    pictures = samples(30, seed=7)
    right = {INPUT: pictures, "label": classes(bundle, pictures)}
    found = leave(bundle, "qnn", tmp_path / "out", data=right, settings=["context=false"], time=False)
    assert [each.text for each in found.findings if each.rule == "its own reference"] == ["Not compared with it: no such operator"]
    assert all(each.agreement >= 0.9 and np.isnan(each.agreement_exact) for each in found.kernels)


class Stops(Reporter):
    """Ctrl-C as soon as the artifact is asked."""

    def stage(self, name: str, total: int | None = None) -> None:  # noqa: ARG002
        if "samples" in name:
            raise KeyboardInterrupt


def test_ctrl_c_leaves_nothing_behind_and_says_so(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted, match="nothing was written"):
        leave(bundle, "qnn", out, settings=["context=false"], time=False, reporter=Stops())
    assert list(tmp_path.iterdir()) == []
    leave(bundle, "qnn", out, settings=["context=false"], time=False)
    before = (out / "target.json").read_bytes()
    with pytest.raises(Interrupted, match="an earlier export is still there"):
        leave(bundle, "qnn", out, settings=["context=false"], time=False, force=True, reporter=Stops())
    assert (out / "target.json").read_bytes() == before


class StopsAt(Reporter):
    """Ctrl-C as soon as one target is written for."""

    def __init__(self, title: str) -> None:
        self._title = title

    def stage(self, name: str, total: int | None = None) -> None:  # noqa: ARG002
        if name == f"Writing for {self._title}":
            raise KeyboardInterrupt


def test_ctrl_c_between_targets_keeps_those_that_are_done(tmp_path: Path) -> None:
    made = target_bundle(tmp_path)
    judges = open_data({INPUT: samples(30, seed=7), "label": np.zeros(30, int)}, [TensorInfo(INPUT, ("N", 3, 12, 12), "float32")])
    with pytest.raises(Interrupted, match=r"while writing for qnn; '.*' is finished, with TensorRT\.") as error:
        add_targets(made, ["tensorrt", "qnn"], judges, time=False, reporter=StopsAt("Qualcomm QNN"))
    assert "--to qnn" in str(error.value.hint)
    assert [each.target for each in Bundle.load(made.folder).manifest.targets] == ["tensorrt"]
    assert not (made.folder / "targets" / "qnn").exists()


def test_kernel_sets_can_be_chosen(bundle: Bundle, tmp_path: Path) -> None:
    if LiteRT().version() is None:
        missing("ai-edge-litert")
    found = leave(bundle, "litert", tmp_path / "out", kernels=["reference", "xnnpack"], time=False)
    assert [each.kernels for each in found.kernels] == ["xnnpack", "reference"]
    with pytest.raises(UsageError, match="Unknown kernel set of LiteRT 'xnpack'") as error:
        leave(bundle, "litert", tmp_path / "other", kernels=["xnpack"], time=False)
    assert error.value.hint == "Did you mean 'xnnpack'?"
    assert not (tmp_path / "other").exists()


def test_a_fixed_batch_is_timed_in_calls_of_its_own_size(tmp_path: Path) -> None:
    if LiteRT().version() is None:
        missing("ai-edge-litert")
    found = leave(target_bundle(tmp_path, batch=3), "litert", tmp_path / "out", kernels=["xnnpack"])
    (told,) = found.kernels
    assert told.latency_ms is not None
    assert told.speedup is not None
    assert 0 < told.latency_ms.p50 < 100
