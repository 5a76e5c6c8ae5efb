"""The arithmetic of a bill. Dollars, hours, seconds; plain numbers in, plain numbers out.

>>> monthly(3.20), monthly(3.20, hours=365)
(2336.0, 1168.0)
>>> round(monthly(0.526)), round(monthly(0.526, hours=365))
(384, 192)
>>> [model_gigabytes(7e9, bits) for bits in (32, 16, 8, 4)]
[28.0, 14.0, 7.0, 3.5]
"""

from __future__ import annotations

from lowbit.types import Energy

HOURS_PER_MONTH = 730.0
"""365 days of 24 hours over 12 months."""
DAYS_PER_MONTH = 365 / 12
SECONDS_PER_HOUR = 3600.0
MILLION = 1e6
JOULES_PER_KWH = 3.6e6

BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "fp8": 8, "int4": 4}
"""Of a weight. Scales and zero points come on top: a few thousandths at 8 bits per channel."""


def monthly(price_per_hour: float, hours: float = HOURS_PER_MONTH, instances: float = 1) -> float:
    """Dollars a month: price × hours × instances."""
    return price_per_hour * hours * instances


def per_million(dollars_per_month: float, requests_per_month: float) -> float:
    """Dollars per million requests out of a bill: what is paid, idle hours included."""
    return dollars_per_month / requests_per_month * MILLION


def at_rate(price_per_hour: float, requests_per_second: float) -> float:
    """Dollars per million requests of one instance that answers so many a second all the time."""
    return price_per_hour / (requests_per_second * SECONDS_PER_HOUR) * MILLION


def cost_per_million(cpu_seconds_per_request: float, cores: int, price_per_hour: float) -> float:
    """Dollars per million requests by the share of an instance that they keep busy; idle time is not in it: the least they can cost.

    Args:
        cpu_seconds_per_request: Of all threads together.
        cores: That the instance has, and `price_per_hour` pays for.
        price_per_hour: Dollars.

    >>> round(cost_per_million(0.006, 2, 0.0416), 4)
    0.0347
    """
    assert cores > 0, "an instance has cores"
    return cpu_seconds_per_request / cores * price_per_hour / SECONDS_PER_HOUR * MILLION


def kilowatt_hours_per_million(energy: Energy) -> tuple[float, float, float] | None:
    """Energy of a million inferences: value, low, high; by the method that `energy` names. None where it is unavailable.

    >>> kilowatt_hours_per_million(Energy(0.0036, "rapl"))
    (0.001, 0.001, 0.001)
    """
    value = energy.joules_per_inference
    if value is None:
        return None
    ends = (value if energy.low is None else energy.low, value if energy.high is None else energy.high)
    return value * MILLION / JOULES_PER_KWH, ends[0] * MILLION / JOULES_PER_KWH, ends[1] * MILLION / JOULES_PER_KWH


def model_gigabytes(parameters: float, bits: float) -> float:
    """Weights alone, in GB of 10^9 bytes."""
    return parameters * bits / 8 / 1e9


def payback_days(effort: float, saving_per_month: float) -> float | None:
    """Days until an effort is earned back; None where nothing is saved."""
    return effort / (saving_per_month / DAYS_PER_MONTH) if saving_per_month > 0 else None
