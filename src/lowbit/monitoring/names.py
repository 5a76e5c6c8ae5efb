"""The Prometheus names that dashboards and alert rules may use: those that the server has, with their labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

WHO = ("model", "version", "variant")
ASKED = (*WHO, "route")
# fmt: off
SECONDS = (.0005, .001, .002, .003, .005, .0075, .01, .015, .02, .03, .05, .075, .1, .15, .2, .3, .5, .75, 1, 2, 5, 10, 30)
# fmt: on
"""Edges of the latency histogram's buckets: a rule can ask for these alone."""
OWN_FAULT = ("failed", "unavailable", "late")
"""Outcomes that are the server's fault or state, and not a client's mistake."""


@dataclass(frozen=True)
class Metric:
    """One name as Prometheus sees it.

    Attributes:
        name: Of the family: without `_bucket`, with `_total`.
        kind: Of it.
        labels: That every sample of it has; a histogram's buckets have `le`, too.
        help: What it is.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str

    @property
    def series(self) -> tuple[str, ...]:
        """Names that a query may use."""
        return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count")) if self.kind == "histogram" else (self.name,)


SERVING = (
    Metric("lowbit_requests_total", "counter", (*ASKED, "outcome"), "Requests that ended."),
    Metric("lowbit_request_duration_seconds", "histogram", ASKED, "From admission to the answer."),
    Metric("lowbit_queue_seconds", "histogram", WHO, "From submission to the start of the run."),
    Metric("lowbit_batch_size", "histogram", WHO, "Rows that ran together."),
    Metric("lowbit_inferences_total", "counter", WHO, "Rows that were run."),
    Metric("lowbit_cache_lookups_total", "counter", ("result",), "Looks into the cache."),
    Metric("lowbit_in_flight", "gauge", (), "Requests in the server."),
    Metric("lowbit_model_loaded", "gauge", WHO, "1 for what is served."),
    Metric("lowbit_queue_rows", "gauge", WHO, "Rows that wait for a run."),
)
"""What serving/watch/metrics.py counts of requests."""

LANGUAGE = (
    Metric("lowbit_prompt_tokens_total", "counter", WHO, "Tokens of prompts that were answered."),
    Metric("lowbit_answer_tokens_total", "counter", WHO, "Tokens of answers."),
    Metric("lowbit_answers_total", "counter", (*WHO, "finish"), "Answers by why they ended."),
    Metric("lowbit_refusals_total", "counter", WHO, "Answers that began like a refusal."),
    Metric("lowbit_answer_nats_total", "counter", WHO, "Sum of -log p over answers' tokens: exp of it over them is their perplexity."),
    Metric("lowbit_shadow_tokens_total", "counter", WHO, "Tokens of answers that the 16-bit model scored, too."),
    Metric("lowbit_shadow_nats_total", "counter", (*WHO, "by"), "Sum of -log p over them, by the variant itself and by the 16-bit model."),
    Metric("lowbit_first_token_seconds", "histogram", WHO, "From the request to the first token of an answer."),
    Metric("lowbit_token_seconds", "histogram", WHO, "Between one token and the next."),
    Metric("lowbit_answers_running", "gauge", WHO, "Answers that are computed."),
    Metric("lowbit_engine_up", "gauge", WHO, "1 where the variant's engine is open, 0 where it failed and could not be opened again yet."),
    Metric("lowbit_kv_cache_use", "gauge", WHO, "Share of the cache of keys and values in use, 0-1; where the engine says."),
)
"""What the server adds for language models."""

MONITORING = (
    Metric("lowbit_reviews_open", "gauge", (*WHO, "kind"), "Shifts that wait for a person."),
    Metric("lowbit_drift_ratio", "gauge", (*WHO, "kind"), "What a rule found in the latest window, over its limit: above 1 it counts."),
    Metric("lowbit_window_rows", "gauge", WHO, "Recorded rows of the latest window that the rules looked at."),
    Metric("lowbit_confidence_mean", "gauge", WHO, "Mean confidence of that window."),
    Metric("lowbit_confidence_baseline_mean", "gauge", WHO, "Mean confidence that it is compared with."),
    Metric("lowbit_accuracy", "gauge", WHO, "Share of right answers among those that were labelled."),
    Metric("lowbit_accuracy_low", "gauge", WHO, "Lower end of its 95 % interval."),
    Metric("lowbit_accuracy_high", "gauge", WHO, "Upper end of its 95 % interval."),
    Metric("lowbit_labels_total", "counter", (*WHO, "right"), "Labels that met their answers, by whether the answer was right."),
    Metric("lowbit_cpu_seconds_total", "counter", WHO, "Seconds that cores worked for the variant's rows."),
    Metric("lowbit_energy_joules_total", "counter", (*WHO, "method"), "Energy of the variant's rows, and how it was found."),
    Metric("lowbit_cost_per_million_usd", "gauge", WHO, "Cost of a million inferences at the given price."),
    Metric("lowbit_cpu_use", "gauge", (), "Share of the cores that the server kept busy, 0-1."),
    Metric("lowbit_gpu_use", "gauge", (), "Share of the time in which the GPU worked, 0-1; only where there is one."),
    Metric("lowbit_alerts_total", "counter", ("sink", "result"), "Alerts by where they went and whether they came there."),
    Metric("lowbit_monitoring_failures_total", "counter", ("what",), "Windows, answers or samples that could not be written."),
    Metric("lowbit_samples_kept", "gauge", ("model",), "Inputs that are kept for recalibration."),
)
"""What the server adds where it keeps windows."""

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in (*SERVING, *LANGUAGE, *MONITORING)}


def series() -> frozenset[str]:
    """All names that a query may use."""
    return frozenset(name for metric in METRICS.values() for name in metric.series)


def bucket_at(seconds: float) -> float:
    """The latency bucket that a limit is counted with: the highest edge that is not above it, so that no slow request passes for quick."""
    return max((edge for edge in SECONDS if edge <= seconds), default=SECONDS[0])
