"""One way to run the model, worked out: how long a request takes, how many instances that needs, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from lowbit.cost import bill
from lowbit.cost.capacity import batched_rate_within, instances_for
from lowbit.cost.evidence import WHOLE, Variant
from lowbit.cost.figures import Figure, assumed, derived
from lowbit.cost.prices import Price, PriceTable
from lowbit.cost.workload import Deployment, Workload

HOURS = assumed(bill.HOURS_PER_MONTH, "h/month", "around the clock")
PEAK = assumed(3.0, "×", "busiest second over the mean; state peak_per_second")
USE = assumed(0.7, "share", "of an instance's time is used at the peak; for want of a latency target and of a load test")
NO_CACHE = assumed(0.0, "share", "no cache")
QUEUE = "M/D/c queue: 99 % of the requests within the target"


@dataclass(frozen=True)
class Line:
    """What is known of one deployment; None where something needed for it is not known.

    Attributes:
        name: The deployment's.
        precision: "fp32", ... or empty.
        instance: As named in the workload.
        spot: Whether it is paid for as spot.
        batch: Requests a call.
        quality: What happens to the metric, in words.
        verdict: The bundle's on this variant; empty without one.
        request_ms: A request when nobody else is there.
        capacity_per_s: Requests that reach the model, a second and instance, at the peak.
        utilization: Share of the instances' time that is used at the peak.
        instances: That run.
        hours: Each of them, a month.
        price: An hour on demand.
        spot_price: An hour on spot.
        on_demand: Dollars a month on demand.
        on_spot: Dollars a month on spot.
        per_million: Dollars per million requests of what is paid, idle hours included; on demand.
        per_million_spot: The same on spot.
        busy_per_million: Dollars per million requests if the instances never idled; on demand.
        busy_per_million_spot: The same on spot.
        cpu_seconds: Of one inference.
        kwh_per_million: Energy of a million inferences.
        size_gb: Of the weights.
        problems: Why it cannot be run like that, in sentences.
    """

    name: str
    precision: str
    instance: str
    spot: bool
    batch: int
    quality: str
    verdict: str
    request_ms: Figure | None
    capacity_per_s: Figure | None
    utilization: Figure | None
    instances: Figure | None
    hours: Figure
    price: Figure | None
    spot_price: Figure | None
    on_demand: Figure | None
    on_spot: Figure | None
    per_million: Figure | None
    per_million_spot: Figure | None
    busy_per_million: Figure | None
    busy_per_million_spot: Figure | None
    cpu_seconds: Figure | None
    kwh_per_million: Figure | None
    size_gb: Figure | None
    problems: tuple[str, ...]

    @property
    def paid(self) -> Figure | None:
        """Dollars a month in the way it is paid for."""
        return self.on_spot if self.spot else self.on_demand

    @property
    def least(self) -> Figure | None:
        """Dollars per million requests if it never idled, in the way it is paid for."""
        return self.busy_per_million_spot if self.spot else self.busy_per_million

    @property
    def figures(self) -> Mapping[str, Figure]:
        """Every figure that is known, by name."""
        found: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Figure)}


def line(
    deployment: Deployment, workload: Workload, table: PriceTable, variant: Variant | None = None, as_today: Line | None = None
) -> Line:
    """Works a deployment out.

    Args:
        deployment: Today's or a candidate.
        workload: For load and target.
        table: Of prices.
        variant: What a bundle measured of it.
        as_today: Today's line for a candidate, which runs as many instances as today where the load is not known; None for today's own.

    Raises:
        UsageError: its instance is not in the table and no price is stated.
    """
    row = price_row(deployment, table)
    price = deployment.price_per_hour or (row.on_demand if row else None)
    spot_price = deployment.spot_per_hour or (table.spot(price, row) if price else None)
    if price and spot_price:
        spot_price = derived(min, spot_price, price, unit="USD/h", note=spot_price.note) if spot_price.ends[1] > price.value else spot_price
    hours = deployment.hours_per_month or (as_today.hours if as_today else HOURS)
    request = request_ms(deployment, workload)
    capacity = _capacity(deployment, workload, request)
    load = _load(deployment, workload)
    instances = _instances(deployment, workload, load, capacity, as_today)
    on_demand, on_spot = (_bill(deployment, each, hours, instances, kind) for kind, each in (("on demand", price), ("spot", spot_price)))
    size = _size(deployment, workload)
    return Line(
        deployment.name,
        deployment.precision,
        deployment.instance,
        deployment.spot,
        deployment.batch,
        deployment.quality,
        variant.verdict if variant else "",
        request,
        capacity,
        _utilization(load, deployment, request, instances),
        instances,
        hours,
        price,
        spot_price,
        on_demand,
        on_spot,
        _per_million(on_demand, workload),
        _per_million(on_spot, workload),
        _busy(deployment, workload, price, request),
        _busy(deployment, workload, spot_price, request),
        variant.cpu_seconds if variant else None,
        variant.kwh_per_million if variant else None,
        size,
        _problems(deployment, workload, row, request, capacity, size),
    )


def price_row(deployment: Deployment, table: PriceTable) -> Price | None:
    """Of its instance; where a price is stated, only for its accelerator and its provider's spot discount, if it is in the table at all.

    Raises:
        UsageError: it has no price, neither in the table nor stated.
    """
    if not deployment.instance:
        return None
    if deployment.price_per_hour is None and deployment.bill_per_month is None:
        return table.find(deployment.instance, deployment.region)
    return next((each for each in table.prices if each.instance.lower() == deployment.instance.lower()), None)


def request_ms(deployment: Deployment, workload: Workload) -> Figure | None:
    """Of one request alone on an instance: as stated or measured, or today's, its model's share divided by the speedup."""
    if deployment.latency_ms is not None:
        return deployment.latency_ms
    today, share, speedup = workload.today.latency_ms, workload.inference_share or WHOLE, deployment.speedup
    if today is None or speedup is None:
        return None
    note = f"today's latency × (1 − inference share + share / speedup); speedup: {speedup.note}"
    return derived(lambda ms, part, ratio: ms * (1 - part + part / ratio), today, share, speedup, unit="ms", note=note)


def _call_ms(deployment: Deployment, request: Figure | None) -> Figure | None:
    return deployment.batch_latency_ms if deployment.batch > 1 else request


def _capacity(deployment: Deployment, workload: Workload, request: Figure | None) -> Figure | None:
    if deployment.capacity_per_s is not None:
        return deployment.capacity_per_s
    call, batch, workers = _call_ms(deployment, request), deployment.batch, deployment.workers
    if call is None:
        return None
    if workload.latency_target_ms is None:
        note = "calls an instance could do × use that is assumed"
        return derived(lambda ms, use: use * batch * workers / ms * 1e3, call, USE, unit="requests/s", note=note)
    return derived(
        lambda ms, target: batched_rate_within(target / 1e3, ms / 1e3, batch, workers),
        call,
        workload.latency_target_ms,
        unit="requests/s",
        note=QUEUE,
    )


def peak(workload: Workload, deployment: Deployment) -> Figure | None:
    """Requests in the busiest second, cached ones included. The same requests in half the hours are twice as many a second."""
    if workload.peak_per_second is not None or workload.requests_per_month is None:
        return workload.peak_per_second
    hours = deployment.hours_per_month or workload.today.hours_per_month or HOURS
    note = "requests / hours × peak over mean"
    over = workload.peak_over_mean or PEAK
    return derived(lambda n, h, p: n / (h * 3600) * p, workload.requests_per_month, hours, over, unit="requests/s", note=note)


def _load(deployment: Deployment, workload: Workload) -> Figure | None:
    """Requests that reach the model in the busiest second."""
    found = peak(workload, deployment)
    if found is None:
        return None
    return derived(
        lambda rate, hit: rate * (1 - hit), found, _cached(deployment, workload), unit="requests/s", note="peak × (1 − cache hit rate)"
    )


def _cached(deployment: Deployment, workload: Workload) -> Figure:
    """Share of the requests that a cache answers: today's, where nobody says that it goes."""
    return deployment.cache_hit_rate or workload.today.cache_hit_rate or NO_CACHE


def needed(load: Figure | None, capacity: Figure | None, least: int) -> Figure | None:
    """Whole instances for a load; None where it is not known, or where none would do."""
    if load is None or capacity is None or capacity.ends[0] <= 0:
        return None
    note = f"peak load / capacity of one, rounded up, at least {least}"
    return derived(lambda rate, one: float(instances_for(rate, one, least)), load, capacity, unit="instances", note=note)


def needed_for(deployment: Deployment, workload: Workload) -> Figure | None:
    """Instances that a deployment's load needs, however many are stated."""
    return needed(_load(deployment, workload), _capacity(deployment, workload, request_ms(deployment, workload)), workload.min_instances)


def _instances(
    deployment: Deployment, workload: Workload, load: Figure | None, capacity: Figure | None, as_today: Line | None
) -> Figure | None:
    if deployment.instances is not None:
        return deployment.instances
    found = needed(load, capacity, workload.min_instances)
    if found is not None or as_today is None or as_today.instances is None or (capacity is not None and capacity.ends[0] <= 0):
        return found
    return assumed(as_today.instances.value, "instances", "as many as today, because the load or the capacity is not known")


def _bill(deployment: Deployment, price: Figure | None, hours: Figure, instances: Figure | None, kind: str) -> Figure | None:
    """A stated bill is one of the way that is paid; the other way follows by price."""
    if deployment.bill_per_month is not None:
        return deployment.bill_per_month if deployment.spot == (kind == "spot") else None
    if price is None or instances is None:
        return None
    return derived(bill.monthly, price, hours, instances, unit="USD/month", note=f"price {kind} × hours × instances")


def _per_million(paid: Figure | None, workload: Workload) -> Figure | None:
    if paid is None or workload.requests_per_month is None:
        return None
    return derived(bill.per_million, paid, workload.requests_per_month, unit="USD/million", note="bill / requests")


def _busy(deployment: Deployment, workload: Workload, price: Figure | None, request: Figure | None) -> Figure | None:
    call, batch, workers = _call_ms(deployment, request), deployment.batch, deployment.workers
    if price is None or call is None:
        return None
    return derived(
        lambda dollars, ms, hit: bill.at_rate(dollars, batch * workers / ms * 1e3) * (1 - hit),
        price,
        call,
        _cached(deployment, workload),
        unit="USD/million",
        note="price × time of a call / its requests × (1 − cache hit rate): never idle",
    )


def _utilization(load: Figure | None, deployment: Deployment, request: Figure | None, instances: Figure | None) -> Figure | None:
    call, batch, workers = _call_ms(deployment, request), deployment.batch, deployment.workers
    if load is None or call is None or instances is None:
        return None
    note = "peak load × time of a call / (its requests × workers × instances)"
    return derived(lambda rate, ms, n: rate * ms / 1e3 / (batch * workers * n), load, call, instances, unit="share", note=note)


def _size(deployment: Deployment, workload: Workload) -> Figure | None:
    if deployment.size_mb is not None:
        given = deployment.size_mb
        low, high = (None, None) if not given.ranged else (given.ends[0] / 1e3, given.ends[1] / 1e3)
        return replace(given, value=given.value / 1e3, unit="GB", low=low, high=high)
    if workload.parameters is None or deployment.precision not in bill.BITS:
        return None
    bits = bill.BITS[deployment.precision]
    return derived(lambda n: bill.model_gigabytes(n, bits), workload.parameters, unit="GB", note=f"parameters × {bits} bits")


def _problems(
    deployment: Deployment, workload: Workload, row: Price | None, request: Figure | None, capacity: Figure | None, size: Figure | None
) -> tuple[str, ...]:
    found = []
    target, call = workload.latency_target_ms, _call_ms(deployment, request)
    if target is not None and call is not None and capacity is not None and capacity.ends[0] <= 0:
        found.append(f"A call alone takes {call.ends[1]:,.3g} ms; the target is {target.value:,.3g} ms.")
    if deployment.batch > 1 and deployment.batch_latency_ms is None:
        found.append(f"The time of a call of {deployment.batch} requests is not known.")
    if row is not None and row.accelerator_gb and size is not None and size.value > row.accelerator_gb * max(1, row.accelerators):
        has = f"{row.accelerators:g} × {row.accelerator_gb:g} GB" if row.accelerators > 1 else f"{row.accelerator_gb:g} GB"
        found.append(f"Its weights of {size.value:,.3g} GB do not fit {row.instance}'s {has}.")
    return tuple(found)
