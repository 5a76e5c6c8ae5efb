"""A dashboard for Grafana, as the JSON that its import takes: requests, times, shifts, labels, energy and cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lowbit.monitoring.prometheus_rules import FAULTS
from lowbit.monitoring.sla import SLA, Sla

SCHEMA = 39
"""Of Grafana 11; older ones that read it migrate, newer ones too."""
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDE = 24
ONE = 'model=~"$model", version=~"$version"'


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        title: Above it.
        queries: Expression and legend of each line.
        unit: Grafana's name of the unit, e.g. "s".
        width: Of 24.
        kind: "timeseries", "stat" or "table".
        about: What to make of it.
        limit: A line that should not be crossed.
        high: Top of the axis; None finds one.
    """

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str
    width: int = 8
    kind: str = "timeseries"
    about: str = ""
    limit: float | None = None
    high: float | None = None


WHO = "{{model}} {{version}} {{variant}}"


def rows(sla: Sla) -> tuple[tuple[str, tuple[Panel, ...]], ...]:
    """The pictures by the row they stand in."""
    return (("Service", _service(sla)), ("Is it still right", _right()), ("What it takes", _takes()))


def _service(sla: Sla) -> tuple[Panel, ...]:
    count = f"sum by (model, version, variant) (rate(lowbit_requests_total{{{ONE}}}[$__rate_interval]))"
    faults = f'sum by (model) (rate(lowbit_requests_total{{model=~"$model", outcome=~"{FAULTS}"}}[$__rate_interval]))'
    every = 'sum by (model) (rate(lowbit_requests_total{model=~"$model"}[$__rate_interval]))'
    duration = f"sum by (le, model, variant) (rate(lowbit_request_duration_seconds_bucket{{{ONE}}}[$__rate_interval]))"
    batch = f"sum by (model, variant) (rate(lowbit_batch_size_{{}}{{{{{ONE}}}}}[$__rate_interval]))"
    return (
        Panel("Requests a second", ((count, WHO),), "reqps"),
        Panel("Failed by the server's fault", ((f"{faults} / {every}", "{{model}}"),), "percentunit", limit=1 - sla.available),
        Panel(
            "Latency",
            tuple(
                (f"histogram_quantile({share}, {duration})", f"{{{{model}}}} {{{{variant}}}} p{100 * share:g}")
                for share in (0.5, 0.95, 0.99)
            ),
            "s",
            limit=sla.latency_s,
        ),
        Panel("Rows together in a run", ((f"{batch.format('sum')} / {batch.format('count')}", "{{model}} {{variant}}"),), "short"),
        Panel(
            "Time in the queue, p95",
            (
                (
                    f"histogram_quantile(0.95, sum by (le, model, variant) (rate(lowbit_queue_seconds_bucket{{{ONE}}}[$__rate_interval])))",
                    "{{model}} {{variant}}",
                ),
            ),
            "s",
        ),
        Panel(
            "Answered from the cache",
            (
                (
                    'sum by (result) (rate(lowbit_cache_lookups_total{result!="miss"}[$__rate_interval]))'
                    " / ignoring(result) group_left sum(rate(lowbit_cache_lookups_total[$__rate_interval]))",
                    "{{result}}",
                ),
            ),
            "percentunit",
            high=1,
        ),
    )


def _right() -> tuple[Panel, ...]:
    return (
        Panel(
            "Shift over its limit",
            ((f"max by (model, version, variant, kind) (lowbit_drift_ratio{{{ONE}}})", f"{WHO}: {{{{kind}}}}"),),
            "short",
            12,
            about="Above 1 a rule is broken in the latest window: a review is open, or will be.",
            limit=1,
        ),
        Panel(
            "Mean confidence",
            (
                (f"avg by (model, version, variant) (lowbit_confidence_mean{{{ONE}}})", WHO),
                (f"avg by (model, version, variant) (lowbit_confidence_baseline_mean{{{ONE}}})", f"{WHO}, baseline"),
            ),
            "percentunit",
            12,
            high=1,
        ),
        Panel(
            "Reviews that wait for a person",
            ((f"max by (model, version, variant, kind) (lowbit_reviews_open{{{ONE}}}) > 0", f"{WHO}: {{{{kind}}}}"),),
            "short",
            kind="stat",
            limit=1,
        ),
        Panel(
            "Right answers, by labels that came later",
            tuple((f"avg by (model, version, variant) ({name}{{{ONE}}})", f"{WHO}{end}") for name, end in _ACCURACY),
            "percentunit",
            high=1,
        ),
        Panel("Rows in the latest window", ((f"max by (model, version, variant) (lowbit_window_rows{{{ONE}}})", WHO),), "short"),
    )


_ACCURACY = (("lowbit_accuracy", ""), ("lowbit_accuracy_low", ", low"), ("lowbit_accuracy_high", ", high"))


def _takes() -> tuple[Panel, ...]:
    rows_run = f"sum by (model, version, variant) (rate(lowbit_inferences_total{{{ONE}}}[$__rate_interval]))"
    cpu = f"sum by (model, version, variant) (rate(lowbit_cpu_seconds_total{{{ONE}}}[$__rate_interval]))"
    joules = f"sum by (model, version, variant, method) (rate(lowbit_energy_joules_total{{{ONE}}}[$__rate_interval]))"
    each = f"{joules} / on (model, version, variant) group_left {rows_run}"
    return (
        Panel("Cores kept busy", (("avg(lowbit_cpu_use)", "processor"), ("avg(lowbit_gpu_use)", "GPU")), "percentunit", 6, high=1),
        Panel("Core seconds an inference", ((f"{cpu} / {rows_run}", WHO),), "s", 6, about="Measured, whatever is said of energy."),
        Panel("Energy an inference", ((each, f"{WHO}, {{{{method}}}}"),), "joule", 6, about="Never compare two methods with each other."),
        Panel(
            "Cost of a million inferences",
            ((f"max by (model, version, variant) (lowbit_cost_per_million_usd{{{ONE}}})", WHO),),
            "currencyUSD",
            6,
        ),
    )


def dashboard(sla: Sla = SLA) -> dict[str, Any]:
    """The whole dashboard.

    Args:
        sla: Whose limits are drawn.
    """
    return {
        "uid": "lowbit-serving",
        "title": "lowbit",
        "tags": ["lowbit"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": list(_variables())},
        "panels": list(_placed(sla)),
    }


def dashboard_file(sla: Sla = SLA) -> str:
    """The same as text."""
    return json.dumps(dashboard(sla), indent=2) + "\n"


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    for name, asked in (("model", "lowbit_model_loaded"), ("version", 'lowbit_model_loaded{model=~"$model"}')):
        yield {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": SOURCE,
            "query": f"label_values({asked}, {name})",
            "refresh": 2,
            "includeAll": True,
            "multi": True,
            "current": {"text": "All", "value": "$__all"},
        }


def _placed(sla: Sla) -> Iterator[dict[str, Any]]:
    """Panels from left to right, in rows of 24."""
    number, x, y, height = 0, 0, 0, 8
    for title, panels in rows(sla):
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": WIDE, "h": 1},
        }
        x, y = 0, y + 1
        for panel in panels:
            if x + panel.width > WIDE:
                x, y = 0, y + height
            number += 1
            yield {"id": number, "gridPos": {"x": x, "y": y, "w": panel.width, "h": height}, **_drawn(panel)}
            x += panel.width
        y += height


def _drawn(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.high is not None:
        defaults["max"] = panel.high
    if panel.limit is not None and panel.kind == "timeseries":
        defaults["custom"] = {"thresholdsStyle": {"mode": "dashed"}}
    targets = [
        {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
        for index, (expression, legend) in enumerate(panel.queries)
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
    }
