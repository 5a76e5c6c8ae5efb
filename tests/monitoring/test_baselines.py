"""What a bundle knows of its variants: all of it where the folder is whole, what the manifest has where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from serving_case import BASELINE, INT8, tiny_bundle

from lowbit.bundle.bundle import Bundle
from lowbit.compress.calibrate import CalibrationStats
from lowbit.measure.outcomes import Outcomes
from lowbit.monitoring.baseline import Baseline
from lowbit.monitoring.moments import Moments
from lowbit.monitoring.tally import Key, Tally
from lowbit.monitoring.windows import Window
from lowbit.quant.observers import Observer

INPUT = "input.1"
KEY = Key("tiny", "v1", INT8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, np.ndarray]:
    """With the outcomes of every sample, and what calibration saw."""
    folder = tiny_bundle(tmp_path_factory.mktemp("whole") / "tiny")
    rng = np.random.default_rng(0)
    for home, shift in (("baseline", 0), (f"candidates/{INT8}", 1)):
        for part, n in (("search", 300), ("confirm", 200)):
            confidence, predicted = rng.beta(6 - shift, 1.2, n), rng.integers(shift, 4, n)
            Outcomes({"confidence": confidence, "predicted": predicted, "margin": confidence}).save(folder / home / f"outcomes-{part}.npz")
    values = rng.normal(0.3, 0.7, (100, 3, 8, 8)).astype(np.float32)
    (folder / "calibration").mkdir()
    CalibrationStats({INPUT: Observer().update(values).finalize()}, 100, {}).save(folder / "calibration" / "stats.npz")
    return Bundle.load(folder), values


def test_each_variant_has_its_own(whole: tuple[Bundle, np.ndarray]) -> None:
    found = {name: Baseline.of(whole[0], name) for name in (BASELINE, INT8)}
    for each in found.values():
        assert (each.source, sum(each.tally.confidence), sum(each.tally.predictions), each.tally.recorded) == ("bundle", 500, 500, 500)
    assert found[INT8].tally.predictions[0] == 0 < found[BASELINE].tally.predictions[0]
    assert found[INT8].tally.confidence != found[BASELINE].tally.confidence


def test_inputs_are_those_that_calibrated(whole: tuple[Bundle, np.ndarray]) -> None:
    bundle, values = whole
    found = Baseline.of(bundle, INT8).tally.inputs[INPUT]
    assert found.n == values.size
    assert found.mean == pytest.approx(values.mean(), abs=0.002)
    assert found.std == pytest.approx(values.std(), rel=0.002)
    assert (found.low, found.high) == (pytest.approx(values.min()), pytest.approx(values.max()))


def test_a_thin_folder_falls_back_on_the_manifest(bundle: Bundle) -> None:
    entry = bundle.manifest.entry(INT8)
    assert entry.comparison is not None
    found = Baseline.of(bundle, INT8)
    assert found.tally.confidence == entry.comparison.histogram
    assert (found.tally.predictions, found.tally.inputs) == ((), {})
    assert found.accuracy == pytest.approx(entry.comparison.metric.value)
    assert found.latency_ms is not None
    assert found.latency_ms["p50"] == entry.measurements[0].latency_ms.p50
    with pytest.raises(KeyError):
        Baseline.of(bundle, "none")


def test_it_survives_json(whole: tuple[Bundle, np.ndarray]) -> None:
    found = Baseline.of(whole[0], INT8)
    again = Baseline.from_json(found.to_json())
    assert again.tally.confidence == found.tally.confidence
    assert again.tally.inputs[INPUT].std == pytest.approx(found.tally.inputs[INPUT].std)
    assert (again.source, again.accuracy, again.latency_ms) == (found.source, found.accuracy, found.latency_ms)


def test_what_the_bundle_lacks_is_learned_and_said(bundle: Bundle) -> None:
    """Confidences stay the bundle's; predictions and inputs are the first window's."""
    known = Baseline.of(bundle, INT8)
    tally = Tally(recorded=2_000, confidence=(0,) * 255 + (2_000,), predictions=(1_500, 500), inputs={INPUT: Moments(2_000, 0.0, 2_000.0)})
    found = known.with_learned(Window(KEY, 0, 1, tally))
    assert found.tally.confidence == known.tally.confidence
    assert (found.tally.predictions, found.tally.inputs) == (tally.predictions, tally.inputs)
    assert (found.source, found.learned) == ("bundle", ("predictions", "inputs"))
    assert found.text == "the bundle's own samples; predictions and inputs: the first full window after deployment"


def test_an_accepted_window_keeps_what_it_has_nothing_of(bundle: Bundle) -> None:
    known = Baseline.of(bundle, INT8)
    found = Baseline.accepted(Window(KEY, 0, 1, Tally(recorded=9, predictions=(4, 5))), known, "ann")
    assert (found.tally.predictions, found.tally.confidence, found.accuracy) == ((4, 5), known.tally.confidence, known.accuracy)
    assert (found.source, found.by, found.text) == ("accepted", "ann", "a window that a person accepted")
