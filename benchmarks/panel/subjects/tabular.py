"""California housing: the MLP of examples/california, calibrated and validated on training rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from panel.paths import ROOT, SHARED, models
from panel.pool import Pool, Split
from panel.subject import Feeds, Subject

FOLDER = models("california")
TABLE = SHARED / "tabular" / "california_housing.csv"
CALIBRATE, VALIDATE = 512, 2048


def model() -> Path:
    path = FOLDER / "mlp.onnx"
    if not path.exists():
        script = ROOT / "examples" / "california" / "train.py"
        subprocess.run([sys.executable, str(script), "--data", str(TABLE), "--out", str(FOLDER)], check=True, cwd=ROOT)
    return path


def pool() -> Pool:
    model()
    steps = yaml.safe_load((FOLDER / "preprocess.yaml").read_text())
    table = np.genfromtxt(TABLE, delimiter=",", names=True, dtype=None, encoding="utf-8")
    features = np.stack([table[name] for name in steps["columns"]], axis=1)
    scaled = ((features - np.array(steps["mean"])) / np.array(steps["std"])).astype(np.float32)
    labels = (table[steps["target"]] - steps["target_mean"]) / steps["target_std"]
    train = np.random.default_rng(0).permutation(np.flatnonzero(table["split"] != "test"))
    split = Split(train[:CALIBRATE], train[CALIBRATE : CALIBRATE + VALIDATE], np.flatnonzero(table["split"] == "test"))
    return Pool({"features": scaled}, labels, (split,))


def shapes(pool: Pool) -> dict[str, Feeds]:
    return {str(size): pool.rows(pool.splits[0].test[:size]) for size in (1, 8, 256)}


SUBJECTS = (Subject("california", "numbers", model, pool, shapes, batch=64, quick=2000),)
