"""What Prometheus and Grafana are given: promtool accepts and runs the rules, every name exists, every panel has its place."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from traffic import KEY

from conftest import missing
from lowbit.errors import UsageError
from lowbit.monitoring import latency, names
from lowbit.monitoring.dashboard import WIDE, dashboard, dashboard_file
from lowbit.monitoring.prometheus_rules import rules_file, span
from lowbit.monitoring.sla import PAIRS, Sla, burns
from lowbit.monitoring.tally import Tally
from lowbit.monitoring.windows import Window
from lowbit.serving.protocol import refusals
from lowbit.serving.watch import metrics as server

NAME = re.compile(r"\blowbit_[a-z_]+")
NOW = 1_800_000_000.0


def promtool(*arguments: str, folder: Path) -> str:
    tool = shutil.which("promtool")
    if tool is None:
        missing("promtool (Debian's package prometheus)")
    done = subprocess.run([str(tool), *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("sla", [Sla(), Sla(0.033, 0.5, 0.99999), Sla(60.0)], ids=["usual", "odd", "slow"])
def test_promtool_accepts_the_rules(tmp_path: Path, sla: Sla) -> None:
    (tmp_path / "rules.yml").write_text(rules_file(sla))
    assert "SUCCESS" in promtool("check", "rules", "rules.yml", folder=tmp_path)


def alerts_after(sla: Sla, *, ok: str, failed: str, quick: str, every: str) -> dict[str, Any]:
    """A test for promtool: a server for two hours, and which alerts it has then."""
    who = 'model="demo", version="v1", variant="x", route="default"'
    return {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": f'lowbit_requests_total{{{who}, outcome="ok"}}', "values": ok},
                    {
                        "series": 'lowbit_requests_total{model="demo", version="v1", variant="", route="", outcome="failed"}',
                        "values": failed,
                    },
                    {
                        "series": f'lowbit_request_duration_seconds_bucket{{{who}, le="{names.bucket_at(sla.latency_s)!r}"}}',
                        "values": quick,
                    },
                    {"series": f"lowbit_request_duration_seconds_count{{{who}}}", "values": every},
                    {"series": 'lowbit_reviews_open{model="demo", version="v1", variant="x", kind="confidence"}', "values": "0x60 1x60"},
                ],
                "alert_rule_test": [],
            }
        ],
    }


@pytest.mark.parametrize(
    ("failed", "quick", "expected"),
    [("0+0x120", "0+1200x120", []), ("0+60x120", "0+1200x120", ["Errors"]), ("0+0x120", "0+900x120", ["Latency"])],
    ids=["healthy", "5 % fail", "a quarter is slow"],
)
def test_prometheus_itself_raises_the_alerts(tmp_path: Path, failed: str, quick: str, expected: list[str]) -> None:
    """Prometheus' own engine over two hours: the budgets that burn are told, with their windows, and no others."""
    sla = Sla()
    (tmp_path / "rules.yml").write_text(rules_file(sla))
    case = alerts_after(sla, ok="0+1200x120", failed=failed, quick=quick, every="0+1200x120")
    for objective in ("Errors", "Latency"):
        fires = [pair for pair in PAIRS if objective in expected]
        case["tests"][0]["alert_rule_test"].append(
            {
                "eval_time": "2h",
                "alertname": f"LowbitBudget{objective}",
                "exp_alerts": [{"exp_labels": {"model": "demo", "severity": p.severity, "window": span(p.long_s)}} for p in fires],
            }
        )
    found = run_rules(tmp_path, case)
    for objective in ("Errors", "Latency"):
        assert (f"LowbitBudget{objective}" in found) == (objective in expected), found


def run_rules(folder: Path, case: dict[str, Any]) -> str:
    """Which budget alerts fire, by promtool: it compares labels and annotations exactly, so that expecting none prints what there is."""
    tool = shutil.which("promtool")
    if tool is None:
        missing("promtool (Debian's package prometheus)")
    for each in case["tests"][0]["alert_rule_test"]:
        each["exp_alerts"] = []
    (folder / "test.yml").write_text(yaml.safe_dump(case))
    done = subprocess.run([str(tool), "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def test_a_review_that_waits_is_told(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(rules_file())
    case = alerts_after(Sla(), ok="0+1x120", failed="0x120", quick="0+1x120", every="0+1x120")
    for at, fires in (("30m", False), ("2h", True)):
        case["tests"][0]["alert_rule_test"] = [{"eval_time": at, "alertname": "LowbitReviewOpen", "exp_alerts": []}]
        assert ("LowbitReviewOpen" in run_rules(tmp_path, case)) == fires


def expressions() -> list[str]:
    rules = [rule["expr"] for group in yaml.safe_load(rules_file())["groups"] for rule in group["rules"]]
    board = dashboard()
    panels = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    return [*rules, *panels, *(each["query"] for each in board["templating"]["list"] if each["type"] == "query")]


def test_every_name_exists() -> None:
    used = {name for expression in expressions() for name in NAME.findall(expression)}
    assert used <= names.series()
    assert {name for metric in names.MONITORING for name in metric.series} - used <= {"lowbit_labels_total", "lowbit_samples_kept"}


def test_every_label_exists() -> None:
    for expression in expressions():
        for name, matchers in re.findall(r"(lowbit_[a-z_]+)\{([^}]*)\}", expression):
            metric = next(metric for metric in names.METRICS.values() if name in metric.series)
            known = {*metric.labels, *(("le",) if name.endswith("_bucket") else ())}
            assert set(re.findall(r"(\w+)\s*[=!]~?\"", matchers)) <= known, (name, matchers)


def families(metrics: server.Metrics) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What the server registers: name -> kind and labels."""
    found = {}
    for collector in metrics.registry._collector_to_names:
        if hasattr(collector, "_labelnames"):
            name = collector._name + ("_total" if collector._type == "counter" else "")
            found[name] = (collector._type, tuple(collector._labelnames))
    return found


def test_the_names_are_those_of_the_server() -> None:
    """Kinds and labels, too; and the edges of its histogram, and its words for what is its own fault."""
    found = families(server.Metrics())
    for metric in names.SERVING:
        assert found[metric.name] == (metric.kind, metric.labels), metric.name
    assert names.SECONDS == server.SECONDS
    kinds = [refusals.Refusal, *refusals.Refusal.__subclasses__()]
    assert {kind.outcome for kind in kinds if kind.status >= 500} == set(names.OWN_FAULT)


def test_panels_have_their_places() -> None:
    board = json.loads(dashboard_file(Sla(0.25)))
    assert board == dashboard(Sla(0.25))
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < WIDE for x, _ in cells)
        taken |= cells
    limits = {
        panel["title"]: panel["fieldConfig"]["defaults"]["thresholds"]["steps"] for panel in board["panels"] if panel["type"] != "row"
    }
    assert limits["Latency"][1]["value"] == 0.25
    assert all(target["datasource"]["uid"] == "${source}" for panel in board["panels"] for target in panel.get("targets", []))


@pytest.mark.parametrize(("seconds", "bucket"), [(0.1, 0.1), (0.12, 0.1), (60.0, 30), (0.0001, 0.0005)])
def test_a_limit_takes_the_next_lower_bucket(seconds: float, bucket: float) -> None:
    assert names.bucket_at(seconds) == bucket


def test_durations_as_prometheus_writes_them() -> None:
    assert [span(s) for s in (30, 300, 1800, 3600, 21_600, 259_200)] == ["30s", "5m", "30m", "1h", "6h", "3d"]


def test_promises() -> None:
    assert Sla.parse("250ms:0.95") == Sla(0.25, 0.95)
    assert Sla.parse("1.5s:0.9:0.99") == Sla(1.5, 0.9, 0.99)
    for text in ("fast", "100", "100ms:1", "100ms:0.9:0", "0ms", "1ms:0.9:0.9:0.9", "100ms:a"):
        with pytest.raises(UsageError):
            Sla.parse(text)


def minute(at: float, *, n: int = 1_000, errors: int = 0, slow: int = 0) -> Window:
    seconds = [0] * latency.COUNTS
    seconds[latency.bin_of(0.01)] += n - errors - slow
    seconds[latency.bin_of(1.0)] += slow
    return Window(KEY, at - 60, at, Tally(requests=n, errors=errors, seconds=tuple(seconds)))


def test_burn_rates_of_two_windows() -> None:
    """2 % errors for the last ten minutes of an hour, a promise of 99.9 %: the short window burns 20 times, the long one 3.3 times."""
    windows = [minute(NOW - 60 * i, errors=20 if i < 10 else 0) for i in range(60)]
    found = {(burn.objective, burn.pair.rate): burn for burn in burns(windows, Sla(), NOW)}
    fast = found["errors", 14.4]
    assert (fast.short, fast.long, fast.n) == (pytest.approx(20), pytest.approx(20 / 6), 60_000)
    assert not fast.alert, "ten minutes are not yet an hour's worth"
    assert found["latency", 14.4].long == 0
    windows = [minute(NOW - 60 * i, errors=20, slow=300) for i in range(60)]
    found = {(burn.objective, burn.pair.rate): burn for burn in burns(windows, Sla(), NOW)}
    assert found["errors", 14.4].alert
    assert found["latency", 14.4].alert
    assert found["latency", 14.4].long == pytest.approx(300 / 980 / 0.01)
    after = [minute(NOW - 60 * i, errors=20 if i > 10 else 0) for i in range(60)]
    assert not {(b.objective, b.pair.rate): b for b in burns(after, Sla(), NOW)}["errors", 14.4].alert, "it is over: the short window knows"
    assert all(burn.n == 0 and not burn.alert for burn in burns([], Sla(), NOW))


def test_windows_of_a_wrong_clock_burn_nothing_now() -> None:
    failed = Window(KEY, 0, 5_000.0, Tally(requests=100, errors=100))
    assert any(burn.alert for burn in burns([failed], Sla(), 5_000.0))
    assert not any(burn.n for burn in burns([failed], Sla(), 4_000.0))
