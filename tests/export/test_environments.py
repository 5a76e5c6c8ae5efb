"""What people are told to install in an environment of its own is what the tests have there."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowbit.export.executorch import target as executorch
from lowbit.export.litert.recalibrated import environment as litert_torch


@pytest.mark.parametrize(("hint", "file"), [(executorch._MISSING, "executorch"), (litert_torch._INSTALL, "litert-torch")])
def test_hints_name_the_packages_and_versions_that_were_tried(hint: str, file: str) -> None:
    lines = Path(__file__).with_name(f"{file}.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert hint == f"python -m venv .venv-{file} && .venv-{file}/bin/pip install {' '.join(wanted)}"
