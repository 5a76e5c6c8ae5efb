"""A search for a language model that is killed in the middle: the same command goes on, and makes nothing again that was finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from decoder_case import need, random_decoder, texts

from lowbit.pipeline.language.context import BASELINE
from lowbit.pipeline.language.state import replay

INT4 = "int4@torch"
WORDS = {BASELINE: "keep", INT4: "refuse"}
"""Perplexity of this network rises by 3 % in INT4; allowed is a thousandth of a percent."""


def command(folder: Path) -> list[str]:
    call = [
        sys.executable,
        "-m",
        "lowbit",
        "optimize",
        str(folder / "model"),
        "--data",
        str(folder / "text.txt"),
        "--out",
        str(folder / "out"),
    ]
    return [*call, "--workload", "prompt=16,output=4,concurrency=1", "--runtime", "torch", "--recipe", "int4", "--max-drop", "0.001%"]


def finished(out: Path) -> list[str]:
    """Candidates that the journal has, in order; a line that is being written is none yet."""
    file = out / "journal.jsonl"
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
    events = [json.loads(line) for line in lines]
    return [event["candidate"]["id"] for event in events if event["event"] == "candidate"]


def stamps(out: Path) -> dict[Path, int]:
    """When each file of the baseline was written: its copy of the weights, and how it was judged."""
    files = [file for folder in (out / "baseline", out / "candidates" / BASELINE) for file in folder.rglob("*") if file.is_file()]
    return {file: file.stat().st_mtime_ns for file in files if file.name != "result.json"}  # that one tells the decision as well


@pytest.mark.slow
def test_killed_in_the_middle_nothing_finished_is_made_again(tmp_path: Path) -> None:
    need("torch", "transformers", "safetensors", "tokenizers")
    random_decoder("llama", tmp_path / "model", positions=64, seed=4)
    (tmp_path / "text.txt").write_text("\n".join(texts(count=3, sentences=60)), encoding="utf-8")
    out, environment = tmp_path / "out", {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(command(tmp_path), stdout=said, stderr=said, start_new_session=True, env=environment)
        deadline = time.monotonic() + 300
        while not finished(out) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL, (tmp_path / "said.txt").read_text()
    assert finished(out) == [BASELINE]
    before = stamps(out)
    assert {file.name for file in before} >= {"model.safetensors", "search.json"}

    again = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=300, env=environment)
    assert again.returncode == 0, again.stderr
    assert Counter(finished(out)) == {BASELINE: 1, INT4: 1}
    assert {file: stamps(out)[file] for file in before} == before
    told = again.stdout + again.stderr
    assert f"Reading text: {INT4}" in told
    assert f"Reading text: {BASELINE}" not in told

    manifest: dict[str, Any] = json.loads((out / "bundle.json").read_text(encoding="utf-8"))
    decision, replayed = manifest["decision"], replay(out / "journal.jsonl", BASELINE)
    assert (decision["verdict"], decision["chosen"]) == ("keep", BASELINE)
    assert (replayed.verdict, replayed.chosen, list(replayed.reasons)) == (decision["verdict"], decision["chosen"], decision["reasons"])
    assert {entry["id"]: entry["verdict"] for entry in (manifest["baseline"], *manifest["candidates"])} == WORDS
