"""KL divergence and agreement against a spooled reference, with models whose every probability is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bigram_engine import BigramSession, draw, table
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import RunError, UsageError
from lowbit.llm.evaluate.divergence import FLOOR, Spool, SpoolWriter, divergence, kl_rows, levels_of, log_softmax
from lowbit.llm.evaluate.perplexity import window_logits
from lowbit.llm.evaluate.windows import Windows, cut

REFERENCE = table(40, seed=1, sharpness=2)
CANDIDATE = 0.6 * REFERENCE + 0.4 * table(40, seed=2, sharpness=2)
TEXTS = [("a", draw(REFERENCE, 300, 1)), ("b", draw(REFERENCE, 150, 2))]
WINDOWS = Windows(32, 24)
PIECES = cut(TEXTS, WINDOWS)


def spooled(folder: Path, chosen: list[int]) -> Spool:
    session = BigramSession(REFERENCE)
    with SpoolWriter(folder, TEXTS, [PIECES[i] for i in chosen], 40) as writer:
        for i in chosen:
            writer.add(PIECES[i], window_logits(session, TEXTS, PIECES[i])[0])
    return Spool(folder)


def test_divergence_is_what_the_definition_gives(tmp_path: Path) -> None:
    chosen = [0, 3, len(PIECES) - 1]
    spool, session = spooled(tmp_path / "reference", chosen), BigramSession(CANDIDATE)
    spool.check(TEXTS, PIECES)
    assert [piece in spool for piece in PIECES] == [i in chosen for i in range(len(PIECES))]
    kl_by_token = (REFERENCE * np.log(REFERENCE / CANDIDATE)).sum(axis=1)
    same = REFERENCE.argmax(axis=1) == CANDIDATE.argmax(axis=1)
    found, agree, expected, hits = [], 0, [], 0
    for i in chosen:
        window = PIECES[i]
        kl, right = spool.compare(window, window_logits(session, TEXTS, window)[0])
        before = TEXTS[window.document][1][window.first - 1 : window.end - 1]
        found += kl.tolist()
        agree += right
        expected += kl_by_token[before].tolist()
        hits += int(same[before].sum())
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert spool.tokens == len(expected)
    told = divergence(np.array(found), agree)
    assert told.kl_mean == pytest.approx(np.mean(expected), rel=1e-4)
    assert told.kl_median == pytest.approx(np.median(expected), rel=1e-3)
    assert told.kl_p99 == pytest.approx(np.quantile(expected, 0.99), rel=1e-3)
    assert told.top1 == hits / len(expected)
    assert 0 < told.top1 < 1


def test_the_reference_itself_has_no_divergence(tmp_path: Path) -> None:
    spool = spooled(tmp_path / "reference", [1, 2])
    kl, agree = spool.compare(PIECES[1], window_logits(BigramSession(REFERENCE), TEXTS, PIECES[1])[0])
    assert agree == len(kl) == PIECES[1].scored
    assert 0 <= kl.max() < 1e-7


@given(seed=st.integers(0, 50), sharpness=st.floats(0.01, 30))
def test_a_spooled_log_probability_is_within_half_a_step(seed: int, sharpness: float) -> None:
    rows = log_softmax(np.random.default_rng(seed).normal(size=(3, 200)) * sharpness)
    levels, low, step = levels_of(rows)
    back = levels * step[:, None].astype(float) + low[:, None]
    told_apart = rows > rows.max(axis=1, keepdims=True) - FLOOR
    assert (np.abs(back - rows) <= 0.51 * step[:, None] + 1e-6 * np.abs(rows))[told_apart].all()
    assert (back[~told_apart] <= rows.max() - FLOOR + 1e-3).all()


def test_a_vocabulary_as_wide_as_stated_is_as_exact_as_stated() -> None:
    rows = log_softmax(np.linspace(-26, 0, 4096)[None])
    levels, low, step = levels_of(rows)
    back = levels * step[:, None].astype(float) + low[:, None]
    assert np.abs(back - rows).max() <= 0.0002
    assert kl_rows(log_softmax(back), rows)[0] < 1e-7


def test_what_both_rule_out_adds_nothing_and_what_one_does_adds_much() -> None:
    reference = log_softmax(np.array([[0.0, 0.0, -1e9]]))
    assert kl_rows(reference, log_softmax(np.array([[0.0, 0.0, -np.inf]])))[0] == pytest.approx(0, abs=1e-12)
    assert kl_rows(reference, log_softmax(np.array([[0.0, -np.inf, 0.0]])))[0] > 1000


def test_a_spool_of_other_text_or_windows_is_refused(tmp_path: Path) -> None:
    spool = spooled(tmp_path / "reference", [0, 1])
    with pytest.raises(UsageError, match="other documents or windows"):
        spool.check([("a", TEXTS[0][1][::-1]), TEXTS[1]], PIECES)
    with pytest.raises(UsageError, match="other documents or windows"):
        spool.check(TEXTS, cut(TEXTS, Windows(32)))
    with pytest.raises(RunError, match="41 logits a token, the 16-bit model 40"):
        spool.compare(PIECES[0], np.zeros((PIECES[0].scored, 41), np.float32))


def test_an_unfinished_spool_leaves_nothing_and_replaces_nothing(tmp_path: Path) -> None:
    spooled(tmp_path / "reference", [0])
    with pytest.raises(RuntimeError), SpoolWriter(tmp_path / "reference", TEXTS, PIECES[:2], 40):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]
    assert PIECES[0] in Spool(tmp_path / "reference")


def test_a_damaged_spool_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no 16-bit log-probabilities"):
        Spool(tmp_path / "none")
    spooled(tmp_path / "reference", [0])
    (tmp_path / "reference" / "levels.npy").write_bytes(b"")
    with pytest.raises(UsageError, match="no 16-bit"):
        Spool(tmp_path / "reference")


def test_no_number_is_an_error() -> None:
    with pytest.raises(RunError, match="no number"):
        divergence(np.array([0.1, np.nan]), 1)
