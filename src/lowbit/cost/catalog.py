"""Prices out of a SkyPilot catalog (`catalogs/v8/CLOUD/vms.csv`) that a user downloaded. Two traps are in those files.

Google's accelerators have rows of their own without an instance, and the row of an instance with accelerators is the host
alone: the two are added, and an instance whose accelerator has no price has none either. What has no price at all carries
700.0 in places.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date

from lowbit.cost.prices import ANY, Discount, Price, PriceTable
from lowbit.errors import DataError

NEEDED = ("InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "Price", "SpotPrice", "Region")
PLACEHOLDER = 700.0
Row = Mapping[str, str]


def read_catalog(text: str, name: str, day: date, discounts: tuple[Discount, ...]) -> PriceTable:
    """A table with one row for each instance and region; spot from its cheapest to its dearest zone.

    Args:
        text: Of the file.
        name: Of the file, for messages and sources.
        day: That its prices are said to be of.
        discounts: For instances without a spot price.

    Raises:
        DataError: it is no such catalog.
    """
    reader = csv.DictReader(io.StringIO(text))
    if lacking := [column for column in NEEDED if column not in (reader.fieldnames or ())]:
        raise DataError(f"{name} is no SkyPilot catalog: it has no {', '.join(lacking)}.", "Prices of your own go into a .yaml.")
    zones: dict[tuple[str, str], list[Row]] = defaultdict(list)
    accelerators: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in reader:
        if row["InstanceType"]:
            zones[row["InstanceType"], row["Region"]].append(row)
        elif row["AcceleratorName"]:
            accelerators[row["AcceleratorName"], row["AcceleratorCount"], row["Region"]].append(row)
    prices, unpriced = [], []
    for (instance, region), rows in zones.items():
        extra = accelerators.get((rows[0]["AcceleratorName"], rows[0]["AcceleratorCount"], region), [])
        lacks = bool(accelerators) and bool(rows[0]["AcceleratorName"]) and not extra
        found = None if lacks else _price(instance, region, rows, extra, f"SkyPilot catalog {name}", day)
        prices.append(found) if found else unpriced.append(instance)
    return PriceTable(tuple(prices), discounts, name, tuple(unpriced))


def _price(instance: str, region: str, rows: Sequence[Row], extra: Sequence[Row], source: str, day: date) -> Price | None:
    parts = [_least(rows, "Price"), _least(extra, "Price") if extra else 0.0]
    if any(part is None for part in parts):
        return None
    price = sum(part for part in parts if part is not None)
    spots = [_numbers(rows, "SpotPrice"), _numbers(extra, "SpotPrice") if extra else [0.0]]
    low, high = (min(price, sum(map(end, spots))) if all(spots) else None for end in (min, max))
    return Price(
        "gcp" if extra else ANY,
        instance,
        price,
        source + (", host and accelerator added" if extra else ""),
        region,
        day,
        low,
        high,
        _number(rows[0]["vCPUs"]),
        _number(rows[0].get("MemoryGiB", "")),
        rows[0]["AcceleratorName"],
        _number(rows[0]["AcceleratorCount"]) or 0,
    )


def _least(rows: Sequence[Row], column: str) -> float | None:
    return min(_numbers(rows, column), default=None)


def _numbers(rows: Sequence[Row], column: str) -> list[float]:
    return [number for row in rows if (number := _number(row[column])) is not None and 0 < number != PLACEHOLDER]


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
