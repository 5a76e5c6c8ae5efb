"""Prometheus metrics of one server, in a registry of its own.

Conventions: prefix `lowbit_`, base units, `_total` for counters, labels of few values. A model that is not served is never a label:
names come from clients. The children of every label set are looked up once and kept: an observation costs under a microsecond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from lowbit.serving.cache.cache import RESULTS
from lowbit.serving.language.spoken_metrics import LanguageMetrics
from lowbit.serving.watch.observing import Observer

if TYPE_CHECKING:
    from lowbit.serving.answer.answered import Answered, Caller
    from lowbit.serving.protocol.refusals import Refusal
    from lowbit.serving.protocol.requests import InferRequest
    from lowbit.serving.run.deployment import Deployment
    from lowbit.serving.service import Service

# fmt: off
SECONDS = (.0005, .001, .002, .003, .005, .0075, .01, .015, .02, .03, .05, .075, .1, .15, .2, .3, .5, .75, 1, 2, 5, 10, 30)
# fmt: on
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ASKED = ("model", "version", "variant", "route")
CONTENT_TYPE = CONTENT_TYPE_LATEST
TOTALS = {
    "policy_reload_failures": "Changes of the policy's file that could not be used.",
    "cache_saved_rows": "Rows that did not have to run because an answer was kept.",
    "cache_redis_errors": "Calls of Redis that failed.",
    "cache_redis_skipped": "Calls of Redis that were left out while it was away.",
    "cache_redis_unkept": "Answers that Redis could not be sent in time.",
    "questions_refused": "Questions to people that found no room.",
}
"""Facts that only grow, and what they count."""
NOW = {
    "cache_entries": "Answers that are kept in memory.",
    "cache_bytes": "Bytes of memory that kept answers take.",
    "cache_redis_up": "1 while Redis answers.",
    "cache_similar_checked": "Answers of similar images that were compared with the model's own, by guards in force.",
    "cache_similar_wrong": "Of those, the ones that differed.",
    "cache_similar_wrong_upper": "Upper bound of the share that differs, of the guard that knows least good of it.",
    "cache_similar_proving": "1 while similar images are worked out all the same, to find out whether their answers hold.",
    "cache_similar_on": "1 while similar images are answered from the cache.",
    "cache_similar_off": "1 once similar images are not answered from the cache any more.",
    "questions_open": "Questions that wait for a person.",
}
"""Facts that go up and down."""


class Facts(Collector):
    """What routing, cache and questions know of themselves, asked when it is read. Lookups are left out: they are counted by result."""

    def __init__(self, service: Service) -> None:
        """Of a service."""
        self._service = service

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Each with its value now."""
        for name, value in self._service.answers.facts().items():
            if name in TOTALS:
                yield CounterMetricFamily(f"lowbit_{name}", TOTALS[name], value)
            elif name.removeprefix("cache_") not in RESULTS:
                yield GaugeMetricFamily(f"lowbit_{name}", NOW.get(name, name.replace("_", " ").capitalize() + "."), value)


class Metrics(Observer):
    """Counts what happens. The gauges ask the service when they are read, and cost a request nothing."""

    def __init__(self) -> None:
        """Registers everything, at zero."""
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("lowbit_requests", "Requests that ended.", (*ASKED, "outcome"), registry=registry)
        self._seconds = Histogram(
            "lowbit_request_duration_seconds", "From admission to the answer.", ASKED, registry=registry, buckets=SECONDS
        )
        self._queued = Histogram(
            "lowbit_queue_seconds", "From submission to the start of the run.", ASKED[:3], registry=registry, buckets=SECONDS
        )
        self._batches = Histogram("lowbit_batch_size", "Rows that ran together.", ASKED[:3], registry=registry, buckets=ROWS)
        self._inferences = Counter("lowbit_inferences", "Rows that were run.", ASKED[:3], registry=registry)
        lookups = Counter("lowbit_cache_lookups", "Looks into the cache.", ("result",), registry=registry)
        self._lookups = {result: lookups.labels(result) for result in RESULTS}
        self._escalations = Counter("lowbit_escalations", "Rows that were asked again at full precision.", ("model",), registry=registry)
        self.reloads = Counter("lowbit_reloads", "Bundles that were to be loaded again.", ("model", "result"), registry=registry)
        self._in_flight = Gauge("lowbit_in_flight", "Requests in the server.", registry=registry)
        self._draining = Gauge("lowbit_draining", "1 once the server is to stop.", registry=registry)
        self._served = Gauge("lowbit_model_loaded", "1 for what is served.", ASKED[:3], registry=registry)
        self._waiting = Gauge("lowbit_queue_rows", "Rows that wait for a run.", ASKED[:3], registry=registry)
        self.spoken = LanguageMetrics(registry)
        self._answers: dict[tuple[str, str, str, str], tuple[Counter, Histogram, Histogram]] = {}

    def watch(self, service: Service) -> None:
        """Reads gauges from a service."""
        self._in_flight.set_function(lambda: service.inside)
        self._draining.set_function(lambda: service.leaving or service.draining)
        self.registry.register(Facts(service))

    def put(self, deployment: Deployment, before: Deployment | None = None) -> None:
        """A deployment is served from now on, in the place of another."""
        if before is not None:
            self.gone(before)
        for variant in deployment.variants.values():
            labels = (deployment.name, deployment.version, variant.id)
            self._served.labels(*labels).set(1)
            self._waiting.labels(*labels).set_function(partial(getattr, variant.batcher, "waiting"))
        self.spoken.put(deployment)

    def gone(self, deployment: Deployment) -> None:
        """A deployment is served no more. Its counters stay: what was counted was counted."""
        for variant in deployment.variants.values():
            for gauge in (self._served, self._waiting):
                gauge.remove(deployment.name, deployment.version, variant.id)
        self.spoken.gone(deployment)

    def on_batch(self, model: str, version: str, variant: str) -> Callable[[int], None]:
        """What is told the rows of a variant's batches."""
        size, rows_run = self._batches.labels(model, version, variant), self._inferences.labels(model, version, variant)

        def ran(rows: int) -> None:
            size.observe(rows)
            rows_run.inc(rows)

        return ran

    def answered(self, deployment: Deployment, request: InferRequest, caller: Caller, found: Answered, seconds: float) -> None:  # noqa: ARG002
        """One more, with its times."""
        key = (deployment.name, deployment.version, found.variant.id, found.route)
        children = self._answers.get(key)
        if children is None:
            children = self._requests.labels(*key, "ok"), self._seconds.labels(*key), self._queued.labels(*key[:3])
            self._answers[key] = children
        count, duration, queued = children
        count.inc()
        duration.observe(seconds)
        if found.batch:
            queued.observe(found.queued_s)
        if found.cache != "off":
            self._lookups[found.cache].inc()
        if found.escalated:
            self._escalations.labels(deployment.name).inc(found.escalated)

    def refused(self, deployment: Deployment | None, caller: Caller, refusal: Refusal, seconds: float) -> None:  # noqa: ARG002
        """One more that was not answered."""
        model, version = (deployment.name, deployment.version) if deployment else ("", "")
        self._requests.labels(model, version, "", "", refusal.outcome).inc()

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)
