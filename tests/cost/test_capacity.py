"""How many requests an instance holds: against a simulation of the queue, and as it must behave whatever the numbers."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.cost.capacity import batched_rate_within, erlang_c, instances_for, rate_within, response_s

RATES = st.floats(0.01, 1e5)


def simulated_p99(rate: float, workers: int, n: int = 60_000) -> float:
    """99th percentile of the time in a queue with service times of 1."""
    arrivals = np.cumsum(np.random.default_rng(7).exponential(1 / rate, n))
    free = [0.0] * workers
    took = np.empty(n)
    for i, moment in enumerate(arrivals.tolist()):
        start = max(moment, heapq.heappop(free))
        heapq.heappush(free, start + 1)
        took[i] = start + 1 - moment
    return float(np.quantile(took, 0.99))


@pytest.mark.parametrize(("workers", "load"), [(1, 0.3), (1, 0.7), (2, 0.5), (2, 0.8), (4, 0.5), (4, 0.8)])
def test_the_queue_is_close_to_a_simulation(workers: int, load: float) -> None:
    ratio = response_s(load * workers, 1.0, workers) / simulated_p99(load * workers, workers)
    assert 0.85 < ratio < 1.3


def test_the_chance_to_wait_of_textbooks() -> None:
    assert erlang_c(0.0, 3) == 0
    assert erlang_c(0.8, 1) == pytest.approx(0.8)
    assert erlang_c(8.0, 10) == pytest.approx(0.409, abs=5e-4)


def test_more_than_the_workers_can_do_never_ends() -> None:
    assert response_s(101, 0.01) == math.inf
    assert response_s(100, 0.01) == math.inf
    assert response_s(0.0, 0.01) == 0.01


@settings(deadline=None)
@given(service=st.floats(1e-4, 1), slack=st.floats(1.01, 100), workers=st.integers(1, 16))
def test_the_rate_within_a_target_is_the_most_that_holds_it(service: float, slack: float, workers: int) -> None:
    target = service * slack
    rate = rate_within(target, service, workers)
    assert 0 < rate < workers / service
    assert response_s(rate, service, workers) <= target * (1 + 1e-9)
    assert response_s(min(rate * 1.001, workers / service), service, workers) >= target * (1 - 1e-3) or rate > workers / service * 0.998


@settings(deadline=None)
@given(service=st.floats(1e-4, 1), target=st.floats(1e-4, 10), faster=st.floats(0.1, 1), later=st.floats(1, 10))
def test_faster_or_more_time_never_holds_less(service: float, target: float, faster: float, later: float) -> None:
    rate = rate_within(target, service)
    assert rate_within(target, service * faster) >= rate * (1 - 1e-6)
    assert rate_within(target * later, service) >= rate * (1 - 1e-6)


def test_what_takes_longer_than_the_target_holds_nothing() -> None:
    assert rate_within(0.09, 0.1) == 0
    assert batched_rate_within(0.2, 0.1, 8) == pytest.approx(8 * rate_within(0.2, 0.1))


@settings(deadline=None)
@given(rate=RATES, more=st.floats(1, 10), capacity=st.floats(0.1, 1e4), least=st.integers(1, 10))
def test_instances_are_whole_enough_and_no_more(rate: float, more: float, capacity: float, least: int) -> None:
    n = instances_for(rate, capacity, least)
    assert n >= least
    assert n * capacity >= rate * (1 - 1e-9)
    assert n == least or (n - 1) * capacity < rate
    assert instances_for(rate * more, capacity, least) >= n
