from __future__ import annotations

import subprocess
import sys

import numpy as np

from lowbit.measure.memory import current_bytes, peak_bytes

MB = 1 << 20


def measured(code: str) -> list[int]:
    """What a fresh process prints."""
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return [int(line) for line in lines]


def test_peak_keeps_what_was_freed() -> None:
    code = """
import numpy as np
from lowbit.measure.memory import current_bytes, peak_bytes
print(current_bytes()); big = np.ones(12_500_000); print(current_bytes()); del big; print(current_bytes()); print(peak_bytes())
"""
    before, full, after, peak = measured(code)
    assert 90 * MB < full - before < 110 * MB
    assert after < full - 80 * MB
    assert peak > full - MB  # the kernel counts in batches


def test_a_child_does_not_inherit_its_parents_peak() -> None:
    big = np.ones(40_000_000)
    (child,) = measured("from lowbit.measure.memory import peak_bytes; print(peak_bytes())")
    assert min(peak_bytes(), current_bytes()) > big.nbytes
    assert child < 150 * MB
