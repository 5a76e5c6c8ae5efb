"""Prices of instances: a table with a source and a day for every row, which users replace with their own."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lowbit.cost.figures import Figure, derived, stated
from lowbit.cost.workload import why_not
from lowbit.errors import DataError, UsageError, unknown

ANY = "any"
OWN = "lowbit's price table"
MANY = 40
"""Names that are still listed in a message."""


@dataclass(frozen=True)
class Price:
    """What one instance costs an hour.

    Attributes:
        provider: "aws", "gcp", "azure", or "any" where nobody said.
        instance: The provider's name of it.
        usd_per_hour: On demand.
        source: Who says so.
        region: Empty where that was not stated.
        date: The day that the price is of; None where that was not stated.
        spot_low: Lowest spot price of the region's zones; None where unknown.
        spot_high: Highest one.
        vcpus: None where unknown.
        memory_gb: Of the host.
        accelerator: E.g. "T4"; empty for none.
        accelerators: How many.
        accelerator_gb: Memory of each.
    """

    provider: str
    instance: str
    usd_per_hour: float
    source: str
    region: str = ""
    date: date | None = None
    spot_low: float | None = None
    spot_high: float | None = None
    vcpus: float | None = None
    memory_gb: float | None = None
    accelerator: str = ""
    accelerators: float = 0
    accelerator_gb: float | None = None

    @property
    def origin(self) -> str:
        """Where, when and who, in words."""
        where = ", ".join(part for part in (self.provider if self.provider != ANY else "", self.region) if part)
        return f"{self.instance}{f' ({where})' if where else ''}, {self.source}, {self.date or 'undated'}"

    @property
    def on_demand(self) -> Figure:
        """Dollars an hour."""
        return stated(self.usd_per_hour, "USD/h", self.origin)


@dataclass(frozen=True)
class Discount:
    """How much lower spot is than on demand, as shares of it."""

    provider: str
    discount: float
    low: float
    high: float
    source: str


@dataclass(frozen=True)
class PriceTable:
    """Prices and spot discounts of one file."""

    prices: tuple[Price, ...]
    discounts: tuple[Discount, ...]
    name: str = OWN
    unpriced: tuple[str, ...] = ()
    """Instances that are in the file without a price that can be used."""

    def find(self, instance: str, region: str | None = None) -> Price:
        """The row of an instance.

        Raises:
            UsageError: there is none, or several regions have other prices.
        """
        found = [row for row in self.prices if row.instance.lower() == instance.lower() and (not region or row.region in ("", region))]
        if not found:
            self._missing(instance, region)
        if len({row.usd_per_hour for row in found}) > 1:
            regions = sorted({row.region or "unstated" for row in found})
            raise UsageError(
                f"{instance} has several prices in {self.name}, by region: {', '.join(regions)}.", "Say which with region: in the workload."
            )
        return found[0]

    def _missing(self, instance: str, region: str | None) -> NoReturn:
        where = f" in {region}" if region else ""
        if instance.lower() in {name.lower() for name in self.unpriced}:
            raise UsageError(f"{instance} is in {self.name} without a price that can be used{where}.", "State price_per_hour.")
        if any(row.instance.lower() == instance.lower() for row in self.prices):
            raise UsageError(f"{instance} has no price{where} in {self.name}.", "State price_per_hour, or another region.")
        names = sorted({row.instance for row in self.prices})
        close = difflib.get_close_matches(instance, names, 3)
        near = f" Near it: {', '.join(close)}." if close else f" It has {', '.join(names)}." if len(names) < MANY else ""
        raise UsageError(
            f"The price of '{instance}' is not known: {self.name} has no such instance.{near}",
            "State price_per_hour in the workload, or give a table with --prices.",
        )

    def spot(self, price: Figure, row: Price | None) -> Figure | None:
        """Dollars an hour on spot: the row's own price where it has one, else by discount. Never above on demand."""
        if row is not None and row.spot_low is not None and row.spot_high is not None:
            low, high = min(row.spot_low, price.value), min(row.spot_high, price.value)
            return stated((low + high) / 2, "USD/h", f"spot, lowest to highest zone: {row.origin}", (low, high))
        provider = row.provider if row is not None else ANY
        found = next((each for name in (provider, ANY) for each in self.discounts if each.provider == name), None)
        if found is None:
            return None
        discount = stated(found.discount, "share", found.source, (found.low, found.high))
        return derived(lambda a, b: a * (1 - b), price, discount, unit="USD/h", note=f"price × (1 − spot discount); {found.source}")


def own_table() -> PriceTable:
    """The table that comes with lowbit."""
    text = files("lowbit.cost").joinpath("prices.yaml").read_text(encoding="utf-8")
    return _table(yaml.safe_load(text), OWN)


def read_prices(file: Path) -> PriceTable:
    """A table of the user's own: YAML as `prices.yaml` has it, or a SkyPilot catalog (.csv).

    Raises:
        DataError: it cannot be read, or is wrong.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise DataError(f"The prices in {file} cannot be read: {why_not(error)}.", "Give a .yaml, or a catalog as .csv.") from None
    if file.suffix.lower() == ".csv":
        from lowbit.cost.catalog import read_catalog

        return read_catalog(text, file.name, date.fromtimestamp(file.stat().st_mtime), own_table().discounts)
    try:
        return _table(yaml.safe_load(text), file.name)
    except yaml.YAMLError as error:
        raise DataError(f"{file.name} is no YAML: {why_not(error)}.", "See the table in lowbit's docs, or give a .csv.") from None


def _table(raw: Any, name: str) -> PriceTable:
    if not isinstance(raw, dict) or not set(raw) <= {"prices", "spot_discounts"} or not isinstance(raw.get("prices"), list):
        raise DataError(f"{name} is no price table.", "It has two lists: prices, and spot_discounts or none.")
    prices = tuple(_row(Price, each, name) for each in raw["prices"])
    discounts = tuple(_row(Discount, each, name) for each in raw.get("spot_discounts") or [])
    for row in prices:
        _check_price(row, name)
    for each in discounts:
        if not 0 <= each.low <= each.discount <= each.high <= 1:
            raise DataError(f"{name}: the spot discounts of {each.provider} must be shares with low <= discount <= high.")
    return PriceTable(prices, discounts, name)


def _check_price(row: Price, name: str) -> None:
    if not row.usd_per_hour > 0:
        raise DataError(f"{name}: {row.instance} costs {row.usd_per_hour} an hour, which is no price.")
    if (row.spot_low is None) != (row.spot_high is None):
        raise DataError(f"{name}: {row.instance} has one of spot_low and spot_high; a range has two ends, which may be one number.")
    if row.spot_low is not None and row.spot_high is not None and not 0 < row.spot_low <= row.spot_high <= row.usd_per_hour:
        raise DataError(f"{name}: spot of {row.instance} must be above 0, low before high, and not above on demand.")


_NUMBERS = {"float", "float | None"}


def _row(record: type[Any], raw: object, name: str) -> Any:
    """One row, strictly: no other keys, every type right."""
    known = {each.name: each for each in fields(record)}
    if not isinstance(raw, Mapping):
        raise DataError(f"{name}: a row must be a mapping, not {raw!r}.")
    for key in raw:
        if key not in known:
            raise DataError(f"{name}: {unknown('column', key, known)}")
    for key in ("source", "provider"):
        if not isinstance(raw.get(key), str) or not raw[key].strip():
            raise DataError(f"{name}: a row has no {key}: {dict(raw)}.", "Every price says who says so.")
    for key, value in raw.items():
        kind = str(known[key].type)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (number if kind in _NUMBERS else isinstance(value, date) if "date" in kind else isinstance(value, str)):
            raise DataError(f"{name}: {key} of a row is {value!r}, which is no {'number' if kind in _NUMBERS else kind.split(' ')[0]}.")
    try:
        return record(**raw)
    except TypeError as error:
        raise DataError(f"{name}: a row is not whole: {str(error).partition('() ')[2]}.") from None
