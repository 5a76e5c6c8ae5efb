"""How certain answers are, as measure/ sees it, and thresholds from a bundle's own samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper
from serving_case import BASELINE, INT8, OUTPUT, tiny_bundle

from lowbit.bundle.bundle import Bundle
from lowbit.measure.observe import ClassObserver
from lowbit.measure.outcomes import Outcomes
from lowbit.serving.answer.certainty import ClassReader, _ends_in_probabilities, lowest_safe, reader_for, samples, threshold
from lowbit.types import TensorInfo

LOGITS = arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 7)), elements=st.floats(-30, 30, width=32))


@given(LOGITS, st.booleans())
def test_certainty_is_what_measure_calls_confidence_and_margin(logits: np.ndarray, probabilities: bool) -> None:
    if probabilities:
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        logits = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    found = ClassReader("y", probabilities)({"y": logits})
    wanted = ClassObserver("y", False, probabilities)({"y": logits}, None, None)
    np.testing.assert_allclose(found.confidence, wanted["confidence"], atol=2e-6)
    np.testing.assert_allclose(found.margin, wanted["margin"], atol=2e-6)


@given(LOGITS, st.booleans())
def test_the_top_class_alone_is_the_same_to_the_bit(logits: np.ndarray, probabilities: bool) -> None:
    reader = ClassReader("y", probabilities)
    confidence, classes = reader.top({"y": logits})
    np.testing.assert_array_equal(confidence, reader({"y": logits}).confidence)
    if logits.shape[1] > 1:
        np.testing.assert_array_equal(classes, logits.argmax(axis=1))
    else:
        np.testing.assert_array_equal(classes, logits[:, 0] > (0.5 if probabilities else 0.0))


def test_rows_that_are_no_numbers_are_not_certain_at_all() -> None:
    logits = np.array([[9.0, 0.0], [np.nan, 0.0], [np.inf, 0.0]], np.float32)
    assert [part.tolist() for part in ClassReader("y", False).top({"y": logits})] == [[pytest.approx(1, abs=1e-3), 0, 0], [0, -1, -1]]
    found = ClassReader("y", False)({"y": logits})
    assert found.confidence[0] > 0.999
    assert found.confidence[1:].tolist() == found.margin[1:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("operator", "wanted"), [("Softmax", True), ("Relu", False)])
def test_probabilities_are_seen_in_the_graph(tmp_path: Path, operator: str, wanted: bool) -> None:
    nodes = [helper.make_node(operator, ["x"], ["a"]), helper.make_node("Identity", ["a"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]))
    onnx.save(model, tmp_path / "m.onnx")
    assert _ends_in_probabilities(tmp_path / "m.onnx", "y") is wanted


def test_only_classifiers_have_a_reader(tmp_path: Path) -> None:
    bundle = Bundle.load(tiny_bundle(tmp_path / "tiny"))
    assert reader_for(bundle, (TensorInfo(OUTPUT, (None, 10), "float32"),)) == ClassReader(OUTPUT, False)
    assert reader_for(bundle, (TensorInfo("boxes", (None, 100, 4), "float32"),)) is None
    assert reader_for(bundle, (TensorInfo("names", (None, 4), "int64"),)) is None


def test_a_program_ends_as_the_baseline_does_that_it_was_made_from(tmp_path: Path) -> None:
    bundle = Bundle.load(tiny_bundle(tmp_path / "tiny"))
    assert bundle.manifest.baseline.artifact == "baseline/model.onnx"
    model = onnx.load(bundle.folder / "baseline" / "model.onnx")
    model.graph.node.append(helper.make_node("Softmax", [OUTPUT], ["p"]))
    model.graph.output[0].name = "p"
    onnx.save(model, bundle.folder / "baseline" / "model.onnx")
    program = bundle.manifest.model.model_copy(update={"artifact": "model/model.pt2"})
    outputs = (TensorInfo("p", (None, 10), "float32"),)
    assert reader_for(Bundle(bundle.folder, bundle.manifest.model_copy(update={"model": program})), outputs) == ClassReader("p", True)
    assert reader_for(bundle, outputs) == ClassReader("p", False)  # what ships is read where it can be


def test_the_threshold_lies_above_every_sample_that_was_answered_differently() -> None:
    certain = np.linspace(0, 1, 101)
    differ = np.zeros(101, bool)
    differ[[0, 3, 7]] = True
    found = lowest_safe(certain, differ)
    assert 0.07 < found < 0.070001
    assert (certain[differ] < found).all()
    differ[50] = True  # one outlier must not send half of all requests to full precision
    assert lowest_safe(certain, differ) == pytest.approx(0.1)
    assert lowest_safe(certain, np.zeros(101, bool)) == pytest.approx(0.01)


def test_the_threshold_comes_from_the_outcomes_of_both_candidates(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "tiny")
    assert found(folder) is None
    margins = np.linspace(0, 1, 100)
    same = np.zeros(100, int)
    save(folder / "baseline", "search", margins, same)
    save(folder / "baseline", "confirm", margins, same)
    save(folder / "candidates" / INT8, "search", margins, np.where(margins < 0.05, 1, 0))
    first = found(folder)
    assert first is not None
    assert margins[4] < first < margins[5]
    save(folder / "candidates" / INT8, "confirm", margins, np.where(margins < 0.08, 1, 0))
    second = found(folder)
    assert second is not None
    assert margins[7] < second < margins[8]


def found(folder: Path) -> float | None:
    bundle = Bundle.load(folder)
    return threshold(samples(bundle, INT8), samples(bundle, BASELINE))


def save(folder: Path, part: str, margins: np.ndarray, predicted: np.ndarray) -> None:
    Outcomes({"margin": margins, "confidence": margins, "predicted": predicted}).save(folder / f"outcomes-{part}.npz")
