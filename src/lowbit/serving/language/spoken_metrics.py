"""Prometheus metrics of answers of language models, beside those that every model has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from lowbit.monitoring.names import LANGUAGE, SECONDS, WHO
from lowbit.serving.watch.observing import Observer

if TYPE_CHECKING:
    from lowbit.serving.language.desk import Desk
    from lowbit.serving.language.measures import Spoken
    from lowbit.serving.run.deployment import Deployment

Labels = tuple[str, str, str]
_HELP = {metric.name.removesuffix("_total"): metric.help for metric in LANGUAGE}


class Gauges(Collector):
    """What desks know of themselves, asked when it is read."""

    def __init__(self) -> None:
        """Of none."""
        self.desks: dict[Labels, Desk] = {}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Each with its value now."""
        running = GaugeMetricFamily("lowbit_answers_running", _HELP["lowbit_answers_running"], labels=WHO)
        used = GaugeMetricFamily("lowbit_kv_cache_use", _HELP["lowbit_kv_cache_use"], labels=WHO)
        up = GaugeMetricFamily("lowbit_engine_up", _HELP["lowbit_engine_up"], labels=WHO)
        for labels, desk in list(self.desks.items()):
            running.add_metric(labels, desk.running)
            up.add_metric(labels, desk.alive)
            if (use := desk.kv_use) is not None:
                used.add_metric(labels, use)
        yield running
        yield used
        yield up


@dataclass(frozen=True)
class _Children:
    """Of one variant; looked up once."""

    prompt: Any
    tokens: Any
    refusals: Any
    nats: Any
    first: Any
    gap: Any
    finished: Any


class LanguageMetrics(Observer):
    """Counts answers, tokens and their times."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Registers everything, at zero."""

        def counter(name: str, labels: tuple[str, ...] = WHO) -> Counter:
            return Counter(name, _HELP[name], labels, registry=registry)

        def seconds(name: str) -> Histogram:
            return Histogram(name, _HELP[name], WHO, registry=registry, buckets=SECONDS)

        self._prompt, self._tokens = counter("lowbit_prompt_tokens"), counter("lowbit_answer_tokens")
        self._answers = counter("lowbit_answers", (*WHO, "finish"))
        self._refusals, self._nats = counter("lowbit_refusals"), counter("lowbit_answer_nats")
        self._first, self._gap = seconds("lowbit_first_token_seconds"), seconds("lowbit_token_seconds")
        self._shadowed, self._shadow_nats = counter("lowbit_shadow_tokens"), counter("lowbit_shadow_nats", (*WHO, "by"))
        self._children: dict[Labels, _Children] = {}
        self._gauges = Gauges()
        registry.register(self._gauges)

    def put(self, deployment: Deployment) -> None:
        """A deployment is served from now on."""
        if deployment.language is not None:
            for variant in deployment.variants.values():
                desk = cast("Desk", cast(Any, variant.batcher))
                self._gauges.desks[deployment.name, deployment.version, variant.id] = desk

    def gone(self, deployment: Deployment) -> None:
        """A deployment is served no more."""
        for variant in deployment.variants.values():
            self._gauges.desks.pop((deployment.name, deployment.version, variant.id), None)

    def spoke(self, deployment: Deployment, variant: str, answers: Sequence[Spoken]) -> None:
        """One request's answers."""
        found = self._of((deployment.name, deployment.version, variant))
        for each in answers:
            found.prompt.inc(each.prompt_tokens)
            found.tokens.inc(each.tokens)
            found.finished[each.finish].inc()
            found.refusals.inc(each.refused)
            if each.logprob is not None and math.isfinite(each.logprob):
                found.nats.inc(-min(each.logprob, 0.0) * each.tokens)
            if each.first_s is not None:
                found.first.observe(each.first_s)
            for gap in each.gaps_s:
                found.gap.observe(gap)

    def rescored(self, deployment: Deployment, variant: str, tokens: int, own: float, full: float) -> None:
        """One answer, where both say how probable it is."""
        if math.isfinite(own) and math.isfinite(full):
            labels = (deployment.name, deployment.version, variant)
            self._shadowed.labels(*labels).inc(tokens)
            self._shadow_nats.labels(*labels, "own").inc(max(own, 0.0))
            self._shadow_nats.labels(*labels, "full").inc(max(full, 0.0))

    def _of(self, labels: Labels) -> _Children:
        found = self._children.get(labels)
        if found is None:
            finished = {word: self._answers.labels(*labels, word) for word in ("stop", "length")}
            found = self._children[labels] = _Children(
                self._prompt.labels(*labels),
                self._tokens.labels(*labels),
                self._refusals.labels(*labels),
                self._nats.labels(*labels),
                self._first.labels(*labels),
                self._gap.labels(*labels),
                finished,
            )
        return found
