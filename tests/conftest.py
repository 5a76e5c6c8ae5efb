"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from headless_chromium import Chromium

settings.register_profile("lowbit", deadline=None)  # machines are slow at times; what is right does not depend on it
settings.load_profile("lowbit")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def missing(what: str) -> None:
    """Skips a test for want of `what`; where everything must be there (`LOWBIT_REQUIRE_ALL=1`, as in CI) it fails instead."""
    if os.environ.get("LOWBIT_REQUIRE_ALL") == "1":
        pytest.fail(f"{what} is missing, and LOWBIT_REQUIRE_ALL=1 turns that skip into a failure")
    pytest.skip(f"{what} is missing", allow_module_level=True)  # some files need it as a whole


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skips a file of tests that cannot be imported for want of PyTorch, which is an extra; where everything must be there it fails."""
    report = yield
    if report.failed and "No module named 'torch'" in str(report.longrepr) and os.environ.get("LOWBIT_REQUIRE_ALL") != "1":
        report.outcome, report.longrepr = "skipped", (str(collector.path), 1, "Skipped: torch is missing")
    return report


@pytest.fixture
def shared_data() -> Path:
    """The folder with real models and data sets; its tests skip where it is absent."""
    if not SHARED.is_dir():
        missing("../shared/data")
    return SHARED


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A headless browser; its tests skip where there is none."""
    from headless_chromium import PROGRAM, Chromium

    if PROGRAM is None:
        missing("chromium")
    with Chromium(tmp_path_factory.mktemp("chromium")) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def short_timing() -> Iterator[None]:
    """Real races, but short ones: for tests about what is done with times, not about the times."""
    from lowbit.pipeline import finish, lengths, screen, tune

    short = {"rounds": 3, "seconds_per_round": 0.01}
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((screen, "QUICK"), (tune, "QUICK"), (finish, "FINAL"), (lengths, "FINAL")):
            patch.setattr(module, name, short)
        yield
