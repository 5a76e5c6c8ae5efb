"""The output folder: who may write in it, where things lie, and how they get there whole.

OUT/bundle.json  model/  baseline/  candidates/ID/  calibration/  journal.jsonl  .work/ (gone when done)
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lowbit.errors import Interrupted, UsageError
from lowbit.pipeline.journal import Journal
from lowbit.runtimes.base import Format

MARGIN = 1 << 20
"""Bytes that must stay free: journal lines and reports are written at any time."""

OWN = (
    "bundle.json",
    "journal.jsonl",
    "model",
    "baseline",
    "candidates",
    "calibration",
    "report.html",
    "MODEL_CARD.md",
    "preprocess.yaml",
    "tokenizer.json",
    "tokenizer",
    ".work",
)
"""Everything that a run may write in its folder."""


class Store:
    """Paths and effects of one output folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.journal = Journal(out / "journal.jsonl")
        self.work = out / ".work"

    @property
    def prepared(self) -> Path:
        return self.work / "prepared.onnx"

    @property
    def stats(self) -> Path:
        return self.out / "calibration" / "stats.npz"

    @property
    def calibrated(self) -> Path:
        """Content hashes of the samples that calibrated, uint64 [n]: they never judge what is made of the bundle later."""
        return self.out / "calibration" / "samples.npy"

    def candidate(self, candidate_id: str) -> Path:
        """Folder of one candidate; runtimes that share an artifact share it through a hard link."""
        return self.out / "candidates" / candidate_id

    def artifact(self, recipe: str, form: Format = "onnx") -> Path:
        """Where the artifact of a recipe is made before candidates link to it."""
        return self.work / "artifacts" / f"{recipe}.{form}"


@contextmanager
def claimed(out: Path, key: str, *, force: bool = False) -> Iterator[Store]:
    """Claims `out` for the run with this key and holds it for one process: a new folder, an empty one, or one that the same run began.

    The lock comes first: nothing is looked at, thrown away or mended while another process writes there.

    Args:
        out: The output folder.
        key: Identifies the request (model, data, machine, options that change evidence); see `request_key`.
        force: Throw away what an earlier run left there. Only what a run writes is deleted; other files make it refuse.

    Raises:
        UsageError: `out` is a file, cannot be written, is being written by another run, holds another run's bundle, or
            things that are not lowbit's.
        Interrupted: the disk filled up meanwhile.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"'{out}' is a file; the bundle needs a folder.", "Give another --out.")
    lock_file = out / ".lock"
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock: IO[Any] = lock_file.open("w")
    except OSError as error:
        raise _not_writable(out, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise UsageError(f"Another lowbit run is writing to '{out}'.", "Wait for it, or give another --out.") from error
    try:
        store = Store(out)
        _check_owner(store, key, force)
        store.journal.mend()
        store.work.mkdir(exist_ok=True)
        yield store
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full_disk(error) from error
        raise
    finally:
        lock_file.unlink(missing_ok=True)
        lock.close()
        with suppress(OSError):
            out.rmdir()  # only if nothing was written there


def _not_writable(out: Path, error: OSError) -> Exception:
    if error.errno == errno.ENOSPC:
        return full_disk(error)
    return UsageError(f"'{out}' cannot be written: {error.strerror}.", "Give another --out, or change its permissions.")


def full_disk(error: OSError) -> Interrupted:
    return Interrupted(f"The disk is full ({error.strerror}).", "Free some space; the same command resumes, nothing finished is lost.")


def need_space(store: Store, size: int) -> None:
    """Stops before a step that would fill the disk; libraries that write there do not say so clearly themselves.

    Raises:
        Interrupted: less than `size` bytes and a margin are free.
    """
    free, needed = shutil.disk_usage(store.out).free, size + MARGIN
    if free < needed:
        raise Interrupted(
            f"The disk is full: '{store.out}' has {free / 1e6:,.1f} MB left, and the next step needs {needed / 1e6:,.1f} MB.",
            "Free some space; the same command resumes, nothing finished is lost.",
        )


def discard(store: Store) -> None:
    """Takes back everything that a run wrote before it had anything to show; other files stay."""
    for entry in OWN:
        target = store.out / entry
        if target.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)


def _check_owner(store: Store, key: str, force: bool) -> None:
    out = store.out
    if force and store.journal.path.exists():  # without a journal, `model/` and the like are someone else's
        discard(store)
        out.mkdir(parents=True, exist_ok=True)
    first = next(store.journal.events(), None)
    if first is None:
        foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in (".work", ".lock", "journal.jsonl"))
        if foreign:
            raise UsageError(f"'{out}' is not empty ({', '.join(foreign[:3])}) and not a lowbit bundle.", "Give a new --out.")
    elif first.get("key") != key:
        model = first.get("source", {}).get("path", "unknown model")
        raise UsageError(
            f"'{out}' holds the bundle of another run ({model}): another model, other data, options, machine or library versions.",
            "Give another --out, or --force to replace it.",
        )


def request_key(*parts: object) -> str:
    """A digest of everything that changes the evidence."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Puts a file in a second place, without its bytes taking space twice where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def copy_whole(source: Path, target: Path) -> None:
    """Copies a file so that it appears whole or not at all; a later change of either leaves the other alone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.copyfile(source, temporary)
    temporary.replace(target)
