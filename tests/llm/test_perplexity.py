"""Perplexity of models whose every probability is known, and of the real small Llama."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from bigram_engine import BigramSession, draw, table
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import DataError, RunError, UsageError
from lowbit.llm.evaluate.perplexity import Perplexity, evaluate, token_nll
from lowbit.llm.evaluate.windows import Window, Windows, cut, spread


def documents(*lengths: int) -> list[tuple[str, np.ndarray]]:
    return [(f"d{i}", np.arange(length, dtype=np.int32) % 7) for i, length in enumerate(lengths)]


def test_rows_do_not_overlap_and_leave_a_short_end_out() -> None:
    assert cut(documents(10), Windows(4)) == [Window(0, 0, 4, 1), Window(0, 4, 8, 5)]


def test_a_text_shorter_than_a_row_is_its_one_row() -> None:
    assert cut(documents(3, 1, 0, 4), Windows(4)) == [Window(0, 0, 3, 1), Window(3, 0, 4, 1)]


def test_strided_windows_score_each_token_once_with_context_before_it() -> None:
    assert cut(documents(11), Windows(6, 3)) == [Window(0, 0, 6, 1), Window(0, 3, 9, 6), Window(0, 6, 11, 9)]


@given(length=st.integers(2, 200), size=st.integers(2, 40), share=st.floats(0, 1))
def test_strides_leave_out_no_token_but_the_first_of_a_window_without_overlap(length: int, size: int, share: float) -> None:
    stride = max(1, round(share * size))
    windows = cut(documents(length), Windows(size, stride))
    scored = [t for window in windows for t in range(window.first, window.end)]
    expected = set(range(1, length)) if stride < size else {t for t in range(length) if t % size}
    assert scored == sorted(expected)
    assert all(window.end - window.begin <= size and window.first > window.begin for window in windows)
    assert all(window.first - window.begin >= size - stride for window in windows[1:-1])


@pytest.mark.parametrize(("size", "stride", "found"), [(1, None, "2 tokens or more"), (8, 0, "1 to"), (8, 9, "1 to")])
def test_windows_that_make_no_sense_are_refused(size: int, stride: int | None, found: str) -> None:
    with pytest.raises(UsageError, match=found):
        Windows(size, stride)


def test_no_text_is_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="longest of 2 has 1"):
        cut(documents(1, 0), Windows(4))


def test_spread_takes_windows_from_everywhere() -> None:
    windows = cut(documents(4001), Windows(5))
    chosen = spread(windows, 400)
    assert len(chosen) == 100
    assert chosen[0] == 0
    assert chosen[-1] == len(windows) - 1
    assert spread(windows, 1) == [0]
    assert spread(windows, 10**9) == list(range(len(windows)))


def by_hand(probabilities: np.ndarray, tokens: np.ndarray, windows: list[Window]) -> tuple[float, int]:
    total, count = 0.0, 0
    for window in windows:
        for t in range(window.first, window.end):
            total -= math.log(probabilities[tokens[t - 1], tokens[t]])
            count += 1
    return total, count


@pytest.mark.parametrize("windows", [Windows(16), Windows(16, 5), Windows(16, 16)], ids=str)
def test_a_bigram_model_has_exactly_the_perplexity_counted_by_hand(windows: Windows) -> None:
    probabilities = table(9, seed=3)
    texts = [("a", draw(probabilities, 203, 1)), ("b", draw(probabilities, 77, 2)), ("short", draw(probabilities, 1))]
    found = evaluate(BigramSession(probabilities), texts, windows, sizes={"a": 800, "b": 320, "short": 4})
    sums = [by_hand(probabilities, tokens, cut([(name, tokens)], windows)) for name, tokens in texts[:2]]
    nll, count = sum(total for total, _ in sums), sum(n for _, n in sums)
    assert found.tokens == count
    assert found.value == pytest.approx(math.exp(nll / count), rel=1e-6)  # logits are float32
    assert [each.name for each in found.documents] == ["a", "b"]
    assert [each.perplexity for each in found.documents] == pytest.approx([math.exp(total / n) for total, n in sums], rel=1e-6)
    assert found.documents[0].nll == pytest.approx(sum(found.documents[0].windows))
    assert found.bits_per_byte == pytest.approx(nll / count / math.log(2) * 281 / 1124, rel=1e-6)
    assert Perplexity.from_dict(json.loads(json.dumps(asdict(found)))) == found


def test_progress_counts_windows() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(BigramSession(table(7)), documents(20), Windows(5), progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@settings(max_examples=60)
@given(shift=st.floats(-3e4, 3e4), spread=st.floats(0.1, 80), seed=st.integers(0, 99))
def test_log_softmax_is_exact_whatever_the_logits(shift: float, spread: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = (random.normal(size=(4, 50)) * spread + shift).astype(np.float32)
    targets = random.integers(0, 50, 4)
    wide = logits.astype(np.longdouble)
    exact = np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1)) + wide.max(1) - wide[np.arange(4), targets]
    np.testing.assert_allclose(token_nll(logits, targets), exact.astype(float), rtol=1e-12, atol=1e-12)


def test_a_token_without_a_logit_is_refused() -> None:
    with pytest.raises(RunError, match="token 7, and the model gives 7"):
        token_nll(np.zeros((2, 7), np.float32), np.array([1, 7]))


def test_no_number_is_an_error_and_not_a_perplexity() -> None:
    session = BigramSession(table(7))
    session._logits[3, 2] = np.nan
    with pytest.raises(RunError, match=r"no numbers .* in 3 of 4 windows"):
        evaluate(session, documents(20), Windows(5))


def test_a_word_ruled_out_by_the_model_is_no_number() -> None:
    probabilities = table(7)
    probabilities[2, 3] = 0.0
    with pytest.raises(RunError, match="no numbers"):
        evaluate(BigramSession(probabilities), documents(20), Windows(5))


def test_the_small_llama_has_its_published_perplexity(shared_data: Path) -> None:
    """An eighth of the text; the figure for all of it (58.07) is the benchmark's."""
    from reference_session import ReferenceSession

    from lowbit.llm.evaluate.text import open_text

    folder = shared_data / "small-llama"
    text = open_text(folder)
    read = {name: text.encode((folder / f"eval_{name}.txt").read_text(encoding="utf-8")) for name in ("darwin", "shakespeare")}
    texts = [(name, np.array(tokens[: 256 * 6 + 3], np.int32)) for name, tokens in read.items()]
    found = evaluate(ReferenceSession(folder), texts, Windows(256))
    assert found.tokens == 2 * 6 * 255
    assert found.value == pytest.approx(39.36, abs=2)
