"""`lowbit assess`: tables, JSON and page on the case studies and on a bundle; kind about mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_examples import keep, recover, ship
from cli_runner import Shell, lowbit
from headless_chromium import Chromium

from lowbit.bundle.schema import Manifest
from lowbit.cli import assess as verb
from lowbit.cli.assess_bundle import evidence_of
from lowbit.cli.assess_page import render
from lowbit.cost.assess import assess
from lowbit.cost.prices import own_table
from lowbit.cost.workload import parse_workload, read_workload

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "assess"
TODAY = ("--instance", "t3.medium", "--instances", "4", "--requests", "2.5e8", "--target", "200")
Run = Callable[..., Shell]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda *args: lowbit(capfd, monkeypatch, "assess", *args)


@pytest.fixture
def bundled(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle's evidence where a folder would be: loading folders is tested elsewhere."""
    monkeypatch.setattr(verb, "_evidence", lambda bundle: evidence_of(ship()) if bundle else None)
    return Path("build/some-bundle")


def parsed(shell: Shell) -> Any:
    """stdout as JSON: nothing else may be there."""
    assert shell.code == 0, shell.err
    return json.loads(shell.out)


def test_the_table_of_a_case_study(run: Run) -> None:
    shell = run("--workload", EXAMPLES / "a100_to_t4.yaml")
    assert shell.code == 0, shell.err
    for text in ("$2,336", "$1,168", "$384", "$192", "28.0 GB", "7.00 GB", "3.50 GB", "do not fit t4's 16 GB", "Not known: please say"):
        assert text in shell.out
    assert "undated" in shell.out, "a price says of which day it is"


def test_the_other_case_study_says_how_much_faster(run: Run) -> None:
    shell = run("--workload", EXAMPLES / "inspection.yaml")
    for text in ("340 ms", "91 ms (3.7×)", "87.0 MB", "22.0 MB", "accuracy −0.8 %", "2026-04-17"):
        assert text in shell.out


def test_json_has_a_schema_and_nothing_else_on_stdout(run: Run) -> None:
    document = parsed(run("--workload", EXAMPLES / "client_bill.yaml", "--output", "json"))
    assert (document["schema"], document["verdict"], document["payback"]["value"]) == ("1", "worth_it", 18)


def test_a_bundle_and_options_are_enough(run: Run, bundled: Path) -> None:
    document = parsed(run(bundled, *TODAY, "--effort", "50", "--output", "json"))
    names = [each["name"] for each in document["candidates"]]
    assert names[0] == ship().decision.chosen
    figures = document["candidates"][0]["figures"]
    assert figures["request_ms"]["origin"] == "measured"
    assert figures["request_ms"]["low"] < figures["request_ms"]["value"] < figures["request_ms"]["high"]
    assert figures["price"]["value"] == 0.0416
    assert document["effort"]["value"] == 50
    assert document["candidates"][0]["quality"].startswith("top-1")


def test_options_win_over_the_file_and_measured_over_stated(run: Run, bundled: Path) -> None:
    shell = run(bundled, "--workload", EXAMPLES / "demo.yaml", "--instances", "3")
    assert shell.code == 0, shell.err
    assert "Measured in the place of stated" in shell.out
    assert "today, latency: 1.6 ms →" in shell.out
    assert "instances of today: stated, the command line" in shell.out


def test_a_load_test_of_ours(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "held.json"
    file.write_text(json.dumps({"objective": {"p99_ms": 100.0, "errors": 0.01}, "steps": [], "best": {"rate": 50.0}}))
    document = parsed(run("--workload", EXAMPLES / "inspection.yaml", "--loadtest", f"int8={file}", "--output", "json"))
    held = document["candidates"][0]["figures"]["capacity_per_s"]
    assert (held["value"], held["origin"]) == (50, "measured")
    assert "p99 within 100 ms" in held["note"]
    file.write_text(json.dumps({"objective": {"p99_ms": 100.0}, "best": None}))
    assert "No rate was held" in run("--workload", EXAMPLES / "inspection.yaml", "--loadtest", f"int8={file}").err


def test_prices_of_ones_own(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("prices: [{provider: me, instance: t3.medium, usd_per_hour: 1.0, source: my contract, date: 2026-11-01}]")
    document = parsed(run("--workload", EXAMPLES / "inspection.yaml", "--prices", file, "--output", "json"))
    assert document["today"]["figures"]["price"] == {
        "value": 1.0,
        "unit": "USD/h",
        "origin": "stated",
        "note": "t3.medium (me), my contract, 2026-11-01",
    }
    assert "spot_price" not in document["today"]["figures"], "no discount is in that table, and none is invented"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "nothing to assess"),
        (("--instance", "t3.mediun"), 2, "price of 't3.mediun' is not known"),
        (("--instance", "t3.medium", "--instances", "0"), 2, "instances must be a number of at least 1"),
        (("--workload", "none.yaml"), 3, "none.yaml cannot be read: no such file or directory."),
        (("--instance", "t3.medium", "--report", "none/x.html"), 2, "its folder is missing"),
        (("--instance", "t3.medium", "--report", "."), 2, "it is a folder"),
        (("--instance", "t3.medium", "--prices", "none.csv"), 3, "cannot be read"),
        (("--instance", "t3.medium", "--loadtest", "x"), 2, "not NAME=FILE.json"),
        (("--instance", "t3.medium", "--loadtest", "today=none.json"), 3, "no result of"),
        (("no-bundle",), 2, "There is no folder no-bundle"),
    ],
)
def test_mistakes_are_said_without_a_traceback(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shell = run(*arguments)
    assert (shell.code, "Traceback" in shell.err) == (code, False), shell.err
    assert message in shell.err
    assert shell.out == ""


def test_a_narrow_terminal_keeps_what_matters_most() -> None:
    found = assess(read_workload(EXAMPLES / "a100_to_t4.yaml"), own_table())
    heads = {width: [column.header for column in verb.cost_table(found, width).columns[1:]] for width in (60, 80, 300)}
    assert heads[60] == ["month", "saves"]
    assert heads[80] == ["instances", "hours", "month", "on spot", "saves"]
    assert heads[300][-1] == "quality"


@pytest.mark.parametrize("make", [ship, keep, recover])
def test_evidence_of_a_bundle(make: Callable[[], Manifest]) -> None:
    manifest = make()
    found = evidence_of(manifest)
    assert (found.verdict, found.chosen.id, found.baseline.id) == (
        manifest.decision.verdict,
        manifest.decision.chosen,
        manifest.baseline.id,
    )
    assert found.baseline.call_ms[1].value == manifest.baseline.measurements[0].latency_ms.p50
    assert manifest.environment.cpu in found.machine
    assert all(each.precision != found.chosen.precision for each in found.others)


# The page ----------------------------------------------------------------------------------------------------------------


def demo_page() -> str:
    return render(assess(read_workload(EXAMPLES / "demo.yaml"), own_table(), evidence_of(ship())))


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
@pytest.mark.parametrize("name", ["demo", "a100_to_t4", "inspection", "client_bill"])
def test_a_browser_asks_for_nothing_and_has_nothing_to_complain_of(
    browser: Chromium, tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    file = tmp_path / "cost.html"
    file.write_text(demo_page() if name == "demo" else render(assess(read_workload(EXAMPLES / f"{name}.yaml"), own_table())))
    page = browser.open(file, width, dark=dark)
    assert [url for url in page.urls if not url.startswith("data:")] == [file.resolve().as_uri()]
    assert page.messages == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_is_written_where_it_was_asked_for(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "cost.html"
    shell = run("--workload", EXAMPLES / "client_bill.yaml", "--report", file)
    assert shell.out.endswith(f"Report: {file}\n")
    text = file.read_text()
    assert "$2,840" in text
    assert "18 days" in text
    assert "<script" not in text


def test_what_comes_in_is_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>"
    raw = {
        "name": evil,
        "source": evil,
        "today": {"bill_per_month": 10, "instance": evil},
        "candidates": [{"name": f"a {evil}", "bill_per_month": 5, "instance": evil, "quality": evil}],
    }
    assert "<img" not in render(assess(parse_workload(raw, "w.yaml"), own_table()))
