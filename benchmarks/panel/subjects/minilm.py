"""The sentence encoder MiniLM-L6 on SST-2: calibrates on training sentences, scores the development set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from panel.paths import ROOT, SHARED, models
from panel.pool import Array, Pool, Split
from panel.subject import Feeds, Subject

CALIBRATE, VALIDATE = 300, 300
FOLDER = models("minilm")


def model() -> Path:
    """Exports the model, and the sentences with it; needs what `make full` installs."""
    path = FOLDER / "minilm.onnx"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / "sentences.tsv").write_text("\n".join(sentences()) + "\n", encoding="utf-8")
        script = ROOT / "examples" / "minilm" / "export.py"
        command = [sys.executable, str(script), "--sentences", str(FOLDER / "sentences.tsv"), "--out", str(FOLDER)]
        subprocess.run(command, check=True, cwd=ROOT)
    return path


def sentences() -> list[str]:
    """`sentence<TAB>label` lines: calibration, validation, and all of the development set."""
    train, dev = ((SHARED / "sst2" / f"{name}.tsv").read_text(encoding="utf-8").splitlines() for name in ("train", "dev"))
    chosen = np.random.default_rng(0).permutation(len(train))[: CALIBRATE + VALIDATE]
    return [*(train[row] for row in chosen), *dev]


def pool() -> Pool:
    model()
    with np.load(FOLDER / "sentences.npz") as arrays:
        feeds = {name: arrays[name] for name in ("input_ids", "attention_mask")}
    labels = np.array([int(line.rsplit("\t", 1)[1]) for line in sentences()])
    assert len(labels) == len(feeds["input_ids"])
    rows = np.arange(len(labels))
    split = Split(rows[:CALIBRATE], rows[CALIBRATE : CALIBRATE + VALIDATE], rows[CALIBRATE + VALIDATE :])
    return Pool(feeds, labels, (split,))


def shapes(pool: Pool) -> dict[str, Feeds]:
    """Batch x tokens without padding: texts of exactly that length, made of sentences put one after the other."""
    test = pool.splits[0].test
    words = [pool.feeds["input_ids"][row][1 : int(pool.feeds["attention_mask"][row].sum()) - 1] for row in test]
    stream = np.concatenate(words)
    first, last = pool.feeds["input_ids"][test[0]][0], np.int64(102)
    return {f"{batch}x{tokens}": texts(stream, batch, tokens, first, last) for batch, tokens in ((1, 16), (1, 64), (8, 64), (1, 256))}


def texts(stream: Array, batch: int, tokens: int, first: np.int64, last: np.int64) -> Feeds:
    inner = stream[: batch * (tokens - 2)].reshape(batch, tokens - 2)
    column = np.ones((batch, 1), np.int64)
    ids = np.concatenate([first * column, inner, last * column], axis=1)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


SUBJECTS = (Subject("minilm", "sentences", model, pool, shapes, transformer=True, quick=200),)
