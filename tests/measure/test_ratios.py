from __future__ import annotations

import numpy as np
import pytest

from lowbit.measure.ratios import NOISE, latency, medians, noisy, ratio, speedup, summary, throughput
from lowbit.types import Latency, Ratio, Tuning


def drifting(factor: float, rounds: int = 12, jitter: float = 0.01, seed: int = 0) -> list[list[float]]:
    """Seconds on a machine that gets twice as slow from the first round to the last."""
    rng = np.random.default_rng(seed)
    return [list(factor * (1 + r / (rounds - 1)) * rng.normal(1, jitter, 20)) for r in range(rounds)]


def test_latency_quantiles_are_over_all_calls_in_milliseconds() -> None:
    found = latency([[0.001 * i for i in range(1, 51)], [0.001 * i for i in range(51, 102)]])
    assert (found.p50, found.p95, found.p99) == pytest.approx((51, 96, 100))


def test_latency_interval_resamples_rounds_not_calls() -> None:
    # Two kinds of rounds, each within itself without any spread: resampling calls would see a narrow interval.
    found = latency([[0.001] * 1000, [0.003] * 1000] * 3)
    assert (found.ci_low, found.ci_high) == pytest.approx((1, 3))
    steady = latency([[0.002] * 10] * 6)
    assert (steady.ci_low, steady.p50, steady.ci_high) == pytest.approx((2, 2, 2))


def test_speedup_within_rounds_survives_drift() -> None:
    found = speedup(drifting(0.010), drifting(0.004, seed=1))
    assert found is not None
    assert found.value == pytest.approx(2.5, rel=0.01)
    assert 2.45 < found.ci_low <= found.value <= found.ci_high < 2.55
    # The same data with rounds torn apart: the drift would hide it.
    torn = speedup(drifting(0.010)[::-1], drifting(0.004, seed=1))
    assert torn is not None
    assert torn.ci_high - torn.ci_low > 1


def test_speedup_uses_common_rounds_only() -> None:
    assert speedup([[2.0], [2.0], [100.0]], [[1.0], [1.0]]) == Ratio(2, 2, 2)
    assert speedup([], [[1.0]]) is None


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        found = ratio(rng.lognormal(np.log(2), 0.1, 15), np.ones(15))
        assert found is not None
        held += found.ci_low <= 2 <= found.ci_high
    assert 0.90 <= held / 200 <= 0.995


def test_interval_is_of_the_median_not_of_the_values() -> None:
    found = ratio(range(1, 16), np.ones(15))
    assert found is not None
    # By the binomial distribution the median of 15 values lies between the 4th and the 12th in 96.5 % of cases.
    assert found.value == 8
    assert found.ci_low == pytest.approx(4, abs=1)
    assert found.ci_high == pytest.approx(12, abs=1)


def test_same_rounds_same_interval() -> None:
    assert speedup(drifting(1), drifting(2, seed=5)) == speedup(drifting(1), drifting(2, seed=5))


def test_throughput_counts_samples() -> None:
    np.testing.assert_allclose(throughput([[0.1] * 10, [0.1] * 20], [1.0, 4.0], batch=8), [80, 40])
    np.testing.assert_allclose(medians([[1, 2, 9], [4, 6]]), [2, 5])


STEADY = Latency(10, 11, 12, 9.9, 10.1)


def test_noisy_rule() -> None:
    assert not noisy(STEADY, Ratio(2, 1.9, 2.1), None, rounds=15)
    assert noisy(STEADY, Ratio(2, 2 - 2 * NOISE - 0.01, 2.1), rounds=15)
    assert noisy(STEADY, Ratio(2, 1.9, 2 + 2 * NOISE + 0.01), rounds=15)
    assert noisy(Latency(10, 11, 12, 8.9, 10.1), rounds=15)
    assert noisy(STEADY, rounds=2)
    assert not noisy(STEADY, rounds=15, other_load=0.10)
    assert noisy(STEADY, rounds=15, other_load=0.11)


def test_summary_with_one_stream_compares_latency() -> None:
    base, own = [[0.010, 0.012, 0.014]] * 5, [[0.003, 0.004, 0.005]] * 5
    found = summary(own, [0.012] * 5, batch=8, streams=1, tuning=Tuning(), baseline=(base, [0.036] * 5), best_fp32=None)
    assert found.latency_ms.p50 == pytest.approx(4)
    assert found.throughput_per_s == pytest.approx(3 * 8 / 0.012)
    assert found.speedup is not None
    assert found.speedup.value == pytest.approx(3)
    assert found.speedup_over_best_fp32 is None
    assert (found.batch, found.streams, found.rounds, found.noisy) == (8, 1, 5, False)


def test_summary_with_several_streams_compares_throughput() -> None:
    # The candidate's calls take longer each, yet more of them finish in the same time.
    base, own = [[0.010] * 100] * 5, [[0.020] * 150] * 5
    found = summary(own, [1.0] * 5, batch=1, streams=4, tuning=Tuning(), baseline=(base, [1.0] * 5), best_fp32=(own, [1.0] * 5))
    assert found.speedup is not None
    assert found.speedup_over_best_fp32 is not None
    assert found.speedup.value == pytest.approx(1.5)
    assert found.speedup_over_best_fp32.value == pytest.approx(1)
