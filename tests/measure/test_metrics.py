from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, r2_score, roc_auc_score, root_mean_squared_error

from lowbit.errors import DataError, RunError, UsageError
from lowbit.measure.metrics import check_policy, metric_for
from lowbit.measure.outcomes import Outcomes
from lowbit.types import Budget, Policy, TensorInfo

RNG = np.random.default_rng(0)


def info(*shape, name="logits", dtype="float32"):
    return TensorInfo(name, shape, dtype)


def classes(n=300, width=10):
    labels = RNG.integers(0, width, n)
    logits = RNG.normal(size=(n, width)).astype(np.float32)
    logits[np.arange(n), labels] += 1.5
    return logits, labels


def observe(metric, outputs, labels, reference=None, batch=64):
    n = len(next(iter(outputs.values())))

    def part(arrays, i):
        return None if arrays is None else {name: values[i : i + batch] for name, values in arrays.items()}

    def observed(i):
        return metric.observe(part(outputs, i), None if labels is None else labels[i : i + batch], part(reference, i))

    return Outcomes.join([observed(i) for i in range(0, n, batch)])


def resampled_agrees(metric, columns):
    """The fast form equals the library's value: on the sample, and on one real resample of it."""
    units = metric.statistic.units(columns)
    n = len(next(iter(units.values())))
    drawn = np.random.default_rng(1).integers(0, n, n)
    counts = np.stack([np.ones(n), np.bincount(drawn, minlength=n)]).astype(float)
    again = {name: values[drawn] for name, values in units.items()}
    expected = [metric.statistic.value(units), metric.statistic.value(again)]
    assert metric.statistic.resampled(units, counts) == pytest.approx(expected, rel=1e-9)


def test_classification_values_are_scikit_learns():
    logits, labels = classes()
    task, top1, others = metric_for(None, None, [info("N", 10)], labels)
    outcomes = observe(top1, {"logits": logits}, labels)
    by_name = {metric.name: metric for metric in (top1, *others)}
    assert (task, top1.name, top1.binary, top1.bounded) == ("classification", "top1", True, True)
    assert set(by_name) == {"top1", "top5", "macro_f1", "kl"}
    guess = logits.argmax(axis=1)
    assert top1.value(outcomes.columns) == pytest.approx(accuracy_score(labels, guess))
    assert by_name["macro_f1"].value(outcomes.columns) == pytest.approx(f1_score(labels, guess, average="macro"))
    rank = (logits > logits[np.arange(300), labels][:, None]).sum(axis=1)
    assert by_name["top5"].value(outcomes.columns) == pytest.approx((rank < 5).mean())
    assert top1.value(outcomes.columns, np.arange(10)) == pytest.approx((guess == labels)[:10].mean())
    for name in ("top1", "top5", "macro_f1"):
        resampled_agrees(by_name[name], outcomes.columns)


def test_confidences_are_the_same_from_logits_and_from_probabilities():
    logits, labels = classes()
    powers = np.exp(logits.astype(np.float64))
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    _, metric, _ = metric_for(None, "top1", [info("N", 10)], labels)
    ours = observe(metric, {"logits": logits}, labels)
    theirs = observe(metric, {"logits": probabilities}, labels)
    assert ours.columns["confidence"] == pytest.approx(probabilities.max(axis=1), rel=1e-5)
    assert theirs.columns["confidence"] == pytest.approx(probabilities.max(axis=1), rel=1e-12)
    top = np.sort(probabilities, axis=1)
    assert theirs.columns["margin"] == pytest.approx(top[:, -1] - top[:, -2])


def test_logits_are_settled_by_the_sample_batch():
    """A batch of logits in 0-1 looks like probabilities; what the whole model gives says otherwise."""
    labels = np.array([0, 1])
    outputs = {"logits": np.array([[0.3], [0.9]])}
    sample = {"logits": np.array([[-4.0], [5.0]])}
    _, unsettled, _ = metric_for(None, "top1", [info("N", 1)], labels)
    _, settled, _ = metric_for(None, "top1", [info("N", 1)], labels, sample)
    assert observe(unsettled, outputs, labels).columns["score"] == pytest.approx([0.3, 0.9])
    assert observe(settled, outputs, labels).columns["score"] == pytest.approx(1 / (1 + np.exp([-0.3, -0.9])))


@pytest.mark.parametrize("columns", [1, 2])
def test_binary_scores_and_roc_auc(columns):
    labels = RNG.integers(0, 2, 400)
    logit = (labels * 2 - 1 + RNG.normal(size=400) * 2).round(1)  # rounding makes ties
    outputs = logit[:, None] if columns == 1 else np.stack([np.zeros(400), logit], axis=1)
    task, metric, others = metric_for(None, None, [info("N", columns)], labels)
    outcomes = observe(metric, {"logits": outputs}, labels, batch=400)
    auc = next(other for other in others if other.name == "roc_auc")
    assert task == "classification"
    assert outcomes.columns["score"] == pytest.approx(1 / (1 + np.exp(-logit)))
    assert auc.value(outcomes.columns) == pytest.approx(roc_auc_score(labels, logit))
    assert metric.value(outcomes.columns) == pytest.approx(accuracy_score(labels, logit > 0))
    resampled_agrees(auc, outcomes.columns)
    assert np.isnan(auc.value(outcomes.columns, np.flatnonzero(labels == 1)))


def test_spatial_axes_of_one_and_one_hot_labels_are_classes():
    logits, labels = classes(50)
    task, metric, _ = metric_for(None, None, [info("N", 10, 1, 1)], labels)
    one_hot, _, _ = metric_for(None, None, [info("N", 10)], np.eye(10)[labels])
    outcomes = observe(metric, {"logits": logits.reshape(50, 10, 1, 1)}, np.eye(10)[labels])
    assert task == one_hot == "classification"
    assert metric.value(outcomes.columns) == pytest.approx(accuracy_score(labels, logits.argmax(axis=1)))


@pytest.mark.parametrize("width", [1, 3])
def test_regression_values_are_scikit_learns(width):
    labels = RNG.normal(size=(200, width)) * 3 + 1000
    prediction = labels + RNG.normal(size=labels.shape)
    task, rmse, others = metric_for(None, None, [info("N", width, name="y")], labels)
    outcomes = observe(rmse, {"y": prediction}, labels)
    by_name = {metric.name: metric for metric in (rmse, *others)}
    assert (task, rmse.name, rmse.higher_is_better, rmse.bounded) == ("regression", "rmse", False, False)
    assert by_name["mae"].value(outcomes.columns) == pytest.approx(mean_absolute_error(labels, prediction))
    assert by_name["r2"].value(outcomes.columns) == pytest.approx(r2_score(labels, prediction))
    if width == 1:
        assert rmse.value(outcomes.columns) == pytest.approx(root_mean_squared_error(labels, prediction))
    for name in ("rmse", "mae", "r2"):
        resampled_agrees(by_name[name], outcomes.columns)


def test_spearman_over_consecutive_rows_pair_numbers_and_twin_outputs_agree():
    first, second = RNG.normal(size=(2, 60, 8)).astype(np.float32)
    cosines = np.einsum("nd,nd->n", first, second) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    scores = (cosines + RNG.normal(size=60)).round(1) + 0.05
    expected = spearmanr(scores, cosines).statistic
    rows = np.stack([first, second], axis=1).reshape(120, 8)
    output = info("N", 8, name="sentence_embedding")

    task, metric, _ = metric_for(None, "spearman", [output], np.repeat(scores, 2))
    consecutive = observe(metric, {"sentence_embedding": rows}, np.repeat(scores, 2), batch=7)
    assert task == "embedding"
    assert metric.value(consecutive.columns) == pytest.approx(expected)
    resampled_agrees(metric, consecutive.columns)

    order = RNG.permutation(120)
    numbered = np.stack([np.repeat(np.arange(60), 2), np.repeat(scores, 2)], axis=1)[order]
    _, metric, _ = metric_for("embedding", "spearman", [output], numbered)
    assert metric.value(observe(metric, {"sentence_embedding": rows[order]}, numbered).columns) == pytest.approx(expected)

    twins = [info("N", 8, name="embedding_a"), info("N", 8, name="embedding_b")]
    _, metric, _ = metric_for("embedding", "spearman", twins, scores)
    assert metric.value(observe(metric, {"embedding_a": first, "embedding_b": second}, scores).columns) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0.5, 0.5, 0.25, 0.75], "do not come in pairs"),
        ([0.5, 0.5, 0.25], "their number is odd"),
        ([[0, 0.5], [1, 0.5], [2, 0.25]], "No two samples share a pair number"),
        ([[0, 0.5], [0, 0.5], [0, 0.5]], "Pair number 0 is carried by 3 samples"),
        ([[7, 0.5], [3, 0.1], [7, 0.25], [3, 0.1]], "pair 7 carry different similarities, 0.5 and 0.25"),
    ],
)
def test_what_does_not_come_in_pairs_is_refused_before_the_work(labels, said):
    with pytest.raises(DataError, match=said):
        metric_for("embedding", "spearman", [info("N", 8, name="embedding")], np.array(labels))
    _, metric, _ = metric_for("embedding", "cosine", [info("N", 8, name="embedding")], np.array(labels))
    assert metric.groups(np.array(labels)) is None


def test_cosine_takes_labels_that_are_no_pairs_and_shows_no_rank_correlation_beside_it():
    scores = np.array([0.5, 0.5, 0.25, 0.75])
    _, metric, others = metric_for("embedding", None, [info("N", 8, name="embedding")], scores)
    columns = observe(metric, {"embedding": RNG.normal(size=(4, 8))}, scores).columns
    assert metric.value(columns) == 1
    assert [other.name for other in others if other.measurable(columns)] == []


def test_pairs_are_the_groups_of_the_data():
    output = info("N", 8, name="embedding")
    scores = np.array([0.5, 0.5, 0.25, 0.25])
    assert metric_for("embedding", "spearman", [output], scores)[1].groups(scores).tolist() == [0, 0, 1, 1]
    numbered = np.array([[9, 0.5], [2, 0.1], [9, 0.5], [5, 0.2], [2, 0.1]])  # 5 has lost its partner
    assert metric_for("embedding", "spearman", [output], numbered)[1].groups(numbered).tolist() == [2, 0, 2, 1, 0]
    twins = [info("N", 8, name="embedding_a"), info("N", 8, name="embedding_b")]
    assert metric_for("embedding", "spearman", twins, scores)[1].groups(scores) is None
    _, labels = classes()
    assert metric_for(None, None, [info("N", 10)], labels)[1].groups(labels) is None


def test_spearman_of_a_beginning_leaves_out_who_has_no_partner_yet():
    output, rows = info("N", 8, name="embedding"), RNG.normal(size=(40, 8)).astype(np.float32)
    scores = np.repeat(RNG.normal(size=20), 2)
    for labels in (scores, np.stack([np.repeat(np.arange(20), 2), scores], axis=1)):
        _, metric, _ = metric_for("embedding", "spearman", [output], labels)
        columns = observe(metric, {"embedding": rows}, labels).columns
        assert metric.value(columns, np.arange(31)) == metric.value(columns, np.arange(30))
        assert np.isnan(metric.value(columns, np.arange(1)))


def test_no_labels_means_fidelity_of_the_fitting_kind():
    assert metric_for(None, None, [info("N", 10)], None)[:2][1].name == "agreement"
    assert metric_for(None, None, [info("N", 384, name="sentence_embedding")], None)[1].name == "cosine"
    assert metric_for(None, None, [info("N", "T", 384, name="last")], None)[1].name == "cosine"
    task, metric, _ = metric_for(None, None, [info("N", 1, name="price")], None)
    assert (task, metric.name) == ("fidelity", "fidelity")


def test_agreement_and_kl_against_the_reference():
    logits, _ = classes(100)
    _, metric, others = metric_for(None, None, [info("N", 10)], None)
    kl = next(other for other in others if other.name == "kl")
    worse = logits.copy()
    worse[:7] = -worse[:7]
    baseline = observe(metric, {"logits": logits}, None)
    candidate = observe(metric, {"logits": worse}, None, {"logits": logits})
    assert metric.value(baseline.columns) == 1
    assert metric.value(candidate.columns) == pytest.approx(0.93)
    p, q = (np.exp(x[:7]) / np.exp(x[:7]).sum(axis=1, keepdims=True) for x in (logits.astype(float), worse.astype(float)))
    assert kl.value(candidate.columns) == pytest.approx((p * np.log(p / q)).sum() / 100)
    assert kl.value(baseline.columns) == 0


def test_fidelity_of_numbers_is_relative_to_their_spread_not_their_offset():
    reference = RNG.normal(size=(500, 1)) + 300
    outputs = reference + 0.1 * RNG.normal(size=(500, 1))
    _, metric, _ = metric_for(None, None, [info("N", 1, name="kelvin")], None)
    outcomes = observe(metric, {"kelvin": outputs}, None, {"kelvin": reference})
    assert metric.value(outcomes.columns) == pytest.approx(0.9, abs=0.02)
    resampled_agrees(metric, outcomes.columns)


def test_nan_rows_are_misses_and_marked():
    logits, labels = classes(20)
    logits[3, 0], logits[4, 1] = np.nan, np.inf
    labels[[3, 4]] = 0  # what an output of zeros would be taken for
    _, metric, _ = metric_for(None, None, [info("N", 10)], labels)
    outcomes = observe(metric, {"logits": logits}, labels)
    assert np.flatnonzero(~outcomes.columns["finite"]).tolist() == [3, 4]
    assert not outcomes.columns["hit"][[3, 4]].any()
    assert all(np.isfinite(values.astype(float)).all() for values in outcomes.columns.values())


def test_custom_metric(tmp_path, monkeypatch):
    (tmp_path / "mine_scores.py").write_text(
        "import numpy as np\n"
        "def near(outputs, labels):\n    return 1 - np.abs(outputs['y'][:, 0] - labels)\n"
        "def one(outputs, labels):\n    return 1.0\n"
        "word = 'no function'\n"
    )
    monkeypatch.chdir(tmp_path)
    labels = np.array([0.0, 0.5])
    task, metric, _ = metric_for(None, "mine_scores:near", [info("N", 1, name="y")], labels)
    outcomes = observe(metric, {"y": np.array([[0.1], [0.2]])}, labels)
    assert (task, metric.higher_is_better) == ("custom", True)
    assert metric.value(outcomes.columns) == pytest.approx((0.9 + 0.7) / 2)
    _, wrong, _ = metric_for(None, "mine_scores:one", [info("N", 1, name="y")], labels)
    with pytest.raises(UsageError, match=r"returned shape \(\) for 2 samples"):
        observe(wrong, {"y": np.zeros((2, 1))}, labels)
    for name in ("mine_scores:word", "mine_scores:missing", "nowhere_to_be_found:f"):
        with pytest.raises(UsageError):
            metric_for(None, name, [info("N", 1, name="y")], labels)


@pytest.mark.parametrize(
    ("task", "name", "outputs", "labels", "error", "words"),
    [
        (None, "top2", [info("N", 10)], np.arange(10), UsageError, "Did you mean 'top1'|Did you mean 'top5'"),
        ("classify", None, [info("N", 10)], np.arange(10), UsageError, "Did you mean 'classification'"),
        ("classification", "rmse", [info("N", 10)], np.arange(10), UsageError, "metric for classification"),
        (None, "top1", [info("N", 10)], None, DataError, "needs labels"),
        (None, None, [info("N", 10)], np.array([1, 10]), DataError, "classes 0 to 9"),
        (None, None, [info("N", 10)], np.array([-1, 2]), DataError, "from -1 to 2"),
        (None, None, [info("N", 10)], np.array([3, 3, 3]), DataError, "All 3 labels are class 3"),
        (None, "top5", [info("N", 3)], np.arange(3), UsageError, "always 100 %"),
        (None, "roc_auc", [info("N", 3)], np.arange(3), UsageError, "two classes"),
        (None, "kl", [info("N", 3)], None, UsageError, "own value is 0"),
        (None, None, [info("N", dtype="int64")], np.arange(3), UsageError, "floating-point"),
        ("custom", None, [info("N", 3)], np.arange(3), UsageError, "module:callable"),
    ],
)
def test_what_makes_no_sense_is_said(task, name, outputs, labels, error, words):
    with pytest.raises(error, match=words):
        metric_for(task, name, outputs, labels)


def test_aliases_and_spellings():
    for name, expected in (("accuracy", "top1"), ("Top-1", "top1"), ("macro-f1", "macro_f1"), ("f1", "macro_f1")):
        assert metric_for(None, name, [info("N", 10)], np.arange(10))[1].name == expected


def test_points_are_refused_where_there_is_no_scale():
    _, rmse, _ = metric_for(None, "rmse", [info("N", 1)], np.array([0.5, 1.5]))
    with pytest.raises(UsageError, match="Use 1%"):
        check_policy(rmse, Policy("regression", "rmse", Budget.parse("1pp")))
    check_policy(rmse, Policy("regression", "rmse", Budget.parse("1%")))


def test_outputs_that_do_not_fit_are_run_errors():
    _, metric, _ = metric_for(None, None, [info("N", 10)], np.arange(10))
    with pytest.raises(RunError, match="'logits' is missing"):
        metric.observe({"other": np.zeros((10, 10))}, np.arange(10), None)
    with pytest.raises(DataError, match="10 labels for 3 samples"):
        metric.observe({"logits": np.zeros((3, 10))}, np.arange(10), None)


def test_outcomes_round_trip_and_take(tmp_path):
    outcomes = Outcomes({"hit": np.array([True, False, True]), "confidence": np.array([0.5, 0.25, 1.0])})
    path = tmp_path / "outcomes.npz"
    outcomes.save(path)
    back = Outcomes.load(path)
    assert back.n == 3
    assert back.columns["hit"].dtype == bool
    assert back.take(np.array([2, 0])).columns["confidence"].tolist() == [1.0, 0.5]
    path.write_bytes(b"not an archive")
    with pytest.raises(DataError, match="no per-sample outcomes"):
        Outcomes.load(path)
    with pytest.raises(DataError, match="no samples"):
        Outcomes.join([])
