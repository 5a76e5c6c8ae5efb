"""The folder of a table that is being made: whose it is, what an interruption left in it, and whether the disk has room."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowbit.errors import Interrupted, UsageError
from lowbit.llm.folder import read_json
from lowbit.llm.table import REST, TABLE, write_json

BEGUN = "walk.json"
CHANGING, CHANGED = "finish", "finish.whole"
"""Blocks that the last stage changed: while it runs, and when all are there and only need to be put in place."""

MARGIN = 64 << 20
"""Bytes that stay free on the disk."""


def claimed(out: Path, digest: str, force: bool) -> bool:
    """Whether the table is there already; makes the folder ours where not.

    Raises:
        UsageError: it has the table of another call, or other files.
    """
    found = next((read_json(out, name).get("digest") for name in (TABLE, BEGUN) if (out / name).is_file()), None)
    if found == digest:
        return (out / TABLE).is_file()
    if found is not None and not force:
        raise UsageError(
            f"'{out}' has the table of another model, recipe or calibration text.", "Give another folder, or have it replaced (force)."
        )
    if found is None and (others := [name for name in ("blocks", REST, CHANGING, CHANGED) if (out / name).exists()]):
        raise UsageError(f"'{out}' has '{others[0]}' that is of no table.", "Give another folder.")
    for name in ("blocks", CHANGING, CHANGED):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (TABLE, BEGUN, REST):
        (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / BEGUN, {"digest": digest})
    return False


def put_in_place(out: Path) -> None:
    """What the last stage changed, over what was there; can be interrupted and done again."""
    if not (out / CHANGED).is_dir():
        return
    for file in sorted((out / CHANGED / "blocks").glob("*.safetensors")):
        file.replace(out / "blocks" / file.name)
    shutil.rmtree(out / CHANGED)


def need_room(folder: Path, size: int) -> None:
    """Stops before a step that would fill the disk.

    Raises:
        Interrupted: less than `size` bytes and a margin are free.
    """
    free = shutil.disk_usage(folder).free
    if free < size + MARGIN:
        raise Interrupted(
            f"The disk is full: '{folder}' has {free / 1e6:,.1f} MB left, and the next step needs {(size + MARGIN) / 1e6:,.1f} MB.",
            "Free some space; the same call resumes, and no finished block is lost.",
        )


@contextmanager
def full_disk(out: Path) -> Iterator[None]:
    """A disk that fills up in spite of the check: others write there too."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC or "No space left" in str(error):
            raise Interrupted(
                f"The disk is full: '{out}'.", "Free some space; the same call resumes, and no finished block is lost."
            ) from error
        raise
