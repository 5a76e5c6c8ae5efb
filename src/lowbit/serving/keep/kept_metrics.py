"""What the keeper knows, as Prometheus reads it; names and labels are those of `monitoring.names`, which dashboards and rules use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from lowbit.monitoring.names import METRICS
from lowbit.monitoring.rules import REVIEWED
from lowbit.monitoring.tally import Key

if TYPE_CHECKING:
    from lowbit.monitoring.looking import Look
    from lowbit.serving.keep.keeping import Keeper

Family = CounterMetricFamily | GaugeMetricFamily
Values = dict[tuple[str, ...], float]


class KeptFacts(Collector):
    """Asked when it is read, and only of what is in memory: a scrape waits for no disk."""

    def __init__(self, keeper: Keeper) -> None:
        """Of a keeper."""
        self._keeper = keeper

    def collect(self) -> Iterator[Family]:
        """Each with its values now."""
        for name, values in self.values().items():
            yield _family(name, values)

    def values(self) -> dict[str, Values]:
        """By name, by values of the labels in the order of `METRICS`."""
        books, found = self._keeper.books, self._spent()
        found["lowbit_cpu_use"] = {(): books.spending.use}
        if books.spending.gpu_use is not None:
            found["lowbit_gpu_use"] = {(): books.spending.gpu_use}
        found["lowbit_monitoring_failures_total"] = {(what,): float(n) for what, n in self._keeper.failures.items()}
        if books.store is None:
            return found
        found["lowbit_alerts_total"] = {pair: float(n) for pair, n in self._keeper.alerts.counts().items()}
        found["lowbit_samples_kept"] = {(model,): float(rows) for model, rows in books.samples.items()}
        found["lowbit_labels_total"] = {(*key, str(right).lower()): float(n) for (key, right), n in dict(books.labels).items()}
        found["lowbit_reviews_open"] = self._reviews()
        for key, look in books.looks.items():
            for name, labels, value in _seen(key, look):
                found.setdefault(name, {})[labels] = value
        return found

    def _reviews(self) -> Values:
        """Zero for what was looked at and has none: an alert must be able to go away."""
        books = self._keeper.books
        found: Values = {(*key, kind): 0.0 for key in books.looks for kind in REVIEWED}
        for review in books.reviews:
            labels = (*review.key, review.kind)
            found[labels] = found.get(labels, 0.0) + 1
        return found

    def _spent(self) -> dict[str, Values]:
        books, price = self._keeper.books, self._keeper.settings.price
        cpu: Values = {}
        energy: Values = {}
        cost: Values = {}
        ran = self._keeper.recorder.ran()
        for key, spent in books.spent.items():
            cpu[key] = spent.cpu_s
            found = books.spending.energy(spent, ran[key].rows)
            if found.joules_per_inference is not None:
                energy[*key, found.method] = found.joules_per_inference * ran[key].rows
            if price is not None and ran[key].requests:
                cost[key] = self._keeper.bill(key, spent, ran[key])["per_million"]["usd"]
        return {"lowbit_cpu_seconds_total": cpu, "lowbit_energy_joules_total": energy, "lowbit_cost_per_million_usd": cost}


def _seen(key: Key, look: Look) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """What the rules said of a variant's latest window."""
    for finding in look.findings:
        if finding.limit > 0 and (finding.review or finding.value <= finding.limit or finding.kind not in REVIEWED):  # else too few rows
            yield "lowbit_drift_ratio", (*key, finding.kind), finding.value / finding.limit
        if finding.kind == "confidence":
            yield "lowbit_confidence_mean", key, finding.numbers["mean"]
            yield "lowbit_confidence_baseline_mean", key, finding.numbers["baseline_mean"]
    if look.window is not None:
        yield "lowbit_window_rows", key, float(look.window.tally.recorded)
    if look.accuracy is not None:
        for name, value in (("", look.accuracy.value), ("_low", look.accuracy.low), ("_high", look.accuracy.high)):
            yield f"lowbit_accuracy{name}", key, value


def _family(name: str, values: Values) -> Family:
    metric = METRICS[name]
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family: Family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
