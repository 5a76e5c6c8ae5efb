"""Olive's OnnxStaticQuantization (OnnxDynamicQuantization for recurrent models) through its workflow, at its defaults.

Olive lives in a virtual environment of its own under build/panel/venvs, made on first use, which is not part of the time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from panel.job import Job, Notes
from panel.paths import BUILD, ROOT
from panel.producers.ort_static import raise_opset

VENV = BUILD / "venvs" / "olive"
PACKAGES = ("olive-ai", "onnxruntime", "onnxscript", "requests")  # it imports requests without asking for it
SCRIPT = Path(__file__).with_name("olive_script.py")


def setup() -> None:
    """Makes the environment. torch first and by itself, pinned, as in the Makefile."""
    python = VENV / "bin" / "python"
    if (VENV / "ready").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--constraint", str(ROOT / "constraints.txt"), "torch"], check=True)
    subprocess.run([*install, *PACKAGES], check=True)
    (VENV / "ready").touch()


def produce(job: Job) -> Notes:
    import onnx

    source = raise_opset(job.model, job.out)
    nodes = {node.op_type for node in onnx.load(source, load_external_data=False).graph.node}
    spec = {
        "model": str(source),
        "out": str(job.artifact),
        "work": str(job.out / "work"),
        "calibration": str(job.calibration),
        "mode": "dynamic" if nodes & {"LSTM", "GRU", "RNN"} else "static",
    }
    (job.out / "olive.json").write_text(json.dumps(spec))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OLIVE_DISABLE_TELEMETRY": "1"}
    # -P: this folder has an olive.py, which must not be what the script imports.
    subprocess.run([str(VENV / "bin" / "python"), "-P", str(SCRIPT), str(job.out / "olive.json")], check=True, env=environment)
    return {"samples": job.n, "mode": spec["mode"], **json.loads((job.out / "olive.made.json").read_text())}
