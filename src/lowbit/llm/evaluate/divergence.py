"""How far a model's next-token distributions are from the 16-bit model's: KL divergence and agreement of the likeliest token.

Perplexity looks at one token of each distribution; the divergence looks at all of them, so it tells candidates apart with far
less text. The 16-bit log-probabilities of a bounded number of tokens are spooled to disk once and read by every candidate.

The spool holds each row as 16-bit levels between its least and its greatest log-probability, which is finer than float16
where it matters (llama.cpp's tools do the same): for a vocabulary whose likeliest and least likely token lie 26 nats apart a
log-probability is off by at most 0.0002, and the mean divergence by less than 1e-7. Probabilities below e^-40 of the
likeliest count as that.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from lowbit.errors import RunError, UsageError
from lowbit.llm.evaluate.perplexity import normalizer, wide
from lowbit.llm.evaluate.windows import Documents, Window
from lowbit.types import Array

LEVELS = np.uint16
TOP = 65535
FLOOR = 40.0
"""Nats below the likeliest token that are told apart."""
LOWEST = -1e4
"""Stands for a probability of 0, so that a token which both models rule out adds nothing."""


@dataclass(frozen=True)
class Divergence:
    """Of a candidate from the 16-bit model, over tokens.

    Attributes:
        kl_mean: Mean of KL(16 bit || candidate), nats.
        kl_median: The median.
        kl_p99: The 99th percentile.
        top1: Share of tokens where both find the same token likeliest.
        tokens: That were compared.
    """

    kl_mean: float
    kl_median: float
    kl_p99: float
    top1: float
    tokens: int


def divergence(kl: Array, agree: int) -> Divergence:
    """The record, from the divergence of each token and the number of tokens that agree.

    Raises:
        RunError: there is none, or it is no number.
    """
    if not len(kl) or not np.isfinite(kl).all():
        raise RunError("The divergence from the 16-bit model is no number.")
    median, p99 = np.quantile(kl, (0.5, 0.99))
    return Divergence(float(kl.mean()), float(median), float(p99), agree / len(kl), len(kl))


class Spool:
    """The 16-bit model's log-probabilities of some windows, in a folder.

    Attributes:
        vocabulary: Log-probabilities a token has.
        tokens: That are in it.
    """

    def __init__(self, folder: Path) -> None:
        """Opens what `SpoolWriter` wrote.

        Raises:
            UsageError: there is none, or it is damaged.
        """
        try:
            told = json.loads((folder / "spool.json").read_text())
            self._levels = np.load(folder / "levels.npy", mmap_mode="r")
            with np.load(folder / "rows.npz") as rows:
                self._low, self._step, self._best = rows["low"], rows["step"], rows["best"]
            self._at = {_key(*entry[:4]): (entry[4], entry[5]) for entry in told["windows"]}
            self.digest: str = told["digest"]
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"'{folder.name}' holds no 16-bit log-probabilities ({error}).", "Spool the reference again.") from error
        self.tokens, self.vocabulary = (int(size) for size in self._levels.shape)

    def check(self, documents: Documents, pieces: Sequence[Window]) -> None:
        """Raises UsageError where it was made from other documents, or from windows cut another way."""
        known = {_key(each.document, each.begin, each.end, each.first) for each in pieces}
        if self.digest != digest(documents) or not set(self._at) <= known:
            raise UsageError("The 16-bit log-probabilities are of other documents or windows.", "Spool the reference again.")

    def __contains__(self, window: Window) -> bool:
        return _key(window.document, window.begin, window.end, window.first) in self._at

    def compare(self, window: Window, logits: Array) -> tuple[Array, int]:
        """A candidate on a window that is in it: KL of each token, float64 [k], and how many agree.

        Args:
            window: Which.
            logits: The candidate's, [k, V].

        Raises:
            RunError: another vocabulary.
        """
        if logits.shape[1] != self.vocabulary:
            raise RunError(f"It gives {logits.shape[1]:,} logits a token, the 16-bit model {self.vocabulary:,}.")
        begin, end = self._at[_key(window.document, window.begin, window.end, window.first)]
        found = np.empty(end - begin)
        for rows, values in wide(logits):
            ours = self._log_probabilities(slice(begin + rows.start, begin + rows.stop))
            found[rows] = kl_rows(ours, log_softmax(values))
        return found, int((logits.argmax(axis=1) == self._best[begin:end]).sum())

    def _log_probabilities(self, rows: slice) -> Array:
        stored = self._levels[rows] * self._step[rows, None].astype(np.float64) + self._low[rows, None]
        return log_softmax(stored)  # rounding moves the sum of probabilities from 1 by a hair


def kl_rows(reference: Array, candidate: Array) -> Array:
    """KL(reference || candidate) of each row of natural log-probabilities, float64 [k]; never below 0."""
    terms = np.exp(reference) * (reference - np.maximum(candidate, LOWEST))
    return np.maximum(terms.sum(axis=1), 0.0)


def log_softmax(values: Array) -> Array:
    """Over the last axis, float64."""
    below, total = normalizer(values)
    return below - total[:, None]


class SpoolWriter:
    """Writes a spool, whole or not at all: into a folder beside it that is renamed at the end."""

    def __init__(self, folder: Path, documents: Documents, chosen: Sequence[Window], vocabulary: int) -> None:
        """Reserves the room.

        Raises:
            OSError: the disk is full.
        """
        discard(folder)
        self._folder, self._partial = folder, _partial(folder)
        self._partial.mkdir(parents=True)
        total = sum(window.scored for window in chosen)
        self._levels = np.lib.format.open_memmap(self._partial / "levels.npy", mode="w+", dtype=LEVELS, shape=(total, vocabulary))
        self._low, self._step = np.zeros(total, np.float32), np.zeros(total, np.float32)
        self._best = np.zeros(total, np.int32)
        self._digest, self._windows, self._done = digest(documents), list[list[int]](), 0

    def __enter__(self) -> SpoolWriter:
        return self

    def add(self, window: Window, logits: Array) -> None:
        """One of the chosen windows: logits [k, V]."""
        begin, end = self._done, self._done + len(logits)
        for rows, values in wide(logits):
            at = slice(begin + rows.start, begin + rows.stop)
            self._levels[at], self._low[at], self._step[at] = levels_of(log_softmax(values))
        self._best[begin:end] = logits.argmax(axis=1)
        self._windows.append([window.document, window.begin, window.end, window.first, begin, end])
        self._done = end

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            discard(self._folder)
            return
        assert self._done == len(self._best), "every chosen window is added once"
        self._levels.flush()
        np.savez(self._partial / "rows.npz", low=self._low, step=self._step, best=self._best)
        (self._partial / "spool.json").write_text(json.dumps({"schema": 1, "digest": self._digest, "windows": self._windows}))
        shutil.rmtree(self._folder, ignore_errors=True)
        self._partial.rename(self._folder)


def discard(folder: Path) -> None:
    """Removes what an unfinished writer left."""
    shutil.rmtree(_partial(folder), ignore_errors=True)


def levels_of(log_probabilities: Array) -> tuple[Array, Array, Array]:
    """Rows of log-probabilities as 16-bit levels: uint16 [k, V], the least value and the step of each row, float32 [k]."""
    top = log_probabilities.max(axis=1)
    low = np.maximum(log_probabilities.min(axis=1), top - FLOOR).astype(np.float32)
    step = np.maximum((top - low) / TOP, 1e-12).astype(np.float32)
    levels = np.rint((log_probabilities - low[:, None]) / step[:, None].astype(np.float64)).clip(0, TOP)
    return levels.astype(LEVELS), low, step


def digest(documents: Documents) -> str:
    """Of names and tokens, hex."""
    found = hashlib.sha256()
    for name, tokens in documents:
        found.update(f"{name}\0{len(tokens)}\0".encode())
        found.update(np.ascontiguousarray(tokens, np.int32).tobytes())
    return found.hexdigest()


def _partial(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.partial")


def _key(document: int, begin: int, end: int, first: int) -> tuple[int, int, int, int]:
    return document, begin, end, first
