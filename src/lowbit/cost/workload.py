"""What runs today and what might run instead, as a YAML file states it. Every key may be left out; what is needed and missing is asked for.

A number may be a range: `latency_ms: [80, 110]`; its value is the middle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lowbit.cost.bill import BITS
from lowbit.cost.figures import Figure, stated
from lowbit.errors import DataError, unknown


@dataclass(frozen=True)
class Deployment:
    """One way to run the model; figures are None where nobody stated them.

    Attributes:
        name: To call it by.
        instance: To look up in the price table; empty for none.
        region: Of the instance.
        price_per_hour: Dollars, on demand; wins over the table's.
        spot_per_hour: Dollars.
        spot: Whether it runs on spot.
        instances: How many.
        hours_per_month: Each of them runs.
        latency_ms: Of one request in the server when nobody else is there.
        speedup: Over today, of the model alone, where no latency is stated.
        batch: Requests a call.
        batch_latency_ms: Of such a call.
        workers: Requests (or calls) worked on at once by one instance.
        capacity_per_s: Requests a second of one instance within the latency target, as a load test found.
        cache_hit_rate: Share of requests that a cache answers.
        bill_per_month: Dollars; wins over what follows from the price.
        size_mb: Of the model's file.
        precision: "fp32", "int8", ...
        quality: What happens to the metric, in words.
    """

    name: str = ""
    instance: str = ""
    region: str = ""
    price_per_hour: Figure | None = None
    spot_per_hour: Figure | None = None
    spot: bool = False
    instances: Figure | None = None
    hours_per_month: Figure | None = None
    latency_ms: Figure | None = None
    speedup: Figure | None = None
    batch: int = 1
    batch_latency_ms: Figure | None = None
    workers: int = 1
    capacity_per_s: Figure | None = None
    cache_hit_rate: Figure | None = None
    bill_per_month: Figure | None = None
    size_mb: Figure | None = None
    precision: str = ""
    quality: str = ""


@dataclass(frozen=True)
class Effort:
    """What the change costs.

    Attributes:
        usd: In all; wins over days and rate.
        days: Of an engineer.
        day_rate: Dollars.
    """

    usd: Figure | None = None
    days: Figure | None = None
    day_rate: Figure | None = None


@dataclass(frozen=True)
class Workload:
    """One file.

    Attributes:
        name: Of the case.
        source: Who states its figures; the file's name where nobody is named.
        today: What runs.
        candidates: What might.
        requests_per_month: All of them, those that a cache answers included.
        peak_per_second: Requests in the busiest second that must be answered in time.
        peak_over_mean: Where the peak is not stated.
        latency_target_ms: 99 % of the requests are answered within it.
        inference_share: Of a request's time that is the model's.
        min_instances: As many run at least.
        parameters: Of the model.
        effort: What the change costs.
        payback_days: As somebody states it, to compare with what follows.
        horizon_months: Within which a change has to pay.
    """

    name: str = "workload"
    source: str = ""
    today: Deployment = field(default_factory=lambda: Deployment("today"))
    candidates: tuple[Deployment, ...] = ()
    requests_per_month: Figure | None = None
    peak_per_second: Figure | None = None
    peak_over_mean: Figure | None = None
    latency_target_ms: Figure | None = None
    inference_share: Figure | None = None
    min_instances: int = 1
    parameters: Figure | None = None
    effort: Effort = Effort()
    payback_days: Figure | None = None
    horizon_months: Figure | None = None


UNITS: Mapping[str, tuple[str, float, float]] = {
    "price_per_hour": ("USD/h", 0, 1e5),
    "spot_per_hour": ("USD/h", 0, 1e5),
    "instances": ("instances", 0.999, 1e6),
    "hours_per_month": ("h/month", 0, 744),
    "latency_ms": ("ms", 0, 1e9),
    "speedup": ("×", 0, 1e4),
    "batch_latency_ms": ("ms", 0, 1e9),
    "capacity_per_s": ("requests/s", 0, 1e9),
    "cache_hit_rate": ("share", -1e-9, 0.999),
    "bill_per_month": ("USD/month", 0, 1e10),
    "size_mb": ("MB", 0, 1e9),
    "usd": ("USD", -1e-9, 1e10),
    "days": ("days", -1e-9, 1e5),
    "day_rate": ("USD/day", -1e-9, 1e6),
    "requests_per_month": ("requests/month", 0, 1e15),
    "peak_per_second": ("requests/s", 0, 1e9),
    "peak_over_mean": ("×", 0.999, 1e6),
    "latency_target_ms": ("ms", 0, 1e9),
    "inference_share": ("share", 0, 1),
    "parameters": ("parameters", 0, 1e15),
    "payback_days": ("days", 0, 1e5),
    "horizon_months": ("months", 0, 600),
}
"""Key -> unit, what it must be above (0.999: at least 1), and what it may be at most."""


def read_workload(file: Path) -> Workload:
    """The workload that a YAML file states.

    Raises:
        DataError: it cannot be read, or something in it is wrong.
    """
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeError) as error:
        raise DataError(f"The workload {file} cannot be read: {why_not(error)}.", "Give a YAML file.") from None
    except yaml.YAMLError as error:
        raise DataError(f"{file.name} is no YAML: {why_not(error)}.", "See examples/assess/ for workloads.") from None
    return parse_workload(raw, file.name)


def why_not(error: Exception) -> str:
    """Why a file cannot be read, in a line for people: no numbers of errors, and no place but the line."""
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    if isinstance(error, UnicodeError):
        return "it is no text"
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return problem if mark is None else f"{problem}, line {mark.line + 1}"


def parse_workload(raw: object, name: str) -> Workload:
    """The same of what YAML gave.

    Args:
        raw: Mapping of the keys of `Workload`.
        name: Of the file.
    """
    values = _mapping(raw, "The workload")
    source = f"{values['source']} ({name})" if values.get("source") else name
    found = _record(Workload, values, source, "workload")
    names = ["today", *(each.name for each in found.candidates)]
    if twice := sorted({each for each in names if names.count(each) > 1}):
        raise DataError(f"{name}: two ways to run the model are called '{twice[0]}'.", "Give every candidate a name of its own.")
    return found


def _record(record: type[Any], raw: Mapping[str, Any], source: str, what: str) -> Any:
    known = {each.name for each in fields(record)}
    for key in raw:
        if key not in known:
            raise DataError(str(unknown(f"key of {what}", key, known)))
    return record(**{key: _value(key, value, source, what) for key, value in raw.items() if value is not None})


def _value(key: str, value: Any, source: str, what: str) -> Any:
    if key in UNITS:
        return _figure(key, value, source)
    if key == "today":
        return _record(Deployment, {"name": "today", **_mapping(value, "today")}, source, "today")
    if key == "candidates":
        if not isinstance(value, list):
            raise DataError(f"candidates must be a list, not {value!r}.")
        return tuple(_candidate(each, number, source) for number, each in enumerate(value, 1))
    if key == "effort":
        return _record(Effort, _mapping(value, "effort"), source, "effort")
    if key == "spot":
        if not isinstance(value, bool):
            raise DataError(f"spot of {what} must be true or false, not {value!r}.")
        return value
    if key in ("batch", "workers", "min_instances"):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1_000_000:
            raise DataError(f"{key} must be a whole number of at least 1, not {value!r}.")
        return value
    if not isinstance(value, str):
        raise DataError(f"{key} of {what} must be text, not {value!r}.", "Put quotation marks around it.")
    if key == "precision" and value not in BITS:
        raise DataError(str(unknown("precision", value, BITS)))
    return value


def _candidate(raw: object, number: int, source: str) -> Deployment:
    return _record(Deployment, {"name": f"candidate {number}", **_mapping(raw, "A candidate")}, source, "a candidate")


def _figure(key: str, value: Any, source: str) -> Figure:
    unit, above, most = UNITS[key]
    ends = [_number(end) for end in (value if isinstance(value, list) and len(value) == 2 else [value, value])]
    for end in ends:
        if isinstance(end, bool) or not isinstance(end, int | float) or not above < end <= most:
            bounds = f"above {above:g}" if above == 0 else f"of at least {round(above):g}"
            hint = "Write numbers without units, and [low, high] for a range."
            raise DataError(f"{key} must be a number {bounds} and at most {most:g}, not {value!r}.", hint)
    low, high = float(min(ends)), float(max(ends))
    return stated((low + high) / 2, unit, source, (low, high))


def _number(value: Any) -> Any:
    """YAML takes 1e9 for text; people mean a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _mapping(raw: object, what: str) -> Mapping[str, Any]:
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise DataError(f"{what} must be a mapping of keys to values, not {raw!r}.")
    return raw
