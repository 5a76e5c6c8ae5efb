"""Workload files: strict, with ranges, and kind about mistakes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from cost_case import workload

from lowbit.cost.prices import read_prices
from lowbit.cost.workload import parse_workload, read_workload
from lowbit.errors import DataError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "assess"


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_our_examples_can_be_read(file: Path) -> None:
    assert read_workload(file).name != "workload"


def test_the_files_of_the_guide_can_be_read(tmp_path: Path) -> None:
    text = (EXAMPLES.parents[1] / "docs" / "guides" / "cost.md").read_text()
    first, second = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    found = parse_workload(yaml.safe_load(first), "guide")
    assert [each.name for each in found.candidates] == ["int8", "int8 and a cache"]
    (tmp_path / "prices.yaml").write_text(second)
    table = read_prices(tmp_path / "prices.yaml")
    assert table.find("t3.medium").spot_high == 0.02


def test_figures_say_who_stated_them() -> None:
    found = parse_workload({"source": "ops", "today": {"latency_ms": [80, 120], "spot": True}}, "w.yaml")
    latency = found.today.latency_ms
    assert latency is not None
    assert (latency.value, latency.ends, latency.origin, latency.note) == (100, (80, 120), "stated", "ops (w.yaml)")
    assert found.today.spot
    assert found.today.name == "today"
    million = parse_workload(yaml.safe_load("requests_per_month: 1e6"), "w.yaml").requests_per_month
    assert million is not None
    assert (million.value, million.note) == (1e6, "w.yaml")


def test_candidates_have_names_even_where_nobody_gave_them() -> None:
    found = workload(candidates=[{"precision": "int8"}, {"precision": "fp16"}])
    assert [each.name for each in found.candidates] == ["candidate 1", "candidate 2"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "must be a mapping"),
        ({"todya": {}}, "Unknown key of workload 'todya'"),
        ({"today": {"latency": 3}}, "Unknown key of today 'latency'"),
        ({"today": {"latency_ms": "340 ms"}}, "latency_ms must be a number above 0"),
        ({"today": {"latency_ms": 0}}, "above 0"),
        ({"today": {"latency_ms": [1, 2, 3]}}, "latency_ms must be a number"),
        ({"today": {"latency_ms": True}}, "latency_ms must be a number"),
        ({"today": {"latency_ms": float("nan")}}, "latency_ms must be a number"),
        ({"today": {"instances": 0}}, "of at least 1"),
        ({"today": {"hours_per_month": 745}}, "at most 744"),
        ({"today": {"cache_hit_rate": 1}}, "at most 0.999"),
        ({"today": {"cache_hit_rate": -0.1}}, "of at least 0"),
        ({"today": {"batch": 0}}, "whole number of at least 1"),
        ({"today": {"spot": "yes"}}, "true or false"),
        ({"today": {"precision": "int7"}}, "Unknown precision 'int7'"),
        ({"today": {"instance": 4}}, "must be text"),
        ({"inference_share": 1.5}, "at most 1"),
        ({"candidates": {"name": "a"}}, "candidates must be a list"),
        ({"candidates": [1]}, "must be a mapping"),
        ({"candidates": [{"name": "a"}, {"name": "a"}]}, "called 'a'"),
        ({"candidates": [{"name": "today"}]}, "called 'today'"),
        ({"effort": {"usd": -1}}, "of at least 0"),
    ],
)
def test_what_is_wrong_is_said(raw: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_workload(raw, "w.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_workload(tmp_path / "none.yaml")
    file = tmp_path / "w.yaml"
    file.write_text("today: [")
    with pytest.raises(DataError, match="no YAML"):
        read_workload(file)
