"""Alert rules for Prometheus, as a file that `promtool check rules` accepts."""

from __future__ import annotations

from typing import Any

from lowbit.monitoring.names import OWN_FAULT, bucket_at
from lowbit.monitoring.sla import PAIRS, SLA, Pair, Sla

Rule = dict[str, Any]
FAULTS = "|".join(OWN_FAULT)
RECORDED = {"latency": "lowbit:slow:ratio_rate", "errors": "lowbit:errors:ratio_rate"}


def rules_file(sla: Sla = SLA) -> str:
    """The whole file as YAML.

    Args:
        sla: What was promised. The latency is counted with the next lower bucket of the server's histogram.
    """
    import yaml

    groups = [
        {"name": "lowbit-budget", "interval": "30s", "rules": [*recordings(sla), *burn_alerts(sla)]},
        {"name": "lowbit-review", "rules": review_alerts()},
        {"name": "lowbit-server", "rules": server_alerts()},
    ]
    head = (
        f"# {sla.share:.3%} of the answers within {1000 * bucket_at(sla.latency_s):g} ms, "
        f"{sla.available:.3%} of the requests without a fault of the server.\n"
    )
    return head + yaml.safe_dump({"groups": groups}, sort_keys=False, width=160)


def span(seconds: float) -> str:
    """A duration as Prometheus writes it, e.g. "5m"."""
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def recordings(sla: Sla) -> list[Rule]:
    """Shares of slow answers and of failed requests, by model, over every window that an alert asks for."""
    found = []
    for seconds in sorted({each for pair in PAIRS for each in (pair.long_s, pair.short_s)}):
        over = span(seconds)
        found += [
            {"record": f"{RECORDED['latency']}{over}", "expr": slow(sla.latency_s, over)},
            {"record": f"{RECORDED['errors']}{over}", "expr": failed(over)},
        ]
    return found


def slow(latency_s: float, over: str) -> str:
    """Share of answers that took longer, by model."""
    bucket = float(bucket_at(latency_s))
    quick = f'sum by (model) (rate(lowbit_request_duration_seconds_bucket{{le="{bucket!r}"}}[{over}]))'
    return f"1 - {quick} / sum by (model) (rate(lowbit_request_duration_seconds_count[{over}]))"


def failed(over: str) -> str:
    """Share of requests that failed by the server's fault, by model; 0 where none did."""
    faults = f'sum by (model) (rate(lowbit_requests_total{{outcome=~"{FAULTS}"}}[{over}]))'
    every = f"sum by (model) (rate(lowbit_requests_total[{over}]))"
    return f"({faults} or 0 * {every}) / {every}"


def burn_alerts(sla: Sla) -> list[Rule]:
    """One for each pair of windows and each promise."""
    budgets = {"latency": 1 - sla.share, "errors": 1 - sla.available}
    return [_burn(objective, pair, budget) for objective, budget in budgets.items() for pair in PAIRS]


def _burn(objective: str, pair: Pair, budget: float) -> Rule:
    name, limit = RECORDED[objective], f"{pair.rate * budget:.6g}"
    what = "slow answers" if objective == "latency" else "errors"
    return {
        "alert": f"LowbitBudget{objective.capitalize()}",
        "expr": f"{name}{span(pair.long_s)} > {limit} and {name}{span(pair.short_s)} > {limit}",
        "labels": {"severity": pair.severity, "window": span(pair.long_s)},
        "annotations": {
            "summary": f"{{{{ $labels.model }}}}: the budget for {what} is used up {pair.rate:g} times too fast.",
            "description": f"{{{{ $value | humanizePercentage }}}} over {span(pair.long_s)}; {limit} is {pair.rate:g} times what may be.",
        },
    }


def review_alerts() -> list[Rule]:
    """A shift waits for a person, or labels say that answers got worse."""
    where = "{{ $labels.model }} {{ $labels.version }} ({{ $labels.variant }})"
    return [
        _alert(
            "LowbitReviewOpen",
            "max by (model, version, variant, kind) (lowbit_reviews_open) > 0",
            "ticket",
            f"{where}: a shift of {{{{ $labels.kind }}}} waits for a person.",
            "lowbit reviews list STATE, or the server's /ui: accept it as normal, roll back, or recalibrate.",
        ),
        _alert(
            "LowbitReviewForgotten",
            "max by (model, version, variant, kind) (lowbit_reviews_open) > 0",
            "page",
            f"{where}: a review of {{{{ $labels.kind }}}} is open for two days.",
            "While it is open, rollouts of the model hold.",
            wait="2d",
        ),
        _alert(
            "LowbitMonitoringBlind",
            "sum by (what) (increase(lowbit_monitoring_failures_total[15m])) > 0",
            "ticket",
            "{{ $labels.what }} of monitoring could not be written.",
            "Answers go on; is the disk of the state folder full?",
        ),
        _alert(
            "LowbitAlertsLost",
            'sum by (sink, result) (increase(lowbit_alerts_total{result!="sent"}[15m])) > 0',
            "ticket",
            "Alerts did not come to the {{ $labels.sink }}: {{ $labels.result }}.",
            "They are in the server's log.",
        ),
    ]


def server_alerts() -> list[Rule]:
    """The server is away, or does not keep up."""
    return [
        _alert(
            "LowbitAway", "absent(lowbit_in_flight)", "page", "No server gives metrics.", "Is it running, and is it scraped?", wait="2m"
        ),
        _alert(
            "LowbitNothingServed",
            "absent(lowbit_model_loaded == 1)",
            "page",
            "No server has a model loaded.",
            "Look at the server's log.",
            wait="2m",
        ),
        _alert(
            "LowbitQueues",
            "histogram_quantile(0.95, sum by (model, le) (rate(lowbit_queue_seconds_bucket[5m])))"
            " > 0.5 * histogram_quantile(0.95, sum by (model, le) (rate(lowbit_request_duration_seconds_bucket[5m])))",
            "ticket",
            "{{ $labels.model }}: requests spend more than half of their time in the queue.",
            "More replicas, a larger batch, or a shorter queue.",
            wait="15m",
        ),
    ]


def _alert(name: str, expression: str, severity: str, summary: str, description: str, *, wait: str | None = None) -> Rule:
    waits = {"for": wait} if wait else {}
    return {
        "alert": name,
        "expr": expression,
        **waits,
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "description": description},
    }
