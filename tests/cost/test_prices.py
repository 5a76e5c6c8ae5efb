"""The table of prices: every row has a source, spot is never above on demand, and a catalog's traps are seen."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from cost_case import TABLE
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.cost.catalog import read_catalog
from lowbit.cost.figures import stated
from lowbit.cost.prices import Discount, PriceTable, own_table, read_prices
from lowbit.errors import DataError, UsageError

HEAD = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone\n"
CATALOG = HEAD + (
    "c5.large,,,2.0,4.0,,0.085,0.031,us-east-1,use1-az1\n"
    "c5.large,,,2.0,4.0,,0.085,0.052,us-east-1,use1-az2\n"
    "c5.large,,,2.0,4.0,,0.097,0.097,eu-west-1,euw1-az1\n"
    "a2-highgpu-1g,A100,1.0,12.0,85.0,,0.739,0.222,us-central1,us-central1-a\n"
    ",A100,1.0,,,,2.934,0.880,us-central1,us-central1-a\n"
    "a2-highgpu-1g,A100,1.0,12.0,85.0,,0.739,0.222,europe-west4,europe-west4-a\n"
    ",tpu-v5,1.0,,,,700.0,700.0,us-central1,us-central1-a\n"
    "odd.large,,,2.0,4.0,,700.0,,us-east-1,use1-az1\n"
    "bare.large,,,2.0,4.0,,,,us-east-1,use1-az1\n"
)


def test_every_row_of_our_own_table_says_who_says_so() -> None:
    table = own_table()
    assert {row.instance for row in table.prices} >= {"t3.medium", "a100-40gb", "t4"}
    assert all(row.source and row.usd_per_hour > 0 for row in table.prices)
    assert all(row.date is not None or "not stated" in row.source for row in table.prices)
    assert (table.find("a100-40gb").usd_per_hour, table.find("T4").usd_per_hour) == (3.20, 0.526)
    assert table.find("t4").accelerator_gb == 16


def test_spot_of_our_own_table_is_70_percent_lower_within_a_range() -> None:
    row = own_table().find("t4")
    spot = own_table().spot(row.on_demand, row)
    assert spot is not None
    assert spot.value == pytest.approx(0.526 * 0.3)
    assert spot.ends == (pytest.approx(0.0526), 0.526)
    assert "practice reports" in spot.note


def test_spot_comes_from_the_row_then_the_provider_then_anybody() -> None:
    for name, value, ends in (("large", 0.15, (0.10, 0.20)), ("gpu", 0.3, (0.1, 0.4)), ("small", 0.03, (0.01, 0.10))):
        row = TABLE.find(name)
        spot = TABLE.spot(row.on_demand, row)
        assert spot is not None
        assert (spot.value, *spot.ends) == pytest.approx((value, *ends))
    assert PriceTable(TABLE.prices, ()).spot(stated(1, "USD/h", "me"), None) is None


@settings(deadline=None)
@given(price=st.floats(1e-3, 1e3), spot=st.floats(1e-3, 1e3), discount=st.floats(0, 1))
def test_spot_is_never_above_on_demand(price: float, spot: float, discount: float) -> None:
    text = HEAD + f"x,,,2,4,,{price},{spot},here,z1\ny,,,2,4,,{price},,here,z1\n"
    table = read_catalog(text, "vms.csv", date(2026, 1, 1), (Discount("any", discount, 0, 1, "me"),))
    for row in table.prices:
        found = table.spot(row.on_demand, row)
        assert found is not None
        assert found.ends[1] <= row.usd_per_hour


def test_an_unknown_instance_is_asked_for_with_names_near_it() -> None:
    with pytest.raises(UsageError, match=r"price of 't3.mediun' is not known.*t3.medium") as caught:
        own_table().find("t3.mediun")
    assert "--prices" in str(caught.value)
    with pytest.raises(UsageError, match="no price in mars"):
        TABLE.find("there", "mars")


def test_a_region_is_asked_for_where_prices_differ() -> None:
    with pytest.raises(UsageError, match=r"several prices.*eu-west-1, us-east-1"):
        TABLE.find("there")
    assert TABLE.find("there", "eu-west-1").usd_per_hour == 1.20


# A catalog ---------------------------------------------------------------------------------------------------------------


def test_a_catalog_of_skypilot(tmp_path: Path) -> None:
    file = tmp_path / "vms.csv"
    file.write_text(CATALOG)
    table = read_prices(file)
    row = table.find("c5.large", "us-east-1")
    assert (row.usd_per_hour, row.spot_low, row.spot_high, row.vcpus) == (0.085, 0.031, 0.052, 2)
    assert row.date == date.fromtimestamp(file.stat().st_mtime)
    with pytest.raises(UsageError, match="several prices"):
        table.find("c5.large")
    assert table.discounts == own_table().discounts


def test_googles_host_and_accelerator_are_added_and_placeholders_are_no_prices() -> None:
    table = read_catalog(CATALOG, "vms.csv", date(2026, 1, 1), ())
    row = table.find("a2-highgpu-1g", "us-central1")
    assert row.usd_per_hour == pytest.approx(0.739 + 2.934)
    assert row.spot_low == pytest.approx(0.222 + 0.880)
    assert (row.provider, row.accelerator) == ("gcp", "A100")
    assert not [row for row in table.prices if row.region == "europe-west4"], "its accelerator has no price there"
    for name in ("odd.large", "bare.large"):
        with pytest.raises(UsageError, match="without a price"):
            table.find(name)


def test_something_else_is_no_catalog() -> None:
    with pytest.raises(DataError, match="it has no AcceleratorName"):
        read_catalog("InstanceType,Price\nx,1\n", "vms.csv", date(2026, 1, 1), ())


# Tables of users' own ----------------------------------------------------------------------------------------------------

ROW = "provider: me, instance: x, usd_per_hour: 1, source: me"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1", "no price table"),
        ("- 1", "no price table"),
        ("prices: [", "no YAML"),
        ("prices: [1]", "must be a mapping"),
        ("prices: [{provider: me, instance: x, usd_per_hour: 1}]", "no source"),
        (f"prices: [{{{ROW}, cost: 1}}]", "Unknown column 'cost'"),
        ("prices: [{provider: me, instance: x, usd_per_hour: -1, source: me}]", "no price"),
        ("prices: [{provider: me, instance: x, usd_per_hour: .nan, source: me}]", "no number"),
        ("prices: [{provider: me, instance: x, usd_per_hour: '1', source: me}]", "no number"),
        ("prices: [{provider: me, instance: x, source: me}]", "not whole"),
        (f"prices: [{{{ROW}, spot_low: 0.5}}]", "two ends"),
        (f"prices: [{{{ROW}, spot_low: 0.5, spot_high: 2}}]", "not above on demand"),
        (f"prices: [{{{ROW}, date: soon}}]", "date of a row"),
        (f"prices: [{{{ROW}}}]\nspot_discounts: [{{provider: any, discount: 0.5, low: 0.6, high: 0.9, source: me}}]", "low <= discount"),
    ],
)
def test_a_table_that_is_wrong_says_what_is(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_prices(file)


def test_a_table_of_ones_own_and_one_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(f"prices: [{{{ROW}, spot_low: 0.2, spot_high: 0.4, date: 2026-11-21}}]")
    row = read_prices(file).find("x")
    assert (row.usd_per_hour, row.date) == (1, date(2026, 11, 21))
    assert row.origin == "x (me), me, 2026-11-21"
    with pytest.raises(DataError, match="cannot be read"):
        read_prices(tmp_path / "none.yaml")
