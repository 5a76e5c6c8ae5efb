"""A minute of what `make soak` does for half an hour."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import missing

SECONDS = 60.0
FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "soak.py"


@pytest.fixture
def soak() -> Any:
    if shutil.which("redis-server") is None:
        missing("redis-server")
    spec = importlib.util.spec_from_file_location("soak", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_nothing_is_lost_or_swapped_and_memory_does_not_grow(soak: Any, tmp_path: Path) -> None:
    found, report = soak.soak(SECONDS, tmp_path)
    assert report["problems"] == []
    assert {"reload", "redis", "successor", "exit 0"} == set(found.events)
    assert report["versions"] > 2
    assert all(report["seen"][f"{way} right"] > 100 for way in ("rest", "grpc", "predict"))
    assert all(last < first + 40 for first, last in report["rss_mb"].values())


def test_a_swapped_answer_would_be_seen(soak: Any) -> None:
    import numpy as np

    expected = np.arange(40, dtype=np.float32).reshape(4, 10)
    found = soak.Soak({"fp32": expected})
    found.check("rest", [1, 2], "fp32", expected[[1, 2]])
    found.check("rest", [1, 2], "fp32", expected[[2, 1]])
    found.check("rest", [1, 2], "fp32", expected[[1]])
    found.seen["grpc INTERNAL"] += 1
    found.seen["predict lost: x"] += 1
    found.events["exit -9"] += 1
    assert found.seen["rest right"] == 1
    assert found.seen["rest wrong"] == 2
    problems = soak.problems(found)
    assert {"2 x rest wrong", "1 x grpc INTERNAL", "1 x predict lost: x", "exit -9"} <= set(problems)


def test_growth_is_measured_behind_the_warm_up(soak: Any) -> None:
    found = soak.Soak({})
    found.memory[1] = [(float(second), 100.0 + min(second, 30)) for second in range(180)]
    assert found.slope() == pytest.approx(0.0, abs=1e-6)
    found.memory[2] = [(float(second), 100.0 + second / 10) for second in range(180)]
    assert found.slope() == pytest.approx(6.0)


def test_short_lives_have_no_slope(soak: Any) -> None:
    found = soak.Soak({})
    found.memory[1] = [(float(second), 100.0 + second / 10) for second in range(110)]
    assert found.slope() == 0.0
