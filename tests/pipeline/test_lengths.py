"""What is said about times at several sequence lengths."""

from __future__ import annotations

from lowbit.pipeline.lengths import sentences
from lowbit.types import Candidate, Latency, Measurement, Ratio, Tuning


def timed(*ratios: tuple[int, float, float]) -> Candidate:
    """Batch 1 at (tokens, ratio, lower end of its interval)."""
    entries = tuple(
        Measurement(1, 1, Latency(1, 1, 1, 1, 1), 1000, Ratio(value, low, value + 0.05), None, 9, False, Tuning(), tokens=tokens)
        for tokens, value, low in ratios
    )
    return Candidate("int8@x", "int8", "x", "int8", by_length=entries)


def test_gains_are_said_in_one_sentence() -> None:
    assert sentences(timed((16, 1.61, 1.5), (32, 2.31, 2.2), (64, 1.9, 1.8))) == (
        "At 16 to 64 tokens it is 1.61x to 2.31x as fast as the baseline.",
    )
    assert sentences(timed((32, 2, 1.9))) == ("At 32 tokens it is 2.00x as fast as the baseline.",)


def test_a_length_without_a_gain_is_named() -> None:
    found = sentences(timed((16, 0.97, 0.95), (32, 1.4, 1.3)))
    assert found[1:] == ("At 16 tokens and batch 1 it is not faster than the baseline: 0.97x [0.95, 1.02].",)


def test_nothing_is_said_where_nothing_was_timed() -> None:
    assert sentences(timed()) == ()
