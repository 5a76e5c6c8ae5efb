"""Rank correlation over pairs of samples, from the data to the interval, as a search goes through it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from lowbit.data import open_data, split
from lowbit.data.dataset import Dataset
from lowbit.graph.load import load_model
from lowbit.measure.compare import compare
from lowbit.measure.metrics import Metric, metric_for
from lowbit.measure.outcomes import Outcomes
from lowbit.pipeline import results
from lowbit.pipeline.evaluate import evaluate
from lowbit.pipeline.request import Options
from lowbit.runtimes import registry
from lowbit.types import Array, Budget, Policy, Tuning
from small_models import embedding, reference

PAIRS = 400
POLICY = Policy("embedding", "spearman", Budget.parse("1pp"))


def cosines(model: Path, ids: Array) -> Array:
    """Cosine of each pair [n] from token ids [2 n, T], by the model itself."""
    vectors = reference(model, {"ids": ids})["mean"].astype(float)
    first, second = vectors[::2], vectors[1::2]
    return np.einsum("nd,nd->n", first, second) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return embedding(tmp_path / "embedding.onnx")


@pytest.fixture(params=["consecutive", "numbered"])
def arrays(request: pytest.FixtureRequest, model: Path) -> dict[str, Array]:
    rng = np.random.default_rng(5)
    ids = rng.integers(0, 50, (2 * PAIRS, 6))
    scores = np.repeat(np.round(cosines(model, ids) + rng.normal(scale=0.2, size=PAIRS), 3), 2)
    if request.param == "consecutive":
        return {"ids": ids, "labels": scores}
    order = rng.permutation(2 * PAIRS)
    return {"ids": ids[order], "labels": np.stack([np.arange(2 * PAIRS) // 2, scores], axis=1)[order]}


def opened(model: Path, arrays: dict[str, Array]) -> tuple[Dataset, Metric]:
    source = load_model(model)
    data = open_data(arrays, source.inputs)
    return data, metric_for(None, "spearman", source.outputs, data.labels)[1]


def test_every_part_keeps_all_its_pairs(model: Path, arrays: dict[str, Array]) -> None:
    data, metric = opened(model, arrays)
    parts = split(data, groups=metric.groups(data.labels))
    session = registry.get("onnxruntime").open(model, Tuning(), None)
    pairs = 0
    for part in (parts.calibration, parts.search, parts.confirm):
        outcomes = evaluate(session, part, metric)
        found = compare(metric, outcomes, outcomes, POLICY)
        ids, labels = arrays["ids"][part.rows], part.labels.reshape(len(part), -1)[::2, -1]
        assert found.metric.n == len(part) // 2
        assert found.metric.value == pytest.approx(spearmanr(labels, cosines(model, ids)).statistic)
        pairs += found.metric.n
    assert pairs == PAIRS


def test_an_early_look_may_come_in_the_middle_of_a_pair(model: Path, arrays: dict[str, Array]) -> None:
    data, metric = opened(model, arrays)
    part = split(data, groups=metric.groups(data.labels)).search
    session = registry.get("onnxruntime").open(model, Tuning(), None)
    whole = evaluate(session, part, metric)
    looks: list[tuple[int, int]] = []

    def look(outcomes: Outcomes) -> bool:
        looks.append((outcomes.n, compare(metric, whole.take(np.arange(outcomes.n)), outcomes, POLICY, hardest=False).metric.n))
        return True

    assert evaluate(session, part, metric, size=257, stop=look).n == 257
    assert looks == [(257, 128)]


def test_validate_keeps_pairs_together_and_compares_them(model: Path, arrays: dict[str, Array], tmp_path: Path) -> None:
    for name in ("a", "b"):
        scored = results.validate(model, arrays, options=Options(metric="spearman"))
        results.save(scored, tmp_path / f"{name}.json")
    first, second = (results.load(tmp_path / f"{name}.json") for name in "ab")
    found, _, _ = results.compare_results(first, second, Options(max_drop="1pp"))
    assert (found.metric.n, found.delta.value) == (PAIRS, 0)
    assert found.metric.value == pytest.approx(first.value)
    assert first.value > 0.5


def test_the_manifest_and_validate_mean_the_same_by_a_fingerprint(model: Path, arrays: dict[str, Array]) -> None:
    data, metric = opened(model, arrays)
    calibration = open_data({"ids": np.random.default_rng(9).integers(0, 50, (20, 6))}, data.inputs)
    parts = split(data, calibration, metric.groups(data.labels))
    assert results.validate(model, arrays, options=Options(metric="spearman")).fingerprint == parts.validation.fingerprint
