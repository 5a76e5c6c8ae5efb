"""Numbers as people read them, and where the drawings put them."""

from __future__ import annotations

import re

import pytest
from bundle_examples import EXAMPLES, ship
from hypothesis import given
from hypothesis import strategies as st

from lowbit.bundle import charts, words
from lowbit.bundle.charts import Dot


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (words.milliseconds(0.0123), "0.0123 ms"),
        (words.milliseconds(5.784), "5.78 ms"),
        (words.milliseconds(148.2), "148 ms"),
        (words.milliseconds(12345.6), "12,346 ms"),
        (words.milliseconds(None), "–"),
        (words.size(812_000), "812 kB"),
        (words.size(11_400_000), "11.4 MB"),
        (words.size(1_250_000_000), "1.25 GB"),
        (words.size(0), "0 kB"),
        (words.times(0.968), "0.97×"),
        (words.times(3.68), "3.7×"),
        (words.times(12.4), "12×"),
        (words.signed(-0.0063), "−0.63"),
        (words.signed(0.0021), "+0.21"),
        (words.signed(-0.00001), "0.00"),
        (words.metric_value("top1", 0.93412), "93.41 %"),
        (words.metric_value("rmse", 51267.3), "51,267"),
        (words.metric_value("cosine", float("nan")), "–"),
        (words.metric_name("macro_f1"), "macro-F1"),
        (words.joules(0.084), "84.0 mJ"),
        (words.limit("0.5pp"), "0.5 pp"),
    ],
)
def test_numbers_are_said(found: str, said: str) -> None:
    assert found == said


def test_a_positive_delta_is_said_as_a_negative_change() -> None:
    delta = ship().chosen.delta
    assert delta
    assert (words.change(delta), words.interval(delta)) == ("−0.21 pp", "[−0.63, +0.21]")


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round_and_inside(low: float, span: float) -> None:
    found = charts.ticks(low, low + span)
    assert 1 <= len(found) <= 11
    assert all(low - span * 1e-6 - 1e-9 <= tick <= low + span * (1 + 1e-6) + 1e-9 for tick in found)


def test_the_frontier_is_what_nothing_beats_on_both() -> None:
    places = [("slow-good", 10, 0.1, "ship"), ("fast-bad", 1, -5, "refuse"), ("fast", 2, -1, "ship"), ("beaten", 3, -2, "reject")]
    dots = [Dot(name, x, y, y, y, kind) for name, x, y, kind in [*places, ("middle", 4, -0.5, "ship")]]
    assert [dot.name for dot in charts.mark_frontier(dots) if dot.frontier] == ["fast", "middle", "slow-good"]


def test_what_is_far_over_budget_is_pointed_at_and_does_not_flatten_the_rest() -> None:
    dots = charts.mark_frontier(
        [Dot("base", 10, 0, 0, 0, "baseline"), Dot("ok", 4, -0.4, -0.8, 0, "ship"), Dot("bad", 3, -60, -61, -59, "refuse")]
    )
    drawn = charts.scatter(dots, 1.0, charts.against_latency("top-1", "pp", 1), 700, "x")
    assert "bad −60 pp" in drawn
    heights = [float(y) for y in re.findall(r'class="budget" x1="56" x2="682" y1="([\d.]+)"', drawn)]
    assert 120 < heights[0] < 330, "the budget line stands somewhere in the middle of the plot"


def test_a_budget_of_nothing_and_a_single_latency_can_be_drawn() -> None:
    dots = charts.mark_frontier([Dot("a", 0.0, 0, 0, 0, "baseline"), Dot("b", 0.0, 0, 0, 0, "ship", True)])
    assert "<svg" in charts.scatter(dots, 0.0, charts.against_latency("top-1", "pp", 1), 358, "x")


def test_rebinning_keeps_the_shares() -> None:
    assert charts.rebin([1, 3, 0, 4], 2) == [0.5, 0.5]
    assert charts.rebin([0] * 256, 32) == [0.0] * 32
    assert sum(charts.rebin(ship().chosen.confirm.histogram, 32)) == pytest.approx(1)  # type: ignore[union-attr]


def test_an_interval_is_drawn_where_it_is() -> None:
    drawn = charts.interval(-0.5, -1.0, 0.0, (-2.0, 2.0), 1.0, "ship")
    assert 'class="span" x1="25.00%" x2="50.00%"' in drawn
    assert 'cx="37.50%"' in drawn
    assert 'class="budget" x1="25.00%"' in drawn


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_has_a_headline(name: str) -> None:
    found = words.headline(EXAMPLES[name]())
    assert found.sentence.endswith(".")
    assert "None" not in found.sentence
