"""Client libraries that cannot share our environment: programs of their own, in `.venv-clients`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from conftest import missing

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".venv-clients" / "bin" / "python"


def client(script: str, *arguments: object, timeout_s: float = 120) -> Any:
    """What a script of this folder printed as JSON; skips where `make clients` has not been run."""
    done = run(str(HERE / script), *arguments, timeout_s=timeout_s)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def run(*arguments: object, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` there."""
    if not PYTHON.exists():
        missing(".venv-clients (`make clients`)")
    command = [str(PYTHON), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
