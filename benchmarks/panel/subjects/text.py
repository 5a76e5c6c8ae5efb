"""A two-layer character LSTM: calibrates on the end of the text, scores its beginning."""

from __future__ import annotations

import json

import numpy as np

from panel.paths import SHARED
from panel.pool import Array, Pool, Split
from panel.subject import Feeds, Subject

FOLDER = SHARED / "char-lstm"
LENGTH, TEST, CALIBRATE, VALIDATE = 512, 256, 64, 64
"""Characters a row; rows of each kind. The text has more than 1,900 rows."""


def pool() -> Pool:
    vocabulary: dict[str, int] = json.loads((FOLDER / "char_lstm_charlotte_bronte.vocab.json").read_text(encoding="utf-8"))
    with (FOLDER / "bronte_1M.txt").open(encoding="utf-8", newline="") as file:
        ids = np.array([vocabulary[letter] for letter in file.read()], np.int64)
    count = (len(ids) - 1) // LENGTH
    texts, following = (ids[shift : shift + count * LENGTH].reshape(count, LENGTH) for shift in (0, 1))
    chosen = np.concatenate([np.arange(TEST), np.arange(count - CALIBRATE - VALIDATE, count)])
    rows = np.arange(len(chosen))
    split = Split(rows[TEST : TEST + CALIBRATE], rows[TEST + CALIBRATE :], rows[:TEST])
    return Pool({"ids": texts[chosen]}, following[chosen], (split,))


def shapes(pool: Pool) -> dict[str, Feeds]:
    """Batch x characters: one character at a time (writing), and reading longer texts."""
    ids: Array = pool.feeds["ids"][pool.splits[0].test]
    return {f"{n}x{length}": {"ids": np.ascontiguousarray(ids[:n, :length])} for n, length in ((1, 1), (1, 64), (8, 64), (1, 256))}


SUBJECTS = (Subject("char-lstm", "characters", lambda: FOLDER / "char_lstm_charlotte_bronte.onnx", pool, shapes, quick=32),)
