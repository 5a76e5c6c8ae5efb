"""Prometheus metrics of one server, in a registry of its own.

Conventions: prefix `lowbit_`, base units, `_total` for counters, labels of few values. A model that is not served is never a label:
names come from clients. The children of every label set are looked up once and kept: an observation costs under a microsecond.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from lowbit.serving.observing import Observer

if TYPE_CHECKING:
    from lowbit.serving.answering import Answered, Caller
    from lowbit.serving.deployment import Deployment
    from lowbit.serving.refusals import Refusal
    from lowbit.serving.requests import InferRequest
    from lowbit.serving.service import Service

# fmt: off
SECONDS = (.0005, .001, .002, .003, .005, .0075, .01, .015, .02, .03, .05, .075, .1, .15, .2, .3, .5, .75, 1, 2, 5, 10, 30)
# fmt: on
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LOOKUPS = ("miss", "exact", "similar", "shared", "shadow")
ASKED = ("model", "version", "variant", "route")
CONTENT_TYPE = CONTENT_TYPE_LATEST


def _fact(service: Service, name: str) -> float:
    return service.answers.facts()[name]


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
        self._lookups = {result: lookups.labels(result) for result in LOOKUPS}
        self._escalations = Counter("lowbit_escalations", "Rows that were asked again at full precision.", ("model",), registry=registry)
        self.reloads = Counter("lowbit_reloads", "Bundles that were to be loaded again.", ("model", "result"), registry=registry)
        self._in_flight = Gauge("lowbit_in_flight", "Requests in the server.", registry=registry)
        self._draining = Gauge("lowbit_draining", "1 once the server is to stop.", registry=registry)
        self._served = Gauge("lowbit_model_loaded", "1 for what is served.", ASKED[:3], registry=registry)
        self._waiting = Gauge("lowbit_queue_rows", "Rows that wait for a run.", ASKED[:3], registry=registry)
        self._answers: dict[tuple[str, str, str, str], tuple[Counter, Histogram, Histogram]] = {}

    def watch(self, service: Service) -> None:
        """Reads gauges from a service."""
        self._in_flight.set_function(lambda: service.inside)
        self._draining.set_function(lambda: service.leaving or service.draining)
        for name in service.answers.facts():
            gauge = Gauge(f"lowbit_{name}", "See the guide to serving.", registry=self.registry)
            gauge.set_function(partial(_fact, service, name))

    def put(self, deployment: Deployment, before: Deployment | None = None) -> None:
        """A deployment is served from now on, in the place of another."""
        if before is not None:
            self.gone(before)
        for variant in deployment.variants.values():
            labels = (deployment.name, deployment.version, variant.id)
            self._served.labels(*labels).set(1)
            self._waiting.labels(*labels).set_function(partial(getattr, variant.batcher, "waiting"))

    def gone(self, deployment: Deployment) -> None:
        """A deployment is served no more. Its counters stay: what was counted was counted."""
        for variant in deployment.variants.values():
            for gauge in (self._served, self._waiting):
                gauge.remove(deployment.name, deployment.version, variant.id)

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
