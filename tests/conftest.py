"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def missing(what: str) -> None:
    """Skips a test for want of `what`; where everything must be there (`LOWBIT_REQUIRE_ALL=1`, as in CI) it fails instead."""
    if os.environ.get("LOWBIT_REQUIRE_ALL") == "1":
        pytest.fail(f"{what} is missing, and LOWBIT_REQUIRE_ALL=1 turns that skip into a failure")
    pytest.skip(f"{what} is missing")


@pytest.fixture
def shared_data() -> Path:
    """The folder with real models and data sets; its tests skip where it is absent."""
    if not SHARED.is_dir():
        missing("../shared/data")
    return SHARED
