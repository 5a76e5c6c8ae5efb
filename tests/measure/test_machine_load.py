from __future__ import annotations

import subprocess
import sys
import time

import pytest

from lowbit.measure.load import busy_seconds, cores, others_share


def test_share_of_the_others() -> None:
    # Two cores for ten seconds; 12 s of work were done on them, 7 of them ours: 5 of 20 went to others.
    assert others_share(12.0, 7.0, 10.0, 2) == pytest.approx(0.25)
    assert others_share(6.99, 7.0, 10.0, 2) == 0.0
    assert others_share(99.0, 0.0, 10.0, 2) == 1.0


def test_another_process_shows() -> None:
    assert cores() >= 1
    before, begin = busy_seconds(), time.perf_counter()
    busy = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    assert 0.45 < busy_seconds() - before <= (time.perf_counter() - begin) * cores() + 0.05
