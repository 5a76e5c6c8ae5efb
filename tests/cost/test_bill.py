"""The arithmetic of bills, with the figures that practice reports give."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbit.cost.bill
import lowbit.cost.capacity
import lowbit.cost.say
from lowbit.cost.bill import at_rate, cost_per_million, kilowatt_hours_per_million, model_gigabytes, monthly, payback_days, per_million
from lowbit.cost.figures import Figure, derived, stated
from lowbit.types import Energy

PRICES = st.floats(1e-3, 1e3)


@pytest.mark.parametrize("module", [lowbit.cost.bill, lowbit.cost.capacity, lowbit.cost.say])
def test_the_examples_in_the_docs_hold(module: object) -> None:
    found = doctest.testmod(module)  # type: ignore[arg-type]
    assert (found.failed, found.attempted > 0) == (0, True)


def test_an_a100_and_a_t4_by_the_month() -> None:
    assert monthly(3.20, 730) == 2336
    assert monthly(3.20, 365) == 1168
    assert round(monthly(0.526, 730)) == 384
    assert round(monthly(0.526, 365)) == 192


def test_seven_billion_weights() -> None:
    assert [model_gigabytes(7e9, bits) for bits in (32, 16, 8, 4)] == [28, 14, 7, 3.5]


def test_a_saving_of_9000_a_month_earns_back_5326_in_18_days() -> None:
    assert payback_days(5326.03, 11840 - 2840) == pytest.approx(18, rel=1e-5)
    assert payback_days(5000, 0) is None
    assert payback_days(5000, -1) is None


def test_the_share_of_an_instance_that_requests_keep_busy() -> None:
    # 2 cores at $0.72 an hour are $0.0001 a core second; a request takes 0.01 of them
    assert cost_per_million(0.01, 2, 0.72) == pytest.approx(1.0)
    assert at_rate(0.72, 200) == pytest.approx(1.0)
    assert per_million(2336, 1e8) == pytest.approx(23.36)


@settings(deadline=None)
@given(cpu=st.floats(1e-6, 10), cores=st.integers(1, 128), price=PRICES)
def test_a_busy_instance_and_its_cpu_seconds_cost_the_same(cpu: float, cores: int, price: float) -> None:
    assert cost_per_million(cpu, cores, price) == pytest.approx(at_rate(price, cores / cpu))


def test_energy_of_a_million_inferences_keeps_its_range() -> None:
    assert kilowatt_hours_per_million(Energy(3.6, "modelled", 1.8, 7.2)) == (1.0, 0.5, 2.0)
    assert kilowatt_hours_per_million(Energy(None, "unavailable")) is None


# Figures -----------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(a=PRICES, more=st.floats(0, 100), b=PRICES, wider=st.floats(0, 100))
def test_a_range_holds_everything_between_its_ends(a: float, more: float, b: float, wider: float) -> None:
    first, second = stated(a, "x", "a", (a, a + more)), stated(b, "x", "b", (b, b + wider))
    found = derived(lambda x, y: x - y, first, second, unit="x", note="a − b")
    low, high = found.ends
    for x in (a, a + more / 2, a + more):
        for y in (b, b + wider / 2, b + wider):
            assert low - 1e-9 <= x - y <= high + 1e-9
    assert found.origin == "derived"


def test_a_figure_without_a_range_has_none_in_json() -> None:
    assert stated(1, "x", "me").document() == {"value": 1, "unit": "x", "origin": "stated", "note": "me"}
    assert stated(1, "x", "me", (0.5, 2)).document()["high"] == 2


@pytest.mark.parametrize("ends", [(2.0, 3.0), (0.0, 0.5), (0.5, None)])
def test_a_range_that_does_not_hold_its_value_is_a_bug(ends: tuple[float, float | None]) -> None:
    with pytest.raises(AssertionError):
        Figure(1.0, "x", "stated", "me", *ends)
