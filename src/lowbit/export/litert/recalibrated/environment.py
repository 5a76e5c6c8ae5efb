"""Where litert-torch and ai-edge-quantizer are: a Python of their own, 2 GB, with a torch of one version. And how they are run there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lowbit.errors import ModelError
from lowbit.export.worker import python_of
from lowbit.plugins import installed_version

_PACKAGES = "torch==2.13.0 litert-torch==0.10.0 ai-edge-quantizer==0.10.0"
_INSTALL = f"python -m venv .venv-litert-torch && .venv-litert-torch/bin/pip install {_PACKAGES}"
_MODULE = "litert_torch"
_SECONDS = 1800
_INSTEAD = "Export for a target that runs ONNX: optimum, ort-mobile."


def environment() -> Path | None:
    """The Python that has the converter (`LOWBIT_LITERT_TORCH_PYTHON`, or `.venv-litert-torch`), where this one has torch; else None."""
    return python_of("litert-torch", _MODULE) if installed_version("torch") is not None else None


def missing() -> str:
    """What to install first."""
    return _INSTALL if installed_version("torch") is not None else "pip install 'lowbit[torch]'"


def convert(job: Path) -> None:
    """Runs the script beside this file in that environment; it imports nothing of ours.

    Args:
        job: What to do; see the script.

    Raises:
        ModelError: it fails, or takes too long.
    """
    script, python = Path(__file__).with_name("convert.py"), environment()
    assert python is not None, "asked before"
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "LITERT_TORCH_SHOW_PROGRESS": "no", "JAX_PLATFORMS": "cpu"}
    variables.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(
            [python, "-I", script, job], capture_output=True, text=True, timeout=_SECONDS, check=False, env=variables, cwd=job.parent
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"litert-torch has not converted the model within {_SECONDS // 60} minutes.", _INSTEAD) from None
    if done.returncode:
        raise ModelError(f"litert-torch cannot convert the model: {last_words(done.stderr)}", _INSTEAD)


def last_words(stderr: str) -> str:
    """The error that ended a Python program: the last line that names one, else the last line.

    >>> last_words("Traceback (most recent call last):\\nRuntimeError: no lowering for aten.foo\\n  hint: none")
    'RuntimeError: no lowering for aten.foo'
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception"))]
    return (errors or lines or ["it said nothing"])[-1][:400]
